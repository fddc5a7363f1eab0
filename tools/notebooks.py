"""Executes the notebooks and stores them so that a second run changes only what was measured; `--check` only reads.

    python tools/notebooks.py [NOTEBOOK ...] [--check]

A lab's cells carry a tag for each of its parts (TAGS); cells without one belong to the part above them. A code cell
that may show something else in another run, on another machine or in another profile is TIMED as well. `faults` says
what a stored notebook lacks; tests/notebooks holds every notebook to it, and every cell that is not TIMED to its stored
outputs.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nbformat

from labkit.records import write_atomic

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
TAGS = (
    "card",
    "recall",
    "parameters",
    "machine",
    "idea",
    "predict",
    "run",
    "reveal",
    "explain",
    "exercise",
    "verdict",
)
DEFAULTS = "defaults"  # the parameters that few learners change: folded, before the cell tagged parameters
TIMED = "timed"  # after the part's tag: what this cell shows is measured, or depends on the machine
MAX_BYTES = 600_000
A_TIME = "2026-11-24T08-00-00"  # the folders' times in stored outputs, whenever they were stored
RUN_TIME = re.compile(r"runs/notebook/\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d")
WIDGETS = "application/vnd.jupyter.widget-state+json"
MACHINE_PATHS = re.compile(r"/(?:home|Users)/[\w.-]+|/root\b|/tmp/\w+")


# --- storing ---


def store(path: Path, *, timeout_s: int = 1800) -> None:
    """Executes a notebook in its own folder and writes it back. A failing cell leaves the file as it was and raises.

    Its records go into a folder of their own, so that nothing that was measured here before changes what is stored.
    """
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(
        notebook, timeout=timeout_s, kernel_name="python3", record_timing=False, resources=resources
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as runs:
        client.execute(env={**os.environ, "LABKIT_RUNS": runs})
    write_atomic(path, normalised(_with_plain_runs(notebook, runs), path.stem))


def _with_plain_runs(notebook: Any, runs: str) -> Any:
    """The folder of a notebook's records as a learner has it, without the time in its name."""
    text = nbformat.writes(notebook).replace(str(Path(runs).resolve()), "./runs").replace(runs, "./runs")
    return nbformat.reads(RUN_TIME.sub(f"runs/notebook/{A_TIME}", text), as_version=4)


def normalised(notebook: Any, stem: str) -> str:
    """The text of a notebook without what differs from run to run: ids, timings, the machine's paths."""
    notebook = nbformat.from_dict(json.loads(json.dumps(notebook)))
    for number, cell in enumerate(notebook.cells):
        cell["id"] = cell_id(stem, number)
        for name in ("execution", "papermill"):
            cell.metadata.pop(name, None)
    notebook.metadata.pop("papermill", None)
    notebook.metadata["language_info"] = {"name": "python"}
    text = _without_paths(_renumbered(nbformat.writes(notebook), notebook))
    ordered = nbformat.reads(text, as_version=4)
    _widget_state(ordered).update(dict(sorted(_widget_state(ordered).items())))
    return str(json.dumps(ordered, indent=1, sort_keys=True, ensure_ascii=False)) + "\n"


def cell_id(stem: str, number: int) -> str:
    """The id of a cell: the notebook's name and the cell's place in it."""
    return f"{re.sub('[^a-zA-Z0-9_-]', '-', stem)[:40]}-{number:02d}"


def _renumbered(text: str, notebook: Any) -> str:
    """Widget ids are random: they become numbers, in the order in which the outputs and then each other name them."""
    state = _widget_state(notebook)
    ids = list(dict.fromkeys(re.findall(r'"model_id": "([0-9a-f]{32})"', text)))
    for known in ids:  # grows while it is read: what a widget holds follows the widget
        inside = re.findall(r"IPY_MODEL_([0-9a-f]{32})", json.dumps(state.get(known, {})))
        ids += [one for one in dict.fromkeys(inside) if one not in ids]
    for number, known in enumerate([*ids, *sorted(set(state) - set(ids))]):
        text = text.replace(known, f"{number:032x}")
    return text


def _widget_state(notebook: Any) -> dict[str, Any]:
    state: dict[str, Any] = notebook.metadata.get("widgets", {}).get(WIDGETS, {}).get("state", {})
    return state


def _without_paths(text: str) -> str:
    """The repository becomes `.` and the home folder `~`: what is stored must not depend on where it ran."""
    text = text.replace(str(ROOT), ".")
    home = str(Path.home())
    return text.replace(f"{home}/", "~/") if len(home) > 1 else text


# --- checking ---


def faults(path: Path) -> list[str]:
    """What is wrong with a stored notebook, one sentence each; nothing is executed."""
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    structure = _structure_faults(path.stem, notebook)
    found = [*_file_faults(path, text, notebook), *_cell_faults(notebook), *structure]
    return [f"{path.name}: {one}" for one in found]


def _file_faults(path: Path, text: str, notebook: Any) -> Iterator[str]:
    size = len(text.encode())
    if size >= MAX_BYTES:
        yield f"it has {size:,} bytes; the limit is {MAX_BYTES:,}"
    for one in sorted(set(MACHINE_PATHS.findall(text)) | ({str(ROOT)} if str(ROOT) in text else set())):
        yield f"it holds a path of the machine that ran it: {one}"
    if text != normalised(notebook, path.stem):
        yield "it was not stored by `make notebooks` (ids, order of keys or run-dependent metadata differ)"


def _cell_faults(notebook: Any) -> Iterator[str]:
    ids = [cell.get("id") for cell in notebook.cells]
    if len(set(ids)) != len(ids) or None in ids:
        yield "cell ids are missing or not unique"
    code = [(n, cell) for n, cell in enumerate(notebook.cells) if cell.cell_type == "code" and cell.source.strip()]
    never = [number for number, cell in code if cell.execution_count is None]
    if never:
        yield f"{len(never)} of {len(code)} code cells have not been executed, the first of them is cell {never[0]}"
    for number, cell in code:
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"cell {number} ends with {output.ename}: {output.evalue[:80]}"


def _structure_faults(stem: str, notebook: Any) -> Iterator[str]:
    parts = sections(notebook)
    first = [tag for tag in dict.fromkeys(parts) if tag in TAGS]
    wanted = [tag for tag in TAGS if tag != "recall" or not stem.startswith("00")]  # lab 00 has nothing to recall
    for tag in wanted:
        if tag not in first:
            yield f"no cell is tagged {tag}"
    if first != [tag for tag in TAGS if tag in first]:
        yield f"its parts begin in the order {', '.join(first)}; they should in the order {', '.join(wanted)}"
    if [cell.cell_type for cell in notebook.cells if "parameters" in tags(cell)] != ["code"]:
        yield "one code cell, and only one, is to be tagged parameters (papermill reads it)"
    yield from _round_faults(parts)
    yield from _tag_faults(notebook)
    ending = " ".join(cell.source for cell in notebook.cells[-3:] if cell.cell_type == "markdown").lower()
    if (parts and parts[-1] != "verdict") or "key points" not in ending:
        yield "it does not end with the verdict and the key points"


def _round_faults(parts: list[str]) -> Iterator[str]:
    """Each prediction is run and revealed before the next one is asked for."""
    for number, part in enumerate(parts):
        rest = parts[number + 1 :]
        until = rest[: rest.index("predict")] if "predict" in rest else rest
        if part == "predict" and [one for one in until if one in {"run", "reveal"}][:2] != ["run", "reveal"]:
            yield f"prediction {parts[: number + 1].count('predict')} is not followed by a run and its reveal"


def _tag_faults(notebook: Any) -> Iterator[str]:
    """A cell's tags are parts of a lab and, on a code cell with something to show, after them TIMED."""
    for number, cell in enumerate(notebook.cells):
        found = tags(cell)
        yield from (f"cell {number} has an unknown tag, {one}" for one in found if one not in (*TAGS, DEFAULTS, TIMED))
        if TIMED in found[:-1]:
            yield f"cell {number} has another tag after {TIMED}, which is the last one"
        if TIMED in found and (cell.cell_type != "code" or {"parameters", DEFAULTS} & set(found)):
            yield f"cell {number} shows nothing: it cannot be {TIMED}"


def tags(cell: Any) -> list[str]:
    """The tags of a cell."""
    return list(cell.metadata.get("tags", []))


def sections(notebook: Any) -> list[str]:
    """The parts of a lab in order, one entry for each stretch of cells."""
    found: list[str] = []
    for cell in notebook.cells:
        found += [tag for tag in tags(cell) if tag in TAGS and [tag] != found[-1:]]
    return found


# --- command line ---


def main(arguments: list[str] | None = None) -> int:
    """Stores or checks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK", help="default: all labs")
    parser.add_argument("--check", action="store_true", help="execute nothing; say what is wrong with what is stored")
    given = parser.parse_args(arguments)
    paths = given.notebooks or sorted(NOTEBOOKS.glob("*.ipynb"))
    if not given.check:
        # A kernel that a user installed under the same name must not shadow the environment's own.
        os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
        _store_all(paths)
    found = [fault for path in paths for fault in faults(path)]
    print("\n".join(found) if found else f"{len(paths)} notebooks are in order", file=sys.stderr)
    return 1 if found else 0


def _store_all(paths: Iterable[Path]) -> None:
    for path in paths:
        print(f"executing {path.name}", file=sys.stderr)
        store(path.resolve())


if __name__ == "__main__":
    sys.exit(main())
