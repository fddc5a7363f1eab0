"""The choice: which stack suits the answers, why, why not the others, and which single answer would change it.

A pure function of the answers and `data/selector/`. Points are added up; what an exclusion names is not ranked.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from labkit.advice.selector.catalogue import (
    Branch,
    Catalogue,
    Evidence,
    Exclusion,
    Grounded,
    Pattern,
    Stack,
    Warning,
    When,
    catalogue,
    complete,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class ArticleSays:
    """The framework at the end of the article's tree, and the question of the branch that led there."""

    framework: str
    question: str

    def in_stack(self, stack: Stack) -> bool:
        """Whether a stack contains that framework, as engine or as orchestrator."""
        return self.framework in stack.frameworks


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A row of the article's table beside what the selector puts first in that situation."""

    pattern: Pattern
    name: str
    stack: Stack

    @property
    def same(self) -> bool:
        """Whether ours contains the article's framework."""
        return self.pattern.framework in self.stack.frameworks

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "situation": self.pattern.situation,
            "article": self.pattern.framework,
            "promise": self.pattern.promise,
            "ours": self.name,
            "same": self.same,
            "difference": self.pattern.difference,
            "claims": list(self.pattern.claims),
        }


def article_says(known: Catalogue, answers: Mapping[str, str]) -> ArticleSays:
    """Walks the article's tree. Its last branch has no condition, so there is always an end."""
    branch = next(one for one in known.tree if _holds(one, answers))
    return ArticleSays(framework=branch.framework, question=branch.question)


def compare_patterns(*, using: Catalogue | None = None) -> list[Comparison]:
    """The article's six patterns, each with our first choice for the same situation."""

    known = using or catalogue()
    names = {one.id: first(known, {**known.defaults, **one.answers}) for one in known.patterns}
    return [Comparison(pattern=one, name=names[one.id], stack=known.stacks[names[one.id]]) for one in known.patterns]


def _holds(branch: Branch, answers: Mapping[str, str]) -> bool:
    return all(answers[question] in options for question, options in branch.when.items())


# --- choose ---


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


# --- survey ---


EXCLUDED = -10_000  # below any sum of points


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The number of the winning stack for every combination; axes as the questions, in their order."""

    known: Catalogue
    winners: "NDArray[np.int8]"

    @property
    def situations(self) -> int:
        """How many combinations there are."""
        return int(self.winners.size)

    def shares(self) -> dict[str, float]:
        """The share of situations, 0 to 1, in which each stack comes first."""
        import numpy as np

        counts = np.bincount(self.winners.ravel(), minlength=len(self.known.stacks))
        return {name: float(count) / self.winners.size for name, count in zip(self.known.stacks, counts, strict=True)}

    def flip_shares(self) -> dict[str, float]:
        """For each question, the share of situations in which another answer to it alone changes the first place."""
        return {
            name: float((self.winners != self.winners.take([0], axis=axis)).any(axis=axis).mean())
            for axis, name in enumerate(self.known.questions)
        }

    def against_article(self) -> dict[str, dict[str, float]]:
        """By the framework that the article's tree names: the shares of all situations that go to each stack."""
        import numpy as np

        article, names = article_frameworks(self.known), list(self.known.stacks)
        found: dict[str, dict[str, float]] = {}
        for framework in dict.fromkeys(branch.framework for branch in self.known.tree):
            here = self.winners[np.broadcast_to(article == framework, self.winners.shape)]
            counted = Counter(here.tolist())
            found[framework] = {names[number]: counted[number] / self.winners.size for number in sorted(counted)}
        return found

    def agreement(self) -> float:
        """The share of situations in which our first choice contains the framework that the article's tree names."""
        return sum(
            share
            for framework, shares in self.against_article().items()
            for name, share in shares.items()
            if framework in self.known.stacks[name].frameworks
        )


def survey(*, using: Catalogue | None = None) -> Survey:
    """Every combination of answers. About a second."""
    known = using or catalogue()
    return Survey(known=known, winners=winners(known))


def winners(known: Catalogue) -> "NDArray[np.int8]":
    """The winner's number for every combination."""
    import numpy as np

    found: NDArray[np.int8] = np.stack(list(_scores(known))).argmax(axis=0).astype(np.int8)
    return found  # of equal points the first one, with the fewest parts


def _scores(known: Catalogue) -> Iterable[Any]:
    import numpy as np

    shape = tuple(len(one.options) for one in known.questions.values())
    for name in known.stacks:
        score = np.zeros(shape, dtype=np.int16)
        for rule in known.rules:
            if name in rule.points:
                score += (mask(known, rule.when) * rule.points[name]).astype(np.int16)
        for exclusion in known.exclusions:
            if name in exclusion.stacks:
                score += (mask(known, exclusion.when) * EXCLUDED).astype(np.int16)
        yield np.clip(score, EXCLUDED, None)  # excluded twice is excluded


def mask(known: Catalogue, when: When | Mapping[str, Any]) -> Any:
    """Where the conditions hold: truth values that broadcast to the shape of all combinations."""
    import numpy as np

    found = np.ones((1,) * len(known.questions), dtype=bool)
    for axis, (name, one) in enumerate(known.questions.items()):
        if name in when:
            shape = [1] * len(known.questions)
            shape[axis] = len(one.options)
            found = found & np.array([option in when[name] for option in one.options]).reshape(shape)
    return found


def article_frameworks(known: Catalogue) -> Any:
    """What the article's tree names for every combination; broadcasts to the shape of all combinations."""
    import numpy as np

    found: Any = np.array(known.tree[-1].framework, dtype=object)
    for branch in reversed(known.tree[:-1]):
        found = np.where(mask(known, branch.when), branch.framework, found)
    return found
