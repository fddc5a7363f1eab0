"""Every exercise of the course, how answers are judged, and the files from which exercises are read."""

import asyncio
import linecache
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy
import pytest
from fastapi import HTTPException
from hypothesis import assume, given
from hypothesis import strategies as st

from course import lab_05, lab_05b, lab_07, lab_08
from course.lab_05b import ORDERS, UNKNOWN, order_status
from labkit.errors import UsageError
from labkit.load.metrics import Slo
from labkit.teaching import ChoiceExercise, Exercise, SolvedExercise, check, exercises, find
from labkit.teaching.questions import read_questions

VALUE, FUNCTION, CHOICE = "01.tpot", "01.tokens_per_second", "01.broken_benchmark"


def run_cell(exercise: Exercise, cell: str = "") -> Any:
    """What a cell gives to `check`, by default the learner's untouched one; its source is kept as in a notebook."""
    names: dict[str, Any] = {"facts": exercise.needs}
    names["check"] = lambda _id, answer, context=None: names.update(given=answer, context=context)
    cell = cell or exercise.cell()
    linecache.cache[exercise.id] = (len(cell), None, cell.splitlines(keepends=True), exercise.id)
    exec(compile(cell, exercise.id, "exec"), names)  # our own starters
    return names["given"]


def shown_solution(exercise: Exercise, context: dict[str, Any]) -> Any:
    """The answer that the folded solution gives when it is run by itself."""
    text = exercise.solution_text()
    if isinstance(exercise, ChoiceExercise):
        return {line.split(":")[0] for line in text.splitlines() if not line.startswith("not ")}
    names: dict[str, Any] = {}
    if isinstance(exercise, SolvedExercise) and exercise.observe:
        names |= vars(sys.modules[exercise.solution.__module__])
    exec("from __future__ import annotations\n" + text, names)  # our own solutions
    function = next(value for name, value in names.items() if re.match(rf"(def|class) {name}\b", text))
    if isinstance(exercise, SolvedExercise) and exercise.cases:
        return function
    return function(**{name: context[name] for name in function.__annotations__ if name != "return"})


def right_words(exercise: Exercise, context: dict[str, Any]) -> set[str]:
    """The right answer as a text would give it away."""
    right = exercise.reference(context)
    if isinstance(exercise, SolvedExercise) and exercise.observe:
        return set()  # what a class does when it runs is no text
    if isinstance(exercise, SolvedExercise) and exercise.cases:
        right = exercise._value(exercise.solution, context)[0]
        right = right[0] if isinstance(right, list) else right
    if isinstance(right, int | float):
        return {f"{right:g}", f"{right:,.0f}"}
    return {" ".join(sorted(right)) if isinstance(right, Iterable) else str(right)}


def faults(exercise: Exercise) -> list[str]:
    """What of all that an exercise promises does not hold."""
    context = exercise.context(exercise.needs)
    passed = exercise.judge(exercise.reference(context), context)
    shown = exercise.judge(shown_solution(exercise, context), context)
    starter = exercise.judge(run_cell(exercise), context)
    wrong = [(name, answer, exercise.judge(answer, context)) for name, answer in exercise.wrong_answers(context)]
    diagnoses = {name: {found.diagnosis for other, _, found in wrong if other == name} for name, _, _ in wrong}
    texts = [text for found in diagnoses.values() for text in found]
    right = right_words(exercise, context)
    shown_texts = [*texts, exercise.judge("nonsense", context).diagnosis, *exercise.hints]
    if isinstance(exercise, ChoiceExercise):
        shown_texts += [exercise.starter, exercise.prompt]
    holds = {
        "the solution passes": passed.passed and passed.misconceptions == () and shown.passed,
        "the starter is no answer": not starter.passed and (not starter.answered or bool(starter.misconceptions)),
        "wrong answers are named": all((r.passed, r.misconceptions) == (False, (name,)) for name, _, r in wrong),
        "judging again says the same": all(exercise.judge(answer, context) == r for _, answer, r in wrong),
        "two or more diagnoses, one a mistake": 2 <= len(diagnoses) == len(texts) == len(set(texts)),
        "two hints and a question": len(exercise.hints) >= 2 and bool(exercise.asked(context)),
        "nothing gives the answer away": not any(
            right & set(text.split()) or any(len(word) > 3 and word in text for word in right) for text in shown_texts
        ),
    }
    return [f"{exercise.id}: {what}" for what, held in holds.items() if not held]


def test_an_exercise_judges_as_it_says() -> None:
    """Solution and shown solution pass, the starter is no answer, each wrong answer has a diagnosis of its own, the
    same whenever it is asked for; and neither a diagnosis nor a hint gives the answer away."""
    assert [fault for exercise in exercises().values() for fault in faults(exercise)] == []


def test_nothing_a_learner_passes_raises() -> None:
    """Whatever comes as an answer to a kind of exercise, a result comes back and it is not a pass."""
    hostile = [[], {}, object(), "words", -1, 0, float("nan"), True, len, lambda: 1, ["A", 3], 1j, "nonsense"]
    hostile += [Decimal(7), numpy.arange(3), lambda *_: Decimal(7), lambda *_: numpy.arange(3), lambda *_: sys.exit(3)]
    hostile += [lambda *_: None, lambda *_: object(), lambda *_: float("inf"), lambda *_: "text", lambda *_: 0]
    kinds = (VALUE, FUNCTION, CHOICE, "03.hit_tokens", "04.next_up", "11.break_even")
    assert [(kind, answer) for kind in kinds for answer in hostile if find(kind).judge(answer).passed] == []


@given(
    layers=st.integers(1, 100),
    kv_heads=st.integers(1, 16),
    group=st.integers(1, 16),
    head_dim=st.sampled_from([32, 64, 80, 128, 256]),
    dtype_bytes=st.sampled_from([1, 2, 4]),
)
def test_kv_bytes_follow_the_config(layers: int, kv_heads: int, group: int, head_dim: int, dtype_bytes: int) -> None:
    """For any config the answer is the size of an array of the cache's shape; with grouping the mistake is named."""
    heads = kv_heads * group
    config = {"layers": layers, "attention_heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    config |= {"hidden_size": heads * head_dim, "dtype_bytes": dtype_bytes}
    one_token = numpy.zeros((layers, 2, 1, kv_heads, head_dim), dtype=f"u{dtype_bytes}")
    asked = find("00.kv_bytes_per_token")
    assert asked.judge(one_token.nbytes, config).passed
    assume(group > 1)
    assert len(asked.judge(one_token.nbytes * group, config).misconceptions) == 1


def test_an_unknown_exercise_or_a_missing_number_is_a_usage_error() -> None:
    """A wrong id is answered with the ids there are; no exercise falls back on another model's numbers."""
    refused: list[tuple[str, dict[str, Any] | None, str]] = [
        ("01.nothing", None, r"01\.tpot"),
        ("00.kv_bytes_per_token", None, "needs layers"),
        ("00.weight_bytes", {"parameters": None}, "parameters"),
    ]
    for name, context, message in refused:
        with pytest.raises(UsageError, match=message):
            check(name, 1, context)


def test_a_measured_request_takes_the_place_of_the_exercises_own() -> None:
    """With a request in the context that one is asked for; an answer in milliseconds is told about its unit."""
    measured = {"started_s": 5.0, "chunk_times_s": [6.0, 8.0], "output_tokens": 5}
    assert find(VALUE).judge(0.5, measured).passed
    in_ms = find(VALUE).judge(500, measured)
    assert in_ms.misconceptions == ()
    assert "unit" in in_ms.diagnosis


def test_a_function_is_judged_by_what_it_returns() -> None:
    """A loop in place of a sum passes, twice, though it empties the list it is given. What a function raises is part
    of the diagnosis; with a blank left in there is no answer yet."""

    def greedy(outputs: list[Any], seconds: float) -> float:
        total = 0
        while outputs:
            total += len(outputs.pop().token_ids)
        return total / seconds

    assert [find(FUNCTION).judge(greedy).passed for _ in range(2)] == [True, True]
    raised = find("01.goodput").judge(lambda *_: 1 / 0)
    assert "ZeroDivisionError" in raised.diagnosis
    assert raised.answered
    chunks = find("04.chunks")
    assert isinstance(chunks, SolvedExercise)
    assert chunks.judge(lambda *case: numpy.array(chunks.solution(*case))).passed
    for id, blank, filled in [
        ("03.hit_tokens", "- ...  #", "- 1  #"),
        ("07.throughput", "min(..., ...)", "min(clients, batch_size)"),
    ]:
        assert not find(id).judge(run_cell(find(id), find(id).cell().replace(blank, filled, 1))).answered


def test_a_right_answer_in_another_form_passes() -> None:
    """The load client's own rule is as good as the course's; so are a response that is passed on, any exception, and
    another order of factors."""

    class PassesOn(lab_05.Ticket):
        async def __call__(self, text: str) -> dict[str, str]:
            reply = self.desk.reply.remote(text)
            stages = (self.desk.classify.remote(text), reply, self.desk.summarise.remote(reply))
            return dict(zip(("intent", "reply", "summary"), await asyncio.gather(*stages), strict=True))

    class Grouped(lab_05.Ticket):
        async def __call__(self, text: str) -> dict[str, str]:
            async with asyncio.TaskGroup() as group:
                intent = group.create_task(asyncio.wait_for(self.desk.classify.remote(text), None))
                answer = group.create_task(self._answer(text))
            return {"intent": intent.result(), "reply": answer.result()[0], "summary": answer.result()[1]}

    class NotFound:
        def __call__(self, order: str) -> str:
            try:
                return order_status(order)
            except KeyError:
                raise HTTPException(404) from None

    def by_slo(requests: list[Any], duration_s: float, ttft_s: float, tpot_s: float) -> float:
        return sum(map(Slo(ttft_s=ttft_s, tpot_s=tpot_s).holds, requests)) / duration_s

    def in_another_order(requests_per_s: float, _input: float, output_tokens: float, tokens_per_hour: float) -> int:
        return math.ceil(requests_per_s / tokens_per_hour * 3600 * output_tokens)

    answers = [("01.goodput", by_slo), ("05.ticket", PassesOn), ("05.ticket", Grouped), ("05b.lookup", NotFound)]
    answers.append(("10.instances", in_another_order))
    assert [(id, found.diagnosis) for id, answer in answers if not (found := find(id).judge(answer)).passed] == []


def test_an_answer_that_is_nearly_right_does_not_pass() -> None:
    """Rules that agree with the right one on most cases differ from it on one."""

    class NoTexts(lab_07.SharedBatch):
        def preprocess(self, data: list[Any]) -> list[Any]:
            bodies = [row["body"] for row in data]
            has_prompt = ["prompt" in body and isinstance(body["prompt"], str) for body in bodies]
            return super().preprocess([row if ok else {"body": {}} for row, ok in zip(data, has_prompt, strict=True)])

    def eligible(in_flight: list[int], most: int) -> list[int]:
        return [n for n, running in enumerate(in_flight) if running <= most]

    def last_of_equals(cached: list[int], running: list[int]) -> int:
        return max(eligible(running, min(running) + 8), key=lambda n: (cached[n], -running[n], n))

    def without_a_remainder(n: int, size: int, delay: float, fixed: float, row: float) -> float:
        return min(n, size) / ((delay if n % size else 0) + fixed + row * min(n, size))

    def within_nine(request: Any, replicas: list[Any]) -> int:
        running = [replica.in_flight for replica in replicas]
        open_to = eligible(running, min(running) + 9)
        return max(open_to, key=lambda n: (replicas[n].cached_tokens(request.token_ids), -running[n]))

    def no_start(version: Any, batch_s: float, timeout_s: float) -> Any:
        busy_s = version.now_s()
        while version.now_s() < timeout_s:  # a clock that starts at zero would hide this
            if version.describe()["jobQueueStatus"]["pendingRequests"]:
                busy_s = version.now_s()
            elif version.now_s() - busy_s > batch_s:
                return version.delete()
            version.sleep(0.1)
        return None

    answers: list[tuple[str, Any]] = [
        ("08.retire", no_start),
        ("01.tokens_per_second", lambda outputs, seconds: round(sum(len(o.token_ids) for o in outputs) / seconds)),
        ("03.route", lambda cached, running: max(eligible(running, 8), key=lambda n: (cached[n], -running[n]))),
        ("03.route", last_of_equals),
        ("07.handler", NoTexts),
        ("07.throughput", without_a_remainder),
        ("08.ready", lambda model: lab_08._up(model).count(True) == max(1, model["minWorkers"])),
        ("08.ready", lambda model: model["workers"] != [] and lab_08._up(model).count(True) >= model["minWorkers"]),
        ("12.router", within_nine),
    ]
    assert [id for id, answer in answers if find(id).judge(answer).passed] == []


def test_a_diagnosis_says_what_the_answer_shows() -> None:
    """A missing `return` is named, a generator is no list, units fit the exercise, and the mistake is the answer's."""

    class Inverted(lab_05b.Writer):
        async def check_health(self) -> None:
            if self.engine.alive:
                raise RuntimeError("the engine has died")

    def in_place(waiting: list[Any]) -> None:
        waiting.sort(key=lambda request: request.num_prompt_tokens)

    wanted: list[tuple[str, Any, str]] = [
        ("04.next_up", in_place, "`next_up` returns None: end it with `return`"),
        ("04.next_up", lambda waiting: (request for request in waiting), "A list is expected; this is a generator"),
        ("08b.none", lambda n: 100 * (1 - 0.05 ** (1 / n)), "shares and percent"),
        ("10.instances", lambda _rate, _in, out, per_hour: math.ceil(out * 3600 / per_hour), "The number is too small"),
        ("11.break_even", lambda *_: None, "`break_even` returns None"),
        ("05b.health", Inverted, "although the engine is healthy"),
        ("12.router", lambda _request, replicas: len(replicas) - 1, "(5 in flight, 2048 cached)"),
    ]
    assert [(id, told) for id, answer, text in wanted if text not in (told := find(id).judge(answer).diagnosis)] == []
    assert "bits" not in find("01.tpot").judge(0.08 * 8).diagnosis
    assert "Nearly" not in find("04.next_up").judge(lambda waiting: waiting[:1]).diagnosis  # it names something


def test_a_class_that_is_run_is_judged_by_what_its_cases_show() -> None:
    """The first case that differs is named, with what is expected and what came; another object in place of the class
    does not pass."""

    class Silent:
        async def __call__(self, order: str) -> str:
            return ORDERS.get(order, "unknown")

    told = find("05b.lookup").judge(Silent).diagnosis
    assert told == f"{UNKNOWN}: expected 'an exception', got 'unknown'."
    assert "A class is expected" in find("07.handler").judge("MyHandler").diagnosis
    assert not find("07.handler").judge(object).passed


def choices() -> list[ChoiceExercise]:
    """Every choice of the course."""
    return [exercise for exercise in exercises().values() if isinstance(exercise, ChoiceExercise)]


def test_a_choice_is_no_guess_by_letter() -> None:
    """Each letter that all choices have is right in some of them and wrong in others, about evenly."""
    right = Counter(option.code for choice in choices() for option in choice.options if option.right)
    letters = set.intersection(*({option.code for option in choice.options} for choice in choices()))
    assert letters == set("ABCDEF")
    assert {letter: right[letter] for letter in letters if not 0.35 < right[letter] / len(choices()) < 0.65} == {}


def test_a_choice_is_no_guess_by_length() -> None:
    """The longest option is right in about half of the choices, and in none are the right ones much longer."""
    longest = [max(choice.options, key=lambda option: len(option.text)).right for choice in choices()]
    assert 0.35 < fmean(longest) < 0.65
    for choice in choices():
        right, wrong = (fmean(len(o.text) for o in choice.options if o.right == side) for side in (True, False))
        assert right < 1.3 * wrong, choice.id


def test_a_choice_is_read_in_any_writing_and_every_wrong_decision_is_told() -> None:
    """A string with blanks or commas, a list and a set are the same answer; an unknown letter is told the others. Two
    faults missing and one innocent setting blamed are three diagnoses."""
    choice = find(CHOICE)
    right, every = choice.reference({}), {option.code for option in choice.options}
    first, *others = sorted(right)
    joined = " ".join(right)
    written = [joined, joined.lower().replace(" ", ","), "".join(right), f"{', '.join(others)} and {first}"]
    assert [answer for answer in (*written, [joined], right) if not choice.judge(answer).passed] == []
    assert ", ".join(sorted(every)) in choice.judge("X").diagnosis
    result = choice.judge({*others[1:], min(every - right)})
    assert (len(result.misconceptions), result.diagnosis.count("\n\n")) == (3, 2)


TEXT = """# Lab 41

## 41.size: how large

Of {n} bytes?

### Data

```yaml
n: 3
```

### Cell

```python
size = ...
```

### Hints

1. Read
   it.
2. Again.

### Wrong answers

- *twice: as much:* Too
  much.
- *half:* Too little.

## 41.which: which of them

With `{"braces": 1}`.

```
## no heading
```

### Cell

```python
which = None
```

### Hints

1. Look.
2. Again.

### Options

- [x] This one,
  which is long.
  - *missed:* It is.
- [ ] That one.
  - *taken:* It is
    not.
"""
CODE = """
from labkit.teaching import solution

def size(n: int) -> int:
    return n

solution("41.size", size, unit="bytes", wrong={"twice: as much": lambda n: 2 * n, "half": lambda n: n / 2})
"""


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workshop's own course folder, with two exercises."""
    folder = tmp_path / "course"
    (folder / "questions").mkdir(parents=True)
    (folder / "questions" / "41.md").write_text(TEXT)
    (folder / "lab_41.py").write_text(CODE)
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path))
    return folder


def test_a_workshop_brings_its_own_exercises(workshop: Path) -> None:  # noqa: ARG001 - the folder is in the environment
    """Text and code of its folder become exercises, in the order of the text; the course's own are not among them."""
    assert list(exercises()) == ["41.size", "41.which"]
    size, which = exercises().values()
    assert isinstance(size, SolvedExercise)
    assert (size.asked(), size.hints, size.starter) == ("Of 3 bytes?", ("Read it.", "Again."), "size = ...")
    assert size.judge(6).diagnosis == "Too much."
    assert size.judge(3).passed
    first, second = which.options
    assert {first.text, second.text} == {"This one, which is long.", "That one."}
    assert which.asked() == (
        f'With `{{"braces": 1}}`.\n\n```\n## no heading\n```\n\n- **A** {first.text}\n- **B** {second.text}'
    )
    right, wrong = sorted(which.options, key=lambda option: not option.right)
    assert set(which.judge(wrong.code).diagnosis.split("\n\n")) == {"It is.", "It is not."}
    assert which.judge(right.code).passed


def test_an_unreadable_question_is_told_with_its_line(workshop: Path) -> None:
    """A heading, a section, a block, an item or an option that is not of the form names the file and the line."""
    path = workshop / "questions" / "41.md"
    cases = [
        ("## 41.size: how large", "## size, how large", 3),
        ("### Hints", "### Hint", 3),
        ("### Cell\n\n```python\nsize = ...\n```\n", "", 3),
        ("```python\nsize", "```\nsize", 14),
        ("1. Read\n   it.", "Read it.", 21),
        ("- *half:* Too little.", "- half: Too little.", 29),
        ("- *half:* Too little.", "- *twice: as much:* Too little.", 3),
        ("- [ ] That", "- [y] That", 55),
        ("  - *taken:* It is\n    not.\n", "", 31),
    ]
    for old, new, line in cases:
        assert old in TEXT
        path.write_text(TEXT.replace(old, new, 1))
        with pytest.raises(UsageError, match=rf"41\.md, line {line}: "):
            read_questions(path)


def test_text_and_code_have_the_same_names(workshop: Path) -> None:
    """A misconception, a solution or an id that does not belong there is told, with the file of the text."""
    code, text = workshop / "lab_41.py", workshop / "questions" / "41.md"
    cases = [
        (code, '"half"', '"a half"'),
        (code, "41.size", "41.length"),
        (text, "41.which", "41.size"),
        (text, "41.which", "42.which"),
    ]
    for path, old, new in cases:
        before = path.read_text()
        path.write_text(before.replace(old, new))
        with pytest.raises(UsageError, match=r"41\.md"):
            exercises()
        path.write_text(before)
    assert list(exercises()) == ["41.size", "41.which"]
