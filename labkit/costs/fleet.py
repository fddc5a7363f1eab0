"""How many machines a traffic needs, what they cost, and how busy they are. Everything is an exact fraction.

Formulas: with R requests a day of T tokens, h hours of traffic, peak factor p and buffer b, a machine that answers mu
requests a second, and H paid hours,
    machines     = max(least, ceil(R / (3600 h) x p x (1 + b) / mu))
    utilisation  = R / (machines x mu x 3600 H)
    cost a day   = machines x (price x H + storage) + engineering
"""

from dataclasses import dataclass
from fractions import Fraction

from labkit.costs.catalogue import Instance, find_instance
from labkit.costs.money import DAYS_PER_MONTH, MILLION, SECONDS_PER_HOUR, exact
from labkit.costs.settings import CostSettings


@dataclass(frozen=True, kw_only=True)
class Demand:
    """The traffic: requests and tokens a day, and requests a second in the mean, in the peak and with the buffer."""

    requests_per_day: Fraction
    tokens_per_day: Fraction
    mean_per_s: Fraction
    peak_per_s: Fraction
    planned_per_s: Fraction


@dataclass(frozen=True, kw_only=True)
class MachineCost:
    """One machine: its price an hour, its cost a day with storage, and the requests a second that it answers."""

    name: str
    gpus: int
    usd_per_hour: Fraction
    usd_per_day: Fraction
    requests_per_s: Fraction


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What is needed: machines and GPUs, dollars a day, and the share of the paid time in which they compute."""

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
    peak = mean * exact(settings.peak_factor)
    return Demand(
        requests_per_day=requests,
        tokens_per_day=requests * settings.tokens_per_request,
        mean_per_s=mean,
        peak_per_s=peak,
        planned_per_s=peak * (1 + exact(settings.buffer)),
    )


def machine(settings: CostSettings, tokens_per_s: float | None = None) -> MachineCost:
    """One machine of the settings, with another throughput if `tokens_per_s` says so."""
    instance = find_instance(settings.instance)
    per_hour = hour_price(settings)
    storage = exact(settings.model_gb) * exact(settings.storage_usd_per_gb_month) / DAYS_PER_MONTH
    rate = settings.throughput.tokens_per_s if tokens_per_s is None else tokens_per_s
    counted = settings.output_tokens if settings.throughput.counts == "output" else settings.tokens_per_request
    return MachineCost(
        name=settings.instance,
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
    """By how much the machine's GPUs exceed those that were measured: one replica on each, none in another's way."""
    measured_on = settings.throughput.gpus
    return Fraction(instance.gpus, measured_on) if measured_on and instance.gpus else Fraction(1)


def engineering_per_day(settings: CostSettings) -> Fraction:
    """What people's time costs a day."""
    return exact(settings.engineering_hours_per_month) * exact(settings.engineer_usd_per_hour) / DAYS_PER_MONTH


def fleet(settings: CostSettings, tokens_per_s: float | None = None) -> Fleet:
    """The machines that the traffic needs, with another throughput if `tokens_per_s` says so."""
    wanted, one = demand(settings), machine(settings, tokens_per_s)
    needed = wanted.planned_per_s / one.requests_per_s
    count = max(settings.min_instances, ceiling(needed))
    usd = count * one.usd_per_day + engineering_per_day(settings)
    paid_s = SECONDS_PER_HOUR * exact(settings.paid_hours_per_day)
    tokens = wanted.tokens_per_day
    return Fleet(
        machines=count,
        gpus=count * one.gpus,
        usd_per_day=usd,
        utilisation=wanted.requests_per_day / (count * one.requests_per_s * paid_s),
        usd_per_million_tokens=usd * MILLION / tokens if tokens else None,
    )


def ceiling(value: Fraction) -> int:
    """The smallest whole number that is not below `value`."""
    return -(-value.numerator // value.denominator)
