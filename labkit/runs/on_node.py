"""Functions that run on a cluster's node: inspect it, fetch models, run one lab and return its files."""

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import psutil
from pydantic import BaseModel, Field

import labkit
from labkit.errors import LabkitError
from labkit.files import root
from labkit.machine import Machine, inspect, versions
from labkit.models import resolve
from labkit.runs.notebook import NotebookEnd
from labkit.runs.runner import git_commit

GPUS = "CUDA_VISIBLE_DEVICES"
JOB, NOTEBOOK, OUT, ERRORS = "job.json", "lab.ipynb", "out", "process.log"
HASH_DIGITS = 12
REPORT_S = 0.5

Cell = tuple[int, int]
"""(index of the running cell, number of cells); (0, 0) before the first."""


class Message(BaseModel):
    """One line of the lab process's output: the cell that starts, or finally the notebook's end."""

    cell: Cell = (0, 0)
    end: NotebookEnd | None = None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A node's machine and packages; `code` and `commit` identify its copy of the course."""

    machine: Machine
    versions: Mapping[str, str]
    code: str
    commit: str | None


class Order(BaseModel):
    """A lab to run on a node, with the driver's notebook, which may be edited.

    job.json, which `labkit.runs.lab_process` reads, has the same fields without the notebook.
    """

    lab: str
    parameters: dict[str, Any]
    notebook: bytes = Field(default=b"", exclude=True)


@dataclass(frozen=True, kw_only=True)
class LabEnd:
    """How a lab ended, and all files for the run's folder, by relative path."""

    end: NotebookEnd
    files: Mapping[str, bytes]


def look() -> Facts:
    """Inspect the node as a lab will see it."""
    if not os.environ.get(GPUS):
        os.environ.pop(GPUS, None)  # Ray hides all GPUs from a task that requests none, unlike a lab
    return Facts(machine=inspect(), versions=versions(), code=fingerprint(), commit=git_commit())


def fingerprint() -> str:
    """Return a hash of labkit, course, applications and data. Notebooks are not included: they travel with each lab."""
    digest = hashlib.sha256()
    for name, path in _code_files():
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:HASH_DIGITS]


def _code_files() -> Iterator[tuple[str, Path]]:
    code = [Path(labkit.__file__).parent, root() / "course", root() / "applications"]
    for folder, pattern in [*((folder, "*.py") for folder in code), (root() / "data", "*")]:
        for path in sorted(folder.rglob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{folder.name}/{path.relative_to(folder)}", path


def missing_models(names: Sequence[str]) -> dict[str, str]:
    """Fetch the models into the node's cache; return the reason for each that cannot be fetched."""
    missing = {}
    for name in names:
        try:
            resolve(name)
        except LabkitError as error:
            missing[name] = error.what
    return missing


def run_lab(order: Order, report: Callable[[Cell], int], *, environment: Mapping[str, str] | None = None) -> LabEnd:
    """Run the lab in a private folder, which is removed afterwards.

    `report` is called twice per second with the running cell; it returns the number of stop requests so far.
    """
    with tempfile.TemporaryDirectory(prefix="labkit-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        process = _start(folder, order, node_environment() if environment is None else environment)
        try:
            end = _follow(process, report) or _died(folder)
            paths = [path for path in sorted((folder / OUT).rglob("*")) if path.is_file() and not path.is_symlink()]
            return LabEnd(end=end, files={str(path.relative_to(folder / OUT)): path.read_bytes() for path in paths})
        finally:  # also if Ray cancels this task: closing stdin stops the lab
            with contextlib.suppress(OSError):
                cast(IO[str], process.stdin).close()


def node_environment() -> dict[str, str]:
    """Return the environment of Ray's start on this node, with the GPUs that Ray assigned to this worker.

    A worker's own environment has more variables (OMP_NUM_THREADS, RAY_JOB_ID ...), which would change measurements
    and the cluster that a lab's Ray joins.
    """
    environment = psutil.Process(os.getppid()).environ()
    environment.pop(GPUS, None)
    return environment | ({GPUS: os.environ[GPUS]} if os.environ.get(GPUS) else {})


def _start(folder: Path, order: Order, environment: Mapping[str, str]) -> "subprocess.Popen[str]":
    (folder / OUT / "logs").mkdir(parents=True)
    (folder / NOTEBOOK).write_bytes(order.notebook)
    (folder / JOB).write_text(order.model_dump_json(), encoding="utf-8")
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
    process.wait()  # it forks and exits: the lab runs in its child
    return process


def _follow(process: "subprocess.Popen[str]", report: Callable[[Cell], int]) -> NotebookEnd | None:
    """Wait for the lab's end; None if its process died without a message."""
    messages = [Message()]

    def listen() -> None:
        for line in process.stdout or ():
            messages.append(Message.model_validate_json(line))
            if messages[-1].end:
                return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    stdin, stops_sent = cast(IO[str], process.stdin), 0
    while listener.is_alive():
        stops = report(messages[-1].cell)
        with contextlib.suppress(OSError):  # the lab has just ended
            stdin.write("stop\n" * (stops - stops_sent))
            stdin.flush()
        stops_sent = stops
        listener.join(REPORT_S)
    return messages[-1].end


def _died(folder: Path) -> NotebookEnd:
    lines = (folder / ERRORS).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    reason = f": {lines[-1]}" if lines else " (killed, or out of memory)"
    return NotebookEnd(status="failed", seconds=0.0, error=f"the process that ran the lab died{reason}")
