"""A whole room: each machine's check as one JSON file in a folder, and all of them in one table."""

import json
import math
import os
import shlex
import shutil
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from labkit import models
from labkit.errors import LabkitError, LoadError, RecordError, UsageError
from labkit.files import first_errors, notebooks_path, runs_path
from labkit.load import LoadResult, run_blocking
from labkit.load.workloads import chat
from labkit.machine import Machine, inspect, port_is_free
from labkit.records import write_atomic
from labkit.runs.runner import git_commit
from labkit.serving import vllm
from labkit.workshop.doctor import Check, Doctor, LabState, examine

GIB = 2**30
CORES = 2  # what the labs' minutes are stated for
JUPYTER_PORT = 8888
BUSY_SHARE = 0.25  # of the cores: from here on other programs' load shows in the labs' intervals
MOST_USED_SHARE = 0.2  # of a GPU's memory
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "firefox", "firefox-esr",
            "microsoft-edge", "microsoft-edge-stable", "brave-browser", "epiphany")  # fmt: skip
TUNNEL = (
    f"ssh -L {JUPYTER_PORT}:127.0.0.1:{JUPYTER_PORT} this-machine, and open JupyterLab's address in a browser there"
)
FETCH = "labkit fetch: it verifies what is there and fetches it anew where it is damaged"


@dataclass(frozen=True, kw_only=True)
class RoomCheck:
    """What was found on one machine. `commit`: the course's, "+" added where files were changed; None without git."""

    checks: tuple[Check, ...]
    machine_line: str
    commit: str | None
    versions: Mapping[str, str]

    @property
    def ok(self) -> bool:
        """No problem was found; notes stop nobody."""
        return not self.problems

    @property
    def problems(self) -> list[Check]:
        """What has to be cured before the workshop."""
        return [check for check in self.checks if check.state == "problem"]

    def to_json(self) -> dict[str, Any]:
        """Plain data: what `room.read_room` reads."""
        return {
            "workshop_check": 1,
            "ok": self.ok,
            "machine": self.machine_line,
            "commit": self.commit,
            "versions": dict(self.versions),
            "checks": [asdict(check) for check in self.checks],
        }


def check_room(
    *, labs: Iterable[str] | None = None, answer: Callable[[], str] | None = None, machine: Machine | None = None
) -> RoomCheck:
    """Looks at everything. `labs`: those of the workshop (default: all that exist); UsageError for an unknown one.

    `answer` gets a first real answer out of an engine and says so in words (see `workshop.answer`); None leaves it out.
    """
    found = examine(labs=labs, machine=machine)
    checks = [*_machine_checks(found.machine), *_from_doctor(found), *_storage_checks(), *_port_checks(), _browser()]
    if answer is not None:
        checks.append(answer_check(answer))
    return RoomCheck(
        checks=tuple(checks),
        machine_line=found.machine.line(),
        commit=git_commit(),
        versions=found.versions,
    )


def answer_check(answer: Callable[[], str]) -> Check:
    """A first answer, or why there is none. `answer` raises a LabkitError where it fails."""
    try:
        return Check(topic="first answer", state="ok", found=answer())
    except LabkitError as error:
        return Check(topic="first answer", state="problem", found=error.what, fix=error.remedy or "see labkit doctor")


def intact_check(name: str, *, stored: bool, intact: bool) -> Check:
    """An embedded model in the cache: each file's hash was compared, which `labkit doctor` does not do."""
    topic = f"model {name}"
    if intact:
        return Check(topic=topic, state="ok", found="in the cache, every file verified")
    found = "a file is damaged" if stored else "not in the cache: a room would fetch it all at once"
    return Check(topic=topic, state="problem", found=found, fix=FETCH)


def writable_check(topic: str, folder: Path) -> Check:
    """Whether a file can be made in `folder`, or in the parent that would hold it."""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            return Check(topic=topic, state="ok", found=f"{folder} can be written")
    except OSError as error:
        fix = "give the learner's user the right to write there, or set LABKIT_ROOT to a folder of the learner's own"
        return Check(topic=topic, state="problem", found=f"{folder}: {error.strerror or error}", fix=fix)


def cores_check(cpus: int) -> Check:
    """Enough cores for the minutes that the guide states."""
    if cpus >= CORES:
        return Check(topic="cores", state="ok", found=f"{cpus} usable; the labs' minutes are for {CORES}")
    fix = "give it more cores, or plan twice the minutes"
    return Check(topic="cores", state="note", found=f"{cpus} usable; the labs' minutes are for {CORES}", fix=fix)


def load_check(busy_cores: float, cpus: int) -> Check:
    """What other programs take of the cores (the load average of the last minute)."""
    found = f"{busy_cores:.1f} of {cpus} cores were busy in the last minute"
    if busy_cores <= BUSY_SHARE * cpus:
        return Check(topic="load", state="ok", found=found)
    fix = "close what else runs: measurements get wider intervals, and Ray may need several tries to start"
    return Check(topic="load", state="note", found=found, fix=fix)


def gpu_memory_checks(machine: Machine) -> Iterator[Check]:
    """GPU memory that something else holds already."""
    for gpu in machine.gpus:
        used = gpu.memory_total_bytes - gpu.memory_free_bytes
        found = f"{gpu.memory_free_bytes / GIB:.1f} of {gpu.memory_total_bytes / GIB:.1f} GiB free"
        if used <= MOST_USED_SHARE * gpu.memory_total_bytes:
            yield Check(topic=f"GPU {gpu.index} memory", state="ok", found=found)
        else:
            fix = "`nvidia-smi` lists who holds it; end what nobody needs, or plan the shares from what is free"
            yield Check(topic=f"GPU {gpu.index} memory", state="note", found=found, fix=fix)


def port_check(port: int, *, free: bool) -> Check:
    """JupyterLab's port."""
    if free:
        return Check(topic=f"port {port}", state="ok", found="free (JupyterLab's default)")
    fix = "nothing to do: JupyterLab takes the next free port and prints it; tell the learners to read the address"
    return Check(topic=f"port {port}", state="note", found="in use (JupyterLab's default)", fix=fix)


def browser_check(browser: str | None) -> Check:
    """A browser on this machine; it may also run on another one."""
    if browser:
        return Check(topic="browser", state="ok", found=browser)
    return Check(topic="browser", state="note", found="none on this machine", fix=f"from the learner's own: {TUNNEL}")


def lab_check(lab: LabState) -> Check:
    """What doctor says of a lab, and whether its notebook is there."""
    if not (notebooks_path() / f"{lab.name}.ipynb").is_file():
        fix = "git pull, or restore it: git checkout -- notebooks"
        return Check(topic=f"lab {lab.name}", state="problem", found="its notebook is missing", fix=fix)
    if lab.runs == "no":
        return Check(topic=f"lab {lab.name}", state="problem", found=lab.reason, fix=lab.fix)
    found = "runs, on the embedded model" if lab.runs == "small" else "runs"
    return Check(topic=f"lab {lab.name}", state="ok", found=found)


def _machine_checks(machine: Machine) -> Iterator[Check]:
    yield cores_check(machine.cpus)
    yield load_check(os.getloadavg()[0], machine.cpus)
    yield from gpu_memory_checks(machine)


def _from_doctor(found: Doctor) -> Iterator[Check]:
    """Doctor's own checks (models apart, which are verified here), then the labs."""
    yield from (check for check in found.checks if not check.topic.startswith("model ") and check.topic != "CPU")
    for name, stored in found.cached.items():
        yield intact_check(name, stored=stored, intact=stored and models.is_intact(models.cached(name)))
    yield from (lab_check(lab) for lab in found.labs)


def _storage_checks() -> Iterator[Check]:
    yield writable_check("runs folder", runs_path())


def _port_checks() -> Iterator[Check]:
    yield port_check(JUPYTER_PORT, free=port_is_free(JUPYTER_PORT))


def _browser() -> Check:
    return browser_check(next((name for name in BROWSERS if shutil.which(name)), None))


# --- room ---


COMPARED = ("labkit", "vllm", "torch", "ray", "torchserve", "jupyterlab")
AGAIN = "run the check there again: make workshop-check ARGS='--save DIR'"


class _File(BaseModel):
    """What is read of a file; more may stand in it."""

    workshop_check: int
    machine: str
    commit: str | None
    versions: dict[str, str]
    checks: tuple[Check, ...]


@dataclass(frozen=True, kw_only=True)
class MachineState:
    """One machine of the room. `differs`: in what it is not like most of the room."""

    name: str
    machine_line: str
    problems: tuple[Check, ...]
    notes: tuple[Check, ...]
    differs: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """No problem, and the same software as the room."""
        return not self.problems and not self.differs

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        shown = {"problems": self.problems, "notes": self.notes}
        return {
            "name": self.name,
            "ok": self.ok,
            "machine": self.machine_line,
            **{
                kind: [{"topic": one.topic, "found": one.found, "fix": one.fix} for one in ones]
                for kind, ones in shown.items()
            },
            "differs": list(self.differs),
        }


@dataclass(frozen=True, kw_only=True)
class Room:
    """All machines that have told. `broken`: the message for each file that could not be read."""

    machines: tuple[MachineState, ...]
    broken: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Every machine is ready and every file could be read."""
        return not self.broken and all(machine.ok for machine in self.machines)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"ok": self.ok, "machines": [one.to_json() for one in self.machines], "broken": list(self.broken)}


def write_check(found: RoomCheck, folder: Path, *, name: str | None = None) -> Path:
    """Writes a machine's check into `folder` under its host name (or `name`), in place of an older one; its path."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(
            f"{folder} cannot be made: {error.strerror or error}", remedy="choose another folder"
        ) from error
    path = folder / f"{name or socket.gethostname()}.json"
    write_atomic(path, json.dumps(found.to_json(), indent=1) + "\n")
    return path


def read_room(folder: Path) -> Room:
    """Reads every *.json of `folder`; a machine's name is its file's. UsageError where there is no file at all."""
    files = sorted(folder.glob("[!.]*.json")) if folder.is_dir() else []
    if not files:
        raise UsageError(f"{folder} holds 0 checks", remedy=f"on each machine, {AGAIN.partition(': ')[2]}")
    read: dict[str, _File] = {}
    broken: list[str] = []
    for file in files:
        try:
            read[file.stem] = _read(file)
        except RecordError as error:
            broken.append(str(error))
    usual = _usual(list(read.values()))
    return Room(machines=tuple(_state(name, one, usual) for name, one in read.items()), broken=tuple(broken))


def _read(file: Path) -> _File:
    try:
        return _File.model_validate_json(file.read_bytes())
    except OSError as error:
        raise RecordError(f"{file} cannot be read: {error.strerror or error}", remedy=AGAIN) from error
    except ValidationError as error:
        raise RecordError(
            f"{file} is no workshop check: {first_errors(error, most=1).lstrip(': ')}", remedy=AGAIN
        ) from error


def _software(file: _File) -> dict[str, str]:
    return {"commit": file.commit or "none", **{name: file.versions.get(name, "none") for name in COMPARED}}


def _usual(files: Sequence[_File]) -> dict[str, str]:
    """What most machines have, software by software; of equally many the first by name."""
    all_software = [_software(file) for file in files]
    names = all_software[0] if all_software else {}
    return {name: _most_common([one[name] for one in all_software]) for name in names}


def _most_common(values: Sequence[str]) -> str:
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def _state(name: str, file: _File, usual: dict[str, str]) -> MachineState:
    own = _software(file)
    return MachineState(
        name=name,
        machine_line=file.machine,
        problems=tuple(check for check in file.checks if check.state == "problem"),
        notes=tuple(check for check in file.checks if check.state == "note"),
        differs=tuple(
            f"{what} {_short(own[what])}, most have {_short(most)}" for what, most in usual.items() if own[what] != most
        ),
    )


def _short(version: str) -> str:
    """A commit's first characters, with its "+"; versions as they are."""
    return version[:10] + ("+" if version.endswith("+") else "") if len(version) > 20 else version


# --- answer ---


MOST_WAIT_S = 120
TOKENS = 16
LEAST_SHARE = 0.05


def first_answer(say: Callable[[str], None] = lambda _: None) -> str:
    """Starts `vllm serve` with the embedded chat model, asks it once and stops it; says how long start and answer took.

    About a minute on two cores. UsageError (too little memory), ModelError, ServerError or LoadError: no answer.
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
        one = chat(1, max_tokens=TOKENS)
        key = server.api_key
        result = run_blocking(server.base_url, models.CHAT, one, concurrency=1, timeout_s=MOST_WAIT_S, api_key=key)
    return in_words(result, ready_s=ready_s)


def in_words(result: LoadResult, *, ready_s: float) -> str:
    """What came back. LoadError when it was no answer."""
    record = result.records[-1]
    if record.e2e_s is None or not record.output_tokens:
        remedy = "look at `labkit serve vllm` and `labkit load` by hand: they show the server's log"
        raise LoadError(
            f"the engine came up and did not answer: {record.outcome} {record.error}".rstrip(), remedy=remedy
        )
    return f"{record.output_tokens} tokens in {record.e2e_s:.1f} s; the engine was ready after {ready_s:.0f} s"


def small_share(machine: Machine) -> float:
    """Of a GPU's memory: half of what is free, for the embedded model needs little. Without a GPU it has no effect."""
    if not machine.gpus:
        return LEAST_SHARE
    gpu = machine.gpus[0]
    return max(LEAST_SHARE, math.floor(gpu.memory_free_bytes / gpu.memory_total_bytes * 50) / 100)
