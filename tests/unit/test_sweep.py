"""The knee of a sweep on servers of known capacity, and sweeps without one."""

import heapq
import random
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from labkit.load import LoadResult, Outcome, RequestRecord
from labkit.load.metrics import Slo
from labkit.load.sweep import KEEPS_UP, STILL_RISES, Kind, Sweep, check_levels, judge, step
from tests.unit.refusals import not_refused

LEVELS = (1, 2, 4, 8, 16, 32)


def closed(clients: float, *, capacity: float, alone_s: float, n: int = 200, failed: int = 0) -> LoadResult:
    """A closed loop on a server with `alone_s` per request and at most `capacity` requests per second, by Little's
    law."""
    throughput = min(clients / alone_s, capacity)
    latency_s = clients / throughput
    records = []
    for k in range(n):
        end_s = latency_s + k / throughput
        start_s, outcome = end_s - latency_s, Outcome.HTTP_ERROR if k < failed else Outcome.OK
        records.append(RequestRecord(k, start_s, start_s, (start_s + latency_s / 2, end_s), end_s, 5, 2, outcome))
    return LoadResult(tuple(records), n / throughput, 0.0, int(clients), None, "any", 0)


def open_loop(rate: float, *, capacity: float, alone_s: float, n: int = 200) -> LoadResult:
    """The same server in an open loop: the queue grows if `rate` exceeds `capacity`."""
    records = []
    end_s = 0.0
    for k in range(n):
        due_s = k / rate
        end_s = max(due_s + alone_s, end_s + 1 / capacity)
        records.append(RequestRecord(k, due_s, due_s, (due_s + alone_s / 2, end_s), end_s, 5, 2, Outcome.OK))
    return LoadResult(tuple(records), end_s, 0.0, None, rate, "any", 0)


def sweep(kind: Kind, levels: Sequence[float], slo: Slo | None = None, **server: float) -> Sweep:
    make = closed if kind == "concurrency" else open_loop
    return judge(kind, [step(make(level, **server), level, slo) for level in levels], slo)  # type: ignore[arg-type]


@given(st.floats(1.5, 16), st.floats(0.01, 5))
def test_the_knee_of_a_closed_loop_is_at_the_capacity(slots: float, alone_s: float) -> None:
    """Within one step of the concurrency that fills the server, and with nearly all of its throughput."""
    result = sweep("concurrency", LEVELS, capacity=slots / alone_s, alone_s=alone_s)
    assert result.knee is not None, result.why
    assert slots / 2**STILL_RISES <= result.knee < 2 * slots


@given(st.floats(2.5, 12), st.floats(0.01, 0.1))
def test_the_knee_of_an_open_loop_is_below_the_capacity(capacity: float, alone_s: float) -> None:
    """Arrivals at more than the capacity queue without end."""
    result = sweep("rate", LEVELS, capacity=capacity, alone_s=alone_s)
    assert result.knee is not None, result.why
    stretched = 1 + max(alone_s * capacity, 1) / 198  # 200 completions, by the longest answer of the first step
    assert KEEPS_UP * capacity / 2 < result.knee <= capacity / KEEPS_UP * stretched


def test_a_sweep_without_a_knee_says_why() -> None:
    """Never saturated, saturated from the first step, failing from the first step, too short."""
    cases: list[tuple[Sweep, str]] = [
        (sweep("concurrency", LEVELS, capacity=1000, alone_s=1), "never saturated"),
        (sweep("rate", LEVELS, capacity=1000, alone_s=0.1), "never saturated"),
        (sweep("rate", (8, 16, 32), capacity=2, alone_s=0.1), "saturated from the first step"),
        (sweep("concurrency", (8, 16, 32), capacity=2, alone_s=0.1), "saturated from the first step"),
        (sweep("concurrency", LEVELS, capacity=2, alone_s=0.1, failed=100), "requests fail already"),
        (sweep("rate", LEVELS, capacity=1000, alone_s=30), "too short"),
        (sweep("rate", LEVELS, Slo(e2e_s=0.05), capacity=100, alone_s=0.1), "already the first step"),
        (sweep("rate", LEVELS, Slo(e2e_s=9), capacity=100, alone_s=0.1), "never saturated"),
        (sweep("rate", (8, 16, 32), Slo(e2e_s=900), capacity=2, alone_s=0.1), "a longer load would miss the SLO"),
    ]
    assert [(result.knee, words in result.why) for result, words in cases] == [(None, True)] * len(cases)
    assert sweep("concurrency", LEVELS, capacity=1, alone_s=1).knee == 1


def test_an_slo_decides() -> None:
    """The knee is the last step before the first with too few requests in time, counted from when they were due."""
    result = sweep("rate", LEVELS, Slo(e2e_s=0.5), capacity=5, alone_s=0.1)
    assert result.knee == 4
    assert [level.good_share == 1.0 for level in result.steps] == [True, True, True, False, False, False]
    late = RequestRecord(0, 0.0, 3.0, (3.1, 3.2), 3.2, 5, 2, Outcome.OK)
    assert step(LoadResult((late,), 3.2, 0.0, None, 1.0, "any", 0), 1, Slo(e2e_s=0.5)).good_share == 0.0


def test_a_growing_queue_ends_the_slo_of_a_short_load() -> None:
    """A step that is over before its queue breaks the SLO does not meet it."""
    result = sweep("rate", LEVELS, Slo(e2e_s=60), capacity=5, alone_s=0.1)
    assert [level.good_share for level in result.steps] == [1.0] * len(LEVELS)
    assert (result.knee, "a longer load would miss the SLO" in result.why) == (4, True)


def slots(rate: float, *, number: int, seconds: float, n: int = 32) -> LoadResult:
    """An open loop of equal answers on a server that computes `number` of them at a time."""
    free, records = [0.0] * number, []
    for k in range(n):
        due_s = k / rate
        end_s = max(due_s, heapq.heappop(free)) + seconds
        heapq.heappush(free, end_s)
        records.append(RequestRecord(k, due_s, due_s, (end_s,), end_s, 5, 1, Outcome.OK))
    return LoadResult(tuple(records), 99.0, 0.0, None, rate, "any", 0)


def test_the_knee_of_slots_is_seen_in_few_requests() -> None:
    """32 requests of a second on ten slots saturate above 10 requests/s, whether sweeps begin below that or above."""
    for levels, knee, words in (
        ((4, 8, 16, 32), 8, "at rate 16"),
        ((12, 14, 16), None, "saturated from the first step"),
    ):
        result = judge("rate", [step(slots(level, number=10, seconds=1), level, None) for level in levels], None)
        assert (result.knee, words in result.why) == (knee, True), result.why


@given(st.integers(0, 10**6))
def test_answers_of_different_lengths_are_no_queue(seed: int) -> None:
    """A server without a limit is not saturated, however much the latencies of 32 requests differ."""
    draw = random.Random(seed)

    def load(rate: float) -> LoadResult:
        records = []
        for k in range(32):
            end_s = k / rate + draw.uniform(0.2, 2.0)
            records.append(RequestRecord(k, k / rate, k / rate, (end_s,), end_s, 5, 1, Outcome.OK))
        return LoadResult(tuple(records), 40.0, 0.0, None, rate, "any", 0)

    longest = replace(load(1).records[0], chunk_times_s=(2.0,), finished_s=2.0)  # the first step has seen the longest
    first = load(1)
    steps = [replace(first, records=(longest, *first.records[1:])), *map(load, (2, 4, 8))]
    result = judge("rate", [step(one, level, None) for one, level in zip(steps, (1, 2, 4, 8), strict=True)], None)
    assert (result.knee, "never saturated" in result.why) == (None, True)


def test_a_busy_client_finds_no_knee() -> None:
    """A knee at which the client was the limit is not the server's."""
    results = [closed(level, capacity=4, alone_s=1) for level in LEVELS]
    busy = [replace(r, client_cpu_s=r.duration_s).with_warnings(planned=200) for r in results]
    idle, bound = (
        judge("concurrency", [step(result, level, None) for result, level in zip(loads, LEVELS, strict=True)], None)
        for loads in (results, busy)
    )
    assert (idle.knee, bound.knee, "the client itself" in bound.why) == (4, None, True)


def test_wrong_levels_are_refused() -> None:
    """An unknown kind, too few levels, falling ones, and fractions of a client."""
    levels = [("users", (1, 2, 3)), ("rate", (1, 2)), ("rate", (3, 2, 1)), ("rate", (0, 1, 2)), ("rate", ())]
    bad = [*((given, "--sweep rate") for given in levels), (("concurrency", (1, 2.5, 4)), "not whole numbers")]
    assert not_refused(lambda given: check_levels(*given), bad) == []
