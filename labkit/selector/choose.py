"""The choice: which stack suits the answers, why, why not the others, and which single answer would change it.

A pure function of the answers and `data/selector/`. Points are added up; what an exclusion names is not ranked.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from labkit.selector.answers import complete
from labkit.selector.article import ArticleSays, article_says
from labkit.selector.catalogue import Catalogue, Evidence, Exclusion, Grounded, Stack, Warning, catalogue

SHOWN = 3  # of what separates a stack from the first one


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One fact for (`points` above 0) or against a stack, or why it is excluded (`points` 0)."""

    rule: str
    text: str
    points: int
    evidence: Evidence
    source: str = ""
    checked: date | None = None
    claim: str | None = None
    lab: str | None = None

    def to_json(self) -> dict[str, Any]:
        """All fields as plain data."""
        return {**self.__dict__, "checked": self.checked.isoformat() if self.checked else None}


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A stack's place. `score` is None where `excluded` says why it is not ranked.

    `reasons`: every rule that gave or took points, the weightiest first. `behind`: what the first one has over it.
    """

    name: str
    stack: Stack
    score: int | None
    reasons: tuple[Reason, ...]
    excluded: tuple[Reason, ...] = ()
    behind: tuple[Reason, ...] = ()

    @property
    def title(self) -> str:
        """The stack in words."""
        return self.stack.title

    @property
    def pros(self) -> tuple[Reason, ...]:
        """What speaks for it."""
        return tuple(one for one in self.reasons if one.points > 0)

    @property
    def cons(self) -> tuple[Reason, ...]:
        """What speaks against it."""
        return tuple(one for one in self.reasons if one.points < 0)

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the names that scripts rely on."""
        return {
            "name": self.name,
            "title": self.title,
            "engine": self.stack.engine,
            "orchestrator": self.stack.orchestrator,
            "score": self.score,
            "reasons": [one.to_json() for one in self.reasons],
            "excluded": [one.to_json() for one in self.excluded] or None,
            "behind": [one.to_json() for one in self.behind],
        }


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A single other answer that changes the first place to `winner`."""

    question: str
    answer: str
    winner: str

    def to_json(self) -> dict[str, str]:
        """Plain data."""
        return dict(self.__dict__)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The result. `without_opinions`: what comes first when only measured and cited reasons count."""

    answers: Mapping[str, str]
    ranking: tuple[Ranked, ...]
    flips: tuple[Flip, ...]
    warnings: tuple[Warning, ...]
    without_opinions: str
    article: ArticleSays

    @property
    def winner(self) -> Ranked:
        """The first one: there always is one."""
        return self.ranking[0]

    @property
    def margin(self) -> int | None:
        """Points between the first and the second; None where nothing else is ranked."""
        first, *rest = [one.score for one in self.ranking if one.score is not None]
        return first - rest[0] if rest else None


def select(given: Mapping[str, Any] | None = None, *, using: Catalogue | None = None) -> Selection:
    """Ranks all stacks for the answers; what is not answered has its default. UsageError for an unknown answer."""
    known = using or catalogue()
    answers = complete(given, using=known)
    excluded = exclusions(known, answers)
    scores = points(known, answers)
    order = ranked(known, scores, excluded)
    winner = order[0]
    return Selection(
        answers=answers,
        ranking=tuple(_place(known, answers, name, scores, excluded, winner) for name in order),
        flips=tuple(_flips(known, answers, winner)),
        warnings=tuple(one for one in known.warnings if one.holds(answers, winner)),
        without_opinions=ranked(known, points(known, answers, opinions=False), excluded)[0],
        article=article_says(known, answers),
    )


def exclusions(known: Catalogue, answers: Mapping[str, str]) -> dict[str, tuple[Exclusion, ...]]:
    """The exclusions that hold, by stack. Never all of the stacks (a test goes through all answers)."""
    holding = [one for one in known.exclusions if one.holds(answers)]
    return {name: found for name in known.stacks if (found := tuple(one for one in holding if name in one.stacks))}


def points(known: Catalogue, answers: Mapping[str, str], *, opinions: bool = True) -> dict[str, int]:
    """Each stack's points; without the rules that are opinions if so asked."""
    scores = dict.fromkeys(known.stacks, 0)
    for rule in known.rules:
        if (opinions or rule.evidence != "opinion") and rule.holds(answers):
            for name, value in rule.points.items():
                scores[name] += value
    return scores


def ranked(known: Catalogue, scores: Mapping[str, int], excluded: Mapping[str, Any]) -> list[str]:
    """The stacks from first to last: those that are not excluded by points, then by fewest parts (the file's order)."""
    order = list(known.stacks)
    return sorted(order, key=lambda name: (name in excluded, -scores[name], order.index(name)))


def first(known: Catalogue, answers: Mapping[str, str]) -> str:
    """The winner alone, for who asks often."""
    return ranked(known, points(known, answers), exclusions(known, answers))[0]


def _flips(known: Catalogue, answers: Mapping[str, str], winner: str) -> Iterator[Flip]:
    for question, one in known.questions.items():
        for option in one.options:
            if option != answers[question] and (other := first(known, {**answers, question: option})) != winner:
                yield Flip(question=question, answer=option, winner=other)


def _place(
    known: Catalogue,
    answers: Mapping[str, str],
    name: str,
    scores: Mapping[str, int],
    excluded: Mapping[str, tuple[Exclusion, ...]],
    winner: str,
) -> Ranked:
    return Ranked(
        name=name,
        stack=known.stacks[name],
        score=None if name in excluded else scores[name],
        reasons=_reasons(known, answers, name),
        excluded=tuple(_reason(one, 0) for one in excluded.get(name, ())),
        behind=() if name == winner else _behind(known, answers, name, winner),
    )


def _reasons(known: Catalogue, answers: Mapping[str, str], name: str) -> tuple[Reason, ...]:
    found = [_reason(one, one.points[name]) for one in known.rules if name in one.points and one.holds(answers)]
    return tuple(sorted(found, key=lambda one: (-abs(one.points), -one.points)))


def _behind(known: Catalogue, answers: Mapping[str, str], name: str, winner: str) -> tuple[Reason, ...]:
    """The rules that put the winner ahead of `name`, with the difference in points; the largest first."""
    holding = [(one, one.points.get(winner, 0) - one.points.get(name, 0)) for one in known.rules if one.holds(answers)]
    ahead = sorted((pair for pair in holding if pair[1] > 0), key=lambda pair: -pair[1])
    return tuple(_reason(one, difference) for one, difference in ahead[:SHOWN])


def _reason(one: Grounded, value: int) -> Reason:
    return Reason(
        rule=one.id,
        text=one.reason,
        points=value,
        evidence=one.evidence,
        source=one.source,
        checked=one.checked,
        claim=one.claim,
        lab=one.lab,
    )
