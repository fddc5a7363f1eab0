"""Runs a lab's first cells, up to the one that starts an engine, with one set of parameters after the other.

    python -m tests.notebooks.first_cells NOTEBOOK STOP OUT_DIR < parameters.json

One process for all sets, each with names of its own. Prints a line of JSON for each: the refusal, and which of HEAVY
have been imported by then. STOP is a text in the cell that is not run any more; empty: all cells are run.
"""

import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import nbformat

from labkit.errors import LabkitError
from tools import notebooks as tool

HEAVY = ("ray", "torch", "transformers", "ts", "vllm")


def first_cells(notebook: str, stop: str) -> list[Any]:
    """The code cells before the one with `stop`, which there has to be: the rest may start an engine."""
    cells = [cell for cell in nbformat.read(tool.NOTEBOOKS / notebook, as_version=4).cells if cell.cell_type == "code"]
    return cells[: next(n for n, cell in enumerate(cells) if stop in cell.source)] if stop else cells


def refusal_of(cells: list[Any], parameters: dict[str, Any]) -> str:
    """The refusal with which the cells end, or nothing. Any other error ends the process."""
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        with redirect_stdout(io.StringIO()):
            for cell in cells:
                exec(cell.source, names)
                if "parameters" in tool.tags(cell):
                    names |= parameters
    except LabkitError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    notebook, stop, out_dir = sys.argv[1:]
    lab_cells = first_cells(notebook, stop)
    for number, overrides in enumerate(json.load(sys.stdin)):
        refusal = refusal_of(lab_cells, {**overrides, "out_dir": str(Path(out_dir, str(number)))})
        print(json.dumps({"refusal": refusal, "imported": [name for name in HEAVY if name in sys.modules]}))
