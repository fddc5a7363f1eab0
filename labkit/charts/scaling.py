"""A load, the replicas that Ray Serve runs for it, and what its users wait: one below the other on one time axis."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from labkit.charts.theme import BLUE, GREEN, INK, VERMILLION, WIDTH, finish
from labkit.errors import UsageError

PANEL = 110
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
        alt.layer(panel, *_rules(moments, x, named=panel is upper)).properties(width=WIDTH, height=PANEL)
        for panel in (upper, middle, lower)
    ]
    drawn = alt.vconcat(*panels, spacing=16)
    text = _description(replicas, under_way, latencies, moments, lost)
    return finish(drawn, title=title, description=text, caption=caption)


def _steps(points: Points, scale: Any, name: str, colour: str) -> Any:
    import altair as alt

    top = max(value for _, value in points)
    base = alt.Chart(_data(_changes(points))).mark_area(
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


def _changes(points: Points) -> Points:
    """A curve of steps without the points at which nothing changes."""
    last = len(points) - 1
    return [one for n, one in enumerate(points) if n in (0, last) or one[1] != points[n - 1][1]]


def _description(
    replicas: Points, under_way: Points, latencies: Points, moments: Sequence[Moment], lost: Sequence[float]
) -> str:
    steps = ", ".join(f"{value:g} from {at:.1f} s" for at, value in _changes(replicas)[:-1] or replicas[:1])
    most = max((value for _, value in under_way), default=0)
    waits = [value for _, value in latencies]
    told = "".join(f"; {one.text} at {one.at_s:.1f} s" for one in moments)
    failed = f"; {len(lost)} requests lost" if lost else ""
    return (
        f"Three curves over time. Replicas running: {steps}. At most {most:g} requests under way. "
        f"Latency from {min(waits):.2f} to {max(waits):.2f} s{told}{failed}."
    )
