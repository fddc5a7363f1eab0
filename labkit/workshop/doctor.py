"""`labkit doctor`: what this machine can run, why not, and the fix, in under a second.

It reads files and package metadata only: no engine is imported and no GPU memory is taken.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from labkit import models
from labkit.cuda import CPU_STACK, MODEL_GPU_GIB, Need, engine_needs, hub_folder, model_need
from labkit.files import runs_path
from labkit.labs import LABS, Lab, find_lab, readiness
from labkit.machine import Machine, disk_free_bytes, for_build, in_words, inspect, java, port_is_free, to_json, versions

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

GIB = 2**30
# What each system listens on when nobody says otherwise; labkit itself asks the kernel for free ports.
DEFAULT_PORTS = {8000: "vllm serve and Ray Serve", 8080: "TorchServe", 8081: "TorchServe", 8265: "Ray's dashboard"}
NEEDED = ("vllm", "torch", "transformers", "ray", "torchserve", "jupyterlab", "papermill", "altair")
MAKE = "run make again: it installs what requirements/ lists"
HOST_MEMORY_GB = 32  # the 15 GB of a 7B model's weights pass through host memory, and some labs keep a copy there
State = Literal["ok", "note", "problem"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at. `fix` says what to do where `state` is not "ok"."""

    topic: str
    state: State
    found: str
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class LabState:
    """Whether a lab runs here: "yes", "small" (the embedded model) or "no"; why, and the fix."""

    name: str
    title: str
    runs: str
    reason: str
    fix: str


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Everything that was found. `took_s`: seconds that the examination took."""

    machine: Machine
    versions: dict[str, str]
    java_path: Path | None
    java_reason: str
    disk_free_bytes: int
    disk_folder: Path
    cached: dict[str, bool]
    cache_folder: Path
    ports: dict[int, bool]
    checks: tuple[Check, ...]
    labs: tuple[LabState, ...]
    took_s: float

    @property
    def ok(self) -> bool:
        """No check found a problem and every lab runs, if small."""
        return all(check.state != "problem" for check in self.checks) and all(lab.runs != "no" for lab in self.labs)

    def to_json(self) -> dict[str, Any]:
        """The whole as plain data."""
        machine = to_json(self.machine)
        return {
            "ok": self.ok,
            "labs": [asdict(lab) for lab in self.labs],
            "cpus": self.machine.cpus,
            "gpus": machine["gpus"],
            "gpu_reason": self.machine.gpu_reason,
            "memory": {
                "total_bytes": self.machine.memory_total_bytes,
                "available_bytes": self.machine.memory_available_bytes,
            },
            "machine": machine,
            "versions": self.versions,
            "java": {"path": str(self.java_path) if self.java_path else None, "reason": self.java_reason},
            "disk": {"folder": str(self.disk_folder), "free_bytes": self.disk_free_bytes},
            "cache": {"folder": str(self.cache_folder), "models": self.cached},
            "ports": {str(port): free for port, free in self.ports.items()},
            "checks": [asdict(check) for check in self.checks],
            "took_s": round(self.took_s, 3),
        }

    def render(self, console: "Console") -> None:
        """The tables for people; states are words, the colours only repeat them."""
        console.print(_checks_table(self.checks))
        console.print(_labs_table(self.labs))
        verdict = "Everything runs here." if self.ok else 'Something is missing: see the column "what to do".'
        console.print(f"{verdict} (examined in {self.took_s:.2f} s)")


def examine(
    *, labs: Iterable[str] | None = None, out_dir: Path | None = None, machine: Machine | None = None
) -> Doctor:
    """Looks at everything. `labs`: names (default: all); `out_dir`: where runs go (default: `runs/`).

    UsageError for a lab that does not exist. `machine`: another than this one, for tests and for asking "what if".
    """
    started_s = time.perf_counter()
    chosen = [find_lab(name) for name in (LABS if labs is None else labs)]
    installed = versions()
    machine = for_build(machine or inspect(), installed.get("vllm", ""))
    needs = engine_needs(machine.gpus) if machine.gpus else ()
    (java_path, java_reason), folder = java(), out_dir or runs_path()
    cached = {name: models.is_complete(models.cached(name)) for name in models.EMBEDDED}
    ports = {port: port_is_free(port) for port in DEFAULT_PORTS}
    free = disk_free_bytes(folder)
    checks = (
        *_machine_checks(machine, installed),
        *(_need_check(need) for need in needs),
        *(_model_checks(machine) if machine.gpus else ()),
        *(_package_check(name, installed) for name in NEEDED),
        Check(topic="Java", state="ok" if java_path else "problem", found=java_reason, fix="" if java_path else MAKE),
        _disk_check(folder, free, chosen),
        *(_cache_check(name, cached=ready) for name, ready in cached.items()),
        *(_port_check(port, free=is_free) for port, is_free in ports.items()),
    )
    return Doctor(
        machine=machine,
        versions=installed,
        java_path=java_path,
        java_reason=java_reason,
        disk_free_bytes=free,
        disk_folder=folder,
        cached=cached,
        cache_folder=models.cache_dir(),
        ports=ports,
        checks=checks,
        labs=tuple(_lab_state(lab, machine, installed) for lab in chosen),
        took_s=time.perf_counter() - started_s,
    )


def _machine_checks(machine: Machine, installed: dict[str, str]) -> Iterator[Check]:
    yield Check(topic="CPU", state="ok", found=f"{machine.cpus} usable ({machine.cpu_model})")
    free, total = machine.memory_available_bytes / GIB, machine.memory_total_bytes / GIB
    yield Check(topic="memory", state="ok", found=f"{free:.1f} of {total:.1f} GiB available")
    yield _gpu_check(machine, cuda_build=not installed.get("vllm", "+cpu").endswith("+cpu"))


def _gpu_check(machine: Machine, *, cuda_build: bool) -> Check:
    """The GPU and the installed build of vLLM have to go together."""
    if machine.gpus:
        return Check(topic="GPU", state="ok", found=f"{machine.gpu_line()}, driver {machine.gpus[0].driver}")
    if machine.unused_gpus:
        return _unused_gpu_check(machine)
    if cuda_build:
        found = f"{machine.gpu_reason}, but vLLM is the CUDA build"
        return Check(topic="GPU", state="problem", found=found, fix=f"mend that, or {CPU_STACK}")
    fix = "nothing to do: every lab has a small form for the CPU"
    return Check(topic="GPU", state="note", found=machine.gpu_reason, fix=fix)


def _unused_gpu_check(machine: Machine) -> Check:
    """Name the way to the CUDA build: the command that installs it, or what has to be mended first."""
    gpus = machine.unused_gpus
    found = f"{in_words(gpus)}, driver {gpus[0].driver}: vLLM is the CPU build and does not use it"
    missing = [need for need in engine_needs(gpus) if not need.met]
    found = "; ".join([found, *(need.found for need in missing)])
    fixes = dict.fromkeys(need.fix for need in missing)
    if CPU_STACK in fixes:
        fix = "nothing to do: only the CPU build runs here"
    else:
        fix = f"for the CUDA build: {'; '.join(fixes) or 'make STACK=gpu'}"
    return Check(topic="GPU", state="note", found=found, fix=fix)


def _need_check(need: Need) -> Check:
    return Check(topic=need.topic, state="ok" if need.met else "problem", found=need.found, fix=need.fix)


def _model_checks(machine: Machine) -> Iterator[Check]:
    """Disk and host memory for the 7B model, where the GPU's profile serves it; notes, since others need neither."""
    if machine.gpus[0].memory_total_bytes < MODEL_GPU_GIB * GIB:
        return
    need = model_need(disk_free_bytes(hub_folder()))
    yield Check(topic=need.topic, state="ok" if need.met else "note", found=need.found, fix=need.fix)
    topic, total_gb = "memory for the 7B model", machine.memory_total_bytes / 1e9
    found = f"{total_gb:.0f} GB of host memory; {HOST_MEMORY_GB} GB or more for the 7B model"
    if total_gb >= HOST_MEMORY_GB:
        yield Check(topic=topic, state="ok", found=found)
    else:
        fix = "serve a smaller model: -p all.model=smollm2-135m (WSL2: memory=32GB in .wslconfig)"
        yield Check(topic=topic, state="note", found=found, fix=fix)


def _package_check(name: str, installed: dict[str, str]) -> Check:
    version = installed.get(name)
    if version is None:
        return Check(topic=name, state="problem", found="not installed", fix=MAKE)
    return Check(topic=name, state="ok", found=f"{version}{_build(name, version)}")


def _build(name: str, version: str) -> str:
    """Of the two packages that come in builds: which one, by the version's local part."""
    if name not in ("vllm", "torch"):
        return ""
    return " (CPU build)" if version.endswith("+cpu") else " (CUDA build)"


def _disk_check(folder: Path, free_bytes: int, labs: Iterable[Lab]) -> Check:
    needed = max((lab.needs.disk_gib for lab in labs), default=0)
    found = f"{free_bytes / GIB:.1f} GiB free for {folder}"
    if free_bytes >= needed * GIB:
        return Check(topic="disk", state="ok", found=found)
    fix = f"free some space, or choose another folder with --out: a lab writes up to {needed:g} GiB"
    return Check(topic="disk", state="problem", found=found, fix=fix)


def _cache_check(name: str, *, cached: bool) -> Check:
    topic = f"model {name}"
    if cached:
        return Check(topic=topic, state="ok", found=f"ready in {models.cached(name)}")
    needed, free = models.EMBEDDED[name].disk_bytes, disk_free_bytes(models.cache_dir())
    if free < needed:
        found = f"not fetched; it takes {needed / GIB:.1f} GiB and {free / GIB:.1f} GiB are free"
        fix = "free some space or set LABKIT_CACHE to a folder on a larger disk"
        return Check(topic=topic, state="problem", found=found, fix=fix)
    return Check(
        topic=topic, state="note", found="not fetched yet", fix=f"labkit fetch {name} (labkit run does it, too)"
    )


def _port_check(port: int, *, free: bool) -> Check:
    topic, user = f"port {port}", DEFAULT_PORTS[port]
    if free:
        return Check(topic=topic, state="ok", found=f"free (default of {user})")
    fix = "nothing to do for the labs, which take free ports; with `labkit serve` choose another by --port"
    return Check(topic=topic, state="note", found=f"in use (default of {user})", fix=fix)


def _lab_state(lab: Lab, machine: Machine, installed: dict[str, str]) -> LabState:
    ready = readiness(lab, machine, installed)
    return LabState(name=lab.name, title=lab.title, runs=ready.runs, reason=ready.reason, fix=ready.fix)


STYLES = {"ok": "green", "yes": "green", "note": "yellow", "small": "yellow", "problem": "bold red", "no": "bold red"}


def _table(title: str, *columns: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _styled(word: str) -> str:
    return f"[{STYLES[word]}]{word}[/]"


def _checks_table(checks: Iterable[Check]) -> "Table":
    from rich.markup import escape

    table = _table("This machine", "what", "state", "found", "what to do")
    for check in checks:
        table.add_row(escape(check.topic), _styled(check.state), escape(check.found), escape(check.fix))
    return table


def _labs_table(labs: Iterable[LabState]) -> "Table":
    from rich.markup import escape

    table = _table("The labs", "lab", "runs here", "why", "what to do")
    for lab in labs:
        table.add_row(escape(lab.name), _styled(lab.runs), escape(lab.reason), escape(lab.fix))
    return table
