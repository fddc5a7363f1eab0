"""A day of traffic: its curve, the replicas of each hour, and what they cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from labkit.capstone.fleet import Fleet
from labkit.costs import calculate, settings_from
from labkit.costs.fleet import Fleet as PaidFleet
from labkit.costs.money import exact
from labkit.errors import UsageError

HOURS = 24
BUSIEST_HOUR = 14


@dataclass(frozen=True, kw_only=True)
class Hour:
    """An hour of the day, its mean rate (requests a second) and the replicas that keep the promise in it."""

    hour: int
    rate: float
    replicas: int


def day(peak_rate: float, *, night_share: float) -> tuple[float, ...]:
    """24 rates: a cosine from `night_share` of the peak, at two in the night, to the peak at two in the afternoon.

    An assumption; take your own log's counts where you have them."""
    if peak_rate <= 0 or not 0 < night_share <= 1:
        raise UsageError(
            f"a day with a peak of {peak_rate:g} requests/s and a night of {night_share:g} of it is none",
            remedy="a peak above 0, and a share above 0 and up to 1",
        )
    wave = [(1 + math.cos(2 * math.pi * (hour - BUSIEST_HOUR) / HOURS)) / 2 for hour in range(HOURS)]
    return tuple(peak_rate * (night_share + (1 - night_share) * height) for height in wave)


def day_of_replicas(rates: Sequence[float], fleets: Sequence[Fleet]) -> tuple[Hour, ...]:
    """The replicas of each hour: between two simulated rates on the line between their fleets, rounded up.

    UsageError for a rate that lies outside of those simulated: a line would go on where no queue does."""
    known = sorted(fleets, key=lambda one: one.rate)
    hours = []
    for hour, rate in enumerate(rates):
        if not known or not known[0].rate * (1 - 1e-9) <= rate <= known[-1].rate * (1 + 1e-9):
            raise UsageError(f"no fleet was simulated around {rate:g} requests/s", remedy="simulate the day's extremes")
        hours.append(Hour(hour=hour, rate=rate, replicas=_between(known, rate)))
    return tuple(hours)


def _between(known: Sequence[Fleet], rate: float) -> int:
    right = next((one for one in known if one.rate >= rate * (1 - 1e-9)), known[-1])
    left = next((one for one in reversed(known) if one.rate <= rate * (1 + 1e-9)), known[0])
    if right.rate <= left.rate:
        return max(left.replicas, right.replicas)
    along = (rate - left.rate) / (right.rate - left.rate)
    return math.ceil(left.replicas + along * (right.replicas - left.replicas) - 1e-9)


def bill_usd(replicas: Sequence[int], usd_per_hour: float) -> Fraction:
    """What a replica count for each hour costs, to the fraction of a cent."""
    return sum(replicas) * exact(usd_per_hour)


def fleet_per_day(
    rates: Sequence[float],
    *,
    prompt_tokens: float,
    output_tokens: float,
    tokens_per_s: float,
    usd_per_hour: float,
    buffer: float,
) -> PaidFleet:
    """The cost calculator's answer (lab 11) for the same day: it knows capacity, peak and a buffer, and no queue."""
    mean = sum(rates) / len(rates)
    settings = settings_from(
        {
            "requests_per_s": mean,
            "peak_factor": max(rates) / mean,
            "buffer": buffer,
            "input_tokens": max(1, round(prompt_tokens)),
            "output_tokens": max(1, round(output_tokens)),
            "instance": "own",
            "usd_per_hour": usd_per_hour,
            "throughput_tokens_per_s": tokens_per_s,
            "throughput_counts": "output",
            "engineering_hours_per_month": 0,  # the machines alone, as in `bill_usd`
            "model_gb": 0,
        }
    )
    return calculate(settings).hosted
