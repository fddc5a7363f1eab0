"""A whole room: each machine's check as one JSON file in a folder, and all of them in one table."""

import json
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from labkit.doctor import Check
from labkit.errors import RecordError, UsageError
from labkit.records import write_atomic
from labkit.records.files import first_errors
from labkit.workshop.readiness import RoomCheck

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
