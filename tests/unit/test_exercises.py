"""Every exercise of the course: its solution passes, its starter does not, each listed wrong answer is named."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from course.lab_00 import KV_BYTES, WEIGHTS, facts
from course.lab_01 import BROKEN_BENCHMARK, GOODPUT, PADDING, TOKENS_PER_SECOND, TPOT, TPOTS
from labkit.errors import UsageError
from labkit.teaching import ChoiceExercise, Exercise, FunctionExercise, ValueExercise, check, exercises

ALL = list(exercises().values())
every_exercise = pytest.mark.parametrize("exercise", ALL, ids=lambda one: one.id)


def context_of(exercise: Exercise) -> dict[str, Any]:
    """The context in which an exercise is tested: its own data and the example of what it needs."""
    return exercise.context(exercise.needs)


def run_cell(exercise: Exercise, source: str) -> Any:
    """What the learner's cell gives to `check`."""
    names: dict[str, Any] = {"check": lambda _id, answer, context=None: names.update(given=answer, context=context)}
    exec(source, {"facts": exercise.needs}, names)  # our own starters
    return names["given"]


def test_the_first_two_labs_have_their_exercises() -> None:
    """Every exercise is found under its id, which begins with the number of its lab."""
    assert {one.id.split(".")[0] for one in ALL} >= {"00", "01"}
    assert all(exercises()[one.id] is one for one in ALL)


@every_exercise
def test_the_reference_solution_passes(exercise: Exercise) -> None:
    """The reference solution passes and is not diagnosed."""
    context = context_of(exercise)
    result = exercise.judge(exercise.reference(context), context)
    assert result.passed
    assert result.misconceptions == ()


@every_exercise
def test_the_untouched_starter_is_not_answered_and_raises_nothing(exercise: Exercise) -> None:
    """A batch run goes through the learner's cell as it is: not answered yet, no error."""
    result = exercise.judge(run_cell(exercise, exercise.cell()), context_of(exercise))
    assert (result.passed, result.answered) == (False, False)


@every_exercise
def test_each_wrong_answer_gets_its_own_diagnosis(exercise: Exercise) -> None:
    """A listed wrong answer is told its misconception's name, and no two misconceptions are told the same text."""
    context = context_of(exercise)
    told: dict[str, set[str]] = {}
    for name, answer in exercise.wrong_answers(context):
        result = exercise.judge(answer, context)
        assert not result.passed, name
        assert result.misconceptions == (name,)
        told.setdefault(name, set()).add(result.diagnosis)
    texts = [text for one in told.values() for text in one]
    assert len(told) >= 2
    assert len(texts) == len(set(texts)) == len(told)


@every_exercise
def test_two_runs_agree(exercise: Exercise) -> None:
    """Judging the same answer again gives the same result: nothing hangs on time or on chance."""
    context = context_of(exercise)
    answers = [exercise.reference(context), None, "nonsense", *(one for _, one in exercise.wrong_answers(context))]
    first = [exercise.judge(answer, context) for answer in answers]
    assert first == [exercise.judge(answer, context) for answer in answers]


@every_exercise
def test_no_diagnosis_gives_the_answer_away(exercise: Exercise) -> None:
    """Neither a diagnosis nor a hint contains the right number or the right set of options."""
    context = context_of(exercise)
    right = exercise.reference(context)
    if isinstance(exercise, FunctionExercise):
        right = exercise.solution(*exercise.cases[0])
        right = right[0] if isinstance(right, list) else right
    texts = [exercise.judge(answer, context).diagnosis for _, answer in exercise.wrong_answers(context)]
    texts += [exercise.judge("nonsense", context).diagnosis, *exercise.hints]
    told = {f"{right:g}", f"{right:,.0f}"} if isinstance(right, int | float) else {" ".join(sorted(right))}
    assert not [text for text in texts if told & set(text.split()) or any(len(one) > 3 and one in text for one in told)]


@every_exercise
@pytest.mark.parametrize("answer", [[], {}, object(), "words", -1, 0, float("nan"), True, len, lambda: 1, ["A", 3], 1j])
def test_nothing_a_learner_passes_raises(exercise: Exercise, answer: object) -> None:
    """Whatever comes as an answer, check returns a result and does not pass it."""
    assert not exercise.judge(answer, context_of(exercise)).passed


@every_exercise
def test_hints_prompt_and_solution_are_there(exercise: Exercise) -> None:
    """Each exercise has at least two hints, a prompt that can be filled in, and a solution that can be read."""
    assert len(exercise.hints) >= 2
    assert exercise.prompt.format_map(context_of(exercise)).strip()
    assert exercise.solution_text().strip()


@every_exercise
def test_the_shown_solution_is_the_one_that_passes(exercise: Exercise) -> None:
    """The source in the folded solution, run by itself, passes (a choice: its first letters are the right ones)."""
    context = context_of(exercise)
    text = exercise.solution_text()
    if isinstance(exercise, ChoiceExercise):
        codes = {line.split(":")[0] for line in text.splitlines() if not line.startswith("not ")}
        assert exercise.judge(codes, context).passed
        return
    names: dict[str, Any] = {}
    exec("from __future__ import annotations\n" + text, names)  # our own solutions
    function = next(value for name, value in names.items() if text.startswith(f"def {name}("))
    if isinstance(exercise, ValueExercise):
        arguments = {name: context[name] for name in function.__annotations__ if name != "return"}
        assert exercise.judge(function(**arguments), context).passed
    else:
        assert exercise.judge(function, context).passed


# --- lab 00 ---


@dataclass(frozen=True)
class Config:
    """An architecture with the names that `models.Architecture` uses."""

    layers: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    dtype_bytes: int
    parameters: int | None = None


@given(
    layers=st.integers(1, 100),
    kv_heads=st.integers(1, 16),
    group=st.integers(1, 16),
    head_dim=st.sampled_from([32, 64, 80, 128, 256]),
    dtype_bytes=st.sampled_from([1, 2, 4]),
)
def test_kv_bytes_follow_the_config(layers: int, kv_heads: int, group: int, head_dim: int, dtype_bytes: int) -> None:
    """For any config the answer is the size of an array of the cache's shape; with grouping the mistake is named."""
    numpy = pytest.importorskip("numpy")
    heads = kv_heads * group
    config = Config(layers, heads, kv_heads, head_dim, heads * head_dim, dtype_bytes)
    one_token = numpy.zeros((layers, 2, 1, kv_heads, head_dim), dtype=f"u{dtype_bytes}")
    assert KV_BYTES.judge(one_token.nbytes, facts(config)).passed
    assume(group > 1)
    wrong = KV_BYTES.judge(one_token.nbytes * group, facts(config))
    assert not wrong.passed
    assert len(wrong.misconceptions) == 1


def test_the_embedded_models_own_numbers() -> None:
    """SmolLM2-135M in bf16: a block of 128 tokens took 2.95 MB in the engine's log."""
    assert round(128 * KV_BYTES.reference(KV_BYTES.context(KV_BYTES.needs)) / 1e6, 2) == 2.95


def test_a_missing_number_is_a_usage_error() -> None:
    """An exercise on a model's numbers refuses to fall back on another model's."""
    with pytest.raises(UsageError, match="needs layers"):
        KV_BYTES.judge(1)
    with pytest.raises(UsageError, match="parameters"):
        check(WEIGHTS, 1, facts(Config(1, 1, 1, 1, 1, 2, None)))


# --- lab 01 ---


def variants() -> Iterator[Any]:
    """Functions that learners may write, all of them right."""

    def loop(outputs: Any, seconds: float) -> float:
        total = 0
        for one in outputs:
            total += len(one.token_ids)
        return total / seconds

    yield loop
    yield lambda outputs, seconds: sum(map(len, (one.token_ids for one in outputs))) * (1 / seconds)


@pytest.mark.parametrize("function", list(variants()))
def test_a_function_is_judged_by_what_it_returns(function: Any) -> None:
    """However it is written, a right function passes."""
    assert TOKENS_PER_SECOND.judge(function).passed


def test_the_articles_mistake_has_its_name() -> None:
    """The listing's own expression, one output's tokens over the batch's time, is told what it is."""
    result = TOKENS_PER_SECOND.judge(lambda outputs, seconds: len(outputs[0].token_ids) / seconds)
    assert result.misconceptions == ("one output's tokens over the whole batch's time",)


def test_a_function_that_changes_its_arguments_harms_nobody() -> None:
    """A learner's function that empties the list it was given leaves the cases as they were."""

    def greedy(outputs: list[Any], seconds: float) -> float:
        total = 0
        while outputs:
            total += len(outputs.pop().token_ids)
        return total / seconds

    assert TOKENS_PER_SECOND.judge(greedy).passed
    assert TOKENS_PER_SECOND.judge(greedy).passed


def test_a_raising_function_is_told_what_it_raised() -> None:
    """An error in the learner's function is part of the diagnosis, not of the lab."""
    result = GOODPUT.judge(lambda *_: 1 / 0)
    assert "ZeroDivisionError" in result.diagnosis
    assert result.answered


def test_half_filled_blanks_are_not_answered() -> None:
    """As long as one blank is left the exercise counts as not answered."""
    source = TPOTS.starter.replace("- ...)", "- 1)", 1)
    names: dict[str, Any] = {}
    exec(source, names)  # our own starter
    assert not TPOTS.judge(names["tpots_s"]).answered


def test_tpot_can_be_asked_of_a_measured_request() -> None:
    """With the learner's own request in the context that request is the one that is asked for."""
    measured = {"started_s": 5.0, "chunk_times_s": [6.0, 8.0], "output_tokens": 5}
    assert TPOT.judge(0.5, measured).passed
    assert TPOT.judge(500, measured).misconceptions == ()
    assert "unit" in TPOT.judge(500, measured).diagnosis


@given(lengths=st.lists(st.integers(1, 500), min_size=1, max_size=64))
def test_padding_counts_the_rectangle(lengths: list[int]) -> None:
    """The padding factor is the drawn rectangle over its filled cells."""
    longest = max(lengths)
    cells = [[step < length for step in range(longest)] for length in lengths]
    factor = sum(map(len, cells)) / sum(map(sum, cells))
    assert PADDING.judge(factor, {"output_lengths": lengths, "prompt_lengths": [1] * len(lengths)}).passed


@pytest.mark.parametrize(
    "answer", ["A B C D E", "ABCDE", "e,d,c,b,a", ["A", "B", "C", "D", "E"], {"A", "B", "C", "D", "E"}]
)
def test_letters_may_be_written_in_any_way(answer: object) -> None:
    """A string with blanks or commas, a list and a set are the same answer."""
    assert BROKEN_BENCHMARK.judge(answer).passed


def test_every_fault_missed_is_told() -> None:
    """An answer with two faults missing and one innocent setting blamed hears of all three, by no letter."""
    result = BROKEN_BENCHMARK.judge("A B C F")
    assert len(result.misconceptions) == 3
    assert result.diagnosis.count("\n\n") == 2


def test_an_unknown_letter_is_told_the_letters() -> None:
    """A letter that is no option is answered with the options there are."""
    assert "A, B, C" in BROKEN_BENCHMARK.judge("X").diagnosis


def test_an_unknown_exercise_is_a_usage_error() -> None:
    """A wrong id is answered with the ids there are."""
    with pytest.raises(UsageError, match=r"01\.tpot"):
        check("01.nothing", 1)


def test_the_reference_functions_agree_with_themselves_on_fresh_cases() -> None:
    """The two SLO exercises fit together: at endless objectives goodput is the rate of completed requests."""
    requests, duration_s = GOODPUT.cases[0][0], GOODPUT.cases[0][1]
    assert isinstance(TPOTS, FunctionExercise)
    completed = sum(one.outcome == "ok" for one in requests)
    assert GOODPUT.solution(requests, duration_s, 1e9, 1e9) == completed / duration_s
    assert len(TPOTS.solution(requests)) == completed - sum(
        one.output_tokens == 1 for one in requests if one.outcome == "ok"
    )
