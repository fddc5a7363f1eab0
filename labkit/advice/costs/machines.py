"""Calculate how many machines the traffic needs, what they cost and how busy they are, in exact fractions.

With R requests per day, of which an hour has the share s, peak factor p, buffer b, and mu requests/s per machine:
    machines in an hour = max(least, ceil(R s / 3600 x p x (1 + b) / mu))
    machine hours       = their sum over the paid hours; for a reservation 24 times the largest
    utilisation         = R / (machine hours x mu x 3600)
    cost per day        = machine hours x price + most machines x storage + engineering
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
    """The traffic: requests and tokens per day, the mean rate, and the rate planned for the busiest hour.

    `hours`: numbers of paid hours, each with the share of the day's requests that such an hour is planned for.
    """

    requests_per_day: Fraction
    tokens_per_day: Fraction
    mean_per_s: Fraction
    planned_per_s: Fraction
    hours: tuple[tuple[Fraction, Fraction], ...]

    @property
    def most_busy(self) -> Fraction:
        """The busy share of machines that exactly fit the planned rate: peaks and buffer leave the rest idle."""
        return 1 / sum((hours * share for hours, share in self.hours), Fraction(0))


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
    """Machines, GPUs and replicas in the busiest hour, dollars per day, and the busy share of the paid time."""

    machines: int
    gpus: int
    replicas: int
    machine_hours: Fraction
    usd_per_day: Fraction
    utilisation: Fraction
    usd_per_million_tokens: Fraction | None

    @property
    def usd_per_month(self) -> Fraction:
        return self.usd_per_day * DAYS_PER_MONTH


def demand(settings: CostSettings) -> Demand:
    hours = exact(settings.hours_per_day)
    if settings.tokens_per_day is not None:
        requests = exact(settings.tokens_per_day) / settings.tokens_per_request
    else:
        requests = exact(settings.requests_per_s or 0) * SECONDS_PER_HOUR * hours
    loads = Counter(exact(load) for load in settings.hourly_load)
    total = sum((load * count for load, count in loads.items()), Fraction(0))
    by_share = [(Fraction(count), load / total) for load, count in sorted(loads.items())]
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
    """Return one machine of the settings, at `tokens_per_s` if given.

    If GPUs are rented one by one, it has the GPUs of one replica.
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
    """Return dollars per hour of the instance: entered, or listed for the settings' day."""
    if settings.usd_per_hour is not None:
        return exact(settings.usd_per_hour)
    price = find_instance(settings.instance).price(settings.prices_on, settings.purchase)
    return price.usd_per_hour if price else exact(0)  # CostSettings refuses a machine without a price


def engineering_per_day(settings: CostSettings) -> Fraction:
    return exact(settings.engineering_hours_per_month) * exact(settings.engineer_usd_per_hour) / DAYS_PER_MONTH


def fleet(settings: CostSettings, tokens_per_s: float | None = None) -> Fleet:
    """Return the machines that the traffic needs, at `tokens_per_s` if given."""
    traffic, single, stairs = demand(settings), machine(settings, tokens_per_s), staircase(settings, tokens_per_s)
    tokens = traffic.tokens_per_day
    count, usd, hours = max(stairs.machines(tokens)), stairs.usd_per_day(tokens), stairs.machine_hours(tokens)
    return Fleet(
        machines=count,
        gpus=count * single.gpus,
        replicas=count * single.replicas,
        machine_hours=hours,
        usd_per_day=usd,
        utilisation=traffic.requests_per_day / (hours * single.requests_per_s * SECONDS_PER_HOUR),
        usd_per_million_tokens=usd * MILLION / tokens if tokens else None,
    )


@dataclass(frozen=True, kw_only=True)
class Staircase:
    """The cost of hosting in dollars per day as a function of the volume in tokens per day.

    `steps`: numbers of paid hours, each with the machines that such an hour needs per token of the day's volume.
    """

    fixed_usd: Fraction
    hour_usd: Fraction
    storage_usd: Fraction
    steps: tuple[tuple[Fraction, Fraction], ...]
    least: int

    @property
    def usd_per_planned_token(self) -> Fraction:
        """Dollars per token of many machines, each as busy as peaks and buffer allow, without the fixed costs."""
        hours = sum((hours * share for hours, share in self.steps), Fraction(0))
        return self.hour_usd * hours + self.storage_usd * max(share for _, share in self.steps)

    def machines(self, tokens_per_day: Fraction) -> list[int]:
        """Return the machines for a volume, step by step."""
        return [max(self.least, math.ceil(tokens_per_day * share)) for _, share in self.steps]

    def machine_hours(self, tokens_per_day: Fraction) -> Fraction:
        counts = self.machines(tokens_per_day)
        return sum((hours * count for (hours, _), count in zip(self.steps, counts, strict=True)), Fraction(0))

    def usd_per_day(self, tokens_per_day: Fraction) -> Fraction:
        storage = self.storage_usd * max(self.machines(tokens_per_day))
        return self.fixed_usd + storage + self.hour_usd * self.machine_hours(tokens_per_day)


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """Tokens per day: hosting becomes cheaper at `first` and stays cheaper from `for_good` on; None: never."""

    first: Fraction | None
    for_good: Fraction | None


def staircase(settings: CostSettings, tokens_per_s: float | None = None) -> Staircase:
    """Return the cost of hosting for any volume with the settings' mix and load by hour."""
    single = machine(settings, tokens_per_s)
    tokens_per_hour = single.requests_per_s * SECONDS_PER_HOUR * settings.tokens_per_request
    return Staircase(
        fixed_usd=engineering_per_day(settings),
        hour_usd=single.usd_per_hour,
        storage_usd=single.storage_usd,
        steps=tuple((hours, share / tokens_per_hour) for hours, share in demand(settings).hours),
        least=settings.min_instances,
    )


def break_even(stairs: Staircase, usd_per_token: Fraction) -> BreakEven:
    """Return where the staircase falls below the API's line.

    The map from a volume to the API tokens that its hosting would buy is monotonic. Iterated from below it ends at the
    first volume at which both bills are equal, from above at the last.
    """
    hours = sum((hours for hours, _ in stairs.steps), Fraction(0))
    gain, step_usd = usd_per_token - stairs.usd_per_planned_token, hours * stairs.hour_usd + stairs.storage_usd
    if gain <= 0:
        return BreakEven(first=None, for_good=None)
    least_usd = stairs.usd_per_day(Fraction(0))
    upper_bound = (least_usd + step_usd) / gain
    crossings = []
    for volume in (max(least_usd / usd_per_token, stairs.fixed_usd / gain), upper_bound):
        for _ in range(ROUNDS):
            volume, before = stairs.usd_per_day(volume) / usd_per_token, volume
            if volume == before:
                break
        else:  # both bills grow almost alike
            volume = upper_bound
        crossings.append(volume)
    return BreakEven(first=crossings[0], for_good=crossings[1])
