"""Two costs against each other: what one side gains when a setting is turned, and what the other side pays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from labkit.charts.references import references, vertical
from labkit.charts.theme import BLUE, INK, WIDTH, finish, labelled
from labkit.errors import UsageError
from labkit.teaching.words import amount


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
    layers = [_curve(curve, x, y)] if curve else []
    layers += [*_intervals(points, scale, y_scale), *_dots(points, x, y), *vertical(found, domain=domain, scale=scale)]
    drawn = alt.layer(*layers).properties(width=WIDTH, height=300)
    return finish(drawn, title=title, description=_description(points, x_title, y_title), caption=caption)


def _curve(curve: Sequence[tuple[float, float]], x: Any, y: Any) -> Any:
    import altair as alt

    rows = [{"x": at, "y": value, "order": n} for n, (at, value) in enumerate(curve)]
    line = alt.Chart(alt.Data(values=rows)).mark_line(color="#00573f", strokeDash=[14, 3], strokeWidth=2)
    return line.encode(x=x, y=y, order="order:Q")


def _intervals(points: Sequence[Tradeoff], x_scale: Any, y_scale: Any) -> list[Any]:
    import altair as alt

    across = [{"x": p.x_low_s, "x2": p.x_high_s, "y": p.y_s} for p in points if p.x_low_s is not None]
    along = [{"x": p.x_s, "y": p.y_low_s, "y2": p.y_high_s} for p in points if p.y_low_s is not None]
    at = {"x": alt.X("x:Q", scale=x_scale), "y": alt.Y("y:Q", scale=y_scale)}
    rule = {"color": INK, "strokeWidth": 1.5}
    horizontal = alt.Chart(alt.Data(values=across)).mark_rule(**rule).encode(**at, x2="x2:Q")
    upright = alt.Chart(alt.Data(values=along)).mark_rule(**rule).encode(**at, y2="y2:Q")
    return [chart for chart, rows in ((horizontal, across), (upright, along)) if rows]


def _dots(points: Sequence[Tradeoff], x: Any, y: Any) -> list[Any]:
    import altair as alt

    rows = [{"x": p.x_s, "y": p.y_s, "text": p.label} for p in points]
    base = alt.Chart(alt.Data(values=rows)).encode(x=x, y=y)
    dots = base.mark_point(filled=True, size=110, opacity=1, color=BLUE)
    return [dots, labelled(base.encode(text="text:N"), align="left", baseline="bottom", dx=9, dy=-7)]


def _description(points: Sequence[Tradeoff], x_title: str, y_title: str) -> str:
    rows = "; ".join(f"{p.label}: {amount(p.x_s, 's')}, {amount(p.y_s, 's')}" for p in points)
    return f"{y_title} against {x_title}. {rows}."
