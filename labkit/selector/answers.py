"""Answers: read from a form's state, from KEY=VALUE or from Python, checked, and written back as one line of JSON."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from labkit.errors import UsageError
from labkit.labs import did_you_mean
from labkit.selector.catalogue import Catalogue, catalogue

MODEL = "model"
MAX_STATE = 10_000
# A hub id, a folder or one of the course's names: what a command line takes without quoting.
MODEL_NAME = re.compile(r"[A-Za-z0-9_~./-][A-Za-z0-9_.:/@~+-]{0,199}")


def complete(given: Mapping[str, Any] | None = None, *, using: Catalogue | None = None) -> dict[str, str]:
    """All answers, in the order of the questions: those given, and the defaults of the others.

    UsageError: an unknown question or option, with the closest one that exists.
    """
    known = using or catalogue()
    answers = known.defaults
    for name, value in (given or {}).items():
        if name not in known.questions:
            raise UsageError(f"the selector asks nothing called {name!r}", remedy=did_you_mean(str(name), answers))
        answers[name] = _option(known, name, value)
    return answers


def _option(known: Catalogue, name: str, value: Any) -> str:
    # YAML and JSON read `yes` and `no` as truth values.
    text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value).strip()
    options = known.questions[name].options
    by_label = {label: option for option, label in options.items()}
    if text in options:
        return text
    if text in by_label:
        return by_label[text]
    raise UsageError(
        f"{name} is {text[:80]!r}; it must be {_one_of(options)}", remedy=did_you_mean(text.lower()[:80], options)
    )


def _one_of(options: Mapping[str, str]) -> str:
    return "one of " + ", ".join(f"{value} ({label})" for value, label in options.items())


def read_state(text: str | Mapping[str, Any] | None) -> tuple[dict[str, str], str | None]:
    """Answers and model of an exported state: JSON text, a mapping, or nothing at all (then all defaults).

    UsageError: text that is no JSON object, an unknown question or option, a model's name with odd characters.
    """
    given = dict(text) if isinstance(text, Mapping) else _object(text or "")
    model = given.pop(MODEL, None)
    return complete(given), check_model(model)


def _object(text: str) -> dict[str, Any]:
    if not text.strip():
        return {}
    remedy = 'paste what the form exports, such as {"pattern": "pipeline"}'
    if len(text) > MAX_STATE:
        raise UsageError(f"the state has {len(text):,} characters; it is one line of JSON", remedy=remedy)
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"the state is no JSON: {error}", remedy=remedy) from error
    if not isinstance(found, dict):
        raise UsageError(f"the state is a JSON {type(found).__name__}, no object", remedy=remedy)
    return found


def write_state(answers: Mapping[str, str], model: str | None = None) -> str:
    """The answers as one line of JSON, which `read_state` and a lab's parameter take."""
    return json.dumps({**answers, **({MODEL: model} if model else {})})


def check_model(name: Any) -> str | None:
    """A model's name as it may stand in a command. UsageError for anything that is none."""
    if name is None or name == "":
        return None
    if not isinstance(name, str) or not MODEL_NAME.fullmatch(name) or ".." in name:
        raise UsageError(
            f"{str(name)[:80]!r} is no model's name",
            remedy="give a hub id (Qwen/Qwen2.5-7B-Instruct) or a path",
        )
    return name


def from_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`["pattern=pipeline", "model=Qwen/Qwen2.5-7B-Instruct"]` as a mapping. UsageError without `=` or for a repeat."""
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise UsageError(f"{setting!r} sets nothing", remedy="write KEY=VALUE, such as pattern=pipeline")
        if name in found:
            raise UsageError(f"{name} is set twice", remedy="leave one of the two")
        found[name] = value.strip()
    return found
