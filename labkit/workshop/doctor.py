"""Check what this machine can run, with reasons and fixes, for `labkit doctor` and `labkit workshop-check`.

It reads only files and package metadata: it imports no engine and takes no GPU memory. Doctor takes less than a second;
the workshop's mode also verifies every file of the cached models.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from labkit import models
from labkit.cuda import CPU_STACK, MODEL_GPU_GIB, engine_needs, hub_folder, model_need
from labkit.files import notebooks_path, runs_path
from labkit.labs import INSTALL, LABS, Lab, Readiness, find_lab, readiness
from labkit.machine import Machine, disk_free_bytes, for_build, in_words, inspect, java, port_is_free, to_json, versions

GIB = 2**30
# Default ports; labkit itself asks the kernel for free ports.
SERVER_PORTS = {8000: "vllm serve and Ray Serve", 8080: "TorchServe", 8081: "TorchServe", 8265: "Ray's dashboard"}
JUPYTER_PORT = 8888
NEEDED = ("vllm", "torch", "transformers", "ray", "torchserve", "jupyterlab", "papermill", "altair")
HOST_MEMORY_GB = 32  # a 7B model's 15 GB of weights pass through host memory, and some labs keep a copy there
CORES = 2  # the number that the labs' minutes assume
BUSY_SHARE = 0.25  # of the cores: above it, other programs' load widens the labs' intervals
MOST_USED_SHARE = 0.2  # of a GPU's memory
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "firefox", "firefox-esr",
            "microsoft-edge", "microsoft-edge-stable", "brave-browser", "epiphany")  # fmt: skip
TUNNEL = f"ssh -L {JUPYTER_PORT}:127.0.0.1:{JUPYTER_PORT} this-machine, then open JupyterLab's address in its browser"
State = Literal["ok", "note", "problem"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """A finding. `fix`: what to do if `state` is not "ok"."""

    topic: str
    state: State
    found: str
    fix: str = ""


def judged(topic: str, found: str, ok: bool, fix: str, *, otherwise: State = "problem") -> Check:
    """Return a check that is ok, or `otherwise` with the fix."""
    return Check(topic=topic, state="ok" if ok else otherwise, found=found, fix="" if ok else fix)


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """All findings. `labs`: by name; `took_s`: duration in seconds."""

    machine: Machine
    versions: dict[str, str]
    java_path: Path | None
    java_reason: str
    disk_free_bytes: int
    disk_folder: Path
    cached: dict[str, bool]
    ports: dict[int, bool]
    checks: tuple[Check, ...]
    labs: Mapping[str, Readiness]
    took_s: float

    @property
    def ok(self) -> bool:
        """No check found a problem and every lab runs, at least on the small model."""
        states = [check.state for check in self.checks] + [ready.runs for ready in self.labs.values()]
        return not {"problem", "no"} & set(states)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, for `--json`."""
        machine = to_json(self.machine)
        return {
            "ok": self.ok,
            "labs": [{"name": name, "title": LABS[name].title, **asdict(ready)} for name, ready in self.labs.items()],
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
            "cache": {"folder": str(models.cache_dir()), "models": self.cached},
            "ports": {str(port): free for port, free in self.ports.items()},
            "checks": [asdict(check) for check in self.checks],
            "took_s": round(self.took_s, 3),
        }


def examine(
    *,
    labs: Iterable[str] | None = None,
    out_dir: Path | None = None,
    machine: Machine | None = None,
    workshop: bool = False,
) -> Doctor:
    """Run all checks. `labs`: names (default: all); `out_dir`: the folder for runs (default: `runs/`).

    `workshop`: add the checks before a workshop. `machine`: a machine other than this one, for tests and for "what
    if". UsageError: an unknown lab.
    """
    started_s = time.perf_counter()
    chosen = [find_lab(name) for name in (LABS if labs is None else labs)]
    installed = versions()
    machine = for_build(machine or inspect(), installed.get("vllm", ""))
    states = {lab.name: readiness(lab, machine, installed) for lab in chosen}
    (java_path, java_reason), folder = java(), out_dir or runs_path()
    free_bytes = disk_free_bytes(folder)
    cached = {name: models.is_complete(models.cached(name)) for name in models.EMBEDDED}
    ports = {port: port_is_free(port) for port in SERVER_PORTS}
    checks = [
        *_machine_checks(machine, installed),
        *(_package_check(name, installed) for name in NEEDED),
        judged("Java", java_reason, java_path is not None, INSTALL),
        _disk_check(folder, free_bytes, chosen),
        *((_intact_check if workshop else _cache_check)(name, stored) for name, stored in cached.items()),
        *(_port_check(port, free) for port, free in ports.items()),
    ]
    if workshop:
        checks += _room_checks(machine)
        checks += [_lab_check(name, ready) for name, ready in states.items()]
    return Doctor(
        machine=machine,
        versions=installed,
        java_path=java_path,
        java_reason=java_reason,
        disk_free_bytes=free_bytes,
        disk_folder=folder,
        cached=cached,
        ports=ports,
        checks=tuple(checks),
        labs=states,
        took_s=time.perf_counter() - started_s,
    )


def _machine_checks(machine: Machine, installed: Mapping[str, str]) -> Iterator[Check]:
    yield judged("CPU", f"{machine.cpus} usable ({machine.cpu_model})", True, "")
    free, total = machine.memory_available_bytes / GIB, machine.memory_total_bytes / GIB
    yield judged("memory", f"{free:.1f} of {total:.1f} GiB available", True, "")
    yield _gpu_check(machine, cuda_build=not installed.get("vllm", "+cpu").endswith("+cpu"))
    if not machine.gpus:
        return
    for need in engine_needs(machine.gpus):
        yield judged(need.topic, need.found, need.met, need.fix)
    if machine.gpus[0].memory_total_bytes >= MODEL_GPU_GIB * GIB:  # its profile serves the 7B model
        need = model_need(disk_free_bytes(hub_folder()))
        yield judged(need.topic, need.found, need.met, need.fix, otherwise="note")
        total_gb = machine.memory_total_bytes / 1e9
        found = f"{total_gb:.0f} GB of host memory; {HOST_MEMORY_GB} GB or more for the 7B model"
        fix = "serve a smaller model: -p all.model=smollm2-135m (WSL2: memory=32GB in .wslconfig)"
        yield judged("memory for the 7B model", found, total_gb >= HOST_MEMORY_GB, fix, otherwise="note")


def _gpu_check(machine: Machine, *, cuda_build: bool) -> Check:
    """Check that the GPU and the installed build of vLLM match."""
    if machine.gpus:
        return judged("GPU", f"{machine.gpu_line()}, driver {machine.gpus[0].driver}", True, "")
    if machine.unused_gpus:
        return _unused_gpu_check(machine)
    if cuda_build:
        return judged("GPU", f"{machine.gpu_reason}, but vLLM is the CUDA build", False, f"fix that, or {CPU_STACK}")
    fix = "nothing to do: every lab has a small form for the CPU"
    return judged("GPU", machine.gpu_reason, False, fix, otherwise="note")


def _unused_gpu_check(machine: Machine) -> Check:
    """Return the fix for an unused GPU: the command that installs the CUDA build, or what to fix first."""
    gpus = machine.unused_gpus
    missing = [need for need in engine_needs(gpus) if not need.met]
    unused = f"{in_words(gpus)}, driver {gpus[0].driver}: vLLM is the CPU build and does not use it"
    fixes = dict.fromkeys(need.fix for need in missing)
    if CPU_STACK in fixes:
        fix = "nothing to do: only the CPU build runs here"
    else:
        fix = f"for the CUDA build: {'; '.join(fixes) or 'make setup STACK=gpu'}"
    return judged("GPU", "; ".join([unused, *(need.found for need in missing)]), False, fix, otherwise="note")


def _package_check(name: str, installed: Mapping[str, str]) -> Check:
    version = installed.get(name, "")
    build = ""
    if version and name in ("vllm", "torch"):
        build = " (CPU build)" if version.endswith("+cpu") else " (CUDA build)"
    return judged(name, f"{version}{build}" or "not installed", bool(version), INSTALL)


def _disk_check(folder: Path, free_bytes: int, labs: Iterable[Lab]) -> Check:
    needed = max((lab.needs.disk_gib for lab in labs), default=0)
    fix = f"free some space, or choose another folder with --out: a lab writes up to {needed:g} GiB"
    return judged("disk", f"{free_bytes / GIB:.1f} GiB free for {folder}", free_bytes >= needed * GIB, fix)


def _cache_check(name: str, stored: bool) -> Check:
    topic = f"model {name}"
    needed, free = models.EMBEDDED[name].disk_bytes, disk_free_bytes(models.cache_dir())
    if not stored and free < needed:
        found = f"not fetched; it takes {needed / GIB:.1f} GiB and {free / GIB:.1f} GiB are free"
        return judged(topic, found, False, "free some space or set LABKIT_CACHE to a folder on a larger disk")
    found = f"ready in {models.cached(name)}" if stored else "not fetched yet"
    return judged(topic, found, stored, f"labkit fetch {name} (labkit run does it, too)", otherwise="note")


def _port_check(port: int, free: bool) -> Check:
    fix = "nothing to do for the labs, which use free ports; for `labkit serve` choose another with --port"
    found = f"{'free' if free else 'in use'} (default of {SERVER_PORTS[port]})"
    return judged(f"port {port}", found, free, fix, otherwise="note")


# --- only before a workshop ---


def _room_checks(machine: Machine) -> Iterator[Check]:
    found = f"{machine.cpus} usable; the labs' minutes are for {CORES}"
    fix = "give it more cores, or plan twice the minutes"
    yield judged("cores", found, machine.cpus >= CORES, fix, otherwise="note")
    yield load_check(os.getloadavg()[0], machine.cpus)
    for gpu in machine.gpus:
        used = gpu.memory_total_bytes - gpu.memory_free_bytes
        found = f"{gpu.memory_free_bytes / GIB:.1f} of {gpu.memory_total_bytes / GIB:.1f} GiB free"
        fix = "`nvidia-smi` lists the processes; end unneeded ones, or plan the shares for the free memory"
        little = used <= MOST_USED_SHARE * gpu.memory_total_bytes
        yield judged(f"GPU {gpu.index} memory", found, little, fix, otherwise="note")
    yield writable_check("runs folder", runs_path())
    free = port_is_free(JUPYTER_PORT)
    fix = "nothing to do: JupyterLab takes the next free port and prints its address; tell the learners"
    found = f"{'free' if free else 'in use'} (JupyterLab's default)"
    yield judged(f"port {JUPYTER_PORT}", found, free, fix, otherwise="note")
    browser = next((name for name in BROWSERS if shutil.which(name)), "")
    fix = f"on the learner's computer: {TUNNEL}"
    yield judged("browser", browser or "none on this machine", bool(browser), fix, otherwise="note")


def load_check(busy_cores: float, cpus: int) -> Check:
    """Check other programs' load on the cores (the load average of the last minute)."""
    found = f"{busy_cores:.1f} of {cpus} cores were busy in the last minute"
    fix = "close other programs: they widen the intervals, and Ray may need several tries to start"
    return judged("load", found, busy_cores <= BUSY_SHARE * cpus, fix, otherwise="note")


def _intact_check(name: str, stored: bool) -> Check:
    """Check an embedded model in the cache by the hash of each file."""
    if stored and models.is_intact(models.cached(name)):
        return judged(f"model {name}", "in the cache, every file verified", True, "")
    found = "a file is damaged" if stored else "not in the cache: all learners would fetch it at once"
    fix = "labkit fetch: it verifies the files and fetches damaged ones again"
    return judged(f"model {name}", found, False, fix)


def writable_check(topic: str, folder: Path) -> Check:
    """Check that a file can be created in `folder`, or in its nearest existing parent."""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            return judged(topic, f"{folder} can be written", True, "")
    except OSError as error:
        fix = "give the learner's user write access, or set LABKIT_RUNS and LABKIT_WORKSPACE to others"
        return judged(topic, f"{folder}: {error.strerror or error}", False, fix)


def _lab_check(name: str, ready: Readiness) -> Check:
    topic = f"lab {name}"
    if not (notebooks_path() / LABS[name].notebook).is_file():
        return judged(topic, "its notebook is missing", False, "git pull, or restore it: git checkout -- notebooks")
    if ready.runs == "no":
        return judged(topic, ready.reason, False, ready.fix)
    return judged(topic, "runs, on the embedded model" if ready.runs == "small" else "runs", True, "")
