"""One quantity against another: curves, loads, formulas beside measurements, trade-offs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from labkit.charts import draw
from labkit.charts.draw import MEASURED
from labkit.charts.render import Chart, finish
from labkit.errors import require
from labkit.vega import BLUE, GREY, WIDTH, Spec
from labkit.words import amount, number, span

# Above this ratio of largest to smallest value, small values cannot be read on a linear axis.
LOG_FROM_RATIO = 30
LINE = {"strokeWidth": 2.5}
POINT = {"filled": True, "size": 70, "opacity": 1}
TOKENS = "tok/s"
PASS_POINTS = "pass at least one"


@dataclass(frozen=True)
class LoadPoint:
    """One load's measurements: output tokens per second (with interval) and the latency's p50 and p99."""

    concurrency: float
    throughput: float
    latency_p50_s: float
    latency_p99_s: float
    throughput_low: float | None = None
    throughput_high: float | None = None


@dataclass(frozen=True)
class LinePoint:
    """One point of a curve, with its interval if it has one."""

    x: float
    y: float
    series: str = "measured"
    low: float | None = None
    high: float | None = None

    @property
    def top(self) -> float:
        """The highest value that is drawn for it."""
        return self.y if self.high is None else max(self.y, self.high)


def throughput_latency(points: Sequence[LoadPoint], *, title: str, x_title: str = "requests in flight") -> Chart:
    """Draw throughput above E2E latency, against the load (log axis)."""
    require(bool(points), f"the chart {title!r} has no points", fix=PASS_POINTS)
    rates = [LinePoint(p.concurrency, p.throughput, low=p.throughput_low, high=p.throughput_high) for p in points]
    x = _log_x({p.concurrency for p in points}, x_title)
    y_title = f"throughput ({TOKENS})"
    upper = _curves(rates, {**x, "title": None}, y_title=y_title, unit=TOKENS)
    rows = [
        {"x": p.concurrency, "s": seconds, "quantile": name, "text": amount(seconds, "s")}
        for p in points
        for name, seconds in (("p50", p.latency_p50_s), ("p99", p.latency_p99_s))
    ]
    ends = [end for p in points for end in (p.latency_p50_s, p.latency_p99_s)]
    low, high = min(ends), max(ends)
    is_log = low > 0 and high / low > LOG_FROM_RATIO
    domain = (low / 1.3, high * 1.5) if is_log else (0, high * 1.15)
    encoding = {
        "x": x,
        "y": draw.quantity("s", "E2E (s)", domain, log=is_log, tickCount=5),
        "tooltip": _tooltip("x", "quantile", "text"),
    }
    dash = draw.series("quantile", ["p50", "p99"], [[1, 0], [6, 4]], symbolSize=900)
    marks = [draw.mark("line", {"strokeDash": dash}, color=BLUE, **LINE), draw.mark("point", color=BLUE, **POINT)]
    parts = [{**upper, "height": 210}, draw.layers(marks, encoding, rows, width=WIDTH, height=210)]
    whole = draw.column(parts, spacing=28, strokeDash="independent")
    loads = "; ".join(
        f"measured at {number(p.concurrency)}: {amount(p.throughput, TOKENS)},"
        f" E2E p50 {amount(p.latency_p50_s, 's')}, p99 {amount(p.latency_p99_s, 's')}"
        for p in points
    )
    text = f"Throughput and E2E against {x_title}. {loads}."
    return finish(whole, title=title, description=text)


def lines(
    rows: Sequence[LinePoint],
    *,
    title: str,
    x_title: str,
    y_title: str,
    unit: str = "",
    log_x: bool = False,
    log_y: bool = False,
) -> Chart:
    """Draw curves with their intervals as bands. `log_y`: no point may be 0."""
    require(bool(rows), f"the chart {title!r} has no points", fix=PASS_POINTS)
    x = _log_x({row.x for row in rows}, x_title) if log_x else draw.quantity("x", x_title, tickCount=8)
    drawn = _curves(rows, x, y_title=y_title, unit=unit, log_y=log_y)
    parts = []
    for name in _names(rows):
        points = [row for row in rows if row.series == name]
        ends = " to ".join(f"{amount(point.y, unit)} at {number(point.x)}" for point in (points[0], points[-1]))
        heights = [point.y for point in points]
        parts.append(f"{name}: {ends}, range {span(min(heights), max(heights), unit)}")
    text = f"{y_title} against {x_title}. {'; '.join(parts)}."
    return finish(drawn, title=title, description=text)


def _curves(points: Sequence[LinePoint], x: Spec, *, y_title: str, unit: str, log_y: bool = False) -> Spec:
    top, bottom = max(point.top for point in points), min(point.y for point in points)
    domain = (bottom / 1.5, top * 1.5) if log_y else (min(0.0, bottom), top * 1.1)
    steps = [digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 5)]  # the default is every digit
    ticks = {"values": [at for at in steps if domain[0] <= at <= domain[1]], "format": "~g"} if log_y else {}
    axes = {"x": x, "y": draw.quantity("y", y_title, domain, log=log_y, **ticks), "color": _by_series(points)}
    tooltip = {"tooltip": _tooltip("series", "x", "text")}
    drawn = [draw.mark("line", tooltip, **LINE), {"name": MEASURED, **draw.mark("point", tooltip, **POINT)}]
    if any(point.low is not None for point in points):
        drawn.insert(0, draw.mark("area", {"y": "low", "y2": "high"}, opacity=0.2))
    return draw.layers([draw.layers(drawn, axes, _rows(points, unit))], width=WIDTH, height=300)


def _rows(points: Sequence[LinePoint], unit: str) -> list[Spec]:
    return [{**asdict(point), "text": amount(point.y, unit)} for point in points]


def _log_x(values: set[float], title: str) -> Spec:
    """A log axis with ticks only at the measured values."""
    domain = (min(values) / 1.08, max(values) * 1.08)
    x = draw.quantity("x", title, domain, log=True, values=sorted(values), format="~g", labelOverlap=True)
    return {**x, "scale": {**x["scale"], "base": 2}}


def _names(points: Sequence[LinePoint]) -> list[str]:
    return list(dict.fromkeys(point.series for point in points))


def _by_series(points: Sequence[LinePoint], **legend: str) -> Spec:
    """The colour of each series, with a legend if there are several."""
    names = _names(points)
    colour = draw.series("series", names, **legend)
    return colour if len(names) > 1 else {**colour, "legend": None}


def _tooltip(*fields: str) -> list[Spec]:
    return [{"field": field, "type": "quantitative" if field == "x" else "nominal"} for field in fields]


MARGIN = 0.06  # share of the x axis left free on both sides, so that points at the ends are not cut
DODGE = 9  # pixels between the series' points at the same x, so that no interval hides another
PLAIN = "format(datum.value, ',')"  # the axis's `format` would round labels to the tick step


def computed_and_measured(
    computed: Sequence[LinePoint],
    measured: Sequence[LinePoint],
    *,
    title: str,
    x_title: str,
    y_title: str,
    unit: str = "",
) -> Chart:
    """Draw computed values as dashed lines and measurements as points with intervals; a series keeps its colour.

    UsageError if either is empty.
    """
    what = f"the chart {title!r} has {len(computed)} computed points and {len(measured)} measured ones"
    require(bool(computed) and bool(measured), what, fix="pass some of both")
    every = [*computed, *measured]
    colour = _by_series(every, symbolType="circle")
    first, last = min(point.x for point in every), max(point.x for point in every)
    edge = (last - first) * MARGIN or 1.0
    ticks = sorted({point.x for point in measured})
    x = draw.quantity("x", x_title, (first - edge, last + edge), values=ticks, labelExpr=PLAIN)
    y = draw.quantity("y", y_title, (0.0, max(point.top for point in every) * 1.1 or 1.0), tickCount=6, labelExpr=PLAIN)
    dashed = draw.mark("line", {"color": colour}, _rows(computed, unit), strokeWidth=2, strokeDash=[8, 4])
    points = {"name": MEASURED, **_points(measured, colour, unit)}
    whole = draw.layers([draw.layers([dashed, points], {"x": x, "y": y})], width=WIDTH, height=280)
    parts = "; ".join(f"{p.series} at {number(p.x)}: {amount(p.y, unit)}" for p in measured)
    text = f"{y_title} against {x_title}, points over computed dashed lines. Measured: {parts}."
    return finish(whole, title=title, description=text)


def _points(points: Sequence[LinePoint], colour: Spec, unit: str) -> Spec:
    """Points with their intervals, each series offset from the next."""
    drawn = []
    names = _names(points)
    for position, name in enumerate(names):
        offset = DODGE * (position - (len(names) - 1) / 2)
        marks = [
            draw.mark("rule", {"y": "low", "y2": "high"}, strokeWidth=2.5, xOffset=offset),
            draw.mark("point", {"tooltip": _tooltip("series", "x", "text")}, xOffset=offset, **{**POINT, "size": 100}),
        ]
        drawn.append(draw.layers(marks, None, _rows([point for point in points if point.series == name], unit)))
    return draw.layers(drawn, {"color": colour})


LETTER = 8  # upper bound of a letter's width in pixels


@dataclass(frozen=True)
class Tradeoff:
    """One setting and its two costs in seconds."""

    label: str
    x_s: float
    y_s: float


def tradeoff(
    points: Sequence[Tradeoff],
    *,
    title: str,
    x_title: str,
    y_title: str,
    slo_s: float | None = None,
) -> Chart:
    """Draw a point for each setting; the SLO is a rule on the horizontal axis."""
    require(bool(points), f"the chart {title!r} has no points", fix="pass at least one Tradeoff")
    points = sorted(points, key=lambda point: point.x_s)
    references = draw.rules("s", slo=slo_s)
    top = max(p.y_s for p in points)
    domain = (0.0, 1.12 * max([p.x_s for p in points] + [r.value for r in references]))
    axes = {
        "x": draw.quantity("x", x_title, domain, tickCount=8, format="~g"),
        "y": draw.quantity("y", y_title, (0, top * 1.15), tickCount=6, format="~g"),
    }
    # Labels are below the upper points, each on its own thin line: points often share a height.
    highest = min(p.y_s for p in points if p.y_s > 0.3 * top) - 0.06 * top
    levels = label_levels(points, right=domain[1])
    rows = [
        {"x": p.x_s, "y": p.y_s, "text": p.label, "at": highest - 0.12 * row * top}
        for p, row in zip(points, levels, strict=True)
    ]
    marks = [
        draw.mark("rule", {"y2": "at"}, color=GREY, strokeWidth=1),
        draw.words({"y": "at"}, align="center", baseline="top", dy=3),
        draw.mark("point", filled=True, size=110, opacity=1, color=BLUE),
    ]
    drawn = draw.layers([draw.layers(marks, None, rows)], axes)
    whole = draw.layers([*draw.upright(references, domain), drawn], width=WIDTH, height=300)
    parts = "; ".join(f"{p.label}: {amount(p.x_s, 's')}, {amount(p.y_s, 's')}" for p in points)
    return finish(whole, title=title, description=f"{y_title} against {x_title}. {parts}.")


def label_levels(points: Sequence[Tradeoff], *, right: float) -> list[int]:
    """Return each label's row (0 on top), so that none overlaps another. `points`: sorted by x."""
    ends: list[float] = []  # of the last label in each row, in pixels
    levels = []
    for point in points:
        middle, half = point.x_s / right * WIDTH, len(point.label) * LETTER / 2 + LETTER
        free = (n for n, end in enumerate(ends) if end <= middle - half)
        row = next(free, len(ends))
        ends[row : row + 1] = [middle + half]
        levels.append(row)
    return levels
