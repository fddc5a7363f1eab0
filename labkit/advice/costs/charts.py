"""Figures of what serving costs, as Vega-Lite specifications.

They are built without Altair: a widget draws them anew between two key presses, and Altair's checks alone would take
longer than that. They keep to what Vega-Lite 5.6 knows.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from labkit.advice.costs import CostResult, Swing, show_number, show_usd
from labkit.advice.costs.prices import MILLION
from labkit.vega import BLACK, BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SCHEMA, SKY, VERMILLION, config

HOSTING = "hosting it yourself"
APIS = (VERMILLION, BLUE, GREEN, ORANGE, PURPLE, SKY)
SAMPLES = 32
NEAR = 4
STEPS = 16  # corners of the staircase that are drawn exactly; beyond them steps are narrower than a line
Spec = dict[str, Any]


def break_even_chart(result: CostResult, *, title: str | None = "", width: int = 640, height: int = 300) -> Spec:
    """Dollars a day against tokens a day, both logarithmic: the staircase of machines, and each API's straight line."""
    low, high = _range(result)
    rows = [*_staircase(result, low, high), *_api_lines(result, low, high)]
    names, colours = _series(result)
    bottom, top = _dollars(result, low, high)
    x = {"field": "tokens", "type": "quantitative", "title": "million tokens a day (log)", "axis": _ticks(low, high)}
    x["scale"] = {"type": "log", "domain": [low, high], "nice": False}
    y = {
        "field": "usd",
        "type": "quantitative",
        "title": "dollars a day (log)",
        "axis": _ticks(bottom, top) | {"format": "~s"},
    }
    y["scale"] = {"type": "log", "domain": [bottom, top], "nice": False}
    colour = {
        "field": "series",
        "type": "nominal",
        "scale": {"domain": names, "range": colours},
        "legend": {
            "title": None,
            "orient": "top",
            "columns": 2,
            "labelLimit": 0,
            "labelFontSize": 12,
            "symbolSize": 60,
        },
    }
    size = {"condition": {"test": f"datum.series === '{HOSTING}'", "value": 3.5}, "value": 2}
    lines = {
        "mark": {"type": "line", "clip": True},
        "encoding": {"x": x, "y": y, "color": colour, "strokeWidth": size},
        "data": {"values": rows},
    }
    layers = [lines, *_your_volume(result, low, high), *_crossing(result, bottom, top)]
    heading = "Where does hosting become cheaper?" if title == "" else title
    return _finished({"layer": layers}, heading, _break_even_words(result), width, height)


def utilisation_chart(result: CostResult, *, title: str | None = "", width: int = 640, height: int = 300) -> Spec:
    """Dollars per million tokens against how busy the machines are: half as busy, twice the price."""
    now = result.hosted
    full = float(now.usd_per_million_tokens * now.utilisation) if now.usd_per_million_tokens is not None else 0.0
    curve = [{"busy": share / 100, "usd": full / (share / 100), "series": HOSTING} for share in range(1, 101)]
    flat = [
        {"busy": busy, "usd": float(one.usd_per_million_tokens), "series": one.price.name}
        for one in result.api
        for busy in (0.01, 1.0)
    ]
    names, colours = _series(result)
    prices = [row["usd"] for row in flat if float(str(row["usd"])) > 0] + [full or 1.0]
    domain = [min(map(float, map(str, prices))) / 1.5, max(map(float, map(str, prices))) * 30]
    encoding: Spec = {
        "x": {
            "field": "busy",
            "type": "quantitative",
            "title": "share of the paid time in which the machines compute",
            "axis": {"format": ".0%", "tickCount": 6},
            "scale": {"domain": [0, 1]},
        },
        "y": {
            "field": "usd",
            "type": "quantitative",
            "title": "dollars per 1M tokens (log)",
            "axis": _ticks(*domain),
            "scale": {"type": "log", "domain": domain, "nice": False},
        },
    }
    colour = {"field": "series", "type": "nominal", "scale": {"domain": names, "range": colours}}
    legend = {"title": None, "orient": "top", "columns": 2, "labelLimit": 0, "labelFontSize": 12, "symbolSize": 60}
    lines = {
        "mark": {"type": "line", "clip": True, "strokeWidth": 2.5},
        "encoding": {**encoding, "color": {**colour, "legend": legend}},
        "data": {"values": [*curve, *flat] if full else flat},
    }
    words = f"{float(now.utilisation):.1%} busy" + (
        f": {show_usd(now.usd_per_million_tokens)} per 1M" if now.usd_per_million_tokens is not None else ""
    )
    point = {"busy": min(1.0, float(now.utilisation)), "usd": float(now.usd_per_million_tokens or 0), "text": words}
    layers = [lines, *(_marked(point, encoding, right=float(now.utilisation) > 0.5) if full else [])]
    description = f"Price of a million tokens against how busy the machines are. Now {words}. {_api_words(result)}"
    return _finished(
        {"layer": layers}, "Idle machines are paid, too" if title == "" else title, description, width, height
    )


def sensitivity_chart(
    result: CostResult,
    swings: Sequence[Swing],
    *,
    share: float,
    title: str | None = "",
    width: int = 640,
    height: int = 300,
) -> Spec:
    """Cost of hosting over the API's, with each input lowered and raised; the one that moves it most on top."""
    now = float(result.hosted.usd_per_day / result.against.usd_per_day) if result.against.usd_per_day else 0.0
    less, more = f"{share:.0%} less of it", f"{share:.0%} more of it"
    rows = [
        {"input": one.name, "from": now, "to": value, "change": change}
        for one in swings
        for change, value in ((less, one.lowered), (more, one.raised))
    ]
    ends = [float(str(row["to"])) for row in rows] + [now]
    even = max(ends) * NEAR > 1 > min(ends) / NEAR  # farther away, the line would leave no room for the bars
    ends += [1.0] if even else []
    scale = {"type": "log", "domain": [min(ends) / 1.08, max(ends) * 1.08], "nice": False}
    bars = {
        "mark": {"type": "bar", "height": {"band": 0.7}},
        "encoding": {
            "y": {"field": "input", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 160}},
            "x": {
                "field": "from",
                "type": "quantitative",
                "scale": scale,
                "title": f"hosting over {result.against.price.name} (log)",
                "axis": {"tickCount": 6, "format": "~g"},
            },
            "x2": {"field": "to"},
            "color": {
                "field": "change",
                "type": "nominal",
                "scale": {"domain": [less, more], "range": [SKY, VERMILLION]},
                "legend": {"title": None, "orient": "top", "labelFontSize": 12},
            },
        },
        "data": {"values": rows},
    }
    rules = [_rule("x", now, INK, f"now {show_number(now)}", scale)]
    if even:
        rules.append(_rule("x", 1.0, GREEN, "same cost", scale, [5, 4], left=now < 1))
    description = f"Hosting costs {show_number(now)} times what {result.against.price.name} does. " + "; ".join(
        f"{one.name}: {show_number(one.lowered)} with {less}, {show_number(one.raised)} with {more}" for one in swings
    )
    layers = [bars, *(layer for group in rules for layer in group)]
    return _finished(
        {"layer": layers}, "Which input matters most?" if title == "" else title, description, width, height
    )


def _ticks(low: float, high: float) -> Spec:
    """The ticks of a logarithmic axis: 1, 2 and 5 of each decade, or the decades alone where there are many.

    Vega-Lite would draw a line for every digit, and a live chart is the slower for each.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if len(decades) <= 5 else (1,)
    values = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
    return {"values": [one for one in values if low <= one <= high], "format": "~g"}


def _range(result: CostResult) -> tuple[float, float]:
    """Million tokens a day: a decade to both sides of your volume and of the break-even, if that is not too far off."""
    own = float(result.demand.tokens_per_day / MILLION)
    crossing = result.against.break_even.first
    points = [one for one in (own, float(crossing / MILLION) if crossing is not None else 0.0) if one > 0]
    points = points or [float(result.stairs.machine_tokens / MILLION)]
    return min(points) / 6, max(points) * 6


def _staircase(result: CostResult, low: float, high: float) -> Iterator[Mapping[str, Any]]:
    stairs = result.stairs
    ratio = (high / low) ** (1 / SAMPLES)
    corners = [float(stairs.machine_tokens * n / MILLION) for n in range(stairs.least, stairs.least + STEPS)]
    inside = {one for one in corners if low < one < high}
    for millions in sorted({low * ratio**n for n in range(SAMPLES + 1)} | inside):
        usd = float(stairs.usd_per_day(Fraction(millions) * MILLION))
        if millions in inside:  # both ends of the step, whatever the corner's rounding made of it
            before = float(stairs.usd_per_day(Fraction(millions) * MILLION * Fraction(999999, 1000000)))
            yield {"tokens": millions, "usd": before, "series": HOSTING}
            usd = float(stairs.usd_per_day(Fraction(millions) * MILLION * Fraction(1000001, 1000000)))
        yield {"tokens": millions, "usd": usd, "series": HOSTING}


def _api_lines(result: CostResult, low: float, high: float) -> Iterator[Mapping[str, Any]]:
    for one in result.api:
        if one.usd_per_million_tokens > 0:
            for millions in (low, high):
                usd = float(one.usd_per_million_tokens) * millions
                yield {"tokens": millions, "usd": usd, "series": one.price.name}


def _series(result: CostResult) -> tuple[list[str], list[str]]:
    names = list(dict.fromkeys(one.price.name for one in result.api))
    return [HOSTING, *names], [BLACK, *(APIS[n % len(APIS)] for n in range(len(names)))]


def _dollars(result: CostResult, low: float, high: float) -> tuple[float, float]:
    ends = [float(result.stairs.usd_per_day(Fraction(one) * MILLION)) for one in (low, high)]
    line = [float(result.against.usd_per_million_tokens) * one for one in (low, high)]
    return max(min(ends[0], line[0] or ends[0]) / 2, ends[0] / 1000, 1e-6), max(ends[1], line[1], 1e-5) * 2


def _your_volume(result: CostResult, low: float, high: float) -> list[Spec]:
    own = float(result.demand.tokens_per_day / MILLION)
    if not low < own < high:
        return []
    return _rule(
        "x", own, GREY, f"you: {show_number(own)}M", {"type": "log", "domain": [low, high], "nice": False}, [4, 3]
    )


def _crossing(result: CostResult, bottom: float, top: float) -> list[Spec]:
    at = result.against.break_even.first
    if at is None:
        return []
    usd = float(result.stairs.usd_per_day(at))
    values = [{"tokens": float(at / MILLION), "usd": usd, "text": f"break-even {show_number(at / MILLION)}M"}]
    if not bottom < usd < top:
        return []
    encoding = {"x": {"field": "tokens", "type": "quantitative"}, "y": {"field": "usd", "type": "quantitative"}}
    ring = {"type": "point", "size": 160, "stroke": INK, "strokeWidth": 3, "fill": "white", "opacity": 1}
    text = {"type": "text", "align": "left", "baseline": "top", "dx": 8, "dy": 8, "fontWeight": "bold"}
    return [
        {"mark": ring, "encoding": encoding, "data": {"values": values}},
        *_haloed(text, {**encoding, "text": {"field": "text"}}, values),
    ]


def _marked(point: Spec, encoding: Spec, *, right: bool) -> list[Spec]:
    place = {axis: {"field": encoding[axis]["field"], "type": "quantitative"} for axis in ("x", "y")}
    ring = {"type": "point", "size": 160, "stroke": INK, "strokeWidth": 3, "fill": "white", "opacity": 1}
    text = {"type": "text", "align": "right" if right else "left", "dx": -8 if right else 8, "dy": -14}
    return [
        {"mark": ring, "encoding": place, "data": {"values": [point]}},
        *_haloed({**text, "fontWeight": "bold"}, {**place, "text": {"field": "text"}}, [point]),
    ]


def _rule(
    axis: str, at: float, colour: str, words: str, scale: Spec, dash: Sequence[int] = (), *, left: bool = False
) -> list[Spec]:
    values = [{"at": at, "text": words}]
    place = {axis: {"field": "at", "type": "quantitative", "scale": scale}}
    rule = {"type": "rule", "color": colour, "strokeWidth": 2, "strokeDash": list(dash)}
    side = {"align": "right", "dx": -5} if left else {"align": "left", "dx": 5}
    text = {"type": "text", **side, "baseline": "bottom", "y": {"expr": "height - 4"}, "color": INK}
    return [
        {"mark": rule, "encoding": place, "data": {"values": values}},
        *_haloed(text, {**place, "text": {"field": "text"}}, values),
    ]


def _haloed(mark: Spec, encoding: Spec, values: list[Any]) -> list[Spec]:
    halo = {**mark, "stroke": "white", "strokeWidth": 6, "strokeJoin": "round", "aria": False}
    return [{"mark": one, "encoding": encoding, "data": {"values": values}} for one in (halo, mark)]


def _finished(spec: Spec, title: str | None, description: str, width: int, height: int) -> Spec:
    """`title` None: none, where what stands around the chart says what it is."""
    heading = {"title": {"text": title}} if title else {}
    return {
        "$schema": SCHEMA,
        **heading,
        "description": description,
        "width": width,
        "height": height,
        "config": config(),
        **spec,
    }


def _break_even_words(result: CostResult) -> str:
    own = show_number(result.demand.tokens_per_day / MILLION)
    return (
        f"Dollars a day against tokens a day. At {own}M tokens a day hosting costs "
        f"{show_usd(result.hosted.usd_per_day)}. {_api_words(result)}"
    )


def _api_words(result: CostResult) -> str:
    parts = []
    for one in result.api:
        at = one.break_even.first
        where = (
            "never dearer than hosting" if at is None else f"break-even at {show_number(at / MILLION)}M tokens a day"
        )
        parts.append(f"{one.price.name}: {show_usd(one.usd_per_million_tokens)} per 1M, {where}")
    return "; ".join(parts) + "."
