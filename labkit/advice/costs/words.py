"""The text of `labkit cost`: the answer first, then the APIs, then every sum."""

from collections.abc import Iterator

from labkit.advice.costs.calculate import CostResult
from labkit.advice.costs.explain import millions
from labkit.advice.costs.prices import show_usd


def text(result: CostResult) -> str:
    """The answer for a terminal."""
    sums = [f"  {line}" for line in result.lines]
    notes = [f"Note: {warning}" for warning in result.warnings]
    return "\n".join([headline(result), "", *_apis(result), "", "The sums:", *sums, *notes])


def headline(result: CostResult) -> str:
    """The cost of hosting in one sentence."""
    hosted, settings = result.hosted, result.settings
    per_million, low, high = (fleet.usd_per_million_tokens for fleet in (hosted, result.cheapest, result.dearest))
    interval = "" if low is None or high is None or low == high else f" ({show_usd(low)} to {show_usd(high)})"
    token_price = "" if per_million is None else f", {show_usd(per_million)} per 1M tokens{interval}"
    gpus = f" ({hosted.gpus:,} GPUs)" if hosted.gpus else ""
    return (
        f"Hosting: {hosted.machines:,} x {settings.instance}{gpus}, {float(hosted.utilisation):.1%} busy: "
        f"{show_usd(hosted.usd_per_day)} a day, {show_usd(hosted.usd_per_month)} a month{token_price}"
    )


def _apis(result: CostResult) -> Iterator[str]:
    width = max(len(api.price.name) for api in result.api)
    for api in result.api:
        costs = f"{show_usd(api.usd_per_day):>12} a day {show_usd(api.usd_per_million_tokens):>10} per 1M"
        first = api.break_even.first
        pays = "hosting never pays" if first is None else f"hosting pays from {millions(first)} tokens a day on"
        yield f"  {api.price.name:<{width}} {costs}   {pays}"
