"""What a run's folder holds, read for its report: what is broken is kept as a message, so that the rest still shows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from labkit.errors import RecordError
from labkit.records import RUN_FILE, LabRun, Record, RunInfo, read, read_newest, read_run


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What a run's folder holds. `broken`: the message by the file's stem for what could not be read."""

    folder: Path
    info: RunInfo | None
    records: Mapping[str, Record]
    broken: Mapping[str, str] = field(default_factory=dict)

    @property
    def labs(self) -> tuple[LabRun, ...]:
        """How each lab went: by run.json, else by its record."""
        listed = self.info.labs if self.info else ()
        names = {lab.name for lab in listed}
        return (*listed, *(LabRun.of(record) for lab, record in self.records.items() if lab not in names))

    @property
    def described(self) -> RunInfo | Record | None:
        """What tells machine, versions and time: run.json, else the first record; None where all is broken."""
        return self.info or next(iter(self.records.values()), None)


def load(run_dir: Path) -> RunData:
    """Reads a run's folder, or the newest finished record of each lab where it holds runs (runs/notebook).

    A run's broken file is kept as its message. RecordError where there is nothing to report at all.
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
        records = dict(read_newest(run_dir))
    return RunData(folder=run_dir, info=info, records=records, broken=broken)
