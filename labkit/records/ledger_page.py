"""The whole ledger as one page: every claim, what sources say, what was found here and what was recorded elsewhere."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from labkit import display as showing
from labkit.files import notebooks_path, runs_path
from labkit.labs import LABS
from labkit.records import Record, newest
from labkit.records.ledger import Row, ledger
from labkit.records.reference import Reference, reference_for

NOT_YET = "not measured yet"
EVIDENCE = re.compile(r'\.evidence\(\s*"(C\d\d)"')
SECTIONS = {
    "performance": "Performance",
    "configuration": "Configuration",
    "api": "Programming interfaces",
    "status": "State of the projects",
    "prices": "Prices",
}
HEADS = ("", "The article says", "Sources say", "Here", "Recorded")
COLOURS = {"supported": "#00694b", "refuted": "#a33a00", "depends": "#6b5200"}
CELL = "text-align:left;vertical-align:top;white-space:normal"
SMALL = "color:#566373;font-size:.9em"


def show(out_dir: Path, *, machine: Mapping[str, Any]) -> list[Row]:
    """Shows all claims by section, with the newest evidence of this run or, in a notebook, of all runs; returns it.

    Beside it stands what was recorded on the reference machine that is nearest to `machine` (a record's facts).
    """
    here = ledger(newest_records(out_dir))
    recorded = reference_for(machine)
    there = ledger(recorded.records.values()) if recorded else here
    showing.show({"text/plain": as_text(here, there, recorded), "text/html": as_html(here, there, recorded)})
    return here


def newest_records(out_dir: Path) -> list[Record]:
    """The newest finished record of each lab: of the run in `out_dir`, or of all runs for a notebook's own folder."""
    interactive = runs_path() / "notebook" in out_dir.resolve().parents
    return list(newest(runs_path() if interactive else out_dir).values())


def as_text(here: Sequence[Row], there: Sequence[Row], recorded: Reference | None) -> str:
    """One line a claim."""
    lines = [_summary(here, there, recorded)]
    for row, other in zip(here, there, strict=True):
        told = f"; recorded: {other.verdict}" if recorded and other.measured else ""
        lines.append(f"{row.id} sources: {row.literature}; here: {_verdict(row)}{told}. {row.short}")
    return "\n".join(lines)


def as_html(here: Sequence[Row], there: Sequence[Row], recorded: Reference | None) -> str:
    """A folded table for each section, below a summary."""
    parts = [f"<p>{escape(_summary(here, there, recorded))}</p>"]
    for section, title in SECTIONS.items():
        pairs = [(row, other) for row, other in zip(here, there, strict=True) if row.section == section]
        found = sum(row.measured for row, _ in pairs)
        summary = f"{title}: {len(pairs)} claims, {found} measured here"
        parts.append(showing.folded(summary, _table(pairs, with_recorded=recorded is not None)))
    return "".join(parts)


def _summary(here: Sequence[Row], there: Sequence[Row], recorded: Reference | None) -> str:
    text = f"{len(here)} claims. Here: {_counted(here)}."
    return text if recorded is None else f"{text} Recorded ({recorded.place}): {_counted(there)}."


def _counted(rows: Sequence[Row]) -> str:
    counted = Counter(row.verdict for row in rows if row.measured)
    return ", ".join(f"{n} {verdict}" for verdict, n in counted.most_common()) or NOT_YET


def _table(pairs: Iterable[tuple[Row, Row]], *, with_recorded: bool) -> str:
    heads = HEADS if with_recorded else HEADS[:-1]
    head = "".join(f"<th style='{CELL}'>{name}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(_cells(row, other)[: len(heads)])}</tr>" for row, other in pairs)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cells(row: Row, other: Row) -> list[str]:
    figure = f" <b>({escape(row.article_figure)})</b>" if row.article_figure else ""
    here = [_coloured(_verdict(row)), _small(row.because if row.measured else _where(row))]
    if row.measured:
        here.append(_small(f"{shown_in(row.lab or '', row.id)}, {str(row.date)[:10]}, {row.machine}"))
    recorded = [_coloured(other.verdict), _small(other.because)] if other.measured else [_small("nothing recorded")]
    cells = [f"<b>{row.id}</b>", escape(row.short) + figure, escape(row.literature), "<br>".join(here)]
    return [f"<td style='{CELL}'>{cell}</td>" for cell in [*cells, "<br>".join(recorded)]]


def _coloured(verdict: str) -> str:
    return f"<b style='color:{COLOURS.get(verdict, '#566373')}'>{escape(verdict)}</b>"


def _small(text: str) -> str:
    return f"<span style='{SMALL}'>{escape(text)}</span>" if text else ""


def _verdict(row: Row) -> str:
    if row.measured:
        return row.verdict
    return {"text": "only sources can tell", "gpu": "it takes a GPU"}.get(row.settled_by, NOT_YET)


def _where(row: Row) -> str:
    """Where to find out: the lab and its cell."""
    return shown_in(row.labs[0], row.id) if row.labs and row.settled_by != "text" else ""


def shown_in(lab: str, claim_id: str) -> str:
    """The lab and the cell that records the evidence on a claim: "lab 01 A first deployment, cell 13"."""
    title = f"lab {lab[:2]} {LABS[lab].title}" if lab in LABS else lab
    cell = _evidence_cells(lab).get(claim_id)
    return title if cell is None else f"{title}, cell {cell}"


@cache
def _evidence_cells(lab: str) -> dict[str, int]:
    """By claim, the last cell of a stored notebook that records evidence on it, as Jupyter numbers executed cells."""
    path = notebooks_path() / f"{lab}.ipynb"
    if not path.is_file():
        return {}
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    counted = [(cell.get("execution_count"), "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
    return {claim: number for number, text in counted if number for claim in EVIDENCE.findall(text)}
