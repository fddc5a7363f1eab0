"""Execute the notebooks and store them so that a second run changes only measured outputs; `--check` only reads.

    python tools/notebooks.py [NOTEBOOK ...] [--check]

A lab's cells are tagged with its parts (TAGS); cells without a tag belong to the part above them. A code cell whose
output depends on the run, the machine or the profile is also tagged TIMED. tests/notebooks checks all notebooks by
`faults`, and compares the outputs of cells that are not TIMED with the stored ones.
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
DEFAULTS = "defaults"  # parameters that few learners change: folded, before the cell tagged parameters
TIMED = "timed"  # after the part's tag: this cell's output is measured, or depends on the machine
MAX_BYTES = 600_000
FIXED_TIME = "2026-11-24T08-00-00"  # replaces the time in run folders' names, so that outputs do not change
RUN_TIME = re.compile(r"runs/notebook/\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d")
WIDGETS = "application/vnd.jupyter.widget-state+json"
MACHINE_PATHS = re.compile(r"/(?:home|Users)/[\w.-]+|/root\b|/tmp/\w+")


# --- storing ---


def store(path: Path, *, timeout_s: int = 1800) -> None:
    """Execute a notebook in its folder and write it back. If a cell fails, raise and leave the file unchanged.

    Records go to a temporary folder, so that earlier runs on this machine do not affect stored outputs.
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
    """Replace the records' folder by the learner's default folder, with a fixed time in its name."""
    text = nbformat.writes(notebook).replace(str(Path(runs).resolve()), "./runs").replace(runs, "./runs")
    return nbformat.reads(RUN_TIME.sub(f"runs/notebook/{FIXED_TIME}", text), as_version=4)


def normalised(notebook: Any, stem: str) -> str:
    """Return a notebook's text without run-dependent ids, timings and machine paths."""
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
    """Return a cell id: the notebook's name and the cell's number."""
    return f"{re.sub('[^a-zA-Z0-9_-]', '-', stem)[:40]}-{number:02d}"


def _renumbered(text: str, notebook: Any) -> str:
    """Replace random widget ids by numbers, in the order of references from outputs, then from other widgets."""
    state = _widget_state(notebook)
    ids = list(dict.fromkeys(re.findall(r'"model_id": "([0-9a-f]{32})"', text)))
    for widget in ids:  # grows during the loop: a widget's children follow it
        children = re.findall(r"IPY_MODEL_([0-9a-f]{32})", json.dumps(state.get(widget, {})))
        ids += [child for child in dict.fromkeys(children) if child not in ids]
    for number, widget in enumerate([*ids, *sorted(set(state) - set(ids))]):
        text = text.replace(widget, f"{number:032x}")
    return text


def _widget_state(notebook: Any) -> dict[str, Any]:
    state: dict[str, Any] = notebook.metadata.get("widgets", {}).get(WIDGETS, {}).get("state", {})
    return state


def _without_paths(text: str) -> str:
    """Replace the repository by `.` and the home folder by `~`."""
    text = text.replace(str(ROOT), ".")
    home = str(Path.home())
    return text.replace(f"{home}/", "~/") if len(home) > 1 else text


# --- checking ---


def faults(path: Path) -> list[str]:
    """Return the faults of a stored notebook, one sentence each, without executing it."""
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    structure = _structure_faults(path.stem, notebook)
    texts = [*_file_faults(path, text, notebook), *_cell_faults(notebook), *structure]
    return [f"{path.name}: {fault}" for fault in texts]


def _file_faults(path: Path, text: str, notebook: Any) -> Iterator[str]:
    size = len(text.encode())
    if size >= MAX_BYTES:
        yield f"it has {size:,} bytes; the limit is {MAX_BYTES:,}"
    for machine_path in sorted(set(MACHINE_PATHS.findall(text)) | ({str(ROOT)} if str(ROOT) in text else set())):
        yield f"it contains a path of the machine that ran it: {machine_path}"
    if text != normalised(notebook, path.stem):
        yield "it was not stored by `make notebooks` (ids, order of keys or run-dependent metadata differ)"


def _cell_faults(notebook: Any) -> Iterator[str]:
    ids = [cell.get("id") for cell in notebook.cells]
    if len(set(ids)) != len(ids) or None in ids:
        yield "cell ids are missing or not unique"
    code = [(n, cell) for n, cell in enumerate(notebook.cells) if cell.cell_type == "code" and cell.source.strip()]
    never = [number for number, cell in code if cell.execution_count is None]
    if never:
        yield f"{len(never)} of {len(code)} code cells have not been executed, the first is cell {never[0]}"
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
        yield f"its parts begin in the order {', '.join(first)}; the order must be {', '.join(wanted)}"
    if [cell.cell_type for cell in notebook.cells if "parameters" in tags(cell)] != ["code"]:
        yield "exactly one code cell must be tagged parameters (papermill reads it)"
    yield from _round_faults(parts)
    yield from _tag_faults(notebook)
    ending = " ".join(cell.source for cell in notebook.cells[-3:] if cell.cell_type == "markdown").lower()
    if (parts and parts[-1] != "verdict") or "key points" not in ending:
        yield "it does not end with the verdict and the key points"


def _round_faults(parts: list[str]) -> Iterator[str]:
    """Each prediction must be followed by its run and reveal before the next prediction."""
    for number, part in enumerate(parts):
        rest = parts[number + 1 :]
        until = rest[: rest.index("predict")] if "predict" in rest else rest
        if part == "predict" and [tag for tag in until if tag in {"run", "reveal"}][:2] != ["run", "reveal"]:
            yield f"prediction {parts[: number + 1].count('predict')} is not followed by a run and its reveal"


def _tag_faults(notebook: Any) -> Iterator[str]:
    """Tags must be known; TIMED must come last, and only on code cells with output."""
    known = (*TAGS, DEFAULTS, TIMED)
    for number, cell in enumerate(notebook.cells):
        cell_tags = tags(cell)
        yield from (f"cell {number} has an unknown tag, {tag}" for tag in cell_tags if tag not in known)
        if TIMED in cell_tags[:-1]:
            yield f"cell {number} has another tag after {TIMED}, which must be the last"
        if TIMED in cell_tags and (cell.cell_type != "code" or {"parameters", DEFAULTS} & set(cell_tags)):
            yield f"cell {number} shows nothing: it cannot be {TIMED}"


def tags(cell: Any) -> list[str]:
    """Return the tags of a cell."""
    return list(cell.metadata.get("tags", []))


def sections(notebook: Any) -> list[str]:
    """Return the parts of a lab in order, without consecutive repeats."""
    parts: list[str] = []
    for cell in notebook.cells:
        parts += [tag for tag in tags(cell) if tag in TAGS and [tag] != parts[-1:]]
    return parts


# --- command line ---


def main(arguments: list[str] | None = None) -> int:
    """Store or check the notebooks; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK", help="default: all labs")
    parser.add_argument("--check", action="store_true", help="execute nothing; list faults of the stored notebooks")
    given = parser.parse_args(arguments)
    paths = given.notebooks or sorted(NOTEBOOKS.glob("*.ipynb"))
    if not given.check:
        # A user's kernel of the same name must not shadow this environment's.
        os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
        _store_all(paths)
    all_faults = [fault for path in paths for fault in faults(path)]
    print("\n".join(all_faults) if all_faults else f"{len(paths)} notebooks are in order", file=sys.stderr)
    return 1 if all_faults else 0


def _store_all(paths: Iterable[Path]) -> None:
    for path in paths:
        print(f"executing {path.name}", file=sys.stderr)
        store(path.resolve())


if __name__ == "__main__":
    sys.exit(main())
