"""Why machines are not run full: waiting for a place, by the Erlang C formula (a model, not a measurement).

An engine with n places (max_num_seqs) is taken as n servers with exponential times and Poisson arrivals, M/M/n:
P(wait > t) = C(n, load) exp(-n (1 - load) t / S), S one answer's time (Erlang 1917; Kleinrock, Queueing Systems I).
"""

import math

from labkit.errors import UsageError


def probability_of_waiting(places: int, load: float) -> float:
    """C(n, load): the share of requests that find no place. `load` is arrivals over capacity, 0 to below 1."""
    if places < 1:
        raise UsageError(f"there are {places} places", remedy="give 1 or more")
    if not 0 <= load < 1:
        raise UsageError(f"the load is {load:g}", remedy="give a share from 0 to below 1: at 1 the queue never ends")
    blocked = 1.0
    for n in range(1, places + 1):  # Erlang B by its recursion, which never overflows
        blocked = places * load * blocked / (n + places * load * blocked)
    return blocked / (1 - load * (1 - blocked))


def wait_quantile(places: int, load: float, quantile: float = 0.99) -> float:
    """The wait that `quantile` of the requests do not exceed, as a multiple of one answer's time."""
    if not 0 < quantile < 1:
        raise UsageError(f"the quantile is {quantile:g}", remedy="give a share above 0 and below 1, such as 0.99")
    waiting = probability_of_waiting(places, load)
    return max(0.0, math.log(waiting / (1 - quantile)) / (places * (1 - load))) if waiting > 0 else 0.0
