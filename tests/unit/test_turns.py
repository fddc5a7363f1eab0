"""Arms that take turns, a step of each: nobody is ahead, nobody's time counts for another, none is left open."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.experiments import Steps, in_turns

quick = settings(max_examples=60, deadline=None)


class HandClock:
    """A clock that only moves when somebody works."""

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


lengths = st.dictionaries(st.sampled_from("abcde"), st.integers(0, 8), min_size=1)


@given(lengths=lengths, seed=st.integers())
@quick
def test_no_arm_is_ever_more_than_a_step_ahead(lengths: dict[str, int], seed: int) -> None:
    """In each turn every arm that has not ended takes one step; the order changes, the count does not."""
    clock, calls = HandClock(), list[str]()
    in_turns({name: working(clock, name, n, 1.0, calls) for name, n in lengths.items()}, seed=seed)
    for turn in range(max(lengths.values(), default=0)):
        expected = sorted(name for name, n in lengths.items() if n > turn)
        assert sorted(calls[: len(expected)]) == expected
        del calls[: len(expected)]
    assert not calls


@given(lengths=lengths, seed=st.integers(), weather=st.floats(0.5, 2))
@quick
def test_each_arm_gets_its_result_and_its_own_seconds(lengths: dict[str, int], seed: int, weather: float) -> None:
    """An arm's seconds are those of its own steps, whatever the others spend; results stand in the arms' order."""
    clock = HandClock()
    costs = {name: weather * (1 + index) for index, name in enumerate(lengths)}
    arms = {name: working(clock, name, n, costs[name], []) for name, n in lengths.items()}
    found = in_turns(arms, seed=seed, clock=clock)
    assert list(found) == list(lengths)
    for name, n in lengths.items():
        assert found[name].result == f"{name} is done"
        assert found[name].seconds == pytest.approx(n * costs[name])
        assert found[name].steps_s == pytest.approx([costs[name]] * n + [0.0])


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
    """Nobody always comes first, and the same seed gives the same order."""

    def order(seed: int) -> list[str]:
        calls: list[str] = []
        in_turns({name: working(HandClock(), name, 30, 1.0, calls) for name in "ab"}, seed=seed)
        return calls

    firsts = set(order(1)[::2])
    assert firsts == {"a", "b"}
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


def test_nothing_to_compare_is_refused() -> None:
    """Without an arm there is no comparison, and the message says what to give."""
    with pytest.raises(UsageError, match="0 arms"):
        in_turns({}, seed=0)


def test_an_ordinary_iterator_of_steps_will_do() -> None:
    """A generator that delegates (`yield from`) counts its steps through."""

    def halves() -> Iterator[None]:
        yield
        yield

    def whole() -> Steps[int]:
        yield from halves()
        yield from halves()
        return 4

    assert len(in_turns({"": whole()}, seed=0)[""].steps_s) == 4 + 1
