"""How many machines a traffic needs, what they cost, and how busy they are. Everything is an exact fraction.

Formulas: with R requests a day of T tokens, h hours of traffic, peak factor p and buffer b, a machine that answers mu
requests a second, and H paid hours,
    machines     = max(least, ceil(R / (3600 h) x p x (1 + b) / mu))
    utilisation  = R / (machines x mu x 3600 H)
    cost a day   = machines x (price x H + storage) + engineering
"""

import math
from dataclasses import dataclass
from fractions import Fraction

from labkit.advice.costs.prices import DAYS_PER_MONTH, MILLION, SECONDS_PER_HOUR, Instance, exact, find_instance
from labkit.advice.costs.settings import CostSettings


@dataclass(frozen=True, kw_only=True)
class Demand:
    """The traffic: requests and tokens per day, and requests/s: the mean, and what the machines are planned for."""

    requests_per_day: Fraction
    tokens_per_day: Fraction
    mean_per_s: Fraction
    planned_per_s: Fraction


@dataclass(frozen=True, kw_only=True)
class MachineCost:
    """One machine: its price per hour, its cost per day with storage, and its capacity in requests/s."""

    gpus: int
    usd_per_hour: Fraction
    usd_per_day: Fraction
    requests_per_s: Fraction


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Machines and GPUs needed, dollars per day, and the share of the paid time in which they compute."""

    machines: int
    gpus: int
    usd_per_day: Fraction
    utilisation: Fraction
    usd_per_million_tokens: Fraction | None

    @property
    def usd_per_month(self) -> Fraction:
        """Of 730 hours, a twelfth of a year."""
        return self.usd_per_day * DAYS_PER_MONTH


def demand(settings: CostSettings) -> Demand:
    """The traffic that the settings describe."""
    hours = exact(settings.hours_per_day)
    if settings.tokens_per_day is not None:
        requests = exact(settings.tokens_per_day) / settings.tokens_per_request
    else:
        requests = exact(settings.requests_per_s or 0) * SECONDS_PER_HOUR * hours
    mean = requests / (SECONDS_PER_HOUR * hours)
    return Demand(
        requests_per_day=requests,
        tokens_per_day=requests * settings.tokens_per_request,
        mean_per_s=mean,
        planned_per_s=mean * exact(settings.peak_factor) * (1 + exact(settings.buffer)),
    )


def machine(settings: CostSettings, tokens_per_s: float | None = None) -> MachineCost:
    """One machine of the settings, with another throughput if `tokens_per_s` says so."""
    instance = find_instance(settings.instance)
    per_hour = hour_price(settings)
    storage = exact(settings.model_gb) * exact(settings.storage_usd_per_gb_month) / DAYS_PER_MONTH
    rate = settings.throughput.tokens_per_s if tokens_per_s is None else tokens_per_s
    counted = settings.output_tokens if settings.throughput.counts == "output" else settings.tokens_per_request
    return MachineCost(
        gpus=instance.gpus,
        usd_per_hour=per_hour,
        usd_per_day=per_hour * exact(settings.paid_hours_per_day) + storage,
        requests_per_s=exact(rate) * gpu_factor(settings, instance) / exact(counted or 1),
    )


def hour_price(settings: CostSettings) -> Fraction:
    """Dollars an hour of one machine: entered, or of the price list on the settings' day."""
    if settings.usd_per_hour is not None:
        return exact(settings.usd_per_hour)
    price = find_instance(settings.instance).price(settings.prices_on)
    return price.usd_per_hour if price else exact(0)  # the settings have refused a machine without a price


def gpu_factor(settings: CostSettings, instance: Instance) -> Fraction:
    """GPUs of the machine over the GPUs that were measured: each GPU serves a replica of its own."""
    measured_on = settings.throughput.gpus
    return Fraction(instance.gpus, measured_on) if measured_on and instance.gpus else Fraction(1)


def engineering_per_day(settings: CostSettings) -> Fraction:
    """What people's time costs a day."""
    return exact(settings.engineering_hours_per_month) * exact(settings.engineer_usd_per_hour) / DAYS_PER_MONTH


def fleet(settings: CostSettings, tokens_per_s: float | None = None) -> Fleet:
    """The machines that the traffic needs, with another throughput if `tokens_per_s` says so."""
    wanted, single = demand(settings), machine(settings, tokens_per_s)
    count = max(settings.min_instances, math.ceil(wanted.planned_per_s / single.requests_per_s))
    usd = count * single.usd_per_day + engineering_per_day(settings)
    paid_s = SECONDS_PER_HOUR * exact(settings.paid_hours_per_day)
    tokens = wanted.tokens_per_day
    return Fleet(
        machines=count,
        gpus=count * single.gpus,
        usd_per_day=usd,
        utilisation=wanted.requests_per_day / (count * single.requests_per_s * paid_s),
        usd_per_million_tokens=usd * MILLION / tokens if tokens else None,
    )


@dataclass(frozen=True, kw_only=True)
class Staircase:
    """The cost of hosting as a function of the volume: dollars a day, tokens a day."""

    fixed_usd: Fraction
    machine_usd: Fraction
    machine_tokens: Fraction
    least: int

    def machines(self, tokens_per_day: Fraction) -> int:
        """Machines for a volume."""
        return max(self.least, math.ceil(tokens_per_day / self.machine_tokens))

    def usd_per_day(self, tokens_per_day: Fraction) -> Fraction:
        """The cost of a volume."""
        return self.fixed_usd + self.machines(tokens_per_day) * self.machine_usd


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """Tokens a day: `first` where hosting becomes cheaper, `for_good` from where it stays so; None: never."""

    first: Fraction | None
    for_good: Fraction | None


def staircase(settings: CostSettings, tokens_per_s: float | None = None) -> Staircase:
    """The settings' cost of hosting for any volume of their mix and clock."""
    single, spread = machine(settings, tokens_per_s), exact(settings.peak_factor) * (1 + exact(settings.buffer))
    requests = single.requests_per_s / spread * SECONDS_PER_HOUR * exact(settings.hours_per_day)
    return Staircase(
        fixed_usd=engineering_per_day(settings),
        machine_usd=single.usd_per_day,
        machine_tokens=requests * settings.tokens_per_request,
        least=settings.min_instances,
    )


def break_even(stairs: Staircase, usd_per_token: Fraction) -> BreakEven:
    """Where the staircase falls below the API's line."""
    gain = usd_per_token * stairs.machine_tokens - stairs.machine_usd  # of one more machine, when it is full
    if gain <= 0:
        return BreakEven(first=None, for_good=None)
    first, for_good = (
        (stairs.fixed_usd + max(stairs.least, math.ceil(usd / gain)) * stairs.machine_usd) / usd_per_token
        for usd in (stairs.fixed_usd, stairs.fixed_usd + stairs.machine_usd)
    )
    return BreakEven(first=first, for_good=for_good)
