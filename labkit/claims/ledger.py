"""The ledger: every claim beside what the literature says of it and what was measured here."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from labkit.claims.catalogue import Claim, find_claim, load_claims
from labkit.claims.rules import Evidence, Verdict
from labkit.errors import UsageError
from labkit.records import Record, Scalar

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
