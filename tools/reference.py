"""Store a run as a machine's recorded results: `make reference RUN=DIR`, or `python tools/reference.py DIR`.

All labs of the run must be done. Guesses, host name and drawings are removed; an existing folder of this machine is
replaced.
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
    """Store the run under `base` in a folder named after its machine; return that folder.

    RecordError, without a change: no run, a lab that failed or did not run, a path in a record, more than MAX_BYTES.
    """
    info, records = read_run(run_dir), read_all(run_dir)
    if unfinished := [lab.name for lab in info.labs if lab.status != "done"]:
        what = f"{run_dir}: {', '.join(unfinished)} did not end well"
        raise RecordError(what, remedy="finish the run: labkit run --resume")
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
    """Return the record without personal data, and with only the measured values of its key charts."""
    drawn = ((chart.name, marks(chart.spec)) for chart in record.charts if chart.key)
    changes: dict[str, Any] = {
        "machine": _machine(record.machine),
        "parameters": {name: value for name, value in record.parameters.items() if not _personal(name)},
        "predictions": tuple(map(_measured_only, record.predictions)),
        "exercises": {},
        "charts": tuple(Chart(name=name, key=True, spec=spec) for name, spec in drawn if spec is not None),
    }
    return record.model_copy(update=changes)


def slim_run(info: RunInfo) -> RunInfo:
    """Return run.json without personal data."""
    return info.model_copy(update={"machine": _machine(info.machine)})


def machine_name(machine: Mapping[str, Any]) -> str:
    """Return a folder name for the machine, such as "2-cpus-amd-epyc-24-gib-no-gpu"."""
    return re.sub(r"[^a-z0-9]+", "-", str(machine.get("line") or "unknown machine").lower()).strip("-")


def _machine(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in reference.PERSONAL}


def _personal(parameter: str) -> bool:
    return parameter.startswith("guess") or parameter == "confidence"


def _measured_only(prediction: Mapping[str, Any]) -> dict[str, Any]:
    return {**prediction, "guess": None, "confidence": None, "source": "none", "hit": None}


def main(arguments: list[str] | None = None) -> int:
    """Store the given run; return the exit code: 2 if it cannot be stored."""
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
