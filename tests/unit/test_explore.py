"""The slider that runs an experiment: always one chart and one line of text, also after a failure."""

from typing import Any

import pytest

from labkit.charts.bars import Bar, bars_with_intervals
from labkit.charts.explore import Explorer
from labkit.vega import MIME
from tests.unit.refusals import not_refused


def draw(budget: int, doubled: int) -> tuple[Any, str]:
    """A chart and a line of text."""
    return bars_with_intervals([Bar("x", doubled)], title=f"Budget {budget}", unit="x"), f"is {doubled}"


@pytest.fixture
def explorer() -> Explorer[int, int]:
    """Starts at 1,024 of three budgets; the engine refuses the largest."""

    def run(budget: int) -> int:
        if budget == 4096:
            raise ValueError("<no memory>")
        return budget * 2

    return Explorer([512, 1024, 4096], run, draw, name="budget", start=1024)


def test_the_caption_is_below_every_title() -> None:
    """Also after a move; without one there is no line."""
    explorer = Explorer([1, 2], abs, draw, name="budget", caption="a modelled card")
    explorer.slider.value = 2
    assert explorer.chart["title"] == {"text": "Budget 2", "subtitle": ["a modelled card"]}
    assert explorer.picture.outputs[0]["data"][MIME] == explorer.chart
    assert Explorer([1], abs, draw, name="budget").chart["title"]["subtitle"] == []


def titles(explorer: Explorer[int, int]) -> list[str]:
    """The titles of the charts shown."""
    return [output["data"][MIME]["title"]["text"] for output in explorer.picture.outputs]


def test_one_run_is_shown_without_a_click(explorer: Explorer[int, int]) -> None:
    """Chart and line of the start value are there; thousands are separated in the labels. Pages without widgets get a
    PNG with its description, and the line."""
    assert (titles(explorer), explorer.value, explorer.result) == (["Budget 1024"], 1024, 2048)
    assert "is 2048" in explorer.line.value
    assert [label for label, _ in explorer.slider.options] == ["512", "1,024", "4,096"]
    data, metadata = explorer._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "image/png"} <= set(data)
    assert data["text/plain"].endswith("is 2048")
    assert "Budget 1024" in metadata["image/png"]["alt"]


def test_a_move_runs_once_and_replaces_chart_and_line(explorer: Explorer[int, int]) -> None:
    """While the experiment runs, the line names the value and the picture is dimmed."""
    said: list[tuple[str, bool]] = []

    def dimmed() -> bool:
        return "labkit-running" in explorer.picture._dom_classes

    explorer.line.observe(lambda change: said.append((change["new"], dimmed())), names="value")
    explorer.slider.value = 512
    (running, _), (done, still_dimmed) = said
    assert ("Running budget = 512" in running, "is 1024" in done) == (True, True)
    assert (titles(explorer), still_dimmed, dimmed()) == (["Budget 512"], True, False)


def test_a_failing_run_is_reported_and_the_last_picture_stays(explorer: Explorer[int, int]) -> None:
    """The error is in the line, escaped; the next move works."""
    explorer.slider.value = 4096
    assert 'role="alert">ValueError: &lt;no memory&gt;' in explorer.line.value
    assert (titles(explorer), explorer.value) == (["Budget 1024"], 1024)
    explorer.slider.value = 512
    assert titles(explorer) == ["Budget 512"]


def test_the_start_is_one_of_the_values() -> None:
    """By default the first; no values, or a start that is not among them, are refused."""
    assert Explorer([3, 4], abs, draw, name="budget").value == 3
    bad = [(([], None), "has no values"), (([512, 1024], 7), "cannot start at 7")]
    assert not_refused(lambda asked: Explorer(asked[0], abs, draw, name="budget", start=asked[1]), bad) == []
