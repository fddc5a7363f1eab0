"""The answer: cost of hosting and of each API, break-even, and every sum on a line of its own."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from labkit.costs.break_even import BreakEven, Staircase, break_even, staircase
from labkit.costs.catalogue import OWN, ApiPrice, find_instance, price_of_request
from labkit.costs.explain import explain
from labkit.costs.fleet import Demand, Fleet, demand, fleet
from labkit.costs.money import DAYS_PER_MONTH, MILLION, cents, rounded
from labkit.costs.settings import CostSettings

THOUSAND = 1000
SMALL_GB = 4  # weights below it are of a model that no API here is like


@dataclass(frozen=True, kw_only=True)
class ApiCost:
    """What the traffic costs at one API, and from which volume on hosting is cheaper than it (with its interval)."""

    price: ApiPrice
    usd_per_day: Fraction
    usd_per_million_tokens: Fraction
    break_even: BreakEven
    break_even_bounds: tuple[Fraction | None, Fraction | None]

    @property
    def usd_per_month(self) -> Fraction:
        """Of 730 hours."""
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
    lines: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def against(self) -> ApiCost:
        """The API that the break-even is for: the first one."""
        return self.api[0]

    def to_json(self) -> dict[str, Any]:
        """For `labkit cost --json` and records. Dollars to the cent, prices of a million tokens to a millionth."""
        bounds = self.against.break_even_bounds
        return {
            "self_hosted": _fleet_json(self.hosted) | _bounds_json(self.dearest, self.cheapest),
            "throughput": {"label": self.settings.throughput.label, "measured": self.settings.throughput.measured},
            "api": [_api_json(one) for one in self.api],
            "break_even_tokens_per_day": _tokens(self.against.break_even.first),
            "break_even_for_good_tokens_per_day": _tokens(self.against.break_even.for_good),
            "break_even_interval": [_tokens(one) for one in bounds],
            "lines": list(self.lines),
            "warnings": list(self.warnings),
            "settings": self.settings.to_dict(),
        }


def calculate(settings: CostSettings) -> CostResult:
    """What the settings' traffic costs, hosted and at each API. UsageError: an API that nobody knows."""
    low, high = settings.throughput.bounds
    wanted, hosted, stairs = demand(settings), fleet(settings), staircase(settings)
    dearest, cheapest = fleet(settings, low), fleet(settings, high)
    ends = (staircase(settings, high), staircase(settings, low))
    api = tuple(_api(settings, model, wanted, stairs, ends) for model in settings.api)
    lines = explain(settings, wanted, hosted, (dearest, cheapest), [(one.price, one.break_even) for one in api])
    return CostResult(
        settings=settings,
        demand=wanted,
        hosted=hosted,
        dearest=dearest,
        cheapest=cheapest,
        stairs=stairs,
        api=api,
        lines=tuple(lines),
        warnings=tuple(warnings_of(settings, hosted)),
    )


def warnings_of(settings: CostSettings, hosted: Fleet) -> Iterator[str]:
    """What makes an answer worth less than it looks."""
    found, instance = settings.throughput, find_instance(settings.instance)
    if not found.measured:
        yield f"The throughput is {found.label}: measure yours before you decide."
    elif instance.gpu and instance.gpu not in found.machine:
        yield f"Throughput measured on {found.machine or 'an unknown machine'}, price of a {settings.instance}."
    elif not instance.gpus and settings.instance != OWN:
        yield f"Measured on {found.machine}, priced as {settings.instance}: like it, but not the same processor."
    if 0 < settings.model_gb < SMALL_GB:
        yield f"The model has {settings.model_gb:g} GB: the APIs answer with far larger ones. That is no like for like."
    if instance.gpus and settings.model_gb > instance.gpus * instance.gpu_gb:
        yield (
            f"{settings.model_gb:g} GB of weights do not fit into {instance.gpus} x {instance.gpu_gb:g} GB: "
            f"one {settings.instance} cannot hold this model."
        )
    if hosted.utilisation > 1:
        yield f"The machines would be {float(hosted.utilisation):.0%} busy: a queue that never ends. Add machines."
    if settings.throughput.counts == "total":
        yield "The throughput counts tokens that are read as well: with another mix it would be another figure."


def _api(
    settings: CostSettings, model: str, wanted: Demand, stairs: Staircase, ends: tuple[Staircase, Staircase]
) -> ApiCost:
    price = price_of_request(
        model,
        input_tokens=settings.input_tokens or 0,
        output_tokens=settings.output_tokens or 0,
        on=settings.prices_on,
    )
    per_token = price.usd_per_request / settings.tokens_per_request
    best, worst = (break_even(one, per_token).first for one in ends)
    return ApiCost(
        price=price,
        usd_per_day=price.usd_per_request * wanted.requests_per_day,
        usd_per_million_tokens=per_token * MILLION,
        break_even=break_even(stairs, per_token),
        break_even_bounds=(best, worst),
    )


def _fleet_json(found: Fleet) -> dict[str, Any]:
    per_million = found.usd_per_million_tokens
    return {
        "usd_per_day": float(cents(found.usd_per_day)),
        "usd_per_month": float(cents(found.usd_per_month)),
        "usd_per_million_tokens": None if per_million is None else float(rounded(per_million, 6)),
        "usd_per_thousand_tokens": None if per_million is None else float(rounded(per_million / THOUSAND, 9)),
        "machines": found.machines,
        "gpus": found.gpus,
        "utilisation": float(rounded(found.utilisation, 6)),
    }


def _bounds_json(dearest: Fleet, cheapest: Fleet) -> dict[str, Any]:
    names = ("usd_per_day", "usd_per_million_tokens", "machines")
    low, high = _fleet_json(cheapest), _fleet_json(dearest)
    return {f"{name}_interval": [low[name], high[name]] for name in names}


def _api_json(one: ApiCost) -> dict[str, Any]:
    return {
        "model": one.price.id,
        "name": one.price.name,
        "usd_per_day": float(cents(one.usd_per_day)),
        "usd_per_month": float(cents(one.usd_per_month)),
        "usd_per_million_tokens": float(rounded(one.usd_per_million_tokens, 6)),
        "break_even_tokens_per_day": _tokens(one.break_even.first),
        "source": one.price.source,
    }


def _tokens(value: Fraction | None) -> int | None:
    return None if value is None else -(-value.numerator // value.denominator)
