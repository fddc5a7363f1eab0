"""Repeats, intervals, the stopwatch and cautions."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from labkit.errors import UsageError
from labkit.experiments import (
    Steps,
    Stopwatch,
    client_bound,
    few_samples,
    in_turns,
    interleaved,
    interval,
    mixed_machines,
    paired_ratio,
    samples_needed,
)

positive = st.floats(min_value=1e-3, max_value=1e3)
pairs = st.lists(st.tuples(positive, positive), min_size=1, max_size=12)
quick = settings(max_examples=40)


def refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()


# --- rounds and turns

GROUPS: list[list[Sequence[str]]] = [[], ["ab"], ["ab", "de"], ["ace"], [["c"]]]


@given(repeats=st.integers(1, 6), seed=st.integers(), groups=st.sampled_from(GROUPS))
@quick
def test_every_round_runs_every_arm_once(repeats: int, seed: int, groups: list[Sequence[str]]) -> None:
    """Calls come in rounds that hold every arm once, a group in one piece; results are in the order of rounds."""
    calls: list[tuple[int, str]] = []

    def arm(name: str) -> Callable[[int], tuple[str, int]]:
        def measure(index: int) -> tuple[str, int]:
            calls.append((index, name))
            return name, index

        return measure

    results = interleaved({name: arm(name) for name in "abcde"}, repeats=repeats, seed=seed, together=groups)
    assert results == {name: [(name, index) for index in range(repeats)] for name in "abcde"}
    assert [index for index, _ in calls] == [index for index in range(repeats) for _ in "abcde"]
    for index in range(repeats):
        order = [name for _, name in calls[5 * index : 5 * index + 5]]
        assert sorted(order) == list("abcde")
        for group in groups:
            places = sorted(order.index(name) for name in group)
            assert places == list(range(places[0], places[0] + len(group)))


def test_order_is_shuffled_by_the_seed_alone() -> None:
    """In rounds and in turns one seed gives one order, another seed another, and every arm comes first in about a third
    of them."""

    def rounds(seed: int) -> list[str]:
        calls: list[str] = []
        arms = {name: (lambda _, name=name: calls.append(name)) for name in "abc"}
        interleaved(arms, repeats=60, seed=seed)
        return calls

    def turns(seed: int) -> list[str]:
        calls: list[str] = []
        in_turns({name: working(HandClock(), name, 60, 1.0, calls) for name in "abc"}, seed=seed)
        return calls

    for order in (rounds, turns):
        assert order(7) == order(7) != order(8)
        first = Counter(order(7)[::3])
        assert set(first) == set("abc")
        assert min(first.values()) >= 10


def test_what_cannot_be_compared_is_refused() -> None:
    """No arm, no repeat, and groups with an unknown arm or one named twice: refused before anything runs."""
    arms: dict[str, Callable[[int], Any]] = dict.fromkeys("abc", lambda _: pytest.fail("it ran"))
    groups = {("ax",): "'x', which is not an arm", ("aa",): "'a' 2 times", ("ab", "bc"): "'b' 2 times"}
    for together, message in groups.items():
        refused(lambda together=together: interleaved(arms, repeats=1, seed=0, together=together), message)  # type: ignore[misc]
    refused(lambda: interleaved({}, repeats=1, seed=0), "0 arms")
    refused(lambda: in_turns({}, seed=0), "0 arms")
    refused(lambda: interleaved(arms, repeats=0, seed=0), "repeats is 0")


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
    arms = {name: working(clock, name, n, costs[name], calls) for name, n in lengths.items()}
    turns = in_turns(arms, seed=seed, clock=clock)
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


def test_a_failure_says_where_it_struck() -> None:
    """The arm's own exception, Ctrl-C included, comes out with a note on the arm and its round or step; nothing runs
    after it, and an arm that is left in the middle gets to put away what it holds."""
    for error in (ValueError("boom"), KeyboardInterrupt("boom")):
        events: list[object] = []

        def fails(index: int, error: BaseException = error, events: list[object] = events) -> None:
            events.append(index)
            if index == 1:
                raise error

        def patient(events: list[object] = events) -> Steps[None]:
            try:
                while True:
                    yield
            finally:
                events.append("put away")

        def failing(error: BaseException = error) -> Steps[None]:
            yield
            raise error

        with pytest.raises(type(error), match="boom"):
            interleaved({"bad arm": fails}, repeats=5, seed=0)
        with pytest.raises(type(error), match="boom"):
            in_turns({"bad": failing(), "patient": patient()}, seed=0)
        notes = ["while measuring arm 'bad arm', round 2 of 5", "while arm 'bad' took its step 2"]
        assert error.__notes__ == notes
        assert events == [0, 1, "put away"]


# --- intervals and ratios


@given(pairs, st.floats(0.01, 100), st.integers(0, 2**32))
@quick
def test_a_ratio_is_fair(together: list[tuple[float, float]], factor: float, seed: int) -> None:
    """The geometric mean of the pairwise ratios, inside its bounds, the same for a seed; it has no unit, and swapping
    the arms inverts it with its bounds."""
    a, b = [x for x, _ in together], [y for _, y in together]
    ratio = paired_ratio(a, b, seed=seed)
    assert 0 < ratio.low <= ratio.value <= ratio.high
    assert ratio.value == pytest.approx(stats.gmean([x / y for x, y in together]))
    assert ratio.pairs == len(together)
    assert ratio.values == pytest.approx([x / y for x, y in together])
    assert paired_ratio(a, b, seed=seed) == ratio
    bounds = (ratio.value, ratio.low, ratio.high)
    scaled = paired_ratio([x * factor for x in a], [y * factor for y in b], seed=seed)
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx(bounds, rel=1e-9)
    back = paired_ratio(b, a, seed=seed)
    assert (1 / back.value, 1 / back.high, 1 / back.low) == pytest.approx(bounds)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12))
@quick
def test_an_interval_holds_the_mean(values: list[float]) -> None:
    """The value is the mean that numpy computes, and the interval holds it."""
    found = interval(values)
    assert found.value == pytest.approx(np.mean(values))
    assert found.low <= found.value <= found.high


def test_coverage_is_about_nominal() -> None:
    """Of 400 lognormal experiments with a true ratio of 2, near 95% of the intervals hold it, few repeats or many.

    (The plain percentile bootstrap holds 75% at n = 3, which this bound refuses.)
    """
    for n in (2, 3, 5, 12):
        rng = np.random.default_rng(n)
        held = 0
        for _ in range(400):
            b = rng.lognormal(0.0, 0.3, n)
            found = paired_ratio((b * 2.0 * rng.lognormal(0.0, 0.2, n)).tolist(), b.tolist())
            held += found.low <= 2.0 <= found.high
        assert 0.90 <= held / 400 <= 0.99, n


def test_interval_narrows_to_the_t_interval_of_many_values() -> None:
    """For many normal values the bootstrap agrees with Student's t interval, an independent formula."""
    values = np.random.default_rng(1).normal(10, 2, 400)
    found = interval(values.tolist())
    low, high = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)


def test_one_pair_has_no_interval_and_says_so() -> None:
    """One repeat gives low = high = value with a warning and settles nothing; equal repeats give no warning."""
    one, same = paired_ratio([6.0], [2.0], name="speed-up"), paired_ratio([6.0, 3.0], [2.0, 1.0])
    for ratio in (one, same):
        assert (ratio.low, ratio.value, ratio.high) == pytest.approx((3, 3, 3))
    assert "'speed-up' is from 1 pair" in (one.warning or "")
    assert (one.differs, same.differs, same.warning) == (False, True, None)
    assert interval([5.0]).warning is not None


def test_bad_questions_are_usage_errors() -> None:
    """A ratio refuses what has none, with arm, place and number; so do unequal lengths."""
    good = [1.0, 2.0]
    for bad in (0.0, -1.5, math.nan, math.inf):
        for arm, pair in (("first", ([1.0, bad], good)), ("second", (good, [1.0, bad]))):
            with pytest.raises(UsageError, match=f"{arm} arm of ratio 'r': value 1 is {bad}"):
                paired_ratio(*pair, name="r")
    refused(lambda: paired_ratio(good, [1.0]), "2 values cannot pair with 1")
    refused(lambda: paired_ratio([], []), "0 values")


# --- stopwatch


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_sleep_costs_wall_time_and_no_cpu() -> None:
    """A sleeping block has wall seconds and next to no CPU-seconds; a burning one has both."""
    with Stopwatch() as asleep:
        time.sleep(0.2)
    with Stopwatch() as busy:
        burn(0.2)
    assert asleep.wall_s >= 0.2
    assert asleep.own_cpu_s < 0.1
    assert busy.own_cpu_s >= 0.2


def test_the_stopwatch_is_read_after_its_block() -> None:
    """A reading before the end is refused, also in a second block."""
    watch = Stopwatch()
    refused(lambda: watch.wall_s, "no reading yet")
    for _ in range(2):
        with watch:
            refused(lambda: watch.own_cpu_s, "no reading yet")
        assert watch.wall_s > 0


# --- cautions


def test_a_caution_names_its_numbers_and_the_remedy() -> None:
    """Conditions that make a result misleading get a sentence with their numbers; sound ones get none."""
    few = few_samples(40, percentile=99) or ""
    busy = client_bound(0.93) or ""
    mixed = mixed_machines({"a": "2 CPUs", "b": "1 GPU", "c": "2 CPUs"}) or ""
    expected = {few: ["p99 of 40", "at least 100"], busy: ["93%", "80%"], mixed: ["a, c: 2 CPUs", "b: 1 GPU"]}
    assert [
        (text, part) for text, parts in expected.items() for part in (*parts, "To fix it") if part not in text
    ] == []
    assert few_samples(100, percentile=99) is None
    assert few_samples(0, percentile=99) is None
    assert client_bound(0.8) is None
    assert client_bound(math.nan) is None
    assert mixed_machines({"a": "2 CPUs", "b": "2 CPUs"}) is None


@given(st.floats(0.5, 99.99))
def test_samples_needed_puts_one_beyond_the_percentile(percentile: float) -> None:
    """With that many samples one lies beyond the percentile on average; with one fewer it does not."""
    needed, tail = samples_needed(percentile), min(percentile, 100 - percentile) / 100
    assert needed * tail >= 1 - 1e-6
    assert (needed - 1) * tail < 1
    refused(lambda: samples_needed(100), "percentile is 100")
