"""What this machine is, what is installed on it, and how busy it is while something runs.

Nothing here imports an engine, runs a program or touches a GPU's state: `inspect()` takes milliseconds. What cannot be
had comes with the reason in words (`Machine.gpu_reason`, the second value of `java()`): that is what a learner needs.
"""

from labkit.machine.facts import Machine, for_build, in_words, inspect, to_json
from labkit.machine.gpus import Gpu
from labkit.machine.installed import java, versions
from labkit.machine.resources import disk_free_bytes, port_is_free
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
