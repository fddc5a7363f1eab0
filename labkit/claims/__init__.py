"""The claims ledger: the article's 65 claims, what the literature says, and verdicts by rules that are data.

`data/claims.yaml` holds both. No verdict is typed where a lab measures it: a lab records evidence by name, the claim's
rule turns it into supported, refuted, depends or inconclusive, with the reason in numbers.
"""

from labkit.claims.catalogue import Claim, Literature, find_claim, load_claims
from labkit.claims.ledger import NOT_MEASURED, Row, ledger, verdict
from labkit.claims.rules import Case, Outcome, Rule, Verdict, VerdictName

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
