"""The slider that runs an experiment: always one chart and one line of text, also after a failure."""

from typing import Any

import pytest

from labkit.charts.bars import Bar, bars_with_intervals
from labkit.charts.explore import Explorer, explore
from labkit.errors import UsageError
from labkit.vega import MIME

RUNS: list[int] = []
STARTED: list[str] = []


@pytest.fixture
def explorer() -> Explorer[int, int]:
    """Starts at 1,024 of three budgets; the engine refuses the largest."""
    RUNS.clear()

    def run(budget: int) -> int:
        if RUNS:
            STARTED[:] = [made.line.value, *made.picture._dom_classes]
        RUNS.append(budget)
        if budget == 4096:
            raise ValueError("<no memory>")
        return budget * 2

    made = explore([512, 1024, 4096], run, draw, name="budget", start=1024)
    return made


def draw(budget: int, doubled: int) -> tuple[Any, str]:
    """A chart and a line of text."""
    return bars_with_intervals([Bar("x", doubled)], title=f"Budget {budget}", unit="x"), f"is {doubled}"


def titles(explorer: Explorer[int, int]) -> list[str]:
    """The titles of the charts shown."""
    return [output["data"][MIME]["title"]["text"] for output in explorer.picture.outputs]


def test_one_run_is_shown_without_a_click(explorer: Explorer[int, int]) -> None:
    """The start value has been run once, its chart and line are there; thousands are separated in the labels."""
    assert RUNS == [1024]
    assert titles(explorer) == ["Budget 1024"]
    assert "is 2048" in explorer.line.value
    assert (explorer.value, explorer.result) == (1024, 2048)
    assert [label for label, _ in explorer.slider.options] == ["512", "1,024", "4,096"]


def test_a_move_replaces_chart_and_line(explorer: Explorer[int, int]) -> None:
    """While the experiment runs, the line names the value and the picture is dimmed; then there is one new chart."""
    explorer.slider.value = 512
    assert "Running budget = 512" in STARTED[0]
    assert "labkit-running" in STARTED
    assert RUNS == [1024, 512]
    assert titles(explorer) == ["Budget 512"]
    assert "is 1024" in explorer.line.value
    assert "labkit-running" not in explorer.picture._dom_classes


def test_a_failing_run_is_reported_and_the_last_picture_stays(explorer: Explorer[int, int]) -> None:
    """The error is in the line, escaped; the next move works."""
    explorer.slider.value = 4096
    assert "ValueError: &lt;no memory&gt;" in explorer.line.value
    assert 'role="alert"' in explorer.line.value
    assert titles(explorer) == ["Budget 1024"]
    assert explorer.value == 1024
    explorer.slider.value = 512
    assert titles(explorer) == ["Budget 512"]


def test_pages_without_widgets_get_a_picture_and_the_line(explorer: Explorer[int, int]) -> None:
    """The bundle has the widget, a PNG with its description, and text."""
    data, metadata = explorer._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "image/png"} <= set(data)
    assert data["text/plain"].endswith("is 2048")
    assert "Budget 1024" in metadata["image/png"]["alt"]


def test_the_start_is_one_of_the_values() -> None:
    """By default the first; no values, or a start that is not among them, are refused."""
    assert explore([3, 4], abs, draw, name="budget").value == 3
    with pytest.raises(UsageError, match="has no values"):
        explore([], abs, draw, name="budget")
    with pytest.raises(UsageError, match="cannot start at 7"):
        explore([512, 1024], abs, draw, name="budget", start=7)
