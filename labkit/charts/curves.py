"""Curves: throughput and latency as the load grows, and any other quantity against another."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from labkit.charts.theme import STYLES, finish, horizontal, labelled, references, vertical
from labkit.errors import UsageError
from labkit.vega import BLUE, GREY, INK, WIDTH
from labkit.words import amount, number, span

# Beyond this ratio between largest and smallest the small values of a linear axis cannot be read.
LOG_FROM_RATIO = 30


@dataclass(frozen=True)
class LoadPoint:
    """What was measured at one load: output tokens per second (with its interval) and a latency's p50 and p99."""

    concurrency: float
    throughput: float
    latency_p50_s: float
    latency_p99_s: float
    throughput_low: float | None = None
    throughput_high: float | None = None
    series: str = "measured"


@dataclass(frozen=True)
class LinePoint:
    """One point of a curve, with its interval where it has one."""

    x: float
    y: float
    series: str = "measured"
    low: float | None = None
    high: float | None = None


def throughput_latency(
    points: Sequence[LoadPoint],
    *,
    title: str,
    latency: str = "E2E",
    guess: float | None = None,
    slo_s: float | None = None,
    x_title: str = "requests under way at a time",
    unit: str = "tok/s",
    caption: str | None = None,
) -> Any:
    """Throughput above, latency below, against the load (log axis); `guess` in `unit`, `slo_s` on the latency."""
    _some(points, title)
    import altair as alt

    above = [LinePoint(p.concurrency, p.throughput, p.series, p.throughput_low, p.throughput_high) for p in points]
    upper = _panel(
        above,
        x_title="",
        y_title=f"throughput ({unit})",
        unit=unit,
        log_x=True,
        height=210,
        found=references(unit, guess=guess),
    )
    lower = _latency_panel(points, x_title=x_title, latency=latency, slo_s=slo_s)
    drawn = alt.vconcat(upper, lower, spacing=28).resolve_scale(strokeDash="independent", color="shared")
    text = _throughput_description(points, unit=unit, latency=latency, x_title=x_title)
    return finish(drawn, title=title, description=text, caption=caption)


def lines(
    rows: Sequence[LinePoint],
    *,
    title: str,
    x_title: str,
    y_title: str,
    unit: str = "",
    log_x: bool = False,
    guess: float | None = None,
    article: float | None = None,
    caption: str | None = None,
) -> Any:
    """Curves with their intervals as bands; guess and article as labelled rules. Raises UsageError without rows."""
    _some(rows, title)
    found = references(unit, guess=guess, article=article)
    drawn = _panel(rows, x_title=x_title, y_title=y_title, unit=unit, log_x=log_x, height=300, found=found)
    return finish(drawn, title=title, description=_line_description(rows, unit, x_title, y_title), caption=caption)


def _panel(
    rows: Sequence[LinePoint], *, x_title: str, y_title: str, unit: str, log_x: bool, height: int, found: list[Any]
) -> Any:
    import altair as alt

    top = max([row.high or row.y for row in rows] + [row.y for row in rows] + [one.value for one in found])
    domain = (min(0.0, *(row.y for row in rows), 0.0), top * 1.1)
    scale = alt.Scale(domain=list(domain), nice=False)
    data = alt.Data(values=[{**asdict(row), "text": amount(row.y, unit)} for row in rows])
    x = _x(sorted({row.x for row in rows}), x_title, log=log_x)
    base = alt.Chart(data).encode(x=x, color=_colour(rows))
    line = base.encode(y=alt.Y("y:Q", title=y_title, scale=scale), tooltip=["series:N", "x:Q", "text:N"])
    band = base.transform_filter("datum.low != null").mark_area(opacity=0.2)
    layers = (
        [band.encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")] if any(row.low is not None for row in rows) else []
    )
    layers += [line.mark_line(strokeWidth=2.5), line.mark_point(filled=True, size=70, opacity=1)]
    return alt.layer(*layers, *horizontal(found, domain=domain, scale=scale)).properties(width=WIDTH, height=height)


def _latency_panel(points: Sequence[LoadPoint], *, x_title: str, latency: str, slo_s: float | None) -> Any:
    import altair as alt

    rows = [
        {"x": p.concurrency, "s": seconds, "quantile": name, "series": p.series, "text": amount(seconds, "s")}
        for p in points
        for name, seconds in (("p50", p.latency_p50_s), ("p99", p.latency_p99_s))
    ]
    scale = _seconds_scale([float(str(row["s"])) for row in rows], slo_s)
    dashes = alt.Scale(domain=["p50", "p99"], range=[[1, 0], [6, 4]])
    dash = alt.StrokeDash("quantile:N", scale=dashes, legend=alt.Legend(title=None, symbolSize=900))
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=_x(sorted({p.concurrency for p in points}), x_title, log=True),
        y=alt.Y("s:Q", title=f"{latency} (s)", scale=scale, axis=alt.Axis(tickCount=5)),
        color=_colour(points),
        tooltip=["series:N", "x:Q", "quantile:N", "text:N"],
    )
    layers = [
        base.mark_line(strokeWidth=2.5).encode(strokeDash=dash),
        base.mark_point(filled=True, size=70, opacity=1),
    ]
    slo = horizontal(references("s", slo=slo_s), domain=(0, 1), scale=scale)
    return alt.layer(*layers, *slo).properties(width=WIDTH, height=210)


def _seconds_scale(values: list[float], slo_s: float | None) -> Any:
    import altair as alt

    every = [*values, *([slo_s] if slo_s else [])]
    low, high = min(every), max(every)
    if low > 0 and high / low > LOG_FROM_RATIO:
        return alt.Scale(type="log", domain=[low / 1.3, high * 1.5], nice=False)
    return alt.Scale(domain=[0, high * 1.15], nice=False)


def _x(values: list[float], title: str, *, log: bool) -> Any:
    import altair as alt

    if not log:
        return alt.X("x:Q", title=title, axis=alt.Axis(tickCount=8))
    # Measured loads are the ticks: between them nothing was measured.
    scale = alt.Scale(type="log", base=2, domain=[values[0] / 1.08, values[-1] * 1.08], nice=False)
    return alt.X("x:Q", title=title or None, scale=scale, axis=alt.Axis(values=values, format="~g", labelOverlap=True))


def _colour(rows: Sequence[Any]) -> Any:
    import altair as alt

    names = list(dict.fromkeys(row.series for row in rows))
    legend = alt.Legend(title=None) if len(names) > 1 else None
    return alt.Color("series:N", title=None, scale=alt.Scale(domain=names), legend=legend)


def _some(rows: Sequence[object], title: str) -> None:
    if not rows:
        raise UsageError(f"the chart {title!r} has no points", remedy="pass at least one")


def _throughput_description(points: Sequence[LoadPoint], *, unit: str, latency: str, x_title: str) -> str:
    parts = [
        f"{p.series} at {number(p.concurrency)}: {amount(p.throughput, unit)},"
        f" {latency} p50 {amount(p.latency_p50_s, 's')}, p99 {amount(p.latency_p99_s, 's')}"
        for p in points
    ]
    return f"Throughput and {latency} against {x_title}. " + "; ".join(parts) + "."


def _line_description(rows: Sequence[LinePoint], unit: str, x_title: str, y_title: str) -> str:
    parts = []
    for name in dict.fromkeys(row.series for row in rows):
        mine = [row for row in rows if row.series == name]
        ends = f"{amount(mine[0].y, unit)} at {number(mine[0].x)} to {amount(mine[-1].y, unit)} at {number(mine[-1].x)}"
        parts.append(f"{name}: {ends}, range {span(min(r.y for r in mine), max(r.y for r in mine), unit)}")
    return f"{y_title} against {x_title}. " + "; ".join(parts) + "."


# --- models ---


MARGIN = 0.06  # of the x axis, left and right: points at the ends stay whole
DODGE = 9  # pixels between the series' points at the same x, so that no interval hides another
MOST_TICKS = 12
PLAIN = "format(datum.value, ',')"  # a format on the axis would round its labels to the axis's own step
ARTICLE_COLOUR = "#8a2f6b"


def model_and_measured(
    model: Sequence[LinePoint],
    measured: Sequence[LinePoint],
    *,
    title: str,
    x_title: str,
    y_title: str,
    unit: str = "",
    guess: float | None = None,
    guesses: Sequence[LinePoint] = (),
    article: tuple[float, float] | None = None,
    steps: bool = False,
    residual: bool = False,
    caption: str | None = None,
) -> Any:
    """Dashed lines for the model, points with intervals for what was measured; equal series have equal colours.

    `guess` becomes a labelled rule, `guesses` diamonds (where a guess is for one point of a series), `article` a band
    from one figure to the other. With `steps` the model keeps its value until its next point. `residual` adds a panel
    with measured / model - 1 for the measured points at whose x their series has a point of the model. UsageError
    without points of either.
    """
    if not model or not measured:
        raise UsageError(
            f"the chart {title!r} has {len(model)} points of a model and {len(measured)} measured ones",
            remedy="pass some of both",
        )
    import altair as alt

    x = _models_x(model, measured, "" if residual else x_title)
    found = references(unit, guess=guess)
    scale = _y_scale([*model, *measured, *guesses], [*(one.value for one in found), *(article or ())])
    y = alt.Y("y:Q", title=y_title, scale=scale, axis=alt.Axis(tickCount=6, labelExpr=PLAIN))
    colour = _models_colour([*model, *measured])
    line = alt.Chart(_rows(model, unit)).mark_line(
        strokeWidth=2, strokeDash=[8, 4], interpolate="step-after" if steps else "linear"
    )
    layers = [_band(article, scale, unit)] if article else []
    layers += [line.encode(x=x, y=y, color=colour), *_diamonds(guesses, x, y, colour, unit)]
    layers += _points(measured, x, y, colour, scale, unit)
    layers += horizontal(found, domain=(0, scale.domain[1]), scale=scale)
    drawn = alt.layer(*layers).properties(width=WIDTH, height=280)
    if residual:
        below = _residual_panel(residuals(model, measured), _models_x(model, measured, x_title), [*model, *measured])
        drawn = alt.vconcat(drawn, below, spacing=20).resolve_scale(color="shared")
    text = _description(model, measured, (x_title, y_title, unit))
    return finish(drawn, title=title, description=text, caption=caption)


def residuals(model: Sequence[LinePoint], measured: Sequence[LinePoint]) -> list[LinePoint]:
    """Measured over model, less 1, with the interval's ends, where the model has a point at the same x and series."""
    at = {(point.series, point.x): point.y for point in model}
    found = [(point, at[point.series, point.x]) for point in measured if at.get((point.series, point.x))]
    return [
        LinePoint(
            p.x,
            p.y / y - 1,
            p.series,
            None if p.low is None else p.low / y - 1,
            None if p.high is None else p.high / y - 1,
        )
        for p, y in found
    ]


def _y_scale(points: Sequence[LinePoint], others: Sequence[float]) -> Any:
    import altair as alt

    heights = [point.high if point.high is not None else point.y for point in points]
    return alt.Scale(domain=[0, max([*heights, *others]) * 1.1 or 1.0], nice=False)


def _diamonds(guesses: Sequence[LinePoint], x: Any, y: Any, colour: Any, unit: str) -> list[Any]:
    import altair as alt

    if not guesses:
        return []
    rows = [{**asdict(guess), "text": f"your guess: {amount(guess.y, unit)}"} for guess in guesses]
    base = alt.Chart(alt.Data(values=rows)).encode(x=x, y=y)
    mark = base.mark_point(shape="diamond", size=170, strokeWidth=2.5, opacity=1, filled=False, xOffset=-2 * DODGE)
    text = labelled(base.encode(text="text:N"), align="right", baseline="middle", dx=-3.4 * DODGE)
    return [mark.encode(color=colour), text]


def _points(rows: Sequence[LinePoint], x: Any, y: Any, colour: Any, scale: Any, unit: str) -> list[Any]:
    import altair as alt

    layers = []
    names = list(dict.fromkeys(row.series for row in rows))
    for turn, name in enumerate(names):
        aside = DODGE * (turn - (len(names) - 1) / 2)
        base = alt.Chart(_rows([row for row in rows if row.series == name], unit)).encode(x=x, color=colour)
        bars = base.transform_filter("datum.low != null").mark_rule(strokeWidth=2.5, xOffset=aside)
        dots = base.mark_point(filled=True, size=100, opacity=1, xOffset=aside)
        layers += [bars.encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")]
        layers += [dots.encode(y=y, tooltip=["series:N", "x:Q", "text:N"])]
    return layers


def _band(article: tuple[float, float], scale: Any, unit: str) -> Any:
    import altair as alt

    low, high = article
    words = f"the article: {number(low)} to {amount(high, unit)}"
    base = alt.Chart(alt.Data(values=[{"low": low, "high": high, "text": words}]))
    y = alt.Y("low:Q", scale=scale)
    area = base.mark_rect(color=ARTICLE_COLOUR, opacity=0.16, x=0, x2=WIDTH).encode(y=y, y2="high:Q")
    text = labelled(base.encode(y=alt.Y("high:Q", scale=scale), text="text:N"), x=8, align="left", dy=-8)
    return area + text


def _residual_panel(rows: Sequence[LinePoint], x: Any, every: Sequence[LinePoint]) -> Any:
    import altair as alt

    most = max([abs(v) for row in rows for v in (row.y, row.low, row.high) if v is not None] + [0.1]) * 1.15
    scale = alt.Scale(domain=[-most, most], nice=False)
    axis = alt.Axis(format="+.0%", tickCount=5)
    y = alt.Y("y:Q", title="residual", scale=scale, axis=axis)
    zero = alt.Chart(alt.Data(values=[{"at": 0}])).mark_rule(color=GREY, strokeDash=[8, 4], strokeWidth=2)
    layers = [zero.encode(y=alt.Y("at:Q", scale=scale)), *_points(rows, x, y, _models_colour(every), scale, "")]
    return alt.layer(*layers).properties(width=WIDTH, height=120)


def _rows(points: Sequence[LinePoint], unit: str) -> Any:
    import altair as alt

    return alt.Data(values=[{**asdict(point), "text": amount(point.y, unit)} for point in points])


def _models_x(model: Sequence[LinePoint], measured: Sequence[LinePoint], title: str) -> Any:
    import altair as alt

    every = [point.x for point in (*model, *measured)]
    edge = (max(every) - min(every)) * MARGIN or 1.0
    scale = alt.Scale(domain=[min(every) - edge, max(every) + edge], nice=False)
    # Where the model has too many points to label, those that were measured are labelled.
    steps = sorted({point.x for point in (*model, *measured)})
    ticks = steps if len(steps) <= MOST_TICKS else sorted({point.x for point in measured})
    axis = alt.Axis(values=ticks, labelExpr=PLAIN)
    return alt.X("x:Q", title=title or None, scale=scale, axis=axis)


def _models_colour(rows: Sequence[LinePoint]) -> Any:
    import altair as alt

    names = list(dict.fromkeys(row.series for row in rows))
    legend = alt.Legend(title=None, symbolType="circle") if len(names) > 1 else None
    return alt.Color("series:N", title=None, scale=alt.Scale(domain=names), legend=legend)


def _description(model: Sequence[LinePoint], measured: Sequence[LinePoint], words: tuple[str, str, str]) -> str:
    x_title, y_title, unit = words
    parts = [f"{p.series} at {number(p.x)}: {amount(p.y, unit)}" for p in measured]
    off = residuals(model, measured)
    far = f" The model is off by {max(abs(p.y) for p in off):.0%} at most." if off else ""
    return f"{y_title} against {x_title}, points over a model's dashed lines. Measured: {'; '.join(parts)}.{far}"


# --- tradeoff ---


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
    return finish(drawn, title=title, description=_tradeoff_description(points, x_title, y_title), caption=caption)


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


def _tradeoff_description(points: Sequence[Tradeoff], x_title: str, y_title: str) -> str:
    rows = "; ".join(f"{p.label}: {amount(p.x_s, 's')}, {amount(p.y_s, 's')}" for p in points)
    return f"{y_title} against {x_title}. {rows}."


# --- distributions ---


QUANTILES = {"p50": 0.50, "p99": 0.99}
ENOUGH_FOR_P99 = 100  # with fewer, no sample lies above it
MAX_STEPS, LAST_STEPS = 300, 50

Samples = Mapping[str, Sequence[float]]


def ecdf(samples: Samples, *, title: str, x_title: str = "E2E (s)", unit: str = "s", caption: str | None = None) -> Any:
    """The share of samples at or below each value, by series, with p50 and p99 as rules.

    Raises UsageError for a series without samples.
    """
    _distributions_some(samples, title)
    scale = {"domain": [0, 1.04], "nice": False}
    words = ("share of requests done by then", x_title, unit)
    return _distribution(samples, title=title, words=words, scale=scale, ticks=[0, 0.25, 0.5, 0.75, 1], caption=caption)


def tail(samples: Samples, *, title: str, x_title: str = "E2E (s)", unit: str = "s", caption: str | None = None) -> Any:
    """The share of samples above each value, on a log axis that spreads the tail out.

    Raises UsageError for a series without samples.
    """
    _distributions_some(samples, title)
    smallest = 1 / max(len(values) for values in samples.values())
    scale = {"type": "log", "domain": [smallest / 1.5, 1], "nice": False}
    ticks = [share for share in (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001, 0.0001) if share > smallest / 1.5]
    words = ("share of requests slower than that", x_title, unit)
    return _distribution(samples, title=title, words=words, scale=scale, ticks=ticks, caption=caption)


def quantile(values: Sequence[float], share: float) -> float:
    """The quantile by linear interpolation between order statistics (numpy's default, Hyndman and Fan's type 7)."""
    ordered = sorted(values)
    if len(ordered) == 1:
        return ordered[0]
    return statistics.quantiles(ordered, n=100, method="inclusive")[round(100 * share) - 1]


def _distributions_some(samples: Samples, title: str) -> None:
    if not samples or not all(samples.values()):
        raise UsageError(f"the chart {title!r} has a series without samples", remedy="leave empty series out")


def _distribution(
    samples: Samples,
    *,
    title: str,
    words: tuple[str, str, str],
    scale: dict[str, Any],
    ticks: list[float],
    caption: str | None,
) -> Any:
    import altair as alt

    y_title, x_title, unit = words
    above = scale.get("type") == "log"
    said = {name: _legend(name, values, unit) for name, values in samples.items()}
    rows = [row for name, values in samples.items() for row in steps(name, values, above=above)]
    marks = [row for name, values in samples.items() for row in _marks(name, values, above=above)]
    # The legend says the quantiles, so that no label has to find a place among the curves.
    legend = alt.Legend(title=None, columns=1, labelExpr=f"{json.dumps(said)}[datum.label]")
    place = {
        "x": alt.X("value:Q", title=x_title, axis=alt.Axis(tickCount=8, format="~g")),
        "y": alt.Y("share:Q", title=y_title, scale=alt.Scale(**scale), axis=alt.Axis(format="~%", values=ticks)),
        "color": alt.Color("series:N", scale=alt.Scale(domain=list(said)), legend=legend),
    }
    curve = alt.Chart(alt.Data(values=rows)).mark_line(interpolate="step-after", strokeWidth=2.5).encode(**place)
    points = alt.Chart(alt.Data(values=marks)).mark_point(filled=True, size=90, opacity=1).encode(**place)
    drawn = alt.layer(*_rules(above=above), curve, points).properties(width=WIDTH, height=300)
    return finish(drawn, title=title, description=f"{y_title}: {'; '.join(said.values())}.", caption=caption)


def steps(series: str, values: Sequence[float], *, above: bool) -> list[dict[str, Any]]:
    """The corners of a series' curve: value, and the share of samples at or below it (or above it)."""
    ordered = sorted(values)
    n = len(ordered)
    # Thousands of steps are finer than the drawing; the tail needs each of its own.
    thin = n // MAX_STEPS + 1
    kept = [i for i in range(n) if i % thin == 0 or i >= n - LAST_STEPS]
    rows = [_row(series, ordered[0], 0.0, above=above)]
    rows += [_row(series, ordered[i], (i + 1) / n, above=above) for i in kept]
    # On a log axis the share above the largest sample, 0, has no place: the curve ends there.
    return [row for row in rows if not above or row["share"] > 0]


def _marks(series: str, values: Sequence[float], *, above: bool) -> list[dict[str, Any]]:
    shares = [share for share in QUANTILES.values() if share < 0.99 or len(values) >= ENOUGH_FOR_P99]
    return [_row(series, quantile(values, share), share, above=above) for share in shares]


def _row(series: str, value: float, share: float, *, above: bool) -> dict[str, Any]:
    return {"series": series, "value": float(f"{value:.5g}"), "share": round(1 - share if above else share, 6)}


def _rules(*, above: bool) -> list[Any]:
    import altair as alt

    rows = [{"share": round(1 - share if above else share, 6), "text": name} for name, share in QUANTILES.items()]
    base = alt.Chart(alt.Data(values=rows)).encode(y="share:Q")
    rule = base.mark_rule(color=GREY, strokeDash=[4, 3], x=0, x2=WIDTH)
    return [rule, labelled(base.encode(text="text:N"), x=WIDTH - 4, align="right", baseline="bottom", dy=-3)]


def _legend(name: str, values: Sequence[float], unit: str) -> str:
    p50 = amount(quantile(values, 0.50), unit)
    if len(values) < ENOUGH_FOR_P99:
        return f"{name}: p50 {p50}, slowest {amount(max(values), unit)} ({len(values)} requests: too few for a p99)"
    return f"{name}: p50 {p50}, p99 {amount(quantile(values, 0.99), unit)} ({number(len(values))} requests)"
