"""Read a run's folder for its report. A broken file becomes a message; the rest is still shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from labkit.errors import RecordError
from labkit.records import RUN_FILE, LabRun, Record, RunInfo, read, read_newest, read_run
from labkit.records.comparison import relevant
from labkit.records.record import distinct_starts, every, first_predictions, joined_exercises


@dataclass(frozen=True, kw_only=True)
class RunData:
    """The contents of a run's folder. `broken`: by file stem, why a file could not be read."""

    folder: Path
    info: RunInfo | None
    records: Mapping[str, Record]
    broken: Mapping[str, str] = field(default_factory=dict)

    @property
    def labs(self) -> tuple[LabRun, ...]:
        """Each lab's outcome: from run.json, or else from its record."""
        listed = self.info.labs if self.info else ()
        names = {lab.name for lab in listed}
        return (*listed, *(LabRun.of(record) for lab, record in self.records.items() if lab not in names))

    @property
    def described(self) -> RunInfo | Record | None:
        """The source of machine, versions and times: run.json, or else the newest record; None if all is broken."""
        return self.info or max(self.records.values(), key=lambda record: record.when, default=None)

    @property
    def starts(self) -> tuple[datetime, ...]:
        """When the run and its labs started: of a resumed run, or of a folder of runs, on several days."""
        return tuple(item.started for item in (self.info, *self.records.values()) if item)

    @property
    def is_one_run(self) -> bool:
        """Whether all labs ran in the time that run.json gives: it was not resumed, and it is no folder of runs."""
        return self.info is not None and min(self.starts) >= self.info.started


def load(run_dir: Path) -> RunData:
    """Read a run's folder, or the newest finished record of each lab in a folder of runs (runs/notebook).

    RecordError: there is nothing to report.
    """
    if not run_dir.is_dir():
        raise RecordError(f"{run_dir} is not a folder", remedy="pass the folder of a run")
    info: RunInfo | None = None
    records: dict[str, Record] = {}
    broken: dict[str, str] = {}
    for file in sorted(run_dir.glob("[!.]*.json")):
        try:
            if file.name == RUN_FILE:
                info = read_run(run_dir)
            else:
                records[file.stem] = read(file)
        except RecordError as error:
            broken[file.stem] = str(error)
    if info is None and not records and not broken:
        records = _as_learned(read_newest(run_dir), distinct_starts(every(run_dir)))
    return RunData(folder=run_dir, info=info, records=records, broken=broken)


def _as_learned(newest: Mapping[str, Record], starts: Sequence[Record]) -> dict[str, Record]:
    """Return the newest records with the first guess of each question and all tries of each exercise.

    A guess counts only from a start with the same parameters: its measurement belongs to them."""
    learned = {}
    for lab, record in newest.items():
        mine = [start for start in starts if start.lab == lab]
        same = [start for start in mine if relevant(start, record) == relevant(record, start)]
        asked = {prediction.get("id") for prediction in record.predictions}
        first = tuple(item for name, item in first_predictions(same).items() if name in asked)
        learned[lab] = record.model_copy(update={"predictions": first, "exercises": joined_exercises(mine)})
    return learned
