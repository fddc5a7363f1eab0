"""The selector's questions, stacks and rules: `data/selector/`, read and validated once. Nothing there is evaluated."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from labkit.errors import UsageError, did_you_mean
from labkit.files import Frozen, data_path, first_errors
from labkit.records.ledger import load_claims

FOLDER = "selector"
FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Evidence = Literal["measured", "cited", "given", "opinion"]
When = Mapping[str, tuple[str, ...]]
"""question: the options for which it holds; all of the questions have to."""
T = TypeVar("T")


class Question(Frozen):
    """What is asked. `options`: their labels by value, in order; `help`: a tooltip."""

    label: str
    question: str
    help: str
    asked_by: Literal["article", "ours"]
    default: str
    options: dict[str, str] = Field(min_length=2)

    @model_validator(mode="after")
    def _default_is_an_option(self) -> Self:
        if self.default not in self.options:
            raise ValueError(f"the default {self.default!r} is no option")
        return self


class Stack(Frozen):
    """What may be recommended: an engine and what stands around it. `frameworks`: those of the article in it."""

    title: str
    engine: str
    orchestrator: str
    frameworks: tuple[str, ...]
    what: str


class Grounded(Frozen):
    """A reason with what it rests on.

    `measured`: in `lab`; `cited`: in `source`, read on the day `checked`; `given`: by the answer itself.
    """

    id: str = Field(pattern=r"^[a-z0-9-]+$")
    when: When
    reason: str = Field(min_length=1)
    evidence: Evidence
    source: str = ""
    checked: date | None = None
    claim: str | None = None
    lab: str | None = None

    @model_validator(mode="after")
    def _evidence_is_named(self) -> Self:
        if self.evidence == "measured" and not self.lab:
            raise ValueError("what is measured names its lab")
        if (self.evidence == "cited") != bool(self.source and self.checked):
            raise ValueError("what is cited, and only that, names source and day")
        return self

    def holds(self, answers: Mapping[str, str]) -> bool:
        """Whether all conditions hold."""
        return all(answers[question] in options for question, options in self.when.items())


class Exclusion(Grounded):
    """Where it holds, `stacks` are not ranked."""

    stacks: tuple[str, ...] = Field(min_length=1)


class Rule(Grounded):
    """Where it holds, it speaks for a stack (points above zero) or against it (below)."""

    points: dict[str, int] = Field(min_length=1)


class Warning(Frozen):
    """A text beside the result; with `winner` only beside these recommendations."""

    id: str
    when: When
    winner: tuple[str, ...] = ()
    text: str
    claim: str | None = None
    lab: str | None = None

    def holds(self, answers: Mapping[str, str], winner: str) -> bool:
        """Whether it is to be shown beside `winner`."""
        here = all(answers[question] in options for question, options in self.when.items())
        return here and (not self.winner or winner in self.winner)


class Pattern(Frozen):
    """A row of the article's table: a situation, its framework, and how ours differs (`difference`)."""

    id: str
    situation: str
    framework: str
    promise: str
    claims: tuple[str, ...]
    answers: dict[str, str]
    difference: str


class Branch(Frozen):
    """A branch of the article's decision tree."""

    question: str
    framework: str
    when: When


class Neighbour(Frozen):
    """A project that the article leaves out, in one line, as found on the day `checked`."""

    name: str
    layer: Literal["engine", "orchestrator"]
    status: str
    checked: date
    line: str


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """All of data/selector."""

    questions: Mapping[str, Question]
    stacks: Mapping[str, Stack]
    exclusions: tuple[Exclusion, ...]
    rules: tuple[Rule, ...]
    warnings: tuple[Warning, ...]
    patterns: tuple[Pattern, ...]
    tree: tuple[Branch, ...]
    landscape: tuple[Neighbour, ...]

    @property
    def defaults(self) -> dict[str, str]:
        """The answers of somebody who answers nothing."""
        return {name: one.default for name, one in self.questions.items()}


@cache
def catalogue(folder: Path | None = None) -> Catalogue:
    """The course's catalogue, or that of another folder. UsageError names the file, the entry and what is wrong."""
    folder = folder or data_path(FOLDER)
    rules, article = _read(folder / "rules.yaml"), _read(folder / "article.yaml")
    found = Catalogue(
        questions=_parse(dict[str, Question], _read(folder / "questions.yaml"), "questions.yaml"),
        stacks=_parse(dict[str, Stack], _read(folder / "stacks.yaml"), "stacks.yaml"),
        exclusions=_parse(tuple[Exclusion, ...], rules.get("exclusions"), "rules.yaml: exclusions"),
        rules=_parse(tuple[Rule, ...], rules.get("rules"), "rules.yaml: rules"),
        warnings=_parse(tuple[Warning, ...], rules.get("warnings"), "rules.yaml: warnings"),
        patterns=_parse(tuple[Pattern, ...], article.get("patterns"), "article.yaml: patterns"),
        tree=_parse(tuple[Branch, ...], article.get("tree"), "article.yaml: tree"),
        landscape=_parse(tuple[Neighbour, ...], _read(folder / "landscape.yaml"), "landscape.yaml"),
    )
    _check_names(found)
    return found


def _read(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=FAST_LOADER)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read: {error}", remedy="restore it from the repository") from error


def _parse(kind: type[T], tree: Any, where: str) -> T:
    try:
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        raise UsageError(f"{FOLDER}/{where}: {first_errors(error)}", remedy="correct that entry") from error


def _check_names(found: Catalogue) -> None:
    """Every question, option, stack and claim that an entry names is there, and no id comes twice."""
    parts: tuple[Exclusion | Rule | Warning, ...] = (*found.exclusions, *found.rules, *found.warnings)
    for one in parts:
        _check_when(found, one.when, one.id)
        if one.claim is not None:
            _require(one.claim, load_claims(), f"{one.id}: claim")
    for rule in found.rules:
        _require_all(rule.points, found.stacks, f"{rule.id}: stack")
    for exclusion in found.exclusions:
        _require_all(exclusion.stacks, found.stacks, f"{exclusion.id}: stack")
    for warning in found.warnings:
        _require_all(warning.winner, found.stacks, f"{warning.id}: stack")
    for pattern in found.patterns:
        _check_when(found, {name: (value,) for name, value in pattern.answers.items()}, pattern.id)
        _require_all(pattern.claims, load_claims(), f"{pattern.id}: claim")
    for branch in found.tree:
        _check_when(found, branch.when, branch.question)
    ids = [one.id for one in parts]
    if twice := {name for name in ids if ids.count(name) > 1}:
        raise UsageError(f"{FOLDER}/rules.yaml: {', '.join(sorted(twice))} stands there twice", remedy="rename one")


def _check_when(found: Catalogue, when: When, where: str) -> None:
    for question, options in when.items():
        _require(question, found.questions, f"{where}: question")
        _require_all(options, found.questions[question].options, f"{where}: option of {question}")


def _require_all(names: Iterable[str], known: Mapping[str, Any], where: str) -> None:
    for name in names:
        _require(name, known, where)


def _require(name: str, known: Mapping[str, Any], where: str) -> None:
    if name not in known:
        raise UsageError(f"{FOLDER}: {where} {name!r} does not exist", remedy=f"use one of: {', '.join(known)}")


# --- answers ---


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
