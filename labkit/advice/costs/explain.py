"""The sums behind an answer, one per line: traffic, one machine, how many, what they cost, the APIs, the break-even."""

from collections.abc import Iterator, Sequence
from fractions import Fraction

from labkit.advice.costs.machines import (
    BreakEven,
    Demand,
    Fleet,
    MachineCost,
    engineering_per_day,
    gpu_factor,
    machine,
)
from labkit.advice.costs.prices import MILLION, ApiPrice, exact, find_instance, show_number, show_usd
from labkit.advice.costs.settings import CostSettings


def explain(
    settings: CostSettings,
    wanted: Demand,
    hosted: Fleet,
    ends: tuple[Fleet, Fleet],
    api: Sequence[tuple[ApiPrice, BreakEven]],
) -> Iterator[str]:
    """All sums in order. `ends`: hosting at the low and at the high end of the throughput's interval."""
    single = machine(settings)
    yield from _traffic(settings, wanted)
    yield from _machine(settings, single)
    yield from _fleet(settings, wanted, hosted, single)
    yield from _interval(settings, *ends)
    for price, crossing in api:
        requests, usd = wanted.requests_per_day, price.usd_per_request
        a_day = f"x {show_number(requests)} = {show_usd(usd * requests)} a day"
        yield f"{price.name}: {price.words} = {show_usd(usd)} a request; {a_day}"
        yield _break_even(settings, price, crossing)


def millions(tokens: Fraction) -> str:
    """Tokens in millions: 35.56M."""
    return f"{show_number(tokens / MILLION)}M"


def _traffic(settings: CostSettings, wanted: Demand) -> Iterator[str]:
    per_request = f"({settings.input_tokens:,} + {settings.output_tokens:,} tokens)"
    requests, tokens = show_number(wanted.requests_per_day), show_number(wanted.tokens_per_day)
    mean, hours = show_number(wanted.mean_per_s), f"{settings.hours_per_day:g} h"
    if settings.tokens_per_day is not None:
        yield f"requests a day = {tokens} tokens / {per_request} = {requests}"
    else:
        yield f"requests a day = {settings.requests_per_s:g} requests/s x 3,600 s x {hours} = {requests}"
        yield f"tokens a day = {requests} requests x {per_request} = {tokens}"
    yield f"mean rate = {requests} requests / (3,600 s x {hours}) = {mean} requests/s"
    yield (
        f"planned for = {mean} requests/s x peak factor {settings.peak_factor:g} "
        f"x (1 + buffer {settings.buffer:g}) = {show_number(wanted.planned_per_s)} requests/s"
    )


def _machine(settings: CostSettings, single: MachineCost) -> Iterator[str]:
    throughput, instance = settings.throughput, find_instance(settings.instance)
    outputs = throughput.counts == "output"
    kind, counted = (
        ("written", settings.output_tokens) if outputs else ("read and written", settings.tokens_per_request)
    )
    rate, factor = show_number(throughput.tokens_per_s), gpu_factor(settings, instance)
    yield f"throughput = {rate} {kind} tokens/s: {throughput.label}"
    if factor != 1:
        whole = show_number(exact(throughput.tokens_per_s) * factor)
        yield (
            f"one {settings.instance} = {rate} tokens/s x {instance.gpus} GPUs / {throughput.gpus} measured = "
            f"{whole} tokens/s (each GPU by itself)"
        )
        rate = whole
    yield (
        f"requests of one machine = {rate} tokens/s / {counted:,} {kind} tokens = "
        f"{show_number(single.requests_per_s)} requests/s"
    )
    price = instance.price(settings.prices_on)
    source = "entered" if settings.usd_per_hour is not None or not price else f"{price.source}, read {price.read}"
    yield f"price of an hour = {show_usd(single.usd_per_hour)}: {source}"


def _fleet(settings: CostSettings, wanted: Demand, hosted: Fleet, single: MachineCost) -> Iterator[str]:
    capacity, paid = show_number(single.requests_per_s), f"{settings.paid_hours_per_day:g} h"
    yield (
        f"machines = {show_number(wanted.planned_per_s)} / {capacity} requests/s = "
        f"{show_number(wanted.planned_per_s / single.requests_per_s)}, rounded up, at least {settings.min_instances} = "
        f"{hosted.machines:,} ({hosted.gpus:,} GPUs)"
    )
    yield (
        f"utilisation = {show_number(wanted.requests_per_day)} requests / ({hosted.machines:,} x "
        f"{capacity} requests/s x 3,600 s x {paid}) = {float(hosted.utilisation):.2%}"
    )
    hours = single.usd_per_hour * exact(settings.paid_hours_per_day)
    yield (
        f"a machine a day = {show_usd(single.usd_per_hour)} x {paid} + storage "
        f"{settings.model_gb:g} GB x {show_usd(exact(settings.storage_usd_per_gb_month))} x 12 / 365 = "
        f"{show_usd(hours)} + {show_usd(single.usd_per_day - hours)} = {show_usd(single.usd_per_day)}"
    )
    people = engineering_per_day(settings)
    yield (
        f"people a day = {settings.engineering_hours_per_month:g} h a month x "
        f"{show_usd(exact(settings.engineer_usd_per_hour))} x 12 / 365 = {show_usd(people)}"
    )
    yield (
        f"hosting a day = {hosted.machines:,} x {show_usd(single.usd_per_day)} + {show_usd(people)} = "
        f"{show_usd(hosted.usd_per_day)}; a month (x 365 / 12) = {show_usd(hosted.usd_per_month)}"
    )
    per_million = hosted.usd_per_million_tokens
    if per_million is not None:
        yield (
            f"hosting, 1M tokens = {show_usd(hosted.usd_per_day)} / {millions(wanted.tokens_per_day)} = "
            f"{show_usd(per_million)}; 1K tokens = {show_usd(per_million / 1000)}"
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


def _break_even(settings: CostSettings, price: ApiPrice, crossing: BreakEven) -> str:
    if crossing.first is None or crossing.for_good is None:
        return f"{price.name}: never; a full {settings.instance} costs more than the same tokens there"
    per_token = price.usd_per_request / settings.tokens_per_request
    stays = "" if crossing.first == crossing.for_good else f", for good from {millions(crossing.for_good)} on"
    return (
        f"{price.name}: hosting is as cheap at {show_usd(crossing.first * per_token)} a day / "
        f"{show_usd(per_token * MILLION)} per 1M = {millions(crossing.first)} tokens a day{stays}"
    )
