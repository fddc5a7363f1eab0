"""Waiting times in an M/M/n queue, by Erlang's formulas."""

import math

from labkit.errors import require


def probability_of_waiting(places: int, load: float) -> float:
    """Return Erlang C: the share of requests that wait for one of `places` slots. `load`: arrivals over capacity, 0
    to below 1."""
    require(places >= 1, f"there are {places} slots", fix="pass 1 or more")
    require(0 <= load < 1, f"the load is {load:g}", fix="pass a share from 0 to below 1: at 1 the queue only grows")
    blocked = 1.0
    for n in range(1, places + 1):  # Erlang B by recursion, which does not overflow
        blocked = places * load * blocked / (n + places * load * blocked)
    return blocked / (1 - load * (1 - blocked))


def wait_quantile(places: int, load: float, quantile: float = 0.99) -> float:
    """Return the `quantile` of the waiting time, in multiples of the mean service time."""
    require(0 < quantile < 1, f"the quantile is {quantile:g}", fix="pass a share above 0 and below 1, such as 0.99")
    waiting = probability_of_waiting(places, load)
    return max(0.0, math.log(waiting / (1 - quantile)) / (places * (1 - load))) if waiting > 0 else 0.0
