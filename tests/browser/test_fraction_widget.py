"""The fraction auditor in a real browser: asked, changed by key, repaired by a click, exported and shown again."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.conftest import Notebook

pytestmark = pytest.mark.browser
NOTEBOOK = "fractions.ipynb"
Opener = Callable[[str], Notebook]


def auditors(page: Any) -> Any:
    """The auditors in the page, in order."""
    return page.locator(".jp-OutputArea-output .labkit-fractions")


@pytest.fixture
def opened(open_notebook: Opener) -> Notebook:
    """The notebook, run from top to bottom."""
    notebook = open_notebook(NOTEBOOK)
    notebook.run_all()
    return notebook


def test_nobody_clicks(opened: Notebook, page: Any) -> None:  # noqa: ARG001
    """Run from top to bottom, the audit is there, and the second auditor shows the exported question."""
    from playwright.sync_api import expect

    for number in (0, 1):
        one = auditors(page).nth(number)
        expect(one.get_by_role("status")).to_contain_text("It does not fit: 1 of 2 replicas start")
        expect(one.locator("tbody tr")).to_have_count(2)
        expect(one.get_by_label("Name").nth(1)).to_have_value("code")


def test_a_change_by_key_is_audited(opened: Notebook, page: Any) -> None:
    """Type a share, press Tab: the audit follows, Python sees it, and a mistake is told in words."""
    from playwright.sync_api import expect

    one = auditors(page).first
    for number in (0, 1):
        share = one.get_by_label("Engine's share").nth(number)
        share.fill("0.49")
        share.press("Tab")
    expect(one.get_by_role("status")).to_contain_text("It fits: all 2 replicas")
    opened.run_cells("in Python:")
    expect(page.get_by_text("in Python: True [0.49, 0.49]")).to_be_visible()
    first = one.get_by_label("num_gpus").first
    first.fill("half")
    first.press("Tab")
    expect(one.get_by_role("alert")).to_contain_text("Not audited: chat: num_gpus is 'half'")
    expect(one.get_by_role("status")).to_contain_text("It fits")


def test_it_works_without_a_mouse(opened: Notebook, page: Any) -> None:  # noqa: ARG001
    """The keyboard alone reaches the buttons: the numbers that fit are taken, a deployment is added and removed."""
    from playwright.sync_api import expect

    one = auditors(page).first
    take = one.get_by_role("button", name="Take the numbers that fit")
    take.focus()
    take.press("Enter")
    expect(one.get_by_role("status")).to_contain_text("It fits: all 2 replicas")
    expect(take).to_be_disabled()
    add = one.get_by_role("button", name="Add a deployment")
    add.focus()
    add.press("Enter")
    expect(one.get_by_label("Name")).to_have_count(3)
    remove = one.get_by_role("button", name="Remove").nth(2)
    remove.focus()
    remove.press("Enter")
    expect(one.get_by_label("Name")).to_have_count(2)


def test_the_question_travels(opened: Notebook, page: Any) -> None:
    """What a changed auditor exports, a new one shows."""
    from playwright.sync_api import expect

    memory = auditors(page).first.get_by_label("Memory of a GPU (GiB)")
    memory.fill("192")
    memory.press("Tab")
    expect(auditors(page).first.get_by_role("status")).to_contain_text("1 of 2 replicas start")
    opened.run_cells("in Python:")  # the kernel has heard of the change
    opened.run_cells("again = show_auditor")
    expect(auditors(page).nth(1).get_by_label("Memory of a GPU (GiB)")).to_have_value("192.0")


def test_no_label_is_cut(opened: Notebook, page: Any) -> None:  # noqa: ARG001
    """Every label and every field is as wide as what stands in it."""
    auditors(page).first.wait_for()
    labels = page.locator(".labkit-fractions .widget-label:visible")
    cut = labels.evaluate_all(
        "all => all.filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.innerText)"
    )
    assert labels.count() >= 40
    assert cut == []
    fields = page.locator(".labkit-fractions input:visible")
    narrow = fields.evaluate_all(
        "all => all.filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.value)"
    )
    assert narrow == []
