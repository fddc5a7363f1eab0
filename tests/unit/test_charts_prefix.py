"""The charts of lab 03: prompts block by block, and a model with measurements over it."""

from itertools import takewhile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit import charts
from labkit.charts import LinePoint
from labkit.charts.curves import residuals
from labkit.charts.spans import FOUND, PARTIAL, pieces
from labkit.errors import UsageError
from tests.unit.chart_drill import assert_draws_and_says_what_it_is

quick = settings(max_examples=60, deadline=None)
PROMPTS = {"first": [*range(70)], "second": [*range(64), 900, 901], "other": [5, *range(69)]}
MODEL = [LinePoint(x, 1 + x / 64 * n, f"series {n}") for n in (1, 2) for x in range(0, 129, 16)]
MEASURED = [
    LinePoint(x, 1 + x / 60 * n, f"series {n}", 1 + x / 70 * n, 1 + x / 50 * n) for n in (1, 2) for x in (0, 64)
]
WORDS: dict[str, Any] = {"title": "Over the model", "x_title": "shared tokens", "y_title": "times faster", "unit": "x"}
DRAWN = {
    "blocks": charts.prefix_blocks(PROMPTS, block_size=32, title="Blocks"),
    "plain": charts.model_and_measured(MODEL, MEASURED[:1], **WORDS),
    "whole": charts.model_and_measured(MODEL, MEASURED, guess=2.5, article=(1.3, 1.5), residual=True, **WORDS),
    "steps": charts.model_and_measured(MODEL, MEASURED, guesses=[LinePoint(64, 2.0, "series 1")], steps=True, **WORDS),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_chart_draws_and_says_what_it_is(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Vega-Lite 5 compiles it without a warning; title and description are in the drawing."""
    assert_draws_and_says_what_it_is(DRAWN[name], capfd)


@quick
@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=40), min_size=1, max_size=6), st.integers(1, 8))
def test_a_prompt_is_drawn_whole_and_found_as_the_cache_finds(prompts: list[list[int]], block_size: int) -> None:
    """Pieces cover each prompt without a gap; the blocks drawn as found are those of an earlier prompt's beginning."""
    named = {str(k): prompt for k, prompt in enumerate(prompts)}
    drawn = list(pieces(named, block_size=block_size))
    for number, (name, prompt) in enumerate(named.items()):
        mine = [piece for piece in drawn if piece.prompt == name]
        assert [piece.start for piece in mine] + [len(prompt)] == [0, *(piece.end for piece in mine)]
        pairs = (zip(earlier, prompt, strict=False) for earlier in prompts[:number])
        common = (len(list(takewhile(lambda pair: pair[0] == pair[1], each))) for each in pairs)
        known = max(common, default=0) // block_size
        assert sum(piece.kind == FOUND for piece in mine) == known
        assert sum(piece.kind == PARTIAL for piece in mine) == (len(prompt) % block_size > 0)


def test_guesses_are_drawn_at_their_points() -> None:
    """A guess for one series at one x stands there, with its value in words."""
    assert "your guess: 2x" in charts.svg(DRAWN["steps"])
    assert "your guess: 2.5x" in charts.svg(DRAWN["whole"])


def test_residuals_are_relative_to_the_model() -> None:
    """Measured over model less 1, interval included; a point where the model says nothing has no residual."""
    model = [LinePoint(1, 2.0, "a"), LinePoint(2, 4.0, "b")]
    measured = [LinePoint(1, 3.0, "a", 2.0, 4.0), LinePoint(1, 3.0, "b"), LinePoint(2, 3.0, "b")]
    assert residuals(model, measured) == [LinePoint(1, 0.5, "a", 0.0, 1.0), LinePoint(2, -0.25, "b")]


def test_the_description_has_the_numbers() -> None:
    """Who cannot see the chart hears the measured points and how far the model is off at most."""
    text = charts.spec(DRAWN["whole"])["description"]
    assert "series 2 at 64: 3.13x" in text
    assert "off by 4% at most" in text
    assert "second: 2 blocks found, 0 new, 1 not full" in charts.spec(DRAWN["blocks"])["description"]


@pytest.mark.parametrize(
    "empty",
    [
        lambda: charts.prefix_blocks({}, block_size=32, title="Nothing"),
        lambda: charts.prefix_blocks({"a": []}, block_size=32, title="Nothing"),
        lambda: charts.model_and_measured([], MEASURED, title="Nothing", x_title="", y_title=""),
        lambda: charts.model_and_measured(MODEL, [], title="Nothing", x_title="", y_title=""),
    ],
)
def test_a_chart_of_nothing_is_refused(empty: Any) -> None:
    """Without data the chart is named and nothing is drawn."""
    with pytest.raises(UsageError, match="Nothing"):
        empty()
