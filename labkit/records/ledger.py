"""The ledger: every claim beside what the literature says of it and what was measured here."""

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, Strict, StrictBool, StrictStr, ValidationError, model_validator

from labkit.errors import UsageError
from labkit.files import data_path, first_errors
from labkit.records import Record, Scalar

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


# --- the claims of data/claims.yaml, validated ---


FILE = "claims.yaml"

Section = Literal["performance", "configuration", "api", "status", "prices"]
Kind = Literal["performance", "default", "api", "status", "price", "arithmetic", "advice"]
LiteratureVerdict = Literal["true", "outdated", "wrong", "depends", "unsourced"]
SettledBy = Literal["measurement", "text", "gpu", "arithmetic"]


class Literature(Frozen):
    """What sources say of a claim, with versions and names, as checked on a day."""

    verdict: LiteratureVerdict
    evidence: str = Field(min_length=1)
    checked: date


class Claim(Frozen):
    """One claim of the article in our words. `labs`: where it is tested, first the lab that settles it."""

    id: str = Field(pattern=r"^C\d{2}$")
    section: Section
    short: str = Field(min_length=1)
    article_figure: str | None
    kind: Kind
    literature: Literature
    settled_by: SettledBy
    labs: tuple[str, ...]
    rule: Rule | None


def load_claims(path: Path | None = None) -> dict[str, Claim]:
    """All claims by id, in the file's order; of the course's own file when no path is given.

    Raises:
        UsageError: a file that cannot be read, or an entry that is not valid: the message names the claim and the key.
    """
    return dict(_load(path or data_path(FILE)))


@cache
def _load(path: Path) -> dict[str, Claim]:
    claims: dict[str, Claim] = {}
    for claim in map(_claim, _entries(path)):
        if claim.id in claims:
            raise UsageError(f"{path.name}: claim {claim.id} stands there twice", remedy="remove or renumber one")
        claims[claim.id] = claim
    return claims


def _entries(path: Path) -> Iterator[Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read: {error}", remedy="restore it from the repository") from error
    entries = tree.get("claims") if isinstance(tree, dict) else None
    if not isinstance(entries, list):
        raise UsageError(f"{path} has no list under `claims`", remedy="restore it from the repository")
    yield from entries


def _claim(entry: Any) -> Claim:
    try:
        return Claim.model_validate(entry)
    except ValidationError as error:
        name = entry.get("id", "without an id") if isinstance(entry, dict) else repr(entry)
        raise UsageError(f"{FILE}: claim {name}: {first_errors(error)}", remedy="correct that entry") from error


def find_claim(claim_id: str) -> Claim:
    """The claim with this id. UsageError for an unknown one."""
    claims = load_claims()
    if claim_id not in claims:
        known = f"{min(claims)} to {max(claims)}"
        raise UsageError(f"there is no claim {claim_id!r}", remedy=f"use {known}: `labkit claims` lists them")
    return claims[claim_id]


# --- the ledger: every claim beside what the literature says of it and what was measured here ---


NOT_MEASURED = "not measured here"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One claim. `verdict`, `because`: by the claim's rule from `evidence`, or "not measured here" and why.

    `lab`, `machine`, `date` (ISO 8601, UTC) tell where the evidence is from. Without any, `lab` is where to get it.
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
    evidence: dict[str, Scalar] = field(default_factory=dict)
    lab: str | None = None
    machine: str | None = None
    date: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def measured(self) -> bool:
        return self.verdict != NOT_MEASURED

    def to_json(self) -> dict[str, Any]:
        """All fields and `measured`, as plain data."""
        return {**asdict(self), "labs": list(self.labs), "notes": list(self.notes), "measured": self.measured}


def verdict(claim: Claim | str, evidence: Evidence) -> Verdict:
    """The verdict of a claim's rule on evidence. `claim` may be an id.

    Raises:
        UsageError: an unknown id, a claim without a rule, or evidence of the wrong type; the message names the claim.
    """
    found = find_claim(claim) if isinstance(claim, str) else claim
    if found.rule is None:
        raise UsageError(f"claim {found.id} has no rule: {_why_not(found)}", remedy="add its rule to data/claims.yaml")
    try:
        return found.rule.decide(evidence)
    except UsageError as error:
        raise UsageError(f"claim {found.id}: {error.what}", remedy=error.remedy) from error


def ledger(records: Iterable[Record], *, claims: Mapping[str, Claim] | None = None) -> list[Row]:
    """A row for every claim, in the file's order. Where several records speak of one claim, the newest decides.

    Raises:
        UsageError: a record with evidence on a claim that does not exist, or of a type that its rule cannot use.
    """
    known = load_claims() if claims is None else claims
    newest_first = sorted(records, key=lambda record: record.when, reverse=True)
    for record in newest_first:
        if strangers := sorted(set(record.claims) - set(known)):
            raise UsageError(
                f"the record of {record.lab} has evidence on {', '.join(strangers)}, which the ledger does not have",
                remedy="use the labkit that wrote the record",
            )
    return [_row(claim, [record for record in newest_first if claim.id in record.claims]) for claim in known.values()]


def _row(claim: Claim, records: list[Record]) -> Row:
    if not records:
        return _unmeasured(claim, _why_not(claim))
    if claim.rule is None:
        return _unmeasured(claim, f"{records[0].lab} recorded evidence, but the claim has no rule yet.")
    newest = records[0]
    found = verdict(claim, newest.claims[claim.id])
    return Row(
        **_described(claim),
        verdict=found.verdict,
        because=found.because,
        evidence=newest.claims[claim.id],
        lab=newest.lab,
        machine=newest.machine_line,
        date=newest.when.isoformat(timespec="seconds"),
        notes=_notes(claim, records, found),
    )


def _unmeasured(claim: Claim, why: str) -> Row:
    lab = claim.labs[0] if claim.labs else None
    return Row(**_described(claim), verdict=NOT_MEASURED, because=why, lab=lab)


def _described(claim: Claim) -> dict[str, Any]:
    plain = claim.model_dump(include={"id", "section", "short", "article_figure", "kind", "settled_by", "labs"})
    literature = claim.literature
    return {
        **plain,
        "literature": literature.verdict,
        "literature_evidence": literature.evidence,
        "checked": literature.checked.isoformat(),
    }


def _why_not(claim: Claim) -> str:
    where = f"`labkit run {claim.labs[0]}`" if claim.labs else "no lab"
    reasons = {
        "text": "Only sources can settle it: see what the literature says.",
        "gpu": f"It takes a GPU: run {where} with a GPU profile.",
        "arithmetic": f"It is settled by arithmetic: run {where}.",
        "measurement": f"No lab has measured it yet: run {where}.",
    }
    return reasons[claim.settled_by]


def _notes(claim: Claim, records: list[Record], found: Verdict) -> tuple[str, ...]:
    newest, *older = records
    endings = {"done": [], "running": ["From a lab that has not ended yet."], "failed": ["From a lab that failed."]}
    notes: list[str] = endings[newest.status]
    for record in older:
        before = verdict(claim, record.claims[claim.id]).verdict
        agrees = "says the same" if before == found.verdict else f"said: {before}"
        notes.append(f"The newest evidence decides. An older record ({_from(record)}) {agrees}.")
    return tuple(notes)


def _from(record: Record) -> str:
    return f"{record.lab}, {record.when.date().isoformat()}, {record.machine_line}"


# ---   init   ---


__all__ = [
    "NOT_MEASURED",
    "Case",
    "Claim",
    "Literature",
    "Outcome",
    "Row",
    "Rule",
    "Verdict",
    "VerdictName",
    "find_claim",
    "ledger",
    "load_claims",
    "verdict",
]
