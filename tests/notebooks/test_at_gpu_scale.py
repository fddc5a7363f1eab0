"""Lab 04's second act, run for real on the modelled GPU: what its prose says about directions, and its exercise."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest

from tools import notebooks as tool

pytestmark = [pytest.mark.notebook, pytest.mark.engine]
STORED = tool.APPENDIX / "04b_at_gpu_scale.ipynb"
BUDGETS = [512, 2048, 8192]
VEGA = "application/vnd.vegalite.v5+json"
RESULTS = """
from IPython.display import JSON

results = {"table": table.reset_index().to_dict("list")}
results["prefill_steps"] = [len(prefill_steps(d)) for d in drives.values()]
results["all_steps"] = [len(d.moments[0]) for d in drives.values()]
results["longest_step"] = [1000 * max(s.duration_s for s in prefill_steps(d)) for d in drives.values()]
JSON(results)
"""


def execute(folder: Path, parameters: Mapping[str, Any], *, rule: str = "") -> tuple[Any, dict[str, Any]]:
    """The notebook executed with these parameters and, for the exercise, another rule; and its results."""
    notebook = nbformat.read(STORED, as_version=4)
    if rule:
        (cell,) = (cell for cell in notebook.cells if "# your rule" in cell.source)
        cell.source = rule
    notebook.cells.append(nbformat.v4.new_code_cell(RESULTS))
    source = folder / "source.ipynb"
    nbformat.write(notebook, source)
    executed = papermill.execute_notebook(
        str(source), str(folder / "executed.ipynb"), dict(parameters), progress_bar=False, cwd=str(folder)
    )
    return executed, executed.cells[-1].outputs[0].data["application/json"]


def solution() -> str:
    """The exercise's solution, out of the fold that shows it."""
    text = "".join(cell.source for cell in nbformat.read(STORED, as_version=4).cells if cell.cell_type == "markdown")
    (found,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return "from vllm.v1.core.sched.scheduler import Scheduler\n" + str(found)


def printed(notebook: Any) -> str:
    """All that the cells printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream")


@pytest.fixture(scope="module")
def unsolved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any]]:
    """The notebook with three budgets and a guess, its exercise unsolved."""
    parameters = {"token_budgets": BUDGETS, "guess_gap_ms": 50.0}
    return execute(tmp_path_factory.mktemp("unsolved"), parameters)


def test_the_longest_gap_grows_with_the_budget(unsolved: tuple[Any, dict[str, Any]]) -> None:
    """And it is the longest step, to the microsecond."""
    _, results = unsolved
    gaps = results["table"]["longest gap (ms)"]
    assert results["table"]["token budget"] == BUDGETS
    assert gaps == sorted(gaps)
    assert gaps[-1] > 2 * gaps[0]
    assert gaps == pytest.approx(results["longest_step"], abs=1e-3)


def test_the_long_prompt_does_not_wait_longer_with_a_larger_budget(unsolved: tuple[Any, dict[str, Any]]) -> None:
    """Its TTFT is longest with the smallest budget, which takes the most steps."""
    _, results = unsolved
    ttfts = results["table"]["TTFT, long prompt (ms)"]
    assert max(ttfts) == ttfts[0]
    assert results["prefill_steps"] == sorted(results["prefill_steps"], reverse=True)
    assert len(set(results["prefill_steps"])) == len(BUDGETS)


def test_median_and_mean_hardly_change(unsolved: tuple[Any, dict[str, Any]]) -> None:
    """Few steps carry prefill, so neither the median gap nor the mean TPOT shows the freeze."""
    _, results = unsolved
    for name in ("median gap (ms)", "mean TPOT (ms)"):
        values = results["table"][name]
        assert max(values) < 1.1 * min(values), name
    assert max(results["prefill_steps"]) < min(results["all_steps"]) / 10


def test_a_batch_run_shows_one_value_of_the_slider(unsolved: tuple[Any, dict[str, Any]]) -> None:
    """Without a click: a picture of the largest budget, its line of figures, and the guess in the other chart."""
    notebook, _ = unsolved
    (output,) = next(cell.outputs for cell in notebook.cells if "explore(values" in cell.source)
    assert "image/png" in output.data
    assert f"Budget {BUDGETS[-1]:,}: longest gap" in output.data["text/plain"]
    (chart,) = (output for cell in notebook.cells if "charts.lines" in cell.source for output in cell.outputs)
    assert "your guess: 50 ms" in json.dumps(chart.data[VEGA])


def test_every_chart_says_that_it_is_modelled(unsolved: tuple[Any, dict[str, Any]]) -> None:
    """The line under each title names the card; the slider's chart is in the widget's state."""
    notebook, _ = unsolved
    text = json.dumps(notebook)
    charts = [part for part in text.split(f'"{VEGA}": {{"')[1:] if not part.startswith("embed_options")]
    assert len(charts) >= 2
    assert all("Modelled: H100 SXM" in part for part in charts)


def test_the_exercise_is_unsolved_and_then_solved(unsolved: tuple[Any, dict[str, Any]], tmp_path: Path) -> None:
    """The starter and a threshold that is never lifted each get a message of their own; the solution passes."""
    notebook, _ = unsolved
    assert "Not yet: the newcomer still waits" in printed(notebook)
    solved, _ = execute(tmp_path, {"token_budgets": BUDGETS}, rule=solution())
    assert "Solved" in printed(solved)
    always = solution().replace(" if self.waiting else 0", "")
    assert always != solution()
    constant, _ = execute(tmp_path, {"token_budgets": BUDGETS}, rule=always)
    assert "Not yet: the long prompt pays too much" in printed(constant)


def test_it_is_stored_executed_small_and_without_paths() -> None:
    """As the tool that stores notebooks asks of an appendix."""
    assert tool.faults(STORED) == []


def test_a_visible_cell_is_short() -> None:
    """At most eight lines of code, blank ones aside, unless it is folded away."""
    for cell in nbformat.read(STORED, as_version=4).cells:
        lines = [line for line in cell.source.splitlines() if line.strip()]
        folded = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        assert cell.cell_type != "code" or folded or len(lines) <= 8, cell.source
