"""Format the calculator's answer as text and as JSON, for `labkit cost`."""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from labkit.advice.costs.calculate import ApiCost, CostResult
from labkit.advice.costs.explain import explain
from labkit.advice.costs.machines import Fleet, fleet
from labkit.advice.costs.prices import PURCHASES, exact, find_instance, millions, rounded, show_usd
from labkit.advice.costs.sensitivity import flips
from labkit.advice.costs.settings import CostSettings


def text(result: CostResult) -> str:
    """Format the answer, the APIs, the settings that would change it, and every line of the calculation."""
    changes = [f"  {flip}" for flip in flips(result.settings)] or ["  no single setting, up to 20 times less or more"]
    answers = [result.headline, _purchases(result), result.compared, "", *_apis(result), ""]
    lines = [f"  {line}" for line in explain(result)]
    notes = [f"Note: {warning}" for warning in result.warnings]
    return "\n".join([*answers, "What would change it:", *changes, "", "The calculation:", *lines, *notes])


def to_json(result: CostResult) -> dict[str, Any]:
    """Return the answer as plain data for scripts and records; an unknown interval or price is null."""
    low, high, known = _fleet_json(result.cheapest), _fleet_json(result.dearest), result.has_interval
    bounded = ("usd_per_day", "usd_per_million_tokens", "machines")
    intervals = {f"{name}_interval": [low[name], high[name]] if known else None for name in bounded}
    crossing, bounds = result.against.break_even, [_tokens(bound) for bound in result.against.break_even_bounds]
    used = result.settings.used_throughput
    return {
        "self_hosted": _fleet_json(result.hosted) | intervals,
        "purchase": purchases(result.settings),
        "throughput": {"label": used.label, "measured": used.measured, "tokens_per_s": used.tokens_per_s},
        "api": [_api_json(api) for api in result.api],
        "compared": result.compared,
        "break_even_tokens_per_day": _tokens(crossing.first),
        "break_even_for_good_tokens_per_day": _tokens(crossing.for_good),
        "break_even_interval": bounds if known else None,
        "flips": [
            {"setting": flip.setting, "from": flip.now, "to": flip.to, "cheaper": flip.cheaper}
            for flip in flips(result.settings)
        ],
        "lines": list(explain(result)),
        "warnings": list(result.warnings),
        "settings": result.settings.to_dict(),
    }


def purchases(settings: CostSettings) -> list[dict[str, Any]]:
    """Return the price per hour and the cost per day for each way to buy the machine; None: unknown."""
    instance, rows = find_instance(settings.instance), []
    for purchase in PURCHASES:
        price = instance.price(settings.prices_on, purchase)
        row: dict[str, Any] = {"purchase": purchase, "usd_per_hour": None, "usd_per_day": None, "source": None}
        if price:
            day = fleet(settings.changed(purchase=purchase, usd_per_hour=None)).usd_per_day
            row |= {"usd_per_hour": float(price.usd_per_hour), "usd_per_day": _float(day, 2), "source": price.words}
        rows.append(row)
    return rows


def _purchases(result: CostResult) -> str:
    days = {row["purchase"].replace("_", " "): row["usd_per_day"] for row in purchases(result.settings)}
    if not any(days.values()):
        return f"No price of {result.settings.instance} is listed."
    words = (f"{name} {'unknown' if usd is None else f'{show_usd(exact(usd))} a day'}" for name, usd in days.items())
    return "By the price list: " + ", ".join(words)


def _apis(result: CostResult) -> Iterator[str]:
    width = max(len(api.price.name) for api in result.api)
    for api in result.api:
        costs = f"{show_usd(api.usd_per_day):>12} a day {show_usd(api.usd_per_million_tokens):>10} per 1M"
        low, high = api.break_even_bounds
        crossing = api.break_even_words
        pays = "hosting never pays" if crossing == "never" else f"hosting pays from {crossing}"
        if result.has_interval and low != high:
            ends = ["never" if end is None else millions(end) for end in (low, high)]
            pays += f"; {ends[0]} to {ends[1]} by the throughput's interval"
        yield f"  {api.price.name:<{width}} {costs}   {pays}"


def _api_json(api: ApiCost) -> dict[str, Any]:
    return {
        "model": api.price.id,
        "name": api.price.name,
        "usd_per_request": _float(api.price.usd_per_request, 9),
        "usd_per_day": _float(api.usd_per_day, 2),
        "usd_per_month": _float(api.usd_per_month, 2),
        "usd_per_million_tokens": _float(api.usd_per_million_tokens, 6),
        "break_even_tokens_per_day": _tokens(api.break_even.first),
        "break_even_for_good_tokens_per_day": _tokens(api.break_even.for_good),
        "source": api.price.source,
    }


def _fleet_json(hosted: Fleet) -> dict[str, Any]:
    per_million = hosted.usd_per_million_tokens
    return {
        "usd_per_day": _float(hosted.usd_per_day, 2),
        "usd_per_month": _float(hosted.usd_per_month, 2),
        "usd_per_million_tokens": _float(per_million, 6),
        "machines": hosted.machines,
        "machine_hours_per_day": _float(hosted.machine_hours, 2),
        "gpus": hosted.gpus,
        "replicas": hosted.replicas,
        "utilisation": _float(hosted.utilisation, 6),
    }


def _float(value: Fraction | None, digits: int) -> float | None:
    return None if value is None else float(rounded(value, digits))


def _tokens(value: Fraction | None) -> int | None:
    return None if value is None else math.ceil(value)
