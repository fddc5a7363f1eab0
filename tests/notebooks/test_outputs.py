"""The comparison of an executed notebook with the stored one: what it catches, and what it passes over."""

import re
from typing import Any

import nbformat
import pytest

from labkit import display
from labkit.files import notebooks_path
from labkit.labs import LABS
from labkit.teaching import predict, reveal
from tests.notebooks import outputs

v4 = nbformat.v4
WITH_ENGINE = [lab.name for lab in LABS.values() if lab.engine != "none"]
MEASURES = re.compile(r"lab\.(reveal|measure|ratio|verdicts|warn)\(|lab\.predict\(.*\bunit=", re.DOTALL)


def notebook(*shown: Any, tags: tuple[str, ...] = (), source: str = "first = 1\nfirst + 3") -> Any:
    """A notebook with parameters and one cell that shows this."""
    given = v4.new_code_cell("seed = 0", metadata={"tags": ["parameters"]})
    cell = v4.new_code_cell(source, outputs=list(shown), metadata={"tags": list(tags)})
    return v4.new_notebook(cells=[v4.new_markdown_cell("# A lab"), given, cell])


def stream(text: str, name: str = "stdout") -> Any:
    """A piece of a stream."""
    return v4.new_output("stream", name=name, text=text)


def result(**data: Any) -> Any:
    """A cell's last value, by kind."""
    return v4.new_output("execute_result", data={key.replace("_", "/"): text for key, text in data.items()})


def chart(value: float, *, below: str = "2 CPUs (AMD EPYC), 24 GiB, no GPU · smollm2-135m · vllm 0.32.0+cpu") -> Any:
    """A chart with one number and a line of its machine."""
    spec = {"data": {"values": [{"x": value}]}, "title": {"text": "A chart", "subtitle": [below]}}
    return v4.new_output("display_data", data={outputs.CHART: spec, "image/png": str(value)})


def differing(before: Any, now: Any) -> list[str]:
    """The differences that are found between two notebooks."""
    return list(outputs.differences("01_lab", before, now))


def test_another_output_is_told() -> None:
    """Of text, table and chart: the lab, the cell's number, its first line, and both texts around the place where they
    part, not the whole of two long ones."""
    for before, now in (
        ([result(text_plain="4")], [result(text_plain="5")]),
        ([stream("4 blocks\n")], [stream("5 blocks\n")]),
        ([stream("4 blocks\n")], []),
        ([], [stream("a warning\n")]),
        ([result(text_plain="4", text_html="<b>4</b>")], [result(text_plain="4", text_html="<b>5</b>")]),
        ([chart(0.25)], [chart(0.26)]),
    ):
        (found,) = differing(notebook(*before), notebook(*now))
        assert found.startswith("01_lab, cell 2 (first = 1): from character ")
        assert re.search(r"stored: .*\n  now: ", found)
    (found,) = differing(*(notebook(stream("x" * 500 + text + "y" * 500)) for text in ("182 blocks", "364 blocks")))
    assert re.search(r"stored: .*182 blocks.*\n  now: .*364 blocks", found)
    assert len(found) < 400


def test_a_timed_cell_is_passed_over() -> None:
    """The stored notebook's tag decides; without it the same outputs are told."""
    before, now = stream("0.31 s\n"), stream("0.42 s\n")
    assert differing(notebook(before, tags=("run", "timed")), notebook(now)) == []
    assert differing(notebook(before, tags=("run",)), notebook(now)) != []


def test_what_differs_from_run_to_run_is_passed_over() -> None:
    """Pieces of a stream, stderr, machines, folders, last bits, pictures' bytes and widgets' ids make no difference;
    nor does papermill's cell with the run's own parameters."""
    here, there = "2 CPUs (AMD EPYC), 24 GiB, no GPU", "4 CPUs (Intel(R) Xeon(R) Processor), 16 GiB, no GPU"
    stored, again = (
        v4.new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {"model_id": number}})
        for number in "01"
    )
    pairs = [
        ([stream("a\nb\n")], [stream("a\n"), stream("loading\n", name="stderr"), stream("b\n")]),
        (
            [stream(f"{here} · smollm2-135m · vllm 0.32.0+cpu\n")],
            [stream(f"{there} · other-1b · vllm 0.33.1\n")],
        ),
        ([stream("./runs/notebook/2026-11-24T08-00-00/01_lab.json\n")], [stream("/tmp/x/run0/01_lab.json\n")]),
        ([chart(0.1 + 0.2)], [chart(0.3, below=f"{there} · smollm2-135m · vllm 0.32.0+cpu")]),
        ([stream(f"recorded: {here}, 24 Nov 2026\n")], [stream("recorded: 1 Jan 2027\n")]),
        ([stored], [again]),
    ]
    told = [differing(notebook(*before), notebook(*now)) for before, now in pairs]
    assert told == [[]] * len(pairs)
    executed = notebook(stream("4\n"))
    executed.cells.insert(2, v4.new_code_cell("seed = 1", metadata={"tags": ["injected-parameters"]}))
    assert differing(notebook(stream("4\n")), executed) == []


def test_what_another_machine_recorded_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reveal with the row of a recorded run is as one without it; with another measurement it is not."""
    shown: list[Any] = []
    monkeypatch.setattr(display, "show", lambda data: shown.append(notebook(v4.new_output("display_data", data=data))))
    guess = predict("01.input", "Which one?", options=["price", "traffic"], guess="price", confidence=0.5)
    shown.clear()
    reveal(guess, "traffic")
    reveal(guess, "traffic", recorded="price", recorded_from="2 CPUs (A), 4 GiB, no GPU, 24 Nov 2026")
    reveal(guess, "price")
    plain, recorded, other = shown
    assert differing(plain, recorded) == []
    assert differing(plain, other) != []


def test_another_notebook_is_told() -> None:
    """Outputs of other cells would say nothing: that the cells differ is told instead."""
    for executed in (notebook(stream("4\n"), source="2 + 2"), v4.new_notebook(cells=[])):
        (found,) = differing(notebook(stream("4\n")), executed)
        assert found == "01_lab: of its code cells only the first 0 are those of the stored notebook"


@pytest.mark.parametrize("lab", WITH_ENGINE)
def test_a_lab_has_cells_whose_outputs_are_held(lab: str) -> None:
    """Of every lab with an engine some cells that show something are not tagged `timed`; none of them measures."""
    stored = nbformat.read(notebooks_path() / LABS[lab].notebook, as_version=4)
    cells = [cell for _, cell in outputs.held(stored)]
    assert any(outputs.shown(cell) for cell in cells)
    assert [cell.source for cell in cells if MEASURES.search(cell.source)] == []
