"""The selector's questions, stacks and rules: `data/selector/`, read and validated once. Nothing there is evaluated."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from labkit.claims import load_claims
from labkit.claims.rules import Frozen
from labkit.errors import UsageError
from labkit.paths import data_path
from labkit.records.files import first_errors

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
