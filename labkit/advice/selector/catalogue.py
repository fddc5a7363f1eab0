"""Read and validate the selector's questions, stacks and rules from `data/selector/`; no code is evaluated."""

from collections.abc import Collection, Iterator, Mapping
from datetime import date
from functools import cache
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from labkit.advice.selector.fit import FITS, fit
from labkit.errors import require
from labkit.files import Frozen, data_path, read_yaml

FIT = "fit"  # the name of the result of `fit` in conditions


class Question(Frozen):
    """A question. `options`: labels by value, in order; `help`: a tooltip; `rounds`: see questions.yaml."""

    label: str
    question: str
    help: str
    asked_by: Literal["article", "ours"]
    rounds: Literal["up", "down"] | None = None
    default: str
    options: dict[str, str] = Field(min_length=2)

    @model_validator(mode="after")
    def _default_is_an_option(self) -> Self:
        if self.default not in self.options:
            raise ValueError(f"the default {self.default!r} is not an option")
        return self


class Stack(Frozen):
    """A stack that can be recommended. `frameworks`: the article's frameworks in it.

    `needs`: the reason why this course cannot start its configuration; empty if the tests start it.
    """

    title: str
    engine: str
    orchestrator: str
    frameworks: tuple[str, ...]
    needs: str = ""
    what: str


class Conditional(Frozen):
    """An entry that holds if every question in `when`, or `fit`, has one of the named options."""

    when: dict[str, tuple[str, ...]]

    def holds(self, answers: Mapping[str, str]) -> bool:
        values = {FIT: fit(answers), **answers} if FIT in self.when else answers
        return all(values[question] in options for question, options in self.when.items())


class Entry(Conditional):
    id: str = Field(pattern=r"^[a-z0-9-]+$")


class Grounds(Frozen):
    """The evidence for a reason: measured in `lab`, cited from `source` as read on `checked`, or given by an answer."""

    evidence: Literal["measured", "cited", "given", "opinion"]
    source: str = ""
    checked: date | None = None
    claim: str | None = None
    lab: str | None = None

    @model_validator(mode="after")
    def _evidence_is_named(self) -> Self:
        if self.evidence == "measured" and not self.lab:
            raise ValueError("measured evidence names its lab")
        if (self.evidence == "cited") != bool(self.source and self.checked):
            raise ValueError("cited evidence, and no other, names source and day")
        return self


class Grounded(Entry, Grounds):
    reason: str = Field(min_length=1)


class Exclusion(Grounded):
    """A rule that excludes `stacks` from the ranking."""

    stacks: tuple[str, ...] = Field(min_length=1)


class Rule(Grounded):
    """A rule for a stack (positive points) or against it (negative points)."""

    points: dict[str, int] = Field(min_length=1)


class SelectionWarning(Entry):
    """A text beside the result, or only beside the recommendations in `winner`."""

    winner: tuple[str, ...] = ()
    text: str
    claim: str | None = None
    lab: str | None = None

    def is_for(self, stack: str) -> bool:
        return not self.winner or stack in self.winner


class Branch(Conditional):
    """A branch of the article's decision tree, with the framework at its end."""

    question: str
    framework: str

    def in_stack(self, stack: Stack) -> bool:
        return self.framework in stack.frameworks


class Pattern(Frozen):
    """A row of the article's table: a situation and its framework. `difference`: why our first choice is another."""

    id: str
    situation: str
    framework: str
    promise: str
    claims: tuple[str, ...]
    answers: dict[str, str]
    difference: str


class Here(Conditional):
    """Answers for which a neighbour is worth a look, and our judgement why."""

    why: str


class Neighbour(Frozen):
    """A project that this course does not run, described in one line from `source` as of the day `checked`."""

    name: str
    layer: Literal["engine", "orchestrator", "service"]
    status: str
    line: str
    source: str = Field(min_length=1)
    checked: date
    here: tuple[Here, ...] = ()

    def why(self, answers: Mapping[str, str]) -> str | None:
        """Return the first reason that holds why it is worth a look, or None."""
        return next((entry.why for entry in self.here if entry.holds(answers)), None)


class RulesFile(Frozen):
    exclusions: tuple[Exclusion, ...]
    rules: tuple[Rule, ...]
    warnings: tuple[SelectionWarning, ...]

    @property
    def entries(self) -> tuple[Entry, ...]:
        return (*self.exclusions, *self.rules, *self.warnings)


class ArticleFile(Frozen):
    """The article's table and its decision tree, whose last branch has no condition."""

    patterns: tuple[Pattern, ...]
    tree: tuple[Branch, ...]


class Catalogue(RulesFile, ArticleFile):
    """All of data/selector except the configurations."""

    questions: dict[str, Question]
    stacks: dict[str, Stack]
    landscape: tuple[Neighbour, ...]

    @property
    def defaults(self) -> dict[str, str]:
        return {name: question.default for name, question in self.questions.items()}


@cache
def catalogue(folder: Path | None = None) -> Catalogue:
    """Return the course's catalogue, or that of another folder. UsageError: an invalid entry, by file and name."""
    folder = folder or data_path("selector")
    known = Catalogue(
        **dict(read_yaml(folder / "rules.yaml", RulesFile)),
        **dict(read_yaml(folder / "article.yaml", ArticleFile)),
        questions=read_yaml(folder / "questions.yaml", dict[str, Question]),
        stacks=read_yaml(folder / "stacks.yaml", dict[str, Stack]),
        landscape=read_yaml(folder / "landscape.yaml", tuple[Neighbour, ...]),
    )
    for where, name, names in _names_used(known):
        require(name in names, f"selector: {where} {name!r} does not exist", fix=f"use one of: {', '.join(names)}")
    ids = [entry.id for entry in known.entries]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    require(not twice, f"selector/rules.yaml has {', '.join(twice)} twice", fix="rename one")
    return known


def _names_used(known: Catalogue) -> Iterator[tuple[str, str, Collection[str]]]:
    """Yield each question, option and stack that an entry names: its place, its name, and the known names."""
    conditions = [(entry.id, entry.when) for entry in known.entries]
    conditions += [(branch.question, branch.when) for branch in known.tree]
    conditions += [(row.id, {name: (value,) for name, value in row.answers.items()}) for row in known.patterns]
    conditions += [(project.name, entry.when) for project in known.landscape for entry in project.here]
    options_of = {FIT: FITS, **{name: tuple(question.options) for name, question in known.questions.items()}}
    for where, when in conditions:
        for question, options in when.items():
            yield f"{where}: question", question, options_of
            yield from ((f"{where}: option of {question}", option, options_of[question]) for option in options)
    for rule in known.rules:
        yield from ((f"{rule.id}: stack", name, known.stacks) for name in rule.points)
    for exclusion in known.exclusions:
        yield from ((f"{exclusion.id}: stack", name, known.stacks) for name in exclusion.stacks)
    for warning in known.warnings:
        yield from ((f"{warning.id}: stack", name, known.stacks) for name in warning.winner)
