"""What runs on a node: a look at it, and the room in which one lab runs and from which its files come back."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from labkit.batch import NotebookEnd
from labkit.errors import LabkitError
from labkit.machine import inspect, versions
from labkit.models import resolve
from labkit.remote.code import fingerprint
from labkit.remote.nodes import Facts
from labkit.runner import git_commit

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
            [sys.executable, "-P", "-m", "labkit.remote.lab_process", str(folder)],
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
