"""Lab 11 runs with nobody clicking and with no engine installed, and refuses in its first cells what cannot be."""

import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import nbformat
import pytest

from labkit.advice import costs
from labkit.labs import find_lab
from labkit.records import read
from labkit.records.ledger import ledger
from tests.notebooks.first_cells import assert_refused, run_first_cells
from tools import notebooks as tool

NOTEBOOK = "11_cost_calculator.ipynb"
PAGE = tool.NOTEBOOKS / "widgets" / "cost_calculator.ipynb"
LAB = "11_cost_calculator"
ENGINES = ("torch", "vllm", "ray", "transformers", "ts")

pytestmark = pytest.mark.notebook


def run(notebook: Path, out_dir: Path, overrides: dict[str, object]) -> "subprocess.CompletedProcess[str]":
    """All code cells in a process of their own; its last line names the engines' packages that were imported."""
    cells = [one for one in nbformat.read(notebook, as_version=4).cells if one.cell_type == "code"]
    code = []
    for cell in cells:
        code.append(cell.source)
        if "parameters" in tool.tags(cell):
            code += [f"{name} = {value!r}" for name, value in overrides.items()]
    code += ["import sys", f"print('imported:', [name for name in {ENGINES!r} if name in sys.modules])"]
    return subprocess.run(
        [sys.executable, "-c", "\n".join(code)], capture_output=True, text=True, timeout=300, check=False, cwd=out_dir
    )


@pytest.fixture
def load_json(tmp_path: Path) -> str:
    """A learner's measurement, as `labkit load --json` prints it."""
    path = tmp_path / "load.json"
    path.write_text(json.dumps({"completed": 64, "failed": 0, "output_throughput": 812.5}))
    return str(path)


def test_it_runs_to_its_end_without_a_click_or_an_engine(tmp_path: Path, load_json: str) -> None:
    """Predictions as parameters, verdicts on all its claims, and not one engine's package imported (as on Binder)."""
    guesses = {"guess_break_even": 18.0, "guess_wait": 3.0, "guess_matters": "throughput"}
    done = run(tool.NOTEBOOKS / NOTEBOOK, tmp_path, {"out_dir": str(tmp_path), "throughput_from": load_json, **guesses})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "imported: []" in done.stdout
    record = read(tmp_path / f"{LAB}.json")
    assert record.status == "done"
    assert {str(one["id"]) for one in record.predictions} == {"11.break_even", "11.wait", "11.matters"}
    rows = {row.id: row for row in ledger([record])}
    assert {row.verdict for row in map(rows.get, find_lab(LAB).claims) if row} <= {"refuted", "depends", "supported"}
    assert rows["C59"].verdict == rows["C60"].verdict == rows["C58"].verdict == "refuted"


def test_a_state_is_the_question_that_is_answered(tmp_path: Path) -> None:
    """What the calculator exported, given as the parameter, leads to the same price of a token."""
    given = costs.settings_from(
        {"requests_per_s": 20, "instance": "p5.48xlarge", "throughput_tokens_per_s": 9000},
        costs.default(prices_on=date(2026, 11, 24), throughput=costs.article_throughput()),
    )
    done = run(tool.NOTEBOOKS / NOTEBOOK, tmp_path, {"out_dir": str(tmp_path), "state": given.to_json()})
    assert done.returncode == 0, done.stderr[-3000:]
    found = {one.name: one for one in read(tmp_path / f"{LAB}.json").measured}
    price = costs.calculate(given).hosted.usd_per_million_tokens
    assert price is not None
    assert found["usd_per_million_tokens_hosted"].value == float(price)


def test_the_page_alone_runs_without_an_engine(tmp_path: Path) -> None:
    """The calculator's own page answers with its defaults, also where nothing has been measured."""
    done = run(PAGE, tmp_path, {})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "imported: []" in done.stdout
    assert "Hosting:" in done.stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"state": '{"instance": "g7"}'}, "there is no instance 'g7'"),
        ({"throughput_from": "/nowhere/at/all"}, "holds no measured throughput"),
        ({"places": 1}, "from 2 to 4096"),
        ({"guess_matters": "luck"}, "guess_matters is 'luck'"),
    ],
)
def test_what_cannot_be_is_refused_in_the_first_cells(
    overrides: dict[str, object], message: str, tmp_path: Path
) -> None:
    """A UsageError with the value in it, before anything is computed."""
    assert_refused(run_first_cells(NOTEBOOK, tmp_path, overrides), message)
