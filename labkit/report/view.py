"""Compute everything that the report's template shows from the records."""

import json
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labkit import teaching
from labkit.charts.render import chart_svg
from labkit.errors import LabkitError
from labkit.experiments import mixed_machines
from labkit.labs import LABS
from labkit.records import Attempts, Chart, LabRun, Measured, Record
from labkit.records.ledger import Row, ledger
from labkit.records.ledger_page import shown_in
from labkit.records.reference import beside_recorded, reference_beside, reference_for
from labkit.report.data import RunData
from labkit.teaching.predictions import TOLERANCE
from labkit.words import amount, clock, number, off_by, share, span

GIB = 2**30
KEY_FIGURES = 5
LOG_LINES = 25
LONGEST_CELLS, SHORTEST_SHOWN_S = 3, 1.0
FEW_PREDICTIONS = 10
SCALE_ENDS = 8  # guesses that are off by more than this factor are drawn as an arrow
MARKS = {"done": "good", "failed": "bad", "skipped": "none", "waiting": "none", "running": "mid"}
VERDICTS = {"supported": "good", "refuted": "bad", "depends": "mid"}
HITS = {True: "good", False: "bad", None: "none"}
UNITS, TERMS = {"s", "ms", "mb"}, {"ttft": "TTFT", "vllm": "vLLM"}  # words of a figure's name
View = dict[str, Any]


def view(data: RunData) -> View:
    """Return everything that the template shows."""
    described = data.described
    charts = {
        lab: [_chart(record, chart, f"{lab}-{n}-") for n, chart in enumerate(record.charts)]
        for lab, record in data.records.items()
    }
    labs = [{**lab, "charts": charts.get(lab["name"], [])} for lab in lab_views(data)]
    predictions = [prediction for record in data.records.values() for prediction in record.predictions]
    claims, claims_error = _claims(data)
    warnings = list(_warnings(data))
    references = [reference_beside(record) for record in data.records.values()]
    return {
        "title": f"What was measured on {described.machine_line}" if described else "A run that cannot be read",
        "subtitle": _subtitle(data),
        "tiles": _tiles(data, predictions, claims, len(warnings)),
        "failures": list(_failures(data, claims_error)),
        "labs": labs,
        "charts": any(lab["charts"] for lab in labs),
        "predictions": [_prediction(r, p) for r in data.records.values() for p in r.predictions],
        "calibration": _calibration(predictions),
        "buckets": [bucket.cells() for bucket in teaching.calibration(predictions).buckets],
        "exercises": [_exercise(*item) for record in data.records.values() for item in record.exercises.items()],
        "scale_ends": SCALE_ENDS,
        "tested": [claim for claim in claims if claim["tested"]],
        "untested": [claim for claim in claims if not claim["tested"]],
        "times": times(data),
        "recorded": "; ".join(sorted({reference.provenance for reference in references if reference})),
        "warnings": warnings,
        "machine": list(_machine(data)),
        "versions": sorted(described.versions.items()) if described else [],
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def _subtitle(data: RunData) -> str:
    described = data.described
    if described is None:
        return str(data.folder)
    days = sorted({f"{started:%Y-%m-%d}": f"{started:%A, %d %B %Y}" for started in data.starts}.items())
    when = f"{described.started:%A, %d %B %Y, %H:%M} UTC" if len(days) < 2 else f"{days[0][1]} to {days[-1][1]}"
    parts = [when]
    if data.info:
        parts.append(f"profile {data.info.profile}")
    if described.ended and data.is_one_run:
        parts.append(f"{clock((described.ended - described.started).total_seconds())} min")
    return " · ".join(parts)


def _tiles(data: RunData, predictions: list[View], claims: list[View], warnings: int) -> list[View]:
    done = sum(lab.status == "done" for lab in data.labs)
    tested = sum(claim["tested"] for claim in claims)
    judged = teaching.calibration(predictions).n
    hits = f"{sum(prediction.get('hit') is True for prediction in predictions)} of {judged}"
    return [
        {"value": f"{done} of {len(data.labs)}", "label": "labs done"},
        {"value": tested, "label": "claims tested here"},
        {"value": hits if judged else "none", "label": "predictions close" if judged else "predicted"},
        {"value": warnings, "label": "warning" if warnings == 1 else "warnings"},
    ]


def lab_views(data: RunData) -> list[View]:
    """Return each lab with its status, time, figures and parameters."""
    return [_lab_view(lab, data.records.get(lab.name)) for lab in data.labs]


def _lab_view(lab: LabRun, record: Record | None) -> View:
    measured = sorted(record.measured, key=lambda item: item.tolerance is None) if record else []
    figures = [_figure(item) for item in measured]
    return {
        "name": lab.name,
        "title": _lab_title(lab.name),
        "question": LABS[lab.name].question if lab.name in LABS else "",
        "status": lab.status,
        "mark": MARKS[lab.status],
        "duration": "" if lab.seconds is None else clock(lab.seconds),
        "figures": figures[:KEY_FIGURES],
        "more_figures": figures if len(figures) > KEY_FIGURES else [],
        "parameters": [(name, _plainly(value)) for name, value in record.parameters.items()] if record else [],
    }


def _lab_title(name: str) -> str:
    return LABS[name].heading if name in LABS else name


def _plainly(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)


def _figure(item: Measured) -> View:
    words = item.name.replace("_", " ").split()
    words = [TERMS.get(word, word) for word in words if word not in UNITS]  # the value has its unit
    return {
        "name": " ".join(words),
        "value": amount(item.value, item.unit),
        "interval": span(item.low, item.high, item.unit) if len(item.values) > 1 else "",
        "repeats": str(len(item.values)),
    }


def _chart(record: Record, chart: Chart, prefix: str) -> View:
    from markupsafe import Markup

    spec = beside_recorded(record, chart.name, chart.spec)
    shown = {"key": chart.key, "caption": str(spec.get("description") or chart.name)}
    try:
        return {**shown, "svg": Markup(chart_svg(spec, prefix=prefix)), "message": ""}
    except LabkitError as error:
        return {**shown, "svg": None, "message": f"{chart.name}: {error}"}


def _prediction(record: Record, prediction: Mapping[str, Any]) -> View:
    unit, guess, measured = (prediction.get(key) for key in ("unit", "guess", "measured"))
    low, high, confidence = (prediction.get(key) for key in ("low", "high", "confidence"))
    return {
        "lab": _lab_title(record.lab),
        "question": str(prediction.get("question", prediction.get("id", ""))).replace("`", ""),
        "guess": _quantity(guess, unit) or "no guess",
        "confidence": "" if confidence is None else share(confidence),
        "measured": (_quantity(measured, unit) or "not measured") + _kind(str(prediction.get("modelled") or "")),
        "interval": span(low, high, unit) if low is not None and high is not None else "",
        "recorded": _recorded(record, prediction),
        "outcome": _outcome(prediction, unit),
        "scale": guess_scale(guess, measured),
        "mark": HITS[prediction.get("hit")],
    }


def _exercise(name: str, attempts: Attempts) -> View:
    known = teaching.exercises().get(name)
    outcome, tries = "passed" if attempts.passed else "not yet", "try" if attempts.tries == 1 else "tries"
    return {
        "name": f"{name.partition('.')[0]} {known.title}" if known else name,
        "outcome": f"{outcome} ({attempts.tries} {tries})",
        "mark": HITS[attempts.passed],
        "misconceptions": "; ".join(attempts.misconceptions),
    }


def _kind(modelled: str) -> str:
    """Return the label of a value that was not measured."""
    if not modelled:
        return ""
    return " (computed)" if modelled.startswith("Computed: ") else " (modelled)"


def _quantity(value: object, unit: str | None) -> str:
    return amount(value, unit) if isinstance(value, int | float) else str(value or "")


def _recorded(record: Record, prediction: Mapping[str, Any]) -> str:
    """Return the measurement of a recorded run with the same parameters, or ""."""
    reference = reference_beside(record)
    recorded = reference.comparable(record, str(prediction.get("id"))) if reference else None
    return _quantity(recorded.get("measured"), recorded.get("unit")) if recorded else ""


def _outcome(prediction: Mapping[str, Any], unit: str | None) -> str:
    guess, measured, hit = (prediction.get(key) for key in ("guess", "measured", "hit"))
    if guess is None:
        return "no prediction"
    if hit is None or measured is None:
        return "not measured"
    if isinstance(guess, str) or isinstance(measured, str):
        return "right" if hit else "wrong"
    return "close" if hit else off_by(guess, measured, unit)


def guess_scale(guess: object, measured: object) -> View | None:
    """Return the guess on a logarithmic line from -100 to 100, the measurement at 0; None if there is no factor."""
    if not isinstance(guess, int | float) or not isinstance(measured, int | float) or guess <= 0 or measured <= 0:
        return None
    unit = 100 / math.log(SCALE_ENDS)
    at = math.log(guess / measured) * unit
    close = round(math.log(1 + TOLERANCE) * unit, 1)
    return {"at": round(max(-100.0, min(100.0, at)), 1), "close": close, "beyond": abs(at) > 100}


def _calibration(predictions: list[View]) -> str:
    calibration = teaching.calibration(predictions)
    if not 0 < calibration.n < FEW_PREDICTIONS:
        return calibration.sentence()
    return f"{calibration.sentence()} {calibration.n} predictions are too few to judge calibration."


def _claims(data: RunData) -> tuple[list[View], str]:
    """Return the ledger's rows for this run, and a message if evidence cannot be judged."""
    try:
        recorded = _recorded_verdicts(data)
        return [_claim(row, recorded.get(row.id, "")) for row in ledger(data.records.values())], ""
    except LabkitError as error:
        return [], str(error)


def _recorded_verdicts(data: RunData) -> dict[str, str]:
    """Return a recorded run's verdicts by claim; {} for the recorded run itself."""
    reference = reference_for(data.described.machine if data.described else {})
    if reference is None or any(reference_beside(record) is None for record in data.records.values()):
        return {}
    return {row.id: row.verdict for row in ledger(reference.records.values()) if row.measured}


def _claim(row: Row, recorded: str) -> View:
    return {
        "id": row.id,
        "short": row.short,
        "article_figure": row.article_figure or "",
        "literature": row.literature,
        "verdict": row.verdict,
        "because": " ".join([row.because, *row.notes]),
        "lab": shown_in(row).removeprefix("lab ") if row.lab else "",
        "date": str(row.date or "")[:10],
        "recorded": recorded,
        "mark": VERDICTS.get(row.verdict, "none"),
        "tested": row.measured,
    }


def times(data: RunData) -> View:
    """Return the table of times: each lab with its time, its share of the bar, the planned time, and its longest cells.

    `total` is the labs' sum; `whole` is the run's time, if run.json has it.
    """
    timed = {lab.name: lab.seconds for lab in data.labs if lab.seconds is not None}
    most = max(timed.values(), default=0.0)
    rows = [
        {
            "lab": _lab_title(name),
            "time": clock(seconds),
            "planned": clock(60 * LABS[name].minutes) if name in LABS else "",
            "share": round(100 * seconds / most) if most else 0,
            "cells": [
                {"time": clock(spent), "cell": cell, "line": line}
                for spent, cell, line in longest_cells(data.folder / f"{name}.ipynb")
            ],
        }
        for name, seconds in timed.items()
    ]
    whole = ""
    if data.is_one_run and data.info and data.info.ended:
        whole = clock((data.info.ended - data.info.started).total_seconds())
    return {"rows": rows, "total": clock(sum(timed.values())), "whole": whole}


def longest_cells(notebook: Path) -> list[tuple[float, int, str]]:
    """Return (seconds, Jupyter's number, first line) of the longest cells; [] without a notebook."""
    cells = sorted(_timed_cells(notebook), reverse=True)
    return [cell for cell in cells if cell[0] >= SHORTEST_SHOWN_S][:LONGEST_CELLS]


def _timed_cells(notebook: Path) -> Iterator[tuple[float, int, str]]:
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for cell in cells:
        spent = cell.get("metadata", {}).get("papermill", {}).get("duration")
        lines = [line.strip() for line in "".join(cell.get("source", [])).splitlines()]
        statements = [line for line in lines if line and not line.startswith(("#", "import ", "from "))]
        if isinstance(spent, int | float) and cell.get("cell_type") == "code" and statements:
            yield float(spent), int(cell.get("execution_count") or 0), statements[0]


def _failures(data: RunData, claims_error: str) -> Iterator[View]:
    for lab in data.labs:
        if lab.status == "failed":
            log = data.folder / "logs" / f"{lab.name}.log"
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
            error = lab.error or "it ended early"
            place = {"log": f"logs/{log.name}" if log.exists() else "", "tail": "\n".join(lines[-LOG_LINES:])}
            yield {"lab": _lab_title(lab.name), "error": error, **place}
    done = [lab.name for lab in data.labs if lab.status == "done"]
    missing = {name: f"{name}.json is missing" for name in done if name not in {**data.records, **data.broken}}
    unreadable = {**data.broken, **missing, "claims": claims_error}
    yield from ({"lab": name, "error": text, "tail": "", "log": ""} for name, text in unreadable.items() if text)


def _warnings(data: RunData) -> Iterator[View]:
    mixed = mixed_machines({lab: record.machine_line for lab, record in data.records.items()})
    if mixed is not None:
        yield {"lab": "all", "text": mixed}
    for record in data.records.values():
        yield from ({"lab": _lab_title(record.lab), "text": text} for text in record.warnings)
    for lab in data.labs:
        if lab.status in ("skipped", "waiting"):
            yield {"lab": _lab_title(lab.name), "text": f"did not run: {lab.error or 'the run was stopped first'}"}


def _machine(data: RunData) -> Iterator[tuple[str, str]]:
    described = data.described
    if described is None:
        return
    facts: Mapping[str, Any] = described.machine
    yield "CPU", f"{facts.get('cpus', 'unknown')} usable ({facts.get('cpu_model', 'unknown')})"
    total = facts.get("memory_total_bytes")
    if isinstance(total, int):
        yield "Memory", f"{number(total / GIB)} GiB"
    gpus = [f"{g.get('name')} ({number(g.get('memory_total_bytes', 0) / GIB)} GiB)" for g in facts.get("gpus") or []]
    yield "GPU", ", ".join(gpus) or f"none ({facts.get('gpu_reason') or 'unknown'})"
    yield "System", str(facts.get("os", "unknown"))
    yield "Seed", str(described.seed)
    if data.info:
        yield "Profile", data.info.profile
        yield "Commit", ", ".join(filter(None, (data.info.git_commit, *data.info.earlier_commits))) or "unknown"
