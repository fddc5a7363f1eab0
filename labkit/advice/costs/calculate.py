"""The answer: cost of hosting and of each API, the break-even, and every sum."""

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
    models_like,
    price_of_request,
    show_usd,
)
from labkit.advice.costs.settings import CostSettings
from labkit.advice.costs.throughput import outside

SMALL_GB = 4  # the APIs here offer no model with weights below it


@dataclass(frozen=True, kw_only=True)
class ApiCost:
    """The traffic's cost at one API, and the volume from which hosting is cheaper than it (with its interval)."""

    price: ApiPrice
    usd_per_day: Fraction
    usd_per_million_tokens: Fraction
    break_even: BreakEven
    break_even_bounds: tuple[Fraction | None, Fraction | None]

    @property
    def usd_per_month(self) -> Fraction:
        return self.usd_per_day * DAYS_PER_MONTH


@dataclass(frozen=True, kw_only=True)
class CostResult:
    """The calculator's answer. `dearest` and `cheapest`: hosting at the low and at the high end of the throughput."""

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
        """Whether like is compared with like; empty where nothing is known of the model."""
        replica = self.settings.modelled_replica
        if replica is None:
            return ""
        alike = [api.price.name for api in self.api if api.price.id in models_like(replica.model)]
        if not alike:
            return f"Not like with like: no API here serves a model of the size of {replica.model}."
        return f"Like with like: {replica.model} on {replica.card}, modelled, and {', '.join(alike)}."

    @property
    def headline(self) -> str:
        hosted, low, high = self.hosted, self.cheapest, self.dearest
        gpus = f" ({hosted.gpus:,} GPUs)" if hosted.gpus else ""
        token_price = ""
        if hosted.usd_per_million_tokens is not None:
            between = span(low.usd_per_million_tokens, high.usd_per_million_tokens)
            token_price = f", {show_usd(hosted.usd_per_million_tokens)} per 1M tokens{between}"
        return (
            f"Hosting: {hosted.machines:,} x {self.settings.instance}{gpus}, {float(hosted.utilisation):.1%} busy: "
            f"{show_usd(hosted.usd_per_day)} a day{span(low.usd_per_day, high.usd_per_day)}, "
            f"{show_usd(hosted.usd_per_month)} a month{token_price}"
        )


def span(low: Fraction | None, high: Fraction | None) -> str:
    """ " ($1.20 to $2.50)": an interval of dollars; empty where both ends are the same."""
    return "" if low is None or high is None or low == high else f" ({show_usd(low)} to {show_usd(high)})"


def calculate(settings: CostSettings) -> CostResult:
    """The cost of the settings' traffic, hosted and at each API. UsageError: an unknown API."""
    low, high = settings.used_throughput.bounds or (None, None)
    wanted, hosted, stairs = demand(settings), fleet(settings), staircase(settings)
    dearest, cheapest = fleet(settings, low), fleet(settings, high)
    ends = (staircase(settings, high), staircase(settings, low))
    api = tuple(_api(settings, model, wanted, stairs, ends) for model in settings.api)
    return CostResult(
        settings=settings,
        demand=wanted,
        hosted=hosted,
        dearest=dearest,
        cheapest=cheapest,
        stairs=stairs,
        api=api,
        warnings=(*_warnings(settings, hosted), *(note for each in api for note in each.price.notes)),
    )


def _warnings(settings: CostSettings, hosted: Fleet) -> Iterator[str]:
    used, replica, instance = settings.used_throughput, settings.modelled_replica, find_instance(settings.instance)
    if replica:
        yield from (f"{warning}." for warning in replica.warnings)
        if outside(replica, settings.input_tokens or 0, settings.output_tokens or 0):
            yield "No request of this length was modelled: the throughput is extrapolated."
        if settings.cached_tokens:
            yield "Hosting, too, is taken to find the cached input in its prefix cache, at no time at all."
    elif not used.measured:
        yield f"The throughput is {used.label}: measure yours before you decide."
    elif not instance.gpus and settings.instance != OWN:
        yield f"Measured on {used.machine}, priced as {settings.instance}: like it, but not the same processor."
    if used.bounds is None:
        yield "The throughput has no interval, so no result has one (throughput_low and throughput_high set it)."
    if 0 < settings.weights_gb < SMALL_GB:
        yield f"The model has {settings.weights_gb:g} GB: the APIs answer with far larger ones. Not like with like."
    if hosted.utilisation > 1:
        yield f"The machines would be {float(hosted.utilisation):.0%} busy: a queue that never ends. Add machines."
    if used.counts == "total" and not replica:
        yield "The throughput counts tokens that are read as well: with another mix it would be another figure."
    if settings.purchase == "spot":
        yield "Spot machines are taken away at short notice: plan a buffer, or a fleet on demand beside them."
    if settings.cached_tokens:
        yield "Cache writes are not priced: some providers charge more for input that is cached the first time."


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


def _api(
    settings: CostSettings, model: str, wanted: Demand, stairs: Staircase, ends: tuple[Staircase, Staircase]
) -> ApiCost:
    price = request_price(settings, model)
    per_token = price.usd_per_request / settings.tokens_per_request
    best, worst = (break_even(end, per_token).first for end in ends)
    return ApiCost(
        price=price,
        usd_per_day=price.usd_per_request * wanted.requests_per_day,
        usd_per_million_tokens=per_token * MILLION,
        break_even=break_even(stairs, per_token),
        break_even_bounds=(best, worst),
    )
