"""Check the machines of a workshop's room: one JSON file for each machine, and a summary of all."""

import json
import math
import shlex
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from labkit import models
from labkit.errors import LabkitError, LoadError, RecordError, UsageError
from labkit.files import first_errors, write_atomic
from labkit.load import LoadResult, run_blocking
from labkit.load.workloads import chat
from labkit.machine import Machine, inspect
from labkit.runs.runner import git_commit
from labkit.serving import vllm
from labkit.workshop.doctor import Check, examine, judged

COMPARED = ("labkit", "vllm", "torch", "ray", "torchserve", "jupyterlab")
AGAIN = "run the check on that machine again: make workshop-check ARGS='--save DIR'"
FORMAT = 1


class RoomCheck(BaseModel, frozen=True):
    """The checks of one machine, as its file contains them; other fields are ignored.

    `commit`: the course's commit, with "+" if files were changed; None without git.
    """

    workshop_check: int = FORMAT
    machine: str
    commit: str | None
    versions: Mapping[str, str]
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """No problem was found; notes are allowed."""
        return not self.problems

    @property
    def problems(self) -> list[Check]:
        """The checks that must be fixed before the workshop."""
        return [check for check in self.checks if check.state == "problem"]

    def to_json(self) -> dict[str, Any]:
        """Return plain data, for `--json`."""
        return {**self.model_dump(mode="json"), "ok": self.ok}


def check_room(
    *, labs: Iterable[str] | None = None, answer: Callable[[], str] | None = None, machine: Machine | None = None
) -> RoomCheck:
    """Run all checks. `labs`: the workshop's (default: all); UsageError: an unknown lab.

    `answer`: a function that gets a first answer from an engine (see `first_answer`); None skips this check.
    """
    doctor = examine(labs=labs, machine=machine, workshop=True)
    return RoomCheck(
        machine=doctor.machine.line(),
        commit=git_commit(),
        versions=doctor.versions,
        checks=doctor.checks if answer is None else (*doctor.checks, answer_check(answer)),
    )


def answer_check(answer: Callable[[], str]) -> Check:
    """Check that `answer` returns a first answer and does not raise a LabkitError."""
    try:
        return judged("first answer", answer(), True, "")
    except LabkitError as error:
        return judged("first answer", error.what, False, error.remedy or "see labkit doctor")


# --- the room ---


@dataclass(frozen=True, kw_only=True)
class MachineState:
    """A machine of the room. `differs`: software that differs from most machines."""

    name: str
    check: RoomCheck
    differs: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """No problem, and the same software as the room."""
        return self.check.ok and not self.differs

    def to_json(self) -> dict[str, Any]:
        """Return plain data, for `--json`."""
        notes = [check for check in self.check.checks if check.state == "note"]
        return {
            "name": self.name,
            "ok": self.ok,
            "machine": self.check.machine,
            "problems": [_without_state(check) for check in self.check.problems],
            "notes": [_without_state(check) for check in notes],
            "differs": list(self.differs),
        }


def _without_state(check: Check) -> dict[str, str]:
    return {name: value for name, value in asdict(check).items() if name != "state"}


@dataclass(frozen=True, kw_only=True)
class Room:
    """All machines with a file. `broken`: why files could not be read."""

    machines: tuple[MachineState, ...]
    broken: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Every machine is ready and every file could be read."""
        return not self.broken and all(machine.ok for machine in self.machines)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, for `--json`."""
        machines = [machine.to_json() for machine in self.machines]
        return {"ok": self.ok, "machines": machines, "broken": list(self.broken)}


def write_check(check: RoomCheck, folder: Path, *, name: str | None = None) -> Path:
    """Write a machine's check into `folder` under its host name (or `name`), over an older one; return its path."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(
            f"{folder} cannot be created: {error.strerror or error}", remedy="choose another folder"
        ) from error
    path = folder / f"{name or socket.gethostname()}.json"
    write_atomic(path, json.dumps(check.to_json(), indent=1) + "\n")
    return path


def read_room(folder: Path) -> Room:
    """Read every *.json of `folder`; a machine's name is its file's stem. UsageError: there is no file."""
    files = sorted(folder.glob("[!.]*.json")) if folder.is_dir() else []
    if not files:
        raise UsageError(f"{folder} holds 0 checks", remedy=f"on each machine, {AGAIN.partition(': ')[2]}")
    checks: dict[str, RoomCheck] = {}
    broken: list[str] = []
    for file in files:
        try:
            check = RoomCheck.model_validate_json(file.read_bytes())
            if check.checks:
                checks[file.stem] = check
            else:  # says nothing about the machine
                broken.append(f"{file} has an empty list of checks\n  To fix it: {AGAIN}")
        except OSError as error:
            broken.append(f"{file} cannot be read: {error.strerror or error}\n  To fix it: {AGAIN}")
        except ValidationError as error:
            broken.append(f"{file} is not a workshop check: {first_errors(error, most=1)}\n  To fix it: {AGAIN}")
    usual = _usual([_software(check) for check in checks.values()])
    machines = [_state(name, check, usual) for name, check in checks.items()]
    return Room(machines=tuple(machines), broken=tuple(broken))


def _software(check: RoomCheck) -> dict[str, str]:
    return {"commit": check.commit or "none", **{name: check.versions.get(name, "none") for name in COMPARED}}


def _usual(software: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the most frequent version of each software; in a tie, the first in order."""
    usual = {}
    for name in software[0] if software else ():
        counts = Counter(versions[name] for versions in software)
        usual[name] = min(counts, key=lambda version: (-counts[version], version))
    return usual


def _state(name: str, check: RoomCheck, usual: Mapping[str, str]) -> MachineState:
    own = _software(check)
    differs = [
        f"{what} {_short(own[what])}, most have {_short(most)}" for what, most in usual.items() if own[what] != most
    ]
    return MachineState(name=name, check=check, differs=tuple(differs))


def _short(version: str) -> str:
    """Shorten a commit, keeping its "+"; return versions unchanged."""
    return version[:10] + ("+" if version.endswith("+") else "") if len(version) > 20 else version


# --- a first answer ---

MOST_WAIT_S = 120
TOKENS = 16
LEAST_SHARE = 0.05


def first_answer(say: Callable[[str], None] = lambda _: None) -> str:
    """Start `vllm serve` with the embedded chat model, send one request and stop it; return the times in words.

    It takes about a minute on two cores. UsageError (too little memory), ModelError, ServerError or LoadError: no
    answer.
    """
    started_s = time.perf_counter()
    machine, model = inspect(), models.resolve(models.CHAT, progress=say)
    weight_bytes = models.architecture(model).weight_bytes
    settings = vllm.settings(machine, gpu_memory_share=small_share(machine), weight_bytes=weight_bytes)
    words = ["vllm", "serve", str(model), "--served-model-name", models.CHAT, "--max-model-len", "512"]
    command = f"{shlex.join(words)} {settings.flags}"
    with (
        tempfile.TemporaryDirectory(prefix="labkit-check-") as folder,
        vllm.start(command, folder=Path(folder), env=settings.env, progress=say) as server,
    ):
        ready_s = time.perf_counter() - started_s
        result = run_blocking(
            server.base_url,
            models.CHAT,
            chat(1, max_tokens=TOKENS),
            concurrency=1,
            timeout_s=MOST_WAIT_S,
            api_key=server.api_key,
        )
    return in_words(result, ready_s=ready_s)


def in_words(result: LoadResult, *, ready_s: float) -> str:
    """Return the answer's tokens and times. LoadError: no answer."""
    record = result.records[-1]
    if record.e2e_s is None or not record.output_tokens:
        raise LoadError(
            f"the engine started but did not answer: {record.outcome} {record.error}".rstrip(),
            remedy="run `labkit serve vllm` and `labkit load` by hand: they show the server's log",
        )
    return f"{record.output_tokens} tokens in {record.e2e_s:.1f} s; the engine was ready after {ready_s:.0f} s"


def small_share(machine: Machine) -> float:
    """Return half of the GPU's free memory as a share, enough for the embedded model. No effect without a GPU."""
    if not machine.gpus:
        return LEAST_SHARE
    gpu = machine.gpus[0]
    return max(LEAST_SHARE, math.floor(gpu.memory_free_bytes / gpu.memory_total_bytes * 50) / 100)
