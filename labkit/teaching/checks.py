"""Asks an exercise and shows the judgement of an answer: passed or which misconception, hints and solution folded."""

import importlib
import pkgutil
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from labkit.errors import UsageError
from labkit.teaching import show
from labkit.teaching.exercises import CheckResult, Context, Exercise, source

Listener = Callable[[CheckResult], None]
COLOURS = {"passed": "#009E73", "not yet": "#D55E00", "not answered yet": "#8c8c8c"}


_listeners: list[Listener] = []


def listen(listener: Listener) -> None:
    """Has `listener` told of every answer that `check` judges from now on, in place of the one before it."""
    _listeners[:] = [listener]


@cache
def exercises() -> dict[str, Exercise]:
    """Every exercise of the course by id: the `EXERCISES` of each `lab_NN` module of this package, in order."""
    import labkit.teaching

    found: dict[str, Exercise] = {}
    for module in sorted(one.name for one in pkgutil.iter_modules(labkit.teaching.__path__)):
        if re.fullmatch(r"lab_\d\d", module):
            found |= importlib.import_module(f"labkit.teaching.{module}").EXERCISES
    return found


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
    show.show({"text/markdown": text, "text/plain": text})


def check(exercise: str | Exercise, answer: Any, context: Context | None = None) -> CheckResult:
    """Judges an answer, shows the judgement and returns it. An unsolved starter is `not answered yet`, never an error.

    `context` gives the numbers that the exercise depends on. Raises UsageError for an unknown id or a missing number.
    """
    one = find(exercise)
    result = one.judge(answer, context)
    for listener in _listeners:
        listener(result)
    show.show({"text/html": _html(one, result), "text/plain": _text(one, result)})
    return result


def _html(one: Exercise, result: CheckResult) -> str:
    parts = [show.inline(result.diagnosis)]
    if not result.passed:
        parts += [show.folded(f"Hint {n}", show.inline(hint)) for n, hint in enumerate(one.hints, start=1)]
    parts.append(show.folded("Solution", show.code(one.solution_text())))
    return show.card(_headline(one, result), "".join(parts), colour=COLOURS[result.outcome])


def _headline(one: Exercise, result: CheckResult) -> str:
    title = one.title[:1].upper() + one.title[1:]
    named = f" ({'; '.join(result.misconceptions)})" if result.misconceptions else ""
    return f"{title}: {result.outcome}{named}"


def _text(one: Exercise, result: CheckResult) -> str:
    return f"{_headline(one, result)}\n{result.diagnosis}"
