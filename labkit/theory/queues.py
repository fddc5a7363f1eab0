"""Queues in front of a model: waiting by Erlang, and batches that wait to be filled."""

import math
from dataclasses import dataclass

from labkit.errors import require


def probability_of_waiting(places: int, load: float) -> float:
    """C(n, load): the share of requests that find no place. `load` is arrivals over capacity, 0 to below 1."""
    require(places >= 1, f"there are {places} places", fix="give 1 or more")
    require(0 <= load < 1, f"the load is {load:g}", fix="give a share from 0 to below 1: at 1 the queue never ends")
    blocked = 1.0
    for n in range(1, places + 1):  # Erlang B by its recursion, which never overflows
        blocked = places * load * blocked / (n + places * load * blocked)
    return blocked / (1 - load * (1 - blocked))


def wait_quantile(places: int, load: float, quantile: float = 0.99) -> float:
    """The wait that `quantile` of the requests do not exceed, as a multiple of one answer's time."""
    require(0 < quantile < 1, f"the quantile is {quantile:g}", fix="give a share above 0 and below 1, such as 0.99")
    waiting = probability_of_waiting(places, load)
    return max(0.0, math.log(waiting / (1 - quantile)) / (places * (1 - load))) if waiting > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class BatchCost:
    """Seconds for every batch, and for every row in it."""

    fixed_s: float
    per_row_s: float

    def seconds(self, rows: int) -> float:
        """The time of a batch of `rows`."""
        return self.fixed_s + self.per_row_s * rows


@dataclass(frozen=True, kw_only=True)
class BatchedLoop:
    """One worker under a closed loop: requests in a batch, requests per second, mean seconds from request to answer."""

    rows: int
    throughput: float
    latency_s: float


def law(cost: BatchCost, *, clients: int, batch_size: int, delay_s: float) -> BatchedLoop:
    """A closed loop of `clients` on one worker. UsageError for a count below 1 or a negative delay.

    Enough clients fill every batch, and nobody waits for the delay; too few never do, and all pay it every time. The
    latency is Little's: clients / throughput.
    """
    require(
        min(clients, batch_size) >= 1 and delay_s >= 0,
        f"{clients} clients, batches of {batch_size}, a delay of {delay_s} s",
        fix="give counts from 1, and 0 s or more",
    )
    rows = min(clients, batch_size)
    round_s = cost.seconds(rows) + (delay_s if rows < batch_size else 0.0)
    return BatchedLoop(rows=rows, throughput=rows / round_s, latency_s=clients * round_s / rows)
