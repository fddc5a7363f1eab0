"""The charts of lab 06: models on GPUs, and an article's figures beside one's own."""

from html import unescape

import pytest

from labkit import charts
from labkit.errors import UsageError
from labkit.theory import placement
from tests.unit.chart_drill import assert_draws_and_says_what_it_is

MODELS = [
    placement.Model(name=name, memory_gib=gib, load=load)
    for name, gib, load in [("chat", 24, 0.42), ("code", 20, 0.3), ("search", 16, 0.5)]
]
PLANS = {
    "dedicated": placement.dedicated(MODELS),
    "by memory alone": placement.first_fit_decreasing(MODELS, gpu_gib=80),
}
ROWS = [charts.Beside("GPUs, fewer", 30, 30, 50), charts.Beside("throughput, more", 30, 50, -0.4, -2, 1.5)]
DRAWN = {
    "packing": charts.gpu_packing(PLANS, MODELS, gpu_gib=80, most_load=0.7, title="Three models, two plans"),
    "no plan of the load": charts.gpu_packing(PLANS, MODELS, gpu_gib=80, title="Three models"),
    "beside": charts.article_beside(ROWS, title="The article and yours", axis_title="percent"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_chart_draws_and_says_what_it_is(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Vega-Lite 5 compiles it without a warning; title and description are in the drawing, no text is small."""
    assert_draws_and_says_what_it_is(DRAWN[name], capfd)


def test_each_gpu_shows_its_sums() -> None:
    """All three on one GPU: three quarters of its memory, and more load than it has compute."""
    drawn = unescape(charts.svg(charts.spec(DRAWN["packing"])))
    for text in ("75%", "122%", "planned", "full", "by memory alone, GPU 0", "dedicated, GPU 2"):
        assert f">{text}<" in drawn


def test_both_figures_are_written_out() -> None:
    """The article's band and one's own value with its interval stand beside each other."""
    drawn = unescape(charts.svg(charts.spec(DRAWN["beside"])))
    for text in ("the article: 30%", "here: 50%", "the article: 30 to 50%", "here: -0.4% (-2 to 1.5%)"):
        assert f">{text}<" in drawn


def test_nothing_to_draw_is_refused() -> None:
    """A plan without models, and no rows."""
    with pytest.raises(UsageError, match="without GPUs"):
        charts.gpu_packing({"empty": {}}, MODELS, gpu_gib=80, title="x")
    with pytest.raises(UsageError, match="no rows"):
        charts.article_beside([], title="x", axis_title="y")
