"""A model of a GPU's compute that several requests share, and what it makes of Poisson traffic. Pure and seeded.

Processor sharing: of n requests that are on a GPU at once, each gets 1/n of its speed, as under time-slicing. A real
GPU differs: requests of one model in one batch share the reading of the weights, and two models' kernels disturb each
other's caches.
"""

import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from labkit.errors import above_zero, require
from labkit.load.workloads import poisson_arrivals_s


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request: when it comes (seconds since the start), whose it is, and how long it takes on a GPU of its own."""

    at_s: float
    tenant: str
    work_s: float


class SharedCompute:
    """One GPU. `add` a request's work, `advance` the clock; what is done comes back with the moment when it was.

    All requests present get the same GPU time, so one number tells how much: a request is done when `served_s`, the GPU
    time that each one present since the start would have got, has grown by its work. Times in seconds.
    """

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s, self._served_s = now_s, 0.0
        self._present: list[tuple[float, int]] = []  # (served_s at which it is done, its number), a heap
        self._numbers = itertools.count()

    def add(self, now_s: float, work_s: float) -> int:
        """A request begins; returns its number. Call `advance` to `now_s` first."""
        number = next(self._numbers)
        self._now_s = max(self._now_s, now_s)
        heapq.heappush(self._present, (self._served_s + work_s, number))
        return number

    @property
    def next_end_s(self) -> float | None:
        """When the next request is done, if none is added until then; None on an idle GPU."""
        if not self._present:
            return None
        return self._now_s + (self._present[0][0] - self._served_s) * len(self._present)

    def advance(self, now_s: float) -> list[tuple[int, float]]:
        """Moves the clock to `now_s`: the numbers of the requests done by then, each with its end, in order."""
        done = []
        while (end_s := self.next_end_s) is not None and end_s <= now_s:
            self._served_s, number = heapq.heappop(self._present)
            self._now_s = end_s
            done.append((number, end_s))
        if now_s > self._now_s:
            self._served_s += (now_s - self._now_s) / len(self._present) if self._present else 0.0
            self._now_s = now_s
        return done


def traffic(rates: Mapping[str, float], *, work_s: float, seconds: float, seed: int) -> list[Ask]:
    """Poisson arrivals for each tenant (`rates`: requests per second) over `seconds`, with exponential work of mean
    `work_s`, in the order of arrival. The same seed gives a tenant the same requests, whoever else there is."""
    above_zero("work_s", work_s, unit="seconds")
    above_zero("seconds", seconds, unit="seconds")
    asks = []
    for tenant, rate in rates.items():
        above_zero(f"the rate of {tenant}", rate, unit="requests per second")
        rng = Random(f"work/{tenant}/{seed}")
        enough = int(rate * seconds + 10 * (rate * seconds) ** 0.5 + 10)
        arrivals = poisson_arrivals_s(enough, rate=rate, seed=Random(f"{tenant}/{seed}").getrandbits(31))
        works = (rng.expovariate(1 / work_s) for _ in arrivals)
        asks += [Ask(at_s=at, tenant=tenant, work_s=w) for at, w in zip(arrivals, works, strict=True) if at < seconds]
    return sorted(asks, key=lambda ask: ask.at_s)


def latencies_s(asks: Sequence[Ask], gpu_of: Mapping[str, int]) -> list[float]:
    """The latency of each request in seconds, in the order of `asks` (sorted by arrival), when every tenant's requests
    run on the GPU that `gpu_of` gives it. UsageError: a tenant without a GPU."""
    missing = sorted({ask.tenant for ask in asks} - set(gpu_of))
    require(not missing, f"{', '.join(missing)}: on no GPU", fix="give every tenant one")
    latencies = [0.0] * len(asks)
    for gpu in set(gpu_of.values()):
        mine = [place for place, ask in enumerate(asks) if gpu_of[ask.tenant] == gpu]
        compute, ends = SharedCompute(), list[tuple[int, float]]()
        for place in mine:
            ends += compute.advance(asks[place].at_s)
            compute.add(asks[place].at_s, asks[place].work_s)
        for number, end_s in ends + compute.advance(float("inf")):
            latencies[mine[number]] = end_s - asks[mine[number]].at_s
    return latencies
