"""What the article recommends for the same answers: its decision tree, and its six patterns beside ours."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labkit.selector.catalogue import Branch, Catalogue, Pattern, Stack, catalogue


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
    from labkit.selector.choose import first

    known = using or catalogue()
    names = {one.id: first(known, {**known.defaults, **one.answers}) for one in known.patterns}
    return [Comparison(pattern=one, name=names[one.id], stack=known.stacks[names[one.id]]) for one in known.patterns]


def _holds(branch: Branch, answers: Mapping[str, str]) -> bool:
    return all(answers[question] in options for question, options in branch.when.items())
