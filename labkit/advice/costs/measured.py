"""Throughput that was measured: in a lab's record, or by `labkit load --json`. Loaded only where there are runs."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from labkit.advice.costs.prices import OWN, instances
from labkit.advice.costs.throughput import Throughput
from labkit.errors import LabkitError, UsageError
from labkit.files import runs_path
from labkit.models.examples import example_models
from labkit.records.record import Record, read

UNIT = "tokens/s"
CAPACITY, MANY_USERS, ONE_USER = 3, 2, 1  # how good a measurement is as a machine's capacity
ONE_AT_A_TIME = ("one_user", "_concurrency_1")  # endings of quantities' names


def measured(where: str | Path = "") -> Throughput:
    """The newest measured throughput of a file, a run's folder, or a folder of runs (default: runs/).

    Repeated measurements under load come first and a single user's speed last, whatever is newer.
    UsageError: no measured throughput there.
    """
    path = Path(where).expanduser() if where else runs_path()
    throughput = find(path)
    if throughput is None:
        raise UsageError(
            f"{path} holds no measured throughput",
            remedy="run a lab that measures one (labkit run 01), keep what labkit load --json prints, or enter it",
        )
    return throughput


def find(path: Path) -> Throughput | None:
    """As `measured`, but None where there is none."""
    best: tuple[Throughput | None, int] = (None, 0)
    for file in _newest_first(path):
        for throughput, rank in _read(file, strict=path.is_file()):
            best = best if best[1] >= rank else (throughput, rank)
        if best[1] == CAPACITY:
            break
    return best[0]


def _newest_first(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    # A run's folder, runs/, and runs/notebook/: records are at most three levels down.
    files = {file for depth in ("", "*/", "*/*/") for file in path.glob(f"{depth}[!.]*.json")}
    return sorted(files, key=lambda file: (file.stat().st_mtime, file.name), reverse=True)


def _read(file: Path, *, strict: bool) -> list[tuple[Throughput, int]]:
    """The file's throughputs with their ranks, best first."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(tree, dict) and "output_throughput" in tree:
            return [(_of_load(tree, file), CAPACITY)]
        if not isinstance(tree, dict) or "lab" not in tree:
            return []
        found = list(_of_record(read(file)))
    except (OSError, ValueError, LabkitError) as error:
        if strict:
            raise UsageError(f"{file} cannot be read: {error}", remedy="pass a record or labkit load's JSON") from error
        return []
    return sorted(found, key=lambda ranked: (ranked[1], ranked[0].tokens_per_s), reverse=True)


def _of_load(tree: Mapping[str, Any], file: Path) -> Throughput:
    value = tree["output_throughput"]
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UsageError(f"{file}: output_throughput is {value!r}", remedy="pass what labkit load --json printed")
    label = f"measured by labkit load ({file.name}: {tree.get('completed', '?')} requests)"
    return Throughput(tokens_per_s=value, label=label, measured=True)


def _of_record(record: Record) -> Iterator[tuple[Throughput, int]]:
    """The quantities in tokens/s that a lab measured."""
    gpus = record.machine.get("gpus")
    for quantity in record.measured:
        if quantity.unit != UNIT:
            continue
        repeated = CAPACITY if len(quantity.values) > 1 else MANY_USERS
        throughput = Throughput(
            tokens_per_s=quantity.value,
            low=quantity.low,
            high=quantity.high,
            gpus=len(gpus) if isinstance(gpus, list) else 0,
            label=f"measured by lab {record.lab} on {record.when:%Y-%m-%d} ({quantity.name.replace('_', ' ')})",
            measured=True,
            machine=f"{record.machine_line}, {record.parameters.get('model', 'model unknown')}",
        )
        yield throughput, ONE_USER if quantity.name.endswith(ONE_AT_A_TIME) else repeated


def measured_instance(throughput: Throughput) -> str:
    """The instance that is nearest to the machine on which a throughput was measured."""
    if throughput.gpus == 0:
        return next(name for name, instance in instances().items() if not instance.gpus and name != OWN)
    words = throughput.machine.split()
    fitting = [name for name, instance in instances().items() if instance.gpu and instance.gpu in words]
    same_number = [name for name in fitting if instances()[name].gpus == throughput.gpus]
    return (same_number or fitting or list(instances()))[0]


def measured_model_gb(throughput: Throughput) -> float | None:
    """The 16-bit weights of the model that was measured; None for a model that is not among the examples."""
    models = example_models().items()
    known = (model for name, model in models if name.lower() in throughput.machine.lower())
    return next((round(2 * (model.parameters or 0) / 1e9, 2) for model in known), None)
