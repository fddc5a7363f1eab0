"""Answers as people give them: as options or labels, and as one line of JSON that the form exports."""

import json
import re
from collections.abc import Mapping
from typing import Any

from labkit import files
from labkit.advice.selector.catalogue import Question, catalogue
from labkit.advice.selector.fit import number
from labkit.errors import UsageError, did_you_mean

MODEL = "model"
# A hub id, a folder or one of the course's names: what a command line takes without quoting.
NUMBER = re.compile(r"(\d+(?:\.\d+)?) *(?:b|gi?b|k)?")
MODEL_NAME = re.compile(r"[A-Za-z0-9_~./-][A-Za-z0-9_.:/@~+-]{0,199}")


def complete(given: Mapping[str, Any] | None = None) -> dict[str, str]:
    """All answers, in the order of the questions: those given, and the defaults of the others.

    UsageError: an unknown question or option, with the closest one that exists.
    """
    questions, answers = catalogue().questions, catalogue().defaults
    for name, value in (given or {}).items():
        if name not in questions:
            raise UsageError(f"the selector asks nothing called {name!r}", remedy=did_you_mean(str(name), answers))
        answers[name] = _option(name, questions[name], value)
    return answers


def _option(name: str, question: Question, value: Any) -> str:
    # YAML and JSON read `yes` and `no` as truth values.
    text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value).strip()
    by_label = {label: option for option, label in question.options.items()}
    if text in question.options:
        return text
    if text in by_label:
        return by_label[text]
    if (rounded := _rounded(question, text)) is not None:
        return rounded
    listed = ", ".join(f"{option} ({label})" for option, label in question.options.items())
    remedy = did_you_mean(text.lower()[:80], question.options)
    raise UsageError(f"{name} is {text[:80]!r}; it must be one of {listed}", remedy=remedy)


def _rounded(question: Question, text: str) -> str | None:
    """The option that stands for a number such as 70b, 96GB or 16k; None for other questions and for no number."""
    found = NUMBER.fullmatch(text.lower())
    if question.rounds is None or found is None:
        return None
    value, options = float(found[1]), list(question.options)
    if options[0].endswith("k") and value >= 1000:
        value /= 1024  # tokens
    if question.rounds == "up":
        return next((option for option in options if number(option) >= value), None)
    return next((option for option in reversed(options) if number(option) <= value), None)


def read_state(state: str | Mapping[str, Any] | None) -> tuple[dict[str, str], str | None]:
    """Answers and model of an exported state: JSON text, a mapping, or nothing (then all defaults).

    UsageError: text that is no JSON object, an unknown question or option, a model's name with odd characters.
    """
    given = files.read_state(state)
    model = given.pop(MODEL, None)
    return complete(given), check_model(model)


def write_state(answers: Mapping[str, str], model: str | None = None) -> str:
    """The answers as one line of JSON, which `read_state` and a lab's parameter take."""
    return json.dumps({**answers, **({MODEL: model} if model else {})})


def check_model(name: Any) -> str | None:
    """The model's name if a command can hold it unquoted; None for an empty one. UsageError for anything else."""
    if name is None or name == "":
        return None
    if not isinstance(name, str) or not MODEL_NAME.fullmatch(name) or ".." in name:
        remedy = "give a hub id (Qwen/Qwen2.5-7B-Instruct) or a path"
        raise UsageError(f"{str(name)[:80]!r} is no model's name", remedy=remedy)
    return name
