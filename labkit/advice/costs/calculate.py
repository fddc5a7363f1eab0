"""The answer: cost of hosting and of each API, break-even, and every sum on a line of its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from labkit.advice.costs.machines import (
    BreakEven,
    Demand,
    Fleet,
    MachineCost,
    Staircase,
    break_even,
    demand,
    engineering_per_day,
    fleet,
    gpu_factor,
    hour_price,
    machine,
    staircase,
    volume,
)
from labkit.advice.costs.prices import (
    DAYS_PER_MONTH,
    MILLION,
    OWN,
    ApiPrice,
    cents,
    exact,
    find_instance,
    price_of_request,
    rounded,
    show_number,
    show_usd,
)
from labkit.advice.costs.settings import NUMBERS, WHOLE, CostSettings
from labkit.errors import UsageError


def explain(
    settings: CostSettings,
    wanted: Demand,
    hosted: Fleet,
    ends: tuple[Fleet, Fleet],
    api: Sequence[tuple[ApiPrice, BreakEven]],
) -> Iterator[str]:
    """All sums in order: traffic, one machine, how many, what they cost, the APIs, the break-even."""
    one = machine(settings)
    yield from _traffic(settings, wanted)
    yield from _machine(settings, one)
    yield from _fleet(settings, wanted, hosted, one)
    yield from _interval(settings, *ends)
    for price, crossing in api:
        yield _explain_api(price, wanted)
        yield _break_even(settings, price, crossing)


def _traffic(settings: CostSettings, wanted: Demand) -> Iterator[str]:
    per_request = f"({settings.input_tokens:,} + {settings.output_tokens:,} tokens)"
    requests, tokens = show_number(wanted.requests_per_day), show_number(wanted.tokens_per_day)
    hours = f"{settings.hours_per_day:g} h"
    if settings.tokens_per_day is not None:
        yield f"requests a day = {tokens} tokens / {per_request} = {requests}"
    else:
        yield f"requests a day = {settings.requests_per_s:g} requests/s x 3,600 s x {hours} = {requests}"
        yield f"tokens a day = {requests} requests x {per_request} = {tokens}"
    yield f"mean rate = {requests} requests / (3,600 s x {hours}) = {show_number(wanted.mean_per_s)} requests/s"
    yield (
        f"planned for = {show_number(wanted.mean_per_s)} requests/s x peak factor {settings.peak_factor:g} "
        f"x (1 + buffer {settings.buffer:g}) = {show_number(wanted.planned_per_s)} requests/s"
    )


def _machine(settings: CostSettings, one: MachineCost) -> Iterator[str]:
    found, instance = settings.throughput, find_instance(settings.instance)
    yield f"throughput = {show_number(found.tokens_per_s)} {_counted(settings)} tokens/s: {found.label}"
    rate, factor = show_number(found.tokens_per_s), gpu_factor(settings, instance)
    if factor != 1:
        yield (
            f"one {one.name} = {rate} tokens/s x {instance.gpus} GPUs / {found.gpus} measured = "
            f"{show_number(exact(found.tokens_per_s) * factor)} tokens/s (each GPU by itself)"
        )
        rate = show_number(exact(found.tokens_per_s) * factor)
    counted = settings.output_tokens if found.counts == "output" else settings.tokens_per_request
    yield (
        f"requests of one machine = {rate} tokens/s / {counted:,} {_counted(settings)} tokens = "
        f"{show_number(one.requests_per_s)} requests/s"
    )
    yield f"price of an hour = {show_usd(one.usd_per_hour)}: {_price_source(settings)}"


def _fleet(settings: CostSettings, wanted: Demand, hosted: Fleet, one: MachineCost) -> Iterator[str]:
    yield (
        f"machines = {show_number(wanted.planned_per_s)} / {show_number(one.requests_per_s)} requests/s = "
        f"{show_number(wanted.planned_per_s / one.requests_per_s)}, rounded up, at least {settings.min_instances} = "
        f"{hosted.machines:,} ({hosted.gpus:,} GPUs)"
    )
    paid = f"{settings.paid_hours_per_day:g} h"
    yield (
        f"utilisation = {show_number(wanted.requests_per_day)} requests / ({hosted.machines:,} x "
        f"{show_number(one.requests_per_s)} requests/s x 3,600 s x {paid}) = {float(hosted.utilisation):.2%}"
    )
    hours = one.usd_per_hour * exact(settings.paid_hours_per_day)
    yield (
        f"a machine a day = {show_usd(one.usd_per_hour)} x {paid} + storage "
        f"{settings.model_gb:g} GB x {show_usd(exact(settings.storage_usd_per_gb_month))} x 12 / 365 = "
        f"{show_usd(hours)} + {show_usd(one.usd_per_day - hours)} = {show_usd(one.usd_per_day)}"
    )
    people = engineering_per_day(settings)
    yield (
        f"people a day = {settings.engineering_hours_per_month:g} h a month x "
        f"{show_usd(exact(settings.engineer_usd_per_hour))} x 12 / 365 = {show_usd(people)}"
    )
    yield (
        f"hosting a day = {hosted.machines:,} x {show_usd(one.usd_per_day)} + {show_usd(people)} = "
        f"{show_usd(hosted.usd_per_day)}; a month (x 365 / 12) = {show_usd(hosted.usd_per_month)}"
    )
    if hosted.usd_per_million_tokens is not None:
        yield (
            f"hosting, 1M tokens = {show_usd(hosted.usd_per_day)} / {show_number(wanted.tokens_per_day / MILLION)}M = "
            f"{show_usd(hosted.usd_per_million_tokens)}; 1K tokens = {show_usd(hosted.usd_per_million_tokens / 1000)}"
        )


def _interval(settings: CostSettings, dearest: Fleet, cheapest: Fleet) -> Iterator[str]:
    low, high = settings.throughput.bounds
    if low == high or dearest.usd_per_million_tokens is None or cheapest.usd_per_million_tokens is None:
        return
    yield (
        f"interval: {show_number(low)} to {show_number(high)} tokens/s measured -> {dearest.machines:,} to "
        f"{cheapest.machines:,} machines -> {show_usd(cheapest.usd_per_day)} to {show_usd(dearest.usd_per_day)} a day, "
        f"{show_usd(cheapest.usd_per_million_tokens)} to {show_usd(dearest.usd_per_million_tokens)} per 1M"
    )


def _explain_api(price: ApiPrice, wanted: Demand) -> str:
    return (
        f"{price.name}: {price.words} = {show_usd(price.usd_per_request)} a request; "
        f"x {show_number(wanted.requests_per_day)} = {show_usd(price.usd_per_request * wanted.requests_per_day)} a day"
    )


def _break_even(settings: CostSettings, price: ApiPrice, crossing: BreakEven) -> str:
    if crossing.first is None or crossing.for_good is None:
        return f"{price.name}: never; a full {settings.instance} costs more than the same tokens there"
    per_million = price.usd_per_request / settings.tokens_per_request * MILLION
    stays = "" if crossing.first == crossing.for_good else f", for good from {_millions(crossing.for_good)} on"
    return (
        f"{price.name}: hosting is as cheap at {show_usd(crossing.first * per_million / MILLION)} a day / "
        f"{show_usd(per_million)} per 1M = {_millions(crossing.first)} tokens a day{stays}"
    )


def _millions(tokens: Fraction) -> str:
    return f"{show_number(tokens / MILLION)}M"


def _counted(settings: CostSettings) -> str:
    return "written" if settings.throughput.counts == "output" else "read and written"


def _price_source(settings: CostSettings) -> str:
    if settings.usd_per_hour is not None:
        return "entered"
    price = find_instance(settings.instance).price(settings.prices_on)
    return f"{price.source}, read {price.read}" if price else "unknown"


# --- calculate ---


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


# --- sensitivity ---


NAMES = {
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
class Swing:
    """One input: the ratio of costs, hosting over API, with the input lowered and raised. `width` as a factor."""

    name: str
    lowered: float
    raised: float

    @property
    def width(self) -> float:
        """How far the answer moves, as a factor of 1 or more."""
        return max(self.lowered, self.raised) / min(self.lowered, self.raised)


def ratio(settings: CostSettings, *, api_factor: Fraction = Fraction(1)) -> float:
    """Cost of hosting over the cost at the first API. UsageError where the API's bill is nothing."""
    price = price_of_request(
        settings.api[0],
        input_tokens=settings.input_tokens or 0,
        output_tokens=settings.output_tokens or 0,
        on=settings.prices_on,
    )
    bill = price.usd_per_request * volume(settings) / settings.tokens_per_request * api_factor
    if not bill:
        raise UsageError(
            f"{price.name} costs nothing for this traffic", remedy="raise the traffic, or take another API"
        )
    return float(fleet(settings).usd_per_day / bill)


def sensitivity(settings: CostSettings, *, share: float = 0.25) -> tuple[Swing, ...]:
    """Every input lowered and raised by `share` (0 to below 1), the one that moves the answer most first."""
    if not 0 < share < 1:
        raise UsageError(f"the share is {share:g}", remedy="give one above 0 and below 1, such as 0.25")
    found = []
    for name in NAMES:
        low, high = (_ratio_with(settings, name, factor) for factor in (1 - exact(share), 1 + exact(share)))
        found.append(Swing(name=NAMES[name], lowered=low, raised=high))
    return tuple(sorted(found, key=lambda one: one.width, reverse=True))


def _ratio_with(settings: CostSettings, name: str, factor: Fraction) -> float:
    if name == "api_price":
        return ratio(settings, api_factor=factor)
    if name == "throughput":
        rate = settings.throughput.tokens_per_s * float(factor)
        return ratio(settings.changed(throughput=replace(settings.throughput, tokens_per_s=rate, low=None, high=None)))
    if name == "traffic":
        name = "requests_per_s" if settings.tokens_per_day is None else "tokens_per_day"
    if name == "usd_per_hour":
        return ratio(settings.changed(usd_per_hour=float(hour_price(settings) * factor)))
    return ratio(settings.changed(**{name: _within(settings, name, float(exact(getattr(settings, name)) * factor))}))


def _within(settings: CostSettings, name: str, value: float) -> float | int:
    """The value, kept inside its range: a day has 24 hours, and machines run at least as long as requests come."""
    _, low, high, _ = NUMBERS[name]
    if name == "paid_hours_per_day":
        low = max(low, settings.hours_per_day)
    inside = min(high, max(low, value))
    return round(inside) if name in WHOLE else inside
