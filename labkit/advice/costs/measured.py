"""Read measured throughput from a lab's record or from the output of `labkit load --json`. Imported on demand."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from labkit.advice.costs.prices import OWN, instances
from labkit.advice.costs.throughput import Throughput, error_interval
from labkit.errors import LabkitError, UsageError, require
from labkit.files import runs_path, validated
from labkit.models.examples import example_models
from labkit.records.record import Record, read

UNIT = "tokens/s"
CAPACITY, MANY_USERS, ONE_USER = 3, 2, 1  # ranks: how well a measurement shows a machine's capacity
LEAST_BUSY = 0.5
"""Share of its capacity below which a simulation does not show what a machine can do."""
ONE_AT_A_TIME = ("one_user", "_concurrency_1")  # endings of the names of quantities


def measured(where: str | Path = "") -> Throughput:
    """Return the newest measured throughput of a file, a run's folder, or a folder of runs (default: runs/).

    Whatever its age, a repeated measurement under load comes first, and the speed of a single user last.
    UsageError: no measured throughput.
    """
    path = Path(where).expanduser() if where else runs_path()
    best, best_rank = None, 0
    for file in _newest_first(path):
        for throughput, rank in _read(file, strict=path.is_file()):
            if rank > best_rank:
                best, best_rank = throughput, rank
        if best_rank == CAPACITY:
            break
    if best is None:
        fix = "run a lab that measures it (labkit run 01), save the output of labkit load --json, or enter it"
        raise UsageError(f"{path} holds no measured throughput", remedy=fix)
    return best


def _newest_first(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    # A run's folder, runs/, and runs/notebook/: records are at most three levels down.
    files = {file for depth in ("", "*/", "*/*/") for file in path.glob(f"{depth}[!.]*.json")}
    return sorted(files, key=lambda file: (file.stat().st_mtime, file.name), reverse=True)


def _read(file: Path, *, strict: bool) -> list[tuple[Throughput, int]]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(tree, dict) and "output_throughput" in tree:
            return [(_of_load(tree, file), CAPACITY)]
        if strict and isinstance(tree, dict) and "sweep" in tree:
            raise UsageError(f"{file} is a sweep", remedy="measure one load: labkit load URL --concurrency 64 --json")
        if not isinstance(tree, dict) or "lab" not in tree:
            return []
        throughputs = list(_of_record(read(file)))
    except (OSError, ValueError, RecursionError, LabkitError) as error:
        if strict:
            raise _refusal(file, error) from error
        return []
    return sorted(throughputs, key=lambda ranked: (ranked[1], ranked[0].tokens_per_s), reverse=True)


def _refusal(file: Path, error: Exception) -> UsageError:
    what, fix = (error.what, error.remedy) if isinstance(error, LabkitError) else (str(error), "")
    what = what if str(file) in what else f"{file} cannot be read: {what}"
    return UsageError(what, remedy=fix or "pass a record or labkit load's JSON")


def _of_load(tree: Mapping[str, Any], file: Path) -> Throughput:
    """Read the output of `labkit load --json` or `labkit simulate --json`."""
    value = tree["output_throughput"]
    valid = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    fix = "pass the output of labkit load --json or labkit simulate --json"
    require(valid, f"{file}: output_throughput is {value!r}", fix=fix)
    if "tensor_parallel" in tree:
        return _of_simulation(tree, value, file)
    fix = "measure a closed loop with many clients: labkit load URL --concurrency 64 --json"
    # Without both keys the file is from before they were written.
    closed = tree.get("rate") is None and tree.get("concurrency", 0) is not None
    require(closed, f"{file} is an open loop: it shows the load that was offered, not what a machine can do", fix=fix)
    require(tree.get("concurrency") != 1, f"{file} is from a single client, which leaves a machine idle", fix=fix)
    require(not tree.get("failed"), f"{file}: {tree.get('failed')} requests failed", fix="measure without failures")
    clients = f", {tree['concurrency']} at a time" if tree.get("concurrency") else ""
    label = f"measured by labkit load ({file.name}: {tree.get('completed', '?')} requests{clients})"
    return Throughput(tokens_per_s=value, label=label, measured=True)


class _Error(BaseModel):
    worst: float | None = Field(default=None, ge=0)


class _Errors(BaseModel):
    capacity: _Error | None = None
    tpot: _Error | None = None


class _Simulation(BaseModel):
    """What the calculator reads of the output of `labkit simulate --json`."""

    gpu: str
    model: str
    tensor_parallel: int = Field(ge=1)
    replicas: int = Field(ge=1)
    source: str
    error: _Errors
    load_share: float | None = None


def _of_simulation(tree: Mapping[str, Any], value: float, file: Path) -> Throughput:
    """Read a simulation: not a measurement, with the model's known error as its interval."""
    fix = "pass the output of labkit simulate --json"
    simulation = validated(tree, _Simulation, where=str(file), remedy=fix)
    busy = simulation.load_share is None or simulation.load_share >= LEAST_BUSY
    what = f"{file} is a simulation at {simulation.load_share or 0:.0%} of capacity"
    require(busy, what, fix="simulate a full engine: labkit simulate --concurrency 64 or more")
    error = (simulation.error.capacity or simulation.error.tpot or _Error()).worst
    card, gpus = simulation.gpu, simulation.tensor_parallel * simulation.replicas
    gpu = next((instance.gpu for instance in instances().values() if instance.card == card), card)
    accuracy = "error not known" if error is None else f"off by up to {error:.0%}"
    low, high = (None, None) if error is None else error_interval(value, error, f"{file}: the simulation")
    machine = f"{gpus} modelled {card}, {simulation.model}"
    label = f"{simulation.source} ({file.name}; {accuracy})"
    return Throughput(tokens_per_s=value, low=low, high=high, gpus=gpus, gpu=gpu, label=label, machine=machine)


def _of_record(record: Record) -> Iterator[tuple[Throughput, int]]:
    listed = record.machine.get("gpus")
    gpus = [gpu for gpu in listed if isinstance(gpu, dict)] if isinstance(listed, list) else []
    for quantity in record.measured:
        if quantity.unit != UNIT:
            continue
        repeated = CAPACITY if len(quantity.values) > 1 else MANY_USERS
        throughput = Throughput(
            tokens_per_s=quantity.value,
            low=quantity.low,
            high=quantity.high,
            gpus=len(gpus),
            gpu=_known_gpu(str(gpus[0].get("name", ""))) if gpus else "",
            label=f"measured by lab {record.lab} on {record.when:%Y-%m-%d} ({quantity.name.replace('_', ' ')})",
            measured=True,
            machine=f"{record.machine_line}, {record.parameters.get('model', 'model unknown')}",
        )
        yield throughput, ONE_USER if quantity.name.endswith(ONE_AT_A_TIME) else repeated


def _known_gpu(name: str) -> str:
    """Return the price list's name for the GPU that the driver calls `name`, or else `name`."""
    known = dict.fromkeys(instance.gpu for instance in instances().values() if instance.gpu)
    return next((gpu for gpu in known if re.search(rf"\b{gpu}\b", name)), name)


def measured_instance(throughput: Throughput) -> str:
    """Return the instance nearest to the machine on which a throughput was measured, or `own` if none is similar.

    UsageError: the machine is not known.
    """
    fix = "set instance to that machine, or to own with its usd_per_hour"
    what = f"the machine on which this was measured is not known: {throughput.label}"
    require(bool(throughput.machine), what, fix=fix)
    if throughput.gpus == 0:
        return next(name for name, instance in instances().items() if not instance.gpus and name != OWN)
    machine = throughput.machine.replace(" ", "")
    same_gpu = {
        name: instance for name, instance in instances().items() if instance.gpu and instance.gpu == throughput.gpu
    }
    same_memory = [name for name, instance in same_gpu.items() if f"{instance.gpu_gb:g}GB" in machine]
    same_number = [name for name in same_memory or same_gpu if same_gpu[name].gpus == throughput.gpus]
    return next(iter([*same_number, *same_memory, *same_gpu, OWN]))


def measured_model_gb(throughput: Throughput) -> float | None:
    """Return the 16-bit weights of the measured model in GB, or None if it is not an example model."""
    models = (model for name, model in example_models().items() if name.lower() in throughput.machine.lower())
    return next((round(2 * (model.parameters or 0) / 1e9, 2) for model in models), None)
