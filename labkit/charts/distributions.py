"""How latencies are distributed: the share of requests that were done by then, and the tail that an average hides."""

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from labkit.charts.theme import GREY, WIDTH, finish, labelled
from labkit.errors import UsageError
from labkit.teaching.words import amount, number

QUANTILES = {"p50": 0.50, "p99": 0.99}
ENOUGH_FOR_P99 = 100  # with fewer, no sample lies above it
MAX_STEPS, LAST_STEPS = 300, 50

Samples = Mapping[str, Sequence[float]]


def ecdf(samples: Samples, *, title: str, x_title: str = "E2E (s)", unit: str = "s", caption: str | None = None) -> Any:
    """The share of samples at or below each value, by series, with p50 and p99 as rules.

    Raises UsageError for a series without samples.
    """
    _some(samples, title)
    scale = {"domain": [0, 1.04], "nice": False}
    words = ("share of requests done by then", x_title, unit)
    return _distribution(samples, title=title, words=words, scale=scale, ticks=[0, 0.25, 0.5, 0.75, 1], caption=caption)


def tail(samples: Samples, *, title: str, x_title: str = "E2E (s)", unit: str = "s", caption: str | None = None) -> Any:
    """The share of samples above each value, on a log axis that spreads the tail out.

    Raises UsageError for a series without samples.
    """
    _some(samples, title)
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


def _some(samples: Samples, title: str) -> None:
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
