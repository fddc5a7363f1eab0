"""Describe this machine, its installed packages, and its load while something runs.

Nothing here imports an engine, runs a program or changes a GPU's state: `inspect()` takes milliseconds. If something is
missing, the reason is given in words (`Machine.gpu_reason`, the second value of `java()`).
"""

from labkit.machine.facts import (
    Machine,
    disk_free_bytes,
    for_build,
    in_words,
    inspect,
    java,
    port_is_free,
    to_json,
    versions,
)
from labkit.machine.gpus import Gpu
from labkit.machine.sampler import Sampler, UseSummary

__all__ = [
    "Gpu",
    "Machine",
    "Sampler",
    "UseSummary",
    "disk_free_bytes",
    "for_build",
    "in_words",
    "inspect",
    "java",
    "port_is_free",
    "to_json",
    "versions",
]
