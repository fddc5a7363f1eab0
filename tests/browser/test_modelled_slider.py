"""The budget slider of lab 04's second act in a real browser: each move runs vLLM's scheduler and redraws."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.conftest import Notebook

pytestmark = [pytest.mark.browser, pytest.mark.engine]
NOTEBOOK = "04_chunked_prefill.ipynb"
Opener = Callable[[str], Notebook]


def explorer(page: Any) -> Any:
    """The slider with its line of figures and its picture."""
    return page.locator(".jp-OutputArea-output .widget-vbox").filter(has=page.locator(".widget-slider + .widget-html"))


def line(page: Any, budget: str) -> Any:
    """The line of figures of a budget."""
    return explorer(page).get_by_role("status").filter(has_text=f"Budget {budget}: longest gap")


def drawing(page: Any, budget: str) -> Any:
    """The picture of a budget."""
    return explorer(page).locator("svg.marks").filter(has_text=f"Budget {budget}:")


def test_the_slider_runs_the_engine_and_redraws(open_notebook: Opener, page: Any) -> None:
    """By key to smaller budgets: line and picture follow, there is one picture, nothing fails. Of keys pressed in a row
    the last value counts; the handle moves at once, and the line says that the engine runs."""
    from playwright.sync_api import expect

    notebook = open_notebook(NOTEBOOK)
    notebook.run_all(timeout_s=300)
    expect(line(page, "16,384")).to_be_visible()
    expect(drawing(page, "16,384")).to_be_visible()
    slider = explorer(page).get_by_role("slider")
    slider.focus()
    for budget in ("8,192", "4,096"):
        slider.press("ArrowLeft")
        expect(line(page, budget)).to_be_visible()
        expect(drawing(page, budget)).to_be_visible()
        expect(explorer(page).locator("svg.marks")).to_have_count(1)
    page.evaluate(
        """() => {
            window.lines = [];
            const line = document.querySelector('.widget-slider + .widget-html');
            new MutationObserver(() => window.lines.push(line.innerText)).observe(
                line, {childList: true, subtree: true, characterData: true});
        }"""
    )
    for _ in range(3):
        slider.press("ArrowLeft")
    expect(explorer(page).locator(".widget-readout")).to_have_text("512")
    expect(line(page, "512")).to_be_visible()
    expect(drawing(page, "512")).to_be_visible()
    expect(explorer(page).locator(".labkit-running")).to_have_count(0)
    lines = page.evaluate("window.lines.filter(line => line.trim())")
    assert lines[0].startswith("Running max_num_batched_tokens = 2,048")
    assert lines[-1].startswith("Budget 512: longest gap")
    assert notebook.error_outputs() == []
