"""Write a record while its lab runs, after each addition, so that a killed lab keeps its results."""

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import JsonValue

from labkit import display, experiments
from labkit import machine as machines
from labkit.errors import RecordError, UsageError
from labkit.experiments import Interval, Ratio
from labkit.files import position, remove_leftovers, write_model
from labkit.records.record import RUN_FILE, Attempts, Chart, Measured, Record, Scalar, Status, plain

CLAIM_ID = re.compile(r"C\d{2}")
LAB_NAME = re.compile(r"[A-Za-z0-9][\w-]*")

Named = TypeVar("Named", Measured, Chart)
Evidence = bool | int | float | str | Ratio | Interval


class Recorder:
    """The record of a lab in progress: `record` is its current state, which is also on disk at `path`.

    Recording a name again replaces its value: a notebook's cell may be run twice. Threads may share a recorder. Every
    method may raise UsageError (a value that JSON lacks, with its position) or RecordError (the file cannot be
    written).
    """

    def __init__(
        self,
        lab: str,
        out_dir: Path,
        parameters: Mapping[str, Any],
        *,
        machine: machines.Machine | Mapping[str, Any],
        versions: Mapping[str, str],
        seed: int,
    ) -> None:
        """Start the record with the status "running"; it replaces an earlier record at its path."""
        if not LAB_NAME.fullmatch(lab) or f"{lab}.json" == RUN_FILE:
            raise UsageError(f"{lab!r} cannot name a record", remedy="use letters, digits, _ and -, such as 01_first")
        facts = machines.to_json(machine) if isinstance(machine, machines.Machine) else machine
        self.path = _folder(out_dir) / f"{lab}.json"
        remove_leftovers(self.path)
        self.record = Record(
            lab=lab,
            status="running",
            machine=_plain_dict(facts, "machine"),
            versions=dict(versions),
            parameters=_plain_dict(parameters, "parameters"),
            seed=int(seed),  # a numpy integer is accepted
            started=datetime.now(UTC),
        )
        self._lock = threading.Lock()
        self.save("running")

    def exact(self, name: str, value: Any) -> None:
        """Record a value that is identical in every run with the same parameters: a count, tokens, a text."""
        data = plain(value, "exact", name)
        self._change(lambda record: {"exact": {**record.exact, name: data}})

    def measure(
        self, name: str, unit: str, values: Sequence[float] | float, interval: Interval | None = None
    ) -> Measured:
        """Record each repeat of a quantity, in `unit`. Default `interval`: the mean's."""
        numbers = _numbers(values, "measured", name)
        summary = interval or experiments.interval(numbers, seed=self.record.seed)
        item = _measured(name, unit, numbers, summary)
        self._change(lambda record: {"measured": _replaced(record.measured, item)})
        return item

    def ratio(self, ratio: Ratio, *, tolerance: float) -> Measured:
        """Record a paired ratio. Two runs agree on it if neither is more than (1 + tolerance) times the other."""
        if not ratio.name:
            raise UsageError("a ratio without a name cannot be compared later", remedy="paired_ratio(..., name='...')")
        if not tolerance > 0:
            raise UsageError(f"the tolerance of {ratio.name} is {tolerance}", remedy="pass 0.25 for a factor of 1.25")
        item = _measured(ratio.name, "x", _numbers(ratio.values, "measured", ratio.name), ratio, tolerance=tolerance)
        self._change(lambda record: {"measured": _replaced(record.measured, item)})
        if ratio.warning:
            self.warn(ratio.warning)
        return item

    def evidence(self, claim_id: str, value: Evidence | None = None, **more: Evidence | None) -> None:
        """Add evidence on a claim, by the names that its rule needs.

        A Ratio or Interval becomes three names: evidence("C01", static=ratio) records static_value, static_low and
        static_high; as `value` it records value, low and high.
        """
        if not CLAIM_ID.fullmatch(claim_id):
            raise UsageError(f"{claim_id!r} is not a claim's id", remedy="use C01 to C65: `labkit claims` lists them")
        evidence = {
            name: number
            for key, item in {"value": value, **more}.items()
            for name, number in _named(key, item, claim_id).items()
        }
        cell = display.cell_number()
        cells = {} if cell is None else {claim_id: cell}
        self._change(
            lambda record: {
                "claims": record.claims | {claim_id: record.claims.get(claim_id, {}) | evidence},
                "cells": record.cells | cells,
            }
        )

    def prediction(self, prediction: Mapping[str, Any]) -> None:
        """Record a prediction in place of an earlier one with the same "id", unless that had another guess: a later one
        knows the result."""
        data = _plain_dict(prediction, "predictions")
        name = data.get("id")
        if not isinstance(name, str):
            raise UsageError(f"the prediction's id is {name!r}", remedy='give it one: {"id": "speed-up", ...}')

        def replaced(record: Record) -> dict[str, Any]:
            before = next((item for item in record.predictions if item.get("id") == name), {})
            if before.get("guess") not in (None, data.get("guess")):
                return {}
            own = {key: before[key] for key in ("guess", "confidence", "source") if key in before}
            item = data | (own if before.get("guess") is not None else {})
            return {"predictions": (*(item for item in record.predictions if item.get("id") != name), item)}

        self._change(replaced)

    def exercise(self, exercise_id: str, *, passed: bool, misconceptions: Sequence[str] = ()) -> None:
        """Add a judged answer to an exercise; an exercise that was passed stays passed."""
        attempt = Attempts(passed=passed, tries=1, misconceptions=tuple(dict.fromkeys(misconceptions)))

        def added(record: Record) -> dict[str, Any]:
            before = record.exercises.get(exercise_id)
            return {"exercises": {**record.exercises, exercise_id: before.joined(attempt) if before else attempt}}

        self._change(added)

    def chart(self, name: str, spec: Mapping[str, Any], *, key: bool = False) -> None:
        """Record a chart as its Vega-Lite specification, data included. `key`: it belongs in the report."""
        item = Chart(name=name, key=key, spec=_plain_dict(spec, "charts"))
        self._change(lambda record: {"charts": _replaced(record.charts, item)})

    def warn(self, text: str) -> None:
        """Record a warning, once."""
        self._change(lambda record: {"warnings": tuple(dict.fromkeys((*record.warnings, text)))})

    def save(self, status: Status) -> None:
        """Set the status and write the record. "done" and "failed" also set the end."""
        ended = None if status == "running" else datetime.now(UTC)
        self._change(lambda _: {"status": status, "ended": ended})

    def _change(self, change: Callable[[Record], dict[str, Any]]) -> None:
        with self._lock:
            self.record = self.record.model_copy(update=change(self.record))
            write_model(self.path, self.record)


def _folder(out_dir: Path) -> Path:
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "choose another folder (--out DIR)"
        raise RecordError(f"{out_dir} cannot be created: {reason}", remedy=remedy) from error
    return out_dir


def _plain_dict(value: Mapping[str, Any], where: str) -> dict[str, JsonValue]:
    data = plain(value, where)
    if not isinstance(data, dict):
        raise UsageError(f"{where} is {type(value).__name__}, not a dict", remedy="pass names and values")
    return data


def _numbers(values: Sequence[float] | float, *steps: str) -> tuple[float, ...]:
    data = plain(values, *steps)
    items = data if isinstance(data, list) else [data]
    if not items:
        raise UsageError(f"{'.'.join(steps)} has 0 values", remedy="measure at least once")
    return tuple(_number(item, *steps, index) for index, item in enumerate(items))


def _number(value: JsonValue, *steps: str | int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{position(*steps)} is {value!r}, not a number", remedy="record text with exact()")
    return float(value)


def _measured(
    name: str, unit: str, values: tuple[float, ...], summary: Ratio | Interval, *, tolerance: float | None = None
) -> Measured:
    value, low, high = _numbers([summary.value, summary.low, summary.high], "measured", name, "interval")
    return Measured(name=name, unit=unit, values=values, value=value, low=low, high=high, tolerance=tolerance)


def _named(key: str, item: Evidence | None, claim_id: str) -> dict[str, Scalar]:
    """Return a piece of evidence as names and scalars; {} for None."""
    if isinstance(item, Ratio | Interval):
        prefix = "" if key == "value" else f"{key}_"
        bounds = {"value": item.value, "low": item.low, "high": item.high}
        return {f"{prefix}{name}": _number(plain(x, claim_id, key), claim_id, key) for name, x in bounds.items()}
    data = plain(item, "claims", claim_id, key)
    if data is None:
        return {}
    if isinstance(data, list | dict):
        raise UsageError(f"claims.{claim_id}.{key} is a {type(item).__name__}", remedy="record numbers and texts")
    return {key: data}


def _replaced(items: tuple[Named, ...], item: Named) -> tuple[Named, ...]:
    """Return `items` with `item` replacing the one of the same name, or added."""
    return tuple(({other.name: other for other in items} | {item.name: item}).values())
