"""Where a run's time went: lab by lab, and in each lab the cells that took longest, out of the executed notebooks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labkit.labs import LABS
from labkit.progress import clock
from labkit.report_data import RunData

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
