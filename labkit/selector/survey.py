"""All situations at once: every combination of answers, as arrays with one axis for each question.

Each combination counts once. That is no statement on how often situations occur; it shows what the rules do.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labkit.selector.catalogue import Catalogue, When, catalogue

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
