"""A run in words: everything that the report's template shows, computed from the records."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labkit import teaching
from labkit.charts.render import chart_svg
from labkit.errors import LabkitError
from labkit.experiments import mixed_machines
from labkit.labs import LABS
from labkit.records import Chart, LabRun, Measured, Record
from labkit.records.ledger import Row, ledger
from labkit.records.ledger_page import shown_in
from labkit.records.reference import beside_recorded, reference_beside, reference_for
from labkit.report.data import RunData
from labkit.teaching.predictions import TOLERANCE
from labkit.words import amount, clock, number, off_by, share, span

LONGEST = 3
WORTH_TELLING_S = 1.0


def times(data: RunData) -> dict[str, Any]:
    """The table of times: each lab with its seconds, its share of the bar, what was planned, and its longest cells.

    `total` is the labs' sum; `rest` what the run took besides (the report, waiting), where run.json tells.
    """
    timed = [(lab.name, lab.seconds) for lab in data.labs if lab.seconds is not None]
    total = sum(seconds for _, seconds in timed)
    most = max((seconds for _, seconds in timed), default=0.0)
    return {
        "rows": [_row(data.folder, name, seconds, most) for name, seconds in timed],
        "total": clock(total),
        "whole": _whole(data),
    }


def _row(folder: Path, name: str, seconds: float, most: float) -> dict[str, Any]:
    return {
        "lab": f"{name[:2]} {LABS[name].title}" if name in LABS else name,
        "time": clock(seconds),
        "planned": clock(60 * LABS[name].minutes) if name in LABS else "",
        "share": round(100 * seconds / most) if most else 0,
        "cells": [
            {"time": clock(spent), "cell": number, "line": line}
            for spent, number, line in longest_cells(folder / f"{name}.ipynb")
        ],
    }


def _whole(data: RunData) -> str:
    if data.info is None or data.info.ended is None:
        return ""
    return clock((data.info.ended - data.info.started).total_seconds())


def longest_cells(notebook: Path, *, most: int = LONGEST) -> list[tuple[float, int, str]]:
    """(seconds, number, first line) of the cells that took longest, numbered as Jupyter does; [] without a notebook."""
    found = sorted(_timed_cells(notebook), reverse=True)
    return [one for one in found if one[0] >= WORTH_TELLING_S][:most]


def _timed_cells(notebook: Path) -> Iterator[tuple[float, int, str]]:
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for cell in cells:
        spent = cell.get("metadata", {}).get("papermill", {}).get("duration")
        lines = [line for line in "".join(cell.get("source", [])).splitlines() if _says_something(line)]
        if isinstance(spent, int | float) and cell.get("cell_type") == "code" and lines:
            yield float(spent), int(cell.get("execution_count") or 0), lines[0].strip()


def _says_something(line: str) -> bool:
    """Neither empty, nor a comment, nor an import: the first line that does something."""
    return bool(line.strip()) and not line.lstrip().startswith(("#", "import ", "from "))


# --- report recorded ---


def provenance(data: RunData) -> str:
    """What the diamonds and the figures called recorded are from; empty where nothing recorded is shown."""
    found = {found.provenance for record in data.records.values() if (found := reference_beside(record))}
    return "; ".join(sorted(found))


def recorded_verdicts(data: RunData) -> dict[str, str]:
    """By claim, what a recorded run's evidence says; nothing for the recorded run itself."""
    machine = data.described.machine if data.described else {}
    reference = reference_for(machine)
    if reference is None or any(reference_beside(record) is None for record in data.records.values()):
        return {}
    return {row.id: row.verdict for row in ledger(reference.records.values()) if row.measured}


# --- a run in words: everything that the report's template shows, computed from the records ---


GIB = 2**30
KEY_FIGURES = 5
LOG_LINES = 25
FEW_PREDICTIONS = 10
SCALE_ENDS = 8  # a guess further off than this factor is drawn as an arrow at the end
MARKS = {"done": "good", "failed": "bad", "skipped": "none", "waiting": "none", "running": "mid"}
VERDICTS = {"supported": "good", "refuted": "bad", "depends": "mid"}
HITS = {True: "good", False: "bad", None: "none"}


def view(data: RunData) -> dict[str, Any]:
    """Everything that the template shows, in words."""
    labs = [{**lab, "charts": _charts(data.records.get(lab["name"]))} for lab in lab_views(data)]
    predictions = [one for record in data.records.values() for one in record.predictions]
    claims, claims_error = _claims(data)
    warnings = list(_warnings(data))
    return {
        "title": _title(data),
        "subtitle": _subtitle(data),
        "tiles": list(_tiles(data, predictions, claims, len(warnings))),
        "failures": [*_failures(data), *_broken({**data.broken, "claims": claims_error})],
        "labs": labs,
        "charts": any(lab["charts"] for lab in labs),
        "predictions": [_prediction_view(r, p) for r in data.records.values() for p in r.predictions],
        "calibration": _calibration(predictions),
        "scale_ends": SCALE_ENDS,
        "tested": [claim for claim in claims if claim["tested"]],
        "untested": [claim for claim in claims if not claim["tested"]],
        "times": times(data),
        "recorded": provenance(data),
        "warnings": warnings,
        "machine": list(_machine(data)),
        "versions": sorted(data.described.versions.items()) if data.described else [],
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def lab_views(data: RunData) -> list[dict[str, Any]]:
    """Each lab with its status, time, figures and parameters."""
    return [_lab_view(lab, data.records.get(lab.name)) for lab in data.labs]


def _lab_title(name: str) -> str:
    return f"{name[:2]} {LABS[name].title}" if name in LABS else name


def _title(data: RunData) -> str:
    described = data.described
    return f"What was measured on {described.machine_line}" if described else "A run that cannot be read"


def _subtitle(data: RunData) -> str:
    described = data.described
    if described is None:
        return str(data.folder)
    parts = [f"{described.started:%A, %d %B %Y, %H:%M} UTC"]
    if data.info:
        parts.append(f"profile {data.info.profile}")
    if described.ended:
        parts.append(f"{clock((described.ended - described.started).total_seconds())} min")
    return " · ".join(parts)


def _tiles(
    data: RunData, predictions: list[dict[str, Any]], claims: list[dict[str, Any]], warnings: int
) -> Iterable[dict[str, str]]:
    done = sum(lab.status == "done" for lab in data.labs)
    yield {"value": f"{done} of {len(data.labs)}", "label": "labs done"}
    yield {"value": str(sum(claim["tested"] for claim in claims)), "label": "claims tested here"}
    found = teaching.calibration(predictions)
    hits = sum(one.get("hit") is True for one in predictions)
    yield {
        "value": f"{hits} of {found.n}" if found.n else "none",
        "label": "predictions close" if found.n else "predicted",
    }
    yield {"value": str(warnings), "label": "warning" if warnings == 1 else "warnings"}


def _lab_view(lab: LabRun, record: Record | None) -> dict[str, Any]:
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


def _figure(item: Measured) -> dict[str, str]:
    return {
        "name": item.name.replace("_", " "),
        "value": amount(item.value, item.unit),
        "interval": span(item.low, item.high, item.unit) if len(item.values) > 1 else "",
        "repeats": str(len(item.values)),
    }


def _charts(record: Record | None) -> list[dict[str, Any]]:
    if record is None:
        return []
    drawn = ((chart, beside_recorded(record, chart.name, chart.spec)) for chart in record.charts)
    charts = (chart.model_copy(update={"spec": spec}) for chart, spec in drawn)
    return [_chart_view(chart, f"{record.lab}-{n}-") for n, chart in enumerate(charts)]


def _chart_view(chart: Chart, prefix: str) -> dict[str, Any]:
    from markupsafe import Markup

    shown: dict[str, Any] = {"key": chart.key, "caption": str(chart.spec.get("description") or chart.name)}
    try:
        return {**shown, "svg": Markup(chart_svg(chart.spec, prefix=prefix)), "message": ""}
    except LabkitError as error:
        return {**shown, "svg": None, "message": f"{chart.name}: {error}"}


def _plainly(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)


def _recorded(record: Record, prediction: Mapping[str, Any]) -> str:
    """What a recorded run found for this prediction; empty where none did."""
    reference = reference_beside(record)
    found = reference.prediction(record.lab, str(prediction.get("id"))) if reference else None
    if reference is None or found is None:
        return ""
    return f"{_quantity(found.get('measured'), found.get('unit'))} {reference.unlike(record)}".rstrip()


def _prediction_view(record: Record, prediction: Mapping[str, Any]) -> dict[str, Any]:
    unit, hit = prediction.get("unit"), prediction.get("hit")
    low, high, confidence = prediction.get("low"), prediction.get("high"), prediction.get("confidence")
    return {
        "lab": _lab_title(record.lab),
        "question": str(prediction.get("question", prediction.get("id", ""))).replace("`", ""),
        "guess": _quantity(prediction.get("guess"), unit) or "no guess",
        "confidence": "" if confidence is None else share(confidence),
        "measured": _quantity(prediction.get("measured"), unit) or "not measured",
        "interval": span(low, high, unit) if low is not None and high is not None else "",
        "recorded": _recorded(record, prediction),
        "outcome": _outcome(prediction, unit),
        "scale": _scale(prediction.get("guess"), prediction.get("measured")),
        "mark": HITS[hit],
    }


def _scale(guess: object, measured: object) -> dict[str, Any] | None:
    """The guess on a logarithmic line from -100 to 100 with the measurement at 0; None where a factor means nothing."""
    if not isinstance(guess, int | float) or not isinstance(measured, int | float) or guess <= 0 or measured <= 0:
        return None
    unit = 100 / math.log(SCALE_ENDS)
    at = math.log(guess / measured) * unit
    close = round(math.log(1 + TOLERANCE) * unit, 1)
    return {"at": round(max(-100.0, min(100.0, at)), 1), "close": close, "beyond": abs(at) > 100}


def _outcome(prediction: Mapping[str, Any], unit: str | None) -> str:
    guess, measured, hit = prediction.get("guess"), prediction.get("measured"), prediction.get("hit")
    if guess is None:
        return "no prediction"
    if hit is None or measured is None:
        return "not measured"
    if isinstance(guess, str) or isinstance(measured, str):
        return "right" if hit else "another one"
    return "close" if hit else off_by(guess, measured, unit)


def _quantity(value: object, unit: str | None) -> str:
    return amount(value, unit) if isinstance(value, int | float) else str(value or "")


def _calibration(predictions: list[dict[str, Any]]) -> str:
    found = teaching.calibration(predictions)
    if not 0 < found.n < FEW_PREDICTIONS:
        return found.sentence()
    return f"{found.sentence()} That few ({found.n}) tell little about how well calibrated anybody is."


def _claims(data: RunData) -> tuple[list[dict[str, Any]], str]:
    """The ledger's rows for this run, and the message where evidence cannot be judged."""
    try:
        there = recorded_verdicts(data)
        return [_claim_view(row, there.get(row.id, "")) for row in ledger(data.records.values())], ""
    except LabkitError as error:
        return [], str(error)


def _claim_view(row: Row, recorded: str) -> dict[str, Any]:
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


def _failures(data: RunData) -> Iterable[dict[str, str]]:
    for lab in data.labs:
        if lab.status == "failed":
            log = data.folder / "logs" / f"{lab.name}.log"
            shown = f"logs/{log.name}" if log.exists() else ""
            yield {
                "lab": _lab_title(lab.name),
                "error": lab.error or "it ended before it was complete",
                "tail": _tail(log),
                "log": shown,
            }


def _broken(messages: Mapping[str, str]) -> Iterable[dict[str, str]]:
    """What could not be read, each with its message."""
    for name, message in messages.items():
        if message:
            yield {"lab": name, "error": message, "tail": "", "log": ""}


def _tail(log: Path) -> str:
    if not log.exists():
        return ""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])


def _warnings(data: RunData) -> Iterable[dict[str, str]]:
    mixed = mixed_machines({lab: record.machine_line for lab, record in data.records.items()})
    if mixed is not None:
        yield {"lab": "all", "text": str(mixed)}
    for record in data.records.values():
        yield from ({"lab": _lab_title(record.lab), "text": text} for text in record.warnings)
    for lab in data.labs:
        if lab.status in ("skipped", "waiting"):
            yield {"lab": _lab_title(lab.name), "text": f"did not run: {lab.error or 'the run was stopped before'}"}


def _machine(data: RunData) -> Iterable[tuple[str, str]]:
    described = data.described
    if described is None:
        return
    facts = described.machine
    yield "CPU", f"{facts.get('cpus', 'unknown')} usable ({facts.get('cpu_model', 'unknown')})"
    total = facts.get("memory_total_bytes")
    if isinstance(total, int):
        yield "Memory", f"{number(total / GIB)} GiB"
    yield "GPU", _gpus(facts)
    yield "System", str(facts.get("os", "unknown"))
    yield "Seed", str(described.seed)
    if data.info:
        yield "Profile", data.info.profile
        yield "Commit", data.info.git_commit or "unknown"


def _gpus(facts: Mapping[str, Any]) -> str:
    gpus = facts.get("gpus") or []
    if not gpus:
        return f"none ({facts.get('gpu_reason') or 'unknown'})"
    return ", ".join(f"{gpu.get('name')} ({number(gpu.get('memory_total_bytes', 0) / GIB)} GiB)" for gpu in gpus)
