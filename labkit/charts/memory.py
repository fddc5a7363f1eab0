"""Memory over time, place by place: which sequence has which part of the KV cache, and which part of that is filled."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from labkit.charts.theme import GREY, WIDTH, finish, palette
from labkit.errors import UsageError
from labkit.kvcache import Extent, Snapshot

STORED, EMPTY = "stored", "given, but empty"
PALE = 0.25
MOST_NAMED = 12  # beyond this many sequences colours repeat too often for a legend


@dataclass(frozen=True)
class Patch:
    """A part of memory that looks the same for some steps: `low` to `high` in tokens, `start` to `end` in steps."""

    owner: str
    kind: str
    low: int
    high: int
    start: int
    end: int


def memory_map(
    panels: Mapping[str, Sequence[Snapshot]],
    *,
    title: str,
    block_size: int | None = None,
    every: int = 1,
    height: int = 210,
    crop: bool = False,
    caption: str | None = None,
) -> Any:
    """A panel for each allocation: memory upwards, steps to the right, a colour for each sequence, pale where empty.

    `block_size`: draws a line at each block's edge of every panel. `every`: only each so many-th step is looked at (a
    smaller drawing). `crop`: each axis ends at the highest place in use. UsageError without snapshots.
    """
    if not panels or not all(panels.values()):
        raise UsageError(f"the chart {title!r} has no steps", remedy="pass at least one snapshot for each panel")
    import altair as alt

    steps = max(snapshots[-1].step for snapshots in panels.values()) + 1
    names = sorted({str(owner + 1) for found in panels.values() for one in found for owner in one.holdings}, key=int)
    drawn = [
        _panel(
            name,
            snapshots,
            names,
            x=_x(steps, last=name == [*panels][-1]),
            block_size=block_size,
            every=every,
            height=height,
            crop=crop,
        )
        for name, snapshots in panels.items()
    ]
    text = "; ".join(f"{name}: {_words(snapshots)}" for name, snapshots in panels.items())
    whole = alt.vconcat(*drawn, spacing=26).resolve_scale(color="shared")
    return finish(whole, title=title, description=f"Memory over time, {title}. {text}.", caption=caption)


def _panel(
    name: str,
    snapshots: Sequence[Snapshot],
    names: list[str],
    *,
    x: Any,
    block_size: int | None,
    every: int,
    height: int,
    crop: bool,
) -> Any:
    import altair as alt

    # what is given lies below what is stored in it
    rows = sorted((asdict(patch) for patch in patches(snapshots, every=every)), key=lambda row: row["kind"] == STORED)
    capacity = max((row["high"] for row in rows), default=1) if crop else snapshots[0].capacity_tokens
    scale = alt.Scale(domain=[0, capacity], nice=False)
    squares = {"symbolType": "square", "symbolSize": 150}
    colour = alt.Color(
        "owner:N",
        title="sequence",
        sort=names,
        scale=alt.Scale(domain=names, range=[palette()[n % len(palette())] for n in range(len(names))]),
        legend=alt.Legend(columns=len(names), **squares) if len(names) <= MOST_NAMED else None,
    )
    opacity = alt.Opacity(
        "kind:N",
        title=None,
        scale=alt.Scale(domain=[STORED, EMPTY], range=[1, PALE]),
        legend=alt.Legend(**squares, symbolFillColor=GREY, symbolStrokeWidth=0),
    )
    boxes = (
        alt.Chart(alt.Data(values=_csv(rows), format=alt.CsvDataFormat(type="csv")))
        .mark_rect()
        .encode(
            x=x,
            x2="end:Q",
            y=alt.Y("low:Q", title="memory (tokens)", scale=scale, axis=alt.Axis(tickCount=5, grid=False)),
            y2="high:Q",
            color=colour,
            opacity=opacity,
            tooltip=["owner:N", "kind:N", "low:Q", "high:Q", "start:Q", "end:Q"],
        )
    )
    frame = alt.Chart(alt.Data(values=[{"top": capacity}])).mark_rule(color=GREY).encode(y=alt.Y("top:Q", scale=scale))
    edges = [{"edge": edge} for edge in range(0, capacity + 1, block_size)] if block_size else []
    lines = (
        alt.Chart(alt.Data(values=edges)).mark_rule(color="white", strokeWidth=1).encode(y=alt.Y("edge:Q", scale=scale))
    )
    heading = alt.TitleParams(f"{name}: {_words(snapshots)}", fontSize=14, fontWeight="normal", offset=6)
    layers = [boxes, lines, frame] if edges else [boxes, frame]
    return alt.layer(*layers).properties(width=WIDTH, height=height, title=heading)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as one text: as a list of objects they would fill half a notebook."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Patch)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _x(steps: int, *, last: bool) -> Any:
    """The axis of steps, with its title below the last panel only."""
    import altair as alt

    scale = alt.Scale(domain=[0, steps], nice=False)
    axis = alt.Axis(tickCount=8, grid=False)
    return alt.X("start:Q", title="steps of the engine" if last else None, scale=scale, axis=axis)


def patches(snapshots: Sequence[Snapshot], *, every: int = 1) -> Iterator[Patch]:
    """The parts of memory in use: what is given, and on top of it what is stored from some step on.

    A stored part reaches from its extent's beginning to what is filled then; the next one, larger, lies over it. So no
    seam shows between them.
    """
    grown: dict[tuple[int, Extent], list[Patch]] = {}
    looked_at = snapshots[::every]
    for snapshot in looked_at:
        filled = _filled(snapshot)
        for key in [key for key in grown if _filled_until(grown[key]) > key[1].start + filled.get(key, -1)]:
            yield from (replace(patch, end=snapshot.step) for patch in grown.pop(key))
        for (owner, extent), stored in filled.items():
            name, low, now = str(owner + 1), extent.start, snapshot.step
            given = Patch(name, EMPTY, low, low + extent.tokens, now, now)
            held = grown.setdefault((owner, extent), [given])
            if low + stored > _filled_until(held):
                held.append(Patch(name, STORED, low, low + stored, now, now))
    end = looked_at[-1].step + every if looked_at else 0
    yield from (replace(patch, end=end) for held in grown.values() for patch in held)


def _filled_until(held: Sequence[Patch]) -> int:
    return held[-1].high if held[-1].kind == STORED else held[-1].low


def _filled(snapshot: Snapshot) -> dict[tuple[int, Extent], int]:
    """How many tokens are stored in each extent of each sequence."""
    found = {}
    for owner, holding in snapshot.holdings.items():
        left = holding.stored_tokens
        for extent in holding.extents:
            found[owner, extent] = min(left, extent.tokens)
            left -= found[owner, extent]
    return found


def _words(snapshots: Sequence[Snapshot]) -> str:
    most = max(one.running for one in snapshots)
    return f"{len(snapshots)} steps, at most {most} at once"
