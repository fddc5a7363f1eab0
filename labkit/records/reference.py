"""Recorded results of named machines, data/reference/: what a whole run found there, beside what is found here.

Such a folder is a run's folder without what is personal or large: run.json and the labs' records, so that `labkit
claims`, `compare` and `report` read it as they read any run. tools/reference.py makes it; here it is read and checked.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from labkit.errors import RecordError
from labkit.files import data_path, root
from labkit.records import Record, RunInfo, read_all, read_run
from labkit.records.comparison import relevant

FOLDER = "reference"
PERSONAL = frozenset({"hostname_hash", "memory_available_bytes"})
PATHS = re.compile(r"(?<![\w./])/(?:home|Users|root|tmp|work|mnt|opt|var)/\S*")
ENGINES = ("vllm", "ray", "torchserve", "torch")
REMEDY = "make it anew from a run's folder: make reference RUN=DIR"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One machine's recorded run."""

    name: str
    info: RunInfo
    records: Mapping[str, Record]

    @property
    def place(self) -> str:
        """Where and when: "2 CPUs (AMD EPYC), 24 GiB, no GPU, 24 Nov 2026"."""
        return f"{self.info.machine_line}, {self.info.when:%d %b %Y}"

    @property
    def label(self) -> str:
        """Where and when, for a mark or a caption: "recorded: 2 CPUs (AMD EPYC), 24 GiB, no GPU, 24 Nov 2026"."""
        return f"recorded: {self.place}"

    @property
    def provenance(self) -> str:
        """How to do it again: the command, the commit, the day, the engines' versions."""
        engines = [f"{name} {self.info.versions[name]}" for name in ENGINES if name in self.info.versions]
        commit = f"commit {self.info.git_commit[:10]}" if self.info.git_commit else "commit unknown"
        commit += "".join(f", some labs at {one[:10]}" for one in self.info.earlier_commits)
        command = f"labkit run --profile {self.info.profile}"
        return " · ".join([self.info.machine_line, f"{self.info.when:%d %b %Y}", command, commit, *engines])

    def prediction(self, lab: str, prediction_id: str) -> Mapping[str, Any] | None:
        """What was measured there for a prediction: its record, without anybody's guess; None where nothing was."""
        record = self.records.get(lab)
        found = record.predictions if record else ()
        return next((one for one in found if one.get("id") == prediction_id and one.get("measured") is not None), None)

    def points(self, lab: str, chart: str) -> list[dict[str, Any]]:
        """The rows of a key chart's bars or points as they came out there; [] where none are kept."""
        record = self.records.get(lab)
        specs = [one.spec for one in record.charts if one.name == chart] if record else []
        return [row for spec in specs for row in _rows(spec)]

    def other_parameters(self, record: Record) -> tuple[str, ...]:
        """Names of the parameters with which `record` was measured otherwise than its counterpart; guesses aside."""
        there = self.records.get(record.lab)
        if there is None:
            return ()
        ours, theirs = relevant(record, there), relevant(there, record)
        return tuple(name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name))


def references(folder: Path | None = None) -> tuple[Reference, ...]:
    """All recorded runs, by name; none where the folder is missing. RecordError: one that is broken, and how."""
    base = folder or (data_path(FOLDER) if (root() / "data" / FOLDER).exists() else None)
    return _references(base) if base and base.is_dir() else ()


@cache
def _references(base: Path) -> tuple[Reference, ...]:
    return tuple(load(one) for one in sorted(base.iterdir()) if one.is_dir())


def reference_for(machine: Mapping[str, Any], folder: Path | None = None) -> Reference | None:
    """The recorded run to set beside `machine` (a record's facts): with GPUs if it has some, then the nearest.

    Nearest is as many CPUs, then the same processor and GPUs by name, then the newest.
    None where only the other kind was recorded: a GPU's figures beside a CPU's would mislead.
    """
    alike = [one for one in references(folder) if bool(one.info.machine.get("gpus")) == bool(machine.get("gpus"))]
    return min(alike, key=lambda one: _apart(one.info, machine), default=None)


def reference_beside(record: Record) -> Reference | None:
    """As `reference_for` the record's machine; None where the recorded run is the very run that the record is of."""
    found = reference_for(record.machine)
    there = found.records.get(record.lab) if found else None
    return None if there is not None and there.started == record.started else found


def beside_recorded(record: Record, chart: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """A chart of `record` with the recorded run's values in it, where the parameters were the same; else as it was."""
    from labkit.records.recorded import with_recorded

    reference = reference_beside(record)
    if reference is None or reference.other_parameters(record):
        return dict(spec)
    return with_recorded(spec, reference.points(record.lab, chart), label=reference.label)


def _apart(info: RunInfo, machine: Mapping[str, Any]) -> tuple[int, bool, float]:
    there, here = info.machine.get("cpus"), machine.get("cpus")
    cpus = abs(there - here) if isinstance(there, int) and isinstance(here, int) else 0
    return cpus, _names(info.machine) != _names(machine), -info.when.timestamp()


def _names(machine: Mapping[str, Any]) -> list[Any]:
    return [machine.get("cpu_model"), *(gpu.get("name") for gpu in machine.get("gpus") or ())]


def load(folder: Path) -> Reference:
    """Read and check one recorded run. RecordError names the first thing that is wrong with it."""
    reference = Reference(name=folder.name, info=read_run(folder), records=read_all(folder))
    if found := next(_faults(reference), None):
        raise RecordError(f"data/{FOLDER}/{folder.name}: {found}", remedy=REMEDY)
    return reference


def _faults(reference: Reference) -> Iterator[str]:
    """What a recorded run must not be: unfinished, of several machines, personal, bound to a machine's folders."""
    if not reference.records:
        yield "it holds 0 records"
    for lab, record in reference.records.items():
        if record.status != "done":
            yield f"{lab} is {record.status}, not done"
        if record.machine_line != reference.info.machine_line:
            yield f"{lab} is from another machine ({record.machine_line})"
        if guessed := [one.get("id") for one in record.predictions if one.get("guess") is not None]:
            yield f"{lab} holds somebody's guess for {guessed[0]}"
    for name, text in _texts(reference):
        if personal := PERSONAL & _keys(text):
            yield f"{name} holds {sorted(personal)[0]}"
        if path := PATHS.search(text):
            yield f"{name} holds a machine's path: {path[0]}"


def _texts(reference: Reference) -> Iterator[tuple[str, str]]:
    yield "run.json", reference.info.model_dump_json()
    yield from ((f"{lab}.json", record.model_dump_json()) for lab, record in reference.records.items())


def _keys(text: str) -> set[str]:
    return set(re.findall(r'"(\w+)":', text))


def _rows(spec: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    data = spec.get("data")
    values = data.get("values") if isinstance(data, dict) else None
    return values if isinstance(values, list) else []
