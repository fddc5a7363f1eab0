"""What an exercise is, and how an answer is judged: by its value, by its behaviour, or by the options chosen.

What a learner reads is in `course/questions/NN.md`; the solutions, and the wrong answers to which misconceptions lead,
are Python in `course/lab_NN.py` (`solution`). They may depend on a context: what was measured, what a config says.
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

UNITS = {
    8: "bits and bytes",
    1000: "thousands, as between seconds and milliseconds",
    1024: "1,024, as between bytes and KiB",
}
SOLVES = "solves"  # the attribute of a solution
SOLUTION_FROM = 2  # wrong answers; a starter that is broken on purpose counts as the first when it is checked unchanged
COLOURS = {"passed": "#009E73", "not yet": "#D55E00", "not answered yet": "#8c8c8c"}


@dataclass(frozen=True)
class CheckResult:
    """The judgement of one answer. `misconceptions` holds the names of those recognised."""

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
        """`check` has shown the result: as a cell's last value there is nothing to add."""


@dataclass(frozen=True, kw_only=True)
class Exercise(Question, ABC):
    """A question that can judge its answers.

    `data` are its own numbers; a caller may replace them by measured ones. `needs` are names that a caller has to give,
    each with the example value that tests use. `worked` is shown, solved, before the question.
    """

    needs: Context = field(default_factory=dict)
    worked: Function | None = None

    @property
    def answer_name(self) -> str:
        """The name to which the learner's cell gives a value."""
        named = (ast.FunctionDef, ast.ClassDef)
        names = [one.name for one in ast.parse(self.starter).body if isinstance(one, named)]
        return names[0] if names else self.starter.split(" = ")[0]

    def context(self, given: Context | None = None) -> dict[str, Any]:
        """The numbers that this exercise is asked with. Raises UsageError when one that it needs is missing."""
        known = {**self.data, **(given or {})}
        missing = ", ".join(name for name in self.needs if known.get(name) is None)
        require(not missing, f"exercise {self.id} needs {missing}", fix="pass them: context={'NAME': value, ...}")
        return known

    def asked(self, given: Context | None = None) -> str:
        """The prompt with the context's numbers in it, and the options where there are some."""
        context = self.context(given)
        options = "\n".join(f"- **{option.code}** {option.text}" for option in self.options)
        # A prompt without numbers may have braces of its own.
        prompt = self.prompt.format_map(context) if self.data or self.needs else self.prompt
        return f"{prompt}\n\n{options}".strip()

    def cell(self) -> str:
        """The source of the learner's cell: the starter and the line that checks it."""
        context = ", context=facts" if self.needs else ""
        return f'{self.starter}\n\ncheck("{self.id}", {self.answer_name}{context})'

    def judge(self, answer: Any, context: Context | None = None) -> CheckResult:
        """Judges an answer; never raises for what a learner wrote."""
        context = self.context(context)
        try:
            return self._unanswered() if _is_unanswered(answer) else self._judge(answer, context)
        except Exception as error:  # an answer may be of any type, and the lab has to go on
            text = f"A {type(answer).__name__} cannot be compared with the right answer: {error}."
            return CheckResult(self.id, text)

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
        return CheckResult(self.id, "That is right.", passed=True)

    def _unanswered(self) -> CheckResult:
        text = f"Give `{self.answer_name}` a value in the cell above and run it again."
        return CheckResult(self.id, text, answered=False)

    def _shows(self, *names: str) -> CheckResult:
        return CheckResult(self.id, "\n\n".join(self.told[name] for name in names), names)


@dataclass(frozen=True, kw_only=True)
class ChoiceExercise(Exercise):
    """Asks which of several options apply. The answer: their letters, as a list, a set or a string, "A C" or "AC"."""

    def reference(self, context: Context) -> set[str]:  # noqa: ARG002 - options do not depend on it
        """The codes of all options that apply."""
        return {option.code for option in self.options if option.right}

    def solution_text(self) -> str:
        """The options that apply, and why the others do not."""
        applies = [f"{one.code}: {one.text}" for one in self.options if one.right]
        others = [f"not {one.code}: {self.told[one.misconception]}" for one in self.options if not one.right]
        return "\n".join(applies + others)

    def wrong_answers(self, context: Context) -> Iterator[tuple[str, Any]]:
        """The right set short of one option, and with one too many."""
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
        off = [o.misconception for o in self.options if o.code in chosen ^ self.reference(context)]
        return self._shows(*off) if off else self._passed()


@dataclass(frozen=True, kw_only=True)
class SolvedExercise(Exercise):
    """Asks for a number, or with `cases` (tuples of arguments) for a function, judged by what it returns on them.

    A number's `solution` and wrong answers are functions of the context's entries that they name. `exact`: of results
    that name something (a status, the number of a GPU), it says nothing to be nearly right. `observe`: tries an answer
    that is not simply called, such as a class that a server calls or a configuration that is audited. With `cases`,
    `observe(answer, cases)` returns what each case shows; without, `observe(answer)` returns its tests by name, each
    with what failed ("" where it passes).
    """

    solution: Function
    wrong: Sequence[tuple[str, Function]]
    unit: str
    cases: Sequence[tuple[Any, ...]]
    tolerance: float
    exact: bool
    observe: Function | None

    def reference(self, context: Context) -> Any:
        """The right function, or the right number."""
        return self.solution if self.cases else self._value(self.solution, context)

    def solution_text(self) -> str:
        """The source of the solution."""
        return source(self.solution)

    def wrong_answers(self, context: Context) -> Iterator[tuple[str, Any]]:
        """Every listed wrong function, or wrong number."""
        for name, function in self.wrong:
            yield name, function if self.cases else self._value(function, context)

    def _value(self, function: Function, context: Context) -> Any:
        """What is compared: the function's number, or its results on the cases."""
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
        except (Exception, SystemExit) as error:  # a learner's function may raise anything, and the lab has to go on
            return CheckResult(self.id, f"The function raised {type(error).__name__}: {error}.")
        return self._unanswered() if all(map(_is_unanswered, results)) else self._compared(results, context)

    def _tested(self, observe: Function, answer: Any, context: Context) -> CheckResult:
        if answer == ast.literal_eval(self.starter.partition(" = ")[2]):
            return self._unanswered()
        outcome = observe(answer)
        failed = [f"{test}: no. {what}." for test, what in outcome.items() if what]
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
        text = f"`{self.answer_name}({arguments})` returns {reprlib.repr(got)}, which is not what is asked for."
        return CheckResult(self.id, text if self.exact else f"{text} {_describe(got, right, unit=self.unit)}")


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
    """Makes the function, or with `observe` the class, the solution of an exercise; see `SolvedExercise`.

    `wrong`: by the misconception's name, the function or functions to which it leads.
    """
    pairs = [(name, one) for name, ones in wrong.items() for one in (ones if isinstance(ones, Sequence) else [ones])]
    how: dict[str, Any] = {"unit": unit, "cases": cases, "needs": needs or {}, "worked": worked}
    how |= {"tolerance": tolerance, "exact": exact, "observe": observe}
    setattr(function, SOLVES, (id, {"solution": function, "wrong": pairs, **how}))


def source(function: Function) -> str:
    """A function's source, as shown to learners."""
    return textwrap.dedent(inspect.getsource(function)).strip()


# --- finding and asking ---


def exercises() -> dict[str, Exercise]:
    """Every exercise of the course by id, in order: those of each `course/questions/NN.md` beside `data/`.

    UsageError for a file that cannot be read, or that does not fit the solutions in `course/lab_NN.py`.
    """
    return _exercises(root() / "course")


@cache
def _exercises(folder: Path) -> dict[str, Exercise]:
    found: dict[str, Exercise] = {}
    for path in sorted(folder.glob("questions/[0-9][0-9]*.md")):
        solutions = _solutions(folder / f"lab_{path.stem}.py")
        for question in read_questions(path):
            fix = "begin it with the file's number, and give each its own name"
            is_own = question.id not in found and question.id.startswith(f"{path.stem}.")
            require(is_own, f"{path} cannot ask {question.id}", fix=fix)
            found[question.id] = _exercise(question, solutions.pop(question.id, {}), path)
        fix = "ask them there, or take these solutions away"
        require(not solutions, f"{path} does not ask {', '.join(solutions)}", fix=fix)
    return found


def _exercise(question: Question, how: Mapping[str, Any], path: Path) -> Exercise:
    if question.options:
        return ChoiceExercise(**vars(question))
    names, told = list(dict(how.get("wrong", ()))), list(question.told)
    what = f"{path}: {question.id} tells {told}; its solution in lab_{path.stem}.py has {names}"
    require(names == told, what, fix="give both the same names, in the same order")
    return SolvedExercise(**vars(question), **how)


def _solutions(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    solvers = [value for value in vars(_module(path)).values() if inspect.isfunction(value) or inspect.isclass(value)]
    marks = [vars(value).get(SOLVES) for value in solvers]
    return dict(mark for mark in marks if mark)


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


def find(id: str) -> Exercise:
    """The exercise of an id. Raises UsageError for an unknown one."""
    known = exercises()
    require(id in known, f"there is no exercise {id!r}", fix=f"use one of: {', '.join(known)}")
    return known[id]


def ask(id: str, context: Context | None = None) -> None:
    """Shows the question, with the context's numbers in it and the worked example before it.

    Raises UsageError for an unknown id or a missing number of the context.
    """
    exercise = find(id)
    worked = f"Worked example:\n\n```python\n{source(exercise.worked)}\n```\n\n" if exercise.worked else ""
    text = f"**Exercise: {exercise.title}**\n\n{worked}{exercise.asked(context)}"
    display.show({"text/markdown": text, "text/plain": text})


_listeners: list[Callable[[CheckResult], None]] = []
_answers: Counter[str] = Counter()


def listen(listener: Callable[[CheckResult], None]) -> None:
    """Has `listener` told of every answer that `check` judges from now on, in place of the one before it."""
    _listeners[:] = [listener]


def check(id: str, answer: Any, context: Context | None = None) -> CheckResult:
    """Judges an answer, shows the judgement and returns it. An unsolved starter is `not answered yet`, never an error.

    The solution is folded below it once the answer is right, or from the second wrong one on.
    `context` gives the numbers that the exercise depends on. Raises UsageError for an unknown id or a missing number.
    """
    exercise = find(id)
    result = exercise.judge(answer, context)
    for listener in _listeners:
        listener(result)
    named = f" ({'; '.join(result.misconceptions)})" if result.misconceptions else ""
    headline = f"{exercise.title[:1].upper()}{exercise.title[1:]}: {result.outcome}{named}"
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
    if isinstance(answer, str):
        # Codes are single letters, so that they may be written with blanks, with commas, with words or together.
        letters = re.sub(r"\b(and|or)\b", " ", answer, flags=re.IGNORECASE)
        return {letter.upper() for letter in letters if letter.isalnum()}
    parts = answer if isinstance(answer, Iterable) else (answer,)
    return {str(part).strip().upper() for part in parts}


def _is_unanswered(answer: Any) -> bool:
    return answer is None or answer is ... or (isinstance(answer, str) and not answer.strip())


def _sources(answer: Function) -> list[str]:
    """The source of a function, or of each function in a class: a class that a cell defines has none by itself."""
    functions = (
        [one for one in vars(answer).values() if inspect.isfunction(one)] if inspect.isclass(answer) else [answer]
    )
    try:
        return [source(function) for function in functions]
    except (OSError, TypeError):  # a built-in has no source
        return []


def _is_untouched(answer: Function, starter: str) -> bool:
    """Whether all of it stands in the starter, which may be code that runs and is wrong."""
    texts = _sources(answer)
    return bool(texts) and all(text in starter or textwrap.indent(text, "    ") in starter for text in texts)


def _has_blank(answer: Function) -> bool:
    """Whether a `...` is left in its source; Python takes it for true in a condition, and says nothing."""
    try:
        tree = ast.parse("\n\n".join(_sources(answer)))
    except SyntaxError:  # a lambda inside of a call
        return False
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    blanks = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value is ...)
    return any(id(blank) not in statements for blank in blanks)


def _plain(value: Any) -> Any:
    """Arrays as lists, also inside of a list."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _close(given: Any, expected: Any, tolerance: float) -> bool:
    """Equal; numbers to a relative tolerance; lists element by element."""
    if _is_number(given) and _is_number(expected):
        return math.isclose(float(given), float(expected), rel_tol=tolerance, abs_tol=1e-12)
    if _is_list(given) and _is_list(expected):
        pairs = zip(given, expected, strict=False)
        return len(given) == len(expected) and all(_close(*pair, tolerance) for pair in pairs)
    return bool(given == expected)


def _describe(given: Any, expected: Any, *, unit: str) -> str:
    """What kind of thing is off about a wrong answer; never the right answer itself."""
    if _is_list(expected):
        if not _is_list(given):
            return f"A list is expected; this is a {type(given).__name__}."
        if len(given) != len(expected):
            more = "more" if len(given) > len(expected) else "fewer"
            return f"The list has {more} entries than it should: check which ones belong in it."
        pairs = zip(given, expected, strict=True)
        wrong = next(pair for pair in pairs if not _close(*pair, 1e-6))
        return "The list has the right length. " + _describe(*wrong, unit=unit)
    if not _is_number(given):
        return f"A number is expected{f', in {unit}' if unit else ''}; this is a {type(given).__name__}."
    if not _is_number(expected):
        return f"Here the answer is not a number; this is {given:g}."
    if not math.isfinite(given):
        return "The number is not finite: something was divided by zero."
    if float(given) * float(expected) <= 0:
        return "The sign is off, or the answer is zero: check what is subtracted from what."
    return _describe_size(float(given) / float(expected))


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
