"""The result record of one lab, <lab>.json, and the description of a whole run, run.json."""

import contextlib
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AwareDatetime, Field, JsonValue, Strict, StrictBool, StrictInt, StrictStr

from labkit.errors import LabkitError, RecordError, UsageError, require
from labkit.files import FORMAT, Frozen, position, read_model, write_model

Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]  # 1 is accepted as 1.0; "1" and true are not
Scalar = StrictBool | StrictInt | Number | StrictStr
Status = Literal["running", "done", "failed"]

RUN_FILE = "run.json"
LAB_NAME = r"[0-9]{2}[a-z]?_[a-z0-9_]+"


class Measured(Frozen):
    """A measured quantity: each repeat's value, their summary and its interval, all in `unit`.

    A ratio has the unit "x" and a `tolerance`: two runs agree on it if neither is more than (1 + tolerance) times the
    other.
    """

    name: str
    unit: str
    values: tuple[Number, ...]
    value: Number
    low: Number
    high: Number
    tolerance: Number | None = None


PREDICTION_TYPES = {"low": float | int, "high": float | int, "confidence": float | int, "hit": bool, "unit": str,
                    "guess": float | int | str, "measured": float | int | str}  # fmt: skip


def _checked(prediction: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """ValueError for a value that a report or a calibration could not compute with; null means unknown."""
    for name, kind in PREDICTION_TYPES.items():
        value = prediction.get(name)
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{name} is {value!r}")
    return prediction


class Chart(Frozen):
    """A Vega-Lite specification with its data. `key`: it belongs in the report."""

    name: str
    key: bool
    spec: dict[str, JsonValue]


class Attempts(Frozen):
    """The judged answers to an exercise. `tries`: their number; `misconceptions`: the names of those recognised."""

    passed: bool
    tries: Annotated[StrictInt, Field(ge=1)]
    misconceptions: tuple[str, ...] = ()

    def joined(self, later: Self) -> Self:
        """Return both together: an exercise that was passed once stays passed."""
        names = dict.fromkeys((*self.misconceptions, *later.misconceptions))
        update = {"passed": self.passed or later.passed, "tries": self.tries + later.tries}
        return self.model_copy(update={**update, "misconceptions": tuple(names)})


class _Described(Frozen):
    """The common fields of records and run.json. Times are UTC."""

    format: StrictInt = FORMAT
    machine: dict[str, JsonValue]
    versions: dict[str, str]
    seed: StrictInt
    started: AwareDatetime
    ended: AwareDatetime | None = None

    @property
    def machine_line(self) -> str:
        """The machine in one line, for captions and comparisons."""
        return str(self.machine.get("line") or "unknown machine")

    @property
    def when(self) -> datetime:
        """The end, or the start if it has not ended."""
        return self.ended or self.started


class Record(_Described):
    """One lab's results: `exact` is identical in every run with the same parameters, `measured` is not.

    `cells`: by claim, the notebook's cell that recorded its evidence.
    """

    lab: str
    status: Status
    parameters: dict[str, JsonValue]
    exact: dict[str, JsonValue] = Field(default_factory=dict)
    measured: tuple[Measured, ...] = ()
    claims: dict[str, dict[str, Scalar]] = Field(default_factory=dict)
    cells: dict[str, int] = Field(default_factory=dict)
    predictions: tuple[Annotated[dict[str, JsonValue], AfterValidator(_checked)], ...] = ()
    exercises: dict[str, Attempts] = Field(default_factory=dict)
    charts: tuple[Chart, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def ratios(self) -> dict[str, Measured]:
        """The measurements that `compare` compares, by name."""
        return {item.name: item for item in self.measured if item.tolerance is not None}


class LabRun(Frozen):
    """The outcome of a lab in a run. `seconds`: wall time, None before it has ended. `error`: one line, or ""."""

    name: str
    status: Literal["waiting", "running", "done", "failed", "skipped"]
    seconds: Number | None = None
    error: str = ""

    @classmethod
    def of(cls, record: Record) -> Self:
        """Return the outcome of a record's lab."""
        seconds = max(0.0, (record.ended - record.started).total_seconds()) if record.ended else None
        return cls(name=record.lab, status=record.status, seconds=seconds)


class RunInfo(_Described):
    """run.json: the machine, versions, times and labs of a run.

    earlier_commits: commits other than `git_commit` of labs that were done before the run was resumed.
    """

    profile: str
    git_commit: str | None = None
    earlier_commits: tuple[str, ...] = ()
    labs: tuple[LabRun, ...] = ()

    def with_lab(self, lab: LabRun) -> Self:
        """Return a copy in which `lab` replaces the lab of the same name, or is added."""
        names = [other.name for other in self.labs]
        kept = [lab if other.name == lab.name else other for other in self.labs]
        return self.model_copy(update={"labs": tuple(kept if lab.name in names else [*kept, lab])})

    def write(self, run_dir: Path) -> None:
        """Write run.json into the run's folder, atomically."""
        write_model(run_dir / RUN_FILE, self)


def read(path: Path) -> Record:
    """Read a record. RecordError, with file, position and remedy: it is corrupt or has another format."""
    rerun = f"labkit run {path.stem} --out {shlex.quote(str(path.parent))} --resume"
    remedy = f"rm {shlex.quote(str(path))}; {rerun}" if re.fullmatch(LAB_NAME, path.stem) else "remove or rename it"
    record = read_model(path, Record, remedy=remedy)
    if record.lab != path.stem:
        raise RecordError(f"{path} holds the record of {record.lab!r}", remedy=f"rename it to {record.lab}.json")
    return record


def read_run(run_dir: Path) -> RunInfo:
    """Read a run's run.json. RecordError as for `read`."""
    return read_model(run_dir / RUN_FILE, RunInfo, remedy="pass a folder that `labkit run --out DIR` wrote")


def read_all(run_dir: Path) -> dict[str, Record]:
    """Return all records of a run's folder by lab, in the order of their names; {} if there are none.

    Raises:
        RecordError: not a folder, or a record that cannot be read.
    """
    if not run_dir.is_dir():
        raise RecordError(f"{run_dir} is not a folder", remedy="pass a folder that `labkit run --out DIR` wrote")
    return {path.stem: read(path) for path in sorted(run_dir.glob("[!.]*.json")) if path.name != RUN_FILE}


def set_status(path: Path, status: Status, *, at: datetime) -> None:
    """Set a record's status after its lab's process has ended. `at` needs a time zone."""
    ended = None if status == "running" else at
    write_model(path, read(path).model_copy(update={"status": status, "ended": ended}))


def plain(value: Any, *steps: str | int) -> JsonValue:
    """Return `value` as JSON data: tuples become lists; numpy's scalars and arrays, and enums, become plain.

    `steps`: the value's position, for the message.

    Raises:
        UsageError: NaN, infinity, a key that is not text, or a type that JSON lacks, with its position.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # a StrEnum's text, not its subclass
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        require(
            math.isfinite(value),
            f"{position(*steps)} is {value}, which JSON does not have",
            fix="record None for what was not measured, and find the cause of the number",
        )
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            text = isinstance(key, str)
            require(text, f"{position(*steps)} has the key {key!r}; JSON's keys are text", fix="use str(key)")
        return {str.__str__(key): plain(item, *steps, key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, *steps, index) for index, item in enumerate(value)]
    if type(value).__module__ == "numpy":
        return plain(value.tolist(), *steps)
    raise UsageError(
        f"{position(*steps)} is of type {type(value).__name__}, which JSON does not have",
        remedy="record text, numbers, true or false, None, lists or dicts: str(path), sorted(set), asdict(dataclass)",
    )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A position where two records differ. `only_in`: "a" or "b" if the other has no value there."""

    lab: str
    path: str
    a: JsonValue
    b: JsonValue
    only_in: str | None = None


def differences(lab: str, a: JsonValue, b: JsonValue, *steps: str | int) -> Iterator[Difference]:
    """Yield every position where two JSON values are not identical: 1, 1.0 and true are three values."""
    if isinstance(a, dict) and isinstance(b, dict):
        yield from _by_key(lab, a, b, sorted(a.keys() | b.keys()), *steps)
    elif isinstance(a, list) and isinstance(b, list):
        yield from _by_key(lab, dict(enumerate(a)), dict(enumerate(b)), range(max(len(a), len(b))), *steps)
    elif type(a) is not type(b) or _bits(a) != _bits(b):
        yield Difference(lab=lab, path=position(*steps), a=a, b=b)


def _by_key(
    lab: str, a: Mapping[Any, JsonValue], b: Mapping[Any, JsonValue], keys: Iterable[Any], *steps: str | int
) -> Iterator[Difference]:
    for key in keys:
        if key in a and key in b:
            yield from differences(lab, a[key], b[key], *steps, key)
        else:
            only_in = "a" if key in a else "b"
            yield Difference(lab=lab, path=position(*steps, key), a=a.get(key), b=b.get(key), only_in=only_in)


def _bits(value: JsonValue) -> JsonValue:
    return value.hex() if isinstance(value, float) else value  # distinguishes 0.0 and -0.0


def read_newest(folder: Path) -> dict[str, Record]:
    """Return all records of a run's folder by lab, or the newest finished ones of a folder of runs (runs/notebook).

    Raises:
        RecordError: not a folder, no record, or a run's record that cannot be read.
    """
    records = read_all(folder) or newest(folder)
    if not records:
        remedy = "pass a folder that `labkit run --out DIR` wrote, or a folder of such folders, such as runs/notebook"
        raise RecordError(f"{folder} holds 0 records", remedy=remedy)
    return records


def newest(folder: Path) -> dict[str, Record]:
    """Return the newest finished record of each lab, by lab, from at most two folders down.

    Files that are not records are skipped.
    """
    by_lab: dict[str, Record] = {}
    for record in every(folder):
        if record.status == "done" and (record.lab not in by_lab or by_lab[record.lab].when < record.when):
            by_lab[record.lab] = record
    return dict(sorted(by_lab.items()))


def every(folder: Path) -> Iterator[Record]:
    """Yield all records of a folder of runs, from at most two folders down; files that are not records are skipped."""
    for file in sorted(file for depth in ("", "*/", "*/*/") for file in folder.glob(f"{depth}[0-9]*.json")):
        with contextlib.suppress(LabkitError):
            yield read(file)


def completeness(record: Record, last: datetime | None = None) -> tuple[Any, ...]:
    """Sort key for copies of a record. Exercises after its end, and copying an open one, do not show in its times."""
    tries = sum(attempts.tries for attempts in record.exercises.values())
    return record.ended is not None, tries, len(record.predictions), last or record.when


def distinct_starts(records: Iterable[Record]) -> list[Record]:
    """Return the most complete copy of each start, the oldest start first."""
    starts = {(record.started, record.lab): record for record in sorted(records, key=completeness)}
    return [starts[key] for key in sorted(starts)]


def first_predictions(records: Iterable[Record]) -> dict[str, Mapping[str, Any]]:
    """Return each question with its first guess, if there was one."""
    first: dict[str, Mapping[str, Any]] = {}
    for record in records:
        for prediction in record.predictions:
            name = str(prediction.get("id"))
            if name not in first or first[name].get("guess") is None:
                first[name] = prediction
    return first


def joined_exercises(records: Iterable[Record]) -> dict[str, Attempts]:
    """Return each exercise with all its tries; one that was passed stays passed."""
    joined: dict[str, Attempts] = {}
    for record in records:
        for name, attempts in record.exercises.items():
            joined[name] = joined[name].joined(attempts) if name in joined else attempts
    return joined
