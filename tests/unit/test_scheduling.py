"""What a step computes and what the users notice: the rule of the chunks, traces, the cost of a step, refused sizes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.theory.steps import Step, StepCost, Trace, check_sizes, chunk_sizes, undisturbed

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


# --- chunks ---


@given(st.integers(1, 3000), st.integers(1, 600), st.integers(0, 40), st.integers(0, 700))
def test_chunks_are_those_of_the_scheduler_token_by_token(prompt: int, room: int, decoding: int, limit: int) -> None:
    """The rule agrees with handing out every token of every step by itself."""
    assert chunk_sizes(prompt, room + decoding, decoding, limit) == simulated(prompt, room + decoding, decoding, limit)


@given(st.integers(1, 3000), st.integers(1, 600), st.integers(0, 40))
def test_a_smaller_budget_never_makes_larger_or_fewer_chunks(prompt: int, room: int, decoding: int) -> None:
    """The streams' stall and the number of steps move in opposite directions."""
    small, large = (chunk_sizes(prompt, room + more + decoding, decoding) for more in (0, 1))
    assert max(small) <= max(large)
    assert len(small) >= len(large)


# --- traces ---


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """A run in which two streams get a token a step, and a prompt comes in parts after some of them."""
    parts = draw(st.lists(st.integers(1, 50), min_size=1, max_size=5))
    before, after = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    trace = Trace()
    trace.arrives("A", "B")
    plans = (
        [{"A": 1, "B": 1}] * before + [{"A": 1, "B": 1, "long": part} for part in parts] + [{"A": 1, "B": 1}] * after
    )
    for number, plan in enumerate(plans):
        if number == before:
            trace.arrives("long")
        answers = {name: list(range(number + 1)) for name in "AB"}
        if number == before + len(parts) - 1:
            answers["long"] = [7]
        trace.record(draw(SECONDS), plan, answers)
    return trace


@given(traces())
def test_gaps_fill_the_time_between_first_and_last_token(trace: Trace) -> None:
    """A stream's gaps add up to the time from its first token to its last, and no gap exceeds the stall."""
    times, gaps = trace.token_times_s("A"), trace.gaps_s(["A"])
    assert sum(gaps) == pytest.approx(times[-1] - times[0])
    assert max(gaps) == pytest.approx(trace.stall_s)
    assert trace.streams == ["A", "B"]


@given(traces())
def test_a_prompts_chunks_fill_the_time_until_its_first_token(trace: Trace) -> None:
    """The parts of a prompt that is computed from its arrival on take its TTFT, and hold all of its tokens."""
    spans = trace.chunk_spans_s("long")
    assert sum(end - begin for begin, end, _ in spans) == pytest.approx(trace.ttft_s("long"))
    assert [tokens for _, _, tokens in spans] == trace.chunks("long")
    assert sum(trace.chunks("long")) == sum(plan.get("long", 0) for plan in trace.schedule)


@given(traces())
def test_throughput_counts_every_computed_token_once(trace: Trace) -> None:
    """Tokens per second times seconds are the tokens of all plans."""
    computed = sum(sum(plan.values()) for plan in trace.schedule)
    assert trace.tokens_per_s * trace.duration_s == pytest.approx(computed)


def test_a_request_that_waits_has_a_longer_ttft_than_its_chunks_take() -> None:
    """What comes before the first part of a prompt is waiting, and belongs to its TTFT."""
    trace = Trace()
    trace.arrives("A")
    trace.record(1.0, {"A": 1}, {"A": [1]})
    trace.arrives("newcomer")
    trace.record(2.0, {"A": 1}, {"A": [1, 2]})
    trace.record(0.5, {"A": 1, "newcomer": 3}, {"A": [1, 2, 3], "newcomer": [9]})
    assert trace.ttft_s("newcomer") == 2.5
    assert trace.chunk_spans_s("newcomer") == [(3.0, 3.5, 3)]
    assert trace.arrived_s("newcomer") == 1.0
    assert trace.stall_s == 2.0


def slowed(trace: Trace, factors: list[float]) -> Trace:
    """The same run while somebody else used the machine: each step by so much longer."""
    steps = [Step(one.seconds * by, one.planned, one.produced) for one, by in zip(trace.steps, factors, strict=False)]
    return Trace(steps, dict(trace.arrived), dict(trace.token_ids))


@given(traces(), st.data())
def test_what_disturbs_each_step_in_all_runs_but_one_is_not_seen(trace: Trace, data: st.DataObject) -> None:
    """Any two of three runs may be slowed down at any step: what is left is the run on a quiet machine."""
    places = range(len(trace.steps))
    calm = data.draw(st.lists(st.integers(0, 2), min_size=len(places), max_size=len(places)))
    by = data.draw(st.lists(st.floats(1, 3), min_size=len(places), max_size=len(places)))
    runs = [slowed(trace, [1.0 if calm[k] == number else by[k] for k in places]) for number in range(3)]
    found = undisturbed(runs)
    assert found == trace
    assert found.duration_s <= min(run.duration_s for run in runs)


def test_runs_of_different_scenes_have_no_shortest_steps() -> None:
    """Which run differs is named: a shortest step of two schedules would be of neither."""
    one, other = Trace(), Trace()
    one.record(1.0, {"a": 1}, {"a": [5]})
    other.record(1.0, {"a": 2}, {"a": [5]})
    with pytest.raises(UsageError, match="run 2 of 2"):
        undisturbed([one, other])
    with pytest.raises(UsageError, match="0 traces"):
        undisturbed([])


def test_a_step_without_a_new_token_is_no_token_time() -> None:
    """An answer that did not grow in a step got no token in it."""
    trace = Trace()
    trace.arrives("A")
    for tokens in ([1], [1], [1, 2]):
        trace.record(1.0, {"A": 1}, {"A": tokens})
    assert trace.token_times_s("A") == [1.0, 3.0]


# --- the cost of a step ---


@given(SECONDS, st.floats(1e-5, 0.1), st.integers(1, 64), st.integers(1, 4000))
def test_a_line_through_two_of_its_steps_is_found_again(fixed: float, token: float, few: int, more: int) -> None:
    """Two steps of a machine with a known cost give this cost back."""
    cost = StepCost(fixed_s=fixed, token_s=token)
    found = StepCost.through((few, cost.seconds(few)), (few + more, cost.seconds(few + more)))
    assert found.fixed_s == pytest.approx(fixed, rel=1e-3, abs=1e-6)
    assert found.token_s == pytest.approx(token, rel=1e-3)
    assert found.knee_tokens == pytest.approx(fixed / token, rel=1e-2)


@given(st.integers(1, 3000), st.integers(1, 600), st.integers(0, 40), SECONDS, st.floats(1e-5, 0.1))
def test_smaller_parts_shorten_the_stall_and_lengthen_the_ttft(
    prompt: int, room: int, decoding: int, fixed: float, token: float
) -> None:
    """For every cost of a step: the streams never lose by a smaller budget, the long prompt never gains."""
    cost = StepCost(fixed_s=fixed, token_s=token)
    small, large = (chunk_sizes(prompt, room + more + decoding, decoding) for more in (0, 7))
    assert cost.stall_s(small, decoding) <= cost.stall_s(large, decoding)
    assert cost.ttft_s(small, decoding) >= cost.ttft_s(large, decoding) * (1 - 1e-9)


@given(st.integers(1, 10_000), SECONDS, st.floats(1e-5, 0.1))
def test_headroom_is_the_gain_of_steps_without_a_limit(budget: int, fixed: float, token: float) -> None:
    """Throughput of steps of a size, times their headroom, is what computing alone would allow."""
    cost = StepCost(fixed_s=fixed, token_s=token)
    assert budget / cost.seconds(budget) * cost.headroom(budget) == pytest.approx(1 / token)


@pytest.mark.parametrize(("light", "heavy"), [((8, 0.1), (8, 0.2)), ((4, 0.1), (80, 0.1)), ((9, 0.1), (8, 0.2))])
def test_steps_that_make_no_line_are_refused(light: tuple[int, float], heavy: tuple[int, float]) -> None:
    """A heavier step that took no longer tells no cost by token."""
    with pytest.raises(UsageError, match="do not make a cost"):
        StepCost.through(light, heavy)


def test_a_fixed_cost_is_never_negative() -> None:
    """Noise that would put the line below zero at no tokens leaves a fixed part of 0."""
    assert StepCost.through((10, 0.01), (20, 0.5)).fixed_s == 0


# --- refused sizes ---

GOOD: dict[str, Any] = {
    "budgets": [128, 2048],
    "threshold": 128,
    "chunked_prefill": True,
    "max_num_seqs": 8,
    "max_model_len": 2048,
    "longest_model_len": 8192,
    "long_prompt_tokens": 640,
    "streams": 4,
}


@pytest.mark.parametrize(
    "change", [{}, {"threshold": 0}, {"chunked_prefill": False, "budgets": [2048, 4096]}, {"long_prompt_tokens": 2047}]
)
def test_sizes_that_work_pass(change: dict[str, Any]) -> None:
    """The lab's defaults pass, and so do the limits themselves."""
    check_sizes(**{**GOOD, **change})


@pytest.mark.parametrize(
    ("change", "says", "remedy"),
    [
        ({"budgets": [4, 2048]}, "the budget 4 is below max_num_seqs, 8", "at least 8"),
        ({"long_prompt_tokens": 2048}, "a prompt of 2048 tokens", "long_prompt_tokens=2047 or less"),
        ({"max_model_len": 9000}, "made for 8192 positions", "max_model_len=8192 or less"),
        ({"chunked_prefill": False}, "the budget 128 is below max_model_len, 2048", "chunked_prefill=True"),
        ({"budgets": [512, 512]}, "nothing to compare", "at least two"),
        ({"budgets": []}, "nothing to compare", "at least two"),
        ({"streams": 7}, "are 9 sequences", "max_num_seqs=9 or more"),
        ({"threshold": 2048}, "the threshold 2048 does not lie below", "or 0 for none"),
        ({"threshold": -1}, "the threshold -1 does not lie below", "or 0 for none"),
    ],
)
def test_sizes_that_cannot_work_are_refused(change: dict[str, Any], says: str, remedy: str) -> None:
    """The two numbers that do not go together stand in the message, and the way out in the remedy."""
    with pytest.raises(UsageError, match=says) as caught:
        check_sizes(**{**GOOD, **change})
    assert remedy in caught.value.remedy


@given(st.data(), st.integers(6, 300), st.integers(1, 2047))
def test_what_is_accepted_never_stops_a_prompt(data: st.DataObject, budget: int, prompt: int) -> None:
    """Sizes that pass leave the prompt two tokens of every step or more: it is computed to its end."""
    seqs = data.draw(st.integers(6, budget))
    streams = data.draw(st.integers(1, seqs - 2))
    sizes = {"budgets": [budget, 4096], "threshold": 0, "max_num_seqs": seqs, "streams": streams}
    check_sizes(**{**GOOD, **sizes, "long_prompt_tokens": prompt})
    assert min(2, prompt) <= chunk_sizes(prompt, budget, streams)[0]
    assert sum(chunk_sizes(prompt, budget, streams)) == prompt
