"""Quantities of an engine step by step, one panel below the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labkit.charts.theme import finish
from labkit.errors import UsageError
from labkit.vega import BLUE, GREEN, INK, VERMILLION, WIDTH

PANEL = 92


@dataclass(frozen=True)
class StepPanel:
    """One panel: its axis' title and a curve for each series, one value a step. `top`: the axis' end."""

    title: str
    series: Mapping[str, Sequence[float]]
    top: float | None = None


def step_panels(panels: Sequence[StepPanel], *, title: str, caption: str | None = None) -> Any:
    """Panels over the same steps. A series has the same colour and dash in each. UsageError without values."""
    if not panels or not all(panel.series and all(panel.series.values()) for panel in panels):
        raise UsageError(f"the chart {title!r} has no values", remedy="pass a value a step for each series")
    import altair as alt

    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    steps = max(len(values) for panel in panels for values in panel.series.values())
    drawn = [_panel(panel, names, steps, last=panel is panels[-1]) for panel in panels]
    whole = alt.vconcat(*drawn, spacing=12).resolve_scale(color="shared", strokeDash="shared")
    text = "; ".join(
        f"{panel.title}, {name}: from {values[0]:g} to {values[-1]:g}, at most {max(values):g}"
        for panel in panels
        for name, values in panel.series.items()
    )
    return finish(whole, title=title, description=f"Curves over {steps} steps. {text}.", caption=caption)


def _panel(panel: StepPanel, names: list[str], steps: int, *, last: bool) -> Any:
    import altair as alt

    rows = [
        {"step": step, "value": value, "series": name}
        for name, values in panel.series.items()
        for step, value in _changes(values)
    ]
    highest = max(max(values) for values in panel.series.values())
    top = panel.top if panel.top is not None else max(1.0, highest * 1.08)
    x = alt.X(
        "step:Q",
        title="steps of the engine" if last else None,
        scale=alt.Scale(domain=[0, steps + 1], nice=False),
        axis=alt.Axis(tickCount=8, labels=last, ticks=last),
    )
    y = alt.Y(
        "value:Q",
        title=panel.title,
        scale=alt.Scale(domain=[0, top], nice=False),
        axis=alt.Axis(tickCount=4, tickMinStep=1),
    )
    dashes = [[1, 0], [7, 4], [2, 2], [10, 3, 2, 3]]
    legend = alt.Legend(title=None, symbolSize=700) if len(names) > 1 else None
    colour = alt.Color("series:N", sort=names, scale=alt.Scale(domain=names), legend=legend)
    dash = alt.StrokeDash(
        "series:N",
        sort=names,
        scale=alt.Scale(domain=names, range=[dashes[n % len(dashes)] for n in range(len(names))]),
        legend=legend,
    )
    base = alt.Chart(alt.Data(values=rows)).mark_line(interpolate="step-after", strokeWidth=2.5)
    return base.encode(x=x, y=y, color=colour, strokeDash=dash).properties(width=WIDTH, height=PANEL)


def _changes(values: Sequence[float]) -> list[tuple[int, float]]:
    """(step, value) where a curve of steps changes, and its end: all that is needed to draw it."""
    last = len(values)
    return [
        (step, value) for step, value in enumerate(values, start=1) if step in (1, last) or value != values[step - 2]
    ]


# --- scaling ---


SCALING_PANEL = 110
MOST = 250
EXTENT = 34  # the same room for all labels, so that the panels stand one below the other
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Moment:
    """Something that happened `at_s`, marked by a line through all panels."""

    at_s: float
    text: str


def scaling_timeline(
    *,
    replicas: Points,
    under_way: Points,
    latencies: Points,
    moments: Sequence[Moment] = (),
    lost: Sequence[float] = (),
    title: str,
    caption: str | None = None,
) -> Any:
    """Running replicas, requests under way, and each request's latency at the moment it was sent (seconds).

    `lost`: when requests were sent that failed; they are crosses at the foot of the last panel. Raises UsageError
    without replicas or requests.
    """
    if not replicas or not latencies:
        raise UsageError(f"the chart {title!r} has nothing to show", remedy="pass replicas and latencies")
    import altair as alt

    end = max(at for series in (replicas, under_way, latencies) for at, _ in series)
    x = alt.Scale(domain=[0, end * 1.02], nice=False)
    upper = _steps(_until(replicas, end), x, "replicas running", BLUE)
    middle = _steps(_until(_thinned(under_way, end), end), x, "requests under way", GREEN)
    lower = _dots(latencies, lost, x)
    panels = [
        alt.layer(panel, *_rules(moments, x, named=panel is upper)).properties(width=WIDTH, height=SCALING_PANEL)
        for panel in (upper, middle, lower)
    ]
    drawn = alt.vconcat(*panels, spacing=16)
    text = _description(replicas, under_way, latencies, moments, lost)
    return finish(drawn, title=title, description=text, caption=caption)


def _steps(points: Points, scale: Any, name: str, colour: str) -> Any:
    import altair as alt

    top = max(value for _, value in points)
    base = alt.Chart(_data(_scaling_changes(points))).mark_area(
        interpolate="step-after", color=colour, fillOpacity=0.2, line={"color": colour, "strokeWidth": 2.5}
    )
    return base.encode(
        x=alt.X("at:Q", scale=scale, title=None, axis=alt.Axis(labels=False, ticks=False, tickCount=8)),
        y=alt.Y(
            "value:Q",
            title=name.split(" ", 1),
            scale=alt.Scale(domain=[0, top * 1.1 + 0.2], nice=False),
            axis=alt.Axis(tickCount=4, tickMinStep=1, format="d", minExtent=EXTENT, **_few(top)),
        ),
    )


def _data(points: Points) -> Any:
    """Points as CSV: of hundreds of them a notebook would otherwise keep five lines each."""
    import altair as alt

    rows = "\n".join(f"{at:.3f},{value:.4g}" for at, value in points)
    return alt.Data(
        values=f"at,value\n{rows}", format=alt.CsvDataFormat(parse={"at": "number", "value": "number"}, type="csv")
    )


def _few(top: float) -> dict[str, Any]:
    """Whole numbers as ticks, where there are few."""
    return {"values": list(range(int(top) + 1))} if top <= 8 else {}


def _dots(latencies: Points, lost: Sequence[float], scale: Any) -> Any:
    import altair as alt

    x = alt.X("at:Q", scale=scale, title="seconds since the load began", axis=alt.Axis(tickCount=8))
    top = max(value for _, value in latencies) * 1.1
    y = alt.Y(
        "value:Q",
        title=["latency", "(s)"],
        scale=alt.Scale(domain=[0, top], nice=False),
        axis=alt.Axis(tickCount=4, minExtent=EXTENT),
    )
    dots = alt.Chart(_data(latencies)).mark_point(filled=True, size=22, opacity=0.7, color=INK).encode(x=x, y=y)
    if not lost:
        return dots
    crosses = alt.Chart(_data([(at, 0) for at in lost]))
    mark = crosses.mark_point(shape="cross", angle=45, size=140, filled=True, color=VERMILLION, opacity=1)
    return alt.layer(dots, mark.encode(x=x, y=y))


def _rules(moments: Sequence[Moment], scale: Any, *, named: bool) -> list[Any]:
    import altair as alt

    if not moments:
        return []
    data = alt.Data(values=[{"at": one.at_s, "text": one.text} for one in moments])
    base = alt.Chart(data).encode(x=alt.X("at:Q", scale=scale))
    rule = base.mark_rule(strokeDash=[6, 4], color=INK, strokeWidth=1.5)
    label = base.mark_text(align="left", baseline="bottom", dx=3, dy=-3, y=0).encode(text="text:N")
    return [rule, label] if named else [rule]


def _until(points: Points, end: float) -> Points:
    """The same, with its last value held to the end of the axis, and nothing before its beginning."""
    return [*points, (end, points[-1][1])] if points else [(0.0, 0), (end, 0)]


def _thinned(points: Points, end: float) -> Points:
    """At most MOST points: of those that would be drawn over each other the highest."""
    if len(points) <= MOST:
        return points
    highest: dict[int, tuple[float, float]] = {}
    for at, value in points:
        place = int(at / end * MOST)
        if place not in highest or value >= highest[place][1]:
            highest[place] = (at, value)
    return [*highest.values(), points[-1]]


def _scaling_changes(points: Points) -> Points:
    """A curve of steps without the points at which nothing changes."""
    last = len(points) - 1
    return [one for n, one in enumerate(points) if n in (0, last) or one[1] != points[n - 1][1]]


def _description(
    replicas: Points, under_way: Points, latencies: Points, moments: Sequence[Moment], lost: Sequence[float]
) -> str:
    steps = ", ".join(f"{value:g} from {at:.1f} s" for at, value in _scaling_changes(replicas)[:-1] or replicas[:1])
    most = max((value for _, value in under_way), default=0)
    waits = [value for _, value in latencies]
    told = "".join(f"; {one.text} at {one.at_s:.1f} s" for one in moments)
    failed = f"; {len(lost)} requests lost" if lost else ""
    return (
        f"Three curves over time. Replicas running: {steps}. At most {most:g} requests under way. "
        f"Latency from {min(waits):.2f} to {max(waits):.2f} s{told}{failed}."
    )
