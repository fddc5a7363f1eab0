"""Curves: throughput and latency as the load grows, and any other quantity against another."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from labkit.charts.references import horizontal, references
from labkit.charts.theme import WIDTH, finish
from labkit.errors import UsageError
from labkit.teaching.words import amount, number, span

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
