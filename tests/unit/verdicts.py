"""Tables of evidence on claims: the verdict that each must lead to, and words that its reason must hold."""

from collections.abc import Iterable

from labkit.records import Scalar
from labkit.records.ledger import verdict


def judged_otherwise(table: Iterable[tuple[str, dict[str, Scalar], str, str]]) -> list[tuple[str, str, str]]:
    """The table's claims with another verdict or reason than it has, and both as the rule gives them."""
    offenders = []
    for claim, evidence, expected, words in table:
        found = verdict(claim, evidence)
        if found.verdict != expected or words not in found.because:
            offenders.append((claim, str(found.verdict), found.because))
    return offenders
