"""The winner for every combination of answers, more than a million, as arrays."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

from labkit.advice.selector.catalogue import Catalogue, catalogue

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXCLUDED = -10_000  # below any sum of points


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The number of the winning stack for every combination; axes as the questions, in their order."""

    known: Catalogue
    winners: "NDArray[np.int8]"

    @property
    def situations(self) -> int:
        """The number of combinations."""
        return int(self.winners.size)

    def shares(self) -> dict[str, float]:
        """The share of situations, 0 to 1, in which each stack comes first."""
        return {name: float((self.winners == number).mean()) for number, name in enumerate(self.known.stacks)}

    def flip_shares(self) -> dict[str, float]:
        """For each question, the share of situations in which another answer to it alone changes the first place."""
        return {
            name: float((self.winners != self.winners.take([0], axis=axis)).any(axis=axis).mean())
            for axis, name in enumerate(self.known.questions)
        }

    def against_article(self) -> dict[str, dict[str, float]]:
        """By the framework that the article's tree names: the shares of all situations that go to each stack."""
        frameworks = article_frameworks(self.known)
        shares: dict[str, dict[str, float]] = {}
        for framework in dict.fromkeys(branch.framework for branch in self.known.tree):
            counts = {
                name: int(((self.winners == number) & (frameworks == framework)).sum())
                for number, name in enumerate(self.known.stacks)
            }
            shares[framework] = {name: count / self.situations for name, count in counts.items() if count}
        return shares

    def agreement(self) -> float:
        """The share of situations in which our first choice contains the framework that the article's tree names."""
        return sum(
            share
            for framework, shares in self.against_article().items()
            for name, share in shares.items()
            if framework in self.known.stacks[name].frameworks
        )


def survey() -> Survey:
    """Every combination of answers. Takes about a second."""
    import numpy as np

    known = catalogue()
    numbers = {name: number for number, name in enumerate(known.stacks)}
    shape = [len(question.options) for question in known.questions.values()]
    scores = np.zeros((len(numbers), *shape), dtype=np.int16)
    for rule in known.rules:
        holds = mask(known, rule.when)
        for name, value in rule.points.items():
            scores[numbers[name]] += holds * np.int16(value)
    for exclusion in known.exclusions:
        for name in exclusion.stacks:
            scores[numbers[name]][mask(known, exclusion.when)] = EXCLUDED
    # Of equal points the first one wins: it has the fewest parts.
    return Survey(known=known, winners=scores.argmax(axis=0).astype(np.int8))


def mask(known: Catalogue, when: Mapping[str, tuple[str, ...]]) -> "NDArray[np.bool_]":
    """Where the conditions hold: a truth value for every combination."""
    import numpy as np

    by_question = [
        np.array([name not in when or option in when[name] for option in question.options])
        for name, question in known.questions.items()
    ]
    return reduce(np.logical_and, np.meshgrid(*by_question, indexing="ij", sparse=True))


def article_frameworks(known: Catalogue) -> "NDArray[np.str_]":
    """What the article's tree names for every combination."""
    import numpy as np

    *branches, last = known.tree
    masks = [mask(known, branch.when) for branch in branches]
    return np.select(masks, [branch.framework for branch in branches], last.framework)
