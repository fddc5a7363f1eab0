"""The ledger: every claim of data/claims.yaml with the literature's verdict and the verdict measured here.

A claim's rule turns a lab's evidence into a verdict: cases in order, and a default.
"""

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, Self

from pydantic import Field, Strict, StrictBool, StrictStr, computed_field, model_validator

from labkit.errors import UsageError, require
from labkit.files import Frozen, data_path, read_yaml, validated
from labkit.records.record import Record, Scalar
from labkit.words import number

FILE = "claims.yaml"
NOT_MEASURED = "not measured here"

VerdictName = Literal["supported", "refuted", "depends", "inconclusive", "unsourced"]
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


class Finding(Frozen):
    """A verdict and its reason, a sentence with {evidence_name} placeholders."""

    verdict: VerdictName
    because: str


class Verdict(Finding):
    """A rule's result for some evidence. `missing`: names that the rule needs and the evidence lacks."""

    missing: tuple[str, ...] = ()


class Case(Finding):
    """An outcome for evidence that meets all conditions of `when`."""

    when: tuple[Condition, ...] = Field(min_length=1)


class ClaimRule(Frozen):
    """Cases in order and a default, which use exactly the evidence names in `needs`."""

    needs: tuple[str, ...] = Field(min_length=1)
    cases: tuple[Case, ...] = Field(min_length=1)
    default: Finding

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
            yield from _placeholders(outcome.because)

    def decide(self, evidence: Evidence) -> Verdict:
        """Return the first case that holds, or the default. Evidence may have more names than the rule needs.

        A missing name (the lab was stopped) makes the verdict "inconclusive". UsageError: a text or a truth value
        where the rule compares numbers, or a number that is not finite.
        """
        missing = tuple(name for name in self.needs if name not in evidence)
        if missing:
            because = f"Not recorded: {', '.join(missing)}. Run the lab again, to its end."
            return Verdict(verdict="inconclusive", because=because, missing=missing)
        holding = (case for case in self.cases if all(_holds(condition, evidence) for condition in case.when))
        outcome: Finding = next(holding, self.default)
        shown = {name: _shown(name, evidence[name]) for name in self.needs}
        return Verdict(verdict=outcome.verdict, because=outcome.because.format_map(shown))


def _placeholders(text: str) -> Iterator[str]:
    """Yield the names in braces. ValueError: a format specification, an index or an attribute."""
    for _, name, specification, conversion in Formatter().parse(text):
        if name is None:
            continue
        if not name.isidentifier() or specification or conversion:
            raise ValueError(f"the placeholder {{{name}}} is not a plain evidence name")
        yield name


def _shown(name: str, value: Scalar) -> str:
    """Format evidence for a sentence: three significant digits, commas between thousands, yes or no. A number is a
    percentage if its name has the word "share"."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)) and "share" in name.split("_"):
        return f"{number(100 * value)}%"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value


def _holds(condition: Condition, evidence: Evidence) -> bool:
    name, operation, right = condition
    left, other = _checked(name, evidence), _checked(right, evidence) if isinstance(right, str) else right
    need = _kind(other) if operation in ANY_TYPE else "number"
    for value in (left, other):
        require(
            _kind(value) == need,
            f"{name} {operation} {_shown(name, right)}: {value!r} is not a {need}",
            fix=f"record a {need}",
        )
    return OPERATORS[operation](left, other)


def _kind(value: Scalar) -> str:
    if isinstance(value, bool):
        return "truth value"
    return "text" if isinstance(value, str) else "number"


def _checked(name: str, evidence: Evidence) -> Scalar:
    value = evidence[name]
    finite = not isinstance(value, float) or math.isfinite(value)
    require(finite, f"{name} is {value}", fix="leave out what was not measured")
    return value


class Literature(Frozen):
    """What sources say about a claim, with names and versions, on the date it was checked."""

    verdict: Literal["true", "outdated", "wrong", "depends", "unsourced"]
    evidence: str = Field(min_length=1)
    checked: date


class Claim(Frozen):
    """A claim of the article, paraphrased. `labs`: those that test it, first the one that decides it."""

    id: str = Field(pattern=r"^C\d{2}$")
    section: Literal["performance", "configuration", "api", "status", "prices"]
    short: str = Field(min_length=1)
    article_figure: str | None
    kind: Literal["performance", "default", "api", "status", "price", "arithmetic", "advice"]
    literature: Literature
    settled_by: Literal["measurement", "text", "gpu", "arithmetic"]
    labs: tuple[str, ...]
    rule: ClaimRule | None


def load_claims(path: Path | None = None) -> dict[str, Claim]:
    """Return all claims of `path` (default: data/claims.yaml) by id, in the file's order.

    UsageError: a file that cannot be read, or an entry that is not valid, with its claim and key.
    """
    return dict(_load(path or data_path(FILE)))


@cache
def _load(path: Path) -> dict[str, Claim]:
    entries = read_yaml(path, dict[Literal["claims"], list[dict[str, Any]]]).get("claims", [])
    claims: dict[str, Claim] = {}
    for entry in entries:
        claim = validated(entry, Claim, where=f"{FILE}: claim {entry.get('id', 'without an id')}")
        require(claim.id not in claims, f"{FILE} has claim {claim.id} twice", fix="remove or renumber one")
        claims[claim.id] = claim
    require(bool(claims), f"{path} holds no claims", fix="restore it from the repository")
    return claims


def find_claim(claim_id: str) -> Claim:
    """Return the claim with this id. UsageError: an unknown id."""
    claims = load_claims()
    known = f"{min(claims)} to {max(claims)}"
    require(claim_id in claims, f"there is no claim {claim_id!r}", fix=f"use {known}: `labkit claims` lists them")
    return claims[claim_id]


class Row(Frozen):
    """A claim with its verdict. `verdict`, `because`: by the claim's rule from `evidence`, or "not measured here".

    `lab`, `cell`, `machine`, `date` (ISO 8601, UTC): the origin of the evidence. Without evidence, `lab` is the lab
    that would measure it.
    """

    id: str
    section: str
    short: str
    article_figure: str | None
    kind: str
    literature: str
    literature_evidence: str
    checked: str
    settled_by: str
    labs: tuple[str, ...]
    verdict: str
    because: str
    evidence: dict[str, Scalar] = Field(default_factory=dict)
    lab: str | None = None
    cell: int | None = None
    machine: str | None = None
    date: str | None = None
    notes: tuple[str, ...] = ()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def measured(self) -> bool:
        return self.verdict != NOT_MEASURED


def verdict(claim: Claim | str, evidence: Evidence) -> Verdict:
    """Apply a claim's rule to evidence. `claim` may be an id.

    UsageError, with the claim: an unknown id, a claim without a rule, or evidence of the wrong type.
    """
    claim = find_claim(claim) if isinstance(claim, str) else claim
    if claim.rule is None:
        raise UsageError(f"claim {claim.id} has no rule: {_why_not(claim)}", remedy="add its rule to data/claims.yaml")
    try:
        return claim.rule.decide(evidence)
    except UsageError as error:
        raise UsageError(f"claim {claim.id}: {error.what}", remedy=error.remedy) from error


def ledger(records: Iterable[Record], *, claims: Mapping[str, Claim] | None = None) -> list[Row]:
    """Return a row for every claim, in the file's order. If several records have evidence, the newest decides.

    UsageError: evidence on a claim that does not exist, or of a type that its rule cannot use.
    """
    known = load_claims() if claims is None else claims
    newest_first = sorted(records, key=lambda record: record.when, reverse=True)
    for record in newest_first:
        unknown = ", ".join(sorted(set(record.claims) - set(known)))
        what = f"the record of {record.lab} has evidence on {unknown}, which the ledger does not have"
        require(not unknown, what, fix="use the labkit that wrote the record")
    return [_row(claim, [record for record in newest_first if claim.id in record.claims]) for claim in known.values()]


def _row(claim: Claim, records: list[Record]) -> Row:
    described = {
        **claim.model_dump(include={"id", "section", "short", "article_figure", "kind", "settled_by", "labs"}),
        "literature": claim.literature.verdict,
        "literature_evidence": claim.literature.evidence,
        "checked": claim.literature.checked.isoformat(),
    }
    if not records or claim.rule is None:
        why = f"{records[0].lab} recorded evidence, but the claim has no rule yet." if records else _why_not(claim)
        lab = claim.labs[0] if claim.labs else None
        return Row(**described, verdict=NOT_MEASURED, because=why, lab=lab)
    newest, *older = records
    outcome = verdict(claim, newest.claims[claim.id])
    return Row(
        **described,
        verdict=outcome.verdict,
        because=outcome.because,
        evidence=newest.claims[claim.id],
        lab=newest.lab,
        cell=newest.cells.get(claim.id),
        machine=newest.machine_line,
        date=newest.when.isoformat(timespec="seconds"),
        notes=(*_ENDINGS[newest.status], *(_disagreement(claim, record, outcome) for record in older)),
    )


_ENDINGS = {"done": (), "running": ("From a lab that has not ended yet.",), "failed": ("From a lab that failed.",)}


def _disagreement(claim: Claim, older: Record, newest: Verdict) -> str:
    before = verdict(claim, older.claims[claim.id]).verdict
    agrees = "agrees" if before == newest.verdict else f"has the verdict {before}"
    origin = f"{older.lab}, {older.when.date().isoformat()}, {older.machine_line}"
    return f"The newest evidence decides. An older record ({origin}) {agrees}."


def _why_not(claim: Claim) -> str:
    where = f"`labkit run {claim.labs[0]}`" if claim.labs else "no lab"
    reasons = {
        "text": "Only sources can decide it: see the literature.",
        "gpu": f"It needs a GPU: run {where} with a GPU profile.",
        "arithmetic": f"It follows from arithmetic: run {where}.",
        "measurement": f"No lab has measured it yet: run {where}.",
    }
    return reasons[claim.settled_by]
