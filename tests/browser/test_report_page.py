"""The report in a real browser: on a phone nothing is cut off, on paper no column is squeezed to letters."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from labkit import charts
from labkit.machine import to_json
from labkit.records import LabRun, Recorder, RunInfo
from labkit.records.ledger import load_claims
from labkit.report.page import build
from tests.unit import synthetic

pytestmark = pytest.mark.browser

LAB = "01_first_deployment"
QUESTION = "Output tokens a second with 16 requests in flight, divided by those with one: how many times as many?"
ANSWER = "more blocks and fewer sequences, but not fewer batched tokens"
A4_CSS_PX = 690  # the width of A4 between the report's margins, at 96 dots an inch
LINES = "e => e.getClientRects().length ? e.getBoundingClientRect().width : null"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with long questions, answers in words, a wide chart and evidence on a claim."""
    folder = tmp_path_factory.mktemp("run")
    made = Recorder(LAB, folder, {"model": "m"}, machine=synthetic.machine(), versions={"vllm": "0.1"}, seed=0)
    for n, measured in enumerate((5.65, ANSWER)):
        unit = {"unit": "x"} if n == 0 else {"options": [ANSWER]}
        made.prediction({"id": f"01.{n}", "question": QUESTION, **unit, "guess": measured, "confidence": 0.5,
                         "measured": measured, "hit": True})  # fmt: skip
    rows = [charts.Bar(f"a label of some length {n}", 1.0 + n, 0.5 + n, 2.0 + n) for n in range(4)]
    made.chart("wide", charts.spec(charts.bars_with_intervals(rows, title="Wide", unit="s")), key=True)
    made.measure("a_quantity_with_a_long_name", "tokens/s", [1.0, 2.0, 3.0])
    made.evidence("C28", **dict.fromkeys(load_claims()["C28"].rule.needs, 0))  # type: ignore[union-attr]
    made.save("done")
    now = datetime.now(UTC)
    info = RunInfo(machine=to_json(synthetic.machine()), versions={"vllm": "0.1"}, seed=0, started=now, ended=now,
                   profile="cpu", labs=(LabRun(name=LAB, status="done", seconds=60.0),))  # fmt: skip
    info.write(folder)
    return build(folder)


@pytest.fixture(scope="module")
def page(report: Path, browser: Any) -> Iterator[Any]:
    """The report, opened from the disk in a browser without a network."""
    context = browser.new_context(offline=True)
    opened = context.new_page()
    opened.goto(report.as_uri())
    yield opened
    context.close()


@pytest.mark.parametrize("width", [320, 390, 768, 860, 1280])
def test_no_page_is_wider_than_its_screen(page: Any, width: int) -> None:
    """Nothing sticks out to the right, with everything unfolded, too; a wide chart scrolls inside its card."""
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(("media", "width"), [("screen", 390), ("screen", 1280), ("print", A4_CSS_PX)])
def test_no_column_of_words_is_squeezed(page: Any, media: str, width: int) -> None:
    """A question and a verdict's reason have room for words on a phone, on a desk and on paper."""
    page.emulate_media(media=media)
    page.set_viewport_size({"width": width, "height": 900})
    words = page.locator(".predictions tbody th, .claims td:nth-child(2), .claims td:nth-child(4)")
    widths = [found for found in words.evaluate_all(f"all => all.map({LINES})") if found]
    assert len(widths) >= 4
    assert min(widths) >= 150


def test_on_paper_the_report_takes_no_more_pages_than_it_needs(page: Any) -> None:
    """One lab's report is a few sheets; the links that lead nowhere on paper are not printed."""
    page.emulate_media(media="print")
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = false)")
    assert page.locator("nav").is_hidden()
    printed: bytes = page.pdf(format="A4")
    assert 1 <= printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") <= 6
