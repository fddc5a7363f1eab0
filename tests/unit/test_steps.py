"""What a step computes and what users notice: the rule of the chunks, logs of steps, what a step and a batch cost."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.theory.steps import Batch, StepCost, StepLog, chunk_sizes, undisturbed

SECONDS = st.floats(0.001, 10)


def simulated(prompt_tokens: int, budget: int, decoding: int, threshold: int) -> list[int]:
    """The scheduler's loop, token by token: streams first, then the prompt for as long as a limit allows."""
    sizes = []
    while prompt_tokens:
        left, size = budget - decoding, 0
        while prompt_tokens and left and not (threshold and size == threshold):
            prompt_tokens, left, size = prompt_tokens - 1, left - 1, size + 1
        sizes.append(size)
    return sizes


@given(st.integers(1, 3000), st.integers(1, 600), st.integers(0, 40), st.integers(0, 700))
def test_chunks_are_those_of_the_scheduler_token_by_token(prompt: int, room: int, decoding: int, limit: int) -> None:
    """The rule agrees with handing out every token of every step by itself."""
    assert chunk_sizes(prompt, room + decoding, decoding, limit) == simulated(prompt, room + decoding, decoding, limit)


@st.composite
def step_logs(draw: st.DrawFn) -> StepLog:
    """A run in which two streams get a token a step, and a prompt comes in parts after some of them."""
    parts = draw(st.lists(st.integers(1, 50), min_size=1, max_size=5))
    before, after = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    log = StepLog()
    log.arrives("A", "B")
    plans = (
        [{"A": 1, "B": 1}] * before + [{"A": 1, "B": 1, "long": part} for part in parts] + [{"A": 1, "B": 1}] * after
    )
    for number, plan in enumerate(plans):
        if number == before:
            log.arrives("long")
        answers = {name: list(range(number + 1)) for name in "AB"}
        if number == before + len(parts) - 1:
            answers["long"] = [7]
        log.record(draw(SECONDS), plan, answers)
    return log


@given(step_logs())
def test_a_logs_times_and_tokens_add_up(log: StepLog) -> None:
    """A stream's gaps fill the time from its first token to its last, and the longest is the stall. A prompt's parts
    from its arrival on fill its TTFT and hold all of its tokens. Throughput times seconds are all tokens."""
    times, gaps = log.token_times_s("A"), log.gaps_s(["A"])
    assert sum(gaps) == pytest.approx(times[-1] - times[0])
    assert max(gaps) == pytest.approx(log.stall_s)
    assert log.streams == ["A", "B"]
    spans = log.chunk_spans_s("long")
    assert sum(end - begin for begin, end, _ in spans) == pytest.approx(log.ttft_s("long"))
    assert [tokens for _, _, tokens in spans] == log.chunks("long")
    assert sum(log.chunks("long")) == sum(plan.get("long", 0) for plan in log.schedule)
    assert log.tokens_per_s * log.ends_s[-1] == pytest.approx(sum(sum(plan.values()) for plan in log.schedule))


def test_a_request_that_waits_has_a_longer_ttft_than_its_chunks_take() -> None:
    """What comes before the first part of a prompt is waiting, and belongs to its TTFT. An answer that did not grow in
    a step got no token in it."""
    log = StepLog()
    log.arrives("A")
    log.record(1.0, {"A": 1}, {"A": [1]})
    log.arrives("newcomer")
    log.record(2.0, {"A": 1}, {"A": [1]})
    log.record(0.5, {"A": 1, "newcomer": 3}, {"A": [1, 2], "newcomer": [9]})
    assert (log.ttft_s("newcomer"), log.arrived_s("newcomer"), log.stall_s) == (2.5, 1.0, 2.5)
    assert log.chunk_spans_s("newcomer") == [(3.0, 3.5, 3)]
    assert log.token_times_s("A") == [1.0, 3.5]


@given(step_logs(), st.data())
def test_what_disturbs_each_step_in_all_runs_but_one_is_not_seen(log: StepLog, data: st.DataObject) -> None:
    """Any two of three runs may be slowed down at any step: what is left is the run on a quiet machine."""
    slowdowns = [data.draw(st.permutations([1.0, data.draw(st.floats(1, 3)), 2.0])) for _ in log.steps]
    runs = [
        replace(log, steps=[replace(step, seconds=step.seconds * by[n]) for step, by in zip(log.steps, slowdowns)])  # noqa: B905
        for n in range(3)
    ]
    assert undisturbed(runs) == log


def test_runs_of_different_scenes_have_no_shortest_steps() -> None:
    """Which run differs is named: a shortest step of two schedules would be of neither."""
    one, other = StepLog(), StepLog()
    one.record(1.0, {"a": 1}, {"a": [5]})
    other.record(1.0, {"a": 2}, {"a": [5]})
    for logs, says in (([one, other], "run 2 of 2"), ([], "0 runs")):
        with pytest.raises(UsageError, match=says):
            undisturbed(logs)


COSTS = st.builds(StepCost, fixed_s=SECONDS, token_s=st.floats(1e-5, 0.1))


@given(COSTS, st.integers(1, 64), st.integers(1, 4000))
def test_the_cost_of_two_steps_is_found_again(cost: StepCost, few: int, more: int) -> None:
    """Two steps of a machine with a known cost give it back; throughput of steps of a size, times their headroom, is
    what computing alone would allow."""
    found = StepCost.fit([(1, tokens, cost.seconds(tokens)) for tokens in (few, few + more)])
    assert found.fixed_s == pytest.approx(cost.fixed_s, rel=1e-3, abs=1e-6)
    assert found.token_s == pytest.approx(cost.token_s, rel=1e-3)
    assert more / cost.seconds(more) * cost.headroom(more) == pytest.approx(1 / cost.token_s)


@given(COSTS, st.integers(1, 3000), st.integers(1, 600), st.integers(0, 40))
def test_smaller_parts_shorten_the_stall_and_lengthen_the_ttft(
    cost: StepCost, prompt: int, room: int, decoding: int
) -> None:
    """For every cost of a step: the streams never lose by a smaller budget, the long prompt never gains."""
    small, large = (chunk_sizes(prompt, room + more + decoding, decoding) for more in (0, 7))
    assert cost.stall_s(small, decoding) <= cost.stall_s(large, decoding)
    assert cost.ttft_s(small, decoding) >= cost.ttft_s(large, decoding) * (1 - 1e-9)
    assert cost.ttft_s(small, decoding) == pytest.approx(sum(cost.seconds(part + decoding) for part in small))


def test_times_that_tell_no_cost_are_refused() -> None:
    """Steps of one size, a heavier step that took no longer, and no time; no cost is below zero."""
    refused: list[tuple[str, list[tuple[int, int, float]]]] = [
        ("do not make a cost", [(1, 4, 0.2), (1, 80, 0.1)]),
        ("2 runs with the same number", [(1, 8, 0.1), (1, 8, 0.2)]),
        ("0 runs with the same number", []),
        ("0 seconds or less", [(1, 4, 0.0), (1, 80, 0.1)]),
        ("0 seconds or less", [(1, 4, float("nan")), (1, 80, 0.1)]),
    ]
    for message, timed in refused:
        with pytest.raises(UsageError, match=message):
            StepCost.fit(timed)
    assert StepCost.fit([(1, 10, 0.01), (1, 20, 0.5)]).fixed_s == 0


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """A batch with any number of hits that is possible: the last token of each prompt is always computed."""
    requests, prompt, output = draw(st.integers(1, 50)), draw(st.integers(2, 500)), draw(st.integers(1, 100))
    hits, budget = draw(st.integers(0, requests * (prompt - 1))), draw(st.integers(1, 4000) | st.none())
    sizes = {"requests": requests, "prompt_tokens": prompt, "output_tokens": output}
    return Batch(**sizes, cached_tokens=hits, budget_tokens=budget)


@given(batches(), COSTS)
def test_a_batch_takes_its_steps(batch: Batch, cost: StepCost) -> None:
    """The formula is the sum over the steps, played one by one: the prompts in pieces of the budget."""
    sizes, left = [], batch.requests * batch.prompt_tokens - batch.cached_tokens
    while left:
        sizes.append(min(left, batch.budget_tokens or left))
        left -= sizes[-1]
    sizes += [batch.requests] * (batch.output_tokens - 1)
    assert cost.batch_s(batch) == pytest.approx(sum(map(cost.seconds, sizes)))


@given(batches(), COSTS, st.integers(1, 50))
def test_hits_never_slow_a_batch_down_and_matter_less_with_long_answers(
    batch: Batch, cost: StepCost, more: int
) -> None:
    """The speed-up is never below 1, 1 without hits, and no more with longer answers; the length that is computed for a
    batch's own speed-up is its own length."""
    gain = cost.cache_speedup(batch)
    assert gain >= 1
    assert cost.cache_speedup(replace(batch, cached_tokens=0)) == 1
    assert cost.cache_speedup(replace(batch, output_tokens=batch.output_tokens + more)) <= gain + 1e-12
    one_step = replace(batch, budget_tokens=None)
    if (gain := cost.cache_speedup(one_step)) > 1.001:
        assert cost.output_tokens_for(gain, one_step) == pytest.approx(batch.output_tokens, rel=1e-3, abs=1e-3)
