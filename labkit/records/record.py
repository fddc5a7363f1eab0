"""The result record of one lab, <lab>.json, and the description of a whole run, run.json."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, Strict, StrictBool, StrictInt, StrictStr

from labkit.errors import RecordError
from labkit.records.files import FORMAT, read_model, write_model

Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]  # 1 may stand for 1.0; "1" and true may not
Scalar = StrictBool | StrictInt | Number | StrictStr
Status = Literal["running", "done", "failed"]

RUN_FILE = "run.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Measured(_Frozen):
    """One measured quantity: each repeat's value, their summary and its interval, all in `unit`.

    A ratio has the unit "x" and a `tolerance`: two runs agree on it when neither is more than (1 + tolerance) times the
    other.
    """

    name: str
    unit: str
    values: tuple[Number, ...]
    value: Number
    low: Number
    high: Number
    tolerance: Number | None = None


class Chart(_Frozen):
    """A Vega-Lite specification with its data. `key`: it belongs in the report."""

    name: str
    key: bool
    spec: dict[str, JsonValue]


class Attempts(_Frozen):
    """How an exercise went so far. `tries`: judged answers; `misconceptions`: the names of those recognised in them."""

    passed: bool
    tries: Annotated[StrictInt, Field(ge=1)]
    misconceptions: tuple[str, ...] = ()


class _Described(_Frozen):
    """What records and run.json have in common. Times are UTC."""

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
        """The end, or the start of what has not ended."""
        return self.ended or self.started


class Record(_Described):
    """What one lab found: `exact` is the same in every run of the same parameters, `measured` is not."""

    lab: str
    status: Status
    parameters: dict[str, JsonValue]
    exact: dict[str, JsonValue] = {}
    measured: tuple[Measured, ...] = ()
    claims: dict[str, dict[str, Scalar]] = {}
    predictions: tuple[dict[str, JsonValue], ...] = ()
    exercises: dict[str, Attempts] = {}
    charts: tuple[Chart, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def ratios(self) -> dict[str, Measured]:
        """What `compare` holds two runs to, by name."""
        return {item.name: item for item in self.measured if item.tolerance is not None}


class LabRun(_Frozen):
    """How one lab of a run went. `seconds`: wall time, None before it has ended. `error`: one line, or ""."""

    name: str
    status: Literal["waiting", "running", "done", "failed", "skipped"]
    seconds: Number | None = None
    error: str = ""


class RunInfo(_Described):
    """run.json: where, with what and when a run of several labs took place.

    earlier_commits: those of the labs that were done when the run was resumed, where they differ from `git_commit`.
    """

    profile: str
    git_commit: str | None = None
    earlier_commits: tuple[str, ...] = ()
    labs: tuple[LabRun, ...] = ()

    def with_lab(self, lab: LabRun) -> Self:
        """A copy in which `lab` replaces the lab of its name, or comes last."""
        names = [other.name for other in self.labs]
        kept = [lab if other.name == lab.name else other for other in self.labs]
        return self.model_copy(update={"labs": tuple(kept if lab.name in names else [*kept, lab])})

    def write(self, run_dir: Path) -> None:
        """Write run.json into the run's folder, whole or not at all."""
        write_model(run_dir / RUN_FILE, self)


def read(path: Path) -> Record:
    """Read one record. One that is corrupt or of another format: RecordError with file, position and remedy."""
    remedy = f"run the lab again: labkit run {path.stem} --out {path.parent}"
    record = read_model(path, Record, remedy=remedy)
    if record.lab != path.stem:
        raise RecordError(f"{path} holds the record of {record.lab!r}", remedy=f"rename it to {record.lab}.json")
    return record


def read_run(run_dir: Path) -> RunInfo:
    """Read a run's run.json. RecordError as for `read`."""
    return read_model(run_dir / RUN_FILE, RunInfo, remedy="pass a folder that `labkit run --out DIR` wrote")


def read_all(run_dir: Path) -> dict[str, Record]:
    """All records of a run's folder by lab, in the order of their names; {} where there is none.

    Raises:
        RecordError: not a folder, or a record that cannot be read.
    """
    if not run_dir.is_dir():
        raise RecordError(f"{run_dir} is not a folder", remedy="pass a folder that `labkit run --out DIR` wrote")
    return {path.stem: read(path) for path in _record_files(run_dir)}


def _record_files(run_dir: Path) -> Iterator[Path]:
    yield from sorted(path for path in run_dir.glob("[!.]*.json") if path.name != RUN_FILE)


def set_status(path: Path, status: Status, *, at: datetime) -> None:
    """Note from outside how a lab ended, when its own process can no longer do so. `at` needs a time zone."""
    ended = None if status == "running" else at
    write_model(path, read(path).model_copy(update={"status": status, "ended": ended}))
