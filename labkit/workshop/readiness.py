"""Is this machine ready for a workshop? `labkit doctor`'s findings, and what matters with a room full of people only.

Three states, as in doctor: "ok"; "note", which stops nobody; "problem", with its cure, which somebody meets.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labkit import models
from labkit.doctor import Check, Doctor, LabState, examine
from labkit.errors import LabkitError
from labkit.machine import Machine, port_is_free
from labkit.paths import notebooks_path, runs_path
from labkit.runner import git_commit

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
