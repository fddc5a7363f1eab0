"""The teaching widgets in a real browser: a learner predicts, sees it revealed, answers wrongly and unfolds a hint."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.conftest import Notebook, Watch

pytestmark = pytest.mark.browser
NOTEBOOK = "teaching.ipynb"
Opener = Callable[[str], Notebook]


def form(page: Any, question: str) -> Any:
    """The form that asks a question."""
    return page.locator(".jp-OutputArea-output .widget-vbox").filter(has_text=question)


def card(page: Any, title: str) -> Any:
    """The card (reveal or check) with a title."""
    return page.locator("div[role=status]").filter(has=page.locator("b").filter(has_text=title))


def test_nobody_clicks(open_notebook: Opener, page: Any) -> None:
    """Run from top to bottom, the parameter's guess is revealed, or that no prediction was made."""
    from playwright.sync_api import expect

    open_notebook(NOTEBOOK).run_all()
    expect(form(page, "How many tokens").get_by_text("Nothing committed yet")).to_contain_text("100 tok/s")
    expect(card(page, "How many tokens")).to_contain_text("100 tok/s (the lab's parameter)")
    expect(card(page, "Which of the two")).to_contain_text("no prediction made")


def test_a_number_is_committed_and_revealed(open_notebook: Opener, page: Any) -> None:
    """Type a number, move the confidence by key, commit: the form locks, and the reveal shows the guess."""
    from playwright.sync_api import expect

    notebook = open_notebook(NOTEBOOK)
    notebook.run_all()
    asked = form(page, "How many tokens")
    asked.get_by_label("Your guess (tok/s)").fill("480")
    asked.get_by_role("slider").press("ArrowRight")
    asked.get_by_role("button", name="Commit").click()
    expect(asked).to_contain_text("Committed: 480 tok/s (55% sure)")
    expect(asked.get_by_label("Your guess (tok/s)")).to_be_disabled()
    expect(asked.get_by_role("button", name="Committed")).to_be_disabled()
    notebook.run_cells("reveal(number")
    expect(card(page, "How many tokens")).to_contain_text("480 tok/s, 55% sure")
    expect(card(page, "How many tokens")).to_contain_text("2 times too high")


def test_a_choice_is_committed_and_revealed(open_notebook: Opener, page: Any) -> None:
    """Commit without a choice is refused in words; with one the reveal says that it was right."""
    from playwright.sync_api import expect

    notebook = open_notebook(NOTEBOOK)
    notebook.run_all()
    asked = form(page, "Which of the two")
    asked.get_by_role("button", name="Commit").click()
    expect(asked).to_contain_text("Not committed")
    asked.get_by_label("both", exact=True).check()
    asked.get_by_role("button", name="Commit").click()
    expect(asked).to_contain_text("Committed: both (50% sure)")
    notebook.run_cells("reveal(choice")
    expect(card(page, "Which of the two")).to_contain_text("Your prediction was right.")


def test_no_label_is_cut(open_notebook: Opener, page: Any) -> None:
    """Every label of the forms is as wide as its text."""
    open_notebook(NOTEBOOK).run_all()
    form(page, "Which of the two").wait_for()
    labels = page.locator(".widget-vbox .widget-label:visible")
    cut = labels.evaluate_all(
        "all => all.filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.innerText)"
    )
    assert labels.count() >= 4
    assert [label for label in cut if label not in {"clients", ""}] == []


def test_a_wrong_answer_is_named_and_hints_unfold(open_notebook: Opener, page: Any) -> None:
    """The misconception is in sight, the hints are folded until they are clicked, an unsolved exercise is no error."""
    from playwright.sync_api import expect

    open_notebook(NOTEBOOK).run_all()
    wrong = card(page, "The time per output token of one request")
    expect(wrong).to_contain_text("not yet (one token per chunk)")
    hint = wrong.get_by_text("TTFT covers the first token")
    expect(hint).to_be_hidden()
    wrong.get_by_text("Hint 1", exact=True).click()
    expect(hint).to_be_visible()
    expect(wrong.get_by_text("def tpot_s")).to_be_hidden()
    expect(card(page, "Goodput at an SLO")).to_contain_text("not answered yet")


def test_charts_are_drawn_offline(open_notebook: Opener, page: Any, watch: Watch) -> None:
    """A chart is a drawing, not a picture or an error, with a description, and nothing went outside."""
    from playwright.sync_api import expect

    open_notebook(NOTEBOOK).run_all()
    expect(page.locator(".jp-RenderedVegaCommon5 svg.marks").filter(has_text="throughput (tok/s)")).to_be_visible()
    expect(page.locator(".jp-RenderedVegaCommon5 [aria-label^='Throughput and E2E against']")).to_be_visible()
    assert watch.outside == []


def test_a_live_chart_follows_the_slider(open_notebook: Opener, page: Any) -> None:
    """A key on the slider draws the chart anew."""
    from playwright.sync_api import expect

    open_notebook(NOTEBOOK).run_all()
    live = page.locator("svg.marks").filter(has_text="Live")
    expect(live).to_contain_text("2 clients")
    page.locator(".widget-hslider").filter(has_text="clients").get_by_role("slider").press("ArrowRight")
    expect(live).to_contain_text("3 clients")
