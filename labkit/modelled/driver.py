"""Drive one engine or a fleet through traffic on one clock, with the load client's records."""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from labkit.errors import require, whole
from labkit.load import LoadResult, Outcome, RequestRecord
from labkit.modelled.replica import Moment, NewTokens, Replica
from labkit.modelled.routers import Router, least_loaded
from labkit.modelled.traffic import TokenRequest, Traffic


@dataclass(frozen=True, kw_only=True)
class Drive:
    """A driven load: `result` is in the load client's form, for metrics, charts and comparisons.

    `replica_of`: the replica of each request. `moments`: the states of each replica after its steps.
    `cached_by_record`: the prompt tokens of each record that hit a prefix cache.
    """

    result: LoadResult
    moments: Sequence[Sequence[Moment]]
    replica_of: Sequence[int]
    preemptions: int
    cached_by_record: Sequence[int]

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that hit a prefix cache."""
        return sum(self.cached_by_record)

    @property
    def prefix_hit_rate(self) -> float:
        """Cached prompt tokens over all prompt tokens; NaN without any."""
        prompt_tokens = sum(record.input_tokens or 0 for record in self.result.records)
        return self.cached_tokens / prompt_tokens if prompt_tokens else math.nan


@dataclass(slots=True)
class _Open:
    """A request in flight."""

    due_s: float
    token_ids: Sequence[int]
    times_s: list[float] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)
    started: bool = False
    cached_tokens: int = 0


def drive(
    engines: Any,
    traffic: Traffic,
    *,
    concurrency: int | None = None,
    router: Router | None = None,
    progress: Callable[[int, int], None] | None = None,
    until_s: float | None = None,
    keep_cache: bool = False,
    each_step: Callable[[], object] | None = None,
) -> Drive:
    """Send `traffic` through an in-process `LLM`, or a list of them behind `router`, until all requests are done.

    `concurrency` makes a closed loop with that many requests in flight, in order, ignoring `due_s`; without it each
    request is sent when due. Modelled engines share one virtual clock; a real engine uses the wall clock and is driven
    alone. At `until_s` requests in flight end as CANCELLED, and no more are sent. Prefix caches are emptied first,
    unless `keep_cache`. `each_step` is called after each engine step.
    """
    replicas = [Replica(llm) for llm in (engines if isinstance(engines, list | tuple) else [engines])]
    if not keep_cache:
        for replica in replicas:
            replica.engine.reset_prefix_cache()
    _check(replicas, traffic, concurrency)
    until_s = math.inf if until_s is None else until_s
    run = _Run(replicas, traffic, router or least_loaded, concurrency, progress, until_s, each_step)
    try:
        run.go()
    finally:
        for replica in replicas:
            replica.abort()
    return run.drive()


@dataclass
class _Run:
    replicas: Sequence[Replica]
    traffic: Traffic
    router: Router
    concurrency: int | None
    progress: Callable[[int, int], None] | None
    until_s: float
    each_step: Callable[[], object] | None

    def __post_init__(self) -> None:
        self._preempted_before = sum(map(_preemptions, self.replicas))
        self._open: list[_Open | None] = [None] * len(self.traffic)
        self._replica_of = [-1] * len(self.traffic)
        self._done = 0
        self._due: list[tuple[float, int]] = []
        self._followers: dict[int, list[int]] = {}
        self._next = 0
        for index, request in enumerate(self.traffic):
            if request.follows is not None:
                self._followers.setdefault(request.follows, []).append(index)
            elif self.concurrency is None:
                heapq.heappush(self._due, (request.due_s, index))
        for _ in range(min(self.concurrency or 0, len(self.traffic))):
            self._start_next(0.0)

    def go(self) -> None:
        while self._done < len(self.traffic):
            due_s = self._due[0][0] if self._due else math.inf
            busy = [replica for replica in self.replicas if replica.in_flight]
            behind = min(busy, key=lambda replica: replica.clock_s) if busy else None
            if behind is not None and behind.clock_s < due_s:
                if behind.clock_s >= self.until_s:
                    return
                self._step(behind)
            elif self._due and due_s < self.until_s:
                self._submit(*heapq.heappop(self._due))
            else:
                return

    def _start_next(self, now_s: float) -> None:
        """Give a closed loop's free slot to the next request that does not follow another."""
        while self._next < len(self.traffic):
            index, self._next = self._next, self._next + 1
            if self.traffic[index].follows is None:
                heapq.heappush(self._due, (now_s, index))
                return

    def _submit(self, due_s: float, index: int) -> None:
        request = self.traffic[index]
        state = self._open[index] or _Open(due_s, request.token_ids)
        state.due_s, state.started = due_s, True
        self._open[index] = state
        chosen = self.router(_with_prompt(request, state.token_ids), self.replicas)
        exists = 0 <= chosen < len(self.replicas)
        require(exists, f"the router chose replica {chosen} of {len(self.replicas)}", fix="return an index from 0 on")
        replica = self.replicas[chosen]
        if not replica.in_flight:
            replica.advance_to(due_s)
        self._replica_of[index] = chosen
        replica.submit(index, state.token_ids, request.output_tokens)

    def _step(self, replica: Replica) -> None:
        for update in replica.step():
            self._take(update, replica.clock_s)
        if self.each_step is not None:
            self.each_step()

    def _take(self, update: NewTokens, now_s: float) -> None:
        state = self._open[update.index]
        assert state is not None
        state.times_s += [now_s] * len(update.token_ids)
        if update.index in self._followers:
            state.answer += update.token_ids
        state.cached_tokens = state.cached_tokens or update.cached_tokens
        if update.finished:
            self._finish(update.index, state, now_s)

    def _finish(self, index: int, state: _Open, now_s: float) -> None:
        self._done += 1
        followers = self._followers.get(index, ())
        for follower in followers:
            request = self.traffic[follower]
            self._open[follower] = _Open(0.0, [*state.token_ids, *state.answer, *request.token_ids])
            heapq.heappush(self._due, (now_s + request.due_s, follower))
        if self.concurrency is not None and not followers:
            self._start_next(now_s)
        if self.progress is not None:
            self.progress(self._done, len(self.traffic))

    def drive(self) -> Drive:
        started = {index: state for index, state in enumerate(self._open) if state is not None and state.started}
        records = tuple(self._record(index, state) for index, state in started.items())
        missing = len(self.traffic) - sum(record.ok for record in records)
        warning = f"{missing} of {len(self.traffic)} requests were unfinished at the end"
        return Drive(
            result=LoadResult(
                records=records,
                duration_s=max((record.finished_s for record in records), default=0.0),
                client_cpu_s=math.nan,
                concurrency=self.concurrency,
                rate=None,
                workload="token ids",
                seed=None,
                warnings=(warning,) if missing else (),
            ),
            moments=[replica.moments for replica in self.replicas],
            replica_of=self._replica_of,
            preemptions=sum(map(_preemptions, self.replicas)) - self._preempted_before,
            cached_by_record=[state.cached_tokens for state in started.values()],
        )

    def _record(self, index: int, state: _Open) -> RequestRecord:
        request = self.traffic[index]
        whole = len(state.times_s) == request.output_tokens
        return RequestRecord(
            index=index,
            scheduled_s=state.due_s,
            started_s=state.due_s,
            chunk_times_s=tuple(state.times_s),
            finished_s=state.times_s[-1] if state.times_s else state.due_s,
            input_tokens=len(state.token_ids),
            output_tokens=len(state.times_s),
            outcome=Outcome.OK if whole else Outcome.CANCELLED,
            error="" if whole else "the simulation was stopped",
            group=request.group,
        )


def _check(replicas: Sequence[Replica], traffic: Traffic, concurrency: int | None) -> None:
    empty = f"there are {len(replicas)} engines and {len(traffic)} requests to drive"
    require(bool(replicas) and bool(traffic), empty, fix="pass at least one of each")
    mixed = f"{len(replicas)} engines, one of them real: they share no clock"
    alone = len(replicas) == 1 or all(replica.modelled is not None for replica in replicas)
    require(alone, mixed, fix="drive a real engine alone")
    whole("concurrency", 1 if concurrency is None else concurrency, at_least=1)
    followed = [request.follows for request in traffic if request.follows is not None]
    require(
        concurrency is None or len(set(followed)) == len(followed),
        "several requests follow the same one, and a closed loop has one slot for them",
        fix="leave concurrency out, or let each turn have one follower",
    )
    for index, request in enumerate(traffic):
        earlier = request.follows is None or request.follows < index
        require(earlier, f"request {index} follows a later one", fix="put a turn after the one it follows")


def _with_prompt(request: TokenRequest, token_ids: Sequence[int]) -> TokenRequest:
    if request.follows is None:
        return request
    return TokenRequest(token_ids=token_ids, output_tokens=request.output_tokens, group=request.group)


def _preemptions(replica: Replica) -> int:
    return replica.modelled.tracker.preemptions if replica.modelled is not None else 0
