"""Read and write answers: options or labels, and the form's export as one line of JSON."""

import json
import re
from collections.abc import Mapping
from typing import Any

from labkit import files
from labkit.advice.selector.catalogue import Question, catalogue
from labkit.advice.selector.fit import number
from labkit.errors import UsageError, did_you_mean

MODEL = "model"
NUMBER = re.compile(r"(\d+(?:\.\d+)?) *(b|gi?b|k)?")
MODEL_NAME = re.compile(r"[A-Za-z0-9_~./-][A-Za-z0-9_.:/@~+-]{0,199}")  # needs no quoting on a command line


def complete(given: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return all answers in the order of the questions, with defaults for those that are not given.

    UsageError: an unknown question or option, with the closest known one.
    """
    questions, answers = catalogue().questions, catalogue().defaults
    for name, value in (given or {}).items():
        if name not in questions:
            raise UsageError(f"the selector has no question {name!r}", remedy=did_you_mean(str(name), answers))
        answers[name] = _option(name, questions[name], value)
    return answers


def _option(name: str, question: Question, value: Any) -> str:
    # YAML reads `yes` and `no` as booleans.
    text = ("no", "yes")[value] if isinstance(value, bool) else str(value).strip()
    by_label = {label: option for option, label in question.options.items()}
    option = text if text in question.options else by_label.get(text) or _rounded(question, text)
    if option is not None:
        return option
    listed = ", ".join(f"{option} ({label})" for option, label in question.options.items())
    remedy = did_you_mean(text.lower()[:80], question.options)
    raise UsageError(f"{name} is {text[:80]!r}; it must be one of {listed}", remedy=remedy)


def _rounded(question: Question, text: str) -> str | None:
    """Return the option for a number such as 70b, 96GB or 16k, if the question rounds numbers."""
    match = NUMBER.fullmatch(text.lower())
    if question.rounds is None or match is None:
        return None
    value, options = float(match[1]), list(question.options)
    unit, own = match[2] or "", options[0].lstrip("0123456789.")
    if (unit and unit[0] != own[0]) or (own == "k" and not unit and value < 1000):  # 16gb is no size of a model
        return None
    if own == "k" and not unit:
        value /= 1024  # tokens
    if question.rounds == "up":
        return next((option for option in options if number(option) >= value), None)
    return next((option for option in reversed(options) if number(option) <= value), None)


def read_state(state: str | Mapping[str, Any] | None) -> tuple[dict[str, str], str | None]:
    """Return the answers and the model of an exported state: JSON text, a mapping, or nothing (all defaults).

    UsageError: text that is not a JSON object, an unknown question or option, an invalid model name.
    """
    given = files.read_state(state)
    model = given.pop(MODEL, None)
    return complete(given), check_model(model)


def write_state(answers: Mapping[str, str], model: str | None = None) -> str:
    """Return the answers as one line of JSON for `read_state` or a lab's parameter."""
    return json.dumps({**answers, **({MODEL: model} if model else {})})


def check_model(name: Any) -> str | None:
    """Return a model name that needs no quoting in a command; None if it is empty. UsageError for any other."""
    if name is None or name == "":
        return None
    if not isinstance(name, str) or not MODEL_NAME.fullmatch(name) or ".." in name:
        remedy = "give a hub id (Qwen/Qwen2.5-7B-Instruct) or a path"
        raise UsageError(f"{str(name)[:80]!r} is not a model name", remedy=remedy)
    return name
