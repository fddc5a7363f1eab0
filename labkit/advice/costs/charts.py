"""The calculator's charts as Vega-Lite 5 specifications, light enough to redraw at every key press."""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from labkit.advice.costs.calculate import CostResult
from labkit.advice.costs.prices import MILLION, millions, show_number, show_usd
from labkit.vega import BLACK, BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SCHEMA, SKY, VERMILLION, WIDTH, Spec, config

HOSTING = "hosting it yourself"
APIS = (VERMILLION, BLUE, GREEN, ORANGE, PURPLE, SKY)
SAMPLES = 32
NEAR = 4
STEPS = 16  # corners of the staircase that are drawn exactly; later steps are narrower than a line
RING = {"type": "point", "size": 160, "stroke": INK, "strokeWidth": 3, "fill": "white", "opacity": 1}
HALO = {"stroke": "white", "strokeWidth": 6, "strokeJoin": "round", "aria": False}


def break_even_chart(result: CostResult) -> Spec:
    """Dollars per day against tokens per day, both logarithmic: the staircase of machines and a line for each API."""
    low, high = _range(result)
    bottom, top = _dollars(result, low, high)
    x = _quantity("tokens", "million tokens a day (log)", _ticks(low, high), _log_scale(low, high))
    y = _quantity("usd", "dollars a day (log)", _ticks(bottom, top) | {"format": "~s"}, _log_scale(bottom, top))
    stroke = {"condition": {"test": f"datum.series === '{HOSTING}'", "value": 3.5}, "value": 2}
    rows = [*_staircase(result, low, high), *_api_lines(result, low, high)]
    own = float(result.demand.tokens_per_day / MILLION)
    encoding = {"x": x, "y": y, "color": _series(result), "strokeWidth": stroke}
    layers = [_layer({"type": "line", "clip": True}, encoding, rows)]
    if low < own < high:
        layers += _labelled(own, GREY, f"you: {show_number(own)}M", _log_scale(low, high), "bottom", [4, 3])
    at = result.against.break_even.first
    usd = float(result.stairs.usd_per_day(at)) if at is not None else 0
    if at is not None and bottom < usd < top:
        point = {"tokens": float(at / MILLION), "usd": usd, "text": f"break-even {millions(at)}"}
        layers += _marked(point, {"align": "left", "baseline": "top", "dx": 8, "dy": 8})
    description = (
        f"Dollars a day against tokens a day. At {show_number(own)}M tokens a day hosting costs "
        f"{show_usd(result.hosted.usd_per_day)}. {_api_words(result)}"
    )
    title = f"Hosting never pays against {result.against.price.name}"
    if at is not None:
        title = f"Hosting pays from {millions(at)} tokens a day on, against {result.against.price.name}"
        if (stays := result.against.break_even.for_good) not in (None, at):
            words = f"{millions(at)}, for good from {millions(stays)} on"
            title = f"Hosting pays at {words}, against {result.against.price.name}"
    return _finished(layers, title, description)


def utilisation_chart(result: CostResult) -> Spec:
    """Dollars per million tokens against the busy share of the machines, up to the most that peaks and buffer allow."""
    hosted, now = result.hosted, result.hosted.usd_per_million_tokens
    full = float(now * hosted.utilisation) if now is not None else 0.0
    flat = [
        {"busy": busy, "usd": float(api.usd_per_million_tokens), "series": api.price.name}
        for api in result.api
        for busy in (0.01, 1.0)
    ]
    most = float(result.demand.most_busy)
    curve = [{"busy": most * n / 100, "usd": full / (most * n / 100), "series": HOSTING} for n in range(2, 101)]
    prices = [float(api.usd_per_million_tokens) for api in result.api if api.usd_per_million_tokens] + [full or 1.0]
    bottom, top = min(prices) / 1.5, max(prices) * 30
    share = "share of the paid time in which the machines compute"
    x = _quantity("busy", share, {"format": ".0%", "tickCount": 6}, {"domain": [0, 1]})
    y = _quantity("usd", "dollars per 1M tokens (log)", _ticks(bottom, top), _log_scale(bottom, top))
    encoding = {"x": x, "y": y, "color": _series(result)}
    layers = [_layer({"type": "line", "clip": True, "strokeWidth": 2.5}, encoding, [*curve, *flat] if full else flat)]
    busy = float(hosted.utilisation)
    words = f"{busy:.1%} busy" + (f": {show_usd(now)} per 1M" if now is not None else "")
    if full:
        side = {"align": "right", "dx": -8} if busy > 0.5 else {"align": "left", "dx": 8}
        layers += _marked({"busy": min(1.0, busy), "usd": float(now or 0), "text": words}, {**side, "dy": -14})
    description = f"Price of a million tokens against how busy the machines are. Now {words}. {_api_words(result)}"
    times = f"{most / busy:.2g} times one at {most:.0%}" if busy else ""
    title = f"A token at {busy:.1%} busy costs {times}, the most that peaks allow" if busy else ""
    return _finished(layers, title, description)


def sensitivity_chart(result: CostResult, *, share: float = 0.25) -> Spec:
    """Cost of hosting over the API's with each input lowered and raised by `share`, the widest bar on top.

    The description names the inputs that move nothing. UsageError: the API's bill is 0."""
    from labkit.advice.costs.sensitivity import sensitivity

    swings = sensitivity(result.settings, share=share)
    api, moving = result.against, [swing for swing in swings if swing.width > 1]
    now = float(result.hosted.usd_per_day / api.usd_per_day) if api.usd_per_day else 0.0
    less, more = f"{share:.0%} less of it", f"{share:.0%} more of it"
    rows = [
        {"input": swing.name, "from": now, "to": value, "change": change, "text": f"{value:.3g}"}
        for swing in moving
        for change, value in ((less, swing.lowered), (more, swing.raised))
        if value != now
    ]
    ends = [now, *(value for swing in moving for value in (swing.lowered, swing.raised))]
    even = max(ends) * NEAR > 1 > min(ends) / NEAR  # farther away, the line would leave no room for the bars
    ends += [1.0] if even else []
    low, high = min(ends) / 1.15, max(ends) * 1.15  # room for the numbers at the bars' ends
    scale, axis = _log_scale(low, high), {"values": _round_ticks(low, high), "format": "~g"}
    colour = {"field": "change", "type": "nominal", "scale": {"domain": [less, more], "range": [SKY, VERMILLION]}}
    encoding = {
        "y": {"field": "input", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 160}},
        "x": _quantity("from", f"hosting over {api.price.name} (log)", axis, scale),
        "x2": {"field": "to"},
        "color": {**colour, "legend": {"title": None, "orient": "top", "labelFontSize": 12, "offset": 24}},
    }
    layers = [_layer({"type": "bar", "height": {"band": 0.7}}, encoding, rows)]
    ends_at = {"y": encoding["y"], "x": {**_quantity("to", "", axis, scale), "title": None}, "text": {"field": "text"}}
    for align, at_left in (("right", True), ("left", False)):
        mark = {"type": "text", "align": align, "dx": -4 if at_left else 4, "fontSize": 11}
        layers.append(_layer(mark, ends_at, [row for row in rows if (float(str(row["to"])) < now) == at_left]))
    layers += _labelled(now, INK, f"now {now:.3g}", scale, "top", left=now > 1)
    if even:
        layers += _labelled(1.0, GREEN, "same cost", scale, "bottom", [5, 4], left=now < 1)
    words = [
        f"{swing.name}: {show_number(swing.lowered)} with {less}, {show_number(swing.raised)} with {more}"
        for swing in moving
    ]
    still = ", ".join(swing.name for swing in swings if swing.width == 1)
    words += [f"without effect: {still}"] if still else []
    description = f"Hosting costs {show_number(now)} times as much as {api.price.name}. " + "; ".join(words)
    most = ", ".join(swing.name for swing in moving if math.isclose(swing.width, moving[0].width))
    title = f"What changes the ratio of hosting to API cost most: {most}" if moving else "No input moves the answer"
    return _finished(layers, title, description)


def _round_ticks(low: float, high: float) -> list[float]:
    """Return four to nine round numbers from `low` to `high`, and 1 if it is inside."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= rough)
    ticks = [round(step * n, 10) for n in range(math.ceil(low / step), math.floor(high / step) + 1) if n]
    return sorted({*ticks, *([1.0] if low < 1 < high else [])})


def _layer(mark: Spec, encoding: Spec, rows: list[Spec]) -> Spec:
    return {"mark": mark, "encoding": encoding, "data": {"values": rows}}


def _quantity(field: str, title: str, axis: Spec, scale: Spec) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, "axis": axis, "scale": scale}


def _log_scale(low: float, high: float) -> Spec:
    return {"type": "log", "domain": [low, high], "nice": False}


def _ticks(low: float, high: float) -> Spec:
    """Return the ticks of a logarithmic axis: 1, 2 and 5 of each decade, or only decades if there are many.

    Vega-Lite's default, a line for every digit, slows a live chart.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if len(decades) <= 5 else (1,)
    values = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
    return {"values": [value for value in values if low <= value <= high], "format": "~g"}


def _series(result: CostResult) -> Spec:
    names = list(dict.fromkeys(api.price.name for api in result.api))
    colours = [BLACK, *(APIS[n % len(APIS)] for n in range(len(names)))]
    legend = {"title": None, "orient": "top", "columns": 2, "labelLimit": 0, "labelFontSize": 12, "symbolSize": 60}
    scale = {"domain": [HOSTING, *names], "range": colours}
    return {"field": "series", "type": "nominal", "scale": scale, "legend": legend}


def _range(result: CostResult) -> tuple[float, float]:
    """Return the range in million tokens per day, with room around the user's volume and the break-even."""
    volumes = [result.demand.tokens_per_day, result.against.break_even.first or Fraction(0)]
    points = [float(volume / MILLION) for volume in volumes if volume > 0]
    points = points or [float(1 / max(share for _, share in result.stairs.steps) / MILLION)]
    return min(points) / 6, max(points) * 6


def _dollars(result: CostResult, low: float, high: float) -> tuple[float, float]:
    """Return the range in dollars per day, so that the right end of the cheapest API's line is visible."""
    ends = [float(result.stairs.usd_per_day(Fraction(end) * MILLION)) for end in (low, high)]
    lines = [float(api.usd_per_million_tokens) for api in result.api if api.usd_per_million_tokens]
    bottom = min([ends[0], *(price * high / 3 for price in lines)], default=ends[0]) / 2
    return max(bottom, ends[0] / 1e6, 1e-6), max([ends[1], *(price * high for price in lines), 1e-5]) * 2


def _staircase(result: CostResult, low: float, high: float) -> Iterator[Spec]:
    stairs = result.stairs
    ratio = (high / low) ** (1 / SAMPLES)
    counts = range(stairs.least, stairs.least + STEPS)
    corners = sorted(float(n / share / MILLION) for _, share in stairs.steps if share for n in counts)
    inside = set([corner for corner in corners if low < corner < high][:STEPS])
    for volume in sorted({low * ratio**n for n in range(SAMPLES + 1)} | inside):
        tokens, shift = Fraction(volume) * MILLION, Fraction(1, MILLION)
        # Draw both ends of a step, whatever the rounding of its corner.
        for at in (tokens * (1 - shift), tokens * (1 + shift)) if volume in inside else (tokens,):
            yield {"tokens": volume, "usd": float(stairs.usd_per_day(at)), "series": HOSTING}


def _api_lines(result: CostResult, low: float, high: float) -> Iterator[Spec]:
    for api in result.api:
        if api.usd_per_million_tokens > 0:
            for volume in (low, high):
                usd = float(api.usd_per_million_tokens) * volume
                yield {"tokens": volume, "usd": usd, "series": api.price.name}


def _marked(point: dict[str, Any], place: Spec) -> list[Spec]:
    """Draw a ring at the point, whose first two values are x and y, with its text."""
    x, y, _ = point
    encoding = {axis: {"field": field, "type": "quantitative"} for axis, field in (("x", x), ("y", y))}
    return [_layer(RING, encoding, [point]), *_text({"type": "text", **place, "fontWeight": "bold"}, encoding, point)]


def _labelled(
    at: float, colour: str, words: str, scale: Spec, end: str, dash: Sequence[int] = (), *, left: bool = False
) -> list[Spec]:
    """Draw a vertical line with words, above its top or beside its bottom end."""
    row = {"at": at, "text": words}
    encoding = {"x": {"field": "at", "type": "quantitative", "scale": scale}}
    mark = {"type": "rule", "color": colour, "strokeWidth": 2, "strokeDash": list(dash)}
    side = {"align": "right", "dx": -5} if left else {"align": "left", "dx": 5}
    height = -4 if end == "top" else {"expr": "height - 4"}
    text = {"type": "text", **side, "baseline": "bottom", "y": height, "color": INK}
    return [_layer(mark, encoding, [row]), *_text(text, encoding, row)]


def _text(mark: Spec, encoding: Spec, row: dict[str, Any]) -> list[Spec]:
    """Draw text with a white halo, legible on top of lines."""
    encoding = {**encoding, "text": {"field": "text"}}
    return [_layer({**mark, **HALO}, encoding, [row]), _layer(mark, encoding, [row])]


def _finished(layers: list[Spec], title: str, description: str) -> Spec:
    look = {"width": WIDTH, "height": 300, "config": config()}
    return {"$schema": SCHEMA, "title": {"text": title}, "description": description, **look, "layer": layers}


def _api_words(result: CostResult) -> str:
    parts = []
    for api in result.api:
        at = api.break_even.first
        crossing = "never dearer than hosting" if at is None else f"break-even at {millions(at)} tokens a day"
        parts.append(f"{api.price.name}: {show_usd(api.usd_per_million_tokens)} per 1M, {crossing}")
    return "; ".join(parts) + "."
