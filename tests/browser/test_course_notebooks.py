"""The course's own notebooks in a real browser: as they are stored, and run with a learner's clicks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import ROOT, Notebook

pytestmark = pytest.mark.browser

Opener = Callable[[str], Notebook]
STORED = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
VEGA = "application/vnd.vegalite.v5+json"


def stored_charts(name: str) -> int:
    """How many outputs of the stored notebook are charts."""
    cells = json.loads((ROOT / "notebooks" / name).read_text())["cells"]
    return sum(VEGA in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))


@pytest.mark.parametrize("name", STORED)
def test_a_stored_notebook_shows_its_charts(name: str, open_notebook: Opener, page: Any, tmp_path: Path) -> None:
    """Every stored chart is drawn from its own data, offline, before anything is run."""
    open_notebook(name)
    charts, stored = page.locator(".jp-OutputArea-output svg.marks"), stored_charts(name)
    if stored:
        charts.nth(stored - 1).wait_for()
    assert charts.count() == stored
    page.locator(".jp-NotebookPanel").screenshot(path=str(tmp_path / f"{name}.png"))


@pytest.mark.engine
def test_a_learner_commits_a_guess_and_sees_it_revealed(open_notebook: Opener, page: Any) -> None:
    """In notebook 00 a number typed and committed is in the reveal, beside a real measurement."""
    from playwright.sync_api import expect

    notebook = open_notebook("00_start_here.ipynb")
    notebook.run_cells("guess_tokens_per_second = None", 'model = "smollm2', "session.start", "torch.ones(")
    notebook.run_cells('"00.tokens_per_second"')
    form = page.locator(".jp-OutputArea-output .widget-vbox").filter(has_text="How many will the engine reach")
    form.get_by_label("Your guess (tokens/s)").fill("12.5")
    form.get_by_role("button", name="Commit").click()
    notebook.run_cells("llm = LLM(", "rates = []", "cache_config", "lab.reveal(prediction", timeout_s=300)
    reveal = page.locator("div[role=status]").filter(has_text="How many will the engine reach")
    expect(reveal).to_contain_text("12.5 tokens/s")
    expect(reveal).to_contain_text("Measured here")
    assert notebook.error_outputs() == []
