"""How many: from requests a second to a fleet, and how long requests wait at a utilisation.

The queue is Erlang's (M/M/c: random arrivals, `places` served side by side, exponential service times), the simplest
one that shows what decides. Source: L. Kleinrock, Queueing Systems I, 1975, section 3.7.
"""

import math

from labkit.errors import UsageError

HOURS_PER_DAY = 24


def instances_needed(requests_per_s: float, output_tokens: float, instance_tokens_per_s: float) -> int:
    """Whole instances for a load, without any reserve. UsageError for a number that is not above zero."""
    _above_zero(requests_per_s=requests_per_s, output_tokens=output_tokens, instance_tokens_per_s=instance_tokens_per_s)
    return math.ceil(requests_per_s * output_tokens / instance_tokens_per_s)


def busy_share(tokens_per_day: float, tokens_per_hour: float) -> float:
    """The share of a 24-hour day, 0 to 1 (above: it cannot carry the load), in which an instance works."""
    _above_zero(tokens_per_day=tokens_per_day, tokens_per_hour=tokens_per_hour)
    return tokens_per_day / (tokens_per_hour * HOURS_PER_DAY)


def waiting_share(places: int, utilisation: float) -> float:
    """Erlang's C: the share of requests that have to wait at all."""
    _check_queue(places, utilisation)
    load, term, total = places * utilisation, 1.0, 1.0
    for served in range(1, places):
        term *= load / served
        total += term
    last = term * load / places / (1 - utilisation)
    return last / (total + last)


def wait_p99(places: int, utilisation: float, *, quantile: float = 0.99) -> float:
    """The wait that 99 of 100 requests stay below, as a multiple of the mean service time; inf from full load on."""
    if utilisation >= 1:
        return math.inf
    waiting = waiting_share(places, utilisation)
    if waiting <= 1 - quantile:
        return 0.0
    return math.log(waiting / (1 - quantile)) / (places * (1 - utilisation))


def _check_queue(places: int, utilisation: float) -> None:
    if places < 1:
        raise UsageError(f"{places} places serve nobody", remedy="give at least one")
    if not 0 < utilisation < 1:
        raise UsageError(f"the utilisation is {utilisation}", remedy="give a share above 0 and below 1")


def _above_zero(**values: float) -> None:
    for name, value in values.items():
        if not value > 0 or not math.isfinite(value):
            raise UsageError(f"{name} is {value}; it must be above zero", remedy=f"give the real {name}")
