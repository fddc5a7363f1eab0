"""The calculation behind an answer, line by line: traffic, one machine, the fleet, its cost, the APIs, break-evens."""

from collections.abc import Iterator

from labkit.advice.costs.calculate import CostResult
from labkit.advice.costs.machines import BreakEven, Demand, Fleet, MachineCost, engineering_per_day, machine, staircase
from labkit.advice.costs.prices import (
    MILLION,
    ApiPrice,
    exact,
    find_instance,
    millions,
    show_gpus,
    show_number,
    show_usd,
)
from labkit.advice.costs.settings import CostSettings


def explain(result: CostResult) -> tuple[str, ...]:
    settings, traffic, single = result.settings, result.demand, machine(result.settings)
    lines = [
        *_traffic(settings, traffic),
        *_machine(settings, single),
        *_fleet(settings, traffic, result.hosted, single),
        *_interval(settings, result.dearest, result.cheapest),
    ]
    for api in result.api:
        day = f"x {show_number(traffic.requests_per_day)} = {show_usd(api.usd_per_day)} a day"
        lines.append(f"{api.price.name}: {api.price.words} = {show_usd(api.price.usd_per_request)} a request; {day}")
        lines.append(_break_even(result, api.price, api.break_even))
    return tuple(lines)


def _traffic(settings: CostSettings, traffic: Demand) -> Iterator[str]:
    per_request = f"({settings.input_tokens:,} + {settings.output_tokens:,} tokens)"
    requests, tokens = show_number(traffic.requests_per_day), show_number(traffic.tokens_per_day)
    mean, hours = show_number(traffic.mean_per_s), f"{settings.hours_per_day:g} h"
    if settings.tokens_per_day is not None:
        yield f"requests a day = {tokens} tokens / {per_request} = {requests}"
    else:
        yield f"requests a day = {settings.requests_per_s:g} requests/s x 3,600 s x {hours} = {requests}"
        yield f"tokens a day = {requests} requests x {per_request} = {tokens}"
    yield f"mean rate = {requests} requests / (3,600 s x {hours}) = {mean} requests/s"
    busiest = mean
    if settings.hourly_load:
        share = max(settings.hourly_load) / sum(settings.hourly_load)
        busiest = show_number(traffic.requests_per_day * exact(share) / 3600)
        yield f"busiest hour = {share:.2%} of the day's requests / 3,600 s = {busiest} requests/s"
    yield (
        f"planned rate = {busiest} requests/s x peak factor {settings.peak_factor:g} "
        f"x (1 + buffer {settings.buffer:g}) = {show_number(traffic.planned_per_s)} requests/s"
    )


def _machine(settings: CostSettings, single: MachineCost) -> Iterator[str]:
    used, instance = settings.used_throughput, find_instance(settings.instance)
    outputs = used.counts == "output"
    kind, counted = ("output", settings.output_tokens) if outputs else ("input and output", settings.tokens_per_request)
    rate, whole = show_number(used.tokens_per_s), show_number(single.requests_per_s * (counted or 1))
    yield f"throughput = {rate} {kind} tokens/s: {used.label}"
    if used.gpus and single.gpus:
        yield (
            f"one machine = {rate} tokens/s / {show_gpus(used.gpus)} x {single.replicas} whole replicas of "
            f"{show_gpus(settings.replica_gpus)} = {whole} tokens/s"
        )
    yield (
        f"requests of one machine = {whole} tokens/s / {counted:,} {kind} tokens = "
        f"{show_number(single.requests_per_s)} requests/s"
    )
    price = instance.price(settings.prices_on, settings.purchase)
    source = "entered" if settings.usd_per_hour is not None or not price else price.words
    times = f" for {single.gpus} GPUs" if single.gpus > instance.gpus else ""
    yield f"price of an hour = {show_usd(single.usd_per_hour)}{times}: {source}"


def _fleet(settings: CostSettings, traffic: Demand, hosted: Fleet, single: MachineCost) -> Iterator[str]:
    capacity, replicas = show_number(single.requests_per_s), "replica" if hosted.replicas == 1 else "replicas"
    yield (
        f"machines = {show_number(traffic.planned_per_s)} / {capacity} requests/s = "
        f"{show_number(traffic.planned_per_s / single.requests_per_s)}, rounded up, at least {settings.min_instances} "
        f"= {hosted.machines:,} ({hosted.replicas:,} {replicas}, {show_gpus(hosted.gpus)})"
    )
    hours = show_number(hosted.machine_hours)
    if settings.hourly_load:
        yield f"machine hours a day = {hours}: {_by_hour(settings, traffic)}"
    else:
        hours_each = show_number(hosted.machine_hours / hosted.machines)
        yield f"machine hours a day = {hosted.machines:,} x {hours_each} h = {hours}"
    yield (
        f"utilisation = {show_number(traffic.requests_per_day)} requests / ({hours} h x "
        f"{capacity} requests/s x 3,600 s) = {float(hosted.utilisation):.2%}"
    )
    machines, storage = single.usd_per_hour * hosted.machine_hours, single.storage_usd * hosted.machines
    yield f"machines a day = {hours} h x {show_usd(single.usd_per_hour)} = {show_usd(machines)}"
    yield (
        f"storage a day = {hosted.machines:,} x {settings.weights_gb:g} GB x "
        f"{show_usd(exact(settings.storage_usd_per_gb_month))} x 12 / 365 = {show_usd(storage)}"
    )
    people = engineering_per_day(settings)
    yield (
        f"people a day = {settings.engineering_hours_per_month:g} h a month x "
        f"{show_usd(exact(settings.engineer_usd_per_hour))} x 12 / 365 = {show_usd(people)}"
    )
    yield (
        f"hosting a day = {show_usd(machines)} + {show_usd(storage)} + {show_usd(people)} = "
        f"{show_usd(hosted.usd_per_day)}; a month (x 365 / 12) = {show_usd(hosted.usd_per_month)}"
    )
    per_million = hosted.usd_per_million_tokens
    if per_million is not None:
        yield (
            f"hosting, 1M tokens = {show_usd(hosted.usd_per_day)} / {millions(traffic.tokens_per_day)} = "
            f"{show_usd(per_million)}; 1K tokens = {show_usd(per_million / 1000)}"
        )


def _by_hour(settings: CostSettings, traffic: Demand) -> str:
    if settings.purchase.startswith("reserved"):
        return "the busiest hour's machines, reserved for 24 h"
    counts = staircase(settings).machines(traffic.tokens_per_day)
    machines = dict(zip(sorted(set(settings.hourly_load)), counts, strict=True))
    return "machines from midnight on: " + " ".join(str(machines[load]) for load in settings.hourly_load)


def _interval(settings: CostSettings, dearest: Fleet, cheapest: Fleet) -> Iterator[str]:
    bounds = settings.used_throughput.bounds
    if bounds is None or dearest.usd_per_million_tokens is None or cheapest.usd_per_million_tokens is None:
        return
    yield (
        f"interval: {show_number(bounds[0])} to {show_number(bounds[1])} tokens/s -> {dearest.machines:,} to "
        f"{cheapest.machines:,} machines -> {show_usd(cheapest.usd_per_day)} to {show_usd(dearest.usd_per_day)} a day, "
        f"{show_usd(cheapest.usd_per_million_tokens)} to {show_usd(dearest.usd_per_million_tokens)} per 1M"
    )


def _break_even(result: CostResult, price: ApiPrice, crossing: BreakEven) -> str:
    settings, per_token = result.settings, price.usd_per_request / result.settings.tokens_per_request
    if crossing.first is None or crossing.for_good is None:
        own, busy = result.stairs.usd_per_planned_token, f"{float(result.demand.most_busy):.0%} busy"
        usd = f"{show_usd(own * MILLION)} per 1M without people, {show_usd(per_token * MILLION)} there"
        return f"{price.name}: no break-even; {settings.instance} {busy}, the most that peaks and buffer allow: {usd}"
    stays = "" if crossing.first == crossing.for_good else f", for good from {millions(crossing.for_good)} on"
    return (
        f"{price.name}: break-even at {show_usd(crossing.first * per_token)} a day / "
        f"{show_usd(per_token * MILLION)} per 1M = {millions(crossing.first)} tokens a day{stays}"
    )
