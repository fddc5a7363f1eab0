"""Two costs against each other: what one side gains when a setting is turned, and what the other side pays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from labkit.charts.references import STYLES, references, vertical
from labkit.charts.theme import BLUE, GREY, INK, WIDTH, finish, labelled
from labkit.errors import UsageError
from labkit.teaching.words import amount

LETTER = 8  # pixels that a letter of a label takes, generously


@dataclass(frozen=True)
class Tradeoff:
    """One setting: its two costs in seconds, each with its interval where it has one."""

    label: str
    x_s: float
    y_s: float
    x_low_s: float | None = None
    x_high_s: float | None = None
    y_low_s: float | None = None
    y_high_s: float | None = None


def tradeoff(
    points: Sequence[Tradeoff],
    *,
    title: str,
    x_title: str,
    y_title: str,
    curve: Sequence[tuple[float, float]] = (),
    slo_s: float | None = None,
    guess: float | None = None,
    caption: str | None = None,
) -> Any:
    """A point for each setting, a model's curve behind them; objective and guess are rules on the horizontal axis.

    Raises UsageError without points.
    """
    if not points:
        raise UsageError(f"the chart {title!r} has no points", remedy="pass at least one Tradeoff")
    import altair as alt

    found = references("s", guess=guess, slo=slo_s)
    right = max([p.x_high_s or p.x_s for p in points] + [one.value for one in found] + [x for x, _ in curve])
    top = max([p.y_high_s or p.y_s for p in points] + [y for _, y in curve])
    domain = (0.0, right * 1.12)
    scale, y_scale = alt.Scale(domain=list(domain), nice=False), alt.Scale(domain=[0, top * 1.15], nice=False)
    x = alt.X("x:Q", title=x_title, scale=scale, axis=alt.Axis(tickCount=8, format="~g"))
    y = alt.Y("y:Q", title=y_title, scale=y_scale, axis=alt.Axis(tickCount=6, format="~g"))
    layers = vertical(found, domain=domain, scale=scale)
    layers += [*([_curve(curve, x, y)] if curve else []), *_labels(points, x, y, right=domain[1], top=top)]
    layers += [*_intervals(points, scale, y_scale), _dots(points, x, y)]
    drawn = alt.layer(*layers).properties(width=WIDTH, height=300)
    return finish(drawn, title=title, description=_description(points, x_title, y_title), caption=caption)


def _curve(curve: Sequence[tuple[float, float]], x: Any, y: Any) -> Any:
    import altair as alt

    colour, dash = STYLES["the model"]
    rows = [{"x": at, "y": value, "order": n} for n, (at, value) in enumerate(curve)]
    line = alt.Chart(alt.Data(values=rows)).mark_line(color=colour, strokeDash=dash, strokeWidth=2)
    middle = min(curve, key=lambda point: abs(point[0] - (curve[0][0] + curve[-1][0]) * 0.7))
    name = alt.Chart(alt.Data(values=[{"x": middle[0], "y": middle[1], "text": "the model"}]))
    words = labelled(name.encode(x=x, y=y, text="text:N"), align="center", baseline="bottom", dy=-8, color=colour)
    return alt.layer(line.encode(x=x, y=y, order="order:Q"), words)


def _intervals(points: Sequence[Tradeoff], x_scale: Any, y_scale: Any) -> list[Any]:
    import altair as alt

    across = [{"x": p.x_low_s, "x2": p.x_high_s, "y": p.y_s} for p in points if p.x_low_s is not None]
    along = [{"x": p.x_s, "y": p.y_low_s, "y2": p.y_high_s} for p in points if p.y_low_s is not None]
    at = {"x": alt.X("x:Q", scale=x_scale), "y": alt.Y("y:Q", scale=y_scale)}
    rule = {"color": INK, "strokeWidth": 1.5}
    horizontal = alt.Chart(alt.Data(values=across)).mark_rule(**rule).encode(**at, x2="x2:Q")
    upright = alt.Chart(alt.Data(values=along)).mark_rule(**rule).encode(**at, y2="y2:Q")
    return [chart for chart, rows in ((horizontal, across), (upright, along)) if rows]


def _labels(points: Sequence[Tradeoff], x: Any, y: Any, *, right: float, top: float) -> list[Any]:
    """Names below all points, each on a thin line of its own: points of a trade-off often crowd on one height."""
    import altair as alt

    rows = [
        {"x": p.x_s, "y": p.y_s, "at": (0.62 - 0.12 * level) * top, "text": p.label}
        for p, level in zip(sorted(points, key=_across), label_levels(points, right=right), strict=True)
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(x=x)
    leader = base.mark_rule(color=GREY, strokeWidth=1).encode(y=y, y2="at:Q")
    words = base.encode(y=alt.Y("at:Q"), text="text:N")
    return [leader, labelled(words, align="center", baseline="top", dy=3)]


def label_levels(points: Sequence[Tradeoff], *, right: float) -> list[int]:
    """The row, 0 on top, of each label from left to right, so that none overlaps another."""
    ends: list[float] = []  # of the last label in each row, in pixels
    levels = []
    for point in sorted(points, key=_across):
        middle, half = point.x_s / right * WIDTH, len(point.label) * LETTER / 2 + LETTER
        free = (n for n, end in enumerate(ends) if end <= middle - half)
        level = next(free, len(ends))
        ends[level : level + 1] = [middle + half]
        levels.append(level)
    return levels


def _across(point: Tradeoff) -> float:
    return point.x_s


def _dots(points: Sequence[Tradeoff], x: Any, y: Any) -> Any:
    import altair as alt

    rows = [{"x": p.x_s, "y": p.y_s} for p in points]
    return alt.Chart(alt.Data(values=rows)).mark_point(filled=True, size=110, opacity=1, color=BLUE).encode(x=x, y=y)


def _description(points: Sequence[Tradeoff], x_title: str, y_title: str) -> str:
    rows = "; ".join(f"{p.label}: {amount(p.x_s, 's')}, {amount(p.y_s, 's')}" for p in points)
    return f"{y_title} against {x_title}. {rows}."
