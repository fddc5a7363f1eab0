"""A run over time: an engine step by step, a service that scales, requests in flight."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from labkit.charts import draw
from labkit.charts.curves import LinePoint, lines
from labkit.charts.render import Chart, finish
from labkit.errors import require
from labkit.vega import BLUE, GREEN, INK, VERMILLION, WIDTH, Spec

if TYPE_CHECKING:
    from labkit.load import RequestRecord

DASHES = [[1, 0], [7, 4], [2, 2], [10, 3, 2, 3]]
STEP_HEIGHT, SCALING_HEIGHT = 92, 110
SINCE = "seconds since the load began"
PANEL: Spec = {"width": WIDTH, "height": SCALING_HEIGHT}
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class StepPanel:
    """One panel: its axis title and a curve for each series, one value per step. `top`: the axis's upper end."""

    title: str
    series: Mapping[str, Sequence[float]]
    top: float | None = None


def step_panels(panels: Sequence[StepPanel], *, title: str) -> Chart:
    """Draw panels over the same steps. A series has the same colour and dash in each."""
    has_values = bool(panels) and all(panel.series and all(panel.series.values()) for panel in panels)
    require(has_values, f"the chart {title!r} has no values", fix="pass one value per step for each series")
    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    curves = [(panel, name, values) for panel in panels for name, values in panel.series.items()]
    steps = max(len(values) for _, _, values in curves)
    dashes = [DASHES[n % len(DASHES)] for n in range(len(names))]
    looks = {
        "color": draw.series("series", names, symbolSize=700),
        "strokeDash": draw.series("series", names, dashes, symbolSize=700),
    }
    if len(names) == 1:
        looks = {channel: {**look, "legend": None} for channel, look in looks.items()}
    parts = []
    for panel in panels:
        is_last = panel is panels[-1]
        rows = [
            {"step": step, "value": value, "series": name}
            for name, values in panel.series.items()
            for step, value in _corners(list(enumerate(values)))
        ]
        top = panel.top or max(1.0, 1.08 * max(max(values) for values in panel.series.values()))
        x_title = "steps of the engine" if is_last else None
        x = draw.quantity("step", x_title, (0, steps), tickCount=8, labels=is_last, ticks=is_last)
        y = draw.quantity("value", panel.title, (0, top), tickCount=4, tickMinStep=1)
        line = draw.mark("line", {"x": x, "y": y, **looks}, rows, interpolate="step-after", strokeWidth=2.5)
        parts.append({**line, "width": WIDTH, "height": STEP_HEIGHT})
    text = "; ".join(
        f"{panel.title}, {name}: from {values[0]:g} to {values[-1]:g}, at most {max(values):g}"
        for panel, name, values in curves
    )
    drawn = draw.column(parts, spacing=12, color="shared", strokeDash="shared")
    return finish(drawn, title=title, description=f"Curves over {steps} steps. {text}.")


def _corners(points: Points) -> Points:
    """A step curve without the points at which nothing changes."""
    last = len(points) - 1
    return [point for n, point in enumerate(points) if n in (0, last) or point[1] != points[n - 1][1]]


MOST = 250  # points of a curve
RUG = 12  # pixels
EXTENT = 34  # pixels for axis labels, equal for all panels, so that they are aligned


@dataclass(frozen=True)
class Moment:
    """An event at `at_s`, marked by a line through all panels."""

    at_s: float
    text: str


def scaling_timeline(
    *,
    replicas: Points,
    in_flight: Points,
    latencies: Points,
    moments: Sequence[Moment] = (),
    lost: Sequence[float] = (),
    unnoticed: tuple[float, float] | None = None,
    title: str,
) -> Chart:
    """Draw replicas as the controller reports them, requests in flight, and each request's latency by send time (s).

    `lost`: send times of requests that failed, drawn as a rug below the last panel. `unnoticed`: the interval, shaded,
    in which a replica was gone and the controller had not noticed. UsageError without replicas or requests.
    """
    has_data = bool(replicas) and bool(latencies)
    require(has_data, f"the chart {title!r} has nothing to show", fix="pass replicas and latencies")
    end = max(at for points in (replicas, in_flight, latencies) for at, _ in points)
    x = draw.quantity("at", SINCE, (0, end * 1.02), tickCount=8)
    bare_x = {**x, "title": None, "axis": {**x["axis"], "labels": False, "ticks": False}}
    top = max(value for _, value in latencies) * 1.1
    y = draw.quantity("value", ["latency", "(s)"], (0, top), tickCount=4, minExtent=EXTENT)
    dots = [draw.mark("point", {"y": y}, _points(latencies), filled=True, size=22, opacity=0.7, color=INK)]
    if lost:
        rug = {"y": SCALING_HEIGHT - RUG, "y2": SCALING_HEIGHT, "color": VERMILLION, "opacity": 0.7}
        dots.append(draw.mark("rule", {}, _points([(at, 0) for at in lost]), strokeWidth=1, **rug))
    shade: list[Spec] = []
    if unnoticed:
        span = [{"at": unnoticed[0], "until": unnoticed[1]}]
        shade = [draw.mark("rect", {"x2": "until"}, span, color=VERMILLION, opacity=0.13)]
    rules = [draw.mark("rule", strokeDash=[6, 4], color=INK, strokeWidth=1.5)]
    names = [draw.mark("text", {"text": "text"}, align="left", baseline="bottom", dx=3, dy=-3, y=0)]
    rows = [{"at": moment.at_s, "text": moment.text} for moment in moments]
    parts = [
        draw.layers(
            [*shade, *drawn, *([draw.layers(marks, {"x": "at"}, rows)] if moments else [])], {"x": axis}, **PANEL
        )
        for drawn, marks, axis in (
            (_steps(_until(replicas, end), ["replicas", "running"], BLUE), rules + names, bare_x),
            (_steps(_until(_thinned(in_flight, end), end), ["requests", "in flight"], GREEN), rules, bare_x),
            (dots, rules, x),
        )
    ]
    running = ", ".join(f"{value:g} from {at:.1f} s" for at, value in _corners(replicas)[:-1] or replicas[:1])
    most = max((value for _, value in in_flight), default=0)
    waits = [value for _, value in latencies]
    failed = f"; {len(lost)} requests lost" if lost else ""
    failed += f"; not noticed from {unnoticed[0]:.1f} to {unnoticed[1]:.1f} s" if unnoticed else ""
    text = (
        f"Three curves over time. Replicas running: {running}. At most {most:g} requests in flight. "
        f"Latency from {min(waits):.2f} to {max(waits):.2f} s{_moments_words(moments)}{failed}."
    )
    return finish(draw.column(parts, spacing=16), title=title, description=text)


def _steps(points: Points, title: list[str], colour: str) -> list[Spec]:
    top = max(value for _, value in points)
    axis: Spec = {"tickCount": 4, "tickMinStep": 1, "format": "d", "minExtent": EXTENT}
    if top <= 8:  # few enough for a tick at every whole number
        axis["values"] = list(range(int(top) + 1))
    y = draw.quantity("value", title, (0, top * 1.1 + 0.2), **axis)
    line = {"color": colour, "strokeWidth": 2.5}
    look = {"interpolate": "step-after", "color": colour, "fillOpacity": 0.2, "line": line}
    return [draw.mark("area", {"y": y}, _points(_corners(points)), **look)]


def _points(points: Points) -> Spec:
    return draw.table(((f"{at:.3f}", f"{value:.4g}") for at, value in points), at="number", value="number")


def _until(points: Points, end: float) -> Points:
    """Extend the curve's last value to the end of the axis; without points, a flat line at 0."""
    return [*points, (end, points[-1][1])] if points else [(0.0, 0), (end, 0)]


def _thinned(points: Points, end: float) -> Points:
    """At most MOST points: the highest of those that would overlap."""
    if len(points) <= MOST:
        return points
    highest: dict[int, tuple[float, float]] = {}
    for at, value in points:
        bin_index = int(at / end * MOST)
        if bin_index not in highest or value >= highest[bin_index][1]:
            highest[bin_index] = (at, value)
    return [*highest.values(), points[-1]]


def _moments_words(moments: Iterable[Moment]) -> str:
    return "".join(f"; {moment.text} at {moment.at_s:.1f} s" for moment in moments)


SAMPLES = 80  # times at which requests in flight are counted


def in_flight(loads: Mapping[str, Sequence["RequestRecord"]], *, title: str) -> Chart:
    """Draw the requests that were due and had not ended over time, a line per load. UsageError without requests."""
    rows: list[LinePoint] = []
    for name, records in loads.items():
        end_s = max((record.finished_s for record in records), default=0.0)
        times_s = [end_s * n / SAMPLES for n in range(SAMPLES + 1)]
        rows += [LinePoint(at, sum(r.scheduled_s <= at < r.finished_s for r in records), name) for at in times_s]
    return lines(rows, title=title, x_title=SINCE, y_title="requests waiting or running")
