"""How many machines a traffic needs, what they cost, and how busy they are. Everything is an exact fraction.

Formulas: with R requests a day, of which an hour has the share s, peak factor p, buffer b, and a machine that holds
whole replicas and answers mu requests a second,
    machines of an hour = max(least, ceil(R s / 3600 x p x (1 + b) / mu))
    machine hours       = their sum over the paid hours; of a reservation the largest number, 24 hours a day
    utilisation         = R / (machine hours x mu x 3600)
    cost a day          = machine hours x price + most machines x storage + engineering
"""

import math
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from labkit.advice.costs.prices import DAYS_PER_MONTH, MILLION, SECONDS_PER_HOUR, exact, find_instance
from labkit.advice.costs.settings import CostSettings

ROUNDS = 5000


@dataclass(frozen=True, kw_only=True)
class Demand:
    """The traffic: requests and tokens per day, and requests/s: the mean, and what the busiest hour is planned for.

    `hours`: paid hours, and the share of a day's requests that each of them has to be planned for, by share.
    """

    requests_per_day: Fraction
    tokens_per_day: Fraction
    mean_per_s: Fraction
    planned_per_s: Fraction
    hours: tuple[tuple[Fraction, Fraction], ...]


@dataclass(frozen=True, kw_only=True)
class MachineCost:
    """One machine: GPUs, whole replicas, dollars per hour, dollars of storage per day, and capacity in requests/s."""

    gpus: int
    replicas: int
    usd_per_hour: Fraction
    storage_usd: Fraction
    requests_per_s: Fraction


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Machines, GPUs and replicas of the busiest hour, dollars per day, and the share of the paid time in which they
    compute."""

    machines: int
    gpus: int
    replicas: int
    machine_hours: Fraction
    usd_per_day: Fraction
    utilisation: Fraction
    usd_per_million_tokens: Fraction | None

    @property
    def usd_per_month(self) -> Fraction:
        """Of 730 hours, a twelfth of a year."""
        return self.usd_per_day * DAYS_PER_MONTH


def demand(settings: CostSettings) -> Demand:
    hours = exact(settings.hours_per_day)
    if settings.tokens_per_day is not None:
        requests = exact(settings.tokens_per_day) / settings.tokens_per_request
    else:
        requests = exact(settings.requests_per_s or 0) * SECONDS_PER_HOUR * hours
    load = Counter(exact(each) for each in settings.hourly_load)
    total = sum((each * count for each, count in load.items()), Fraction(0))
    by_share = [(Fraction(count), each / total) for each, count in sorted(load.items())]
    by_share = by_share or [(exact(settings.paid_hours_per_day), 1 / hours)]
    busiest = by_share[-1][1]
    if settings.purchase.startswith("reserved"):
        by_share = [(Fraction(24), busiest)]
    spread = exact(settings.peak_factor) * (1 + exact(settings.buffer))
    return Demand(
        requests_per_day=requests,
        tokens_per_day=requests * settings.tokens_per_request,
        mean_per_s=requests / (SECONDS_PER_HOUR * hours),
        planned_per_s=requests * busiest * spread / SECONDS_PER_HOUR,
        hours=tuple((count, share * spread) for count, share in by_share),
    )


def machine(settings: CostSettings, tokens_per_s: float | None = None) -> MachineCost:
    """One machine of the settings, with another throughput if `tokens_per_s` says so.

    Where GPUs are rented one by one it has those of one replica.
    """
    instance, used, per_replica = find_instance(settings.instance), settings.used_throughput, settings.replica_gpus
    times = max(1, -(-per_replica // instance.gpus)) if instance.gpus else 1
    gpus = instance.gpus * times
    replicas = max(1, gpus // per_replica)
    rate = exact(used.tokens_per_s if tokens_per_s is None else tokens_per_s)
    if used.gpus and gpus:
        rate *= Fraction(per_replica * replicas, used.gpus)
    counted = settings.output_tokens if used.counts == "output" else settings.tokens_per_request
    storage_gb = exact(settings.weights_gb) * exact(settings.storage_usd_per_gb_month)
    return MachineCost(
        gpus=gpus,
        replicas=replicas,
        usd_per_hour=hour_price(settings) * times,
        storage_usd=storage_gb / DAYS_PER_MONTH,
        requests_per_s=rate / exact(counted or 1),
    )


def hour_price(settings: CostSettings) -> Fraction:
    """Dollars an hour of the instance: entered, or of the price list on the settings' day."""
    if settings.usd_per_hour is not None:
        return exact(settings.usd_per_hour)
    price = find_instance(settings.instance).price(settings.prices_on, settings.purchase)
    return price.usd_per_hour if price else exact(0)  # the settings have refused a machine without a price


def engineering_per_day(settings: CostSettings) -> Fraction:
    return exact(settings.engineering_hours_per_month) * exact(settings.engineer_usd_per_hour) / DAYS_PER_MONTH


def fleet(settings: CostSettings, tokens_per_s: float | None = None) -> Fleet:
    """The machines that the traffic needs, with another throughput if `tokens_per_s` says so."""
    wanted, single, stairs = demand(settings), machine(settings, tokens_per_s), staircase(settings, tokens_per_s)
    tokens = wanted.tokens_per_day
    count, usd = max(stairs.machines(tokens)), stairs.usd_per_day(tokens)
    hours = stairs.machine_hours(tokens)
    return Fleet(
        machines=count,
        gpus=count * single.gpus,
        replicas=count * single.replicas,
        machine_hours=hours,
        usd_per_day=usd,
        utilisation=wanted.requests_per_day / (hours * single.requests_per_s * SECONDS_PER_HOUR),
        usd_per_million_tokens=usd * MILLION / tokens if tokens else None,
    )


@dataclass(frozen=True, kw_only=True)
class Staircase:
    """The cost of hosting as a function of the volume: dollars a day, tokens a day.

    `steps`: paid hours, and the share of a machine that a token of the day's volume takes in each of them.
    """

    fixed_usd: Fraction
    hour_usd: Fraction
    storage_usd: Fraction
    steps: tuple[tuple[Fraction, Fraction], ...]
    least: int

    def machines(self, tokens_per_day: Fraction) -> list[int]:
        """Machines for a volume, in the hours of each step."""
        return [max(self.least, math.ceil(tokens_per_day * share)) for _, share in self.steps]

    def machine_hours(self, tokens_per_day: Fraction) -> Fraction:
        counts = self.machines(tokens_per_day)
        return sum((hours * count for (hours, _), count in zip(self.steps, counts, strict=True)), Fraction(0))

    def usd_per_day(self, tokens_per_day: Fraction) -> Fraction:
        storage = self.storage_usd * max(self.machines(tokens_per_day))
        return self.fixed_usd + storage + self.hour_usd * self.machine_hours(tokens_per_day)


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """Tokens a day: `first` where hosting becomes cheaper, `for_good` from where it stays so; None: never."""

    first: Fraction | None
    for_good: Fraction | None


def staircase(settings: CostSettings, tokens_per_s: float | None = None) -> Staircase:
    """The settings' cost of hosting for any volume of their mix and clock."""
    single = machine(settings, tokens_per_s)
    tokens_an_hour = single.requests_per_s * SECONDS_PER_HOUR * settings.tokens_per_request
    return Staircase(
        fixed_usd=engineering_per_day(settings),
        hour_usd=single.usd_per_hour,
        storage_usd=single.storage_usd,
        steps=tuple((hours, share / tokens_an_hour) for hours, share in demand(settings).hours),
        least=settings.min_instances,
    )


def break_even(stairs: Staircase, usd_per_token: Fraction) -> BreakEven:
    """Where the staircase falls below the API's line.

    volume -> cost of it in tokens of the API never falls, so from below its iteration ends at the first point where
    both bills are equal, and from above at the last one.
    """
    hours = sum((hours for hours, _ in stairs.steps), Fraction(0))
    slope = sum((hours * share * stairs.hour_usd for hours, share in stairs.steps), Fraction(0))
    slope += max(share for _, share in stairs.steps) * stairs.storage_usd
    gain, one_more = usd_per_token - slope, hours * stairs.hour_usd + stairs.storage_usd
    if gain <= 0:
        return BreakEven(first=None, for_good=None)
    least = stairs.usd_per_day(Fraction(0))
    surely = (least + one_more) / gain
    found = []
    for volume in (max(least / usd_per_token, stairs.fixed_usd / gain), surely):
        for _ in range(ROUNDS):
            volume, before = stairs.usd_per_day(volume) / usd_per_token, volume
            if volume == before:
                break
        else:  # the lines run side by side: hosting is cheaper from here on at the latest
            volume = surely
        found.append(volume)
    return BreakEven(first=found[0], for_good=found[1])
