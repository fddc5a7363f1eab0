"""Measured quantities side by side: with intervals, in parts, beside an article's figures, dot by dot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from labkit.charts import draw
from labkit.charts.draw import MEASURED
from labkit.charts.render import Chart, finish
from labkit.errors import require
from labkit.vega import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, SKY, VERMILLION, WIDTH
from labkit.words import amount, span

ROW = 52
PART_ROW = 46
LANES = 5  # neighbouring dots are drawn at different heights, so that none hides another
PARTS = (BLUE, ORANGE, VERMILLION, SKY, GREEN, PURPLE)
LABEL_FROM = 0.06  # share of the longest bar; shorter parts have no room for their value
Part = tuple[str, float]


@dataclass(frozen=True)
class Bar:
    """One measured quantity; `low` and `high` are the ends of its interval, if it has one."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None


def bars_with_intervals(
    rows: Sequence[Bar],
    *,
    title: str,
    unit: str,
    guess: float | None = None,
    article: float | None = None,
    formula: tuple[str, float] | None = None,
    axis_title: str | None = None,
) -> Chart:
    """Draw a bar with interval and value for each row; guess, article and `formula` (name, value) are rules."""
    require(bool(rows), f"the chart {title!r} has no rows", fix="pass at least one Bar")
    references = draw.rules(unit, guess=guess, article=article)
    if formula:
        references.append(draw.ReferenceLine("the model", formula[1], unit, name=formula[0]))
    values = [row.value for row in rows]
    top = max([*values, *(row.high for row in rows if row.high), *(rule.value for rule in references)])
    domain = (min(0.0, *values), top * 1.02)
    data = [
        {"label": bar.label, "value": bar.value, "text": _with_interval(bar.value, bar.low, bar.high, unit)}
        | ({"low": bar.low, "high": bar.high} if bar.low is not None and bar.high is not None else {})
        for bar in rows
    ]
    axes = {
        "x": draw.quantity("value", axis_title or unit, domain, tickCount=6),
        "y": draw.labels("label", labelLimit=260),
    }
    caps = {"color": INK, "thickness": 2, "size": 12, "yOffset": 9}
    interval = [
        draw.mark("rule", {"x": "low", "x2": "high"}, color=INK, strokeWidth=2, yOffset=9),
        draw.mark("tick", {"x": "low"}, **caps),
        draw.mark("tick", {"x": "high"}, **caps),
    ]
    # Values are above their bars, where no interval crosses them, and in front of the rules.
    value = draw.words({}, align="left", baseline="middle", x=2, dy=-11, fontWeight="bold")
    drawn = [
        draw.layers([{"name": MEASURED, **draw.mark("bar", color=SKY, height=20, yOffset=9)}, *interval], axes, data),
        *draw.upright(references, domain),
        draw.layers([value], {"y": axes["y"]}, data),
    ]
    bars = "; ".join([f"{row['label']} {row['text']}" for row in data] + [rule.row["text"] for rule in references])
    panel = draw.layers(drawn, width=WIDTH, height=ROW * len(rows))
    return finish(panel, title=title, description=f"Bars, {title}: {bars}.")


def _with_interval(value: float, low: float | None, high: float | None, unit: str) -> str:
    return amount(value, unit) if low is None or high is None else f"{amount(value, unit)}  ({span(low, high, unit)})"


def stacked_bars(rows: Mapping[str, Sequence[Part]], *, title: str, unit: str, rest: str = "") -> Chart:
    """Draw a bar for each row, its parts in the given order; kinds may repeat. The kind called `rest` is pale.

    UsageError without rows or with a negative part.
    """
    is_whole = bool(rows) and all(value >= 0 for parts in rows.values() for _, value in parts)
    require(is_whole, f"the chart {title!r} has no rows, or a part below zero", fix="pass parts from zero up")
    kinds = dict.fromkeys(kind for parts in rows.values() for kind, _ in parts if kind != rest)
    colours = {kind: PARTS[n % len(PARTS)] for n, kind in enumerate(kinds)} | ({rest: FAINT} if rest else {})
    longest = max(sum(value for _, value in parts) for parts in rows.values())
    sign = unit if unit == "%" else ""
    data = [
        {
            "row": row,
            "kind": kind,
            "start": end - value,
            "middle": end - value / 2,
            "end": end,
            "text": amount(value, sign) if value > LABEL_FROM * longest else "",
        }
        for row, parts in rows.items()
        for (kind, value), end in zip(parts, accumulate(value for _, value in parts), strict=True)
    ]
    axes = {"x": draw.quantity("start", unit, (0, longest), tickCount=6), "y": draw.labels("row", labelLimit=280)}
    colour = draw.series("kind", colours, colours.values(), columns=4, symbolType="square")
    bar = draw.mark("bar", {"x2": "end", "color": colour}, height=26, stroke="white", strokeWidth=1)
    ink = {"condition": {"test": f"datum.kind == '{rest}'", "value": INK}, "value": "white"}
    value = draw.mark("text", {"x": "middle", "text": "text", "color": ink}, fontWeight="bold")
    drawn = draw.layers([bar, value], axes, data, width=WIDTH, height=PART_ROW * len(rows))
    text = "; ".join(
        f"{row}: " + ", ".join(f"{kind} {amount(value, unit)}" for kind, value in parts) for row, parts in rows.items()
    )
    return finish(drawn, title=title, description=f"Bars, {title}: {text}.")


Waits = tuple[Sequence[float], Sequence[float]]
"""Values of requests that ended, and of requests still running when the test ended."""
DOT_ROW = 46


def dots(
    rows: Mapping[str, Waits], *, title: str, x_title: str, unit: str, slo: float | None = None,
) -> Chart:  # fmt: skip
    """Draw a row of dots for each name, one per value, hollow if still running; the SLO is a labelled rule.

    UsageError without values.
    """
    values = [value for kinds in rows.values() for kind in kinds for value in kind]
    require(bool(values), f"the chart {title!r} has no dots", fix="pass at least one value")
    data = [
        {"row": name, "value": value, "ended": kind == 0, "text": amount(value, unit), "lane": number % LANES}
        for name, kinds in rows.items()
        for kind, values_of_kind in enumerate(kinds)
        for number, value in enumerate(values_of_kind)
    ]
    references = draw.rules(unit, slo=slo)
    domain = (0.0, 1.04 * max([*values, *(rule.value for rule in references)]))
    encoding = {
        "x": draw.quantity("value", x_title, domain, tickCount=8),
        "y": draw.labels("row", sort=list(rows), labelLimit=280, framed=True, grid=True, gridColor=FAINT),
        "yOffset": {"field": "lane", "type": "ordinal", "scale": {"paddingOuter": 0.5}},
        "fillOpacity": {"condition": {"test": "datum.ended", "value": 0.6}, "value": 0},
        "tooltip": [{"field": field} for field in ("row", "text", "ended")],
    }
    points = draw.mark("point", encoding, data, size=55, fill=BLUE, stroke=BLUE, strokeWidth=1.2)
    panel = draw.layers([points, *draw.upright(references, domain)], width=WIDTH - 90, height=DOT_ROW * len(rows))
    spans = "; ".join(
        f"{name}: {len(seen)} dots" + (f" from {span(min(seen), max(seen), unit)}" if seen else "")
        + (f", {len(running)} hollow" if running else "")
        for name, (seen, running) in rows.items()
    )  # fmt: skip
    return finish(panel, title=title, description=f"Dots, {x_title}. {spans}.")
