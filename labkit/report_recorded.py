"""What a report says of recorded results: whose they are, and what their evidence says of each claim."""

from labkit.claims import ledger
from labkit.reference import reference_beside, reference_for
from labkit.report_data import RunData


def provenance(data: RunData) -> str:
    """What the diamonds and the figures called recorded are from; empty where nothing recorded is shown."""
    found = {found.provenance for record in data.records.values() if (found := reference_beside(record))}
    return "; ".join(sorted(found))


def recorded_verdicts(data: RunData) -> dict[str, str]:
    """By claim, what a recorded run's evidence says; nothing for the recorded run itself."""
    machine = data.described.machine if data.described else {}
    reference = reference_for(machine)
    if reference is None or any(reference_beside(record) is None for record in data.records.values()):
        return {}
    return {row.id: row.verdict for row in ledger(reference.records.values()) if row.measured}
