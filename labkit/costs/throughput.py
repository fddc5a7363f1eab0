"""What one machine gets done: from the learner's own records, from `labkit load --json`, or entered and labelled so."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from labkit.errors import LabkitError, UsageError
from labkit.paths import runs_path
from labkit.records import Record, read

Counts = Literal["output", "total"]
ENTERED = "entered, not measured"
UNITS = ("tokens/s", "tok/s")
CAPACITY, MANY_USERS, ONE_USER = 3, 2, 1  # how good a measurement is as a machine's capacity


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Tokens a second of `gpus` GPUs (0: of a whole machine, whatever is in it), with their interval where measured.

    `counts`: only the tokens that are written ("output"), or those that are read as well ("total"); the same machine
    has two very different figures. `label` says where it is from, `machine` on what it was measured.
    """

    tokens_per_s: float
    low: float | None = None
    high: float | None = None
    counts: Counts = "output"
    gpus: int = 0
    label: str = ENTERED
    measured: bool = False
    machine: str = ""

    def __post_init__(self) -> None:
        for name, value in (
            ("throughput", self.tokens_per_s),
            ("throughput_low", self.low),
            ("throughput_high", self.high),
        ):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(
                    f"the {name} is {value:g} tokens/s; it must be above 0",
                    remedy="measure it (labkit load URL --model NAME --json) or enter what you expect",
                )
        if self.counts not in ("output", "total"):
            raise UsageError(f"throughput_counts is {self.counts!r}", remedy="use output or total")
        if not 0 <= self.gpus <= 1024:
            raise UsageError(f"throughput_gpus is {self.gpus}", remedy="use the number of GPUs, or 0: a whole machine")

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval's ends; twice the value where there is no interval."""
        low = self.tokens_per_s if self.low is None else min(self.low, self.tokens_per_s)
        return low, self.tokens_per_s if self.high is None else max(self.high, self.tokens_per_s)


def measured(where: str | Path = "") -> Throughput:
    """The newest measured throughput of a file, a run's folder, or a folder of runs (default: runs/).

    What was measured under load and repeatedly comes first, a single user's speed last, whatever is newer.
    UsageError: nothing to read there.
    """
    path = Path(where).expanduser() if where else runs_path()
    found = find(path)
    if found is None:
        raise UsageError(
            f"{path} holds no measured throughput",
            remedy="run a lab that measures one (labkit run 01), keep what labkit load --json prints, or enter it",
        )
    return found


def find(path: Path) -> Throughput | None:
    """As `measured`, but None where nothing is found."""
    best: tuple[Throughput | None, int] = (None, 0)
    for file in _newest_first(path):
        for throughput, rank in _read_any(file, strict=path.is_file()):
            if rank == CAPACITY:
                return throughput
            best = best if best[1] >= rank else (throughput, rank)
    return best[0]


def _newest_first(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        return []
    # A run's folder, runs/, and runs/notebook/: files lie at most three levels down.
    files = {file for depth in ("", "*/", "*/*/") for file in path.glob(f"{depth}[!.]*.json")}
    return sorted(files, key=lambda file: (file.stat().st_mtime, file.name), reverse=True)


def _read_any(file: Path, *, strict: bool) -> list[tuple[Throughput, int]]:
    """The file's throughputs, best first, each with its rank."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(tree, dict) and "output_throughput" in tree:
            return [_of_load(tree, file)]
        found = list(_of_record(read(file))) if isinstance(tree, dict) and "lab" in tree else []
    except (OSError, ValueError, LabkitError) as error:
        if strict:
            raise UsageError(f"{file} cannot be read: {error}", remedy="pass a record or labkit load's JSON") from error
        return []
    return sorted(found, key=lambda one: (one[1], one[0].tokens_per_s), reverse=True)


def _of_load(tree: Mapping[str, Any], file: Path) -> tuple[Throughput, int]:
    value = tree["output_throughput"]
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UsageError(f"{file}: output_throughput is {value!r}", remedy="pass what labkit load --json printed")
    label = f"measured by labkit load ({file.name}: {tree.get('completed', '?')} requests)"
    return Throughput(tokens_per_s=float(value), label=label, measured=True), CAPACITY


def _of_record(record: Record) -> Iterator[tuple[Throughput, int]]:
    """What a lab measured: quantities in tokens/s, and the levels of the closed loop in lab 01's chart."""
    gpus = record.machine.get("gpus") or []
    common = {
        "gpus": len(gpus) if isinstance(gpus, list) else 0,
        "measured": True,
        "machine": f"{record.machine_line}, {record.parameters.get('model', 'model unknown')}",
    }
    for item in record.measured:
        if item.unit in UNITS:
            repeated = CAPACITY if len(item.values) > 1 else MANY_USERS
            rank = ONE_USER if "one_user" in item.name else repeated
            label = f"measured by lab {record.lab} on {record.when:%Y-%m-%d} ({item.name.replace('_', ' ')})"
            yield Throughput(tokens_per_s=item.value, low=item.low, high=item.high, label=label, **common), rank  # type: ignore[arg-type]
    for point in _closed_loop(record):
        label = f"measured by lab {record.lab} on {record.when:%Y-%m-%d} with {point['x']:g} requests under way"
        rank = ONE_USER if point["x"] <= 1 else CAPACITY
        yield Throughput(tokens_per_s=point["y"], low=point["low"], high=point["high"], label=label, **common), rank  # type: ignore[arg-type]


def _closed_loop(record: Record) -> Iterator[dict[str, Any]]:
    charts = [one.spec for one in record.charts if one.name == "closed_loop"]
    panels = [panel for spec in charts for panel in _list(spec.get("vconcat"))[:1]]
    for panel in panels:
        values = _list(panel.get("data", {}).get("values")) if isinstance(panel, dict) else []
        yield from (one for one in values if {"x", "y", "low", "high"} <= one.keys() and one["y"] > 0)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
