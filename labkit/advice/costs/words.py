"""What `labkit cost` prints: the answer first, then the APIs, then every sum."""

from collections.abc import Iterator, Sequence
from fractions import Fraction

from labkit.advice.costs.calculate import ApiCost, CostResult, calculate
from labkit.advice.costs.prices import MILLION, show_number, show_usd
from labkit.advice.costs.settings import settings_from
from labkit.files import parse_settings


def answer(settings: Sequence[str]) -> CostResult:
    """The answer to KEY=VALUE settings. UsageError for what is unknown or cannot be."""
    return calculate(settings_from(parse_settings(settings)))


def text(result: CostResult) -> str:
    """The answer for a terminal."""
    return "\n".join([headline(result), "", *_apis(result), "", "The sums:", *_indented(result.lines), *_notes(result)])


def headline(result: CostResult) -> str:
    """What hosting costs, in one sentence."""
    hosted, settings = result.hosted, result.settings
    per_million = hosted.usd_per_million_tokens
    token_price = "" if per_million is None else f", {show_usd(per_million)} per 1M tokens{_interval(result)}"
    gpus = f" ({hosted.gpus:,} GPUs)" if hosted.gpus else ""
    return (
        f"Hosting: {hosted.machines:,} x {settings.instance}{gpus}, {float(hosted.utilisation):.1%} busy: "
        f"{show_usd(hosted.usd_per_day)} a day, {show_usd(hosted.usd_per_month)} a month{token_price}"
    )


def break_even_words(found: ApiCost) -> str:
    """From where on hosting is cheaper than an API, in words."""
    if found.break_even.first is None:
        return "hosting never pays"
    return f"hosting pays from {millions(found.break_even.first)} tokens a day on"


def millions(tokens: Fraction) -> str:
    """Tokens in millions: 35.56M."""
    return f"{show_number(tokens / MILLION)}M"


def _interval(result: CostResult) -> str:
    low, high = result.cheapest.usd_per_million_tokens, result.dearest.usd_per_million_tokens
    return "" if low is None or high is None or low == high else f" ({show_usd(low)} to {show_usd(high)})"


def _apis(result: CostResult) -> Iterator[str]:
    width = max(len(one.price.name) for one in result.api)
    for one in result.api:
        costs = f"{show_usd(one.usd_per_day):>12} a day {show_usd(one.usd_per_million_tokens):>10} per 1M"
        yield f"  {one.price.name:<{width}} {costs}   {break_even_words(one)}"


def _indented(lines: Sequence[str]) -> Iterator[str]:
    yield from (f"  {line}" for line in lines)


def _notes(result: CostResult) -> Iterator[str]:
    yield from (f"Note: {one}" for one in result.warnings)
