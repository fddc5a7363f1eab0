"""Memory over time, place by place: which sequence has which part of the KV cache, and which part of that is filled."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from labkit.charts.theme import GREY, WIDTH, finish, palette
from labkit.errors import UsageError
from labkit.kvcache import Holding, Snapshot

STORED, EMPTY = "stored", "given, but empty"
PALE = 0.25


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
    caption: str | None = None,
) -> Any:
    """A panel for each allocation: memory upwards, steps to the right, a colour for each sequence, pale where empty.

    `block_size`: draws a line at each block's edge of every panel. `every`: only each so many-th step is looked at (a
    smaller drawing). UsageError without snapshots.
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
) -> Any:
    import altair as alt

    capacity = snapshots[0].capacity_tokens
    scale = alt.Scale(domain=[0, capacity], nice=False)
    rows = [asdict(patch) for patch in patches(snapshots, every=every)]
    squares = {"symbolType": "square", "symbolSize": 150}
    colour = alt.Color(
        "owner:N",
        title="sequence",
        sort=names,
        scale=alt.Scale(domain=names, range=[palette()[n % len(palette())] for n in range(len(names))]),
        legend=alt.Legend(columns=len(names), **squares),
    )
    opacity = alt.Opacity(
        "kind:N",
        title=None,
        scale=alt.Scale(domain=[STORED, EMPTY], range=[1, PALE]),
        legend=alt.Legend(**squares, symbolFillColor=GREY, symbolStrokeWidth=0),
    )
    boxes = (
        alt.Chart(alt.Data(values=rows))
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


def _x(steps: int, *, last: bool) -> Any:
    """The axis of steps, with its title below the last panel only."""
    import altair as alt

    scale = alt.Scale(domain=[0, steps], nice=False)
    axis = alt.Axis(tickCount=8, grid=False)
    return alt.X("start:Q", title="steps of the engine" if last else None, scale=scale, axis=axis)


def patches(snapshots: Sequence[Snapshot], *, every: int = 1) -> Iterator[Patch]:
    """The parts of memory in use. One that stays as it is is told once, for all its steps."""
    open_patches: dict[tuple[str, str, int, int], int] = {}
    looked_at = snapshots[::every]
    for snapshot in looked_at:
        now = {
            (str(owner + 1), kind, low, high)
            for owner, holding in snapshot.holdings.items()
            for kind, low, high in _parts(holding)
        }
        for key in [key for key in open_patches if key not in now]:
            yield Patch(*key, start=open_patches.pop(key), end=snapshot.step)
        open_patches |= {key: snapshot.step for key in now if key not in open_patches}
    end = looked_at[-1].step + every if looked_at else 0
    for key, start in open_patches.items():
        yield Patch(*key, start=start, end=end)


def _parts(holding: Holding) -> Iterator[tuple[str, int, int]]:
    """Each extent's stored and its empty part: (kind, low, high)."""
    left = holding.stored_tokens
    for extent in holding.extents:
        stored = min(left, extent.tokens)
        left -= stored
        if stored:
            yield STORED, extent.start, extent.start + stored
        if stored < extent.tokens:
            yield EMPTY, extent.start + stored, extent.start + extent.tokens


def _words(snapshots: Sequence[Snapshot]) -> str:
    most = max(one.running for one in snapshots)
    return f"{len(snapshots)} steps, at most {most} at once"
