"""Lab 10 refuses answers, names and numbers that cannot be meant, and runs from top to bottom without any engine."""

from pathlib import Path

import pytest

from labkit.records import read
from tests.notebooks.first_cells import assert_ready, assert_refused, run_first_cells

NOTEBOOK = "10_framework_selector.ipynb"


@pytest.mark.notebook
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"answers": '{"kind": "lmm"}'}, "did you mean llm?"),
        ({"answers": "pipeline"}, "the state is no JSON"),
        ({"served_model": "a b"}, "'a b' is no model's name"),
        ({"requests_per_s": -1}, "from 0.001 to 1e+06 (requests/s)"),
        ({"guess_question": "Weather"}, "one of Kind of model"),
    ],
)
def test_what_cannot_be_meant_is_refused(overrides: dict[str, object], message: str, tmp_path: Path) -> None:
    """The message has the value and the way out."""
    assert_refused(run_first_cells(NOTEBOOK, tmp_path, overrides), message)


@pytest.mark.notebook
def test_a_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Verdicts are read from a run's folder; one that does not exist is named."""
    done = run_first_cells(NOTEBOOK, tmp_path, {"runs_dir": "nowhere"})
    assert done.returncode == 1
    assert "nowhere is not a folder" in done.stderr


@pytest.mark.notebook
def test_the_whole_lab_runs_with_a_colleagues_answers(tmp_path: Path) -> None:
    """All cells, no engine: the record has the colleague's recommendation and the verdict's evidence."""
    answers = '{"pattern": "pipeline", "kind": "both", "complexity": "features", "model": "org/mine"}'
    overrides = {"answers": answers, "guess_agreement": 50.0, "guess_question": "Hardware", "guess_instances": 4}
    done = run_first_cells(NOTEBOOK, tmp_path, overrides)
    assert_ready(done)
    assert "org/mine" in done.stdout
    found = read(tmp_path / "10_framework_selector.json")
    assert found.status == "done"
    assert found.exact["recommended"] == "vllm-ray-serve"
    assert found.exact["instances"] == found.claims["C14"]["instances"] == 36
    assert set(found.claims) == {"C14"}
