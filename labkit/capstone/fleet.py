"""How many replicas keep a promise, by the queueing model."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from labkit.errors import UsageError
from labkit.load import RequestRecord
from labkit.metrics import Slo
from labkit.queueing import Arrival, Balancer, Served, Service, replicas_needed, simulate
from labkit.workloads import checks, poisson_arrivals_s


@dataclass(frozen=True, kw_only=True)
class Promise:
    """`share` of all requests have their first token within `ttft_s` and then each token within `tpot_s`, on average
    over the answer. Seconds, from the moment at which a request is due."""

    ttft_s: float
    tpot_s: float
    share: float

    def __post_init__(self) -> None:
        checks.above_zero("slo_ttft_s", self.ttft_s, unit="seconds")
        checks.above_zero("slo_tpot_s", self.tpot_s, unit="seconds")
        if not 0 < self.share < 1:
            raise UsageError(
                f"slo_share is {self.share:g}", remedy="promise a share above 0 and below 1: nobody can promise all"
            )

    @property
    def slo(self) -> Slo:
        """What each single request is held to."""
        return Slo(ttft_s=self.ttft_s, tpot_s=self.tpot_s)

    def holds(self, served: Served) -> bool:
        """Whether a request of the model was good."""
        return served.ttft_s <= self.ttft_s and (served.tpot_s or 0.0) <= self.tpot_s


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """`replicas` for `rate` requests a second. `kept` is the share of good requests in the simulation; with
    `keeps` false no number of replicas keeps the promise, and the fleet is the smallest one whose queue ends."""

    rate: float
    replicas: int
    busy: float
    """The rate over what all replicas could finish."""
    kept: float
    keeps: bool


Traffic = Callable[[float], Sequence[Arrival]]
"""The arrivals of a simulation, by their rate."""


def traffic_like(records: Sequence[RequestRecord], *, seconds: float, seed: int = 0) -> Traffic:
    """Poisson traffic of `seconds` whose requests are drawn from those that a server answered, tokens in and out.

    At least 500 requests, however low the rate. UsageError when none was answered."""
    mix = [(one.input_tokens or 0, one.output_tokens or 1) for one in records if one.ok]
    if not mix:
        raise UsageError(f"none of {len(records)} requests was answered", remedy="look into the server's log")

    def traffic(rate: float) -> tuple[Arrival, ...]:
        rng = Random(f"mix/{seed}")
        times = poisson_arrivals_s(max(500, math.ceil(rate * seconds)), rate=rate, seed=seed)
        drawn = [rng.choice(mix) for _ in times]
        return tuple(
            Arrival(at_s=at, prompt_tokens=read, output_tokens=written)
            for at, (read, written) in zip(times, drawn, strict=True)
        )

    return traffic


def fleet(
    service: Service,
    traffic: Traffic,
    rate: float,
    promise: Promise,
    *,
    balancer: Balancer = "two_choices",
    most_busy: float = 1.0,
    seed: int = 0,
) -> Fleet:
    """The smallest fleet that keeps the promise at `rate`.

    None is considered that could not finish what comes, or that would be busier than `most_busy`: a simulation is
    short, and a queue that never ends, or hardly, may look short in it."""
    arrivals = traffic(rate)
    capacity = capacity_per_s(service, arrivals)
    least = max(math.floor(rate / capacity) + 1, math.ceil(rate / (capacity * most_busy)))
    try:
        found = replicas_needed(
            service,
            arrivals,
            promise.holds,
            share=promise.share,
            balancer=balancer,
            at_least=least,
            at_most=4 * least + 16,
            seed=seed,
        )
    except UsageError:
        found = least
    kept = share_kept(service, arrivals, promise, replicas=found, balancer=balancer, seed=seed)
    return Fleet(rate=rate, replicas=found, busy=rate / (found * capacity), kept=kept, keeps=kept >= promise.share)


def share_kept(
    service: Service,
    arrivals: Sequence[Arrival],
    promise: Promise,
    *,
    replicas: int = 1,
    balancer: Balancer = "two_choices",
    seed: int = 0,
) -> float:
    """The share of the arrivals that a fleet of this size serves well."""
    served = simulate(service, arrivals, replicas=replicas, balancer=balancer, seed=seed)
    return sum(map(promise.holds, served)) / len(served)


def capacity_per_s(service: Service, arrivals: Sequence[Arrival]) -> float:
    """Requests a second that one full replica finishes, of requests like these."""
    return service.capacity_per_s(
        prompt_tokens=sum(one.prompt_tokens for one in arrivals) / len(arrivals),
        output_tokens=sum(one.output_tokens for one in arrivals) / len(arrivals),
    )
