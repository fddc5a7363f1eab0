"""The model of a GPU's compute that requests share: against a step-by-step oracle and against queueing theory."""

import math
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.theory import sharing
from labkit.theory.sharing import Ask

quick = settings(max_examples=60, deadline=None)
some_asks = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 200)), min_size=1, max_size=8).map(
    lambda drawn: [Ask(at_s=at / 100, tenant="a", work_s=work / 100) for at, work in sorted(drawn)]
)


def step_by_step(asks: list[Ask], step_s: float = 1e-3) -> list[float]:
    """Latencies by cutting time into steps: in each, every request present gets an equal part of it."""
    left = {n: ask.work_s for n, ask in enumerate(asks)}
    ends, now = [0.0] * len(asks), 0.0
    while left:
        present = [n for n in left if asks[n].at_s <= now + 1e-9]
        for n in present:
            left[n] -= step_s / len(present)
        now += step_s
        for n in [n for n in present if left[n] <= 1e-9]:
            ends[n] = now
            del left[n]
    return [end - ask.at_s for end, ask in zip(ends, asks, strict=True)]


@quick
@given(some_asks)
def test_latencies_are_those_of_small_steps(asks: list[Ask]) -> None:
    """The events give what a cut of time into milliseconds gives, to within a few steps for each neighbour."""
    found = sharing.latencies_s(asks, {"a": 0})
    assert found == pytest.approx(step_by_step(asks), abs=1e-3 * (2 * len(asks) + 2))


@quick
@given(some_asks)
def test_the_gpu_wastes_no_time(asks: list[Ask]) -> None:
    """Nobody is faster than alone; what comes together is done when all of its work is."""
    found = sharing.latencies_s(asks, {"a": 0})
    assert all(took >= ask.work_s - 1e-9 for took, ask in zip(found, asks, strict=True))
    at_once = [Ask(at_s=0.0, tenant="a", work_s=ask.work_s) for ask in asks]
    assert max(sharing.latencies_s(at_once, {"a": 0})) == pytest.approx(sum(ask.work_s for ask in asks))


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_the_mean_is_that_of_queueing_theory(load: float) -> None:
    """M/M/1 processor sharing: the mean latency is the work over what the load leaves."""
    asks = sharing.traffic({"a": load / 0.1}, work_s=0.1, seconds=20_000, seed=3)
    assert mean(sharing.latencies_s(asks, {"a": 0})) == pytest.approx(0.1 / (1 - load), rel=0.05)


def test_neighbours_slow_each_other_down_and_strangers_do_not() -> None:
    """A tenant's latencies on its own GPU are the same whoever else there is, and longer beside another."""
    asks = sharing.traffic({"a": 4.0, "b": 3.0}, work_s=0.1, seconds=200, seed=1)
    alone = sharing.traffic({"a": 4.0}, work_s=0.1, seconds=200, seed=1)
    apart, together = (sharing.latencies_s(asks, {"a": 0, "b": gpu}) for gpu in (1, 0))
    mine = [n for n, ask in enumerate(asks) if ask.tenant == "a"]
    assert [apart[n] for n in mine] == sharing.latencies_s(alone, {"a": 0})
    assert all(together[n] >= apart[n] - 1e-9 for n in mine)


def test_traffic_is_seeded_and_as_dense_as_asked() -> None:
    """The same seed gives the same requests, another one others; the number and the work are those asked for."""
    first, again, other = (sharing.traffic({"a": 20.0}, work_s=0.2, seconds=500, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert len(first) == pytest.approx(20 * 500, rel=0.05)
    assert mean(ask.work_s for ask in first) == pytest.approx(0.2, rel=0.05)
    assert all(0 <= ask.at_s < 500 for ask in first)
    assert [ask.at_s for ask in first] == sorted(ask.at_s for ask in first)


def test_a_clock_that_jumps_finds_each_end_where_it_was() -> None:
    """However late `advance` is called, a request's end is the moment when it was done."""
    gpu = sharing.SharedCompute()
    numbers = [gpu.add(0.0, work) for work in (1.0, 2.0)]
    assert gpu.next_end_s == pytest.approx(2.0)
    done = gpu.advance(math.inf)
    assert [number for number, _ in done] == numbers
    assert [end for _, end in done] == pytest.approx([2.0, 3.0])
    assert gpu.next_end_s is None


@pytest.mark.parametrize(
    ("rates", "work_s", "says"),
    [({"a": 0.0}, 0.1, "the rate of a is 0"), ({"a": 1.0}, 0.0, "work_s is 0"), ({"a": math.inf}, 1.0, "inf")],
)
def test_traffic_that_is_none_is_refused(rates: dict[str, float], work_s: float, says: str) -> None:
    """Rates and work above zero."""
    with pytest.raises(UsageError, match=says):
        sharing.traffic(rates, work_s=work_s, seconds=1, seed=0)


def test_a_tenant_without_a_gpu_is_refused() -> None:
    """The message names it."""
    with pytest.raises(UsageError, match="b: on no GPU"):
        sharing.latencies_s([Ask(at_s=0, tenant="b", work_s=1)], {"a": 0})
