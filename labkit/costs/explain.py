"""The calculator's arithmetic in words and numbers, one sum a line."""

from collections.abc import Iterator, Sequence
from fractions import Fraction

from labkit.costs.break_even import BreakEven
from labkit.costs.catalogue import ApiPrice, find_instance
from labkit.costs.fleet import Demand, Fleet, MachineCost, engineering_per_day, gpu_factor, machine
from labkit.costs.money import MILLION, exact, show_number, show_usd
from labkit.costs.settings import CostSettings


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
        yield _api(price, wanted)
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


def _api(price: ApiPrice, wanted: Demand) -> str:
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
