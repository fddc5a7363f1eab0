"""The notebooks as they are stored: all parts of a lab in order, executed, small, without a trace of the machine."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
import pytest

from labkit.teaching import exercises
from tools import notebooks as tool

v4 = nbformat.v4
STORED = sorted(tool.NOTEBOOKS.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)


@each_notebook
def test_a_stored_notebook_is_in_order(path: Path) -> None:
    """Structure, ids, outputs, paths and size are as the tool that stores notebooks asks."""
    assert tool.faults(path) == []


@each_notebook
def test_a_lab_asks_all_of_its_exercises(path: Path) -> None:
    """Each exercise of the lab is in a cell of its own, unsolved like its starter, and shown as it is asked today."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if "exercise" in tool.tags(cell)]
    shown = [out.data.get("text/markdown", "") for cell in cells for out in cell.get("outputs", []) if "data" in out]
    for one in exercises().values():
        if one.id.split(".")[0] == path.stem.partition("_")[0]:
            assert any(one.starter.strip() in cell.source for cell in cells), one.id
            text = one.asked(one.needs)  # lab 00's examples are its stored model's numbers
            assert any(output.endswith(text) for output in shown), one.id


@each_notebook
def test_no_number_is_typed_into_a_verdict(path: Path) -> None:
    """Measured figures come out of cells: the prose after the runs holds no figure with a unit of speed or time."""
    notebook = nbformat.read(path, as_version=4)
    parts = [cell for cell in notebook.cells if {"explain", "verdict"} & set(tool.tags(cell))]
    prose = " ".join(cell.source for cell in parts if cell.cell_type == "markdown")
    assert re.findall(r"\d[\d.,]*\s*(?:tok/s|tokens/s|ms\b|s\b|x faster|times faster)", prose) == []


# --- the rules themselves ---


def lab(*parts: str) -> Any:
    """A notebook with a cell for each part, executed, that is in order when the parts are."""
    cells = []
    for number, part in enumerate(parts):
        is_code = part in {"parameters", "machine", "predict", "run", "reveal", "exercise"}
        cell = v4.new_code_cell("1") if is_code else v4.new_markdown_cell(f"## {part}")
        cell.metadata["tags"] = [part]
        if is_code:
            cell["execution_count"] = number
        cells.append(cell)
    return v4.new_notebook(cells=[*cells, v4.new_markdown_cell("## Key points")])


def stored(notebook: Any, folder: Path, *, name: str = "01_lab") -> Path:
    """The notebook on disk, as the tool writes it."""
    path = folder / f"{name}.ipynb"
    path.write_text(tool.normalised(notebook, path.stem), encoding="utf-8")
    return path


def tagged(cell: int, *tags: str, parts: Sequence[str] = tool.TAGS) -> Any:
    """A lab with other tags at one cell."""
    notebook = lab(*parts)
    notebook.cells[cell].metadata["tags"] = list(tags)
    return notebook


def shows(kind: str, **output: Any) -> Any:
    """A lab whose third cell has this output."""
    notebook = lab(*tool.TAGS)
    notebook.cells[2].outputs = [v4.new_output(kind, **output)]
    return notebook


def test_a_lab_in_order_has_no_faults(tmp_path: Path) -> None:
    """The shortest lab, one with two rounds, lab 00 without a recall, and a timed cell in a part or before it."""
    rounds = [*tool.TAGS[:9], "idea", "predict", "run", "reveal", "explain", "exercise", "verdict"]
    for name, notebook in (
        ("01_lab", lab(*tool.TAGS)),
        ("01_lab", lab(*rounds)),
        ("00_start", lab("card", *tool.TAGS[2:])),
        ("01_lab", tagged(6, "run", "timed")),
        ("01_lab", tagged(6, "timed", parts=[*tool.TAGS[:6], "run", *tool.TAGS[6:]])),
    ):
        assert tool.faults(stored(notebook, tmp_path, name=name)) == []


def broken() -> Iterator[tuple[Any, str]]:
    """Notebooks that each break one rule, and the message about it."""
    for missing in tool.TAGS:
        yield lab(*(tag for tag in tool.TAGS if tag != missing)), f"no cell is tagged {missing}"
    swapped = lab(*tool.TAGS[:5], "run", "predict", *tool.TAGS[7:])
    yield swapped, "in the order"
    yield swapped, "not followed by a run"
    yield lab(*tool.TAGS[:9], "predict", "run", "exercise", "verdict"), "prediction 2"
    yield tagged(3, "machine", "parameters"), "exactly one"
    yield tagged(6, "run", "Timed"), "cell 6 has an unknown tag, Timed"
    yield tagged(6, "timed", "run"), "cell 6 has another tag after timed"
    yield tagged(8, "explain", "timed"), "cell 8 shows nothing: it cannot be timed"
    yield tagged(2, "parameters", "timed"), "cell 2 shows nothing: it cannot be timed"
    yield shows("error", ename="KeyError", evalue="x", traceback=[]), "KeyError"
    yield shows("stream", text="see /home/somebody/x"), "/home/somebody"
    yield shows("stream", text="x" * tool.MAX_BYTES), "bytes"
    unexecuted = lab(*tool.TAGS)
    unexecuted.cells[3]["execution_count"] = None
    yield unexecuted, "1 of 6 code cells have not been executed, the first is cell 3"


def test_every_rule_that_is_broken_is_told(tmp_path: Path) -> None:
    """Parts missing, out of order or without their reveal, wrong tags, bad outputs and a cell that was never run."""
    told = [(" ".join(tool.faults(stored(notebook, tmp_path))), says) for notebook, says in broken()]
    assert [(found, says) for found, says in told if says not in found] == []


def test_the_repository_and_the_home_are_not_stored(tmp_path: Path) -> None:
    """The tool shortens the paths of this machine when it stores."""
    path = stored(shows("stream", text=f"{tool.ROOT}/data and {Path.home()}/x"), tmp_path)
    assert tool.faults(path) == []
    assert "./data and ~/x" in path.read_text()


def test_an_edited_file_is_a_fault(tmp_path: Path) -> None:
    """Ids given by an editor are told: the notebook has to be stored again."""
    path = stored(lab(*tool.TAGS), tmp_path)
    path.write_text(path.read_text().replace('"01_lab-03"', '"3f2a"'), encoding="utf-8")
    assert "make notebooks" in " ".join(tool.faults(path))


@pytest.mark.notebook
def test_storing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    """A notebook with a widget, a chart and an exercise, executed twice, is the same file."""
    notebook = lab(*tool.TAGS)
    folder = "runs_path() / f'notebook/{time.strftime(\"%FT%H-%M-%S\")}'"
    for cell, source in {
        5: "from labkit.teaching import predict\nguess = predict('q', 'How many?', unit='s', guess=2)",
        6: f"import time\nfrom labkit.files import runs_path\nprint({folder})",
        7: "from labkit.teaching import reveal\nreveal(guess, 3.0)",
        9: "from labkit.teaching import check\ncheck('01.tpot', None)",
    }.items():
        notebook.cells[cell].source = source
    path = stored(notebook, tmp_path)
    tool.store(path)
    once = path.read_bytes()
    tool.store(path)
    assert path.read_bytes() == once
    assert b'"model_id": "00000000000000000000000000000000"' in once
    assert b"./runs/notebook/" in once
    assert tool.faults(path) == []


@pytest.mark.notebook
def test_a_failing_notebook_is_left_as_it_was(tmp_path: Path) -> None:
    """A cell that raises stops the tool, and the stored notebook stays."""
    client_error = pytest.importorskip("nbclient.exceptions").CellExecutionError
    notebook = lab(*tool.TAGS)
    notebook.cells[6].source = "1 / 0"
    path = stored(notebook, tmp_path)
    before = path.read_bytes()
    with pytest.raises(client_error, match="ZeroDivisionError"):
        tool.store(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_check_ends_with_one_for_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--check` prints the faults and ends with 1; without any it ends with 0."""
    good, bad = stored(lab(*tool.TAGS), tmp_path), stored(lab("card"), tmp_path, name="02_bad")
    assert tool.main([str(good), "--check"]) == 0
    assert tool.main([str(good), str(bad), "--check"]) == 1
    assert "02_bad.ipynb: no cell is tagged recall" in capsys.readouterr().err
