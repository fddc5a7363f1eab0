"""Read and check data/reference/: runs recorded on named machines, shown beside the run on this one.

Each folder is a run's folder without personal or large data: run.json and the labs' records. `labkit claims`, `compare`
and `report` read it as any run. tools/reference.py writes it.
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
REMEDY = "rebuild it from a run's folder: make reference RUN=DIR"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One machine's recorded run."""

    name: str
    info: RunInfo
    records: Mapping[str, Record]

    @property
    def place(self) -> str:
        """Machine and date: "2 CPUs (AMD EPYC), 24 GiB, no GPU, 24 Nov 2026"."""
        return f"{self.info.machine_line}, {self.info.when:%d %b %Y}"

    @property
    def label(self) -> str:
        """`place` for a caption: "recorded: 2 CPUs (AMD EPYC), 24 GiB, no GPU, 24 Nov 2026"."""
        return f"recorded: {self.place}"

    @property
    def provenance(self) -> str:
        """How to repeat the run: machine, date, command, commit and engine versions."""
        engines = [f"{name} {self.info.versions[name]}" for name in ENGINES if name in self.info.versions]
        commit = f"commit {self.info.git_commit[:10]}" if self.info.git_commit else "commit unknown"
        commit += "".join(f", some labs at {earlier[:10]}" for earlier in self.info.earlier_commits)
        command = f"labkit run --profile {self.info.profile}"
        return " · ".join([self.info.machine_line, f"{self.info.when:%d %b %Y}", command, commit, *engines])

    def prediction(self, lab: str, prediction_id: str) -> Mapping[str, Any] | None:
        """Return the recorded prediction, which has a measurement and no guess; None if there is none."""
        record = self.records.get(lab)
        for prediction in record.predictions if record else ():
            if prediction.get("id") == prediction_id and prediction.get("measured") is not None:
                return prediction
        return None

    def comparable(self, record: Record, prediction_id: str) -> Mapping[str, Any] | None:
        """Return the recorded prediction for a prediction of `record`; None if there is none or parameters differ."""
        return None if self.other_parameters(record) else self.prediction(record.lab, prediction_id)

    def points(self, lab: str, chart: str) -> list[dict[str, Any]]:
        """Return the recorded rows of a key chart's bars or points; [] if there are none."""
        record = self.records.get(lab)
        specs = [stored.spec for stored in record.charts if stored.name == chart] if record else []
        return [row for spec in specs for row in _rows(spec)]

    def other_parameters(self, record: Record) -> tuple[str, ...]:
        """Return the names of the parameters that differ between `record` and its counterpart, except guesses."""
        recorded = self.records.get(record.lab)
        if recorded is None:
            return ()
        here, there = relevant(record, recorded), relevant(recorded, record)
        return tuple(name for name in sorted({*here, *there}) if here.get(name) != there.get(name))


def references(folder: Path | None = None) -> tuple[Reference, ...]:
    """Return all recorded runs by name, or none if the folder is missing. RecordError: a run that is not valid."""
    base = folder or (data_path(FOLDER) if (root() / "data" / FOLDER).exists() else None)
    return _references(base) if base and base.is_dir() else ()


@cache
def _references(base: Path) -> tuple[Reference, ...]:
    return tuple(load(folder) for folder in sorted(base.iterdir()) if folder.is_dir())


def reference_for(machine: Mapping[str, Any], folder: Path | None = None) -> Reference | None:
    """Return the recorded run nearest to `machine` (a record's facts): both with GPUs, or both without.

    Nearest: by the number of CPUs, then the same processor and GPUs by name, then the newest. None if there is no run
    of the same kind: a GPU's figures beside a CPU's would mislead.
    """
    has_gpu = bool(machine.get("gpus"))
    alike = [reference for reference in references(folder) if bool(reference.info.machine.get("gpus")) == has_gpu]
    return min(alike, key=lambda reference: _distance(reference.info, machine), default=None)


def reference_beside(record: Record) -> Reference | None:
    """Return `reference_for` the record's machine; None if that run contains `record` itself."""
    reference = reference_for(record.machine)
    recorded = reference.records.get(record.lab) if reference else None
    return None if recorded is not None and recorded.started == record.started else reference


def beside_recorded(record: Record, chart: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chart of `record` with the recorded run's values; unchanged if the parameters differ."""
    from labkit.records.recorded import with_recorded

    reference = reference_beside(record)
    if reference is None or reference.other_parameters(record):
        return dict(spec)
    return with_recorded(spec, reference.points(record.lab, chart), label=reference.label)


def _distance(info: RunInfo, machine: Mapping[str, Any]) -> tuple[int, bool, float]:
    there, here = info.machine.get("cpus"), machine.get("cpus")
    cpus = abs(there - here) if isinstance(there, int) and isinstance(here, int) else 0
    return cpus, _names(info.machine) != _names(machine), -info.when.timestamp()


def _names(machine: Mapping[str, Any]) -> list[Any]:
    return [machine.get("cpu_model"), *(gpu.get("name") for gpu in machine.get("gpus") or ())]


def load(folder: Path) -> Reference:
    """Read and check one recorded run. RecordError names its first fault."""
    reference = Reference(name=folder.name, info=read_run(folder), records=read_all(folder))
    if fault := next(_faults(reference), None):
        raise RecordError(f"data/{FOLDER}/{folder.name}: {fault}", remedy=REMEDY)
    return reference


def _faults(reference: Reference) -> Iterator[str]:
    """Yield what is wrong: unfinished labs, several machines, personal data, paths of a machine."""
    if not reference.records:
        yield "it holds 0 records"
    for lab, record in reference.records.items():
        if record.status != "done":
            yield f"{lab} is {record.status}, not done"
        if record.machine_line != reference.info.machine_line:
            yield f"{lab} is from another machine ({record.machine_line})"
        if guessed := [item.get("id") for item in record.predictions if item.get("guess") is not None]:
            yield f"{lab} holds a learner's guess for {guessed[0]}"
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
