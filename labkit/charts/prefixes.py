"""Prompts cut into blocks, each with the beginning of its hash: equal hashes are what a prefix cache finds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from labkit.charts.theme import GREEN, GREY, INK, SKY, finish
from labkit.errors import UsageError
from labkit.kvcache import block_hashes

FOUND, NEW, PARTIAL = (
    "found: computed before",
    "new: computed now, then findable",
    "not full (its tokens): never findable",
)
HASH_DIGITS = 4
BLOCK_WIDTH, ROW_HEIGHT = 110, 34


@dataclass(frozen=True)
class Piece:
    """One block of a prompt; `start` and `end` in tokens."""

    prompt: str
    start: int
    end: int
    kind: str
    text: str


def pieces(prompts: Mapping[str, Sequence[int]], *, block_size: int) -> Iterator[Piece]:
    """The blocks of the prompts, which are answered in this order by a cache that was empty and is large enough."""
    known: set[bytes] = set()
    for name, tokens in prompts.items():
        hashes = block_hashes(tokens, block_size=block_size)
        for number, each in enumerate(hashes):
            kind = FOUND if each in known else NEW
            yield Piece(name, number * block_size, (number + 1) * block_size, kind, each.hex()[:HASH_DIGITS])
        known.update(hashes)
        full = len(hashes) * block_size
        if full < len(tokens):
            yield Piece(name, full, len(tokens), PARTIAL, str(len(tokens) - full))


def prefix_blocks(
    prompts: Mapping[str, Sequence[int]], *, block_size: int, title: str, caption: str | None = None
) -> Any:
    """A row for each prompt (token numbers, by name), a box for each block. UsageError without prompts.

    A model of the cache (kvcache.block_hashes), not a measurement.
    """
    if not prompts or not all(prompts.values()):
        raise UsageError(f"the chart {title!r} has no prompts", remedy="pass at least one, with tokens")
    import altair as alt

    found = list(pieces(prompts, block_size=block_size))
    longest = max(piece.end for piece in found)
    scale = alt.Scale(domain=[0, longest], nice=False)
    kinds = alt.Scale(domain=[FOUND, NEW, PARTIAL], range=[GREEN, SKY, "#f2f2f2"])
    data = alt.Data(values=[{**asdict(piece), "middle": (piece.start + piece.end) / 2} for piece in found])
    ticks = list(range(0, longest + 1, block_size))
    x = alt.X("start:Q", title="tokens of the prompt", scale=scale, axis=alt.Axis(values=ticks))
    y = alt.Y("prompt:N", title=None, sort=None, axis=alt.Axis(labelLimit=300, domain=False, ticks=False))
    base = alt.Chart(data).encode(y=y)
    colour = alt.Color("kind:N", title=None, scale=kinds, legend=alt.Legend(symbolType="square", symbolStrokeWidth=1))
    boxes = base.mark_bar(height=24, stroke=GREY, strokeWidth=1).encode(x=x, x2="end:Q", color=colour)
    words = base.mark_text(color=INK, fontSize=13).encode(x=alt.X("middle:Q", scale=scale), text="text:N")
    width = min(560, BLOCK_WIDTH * longest / block_size)
    drawn = alt.layer(boxes, words).properties(width=width, height=ROW_HEIGHT * len(prompts))
    return finish(drawn, title=title, description=_description(found, title), caption=caption)


def _description(found: Sequence[Piece], title: str) -> str:
    rows = []
    for name in dict.fromkeys(piece.prompt for piece in found):
        kinds = [piece.kind for piece in found if piece.prompt == name]
        rows.append(
            f"{name}: {kinds.count(FOUND)} blocks found, {kinds.count(NEW)} new, {kinds.count(PARTIAL)} not full"
        )
    return f"{title}. {'; '.join(rows)}."
