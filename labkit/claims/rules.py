"""Verdict rules: data in, verdict and reason out. Nothing here evaluates code from a file."""

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, Strict, StrictBool, StrictStr, model_validator

from labkit.errors import UsageError
from labkit.records import Scalar

VerdictName = Literal["supported", "refuted", "depends", "inconclusive"]
Operator = Literal["<", "<=", ">", ">=", "==", "!="]
Evidence = Mapping[str, Scalar]

OPERATORS: dict[Operator, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
ANY_TYPE = ("==", "!=")  # the others order numbers

Right = Annotated[float, Strict(), Field(allow_inf_nan=False)] | StrictBool | StrictStr
Condition = tuple[str, Operator, Right]
"""(evidence name, operator, a number, true, false or another evidence name)"""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the evidence says of a claim. `missing`: names that the rule needs and the evidence lacks."""

    verdict: VerdictName
    because: str
    missing: tuple[str, ...] = ()


class Frozen(BaseModel):
    """A part of the data file: immutable, and without keys that nobody reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Outcome(Frozen):
    """A verdict and its reason, a sentence with {evidence_name} placeholders."""

    verdict: VerdictName
    because: str


class Case(Outcome):
    """An outcome for evidence that meets all conditions of `when`."""

    when: tuple[Condition, ...] = Field(min_length=1)


class Rule(Frozen):
    """Cases in order and a default, over the evidence names in `needs` and no others."""

    needs: tuple[str, ...] = Field(min_length=1)
    cases: tuple[Case, ...] = Field(min_length=1)
    default: Outcome

    @model_validator(mode="after")
    def _names_are_declared(self) -> Self:
        used = set(self._used_names())
        if unknown := sorted(used - set(self.needs)):
            raise ValueError(f"{', '.join(unknown)}: used, but not among the rule's needs")
        if unused := sorted(set(self.needs) - used):
            raise ValueError(f"{', '.join(unused)}: among the rule's needs, but never used")
        return self

    @model_validator(mode="after")
    def _only_numbers_are_ordered(self) -> Self:
        for name, operation, right in self._conditions():
            if isinstance(right, bool) and operation not in ANY_TYPE:
                raise ValueError(f"[{name}, {operation}, {right}]: true and false have no order; use == or !=")
        return self

    def _conditions(self) -> Iterator[Condition]:
        for case in self.cases:
            yield from case.when

    def _used_names(self) -> Iterator[str]:
        for name, _, right in self._conditions():
            yield name
            if isinstance(right, str):
                yield right
        for outcome in (*self.cases, self.default):
            yield from placeholders(outcome.because)

    def decide(self, evidence: Evidence) -> Verdict:
        """The first case that holds, or the default. Evidence may hold more names than the rule needs.

        A name that is missing (a lab that was stopped) makes the verdict "inconclusive".

        Raises:
            UsageError: a text or a truth value where the rule compares numbers, or a number that is not finite.
        """
        missing = tuple(name for name in self.needs if name not in evidence)
        if missing:
            because = f"Not recorded: {', '.join(missing)}. Run the lab again, to its end."
            return Verdict(verdict="inconclusive", because=because, missing=missing)
        holding = (case for case in self.cases if all(_holds(condition, evidence) for condition in case.when))
        outcome: Outcome = next(holding, self.default)
        shown = {name: shown_value(evidence[name]) for name in self.needs}
        return Verdict(verdict=outcome.verdict, because=outcome.because.format_map(shown))


def placeholders(text: str) -> Iterator[str]:
    """The names in braces. A format specification, an index or an attribute is refused: the text is data."""
    for _, name, specification, conversion in Formatter().parse(text):
        if name is None:
            continue
        if not name.isidentifier() or specification or conversion:
            raise ValueError(f"the placeholder {{{name}}} is not a plain evidence name")
        yield name


def shown_value(value: Scalar) -> str:
    """A piece of evidence for a sentence: three significant digits, thousands with commas, yes and no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value


def _holds(condition: Condition, evidence: Evidence) -> bool:
    name, operation, right = condition
    left, other = _checked(name, evidence), _checked(right, evidence) if isinstance(right, str) else right
    need = _kind(other) if operation in ANY_TYPE else "number"
    for value in (left, other):
        if _kind(value) != need:
            raise UsageError(
                f"{name} {operation} {shown_value(right)}: {value!r} is no {need}", remedy=f"record a {need} there"
            )
    return OPERATORS[operation](left, other)


def _kind(value: Scalar) -> str:
    if isinstance(value, bool):
        return "truth value"
    return "text" if isinstance(value, str) else "number"


def _checked(name: str, evidence: Evidence) -> Scalar:
    value = evidence[name]
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{name} is {value}", remedy="leave out what was not measured")
    return value
