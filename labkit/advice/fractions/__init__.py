"""Audit GPU fractions: Ray's num_gpus, the engines' memory shares and the real memory, compared with each other."""

from labkit.advice.fractions.audit import Audit, audit
from labkit.advice.fractions.cluster import Cluster, Gpus
from labkit.advice.fractions.deployments import Deployment, as_yaml, parse, read
from labkit.advice.fractions.words import as_html, as_json, lines

__all__ = ["Audit", "Cluster", "Deployment", "Gpus", "as_html", "as_json", "as_yaml", "audit", "lines", "parse", "read"]
