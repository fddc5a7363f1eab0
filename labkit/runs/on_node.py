"""What runs on a node: a look at it, and the room in which one lab runs and from which its files come back."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

import labkit
from labkit.errors import LabkitError, UsageError
from labkit.files import root
from labkit.labs import check_gpu_memory, readiness
from labkit.machine import Machine, inspect, versions
from labkit.models import resolve
from labkit.runs.notebook import NotebookEnd
from labkit.runs.plan import Job, Plan
from labkit.runs.runner import git_commit

RAY_ADDRESS = "ray_address"  # a lab with this parameter deploys into the cluster itself


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a node says of itself. `code` and `commit`: which course it has."""

    machine: Machine
    versions: Mapping[str, str]
    code: str
    commit: str | None


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node that is alive. `cpus` and `gpus` as Ray counts them; `free_…`: what nobody in the cluster holds now.

    The `head` may offer no CPU at all. Ray Serve's HTTP proxy listens there, and on its loopback interface only.
    """

    id: str
    name: str
    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float
    head: bool = False


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a lab takes of its node. `alone`: of the whole cluster."""

    cpus: float
    gpus: float = 0
    alone: bool = False


@dataclass(frozen=True, kw_only=True)
class Surveyed:
    """The nodes that can be used, by id, and why the others cannot. `missing`: models by node that it cannot have."""

    facts: Mapping[str, Facts]
    unusable: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def strongest(surveyed: Surveyed, nodes: Iterable[Node]) -> Facts:
    """Whose machine decides about the profile: of the nodes that offer CPUs, with a GPU before without, then by memory.

    There must be one.
    """
    able = [surveyed.facts[node.id] for node in nodes if node.cpus >= 1 and node.id in surveyed.facts]
    return max(able, key=lambda facts: _strength(facts.machine))


def demand(job: Job, node: Node, *, on_gpu: bool) -> Demand:
    """One engine lab to a node, or to a GPU with its share of the CPUs; a lab without an engine takes one CPU."""
    if RAY_ADDRESS in job.lab.parameters:
        return Demand(cpus=0, alone=True)
    if job.lab.engine == "none":
        return Demand(cpus=1)
    if on_gpu:
        return Demand(cpus=max(1.0, node.cpus // max(1.0, node.gpus)), gpus=1)
    return Demand(cpus=node.cpus)


def misfit(job: Job, node: Node, surveyed: Surveyed, plan: Plan) -> str:
    """Why the lab cannot run on the node even when it is idle; "" where it can."""
    facts = surveyed.facts.get(node.id)
    if facts is None:
        return surveyed.unusable.get(node.id, "it joined after the run had started")
    asked = demand(job, node, on_gpu=bool(plan.machine.gpus))
    if asked.alone:  # its replicas go where Ray finds room; the lab itself only asks them, by HTTP too
        return "" if node.head else "it asks Ray Serve on the loopback interface of the head"
    if asked.gpus and (not facts.machine.gpus or node.gpus < asked.gpus):
        return facts.machine.gpu_reason or "Ray counts no GPU there (ray start --num-gpus)"
    if node.cpus < max(1, asked.cpus):
        return "Ray counts no CPU there"
    ready = readiness(job.lab, facts.machine, facts.versions)
    if ready.runs == "no":
        return ready.reason
    if model := surveyed.missing.get(node.id, {}).get(str(job.parameters.get("model"))):
        return model
    try:
        check_gpu_memory(job.parameters, facts.machine, plan.profile.weights, engines=job.lab.needs.engines)
    except UsageError as error:
        return error.what
    return ""


def require_fit(plan: Plan, nodes: Iterable[Node], surveyed: Surveyed) -> None:
    """UsageError where a lab of the plan fits no node, with each node's reason."""
    nodes = list(nodes)
    for job in plan.running:
        reasons = {node.name: misfit(job, node, surveyed, plan) for node in nodes}
        if all(reasons.values()):
            listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            remedy = "add a node that has it, or leave the lab out"
            raise UsageError(f"no node of the cluster can run {job.lab.name} ({listed})", remedy=remedy)


def _strength(machine: Machine) -> tuple[int, int]:
    return max((gpu.memory_free_bytes for gpu in machine.gpus), default=0), machine.memory_available_bytes


# --- code ---


WORD = 12


def fingerprint() -> str:
    """A hash of labkit, the course, the applications and the data. Notebooks stay out: they travel with each lab."""
    found = hashlib.sha256()
    for name, path in _code_files():
        found.update(f"{name}\0{path.stat().st_size}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:WORD]


def _code_files() -> Iterator[tuple[str, Path]]:
    package = Path(labkit.__file__).parent
    for folder, pattern in (
        (package, "*.py"),
        (root() / "course", "*.py"),
        (root() / "applications", "*.py"),
        (root() / "data", "*"),
    ):
        for path in sorted(folder.rglob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{folder.name}/{path.relative_to(folder)}", path


# --- room ---


GPUS = "CUDA_VISIBLE_DEVICES"
JOB, OUT, ERRORS = "job.json", "out", "process.log"


@dataclass(frozen=True, kw_only=True)
class Order:
    """A lab to run on a node. The notebook comes along, so that an edited one runs as it stands here."""

    lab: str
    notebook: str
    content: bytes
    parameters: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How it ended, and everything that a local run would have left in the run's folder, by relative path."""

    end: NotebookEnd
    files: Mapping[str, bytes]


def look() -> Facts:
    """The node as a lab there will find it."""
    if not os.environ.get(GPUS):
        os.environ.pop(GPUS, None)  # Ray hides all GPUs from a task that asks for none; a lab will ask
    return Facts(machine=inspect(), versions=versions(), code=fingerprint(), commit=git_commit())


def missing_models(names: list[str]) -> dict[str, str]:
    """Fetches the models into the node's cache; {name: why it is not there} of those that it cannot have."""
    missing = {}
    for name in names:
        try:
            resolve(name)
        except LabkitError as error:
            missing[name] = error.what
    return missing


class Room:
    """Runs one lab. A Ray actor: `run` blocks to the lab's end while `cell` and `stop` are called beside it."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = dict(environment if environment is not None else node_environment())
        self._lock, self._asked = threading.Lock(), 0
        self._stdin: IO[str] | None = None
        self._cell = (0, 0)

    def run(self, order: Order) -> Outcome:
        """Runs it in a private folder, which is gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="labkit-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            end = self._follow(_start(folder, order, self._environment))
            files = {str(path.relative_to(folder / OUT)): path.read_bytes() for path in _files(folder / OUT)}
            return Outcome(end=end or _killed(folder), files=files)

    def cell(self) -> tuple[int, int]:
        """(the cell that runs, from 0; how many there are); (0, 0) before the first."""
        return self._cell

    def stop(self) -> None:
        """Asks the lab to stop; the second time, at once."""
        with self._lock:
            self._asked += 1
            _ask(self._stdin)

    def _follow(self, process: "subprocess.Popen[str]") -> NotebookEnd | None:
        """Listens until the lab says that it ended; None where it died without a word."""
        with self._lock:
            self._stdin = process.stdin
            for _ in range(self._asked):
                _ask(self._stdin)
        end = None
        for line in process.stdout or ():
            told = json.loads(line)
            if "end" in told:
                end = NotebookEnd(**told["end"])
                break
            self._cell = (told["cell"][0], told["cell"][1])
        with self._lock:
            self._stdin = None
        return end


def node_environment() -> dict[str, str]:
    """The environment in which Ray was started on this node, and the GPUs that Ray gave to this worker.

    A worker's own has more in it (OMP_NUM_THREADS, RAY_JOB_ID ...), which would change what a lab measures and where
    a Ray that it starts belongs.
    """
    environment = psutil.Process(os.getppid()).environ()
    environment.pop(GPUS, None)
    return environment | ({GPUS: os.environ[GPUS]} if os.environ.get(GPUS) else {})


def _start(folder: Path, order: Order, environment: Mapping[str, str]) -> "subprocess.Popen[str]":
    log = Path("logs") / f"{order.lab}.log"
    (folder / OUT / log).parent.mkdir(parents=True)
    (folder / order.notebook).write_bytes(order.content)
    parameters = {**order.parameters, "out_dir": str(folder / OUT)}
    job = {"notebook": order.notebook, "parameters": parameters, "log": str(log)}
    (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
    with (folder / ERRORS).open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "labkit.runs.lab_process", str(folder)],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    process.wait()  # it has left us: what runs the lab is its child
    return process


def _ask(stdin: IO[str] | None) -> None:
    if stdin is not None:
        try:
            stdin.write("stop\n")
            stdin.flush()
        except OSError:
            return  # the lab has ended in this moment


def _killed(folder: Path) -> NotebookEnd:
    said = (folder / ERRORS).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    why = f": {said[-1]}" if said else " (ended from outside, or out of memory)"
    return NotebookEnd(status="failed", seconds=0.0, error=f"the process that ran the lab died{why}")


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
