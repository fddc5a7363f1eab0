"""Token streams on a time axis: when each user's tokens came, and what a long prompt did to them meanwhile."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from labkit.charts.theme import BLUE, INK, ORANGE, VERMILLION, WIDTH, finish
from labkit.errors import UsageError
from labkit.teaching.words import amount

ROW = 30
KINDS = {"a token": BLUE, "the longest gap": VERMILLION, "a part of a prompt": ORANGE, "waits for its turn": "#c9c9c9"}
TOKEN, GAP, PART, WAITS = KINDS


@dataclass(frozen=True)
class Lane:
    """One request: when its tokens came, when it came itself, and from when to when the parts of its prompt took.

    `parts`: begin, end and tokens of each. Seconds on one clock. `marked`: its longest gap is drawn.
    """

    name: str
    token_times_s: tuple[float, ...]
    arrived_s: float = 0.0
    parts: tuple[tuple[float, float, int], ...] = ()
    marked: bool = True


def token_streams(panels: Mapping[str, Sequence[Lane]], *, title: str, x_title: str, caption: str | None = None) -> Any:
    """A panel for each entry, one below the other on the same time axis; a row for each request, a tick for each token.

    Raises UsageError without a panel, or with a request that got no token.
    """
    lanes = [lane for lanes in panels.values() for lane in lanes]
    if not lanes or any(not lane.token_times_s for lane in lanes):
        raise UsageError(f"the chart {title!r} has a request without tokens", remedy="pass requests that were answered")
    import altair as alt

    end = max(lane.token_times_s[-1] for lane in lanes)
    scale = alt.Scale(domain=[0, end * 1.02], nice=False)
    drawn = [_panel(name, rows, scale, x_title, last=name == list(panels)[-1]) for name, rows in panels.items()]
    stacked = alt.vconcat(*drawn, spacing=18).resolve_scale(color="shared")
    return finish(stacked, title=title, description=_description(panels), caption=caption)


def _panel(name: str, lanes: Sequence[Lane], scale: Any, x_title: str, *, last: bool) -> Any:
    import altair as alt

    boxes = [box for lane in lanes for box in _boxes(lane)]
    colour = alt.Color(
        "kind:N",
        title=None,
        scale=alt.Scale(domain=list(KINDS), range=list(KINDS.values())),
        legend=alt.Legend(symbolType="square"),
    )
    x = alt.X("start:Q", scale=scale, title=x_title if last else None, axis=alt.Axis(tickCount=8, format="~g"))
    y = alt.Y("lane:N", title=None, sort=[lane.name for lane in lanes], axis=alt.Axis(grid=False, labelLimit=200))
    base = alt.Chart(alt.Data(values=boxes))
    bars = base.mark_bar(height=ROW * 0.5, stroke="white", strokeWidth=1).encode(x=x, x2="end:Q", y=y, color=colour)
    ticks = [{"lane": lane.name, "start": round(at, 4), "kind": TOKEN} for lane in lanes for at in lane.token_times_s]
    marks = alt.Chart(alt.Data(values=ticks)).mark_tick(thickness=2, size=ROW * 0.7).encode(x=x, y=y, color=colour)
    heading = alt.TitleParams(
        _heading(name, lanes), fontSize=14, fontWeight="normal", color=INK, anchor="start", offset=6
    )
    return alt.layer(bars, marks).properties(width=WIDTH, height=alt.Step(ROW), title=heading)


def _boxes(lane: Lane) -> list[dict[str, Any]]:
    rows = [_box(lane, begin, end, PART) for begin, end, _ in lane.parts]
    if lane.parts and lane.parts[0][0] > lane.arrived_s:
        rows.append(_box(lane, lane.arrived_s, lane.parts[0][0], WAITS))
    if lane.marked and len(lane.token_times_s) > 1:
        rows.append(_box(lane, *_longest_gap(lane), GAP))
    return rows


def _box(lane: Lane, start: float, end: float, kind: str) -> dict[str, Any]:
    return {"lane": lane.name, "start": round(start, 4), "end": round(end, 4), "kind": kind}


def _longest_gap(lane: Lane) -> tuple[float, float]:
    return max(pairwise(lane.token_times_s), key=lambda pair: pair[1] - pair[0])


def _heading(name: str, lanes: Sequence[Lane]) -> str:
    gaps = [end - begin for lane in lanes if lane.marked for begin, end in pairwise(lane.token_times_s)]
    return f"{name}: longest gap {amount(max(gaps), 's')}" if gaps else name


def _description(panels: Mapping[str, Sequence[Lane]]) -> str:
    parts = []
    for name, lanes in panels.items():
        split = "; ".join(f"{lane.name} computed in {len(lane.parts)} parts" for lane in lanes if lane.parts)
        parts.append(f"{_heading(name, lanes)}, {len(lanes)} requests{f', {split}' if split else ''}")
    return "Token streams over time. " + ". ".join(parts) + "."
