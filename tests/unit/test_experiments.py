"""Repeats, intervals, the stopwatch and the lie detector."""

import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from labkit.errors import ServerError, UsageError
from labkit.experiments import (
    Caution,
    Statistic,
    Steps,
    Stopwatch,
    in_turns,
    interleaved,
    interval,
    paired_ratio,
    samples_needed,
    warnings_for,
)

positive = st.floats(min_value=1e-3, max_value=1e3)
pairs = st.lists(st.tuples(positive, positive), min_size=1, max_size=12)
# Each example is a bootstrap of some milliseconds: a deadline would test the machine's load.
quick = settings(max_examples=40, deadline=None)

BURN = """
import sys, time
sys.stdin.readline()
end = time.process_time() + float(sys.argv[1])
while time.process_time() < end: pass
print('burnt', flush=True)
sys.stdin.readline()
"""


# --- interleaved


@given(names=st.sets(st.text(max_size=4), min_size=1, max_size=5), repeats=st.integers(1, 6), seed=st.integers())
@quick
def test_every_round_runs_every_arm_once(names: set[str], repeats: int, seed: int) -> None:
    """Calls come in rounds that hold every arm once, and each arm's results stand in order of rounds."""
    calls: list[tuple[int, str]] = []

    def arm(name: str) -> Callable[[int], tuple[str, int]]:
        def measure(index: int) -> tuple[str, int]:
            calls.append((index, name))
            return name, index

        return measure

    results = interleaved({name: arm(name) for name in names}, repeats=repeats, seed=seed)
    assert [index for index, _ in calls] == [index for index in range(repeats) for _ in names]
    assert Counter(calls) == Counter((index, name) for index in range(repeats) for name in names)
    assert results == {name: [(name, index) for index in range(repeats)] for name in names}


def test_order_is_shuffled_by_the_seed_alone() -> None:
    """One seed gives one order, another seed another, and every arm comes first in about a third of the rounds."""

    def order(seed: int) -> list[str]:
        calls: list[str] = []
        arms = {name: (lambda _, name=name: calls.append(name)) for name in "abc"}
        interleaved(arms, repeats=60, seed=seed)
        return calls

    assert order(7) == order(7) != order(8)
    first = Counter(order(7)[::3])
    assert set(first) == set("abc")
    assert min(first.values()) >= 10


@given(repeats=st.integers(1, 5), seed=st.integers(), groups=st.sampled_from([["ab"], ["ab", "de"], ["ace"], [["c"]]]))
@quick
def test_arms_that_will_be_compared_follow_each_other(repeats: int, seed: int, groups: list[Sequence[str]]) -> None:
    """In every round a group stands in one piece, in any order, and every arm still runs once."""
    calls: list[str] = []
    arms = {name: (lambda _, name=name: calls.append(name)) for name in "abcde"}
    interleaved(arms, repeats=repeats, seed=seed, together=groups)
    for one_round in (calls[k : k + 5] for k in range(0, len(calls), 5)):
        assert sorted(one_round) == list("abcde")
        for group in groups:
            places = sorted(one_round.index(name) for name in group)
            assert places == list(range(places[0], places[0] + len(group)))


def test_what_cannot_be_compared_is_refused() -> None:
    """No arm, no repeat, and groups with an unknown arm or one named twice: refused before anything runs."""
    arms = dict.fromkeys("abc", lambda _: pytest.fail("it ran"))
    groups = {"ax": "'x', and there is no such arm", "aa": "'a' 2 times"}
    for group, message in groups.items():
        with pytest.raises(UsageError, match=message):
            interleaved(arms, repeats=1, seed=0, together=[group])
    with pytest.raises(UsageError, match="'b' 2 times"):
        interleaved(arms, repeats=1, seed=0, together=["ab", "bc"])
    with pytest.raises(UsageError, match="0 arms"):
        interleaved({}, repeats=1, seed=0)
    with pytest.raises(UsageError, match="0 arms"):
        in_turns({}, seed=0)
    with pytest.raises(UsageError, match="repeats is 0"):
        interleaved(arms, repeats=0, seed=0)


def test_progress_counts_every_measurement() -> None:
    """The callback hears of each measurement before it runs and of the end once."""
    heard: list[tuple[int, int, str]] = []
    interleaved({"a": lambda _: 0, "b": lambda _: 0}, repeats=3, seed=1, progress=lambda *step: heard.append(step))
    assert [done for done, _, _ in heard] == list(range(7))
    assert {total for _, total, _ in heard} == {6}
    assert heard[-1] == (6, 6, "")
    assert all(arm in ("a", "b") for _, _, arm in heard[:-1])


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_error_names_arm_and_round(kind: type[BaseException]) -> None:
    """The arm's own exception comes out, with a note on where it struck, and nothing runs after it."""
    calls: list[int] = []

    def fails(index: int) -> None:
        calls.append(index)
        if index == 1:
            raise kind("boom")

    with pytest.raises(kind, match="boom") as caught:
        interleaved({"bad arm": fails}, repeats=5, seed=0)
    assert caught.value.__notes__ == ["while measuring arm 'bad arm', round 2 of 5"]
    assert calls == [0, 1]


# --- turns


class HandClock:
    """A clock that only moves when an arm works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def working(clock: HandClock, name: str, steps: int, cost_s: float, calls: list[str]) -> Steps[str]:
    for _ in range(steps):
        clock.now += cost_s
        calls.append(name)
        yield
    return f"{name} is done"


@given(st.dictionaries(st.sampled_from("abcde"), st.integers(0, 8), min_size=1), st.integers(), st.floats(0.5, 2))
@quick
def test_arms_take_a_step_each_and_get_their_own_seconds(lengths: dict[str, int], seed: int, load: float) -> None:
    """In each turn every arm that has not ended takes one step; an arm's seconds are those of its own steps, whatever
    the others spend; results come in the arms' order."""
    clock, calls = HandClock(), list[str]()
    costs = {name: load * (1 + index) for index, name in enumerate(lengths)}
    turns = in_turns(
        {name: working(clock, name, n, costs[name], calls) for name, n in lengths.items()}, seed=seed, clock=clock
    )
    for turn in range(max(lengths.values())):
        expected = sorted(name for name, n in lengths.items() if n > turn)
        assert sorted(calls[: len(expected)]) == expected
        del calls[: len(expected)]
    assert not calls
    assert list(turns) == list(lengths)
    for name, n in lengths.items():
        assert turns[name].result == f"{name} is done"
        assert turns[name].seconds == pytest.approx(n * costs[name])
        assert turns[name].steps_s == pytest.approx([costs[name]] * n + [0.0])


def test_a_machine_that_slows_down_for_a_while_hits_both_arms_alike() -> None:
    """In turns the ratio stays what it is on a quiet machine; measured one after the other, it would not."""
    clock = HandClock()

    def work(cost_s: float) -> Steps[None]:
        for _ in range(20):
            clock.now += cost_s * (3 if 5 <= clock.now < 25 else 1)
            yield

    both = in_turns({"a": work(1.0), "b": work(0.5)}, seed=0, clock=clock)
    assert both["a"].seconds / both["b"].seconds == pytest.approx(2, rel=0.1)
    clock.now = 0.0
    alone = {name: in_turns({"": work(cost_s)}, seed=0, clock=clock)[""] for name, cost_s in (("a", 1.0), ("b", 0.5))}
    assert alone["a"].seconds / alone["b"].seconds > 2.5


def test_the_order_within_a_turn_changes_and_a_seed_repeats_it() -> None:
    """Each arm comes first at times, and the same seed gives the same order."""

    def order(seed: int) -> list[str]:
        calls: list[str] = []
        in_turns({name: working(HandClock(), name, 30, 1.0, calls) for name in "ab"}, seed=seed)
        return calls

    assert set(order(1)[::2]) == {"a", "b"}
    assert order(1) == order(1) != order(2)


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt()])
def test_a_failure_names_the_arm_and_its_step_and_closes_the_others(error: BaseException) -> None:
    """An arm that is left in the middle gets to put away what it holds."""
    put_away = []

    def patient() -> Steps[None]:
        try:
            while True:
                yield
        finally:
            put_away.append("patient")

    def failing() -> Steps[None]:
        yield
        raise error

    with pytest.raises(type(error)) as caught:
        in_turns({"bad": failing(), "patient": patient()}, seed=0)
    assert caught.value.__notes__ == ["while arm 'bad' took its step 2"]
    assert put_away == ["patient"]


# --- intervals and ratios


@given(pairs, st.sampled_from([0.8, 0.95, 0.99]), st.floats(0.01, 100), st.integers(0, 2**32))
@quick
def test_a_ratio_is_fair(together: list[tuple[float, float]], confidence: float, factor: float, seed: int) -> None:
    """The geometric mean of the pairwise ratios, inside its bounds, the same for a seed; it has no unit, and swapping
    the arms inverts it with its bounds."""
    a, b = [x for x, _ in together], [y for _, y in together]
    ratio = paired_ratio(a, b, confidence=confidence, seed=seed)
    assert 0 < ratio.low <= ratio.value <= ratio.high
    assert ratio.value == pytest.approx(stats.gmean([x / y for x, y in together]))
    assert ratio.values == pytest.approx([x / y for x, y in together])
    assert ratio.pairs == len(together)
    assert paired_ratio(a, b, confidence=confidence, seed=seed) == ratio
    bounds = (ratio.value, ratio.low, ratio.high)
    scaled = paired_ratio([x * factor for x in a], [y * factor for y in b], confidence=confidence, seed=seed)
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx(bounds, rel=1e-9)
    back = paired_ratio(b, a, confidence=confidence, seed=seed)
    assert (1 / back.value, 1 / back.high, 1 / back.low) == pytest.approx(bounds)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12), st.sampled_from(["mean", "median"]))
@quick
def test_interval_of_a_statistic(values: list[float], statistic: Statistic) -> None:
    """An interval holds the statistic that numpy computes, and more confidence never makes it narrower."""
    wide, narrow = (interval(values, statistic=statistic, confidence=c) for c in (0.99, 0.8))
    oracle = np.mean(values) if statistic == "mean" else np.median(values)
    assert wide.value == pytest.approx(oracle)
    assert wide.low <= narrow.low <= wide.value <= narrow.high <= wide.high


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_coverage_is_about_nominal(n: int) -> None:
    """Of 400 lognormal experiments with a true ratio of 2, near 95% of the intervals hold it, few repeats or many.

    (The plain percentile bootstrap holds 75% at n = 3, which this bound refuses.)
    """
    rng = np.random.default_rng(n)
    held = 0
    for _ in range(400):
        b = rng.lognormal(0.0, 0.3, n)
        a = b * 2.0 * rng.lognormal(0.0, 0.2, n)
        found = paired_ratio(a.tolist(), b.tolist())
        held += found.low <= 2.0 <= found.high
    assert 0.90 <= held / 400 <= 0.99


def test_interval_narrows_to_the_t_interval_of_many_values() -> None:
    """For many normal values the bootstrap agrees with Student's t interval, an independent formula."""
    values = np.random.default_rng(1).normal(10, 2, 400)
    found = interval(values.tolist())
    low, high = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)


def test_one_pair_has_no_interval_and_says_so() -> None:
    """One repeat gives low = high = value with a warning and settles nothing; equal repeats give no warning."""
    one = paired_ratio([6.0], [2.0], name="speed-up")
    assert (one.low, one.value, one.high) == pytest.approx((3, 3, 3))
    assert one.warning is not None
    assert "'speed-up' rests on 1 pair" in one.warning
    assert not one.differs
    assert interval([5.0]).warning is not None
    same = paired_ratio([6.0, 3.0], [2.0, 1.0])
    assert (same.low, same.high) == pytest.approx((3, 3))
    assert same.warning is None
    assert same.differs


def test_bad_questions_are_usage_errors() -> None:
    """A ratio refuses what has none, with arm, place and number; so do unequal lengths and unknown statistics."""
    good = [1.0, 2.0]
    for bad in (0.0, -1.5, math.nan, math.inf):
        for arm, pair in (("first", ([1.0, bad], good)), ("second", (good, [1.0, bad]))):
            with pytest.raises(UsageError, match=f"{arm} arm of ratio 'r': value 1 is {bad}"):
                paired_ratio(*pair, name="r")
    with pytest.raises(UsageError, match="2 values cannot pair with 1"):
        paired_ratio(good, [1.0])
    with pytest.raises(UsageError, match="0 values"):
        paired_ratio([], [])
    with pytest.raises(UsageError, match="confidence is 95"):
        interval(good, confidence=95)
    with pytest.raises(UsageError, match="'mode'"):
        interval([1.0], statistic="mode")  # type: ignore[arg-type]


# --- stopwatch


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.fixture
def burner() -> Iterator[Callable[[float], "subprocess.Popen[str]"]]:
    """Starts a child that waits for a line, burns CPU-seconds, says so and waits for another line to end."""
    started: list[subprocess.Popen[str]] = []

    def start(seconds: float) -> "subprocess.Popen[str]":
        command = [sys.executable, "-S", "-E", "-c", BURN, str(seconds)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


def tell(child: "subprocess.Popen[str]") -> None:
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()


def until_burnt(child: "subprocess.Popen[str]") -> None:
    assert child.stdout is not None
    assert child.stdout.readline() == "burnt\n"


def test_sleep_costs_wall_time_and_no_cpu() -> None:
    """A sleeping block has wall seconds and next to no CPU-seconds; a burning one has both."""
    with Stopwatch() as asleep:
        time.sleep(0.2)
    with Stopwatch() as busy:
        burn(0.2)
    assert asleep.wall_s >= 0.2
    assert asleep.own_cpu_s < 0.1
    assert 0.2 <= busy.own_cpu_s <= busy.cpu_s + 1e-6  # two subtractions, rounded each
    assert busy.pids_cpu_s == 0


def test_a_given_process_is_told_apart_from_its_client(burner: Callable[[float], "subprocess.Popen[str]"]) -> None:
    """pids_cpu_s holds what the server burnt inside the block, not its client's share; cpu_s counts each once."""
    child = burner(0.3)
    with Stopwatch(pids=[child.pid]) as watch:
        burn(0.2)
        tell(child)
        until_burnt(child)
    assert 0.27 <= watch.pids_cpu_s < 0.45
    assert 0.2 <= watch.own_cpu_s < 0.3
    assert watch.cpu_s == pytest.approx(watch.own_cpu_s + watch.pids_cpu_s, abs=0.05)


def test_children_that_ended_inside_count_once(burner: Callable[[float], "subprocess.Popen[str]"]) -> None:
    """A child that was alive at the start and waited for inside adds what it burnt inside, and only that."""
    child = burner(0.3)
    with Stopwatch() as watch:
        tell(child)
        until_burnt(child)
        child.communicate("done\n")
    with Stopwatch() as after:
        pass
    assert 0.27 <= watch.cpu_s - watch.own_cpu_s < 0.45
    assert after.cpu_s < 0.1


def time_a_death(child: "subprocess.Popen[str]", error: Exception | None = None) -> None:
    with Stopwatch(pids=[child.pid]):
        child.kill()
        child.wait()
        if error is not None:
            raise error


def test_a_process_that_dies_inside_is_an_error(burner: Callable[[float], "subprocess.Popen[str]"]) -> None:
    """A timed server's death is reported with its pid, unless the block itself raised: that error wins."""
    child = burner(0.0)
    with pytest.raises(ServerError, match=f"process {child.pid} is not running: it ended"):
        time_a_death(child)
    with pytest.raises(ValueError, match="first cause"):
        time_a_death(burner(0.0), ValueError("first cause"))


def test_stopwatch_misuse_is_a_usage_error() -> None:
    """An unknown pid, one that has ended and a reading before the end are refused."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    while psutil.Process(ended.pid).status() != psutil.STATUS_ZOMBIE:  # ended, and nobody has waited for it yet
        time.sleep(0.01)
    with pytest.raises(UsageError, match=str(ended.pid)), Stopwatch(pids=[ended.pid]):
        pass
    ended.wait()
    free = next(pid for pid in range(4_000_000, 4_194_304) if not psutil.pid_exists(pid))
    with pytest.raises(UsageError, match=str(free)), Stopwatch(pids=[free]):
        pass
    with pytest.raises(UsageError, match="no reading yet"):
        _ = Stopwatch().wall_s


# --- the lie detector


def codes(found: list[Caution]) -> list[str]:
    return [caution.code for caution in found]


def test_sound_conditions_call_for_no_caution() -> None:
    """An open loop on a warmed server with 200 requests, a quiet client and the expected hit rate passes."""
    assert (
        warnings_for(
            requests=200,
            warmup=4,
            rate=2.0,
            client_cpu_share=0.1,
            seed=2,
            seeds_before=[1],
            hit_rate=0.51,
            shared_share=0.5,
            pairs=5,
            machines={"a": "2 CPUs", "b": "2 CPUs"},
        )
        == []
    )
    assert warnings_for() == []


@pytest.mark.parametrize(
    ("conditions", "code", "numbers"),
    [
        ({"seed": 7, "seeds_before": {7}, "hit_rate": 0.78}, "warm-cache", ["seed 7", "78%", "0%"]),
        ({"seed": 7, "seeds_before": {7}}, "warm-cache", ["seed 7"]),
        ({"seed": 7, "hit_rate": 0.4, "shared_share": 0.2}, "warm-cache", ["40%", "20%"]),
        ({"hit_rate": 0.03, "shared_share": 0.5, "warmup": 2}, "cold-cache", ["50%", "3%", "2 warm-up"]),
        ({"warmup": 0, "requests": 150}, "no-warmup", ["150"]),
        ({"requests": 40}, "too-few-samples", ["40", "100", "60 more"]),
        ({"client_cpu_share": 0.93}, "client-bound", ["93%", "80%"]),
        ({"concurrency": 16}, "closed-loop", ["16"]),
        ({"pairs": 2}, "too-few-pairs", ["2 pairs"]),
        ({"machines": {"a": "2 CPUs", "b": "1 GPU", "c": "2 CPUs"}}, "mixed-machines", ["a, c: 2 CPUs", "b: 1 GPU"]),
    ],
)
def test_each_lie_is_detected_alone(conditions: dict[str, object], code: str, numbers: list[str]) -> None:
    """Each condition calls for its own caution, with the numbers and a remedy, and for no other."""
    found = warnings_for(**conditions)  # type: ignore[arg-type]
    assert codes(found) == [code]
    assert all(number in str(found[0]) for number in numbers)
    assert found[0].remedy
    assert found[0].remedy in str(found[0])


def test_a_replay_that_hit_nothing_is_no_lie() -> None:
    """The same seed again is harmless where the cache's own counter shows no hits (it is off, or was reset)."""
    assert warnings_for(seed=7, seeds_before={7}, hit_rate=0.0) == []


@given(st.floats(0.5, 99.99))
def test_samples_needed_puts_one_beyond_the_percentile(percentile: float) -> None:
    """With that many samples one lies beyond the percentile on average; with one fewer it does not."""
    needed, tail = samples_needed(percentile), min(percentile, 100 - percentile) / 100
    assert needed * tail >= 1 - 1e-6
    assert (needed - 1) * tail < 1


def test_percentiles_by_name() -> None:
    """p50 needs 2 samples, p90 10, p99 100, p99.9 1000; at the number itself there is no caution."""
    assert [samples_needed(p) for p in (50, 90, 99, 99.9)] == [2, 10, 100, 1000]
    assert warnings_for(requests=100) == []
    with pytest.raises(UsageError, match="percentile is 100"):
        samples_needed(100)


def test_shares_outside_0_to_1_are_refused() -> None:
    """A hit rate in percent is a mistake, not a warm cache."""
    with pytest.raises(UsageError, match="hit_rate is 78"):
        warnings_for(hit_rate=78)
    with pytest.raises(UsageError, match="shared_share is -1"):
        warnings_for(shared_share=-1)
