"""What this machine is, what is installed on it, and how busy it is while something runs.

Nothing here imports an engine, runs a program or touches a GPU's state: `inspect()` takes milliseconds. What cannot be
had comes with the reason in words (`Machine.gpu_reason`, the second value of `java()`): that is what a learner needs.
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
from labkit.machine.sampler import Sample, Sampler, Span, UseSummary

__all__ = [
    "Gpu",
    "Machine",
    "Sample",
    "Sampler",
    "Span",
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
