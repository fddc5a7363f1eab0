"""Figures of what decides: how busy the machines are, and each input lowered and raised."""

import math
from collections.abc import Sequence

from labkit.advice.costs.calculate import CostResult
from labkit.advice.costs.charts import (
    HOSTING,
    api_words,
    finished,
    labelled,
    layer,
    log_scale,
    marked,
    quantity,
    series,
    ticks,
)
from labkit.advice.costs.prices import show_number, show_usd
from labkit.advice.costs.sensitivity import Swing
from labkit.vega import GREEN, INK, SKY, VERMILLION, Spec

NEAR = 4


def utilisation_chart(result: CostResult, *, titled: bool = True, width: int = 640, height: int = 300) -> Spec:
    """Dollars per million tokens against how busy the machines are: half as busy, twice the price."""
    hosted, now = result.hosted, result.hosted.usd_per_million_tokens
    full = float(now * hosted.utilisation) if now is not None else 0.0
    flat = [
        {"busy": busy, "usd": float(api.usd_per_million_tokens), "series": api.price.name}
        for api in result.api
        for busy in (0.01, 1.0)
    ]
    curve = [{"busy": share / 100, "usd": full / (share / 100), "series": HOSTING} for share in range(1, 101)]
    prices = [float(api.usd_per_million_tokens) for api in result.api if api.usd_per_million_tokens] + [full or 1.0]
    bottom, top = min(prices) / 1.5, max(prices) * 30
    share = "share of the paid time in which the machines compute"
    x = quantity("busy", share, {"format": ".0%", "tickCount": 6}, {"domain": [0, 1]})
    y = quantity("usd", "dollars per 1M tokens (log)", ticks(bottom, top), log_scale(bottom, top))
    encoding = {"x": x, "y": y, "color": series(result)}
    layers = [layer({"type": "line", "clip": True, "strokeWidth": 2.5}, encoding, [*curve, *flat] if full else flat)]
    busy = float(hosted.utilisation)
    words = f"{busy:.1%} busy" + (f": {show_usd(now)} per 1M" if now is not None else "")
    if full:
        side = {"align": "right", "dx": -8} if busy > 0.5 else {"align": "left", "dx": 8}
        layers += marked({"busy": min(1.0, busy), "usd": float(now or 0), "text": words}, {**side, "dy": -14})
    description = f"Price of a million tokens against how busy the machines are. Now {words}. {api_words(result)}"
    title = (
        f"At {busy:.1%} busy a token costs {show_number(1 / busy)} times what it does on full machines" if busy else ""
    )
    return finished(layers, title if titled else "", description, width, height)


def sensitivity_chart(
    result: CostResult,
    swings: Sequence[Swing],
    *,
    share: float,
    titled: bool = True,
    width: int = 640,
    height: int = 300,
) -> Spec:
    """Cost of hosting over the API's, with each input lowered and raised; the one that moves it most on top.

    Inputs that move nothing have no bar; the description names them."""
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
    scale, axis = log_scale(low, high), {"values": _round_ticks(low, high), "format": "~g"}
    colour = {"field": "change", "type": "nominal", "scale": {"domain": [less, more], "range": [SKY, VERMILLION]}}
    encoding = {
        "y": {"field": "input", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 160}},
        "x": quantity("from", f"hosting over {api.price.name} (log)", axis, scale),
        "x2": {"field": "to"},
        "color": {**colour, "legend": {"title": None, "orient": "top", "labelFontSize": 12, "offset": 24}},
    }
    layers = [layer({"type": "bar", "height": {"band": 0.7}}, encoding, rows)]
    for side, at_left in (("right", True), ("left", False)):
        texts = [row for row in rows if (float(str(row["to"])) < now) == at_left]
        place = {"y": encoding["y"], "x": {**quantity("to", "", axis, scale), "title": None}, "text": {"field": "text"}}
        mark = {"type": "text", "align": side, "dx": -4 if at_left else 4, "fontSize": 11}
        layers.append(layer(mark, place, texts))
    layers += labelled(now, INK, f"now {now:.3g}", scale, "top", left=now > 1)
    if even:
        layers += labelled(1.0, GREEN, "same cost", scale, "bottom", [5, 4], left=now < 1)
    still = [swing.name for swing in swings if swing.width == 1]
    moved = [
        f"{swing.name}: {show_number(swing.lowered)} with {less}, {show_number(swing.raised)} with {more}"
        for swing in moving
    ]
    without = [f"without effect: {', '.join(still)}"] if still else []
    description = f"Hosting costs {show_number(now)} times what {api.price.name} does. " + "; ".join(moved + without)
    title = (
        f"What moves hosting's cost over the API's most: {moving[0].name}" if moving else "No input moves the answer"
    )
    return finished(layers, title if titled else "", description, width, height)


def _round_ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers from `low` to `high`, 1 among them where it is inside."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= rough)
    ticks = [round(step * n, 10) for n in range(math.ceil(low / step), math.floor(high / step) + 1) if n]
    return sorted({*ticks, *([1.0] if low < 1 < high else [])})
