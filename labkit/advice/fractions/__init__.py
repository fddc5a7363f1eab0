"""The fraction auditor: Ray's num_gpus, the engines' shares and the real memory, held against each other."""

from labkit.advice.fractions.asked import Deployment, Gpus, ModelFacts, parse, read
from labkit.advice.fractions.audit import (
    Audit,
    Finding,
    GpuAudit,
    Replica,
    Suggestion,
    audit,
    least_bytes,
    least_fraction,
)
from labkit.advice.fractions.words import as_html, as_json, as_yaml, lines

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
