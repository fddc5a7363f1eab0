"""Keeps a run as a machine's recorded results: `make reference RUN=DIR`, or `python tools/reference.py DIR`.

Every lab of the run must have ended well. Guesses, host name and drawings are left out; a folder that exists for this
machine is replaced whole.
"""

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labkit.errors import LabkitError, RecordError
from labkit.files import write_model
from labkit.records import Chart, Record, RunInfo, read_all, read_run, reference
from labkit.records.recorded import marks

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "data" / reference.FOLDER
MAX_BYTES = 300_000


def keep(run_dir: Path, base: Path = REFERENCE) -> Path:
    """Stores the run under `base` in a folder named after its machine; returns that folder.

    RecordError: no run, a lab that failed or did not run, a path in a record, more than MAX_BYTES: nothing is changed.
    """
    info, records = read_run(run_dir), read_all(run_dir)
    if left := [lab.name for lab in info.labs if lab.status != "done"]:
        raise RecordError(f"{run_dir}: {', '.join(left)} did not end well", remedy="finish it: labkit run --resume")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / machine_name(info.machine)
        folder.mkdir()
        slim_run(info).write(folder)
        for record in records.values():
            write_model(folder / f"{record.lab}.json", slim(record))
        reference.load(folder)
        size = sum(file.stat().st_size for file in folder.iterdir())
        if size > MAX_BYTES:
            raise RecordError(f"{size:,} bytes; at most {MAX_BYTES:,}", remedy="keep less per record in slim()")
        target = base / folder.name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
    return target


def slim(record: Record) -> Record:
    """The record without what is personal, changes by itself, or is only drawn."""
    drawn = ((chart.name, marks(chart.spec)) for chart in record.charts if chart.key)
    changes: dict[str, Any] = {
        "machine": _machine(record.machine),
        "parameters": {name: value for name, value in record.parameters.items() if not _personal(name)},
        "predictions": tuple(_measured_only(one) for one in record.predictions),
        "exercises": {},
        "charts": tuple(Chart(name=name, key=True, spec=spec) for name, spec in drawn if spec is not None),
    }
    return record.model_copy(update=changes)


def slim_run(info: RunInfo) -> RunInfo:
    """run.json without what is personal."""
    return info.model_copy(update={"machine": _machine(info.machine)})


def machine_name(machine: Mapping[str, Any]) -> str:
    """A folder's name out of the machine's facts, such as "2-cpus-amd-epyc-24-gib-no-gpu"."""
    return re.sub(r"[^a-z0-9]+", "-", str(machine.get("line") or "unknown machine").lower()).strip("-")


def _machine(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in reference.PERSONAL}


def _personal(parameter: str) -> bool:
    return parameter.startswith("guess") or parameter == "confidence"


def _measured_only(prediction: Mapping[str, Any]) -> dict[str, Any]:
    return {**prediction, "guess": None, "confidence": None, "source": "none", "hit": None}


def main(arguments: list[str] | None = None) -> int:
    """Keeps the run that was named; returns the exit code: 2 where it cannot be kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, metavar="DIR", help="a run's folder, as labkit run --out DIR wrote it")
    given = parser.parse_args(arguments)
    try:
        folder = keep(given.run.expanduser())
    except LabkitError as error:
        print(error, file=sys.stderr)
        return 2
    print(reference.load(folder).provenance)
    return 0


if __name__ == "__main__":
    sys.exit(main())
