"""Exercises, and how an answer is judged: by its value, its behaviour, or the options chosen.

`course/questions/NN.md` has the text that a learner reads; `course/lab_NN.py` has the solutions, and the wrong answers
that misconceptions lead to (`solution`). Both may depend on a context, such as measured values.
"""

import ast
import copy
import importlib
import importlib.util
import inspect
import math
import re
import reprlib
import textwrap
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from labkit import display
from labkit.errors import require
from labkit.files import root
from labkit.teaching.questions import Question, read_questions

Context = Mapping[str, Any]
Function = Callable[..., Any]

UNITS = {60: "seconds and minutes", 100: "shares and percent", 1000: "thousands, as ms and s", 10**6: "millions"}
BYTE_UNITS = {8: "bits and bytes", 1024: "bytes and KiB", 2**20: "bytes and MiB", 10**9: "bytes and GB"}
SOLVES = "solves"  # the attribute of a solution
SOLUTION_FROM = 2  # wrong answers; a starter that is broken on purpose counts as the first when it is checked unchanged
COLOURS = {"passed": "#009E73", "not yet": "#D55E00", "not answered yet": "#8c8c8c"}


@dataclass(frozen=True)
class CheckResult:
    """The judgement of an answer. `misconceptions`: the names of those recognised."""

    exercise: str
    diagnosis: str
    misconceptions: tuple[str, ...] = ()
    passed: bool = False
    answered: bool = True

    @property
    def outcome(self) -> str:
        """passed, not yet, or not answered yet."""
        if self.passed:
            return "passed"
        return "not yet" if self.answered else "not answered yet"

    def _ipython_display_(self) -> None:
        """Show nothing: `check` has already shown the result."""


@dataclass(frozen=True, kw_only=True)
class Exercise(Question, ABC):
    """A question that can judge its answers.

    `data`: its numbers, which a caller may replace by measured ones. `needs`: names that a caller must pass, each with
    an example value for tests. `worked`: a worked example, shown before the question.
    """

    needs: Context = field(default_factory=dict)
    worked: Function | None = None

    @property
    def answer_name(self) -> str:
        """The name that the learner's cell defines."""
        defined = (ast.FunctionDef, ast.ClassDef)
        names = [node.name for node in ast.parse(self.starter).body if isinstance(node, defined)]
        return names[0] if names else self.starter.split(" = ")[0]

    def context(self, given: Context | None = None) -> dict[str, Any]:
        """Return the exercise's numbers. UsageError: one that it needs is missing."""
        known = {**self.data, **(given or {})}
        missing = ", ".join(name for name in self.needs if known.get(name) is None)
        require(not missing, f"exercise {self.id} needs {missing}", fix="pass them: context={'NAME': value, ...}")
        return known

    def asked(self, given: Context | None = None) -> str:
        """Return the prompt with the context's numbers, and the options if there are any."""
        context = self.context(given)
        options = "\n".join(f"- **{option.code}** {option.text}" for option in self.options)
        # A prompt without numbers may contain braces.
        prompt = self.prompt.format_map(context) if self.data or self.needs else self.prompt
        return f"{prompt}\n\n{options}".strip()

    def cell(self) -> str:
        """Return the source of the learner's cell: the starter and the line that checks it."""
        context = ", context=facts" if self.needs else ""
        return f'{self.starter}\n\ncheck("{self.id}", {self.answer_name}{context})'

    def judge(self, answer: Any, context: Context | None = None) -> CheckResult:
        """Judge an answer; never raise for a learner's mistake."""
        context = self.context(context)
        try:
            return self._unanswered() if _is_unanswered(answer) else self._judge(answer, context)
        except Exception as error:  # an answer may be of any type, and the lab must continue
            text = f"A {type(answer).__name__} cannot be compared with the right answer: {error}."
            return CheckResult(self.id, text)

    @abstractmethod
    def _judge(self, answer: Any, context: Context) -> CheckResult: ...

    @abstractmethod
    def reference(self, context: Context) -> Any:
        """Return the right answer."""

    @abstractmethod
    def solution_text(self) -> str:
        """Return the reference solution as text for the learner."""

    @abstractmethod
    def wrong_answers(self, context: Context) -> Iterator[tuple[str, Any]]:
        """Yield every listed wrong answer with the name of its misconception."""

    def _passed(self) -> CheckResult:
        return CheckResult(self.id, "That is right.", passed=True)

    def _unanswered(self) -> CheckResult:
        text = f"Give `{self.answer_name}` a value in the cell above and run it again."
        return CheckResult(self.id, text, answered=False)

    def _shows(self, *names: str) -> CheckResult:
        return CheckResult(self.id, "\n\n".join(self.feedback[name] for name in names), names)


@dataclass(frozen=True, kw_only=True)
class ChoiceExercise(Exercise):
    """Asks which of several options apply. The answer: their letters, as a list, a set or a string, "A C" or "AC"."""

    def reference(self, context: Context) -> set[str]:  # noqa: ARG002 - options do not depend on it
        """Return the codes of all options that apply."""
        return {option.code for option in self.options if option.right}

    def solution_text(self) -> str:
        """Return the options that apply, and why the others do not."""
        applies = [f"{option.code}: {option.text}" for option in self.options if option.right]
        wrong = [option for option in self.options if not option.right]
        return "\n".join(applies + [f"not {option.code}: {self.feedback[option.misconception]}" for option in wrong])

    def wrong_answers(self, context: Context) -> Iterator[tuple[str, Any]]:
        """Yield the right set without one of its options, or with one more."""
        right = self.reference(context)
        return ((option.misconception, right ^ {option.code}) for option in self.options)

    def _judge(self, answer: Any, context: Context) -> CheckResult:
        chosen, codes = _codes(answer), {option.code for option in self.options}
        if unknown := chosen - codes:
            known = ", ".join(sorted(codes))
            text = f"There is no option {', '.join(sorted(unknown))}; the options are {known}."
            return CheckResult(self.id, text)
        if not chosen:
            return self._unanswered()
        wrong = [option.misconception for option in self.options if option.code in chosen ^ self.reference(context)]
        return self._shows(*wrong) if wrong else self._passed()


@dataclass(frozen=True, kw_only=True)
class SolvedExercise(Exercise):
    """Asks for a number, or with `cases` (tuples of arguments) for a function, judged by its results on them.

    A number's `solution` and wrong answers are functions whose parameters are entries of the context. `exact`: results
    are labels (a status, a GPU's index), so the diagnosis does not compare sizes. `observe`: tests an answer that
    cannot simply be called, such as a deployment or a configuration. With `cases`, `observe(answer, cases)` returns a
    result for each case; without, `observe(answer)` returns its tests by name, each with the failure ("" if it passes).
    """

    solution: Function
    wrong: Sequence[tuple[str, Function]]
    unit: str
    cases: Sequence[tuple[Any, ...]]
    tolerance: float
    exact: bool
    observe: Function | None

    def reference(self, context: Context) -> Any:
        """Return the right function, or the right number."""
        return self.solution if self.cases else self._value(self.solution, context)

    def solution_text(self) -> str:
        """Return the source of the solution."""
        return source(self.solution)

    def wrong_answers(self, context: Context) -> Iterator[tuple[str, Any]]:
        """Yield every listed wrong function, or wrong number."""
        for name, function in self.wrong:
            yield name, function if self.cases else self._value(function, context)

    def _value(self, function: Function, context: Context) -> Any:
        """Return the function's number, or its results on the cases."""
        if self.cases:
            cases = copy.deepcopy(self.cases)
            return self.observe(function, cases) if self.observe else [function(*case) for case in cases]
        return function(**{name: context[name] for name in inspect.signature(function).parameters})

    def _judge(self, answer: Any, context: Context) -> CheckResult:
        if not self.cases:
            if self.observe:
                return self._tested(self.observe, answer, context)
            return self._compared(answer, context)
        if not callable(answer):
            what = "class" if inspect.isclass(self.solution) else "function"
            text = f"A {what} is expected: pass `{self.answer_name}` itself, without calling it."
            return CheckResult(self.id, text)
        if _has_blank(answer) or _is_untouched(answer, self.starter):
            return self._unanswered()
        try:
            results = self._value(answer, context)
        except (Exception, SystemExit) as error:  # a learner's function may raise anything, and the lab must continue
            return CheckResult(self.id, f"The function raised {type(error).__name__}: {error}.")
        if all(map(_is_unanswered, results)):
            text = f"`{self.answer_name}` returns {results[0]}: end it with `return` and the result."
            return CheckResult(self.id, text, answered=False)
        return self._compared(results, context)

    def _tested(self, observe: Function, answer: Any, context: Context) -> CheckResult:
        if answer == ast.literal_eval(self.starter.partition(" = ")[2]):
            return self._unanswered()
        outcome = observe(answer)
        failed = [f"{test}: no. {failure}." for test, failure in outcome.items() if failure]
        if not failed:
            return self._passed()
        for name, function in self.wrong:
            if observe(self._value(function, context)) == outcome:
                return self._shows(name)
        return CheckResult(self.id, f"{failed[0][:1].upper()}{failed[0][1:]}")

    def _compared(self, given: Any, context: Context) -> CheckResult:
        expected, given = self._value(self.solution, context), _plain(given)
        if _close(given, expected, self.tolerance):
            return self._passed()
        for name, function in self.wrong:
            if _close(given, self._value(function, context), self.tolerance):
                return self._shows(name)
        if not self.cases:
            return CheckResult(self.id, _describe(given, expected, unit=self.unit))
        results = zip(self.cases, given, expected, strict=True)
        case, got, right = next(result for result in results if not _close(*result[1:], self.tolerance))
        arguments = ", ".join(map(reprlib.repr, case))
        if self.observe:
            shown = case[0] if len(case) == 1 and isinstance(case[0], str) else f"With {arguments}"
            return CheckResult(self.id, f"{shown}: expected {reprlib.repr(right)}, got {reprlib.repr(got)}.")
        text = f"`{self.answer_name}({arguments})` returns {reprlib.repr(got)}, which is not right."
        is_named = self.exact and (_is_list(got) or not _is_list(right))
        return CheckResult(self.id, text if is_named else f"{text} {_describe(got, right, unit=self.unit)}")


def solution(
    id: str,
    function: Function,
    *,
    wrong: Mapping[str, Function | Sequence[Function]],
    unit: str = "",
    cases: Sequence[tuple[Any, ...]] = (),
    needs: Context | None = None,
    worked: Function | None = None,
    tolerance: float = 1e-6,
    exact: bool = False,
    observe: Function | None = None,
) -> None:
    """Register the function, or with `observe` the class, as the solution of an exercise; see `SolvedExercise`.

    `wrong`: by the misconception's name, the function or functions that it leads to.
    """
    pairs = [
        (name, wrong_function)
        for name, functions in wrong.items()
        for wrong_function in (functions if isinstance(functions, Sequence) else [functions])
    ]
    settings: dict[str, Any] = {"unit": unit, "cases": cases, "needs": needs or {}, "worked": worked}
    settings |= {"tolerance": tolerance, "exact": exact, "observe": observe}
    setattr(function, SOLVES, (id, {"solution": function, "wrong": pairs, **settings}))


def source(function: Function) -> str:
    """Return a function's source, without indentation."""
    return textwrap.dedent(inspect.getsource(function)).strip()


# --- finding and asking ---


def exercises() -> dict[str, Exercise]:
    """Return every exercise of the course by id, in the order of the files `course/questions/NN.md`.

    UsageError: a file that cannot be read, or that does not match the solutions in `course/lab_NN.py`.
    """
    return _exercises(root() / "course")


@cache
def _exercises(folder: Path) -> dict[str, Exercise]:
    by_id: dict[str, Exercise] = {}
    for path in sorted(folder.glob("questions/[0-9][0-9]*.md")):
        solutions = _solutions(folder / f"lab_{path.stem}.py")
        for question in read_questions(path):
            fix = "begin it with the file's number, and give each its own name"
            is_own = question.id not in by_id and question.id.startswith(f"{path.stem}.")
            require(is_own, f"{path} cannot ask {question.id}", fix=fix)
            by_id[question.id] = _exercise(question, solutions.pop(question.id, {}), path)
        fix = "add the questions, or remove these solutions"
        require(not solutions, f"{path} does not ask {', '.join(solutions)}", fix=fix)
    return by_id


def _exercise(question: Question, settings: Mapping[str, Any], path: Path) -> Exercise:
    if question.options:
        return ChoiceExercise(**vars(question))
    names, expected = list(dict(settings.get("wrong", ()))), list(question.feedback)
    what = f"{path}: {question.id} names {expected}; its solution in lab_{path.stem}.py has {names}"
    require(names == expected, what, fix="give both the same names, in the same order")
    return SolvedExercise(**vars(question), **settings)


def _solutions(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    solvers = [value for value in vars(_module(path)).values() if inspect.isfunction(value) or inspect.isclass(value)]
    marks = [vars(value).get(SOLVES) for value in solvers]
    return dict(mark for mark in marks if mark)


def _module(path: Path) -> Any:
    """Import a lab's module; from its file if the folder is not on Python's path."""
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


def find(id: str) -> Exercise:
    """Return the exercise with this id. UsageError: an unknown id."""
    known = exercises()
    require(id in known, f"there is no exercise {id!r}", fix=f"use one of: {', '.join(known)}")
    return known[id]


def ask(id: str, context: Context | None = None) -> None:
    """Show the question, with the context's numbers, after its worked example if it has one.

    UsageError: an unknown id, or a number missing from the context.
    """
    exercise = find(id)
    worked = f"Worked example:\n\n```python\n{source(exercise.worked)}\n```\n\n" if exercise.worked else ""
    text = f"**Exercise: {exercise.title}**\n\n{worked}{exercise.asked(context)}"
    display.show({"text/markdown": text, "text/plain": text})


_listeners: list[Callable[[CheckResult], None]] = []
_answers: Counter[str] = Counter()


def listen(listener: Callable[[CheckResult], None]) -> None:
    """Call `listener` with every answer that `check` judges from now on, in place of the previous listener."""
    _listeners[:] = [listener]


def check(id: str, answer: Any, context: Context | None = None) -> CheckResult:
    """Judge an answer, show the judgement and return it. An unsolved starter is `not answered yet`, never an error.

    The solution is added, folded, after a right answer or from the second wrong one on. `context`: the numbers that the
    exercise depends on. UsageError: an unknown id, or a number missing from the context.
    """
    exercise = find(id)
    result = exercise.judge(answer, context)
    for listener in _listeners:
        listener(result)
    names = f" ({'; '.join(result.misconceptions)})" if result.misconceptions else ""
    headline = f"{exercise.title[:1].upper()}{exercise.title[1:]}: {result.outcome}{names}"
    hints = [] if result.passed else [display.inline(hint) for hint in exercise.hints]
    parts = [display.inline(result.diagnosis)]
    parts += [display.folded(f"Hint {n}", hint) for n, hint in enumerate(hints, start=1)]
    _answers[id] += result.answered
    if result.passed or _answers[id] >= SOLUTION_FROM:
        parts.append(display.folded("Solution", display.code(exercise.solution_text())))
    card = display.card(headline, "".join(parts), colour=COLOURS[result.outcome])
    display.show({"text/html": card, "text/plain": f"{headline}\n{result.diagnosis}"})
    return result


# --- comparing answers ---


def _codes(answer: Any) -> set[str]:
    parts = answer if isinstance(answer, Iterable) and not isinstance(answer, str) else (answer,)
    # Codes are single letters: "A C", "A, C", "A and C", "AC" and ["A", "C"] are the same answer.
    letters = re.sub(r"\b(and|or)\b", " ", " ".join(map(str, parts)), flags=re.IGNORECASE)
    return {letter.upper() for letter in letters if letter.isalnum()}


def _is_unanswered(answer: Any) -> bool:
    return answer is None or answer is ... or (isinstance(answer, str) and not answer.strip())


def _sources(answer: Function) -> list[str]:
    """Return the source of a function, or of each method: inspect has no source for a class defined in a cell."""
    functions = [answer]
    if inspect.isclass(answer):
        functions = [member for member in vars(answer).values() if inspect.isfunction(member)]
    try:
        return [source(function) for function in functions]
    except (OSError, TypeError):  # a built-in has no source
        return []


def _is_untouched(answer: Function, starter: str) -> bool:
    """Whether the answer is still the starter, which may be code that runs and is wrong."""
    texts = _sources(answer)
    return bool(texts) and all(text in starter or textwrap.indent(text, "    ") in starter for text in texts)


def _has_blank(answer: Function) -> bool:
    """Whether a `...` is left in its source, which Python would silently treat as true."""
    try:
        tree = ast.parse("\n\n".join(_sources(answer)))
    except SyntaxError:  # a lambda within a call
        return False
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    blanks = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value is ...)
    return any(id(blank) not in statements for blank in blanks)


def _plain(value: Any) -> Any:
    """Return arrays as lists, also within a list."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _close(given: Any, expected: Any, tolerance: float) -> bool:
    """Compare numbers with a relative tolerance, lists element by element, and other values for equality."""
    if _is_number(given) and _is_number(expected):
        return math.isclose(float(given), float(expected), rel_tol=tolerance, abs_tol=1e-12)
    if _is_list(given) and _is_list(expected):
        pairs = zip(given, expected, strict=False)
        return len(given) == len(expected) and all(_close(*pair, tolerance) for pair in pairs)
    return bool(given == expected)


def _describe(given: Any, expected: Any, *, unit: str) -> str:
    """Describe what is wrong with an answer without giving the right one."""
    kind = "None" if given is None else f"a {type(given).__name__}"
    if _is_list(expected):
        if not _is_list(given):
            return f"A list is expected; this is {kind}."
        if len(given) != len(expected):
            more = "more" if len(given) > len(expected) else "fewer"
            return f"The list has {more} entries than it should: check which ones belong in it."
        pairs = zip(given, expected, strict=True)
        wrong = next(pair for pair in pairs if not _close(*pair, 1e-6))
        return "The list has the right length. " + _describe(*wrong, unit=unit)
    if not _is_number(given):
        return f"A number is expected{f', in {unit}' if unit else ''}; this is {kind}."
    if not _is_number(expected):
        return f"Here the answer is not a number; this is {given:g}."
    if not math.isfinite(given):
        return "The number is not finite: something was divided by zero."
    if float(given) * float(expected) <= 0:
        return "The sign is wrong, or the answer is zero: check what is subtracted from what."
    return _describe_size(float(given) / float(expected), UNITS | (BYTE_UNITS if unit == "bytes" else {}))


def _describe_size(ratio: float, units: Mapping[int, str]) -> str:
    way, size = ("too large", ratio) if ratio > 1 else ("too small", 1 / ratio)
    for base, name in units.items():
        if math.isclose(size, base, rel_tol=0.01):
            return f"The number is {way} by a factor between units ({name}): check the unit."
    if size < 1.1:
        return f"Nearly: the number is {way} by less than a tenth."
    return f"The number is {way}, by {'less' if size < 10 else 'more'} than a factor of ten."


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, str | bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
