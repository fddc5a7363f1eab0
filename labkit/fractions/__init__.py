"""The fraction auditor: Ray's num_gpus, the engines' shares and the real memory, held against each other."""

from labkit.fractions.asked import Deployment, Gpus, parse, read
from labkit.fractions.audit import Audit, audit
from labkit.fractions.findings import Finding
from labkit.fractions.model_facts import ModelFacts
from labkit.fractions.results import GpuAudit, Replica
from labkit.fractions.shown import as_html, as_json, as_yaml, lines
from labkit.fractions.suggest import Suggestion, least_bytes, least_fraction

__all__ = [
    "Audit",
    "Deployment",
    "Finding",
    "GpuAudit",
    "Gpus",
    "ModelFacts",
    "Replica",
    "Suggestion",
    "as_html",
    "as_json",
    "as_yaml",
    "audit",
    "least_bytes",
    "least_fraction",
    "lines",
    "parse",
    "read",
]
