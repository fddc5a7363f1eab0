"""The answer: cost of hosting and of each API, the break-even, every sum, and what each input does to it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from labkit.advice.costs.checked import limits
from labkit.advice.costs.explain import explain
from labkit.advice.costs.machines import (
    BreakEven,
    Demand,
    Fleet,
    Staircase,
    break_even,
    demand,
    fleet,
    hour_price,
    staircase,
)
from labkit.advice.costs.prices import (
    DAYS_PER_MONTH,
    MILLION,
    OWN,
    ApiPrice,
    exact,
    find_instance,
    price_of_request,
    rounded,
)
from labkit.advice.costs.settings import NUMBERS, CostSettings
from labkit.errors import UsageError

SMALL_GB = 4  # the APIs here offer no model with weights below it
# The inputs that `sensitivity` lowers and raises, with their names for a reader.
INPUTS = {
    "traffic": "traffic",
    "throughput": "throughput",
    "usd_per_hour": "price of an hour",
    "input_tokens": "tokens in",
    "output_tokens": "tokens out",
    "peak_factor": "peak factor",
    "buffer": "buffer",
    "paid_hours_per_day": "paid hours",
    "engineering_hours_per_month": "people's hours",
    "api_price": "API's price",
}


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
        """Of 730 hours."""
        return self.usd_per_day * DAYS_PER_MONTH

    def to_json(self) -> dict[str, Any]:
        """Dollars to the cent, prices of a million tokens to a millionth."""
        return {
            "model": self.price.id,
            "name": self.price.name,
            "usd_per_day": _float(self.usd_per_day, 2),
            "usd_per_month": _float(self.usd_per_month, 2),
            "usd_per_million_tokens": _float(self.usd_per_million_tokens, 6),
            "break_even_tokens_per_day": _tokens(self.break_even.first),
            "source": self.price.source,
        }


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
    lines: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def against(self) -> ApiCost:
        """The API that the break-even is for: the first one."""
        return self.api[0]

    def to_json(self) -> dict[str, Any]:
        """For `labkit cost --json` and records."""
        low, high = _fleet_json(self.cheapest), _fleet_json(self.dearest)
        bounded = ("usd_per_day", "usd_per_million_tokens", "machines")
        crossing = self.against.break_even
        return {
            "self_hosted": _fleet_json(self.hosted) | {f"{name}_interval": [low[name], high[name]] for name in bounded},
            "throughput": {"label": self.settings.throughput.label, "measured": self.settings.throughput.measured},
            "api": [api.to_json() for api in self.api],
            "break_even_tokens_per_day": _tokens(crossing.first),
            "break_even_for_good_tokens_per_day": _tokens(crossing.for_good),
            "break_even_interval": [_tokens(bound) for bound in self.against.break_even_bounds],
            "lines": list(self.lines),
            "warnings": list(self.warnings),
            "settings": self.settings.to_dict(),
        }


def calculate(settings: CostSettings) -> CostResult:
    """The cost of the settings' traffic, hosted and at each API. UsageError: an unknown API."""
    low, high = settings.throughput.bounds
    wanted, hosted, stairs = demand(settings), fleet(settings), staircase(settings)
    dearest, cheapest = fleet(settings, low), fleet(settings, high)
    ends = (staircase(settings, high), staircase(settings, low))
    api = tuple(_api(settings, model, wanted, stairs, ends) for model in settings.api)
    lines = explain(settings, wanted, hosted, (dearest, cheapest), [(each.price, each.break_even) for each in api])
    return CostResult(
        settings=settings,
        demand=wanted,
        hosted=hosted,
        dearest=dearest,
        cheapest=cheapest,
        stairs=stairs,
        api=api,
        lines=tuple(lines),
        warnings=tuple(_warnings(settings, hosted)),
    )


def _warnings(settings: CostSettings, hosted: Fleet) -> Iterator[str]:
    throughput, instance = settings.throughput, find_instance(settings.instance)
    if not throughput.measured:
        yield f"The throughput is {throughput.label}: measure yours before you decide."
    elif instance.gpu and instance.gpu not in throughput.machine:
        yield f"Throughput measured on {throughput.machine or 'an unknown machine'}, price of a {settings.instance}."
    elif not instance.gpus and settings.instance != OWN:
        yield f"Measured on {throughput.machine}, priced as {settings.instance}: like it, but not the same processor."
    if 0 < settings.model_gb < SMALL_GB:
        yield f"The model has {settings.model_gb:g} GB: the APIs answer with far larger ones. That is no like for like."
    if instance.gpus and settings.model_gb > instance.gpus * instance.gpu_gb:
        yield (
            f"{settings.model_gb:g} GB of weights do not fit into {instance.gpus} x {instance.gpu_gb:g} GB: "
            f"one {settings.instance} cannot hold this model."
        )
    if hosted.utilisation > 1:
        yield f"The machines would be {float(hosted.utilisation):.0%} busy: a queue that never ends. Add machines."
    if throughput.counts == "total":
        yield "The throughput counts tokens that are read as well: with another mix it would be another figure."


def _request(settings: CostSettings, model: str) -> ApiPrice:
    return price_of_request(
        model,
        input_tokens=settings.input_tokens or 0,
        output_tokens=settings.output_tokens or 0,
        on=settings.prices_on,
    )


def _api(
    settings: CostSettings, model: str, wanted: Demand, stairs: Staircase, ends: tuple[Staircase, Staircase]
) -> ApiCost:
    price = _request(settings, model)
    per_token = price.usd_per_request / settings.tokens_per_request
    best, worst = (break_even(end, per_token).first for end in ends)
    return ApiCost(
        price=price,
        usd_per_day=price.usd_per_request * wanted.requests_per_day,
        usd_per_million_tokens=per_token * MILLION,
        break_even=break_even(stairs, per_token),
        break_even_bounds=(best, worst),
    )


def _fleet_json(hosted: Fleet) -> dict[str, Any]:
    per_million = hosted.usd_per_million_tokens
    return {
        "usd_per_day": _float(hosted.usd_per_day, 2),
        "usd_per_month": _float(hosted.usd_per_month, 2),
        "usd_per_million_tokens": _float(per_million, 6),
        "usd_per_thousand_tokens": _float(per_million / 1000 if per_million is not None else None, 9),
        "machines": hosted.machines,
        "gpus": hosted.gpus,
        "utilisation": _float(hosted.utilisation, 6),
    }


def _float(value: Fraction | None, digits: int) -> float | None:
    return None if value is None else float(rounded(value, digits))


def _tokens(value: Fraction | None) -> int | None:
    return None if value is None else math.ceil(value)


@dataclass(frozen=True, kw_only=True)
class Swing:
    """One input, lowered and raised: the cost of hosting over the API's with each."""

    name: str
    lowered: float
    raised: float

    @property
    def width(self) -> float:
        """How far the answer moves, as a factor of 1 or more."""
        return max(self.lowered, self.raised) / min(self.lowered, self.raised)


def sensitivity(settings: CostSettings, *, share: float = 0.25) -> tuple[Swing, ...]:
    """Every input lowered and raised by `share` (0 to below 1), the one that moves the answer most first.

    UsageError where the first API's bill is 0.
    """
    if not 0 < share < 1:
        raise UsageError(f"the share is {share:g}", remedy="give one above 0 and below 1, such as 0.25")
    swings = []
    for name, words in INPUTS.items():
        low, high = (_ratio_with(settings, name, factor) for factor in (1 - exact(share), 1 + exact(share)))
        swings.append(Swing(name=words, lowered=low, raised=high))
    return tuple(sorted(swings, key=lambda swing: swing.width, reverse=True))


def _ratio(settings: CostSettings, api_factor: Fraction = Fraction(1)) -> float:
    """Cost of hosting over the cost at the first API."""
    price = _request(settings, settings.api[0])
    bill = price.usd_per_request * demand(settings).requests_per_day * api_factor
    if not bill:
        raise UsageError(
            f"{price.name} costs nothing for this traffic", remedy="raise the traffic, or take another API"
        )
    return float(fleet(settings).usd_per_day / bill)


def _ratio_with(settings: CostSettings, name: str, factor: Fraction) -> float:
    if name == "api_price":
        return _ratio(settings, factor)
    if name == "throughput":
        rate = settings.throughput.tokens_per_s * float(factor)
        return _ratio(settings.changed(throughput=settings.throughput.changed(tokens_per_s=rate, low=None, high=None)))
    if name == "traffic":
        name = "requests_per_s" if settings.tokens_per_day is None else "tokens_per_day"
    value = hour_price(settings) if name == "usd_per_hour" else exact(getattr(settings, name))
    return _ratio(settings.changed(**{name: _within_range(settings, name, float(value * factor))}))


def _within_range(settings: CostSettings, name: str, value: float) -> float:
    """A day has 24 hours, and machines run at least as long as requests come."""
    low, high = limits(NUMBERS[name])
    if name == "paid_hours_per_day":
        low = max(low, settings.hours_per_day)
    inside = min(high, max(low, value))
    return round(inside) if isinstance(getattr(settings, name), int) else inside
