"""`inspect()`: CPU, memory and GPUs as a program here may use them, not as the hardware's label says."""

import hashlib
import os
import platform
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from labkit.machine.cgroups import Limits, read_limits, read_text
from labkit.machine.gpus import Gpu, find_gpus
from labkit.machine.installed import vllm_version

GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a program may use here. `cpus`: whole cores at once; `gpu_reason`: "", or why there is no GPU.

    `cpu_bf16`: the cores multiply bfloat16 matrices at speed; elsewhere a batch of them costs as much as its parts.
    `unused_gpus`: GPUs of the machine that are not in `gpus` because the installed vLLM is the CPU build.
    """

    cpu_model: str
    cpus: int
    memory_total_bytes: int
    memory_available_bytes: int
    gpus: tuple[Gpu, ...]
    gpu_reason: str
    os: str
    python: str
    hostname_hash: str
    cpu_bf16: bool = False
    unused_gpus: tuple[Gpu, ...] = ()

    def line(self) -> str:
        """One line for captions, such as "2 CPUs (AMD EPYC), 24 GiB, no GPU"."""
        cpus = f"{self.cpus} CPU{'' if self.cpus == 1 else 's'} ({self.cpu_model})"
        return f"{cpus}, {self.memory_total_bytes / GIB:.0f} GiB, {self.gpu_line()}"

    def gpu_line(self) -> str:
        """The GPUs in words, such as "2 x NVIDIA L4 (22 GiB)"; "no GPU" where there is none."""
        return in_words(self.gpus) if self.gpus else "no GPU"


def in_words(gpus: Sequence[Gpu]) -> str:
    """The GPUs with their memory, equal ones counted: "2 x NVIDIA L4 (22 GiB)"."""
    kinds = [f"{gpu.name} ({gpu.memory_total_bytes / GIB:.0f} GiB)" for gpu in gpus]
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))


def inspect(*, root: Path = Path("/"), nvml: Any | None = None, vllm: str | None = None) -> Machine:
    """This machine, in a few milliseconds. Never fails: what cannot be read is 0, "unknown" or a reason.

    `root` is where /proc and /sys hang, `nvml` the module to ask for GPUs and `vllm` the version of the installed vLLM,
    whose CPU build uses no GPU: tests give others.
    """
    limits = read_limits(root)
    total, available = usable_memory(parse_meminfo(read_text(root / "proc/meminfo")), limits)
    cpuinfo = read_text(root / "proc/cpuinfo")
    gpus, gpu_reason = find_gpus(nvml)
    machine = Machine(
        cpu_model=parse_cpu_model(cpuinfo) or platform.processor() or platform.machine(),
        cpus=usable_cpus(len(os.sched_getaffinity(0)), limits.cpus),
        memory_total_bytes=total,
        memory_available_bytes=available,
        gpus=gpus,
        gpu_reason=gpu_reason,
        os=parse_os_name(read_text(root / "etc/os-release")) or platform.system(),
        python=platform.python_version(),
        hostname_hash=hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12],
        cpu_bf16=multiplies_bf16(parse_cpu_flags(cpuinfo)),
    )
    return for_build(machine, vllm_version() if vllm is None else vllm) if gpus else machine


def for_build(machine: Machine, vllm: str) -> Machine:
    """The machine as the build of vLLM uses it: with the CPU build (a version ending in "+cpu"), without its GPUs."""
    if not machine.gpus or not vllm.endswith("+cpu"):
        return machine
    names = ", ".join(dict.fromkeys(gpu.name for gpu in machine.gpus))
    reason = f"the installed vLLM is the CPU build (make STACK=cpu): the GPU {names} is not used"
    return replace(machine, gpus=(), gpu_reason=reason, unused_gpus=machine.gpus)


def to_json(machine: Machine) -> dict[str, Any]:
    """The machine as plain data for records, with its line."""
    gpus = {name: [_gpu_json(gpu) for gpu in getattr(machine, name)] for name in ("gpus", "unused_gpus")}
    return {**asdict(machine), **gpus, "line": machine.line()}


def _gpu_json(gpu: Gpu) -> dict[str, Any]:
    return {**asdict(gpu), "capability": list(gpu.capability) if gpu.capability else None}


def usable_cpus(affinity: int, quota: float | None) -> int:
    """Whole CPUs for threads: a quota of 2.5 is 2, since a third spinning thread would be throttled; at least 1."""
    return max(1, min(affinity, int(quota) if quota is not None else affinity))


def usable_memory(meminfo: dict[str, int], limits: Limits) -> tuple[int, int]:
    """(total, available) in bytes: the machine's, or the control group's where it is less."""
    total, available = meminfo.get("MemTotal", 0), meminfo.get("MemAvailable", 0)
    if limits.memory_bytes is not None:
        total = min(total, limits.memory_bytes)
    if limits.memory_available_bytes is not None:
        available = min(available, limits.memory_available_bytes)
    return total, available


def parse_meminfo(text: str) -> dict[str, int]:
    """`/proc/meminfo` in bytes by name (its "kB" are KiB)."""
    fields = (line.replace(":", " ").split() for line in text.splitlines())
    return {words[0]: int(words[1]) * 1024 for words in fields if len(words) == 3 and words[1].isdecimal()}


def parse_cpu_model(text: str) -> str:
    """The processor's name in `/proc/cpuinfo`; "" where there is none (many ARM machines)."""
    pairs = dict(_pair(line) for line in reversed(text.splitlines()) if ":" in line)
    return next((" ".join(pairs[key].split()) for key in ("model name", "Hardware", "Model") if pairs.get(key)), "")


def parse_cpu_flags(text: str) -> frozenset[str]:
    """The instruction sets in `/proc/cpuinfo` (x86: "flags")."""
    lines = (line.partition(":") for line in text.splitlines())
    return next((frozenset(value.split()) for key, _, value in lines if key.strip() == "flags"), frozenset())


def multiplies_bf16(flags: frozenset[str]) -> bool:
    """PyTorch's own test for oneDNN's bfloat16 kernels (ATen/native/mkldnn/Utils.h); without them it falls back to
    a reference loop, in which a batch of 16 rows takes 16 times as long as one."""
    return {"avx512bw", "avx512vl", "avx512dq"} <= flags


def parse_os_name(text: str) -> str:
    """PRETTY_NAME of `/etc/os-release`."""
    names = (line.partition("=")[2].strip().strip('"') for line in text.splitlines() if line.startswith("PRETTY_NAME="))
    return next(names, "")


def _pair(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key.strip(), value.strip()
