"""Show the whole ledger: every claim, what sources say, the verdict measured here and the one recorded elsewhere."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from labkit import display
from labkit.files import runs_path
from labkit.labs import LABS
from labkit.records.ledger import Row, ledger
from labkit.records.record import newest
from labkit.records.reference import Reference, reference_for

NOT_YET = "not measured yet"
SECTIONS = {
    "performance": "Performance",
    "configuration": "Configuration",
    "api": "Programming interfaces",
    "status": "State of the projects",
    "prices": "Prices",
}
COLOURS = {"supported": "#00694b", "refuted": "#a33a00", "depends": "#6b5200"}
SMALL = "color:#566373;font-size:.9em"


def show(out_dir: Path, *, machine: Mapping[str, Any]) -> list[Row]:
    """Show all claims by section, with the newest evidence of this run or, in a notebook, of all runs; return rows.

    The page also has the verdicts recorded on the reference machine nearest to `machine` (a record's facts).
    """
    here = ledger(newest_records(out_dir))
    reference = reference_for(machine)
    recorded = ledger(reference.records.values()) if reference else here
    display.show({"text/plain": as_text(here, recorded, reference), "text/html": as_html(here, recorded, reference)})
    return here


def newest_records(out_dir: Path) -> list[Any]:
    """Return the newest finished record of each lab in `out_dir`, or in all runs if it is a notebook's folder."""
    interactive = runs_path() / "notebook" in out_dir.resolve().parents
    return list(newest(runs_path() if interactive else out_dir).values())


def as_text(here: Sequence[Row], recorded: Sequence[Row], reference: Reference | None) -> str:
    """Return one line for each claim, below a summary."""
    lines = [_summary(here, recorded, reference)]
    for row, other in zip(here, recorded, strict=True):
        verdict = f"; recorded: {other.verdict}" if reference and other.measured else ""
        lines.append(f"{row.id} sources: {row.literature}; here: {_verdict(row)}{verdict}. {row.short}")
    return "\n".join(lines)


def as_html(here: Sequence[Row], recorded: Sequence[Row], reference: Reference | None) -> str:
    """Return a folded table for each section, below a summary."""
    heads = ("", "The article says", "Sources say", "Here", *(["Recorded"] if reference else []))
    parts = [f"<p>{escape(_summary(here, recorded, reference))}</p>"]
    for section, title in SECTIONS.items():
        pairs = [(row, other) for row, other in zip(here, recorded, strict=True) if row.section == section]
        summary = f"{title}: {len(pairs)} claims, {sum(row.measured for row, _ in pairs)} measured here"
        parts.append(display.folded(summary, display.html_table(heads, (_cells(row, other) for row, other in pairs))))
    return "".join(parts)


def _summary(here: Sequence[Row], recorded: Sequence[Row], reference: Reference | None) -> str:
    text = f"{len(here)} claims. Here: {_counted(here)}."
    return text if reference is None else f"{text} Recorded ({reference.place}): {_counted(recorded)}."


def _counted(rows: Sequence[Row]) -> str:
    counted = Counter(row.verdict for row in rows if row.measured)
    return ", ".join(f"{n} {verdict}" for verdict, n in counted.most_common()) or NOT_YET


def _cells(row: Row, other: Row) -> list[str]:
    figure = f" <b>({escape(row.article_figure)})</b>" if row.article_figure else ""
    here = [_coloured(_verdict(row))]
    if row.measured:
        here += [_small(row.because), _small(f"{shown_in(row)}, {str(row.date)[:10]}, {row.machine}")]
    elif row.labs and row.settled_by != "text":
        here.append(_small(shown_in(row)))
    recorded = [_coloured(other.verdict), _small(other.because)] if other.measured else [_small("nothing recorded")]
    claim = [f"<b>{row.id}</b>", escape(row.short) + figure, escape(row.literature)]
    return [*claim, "<br>".join(here), "<br>".join(recorded)]


def _coloured(verdict: str) -> str:
    return f"<b style='color:{COLOURS.get(verdict, '#566373')}'>{escape(verdict)}</b>"


def _small(text: str) -> str:
    return f"<span style='{SMALL}'>{escape(text)}</span>"


def _verdict(row: Row) -> str:
    if row.measured:
        return row.verdict
    return {"text": "only sources can decide", "gpu": "it needs a GPU"}.get(row.settled_by, NOT_YET)


def shown_in(row: Row) -> str:
    """Return a claim's lab, and the cell if its record has one: "lab 01 A first deployment, cell 13"."""
    lab = row.lab or ""
    title = f"lab {LABS[lab].heading}" if lab in LABS else lab
    return title if row.cell is None else f"{title}, cell {row.cell}"
