"""Rank the stacks for the answers by points, with the reasons, and find the single answers that would change the first.

A pure function of the answers and `data/selector/`. Excluded stacks are not ranked.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from labkit.advice.selector.answers import complete
from labkit.advice.selector.catalogue import (
    FIT,
    Branch,
    Catalogue,
    Exclusion,
    Grounded,
    Grounds,
    Neighbour,
    Pattern,
    SelectionWarning,
    Stack,
    catalogue,
)
from labkit.advice.selector.fit import in_words
from labkit.files import Frozen

MOST_BEHIND = 3  # reasons shown for a stack's distance from the winner


class Reason(Grounds):
    """A reason for a stack (`points` above 0), against it (below 0), or for its exclusion (0)."""

    rule: str
    text: str
    points: int


class Ranked(Frozen):
    """A stack in the ranking. `score` is None if it is `excluded`.

    `reasons`: the rules that gave or took points, by weight. `behind`: the reasons that put the winner ahead of it.
    """

    name: str
    stack: Stack
    score: int | None
    reasons: tuple[Reason, ...]
    excluded: tuple[Reason, ...] = ()
    behind: tuple[Reason, ...] = ()

    @property
    def title(self) -> str:
        return self.stack.title

    @property
    def pros(self) -> tuple[Reason, ...]:
        return tuple(reason for reason in self.reasons if reason.points > 0)

    @property
    def cons(self) -> tuple[Reason, ...]:
        return tuple(reason for reason in self.reasons if reason.points < 0)

    def to_json(self) -> dict[str, Any]:
        plain = self.model_dump(mode="json", exclude={"stack"})
        layers = {"title": self.title, "engine": self.stack.engine, "orchestrator": self.stack.orchestrator}
        return {**plain, **layers, "excluded": plain["excluded"] or None}


class Flip(Frozen):
    """A single other answer that makes `winner` the first."""

    question: str
    answer: str
    winner: str


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The result. `without_opinions`: the first stack if opinions do not count.

    `neighbours`: projects of the landscape that are worth a look, with the reason.
    `article`: the branch at which the article's tree ends.
    """

    answers: Mapping[str, str]
    ranking: tuple[Ranked, ...]
    flips: tuple[Flip, ...]
    neighbours: tuple[tuple[Neighbour, str], ...]
    warnings: tuple[SelectionWarning, ...]
    without_opinions: str
    article: Branch

    @property
    def winner(self) -> Ranked:
        return self.ranking[0]

    @property
    def margin(self) -> int | None:
        """Points between the first and the second; None if only one is ranked."""
        first, *rest = [ranked.score for ranked in self.ranking if ranked.score is not None]
        return first - rest[0] if rest else None


def select(given: Mapping[str, Any] | None = None) -> Selection:
    """Rank all stacks for the answers; missing answers get defaults. UsageError: an unknown answer."""
    known, answers = catalogue(), complete(given)
    names = order(known, answers)
    winner = names[0]
    return Selection(
        answers=answers,
        ranking=tuple(_ranked(known, answers, name, winner) for name in names),
        flips=tuple(_flips(known, answers, winner)),
        neighbours=tuple((project, why) for project in known.landscape if (why := project.why(answers))),
        warnings=tuple(warning for warning in known.warnings if warning.holds(answers) and warning.is_for(winner)),
        without_opinions=order(known, answers, opinions=False)[0],
        article=next(branch for branch in known.tree if branch.holds(answers)),
    )


def order(known: Catalogue, answers: Mapping[str, str], *, opinions: bool = True) -> list[str]:
    """Return the stacks by points, ties by fewest parts (the file's order), excluded ones last."""
    scores, excluded = points(known, answers, opinions=opinions), exclusions(known, answers)
    return sorted(known.stacks, key=lambda name: (bool(excluded[name]), -scores[name]))


def first(known: Catalogue, answers: Mapping[str, str]) -> str:
    return order(known, answers)[0]


def points(known: Catalogue, answers: Mapping[str, str], *, opinions: bool = True) -> dict[str, int]:
    """Return each stack's points, with or without opinions."""
    scores = dict.fromkeys(known.stacks, 0)
    for rule in known.rules:
        if (opinions or rule.evidence != "opinion") and rule.holds(answers):
            for name, value in rule.points.items():
                scores[name] += value
    return scores


def exclusions(known: Catalogue, answers: Mapping[str, str]) -> dict[str, list[Exclusion]]:
    """Return the exclusions that hold, by stack."""
    holding = [exclusion for exclusion in known.exclusions if exclusion.holds(answers)]
    return {name: [exclusion for exclusion in holding if name in exclusion.stacks] for name in known.stacks}


def _flips(known: Catalogue, answers: Mapping[str, str], winner: str) -> Iterator[Flip]:
    for name, question in known.questions.items():
        for option in question.options:
            if (other := first(known, {**answers, name: option})) != winner:
                yield Flip(question=name, answer=option, winner=other)


def _ranked(known: Catalogue, answers: Mapping[str, str], name: str, winner: str) -> Ranked:
    excluded = exclusions(known, answers)[name]
    holding = [rule for rule in known.rules if rule.holds(answers)]
    reasons = [_reason(rule, rule.points[name]) for rule in holding if name in rule.points]
    behind = [_reason(rule, rule.points.get(winner, 0) - rule.points.get(name, 0)) for rule in holding]
    behind = sorted((reason for reason in behind if reason.points > 0), key=lambda reason: -reason.points)
    return Ranked(
        name=name,
        stack=known.stacks[name],
        score=None if excluded else sum(reason.points for reason in reasons),
        reasons=tuple(sorted(reasons, key=lambda reason: (-abs(reason.points), -reason.points))),
        excluded=tuple(_why_excluded(exclusion, answers) for exclusion in excluded),
        behind=tuple(behind[:MOST_BEHIND]),
    )


def _reason(entry: Grounded, points_given: int) -> Reason:
    grounds = entry.model_dump(include=set(Grounds.model_fields))
    return Reason(rule=entry.id, text=entry.reason, points=points_given, **grounds)


def _why_excluded(entry: Exclusion, answers: Mapping[str, str]) -> Reason:
    """Return the reason for an exclusion, with the calculated memory if it depends on that."""
    reason = _reason(entry, 0)
    return reason.model_copy(update={"text": f"{reason.text} {in_words(answers)}"}) if FIT in entry.when else reason


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A row of the article's table, and the stack that the selector puts first in that situation."""

    pattern: Pattern
    name: str
    stack: Stack

    @property
    def same(self) -> bool:
        return self.pattern.framework in self.stack.frameworks

    def to_json(self) -> dict[str, Any]:
        return {
            "situation": self.pattern.situation,
            "article": self.pattern.framework,
            "promise": self.pattern.promise,
            "ours": self.name,
            "same": self.same,
            "difference": self.pattern.difference,
            "claims": list(self.pattern.claims),
        }


def compare_patterns() -> list[Comparison]:
    """Return the article's six patterns, each with our first choice for the same situation."""
    known = catalogue()
    names = [first(known, {**known.defaults, **pattern.answers}) for pattern in known.patterns]
    pairs = zip(known.patterns, names, strict=True)
    return [Comparison(pattern=pattern, name=name, stack=known.stacks[name]) for pattern, name in pairs]
