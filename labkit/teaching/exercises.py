"""What an exercise is, and how an answer to it is judged: by its value, by its behaviour, or by the options chosen.

A misconception is written down as the wrong answer that it leads to. A learner whose answer agrees with it is told its
name and why it is one. Right and wrong answers may depend on the context: what was measured, what a config says.
"""

import copy
import importlib
import importlib.util
import inspect
import math
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

from labkit import display
from labkit.errors import UsageError
from labkit.files import root

UNITS = {
    8: "bits and bytes",
    1000: "thousands, as between seconds and milliseconds",
    1024: "1,024, as between bytes and KiB",
}


def call(function: Any, context: Mapping[str, Any]) -> Any:
    """Calls a function with the entries of the context that its parameters name; other values are returned as is."""
    if not callable(function):
        return function
    return function(**{name: context[name] for name in signature(function).parameters})


def is_unanswered(answer: Any) -> bool:
    """Whether an answer is still the starter's `None` or `...`."""
    return answer is None or answer is ... or (isinstance(answer, str) and not answer.strip())


def close(given: Any, expected: Any, *, tolerance: float) -> bool:
    """Equal; numbers to a relative tolerance; lists element by element."""
    if _is_number(given) and _is_number(expected):
        return math.isclose(float(given), float(expected), rel_tol=tolerance, abs_tol=1e-12)
    if _is_list(given) and _is_list(expected):
        return len(given) == len(expected) and all(
            close(one, other, tolerance=tolerance) for one, other in zip(given, expected, strict=True)
        )
    return bool(given == expected)


def describe(given: Any, expected: Any, *, unit: str = "") -> str:
    """What kind of thing is off about a wrong answer; never the right answer itself."""
    if _is_list(expected):
        return _describe_list(given, expected, unit=unit)
    if not _is_number(given):
        return f"A number is expected{f', in {unit}' if unit else ''}; this is a {type(given).__name__}."
    if not math.isfinite(given):
        return "The number is not finite: something was divided by zero."
    if given * expected <= 0:
        return "The sign is off, or the answer is zero: check what is subtracted from what."
    return _describe_size(float(given) / float(expected))


def attempt(function: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Any, Exception | None]:
    """A learner's function on one case: its result, or the error that it raised."""
    try:
        return function(*arguments), None
    except Exception as error:  # a learner's function may raise anything, and the lab has to go on
        return None, error


def met_a_blank(error: Exception) -> bool:
    """Whether an error comes from a blank `...` that is still in the code."""
    return "ellipsis" in str(error).lower()


def _describe_list(given: Any, expected: Sequence[Any], *, unit: str) -> str:
    if not _is_list(given):
        return f"A list is expected; this is a {type(given).__name__}."
    if len(given) != len(expected):
        more = "more" if len(given) > len(expected) else "fewer"
        return f"The list has {more} entries than it should: check which ones belong in it."
    wrong = [(one, other) for one, other in zip(given, expected, strict=True) if not close(one, other, tolerance=1e-6)]
    return "The list has the right length. " + describe(*wrong[0], unit=unit)


def _describe_size(ratio: float) -> str:
    way, size = ("too large", ratio) if ratio > 1 else ("too small", 1 / ratio)
    for base, name in UNITS.items():
        if math.isclose(size, base, rel_tol=0.01):
            return f"The number is {way} by a factor that units differ by ({name}): check the unit."
    if size < 1.1:
        return f"Nearly: the number is {way} by less than a tenth."
    return f"The number is {way}, by {'less' if size < 10 else 'more'} than a factor of ten."


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, str | bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


# --- exercises ---


Context = Mapping[str, Any]


@dataclass(frozen=True)
class CheckResult:
    """The judgement of one answer. `misconceptions` holds the names of those recognised."""

    exercise: str
    passed: bool
    answered: bool
    diagnosis: str
    misconceptions: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """passed, not yet, or not answered yet."""
        if self.passed:
            return "passed"
        return "not yet" if self.answered else "not answered yet"

    def _ipython_display_(self) -> None:
        """`check` has shown the result: as a cell's last value there is nothing to add."""


@dataclass(frozen=True)
class Misconception:
    """A way to go wrong. `wrong`: the answers that show it, or functions of the context that give them."""

    name: str
    text: str
    wrong: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Exercise(ABC):
    """One exercise. `starter` is the source that the learner's cell begins with; it gives `answer_name` a value.

    `data` are the exercise's own numbers; a caller may replace them by measured ones. `needs` are names that a caller
    has to give, each with the example value that tests use. `worked` is shown, solved, before the question.
    """

    id: str
    title: str
    prompt: str
    starter: str
    answer_name: str
    hints: tuple[str, ...]
    data: Context = field(default_factory=dict)
    needs: Context = field(default_factory=dict)
    worked: Callable[..., Any] | None = None

    def context(self, given: Context | None = None) -> dict[str, Any]:
        """The numbers that this exercise is asked with. Raises UsageError when one that it needs is missing."""
        known = {**self.data, **(given or {})}
        missing = [name for name in self.needs if known.get(name) is None]
        if missing:
            raise UsageError(
                f"exercise {self.id} needs {', '.join(missing)}", remedy="pass them: context={'NAME': value, ...}"
            )
        return known

    def cell(self) -> str:
        """The source of the learner's cell: the starter and the line that checks it."""
        context = ", context=facts" if self.needs else ""
        return f'{self.starter.strip()}\n\ncheck("{self.id}", {self.answer_name}{context})'

    def judge(self, answer: Any, context: Context | None = None) -> CheckResult:
        """Judges an answer; never raises for what a learner wrote."""
        if is_unanswered(answer):
            return self._unanswered()
        return self._judge(answer, self.context(context))

    @abstractmethod
    def _judge(self, answer: Any, context: Context) -> CheckResult: ...

    @abstractmethod
    def reference(self, context: Context) -> Any:
        """The right answer."""

    @abstractmethod
    def solution_text(self) -> str:
        """The reference solution, as the learner may read it."""

    @abstractmethod
    def wrong_answers(self, context: Context) -> Iterator[tuple[str, Any]]:
        """Every listed wrong answer with the name of its misconception."""

    def _passed(self) -> CheckResult:
        return CheckResult(self.id, passed=True, answered=True, diagnosis="That is right.")

    def _unanswered(self) -> CheckResult:
        text = f"Give `{self.answer_name}` a value in the cell above and run it again."
        return CheckResult(self.id, passed=False, answered=False, diagnosis=text)

    def _wrong(self, text: str, *names: str) -> CheckResult:
        return CheckResult(self.id, passed=False, answered=True, diagnosis=text, misconceptions=names)


@dataclass(frozen=True, kw_only=True)
class ValueExercise(Exercise):
    """Asks for a number. `solution` and the wrong answers are functions of the context's entries that they name."""

    unit: str
    solution: Callable[..., float]
    misconceptions: tuple[Misconception, ...]
    tolerance: float = 1e-6

    def reference(self, context: Context) -> float:
        """The right number."""
        return float(call(self.solution, context))

    def solution_text(self) -> str:
        """The source of the function that computes the right number."""
        return source(self.solution)

    def wrong_answers(self, context: Context) -> Iterator[tuple[str, Any]]:
        """Every listed wrong number."""
        for one in self.misconceptions:
            yield from ((one.name, call(wrong, context)) for wrong in one.wrong)

    def _judge(self, answer: Any, context: Context) -> CheckResult:
        expected = self.reference(context)
        if close(answer, expected, tolerance=self.tolerance):
            return self._passed()
        for one in self.misconceptions:
            if any(close(answer, call(wrong, context), tolerance=self.tolerance) for wrong in one.wrong):
                return self._wrong(one.text, one.name)
        return self._wrong(describe(answer, expected, unit=self.unit))


@dataclass(frozen=True, kw_only=True)
class FunctionExercise(Exercise):
    """Asks for a function, judged by what it returns on `cases` (tuples of arguments), not by how it is written."""

    unit: str
    solution: Callable[..., Any]
    cases: tuple[tuple[Any, ...], ...]
    misconceptions: tuple[Misconception, ...]
    tolerance: float = 1e-6

    def reference(self, context: Context) -> Callable[..., Any]:  # noqa: ARG002 - the cases are the exercise's own
        """The right function."""
        return self.solution

    def solution_text(self) -> str:
        """The source of the right function."""
        return source(self.solution)

    def wrong_answers(self, context: Context) -> Iterator[tuple[str, Any]]:  # noqa: ARG002
        """Every listed wrong function."""
        for one in self.misconceptions:
            yield from ((one.name, wrong) for wrong in one.wrong)

    def _judge(self, answer: Any, context: Context) -> CheckResult:  # noqa: ARG002
        if not callable(answer):
            return self._wrong(f"A function is expected: pass `{self.answer_name}` itself, without calling it.")
        runs = [attempt(answer, copy.deepcopy(case)) for case in self.cases]
        error = next((error for _, error in runs if error), None)
        if error is not None:
            return self._unanswered() if met_a_blank(error) else self._raised(error)
        return self._compare([result for result, _ in runs])

    def _compare(self, given: list[Any]) -> CheckResult:
        if all(is_unanswered(one) for one in given):
            return self._unanswered()
        expected = [self.solution(*case) for case in self.cases]
        if close(given, expected, tolerance=self.tolerance):
            return self._passed()
        for one in self.misconceptions:
            if any(
                close(given, [wrong(*case) for case in self.cases], tolerance=self.tolerance) for wrong in one.wrong
            ):
                return self._wrong(one.text, one.name)
        pairs = zip(given, expected, strict=True)
        first = next(pair for pair in pairs if not close(*pair, tolerance=self.tolerance))
        return self._wrong(describe(*first, unit=self.unit))

    def _raised(self, error: Exception) -> CheckResult:
        return self._wrong(f"The function raised {type(error).__name__}: {error}.")


@dataclass(frozen=True)
class Option:
    """One option. `told` is what a learner hears who misses it (when right) or chooses it (when wrong)."""

    code: str
    text: str
    right: bool
    misconception: str
    told: str


@dataclass(frozen=True, kw_only=True)
class ChoiceExercise(Exercise):
    """Asks which of several options apply. The answer: their letters, as a list, a set or a string, "A C" or "AC"."""

    options: tuple[Option, ...]

    def reference(self, context: Context) -> set[str]:  # noqa: ARG002 - options do not depend on it
        """The codes of all options that apply."""
        return {one.code for one in self.options if one.right}

    def solution_text(self) -> str:
        """The options that apply, and why the others do not."""
        applies = [f"{one.code}: {one.text}" for one in self.options if one.right]
        others = [f"not {one.code}: {one.told}" for one in self.options if not one.right]
        return "\n".join(applies + others)

    def wrong_answers(self, context: Context) -> Iterator[tuple[str, Any]]:
        """The right set short of one option, and with one too many."""
        right = self.reference(context)
        for one in self.options:
            yield one.misconception, right ^ {one.code}

    def _judge(self, answer: Any, context: Context) -> CheckResult:
        chosen = _codes(answer)
        unknown = chosen - {one.code for one in self.options}
        if unknown:
            codes = ", ".join(one.code for one in self.options)
            return self._wrong(f"There is no option {', '.join(sorted(unknown))}; the options are {codes}.")
        if not chosen:
            return self._unanswered()
        off = [one for one in self.options if one.code in chosen ^ self.reference(context)]
        if not off:
            return self._passed()
        return self._wrong("\n\n".join(one.told for one in off), *(one.misconception for one in off))


def source(function: Callable[..., Any]) -> str:
    """A function's source, as shown to learners."""
    return textwrap.dedent(inspect.getsource(function)).strip()


def by_id(exercises: Sequence[Exercise]) -> dict[str, Exercise]:
    """The exercises of a lab by id."""
    return {one.id: one for one in exercises}


def _codes(answer: Any) -> set[str]:
    if isinstance(answer, str):
        # Codes are single letters, so that they may be written with blanks, with commas or together.
        return {letter.upper() for letter in answer if letter.isalnum()}
    parts = answer if isinstance(answer, Iterable) else (answer,)
    return {str(one).strip().upper() for one in parts}


# --- checks ---


Listener = Callable[[CheckResult], None]
COLOURS = {"passed": "#009E73", "not yet": "#D55E00", "not answered yet": "#8c8c8c"}


_listeners: list[Listener] = []


def listen(listener: Listener) -> None:
    """Has `listener` told of every answer that `check` judges from now on, in place of the one before it."""
    _listeners[:] = [listener]


def exercises() -> dict[str, Exercise]:
    """Every exercise of the course by id: the `EXERCISES` of each `course/lab_NN.py` beside `data/`, in order."""
    return _exercises(root() / "course")


@cache
def _exercises(folder: Path) -> dict[str, Exercise]:
    found: dict[str, Exercise] = {}
    for path in sorted(folder.glob("lab_[0-9][0-9].py")):
        found |= _module(path).EXERCISES
    return found


def _module(path: Path) -> Any:
    """The module of a lab; a workshop's own folder, which Python does not search, is read from its file."""
    name = f"course.{path.stem}"
    installed = importlib.util.find_spec(name)
    if installed is not None and installed.origin == str(path):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(f"{path.parent}.{path.stem}", path)
    assert spec is not None  # a path that ends in .py has a spec and a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find(exercise: str | Exercise) -> Exercise:
    """The exercise of an id; an exercise is returned as it is. Raises UsageError for an unknown id."""
    if isinstance(exercise, Exercise):
        return exercise
    if exercise not in exercises():
        raise UsageError(f"there is no exercise {exercise!r}", remedy=f"use one of: {', '.join(exercises())}")
    return exercises()[exercise]


def ask(exercise: str | Exercise, context: Context | None = None) -> None:
    """Shows the question, with the context's numbers in it and the worked example before it.

    Raises UsageError for an unknown id or a missing number of the context.
    """
    one = find(exercise)
    prompt = one.prompt.format_map(one.context(context)).strip()
    worked = f"Worked example:\n\n```python\n{source(one.worked)}\n```\n\n" if one.worked else ""
    text = f"**Exercise: {one.title}**\n\n{worked}{prompt}"
    display.show({"text/markdown": text, "text/plain": text})


def check(exercise: str | Exercise, answer: Any, context: Context | None = None) -> CheckResult:
    """Judges an answer, shows the judgement and returns it. An unsolved starter is `not answered yet`, never an error.

    `context` gives the numbers that the exercise depends on. Raises UsageError for an unknown id or a missing number.
    """
    one = find(exercise)
    result = one.judge(answer, context)
    for listener in _listeners:
        listener(result)
    display.show({"text/html": _html(one, result), "text/plain": _text(one, result)})
    return result


def _html(one: Exercise, result: CheckResult) -> str:
    parts = [display.inline(result.diagnosis)]
    if not result.passed:
        parts += [display.folded(f"Hint {n}", display.inline(hint)) for n, hint in enumerate(one.hints, start=1)]
    parts.append(display.folded("Solution", display.code(one.solution_text())))
    return display.card(_headline(one, result), "".join(parts), colour=COLOURS[result.outcome])


def _headline(one: Exercise, result: CheckResult) -> str:
    title = one.title[:1].upper() + one.title[1:]
    named = f" ({'; '.join(result.misconceptions)})" if result.misconceptions else ""
    return f"{title}: {result.outcome}{named}"


def _text(one: Exercise, result: CheckResult) -> str:
    return f"{_headline(one, result)}\n{result.diagnosis}"
