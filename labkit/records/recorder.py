"""Writes a record while its lab runs: saved after each addition, so that a killed lab keeps what it had."""

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
from labkit.experiments import Caution, Interval, Ratio
from labkit.files import position, remove_leftovers, write_model
from labkit.records.record import RUN_FILE, Attempts, Chart, Measured, Record, Scalar, Status, plain

CLAIM_ID = re.compile(r"C\d{2}")
LAB_NAME = re.compile(r"[A-Za-z0-9][\w-]*")

Named = TypeVar("Named", Measured, Chart)
Evidence = bool | int | float | str | Ratio | Interval


class Recorder:
    """The record of one lab in progress: `record` is its present state, and `path` holds the same on disk.

    A name that is recorded again replaces what it held: a notebook's cell may be run twice. Threads may share a
    recorder. Every method may raise UsageError (a value that JSON lacks, with its position) or RecordError (the file
    cannot be written).
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
        """Start the record with the status "running", in place of one that an earlier run left at its path."""
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
            seed=int(seed),  # numpy counts too
            started=datetime.now(UTC),
        )
        self._lock = threading.Lock()
        self.save("running")

    def exact(self, name: str, value: Any) -> None:
        """Record what is the same, bit by bit, in every run of the same parameters: counts, tokens, texts."""
        held = plain(value, "exact", name)
        self._change(lambda record: {"exact": {**record.exact, name: held}})

    def measure(
        self, name: str, unit: str, values: Sequence[float] | float, interval: Interval | None = None
    ) -> Measured:
        """Record each repeat of a quantity, in `unit`. Without an `interval`, that of the mean is computed."""
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
        """Add evidence on a claim of the ledger, by the names that its rule needs, to what is there already.

        A Ratio or Interval becomes three names: evidence("C01", static=ratio) gives static_value, static_low and
        static_high; as `value` it gives value, low and high.
        """
        if not CLAIM_ID.fullmatch(claim_id):
            raise UsageError(f"{claim_id!r} is not a claim's id", remedy="use C01 to C65: `labkit claims` lists them")
        found = {
            name: number
            for key, item in {"value": value, **more}.items()
            for name, number in _named(key, item, claim_id).items()
        }
        cell = display.cell_number()
        cells = {} if cell is None else {claim_id: cell}
        self._change(
            lambda record: {
                "claims": record.claims | {claim_id: record.claims.get(claim_id, {}) | found},
                "cells": record.cells | cells,
            }
        )

    def prediction(self, prediction: Mapping[str, Any]) -> None:
        """Record what a learner predicted; `prediction` has an "id", and may grow by what was measured."""
        held = _plain_dict(prediction, "predictions")
        name = held.get("id")
        if not isinstance(name, str):
            raise UsageError(f"the prediction's id is {name!r}", remedy='give it one: {"id": "speed-up", ...}')
        self._change(lambda record: {"predictions": (*_without(record.predictions, name), held)})

    def exercise(self, exercise_id: str, *, passed: bool, misconceptions: Sequence[str] = ()) -> None:
        """Add one judged answer to what is known of an exercise; what was passed once stays passed."""

        def added(record: Record) -> dict[str, Any]:
            before = record.exercises.get(exercise_id)
            now = Attempts(
                passed=passed or (before is not None and before.passed),
                tries=(before.tries if before else 0) + 1,
                misconceptions=tuple(dict.fromkeys((*(before.misconceptions if before else ()), *misconceptions))),
            )
            return {"exercises": {**record.exercises, exercise_id: now}}

        self._change(added)

    def chart(self, name: str, spec: Mapping[str, Any], *, key: bool = False) -> None:
        """Record a chart as its Vega-Lite specification, data included. `key`: it belongs in the report."""
        item = Chart(name=name, key=key, spec=_plain_dict(spec, "charts"))
        self._change(lambda record: {"charts": _replaced(record.charts, item)})

    def warn(self, text: str | Caution) -> None:
        """Record a warning, once."""
        self._change(lambda record: {"warnings": tuple(dict.fromkeys((*record.warnings, str(text))))})

    def save(self, status: Status) -> None:
        """Set the status and write the record. "done" and "failed" note the end."""
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
        raise RecordError(f"{out_dir} cannot be made: {reason}", remedy="choose another folder (--out DIR)") from error
    return out_dir


def _plain_dict(value: Mapping[str, Any], where: str) -> dict[str, JsonValue]:
    held = plain(value, where)
    if not isinstance(held, dict):
        raise UsageError(f"{where} is {type(value).__name__}, not a dict", remedy="pass names and values")
    return held


def _numbers(values: Sequence[float] | float, *steps: str) -> tuple[float, ...]:
    held = plain(values, *steps)
    items = held if isinstance(held, list) else [held]
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
    """One piece of evidence as names and scalars; nothing for None."""
    if isinstance(item, Ratio | Interval):
        prefix = "" if key == "value" else f"{key}_"
        bounds = {"value": item.value, "low": item.low, "high": item.high}
        return {f"{prefix}{name}": _number(plain(x, claim_id, key), claim_id, key) for name, x in bounds.items()}
    held = plain(item, "claims", claim_id, key)
    if held is None:
        return {}
    if isinstance(held, list | dict):
        raise UsageError(f"claims.{claim_id}.{key} is a {type(item).__name__}", remedy="evidence is numbers and texts")
    return {key: held}


def _replaced(items: tuple[Named, ...], item: Named) -> tuple[Named, ...]:
    """`items` with `item` in the place of the one of its name, or at the end."""
    by_name = {other.name: other for other in items} | {item.name: item}
    return tuple(by_name.values())


def _without(predictions: tuple[dict[str, JsonValue], ...], name: str) -> list[dict[str, JsonValue]]:
    return [prediction for prediction in predictions if prediction.get("id") != name]
