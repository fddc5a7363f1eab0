"""The cost model of a batch: what two numbers say of time, speed-up and the answers' length."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.theory.steps import Batch, fit
from labkit.theory.steps import LinearStepCost as StepCost

quick = settings(max_examples=100, deadline=None)
seconds = st.floats(1e-6, 10)
costs = st.builds(lambda step_s, token_s: StepCost(step_s=step_s, token_s=token_s), seconds, seconds)


@st.composite
def batches(draw: st.DrawFn, *, cached: bool = True) -> Batch:
    """A batch with any number of hits that is possible."""
    requests, prompt, output = draw(st.integers(1, 50)), draw(st.integers(2, 500)), draw(st.integers(1, 100))
    hits = draw(st.integers(0, requests * (prompt - 1))) if cached else 0
    return Batch(requests=requests, prompt_tokens=prompt, output_tokens=output, cached_tokens=hits)


def played(batch: Batch, cost: StepCost) -> float:
    """The oracle: the batch step by step, the prefill in pieces of the budget."""
    steps, left = [], batch.requests * batch.prompt_tokens - batch.cached_tokens
    while left:
        size = min(left, cost.budget_tokens or left)
        steps.append(size)
        left -= size
    steps += [batch.requests] * (batch.output_tokens - 1)
    return sum(cost.step_s + size * cost.token_s for size in steps)


@quick
@given(batches(), costs, st.integers(1, 4000) | st.none())
def test_a_batch_takes_its_steps(batch: Batch, cost: StepCost, budget: int | None) -> None:
    """The formula is the sum over the steps, played one by one."""
    limited = StepCost(step_s=cost.step_s, token_s=cost.token_s, budget_tokens=budget)
    assert limited.seconds(batch) == pytest.approx(played(batch, limited))


@quick
@given(batches(), costs)
def test_hits_never_slow_a_batch_down(batch: Batch, cost: StepCost) -> None:
    """Never below 1, and exactly 1 without hits."""
    assert cost.speedup(batch) >= 1
    assert cost.speedup(batch.without_cache()) == 1


@quick
@given(batches(), costs, st.integers(1, 50))
def test_longer_answers_make_hits_worth_less(batch: Batch, cost: StepCost, more: int) -> None:
    """The same hits with longer answers never speed up more."""
    longer = Batch(
        requests=batch.requests,
        prompt_tokens=batch.prompt_tokens,
        output_tokens=batch.output_tokens + more,
        cached_tokens=batch.cached_tokens,
    )
    assert cost.speedup(longer) <= cost.speedup(batch) + 1e-12


@quick
@given(batches(cached=False), costs, st.integers(1, 30))
def test_the_length_for_a_speedup_is_its_inverse(batch: Batch, cost: StepCost, hits: int) -> None:
    """The length that is computed for a batch's own speed-up is the batch's own length."""
    found = min(hits, batch.requests * (batch.prompt_tokens - 1))
    whole = Batch(
        requests=batch.requests,
        prompt_tokens=batch.prompt_tokens,
        output_tokens=batch.output_tokens,
        cached_tokens=found,
    )
    gain = cost.speedup(whole)
    if gain > 1.001:
        assert cost.output_tokens_for(gain, whole) == pytest.approx(whole.output_tokens, rel=1e-3, abs=1e-3)


PROBES = (
    Batch(requests=4, prompt_tokens=160, output_tokens=1),
    Batch(requests=1, prompt_tokens=160, output_tokens=1),
    Batch(requests=4, prompt_tokens=16, output_tokens=9),
)


@quick
@given(seconds, seconds)
def test_the_costs_are_found_again(step_s: float, token_s: float) -> None:
    """Of batches that take what the model says, fit finds the two numbers."""
    true = StepCost(step_s=step_s, token_s=token_s)
    found = fit([(probe, true.seconds(probe)) for probe in PROBES])
    assert [found.seconds(probe) for probe in PROBES] == pytest.approx([true.seconds(probe) for probe in PROBES])


def test_no_cost_is_below_zero() -> None:
    """Times that would ask for a negative cost give zero for it."""
    found = fit([(PROBES[0], 1.0), (PROBES[1], 0.2), (PROBES[2], 0.01)])
    assert (found.step_s, found.token_s > 0) == (0, True)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([(PROBES[0], 0.0), (PROBES[1], 1.0)], "0 seconds or less"),
        ([(PROBES[0], float("nan")), (PROBES[1], 1.0)], "0 seconds or less"),
        ([(PROBES[0], 1.0), (PROBES[0], 1.1)], "2 batches with the same number"),
        ([], "0 batches"),
    ],
)
def test_times_that_tell_nothing_are_refused(runs: list[tuple[Batch, float]], message: str) -> None:
    """No time, and batches that cannot tell step from token."""
    with pytest.raises(UsageError, match=message):
        fit(runs)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"requests": 0}, "below 1"),
        ({"output_tokens": 0}, "below 1"),
        ({"cached_tokens": 37}, "37 cached tokens in a batch of 4 x 10"),
        ({"cached_tokens": -1}, "-1 cached tokens"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(values: dict[str, int], message: str) -> None:
    """At least one of each, and at least one token of each prompt to compute."""
    with pytest.raises(UsageError, match=message):
        Batch(**{"requests": 4, "prompt_tokens": 10, "output_tokens": 1, **values})


def test_no_length_makes_a_cache_slow() -> None:
    """A speed-up of 1 or less has no length."""
    with pytest.raises(UsageError, match="a speed-up of 1"):
        StepCost(step_s=1, token_s=1).output_tokens_for(1, PROBES[0])
