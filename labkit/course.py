"""The course as notebooks and commands use it: labs, parameters, profiles, what runs here, and a lab's session.

from labkit import course
lab = course.start("01_first_deployment", globals(), out_dir=out_dir)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from labkit.cuda import engine_needs
from labkit.labs import LABS, Lab, Needs, Parameter, check_parameters, find_lab, load_labs
from labkit.machine import Machine, java
from labkit.profiles import Profile, check_gpu_memory, load_profile, parse_overrides, profile_for
from labkit.session import LabSession, start

__all__ = [
    "LABS",
    "Lab",
    "LabSession",
    "Needs",
    "Parameter",
    "Profile",
    "Readiness",
    "check_gpu_memory",
    "check_parameters",
    "find_lab",
    "load_labs",
    "load_profile",
    "parse_overrides",
    "profile_for",
    "readiness",
    "start",
]

GIB = 2**30
INSTALL = "run make again: it installs what requirements/ lists"
PACKAGES = {
    "none": (),
    "vllm": ("vllm",),
    "ray": ("ray", "vllm"),
    "torchserve": ("torchserve",),
    "all": ("vllm", "ray", "torchserve"),
}


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """Whether a lab runs on a machine: yes, small (the embedded model on the CPU) or no; why, and the fix."""

    runs: Literal["yes", "small", "no"]
    reason: str = ""
    fix: str = ""


def readiness(lab: Lab | str, machine: Machine, versions: Mapping[str, str]) -> Readiness:
    """What `lab` can do on `machine` with the installed `versions` (as `machine.versions()` tells them)."""
    lab = find_lab(lab) if isinstance(lab, str) else lab
    missing = [package for package in PACKAGES[lab.engine] if package not in versions]
    if missing:
        return Readiness(runs="no", reason=f"{' and '.join(missing)} not installed", fix=INSTALL)
    if lab.needs.gpu and not machine.gpus:
        return Readiness(runs="no", reason=machine.gpu_reason, fix="run it on a machine with an NVIDIA GPU")
    if lab.needs.java and java()[0] is None:
        return Readiness(runs="no", reason=java()[1], fix=INSTALL)
    if machine.memory_available_bytes < lab.needs.memory_gib * GIB:
        return _too_little_memory(lab, machine)
    if lab.engine != "none" and not machine.gpus:
        reason = f"no GPU ({machine.gpu_reason}): the embedded model on {machine.cpus} CPUs"
        return Readiness(runs="small", reason=reason, fix="nothing to do; a GPU shows larger models")
    need = next((need for need in engine_needs(machine.gpus) if not need.met), None) if machine.gpus else None
    if need is not None and lab.engine != "none":
        return Readiness(runs="no", reason=need.found, fix=need.fix)
    return Readiness(runs="yes")


def _too_little_memory(lab: Lab, machine: Machine) -> Readiness:
    free, total = machine.memory_available_bytes / GIB, machine.memory_total_bytes / GIB
    return Readiness(
        runs="no",
        reason=f"it takes {lab.needs.memory_gib:g} GiB of memory and {free:.1f} of {total:.1f} GiB are free",
        fix="close what else uses memory" if total >= lab.needs.memory_gib else "use a machine with more memory",
    )
