"""The records of several runs at once: each start of a notebook has a folder of its own, and a day has many."""

from collections.abc import Iterator
from pathlib import Path

from labkit.errors import LabkitError, RecordError
from labkit.records.record import Record, read, read_all


def read_newest(folder: Path) -> dict[str, Record]:
    """All records of a run's folder by lab; of a folder of runs, such as runs/notebook, the newest finished ones.

    Raises:
        RecordError: not a folder, nothing in it, or a run's record that cannot be read.
    """
    found = read_all(folder) or newest(folder)
    if not found:
        remedy = "pass a folder that `labkit run --out DIR` wrote, or one with such folders, as runs/notebook"
        raise RecordError(f"{folder} holds 0 records", remedy=remedy)
    return found


def newest(folder: Path) -> dict[str, Record]:
    """The newest finished record of each lab, by lab, of all that lie at most two folders down."""
    found: dict[str, Record] = {}
    for record in _readable(folder):
        if record.status == "done" and (record.lab not in found or found[record.lab].when < record.when):
            found[record.lab] = record
    return dict(sorted(found.items()))


def _readable(folder: Path) -> Iterator[Record]:
    """The labs' files (run.json begins with no digit). What cannot be read is somebody else's."""
    for file in sorted(file for depth in ("", "*/", "*/*/") for file in folder.glob(f"{depth}[0-9]*.json")):
        try:
            yield read(file)
        except LabkitError:
            continue
