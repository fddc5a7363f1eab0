"""Queues in front of a model: replicas that batch continuously, waiting by Erlang, and batches that wait to be filled.

A replica is described by what is measured on a real one: how long a decode step takes with n requests in it, how long
a prompt token takes, and how many requests it holds. Left out: a prompt is computed whole while the running requests
wait (no chunks), the KV cache never fills up, and no prefix is cached. vLLM's own scheduler on a modelled GPU
(labkit.modelled) has all three; this model plans a day of traffic on hundreds of replicas in seconds.
"""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from labkit.errors import UsageError, require

Balancer = Literal["random", "round_robin", "two_choices", "fewest"]


@dataclass(frozen=True, kw_only=True)
class Service:
    """One replica, as measured.

    `step_s`: seconds of a decode step, by the number of requests in it; between two measured numbers it lies on the
    line between them, above the last one on the line through the last two, below the first it is as the first.
    `prefill_s_per_token`: seconds for a prompt's token. `places`: requests that it holds at once; more wait.
    """

    step_s: Mapping[int, float]
    prefill_s_per_token: float = 0.0
    places: int

    def __post_init__(self) -> None:
        require(
            bool(self.step_s) and min(self.step_s) >= 1 and min(self.step_s.values()) > 0,
            f"a step's times must be positive, for one request or more: {dict(self.step_s)}",
            fix="measure it: the TPOT of a closed loop with that many clients",
        )
        require(
            self.places >= 1 and self.prefill_s_per_token >= 0,
            f"a replica with {self.places} places and {self.prefill_s_per_token} s per prompt token",
            fix="give at least one place, and no negative time",
        )

    def step_of(self, requests: int) -> float:
        """Seconds of a decode step with `requests` in it."""
        known = sorted(self.step_s)
        if requests <= known[0] or len(known) == 1:
            return self.step_s[known[0]]
        pairs = itertools.pairwise(known)
        left, right = next(((a, b) for a, b in pairs if requests <= b), (known[-2], known[-1]))
        slope = (self.step_s[right] - self.step_s[left]) / (right - left)
        return max(self.step_s[left] + slope * (requests - left), min(self.step_s.values()))

    def capacity_per_s(self, *, prompt_tokens: float, output_tokens: float) -> float:
        """Requests per second that a full replica finishes, from the time in which all its places turn over once."""
        prefill_s = self.places * prompt_tokens * self.prefill_s_per_token
        cycle_s = prefill_s + (output_tokens - 1) * self.step_of(self.places)
        return self.places / cycle_s if cycle_s > 0 else math.inf


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """One request: seconds since the start, tokens of its prompt, tokens of its answer (at least one)."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, kw_only=True)
class Served:
    """What became of an arrival: when it got a place, its first token, its last."""

    arrival: Arrival
    placed_s: float
    first_token_s: float
    finished_s: float

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.arrival.at_s

    @property
    def e2e_s(self) -> float:
        return self.finished_s - self.arrival.at_s

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first; None where there is none."""
        after = self.arrival.output_tokens - 1
        return (self.finished_s - self.first_token_s) / after if after else None


class Replica:
    """One replica's clock. All running requests get a token each step, so one count of steps since the start tells how
    far each is: a request is done when it has grown by its output."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._now_s = self._steps = 0.0
        self._running: list[tuple[float, int, Arrival, float, float]] = []  # a heap by the step that is its last
        self._waiting: deque[Arrival] = deque()
        self._order = itertools.count()
        self._step_of = [0.0, *(service.step_of(n) for n in range(1, service.places + 1))]

    @property
    def in_flight(self) -> int:
        return len(self._running) + len(self._waiting)

    def add(self, arrival: Arrival) -> None:
        """Take a request in. Call `advance` to its time first."""
        self._now_s = max(self._now_s, arrival.at_s)  # later, if it computes a prompt just then
        self._waiting.append(arrival)
        if len(self._running) < self._service.places:
            self._place(arrival.at_s)

    def advance(self, until_s: float) -> list[Served]:
        """Move the clock to `until_s` (or to the end of the prompt that is computed then): what was finished."""
        done = []
        while self._running:
            step_s = self._step_of[len(self._running)]
            end_s = self._now_s + max(0.0, self._running[0][0] - self._steps) * step_s
            if end_s > until_s:
                if until_s > self._now_s:
                    self._steps += (until_s - self._now_s) / step_s
                    self._now_s = until_s
                break
            last, _, arrival, placed_s, first_s = heapq.heappop(self._running)
            self._now_s, self._steps = end_s, max(self._steps, last)
            done.append(Served(arrival=arrival, placed_s=placed_s, first_token_s=first_s, finished_s=end_s))
            if self._waiting:
                self._place(end_s)
        return done

    def _place(self, placed_s: float) -> None:
        """Give the request that waits longest a place: compute its prompt and first token while the others wait."""
        arrival = self._waiting.popleft()
        self._now_s += arrival.prompt_tokens * self._service.prefill_s_per_token
        last = self._steps + arrival.output_tokens - 1
        heapq.heappush(self._running, (last, next(self._order), arrival, placed_s, self._now_s))


def serve_all(
    service: Service,
    arrivals: Iterable[Arrival],
    *,
    replicas: int = 1,
    balancer: Balancer = "round_robin",
    seed: int = 0,
) -> list[Served]:
    """Every arrival, served, in the order of arrival. Same inputs, same result.

    `balancer`: which replica takes a request: any (`random`), the next one (`round_robin`), of two drawn at random the
    one with fewer requests (`two_choices`), of all the one with the fewest (`fewest`; its cost grows with `replicas`).
    """
    require(replicas >= 1, f"{replicas} replicas serve nothing", fix="at least one")
    fleet = [Replica(service) for _ in range(replicas)]
    rng, turn = Random(f"balancer/{seed}"), itertools.count()
    candidates: dict[str, Callable[[], Iterable[int]]] = {
        "random": lambda: (rng.randrange(replicas),),
        "round_robin": lambda: (next(turn) % replicas,),
        "two_choices": lambda: rng.sample(range(replicas), min(2, replicas)),
        "fewest": lambda: range(replicas),
    }
    require(balancer in candidates, f"no balancer {balancer!r}", fix=f"one of {', '.join(candidates)}")
    served: list[Served] = []
    for arrival in sorted(arrivals, key=lambda arrival: arrival.at_s):
        chosen = [fleet[number] for number in candidates[balancer]()]
        for replica in chosen:
            served += replica.advance(arrival.at_s)
        min(chosen, key=lambda replica: replica.in_flight).add(arrival)
    for replica in fleet:
        served += replica.advance(math.inf)
    return sorted(served, key=lambda answer: answer.arrival.at_s)


def replicas_needed(
    service: Service,
    arrivals: Sequence[Arrival],
    good: Callable[[Served], bool],
    *,
    share: float = 0.99,
    balancer: Balancer = "round_robin",
    at_least: int = 1,
    at_most: int = 4096,
    seed: int = 0,
) -> int:
    """The least number of replicas, from `at_least` on, with which `share` of the requests are `good`, by bisection.

    UsageError when `at_most` are not enough: then the requests are too slow on an empty replica already, as a rule.
    """

    def enough(replicas: int) -> bool:
        served = serve_all(service, arrivals, replicas=replicas, balancer=balancer, seed=seed)
        return sum(map(good, served)) >= share * len(served)

    low, high = at_least - 1, max(1, at_least)  # low does not do, high may
    while not enough(high):
        if high >= at_most:
            raise UsageError(
                f"{high} replicas do not keep {share:.0%} of the requests good",
                remedy="loosen the SLO, shorten the requests, or take a faster replica: one on its own may miss it",
            )
        low, high = high, min(2 * high, at_most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


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
