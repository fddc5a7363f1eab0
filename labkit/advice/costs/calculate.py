"""Calculate the cost of hosting and of each API, and the break-even between them."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from labkit.advice.costs.machines import BreakEven, Demand, Fleet, Staircase, break_even, demand, fleet, staircase
from labkit.advice.costs.prices import (
    DAYS_PER_MONTH,
    MILLION,
    OWN,
    ApiPrice,
    find_instance,
    millions,
    models_like,
    price_of_request,
    show_usd,
)
from labkit.advice.costs.settings import CostSettings
from labkit.advice.costs.throughput import is_extrapolated

SMALL_GB = 4  # the listed APIs serve no model with smaller weights


@dataclass(frozen=True, kw_only=True)
class ApiCost:
    """The cost of the traffic at one API, and the break-even against it, with its interval."""

    price: ApiPrice
    usd_per_day: Fraction
    usd_per_million_tokens: Fraction
    break_even: BreakEven
    break_even_bounds: tuple[Fraction | None, Fraction | None]

    @property
    def usd_per_month(self) -> Fraction:
        return self.usd_per_day * DAYS_PER_MONTH

    @property
    def break_even_words(self) -> str:
        """The volume from which hosting is cheaper. Between `first` and `for_good` another machine may flip it back."""
        first, stays = self.break_even.first, self.break_even.for_good
        if first is None or stays is None:
            return "never"
        return f"{millions(first)} tokens a day" + (f", for good from {millions(stays)}" if first != stays else "")


@dataclass(frozen=True, kw_only=True)
class CostResult:
    """The calculator's answer. `dearest` and `cheapest`: hosting at the low and high end of the throughput interval."""

    settings: CostSettings
    demand: Demand
    hosted: Fleet
    dearest: Fleet
    cheapest: Fleet
    stairs: Staircase
    api: tuple[ApiCost, ...]
    warnings: tuple[str, ...]

    @property
    def against(self) -> ApiCost:
        return self.api[0]

    @property
    def has_interval(self) -> bool:
        return self.settings.used_throughput.bounds is not None

    @property
    def compared(self) -> str:
        """Whether an API serves a model of the same size; empty if the size is unknown."""
        replica = self.settings.modelled_replica
        if replica is None:
            return ""
        same_size = [api.price.name for api in self.api if api.price.id in models_like(replica.model)]
        if not same_size:
            return f"Not like with like: none of these APIs serves a model of the size of {replica.model}."
        return f"Like with like: {replica.model} on {replica.card}, modelled, and {', '.join(same_size)}."

    @property
    def headline(self) -> str:
        hosted, low, high = self.hosted, self.cheapest, self.dearest
        gpus = f" ({hosted.gpus:,} GPU{'s' * (hosted.gpus > 1)})" if hosted.gpus else ""
        token_price = ""
        if hosted.usd_per_million_tokens is not None:
            interval = span(low.usd_per_million_tokens, high.usd_per_million_tokens)
            token_price = f", {show_usd(hosted.usd_per_million_tokens)} per 1M tokens{interval}"
        return (
            f"Hosting: {hosted.machines:,} x {self.settings.instance}{gpus}, {float(hosted.utilisation):.1%} busy: "
            f"{show_usd(hosted.usd_per_day)} a day{span(low.usd_per_day, high.usd_per_day)}, "
            f"{show_usd(hosted.usd_per_month)} a month{token_price}"
        )


def span(low: Fraction | None, high: Fraction | None) -> str:
    """Return " ($1.20 to $2.50)", or "" if there is no interval."""
    return "" if low is None or high is None or low == high else f" ({show_usd(low)} to {show_usd(high)})"


def calculate(settings: CostSettings) -> CostResult:
    """Calculate the cost of the settings' traffic, hosted and at each API. UsageError: an unknown API."""
    low, high = settings.used_throughput.bounds or (None, None)
    traffic, hosted, stairs = demand(settings), fleet(settings), staircase(settings)
    ends = (staircase(settings, high), staircase(settings, low))
    costs = tuple(_api_cost(settings, model, traffic, stairs, ends) for model in settings.api)
    return CostResult(
        settings=settings,
        demand=traffic,
        hosted=hosted,
        dearest=fleet(settings, low),
        cheapest=fleet(settings, high),
        stairs=stairs,
        api=costs,
        warnings=(*_warnings(settings, hosted), *(note for cost in costs for note in cost.price.notes)),
    )


def _warnings(settings: CostSettings, hosted: Fleet) -> Iterator[str]:
    used, replica, instance = settings.used_throughput, settings.modelled_replica, find_instance(settings.instance)
    if replica:
        yield from (f"{warning}." for warning in replica.warnings)
        if is_extrapolated(replica, settings.input_tokens or 0, settings.output_tokens or 0):
            yield "No request of this length was modelled: the throughput is extrapolated."
        if settings.cached_tokens:
            yield "Hosting is assumed to find the cached input in its prefix cache, and to spend no time on it."
    elif not used.measured:
        yield f"The throughput is {used.label}: measure yours before you decide."
    elif not instance.gpus and settings.instance != OWN:
        yield f"Measured on {used.machine}, priced as {settings.instance}: a similar machine, but another processor."
    if used.bounds is None:
        yield "The throughput has no interval, so no result has one (throughput_low and throughput_high set it)."
    if 0 < settings.weights_gb < SMALL_GB:
        yield f"Not like with like: the weights have {settings.weights_gb:g} GB, and the APIs serve far larger models."
    if hosted.utilisation > 1:
        yield f"The machines would be {float(hosted.utilisation):.0%} busy: the queue would keep growing. Add machines."
    if used.counts == "total" and not replica:
        yield "The throughput counts input tokens, too: it changes with the mix of input and output."
    if settings.purchase == "spot":
        yield "Spot machines can be reclaimed at short notice: plan a buffer, or add machines on demand."
    if settings.cached_tokens:
        yield "Cache writes are not priced: some providers charge more for input that they cache for the first time."


def request_price(settings: CostSettings, model: str) -> ApiPrice:
    return price_of_request(
        model,
        input_tokens=settings.input_tokens or 0,
        output_tokens=settings.output_tokens or 0,
        on=settings.prices_on,
        cached_tokens=settings.cached_tokens,
        batch=settings.batch,
        own=settings.own_prices,
    )


def _api_cost(
    settings: CostSettings, model: str, traffic: Demand, stairs: Staircase, ends: tuple[Staircase, Staircase]
) -> ApiCost:
    price = request_price(settings, model)
    per_token = price.usd_per_request / settings.tokens_per_request
    best, worst = (break_even(end, per_token).first for end in ends)
    return ApiCost(
        price=price,
        usd_per_day=price.usd_per_request * traffic.requests_per_day,
        usd_per_million_tokens=per_token * MILLION,
        break_even=break_even(stairs, per_token),
        break_even_bounds=(best, worst),
    )
