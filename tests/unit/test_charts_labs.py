"""Charts that one lab draws: a load's timeline (05), the fates of requests and a canary (08), two clients (09)."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit import charts
from labkit.charts import curves, panels
from labkit.charts.bars import Reading, two_clients
from labkit.charts.panels import MOST, _thinned
from labkit.errors import UsageError
from tests.unit.chart_drill import assert_draws_and_says_what_it_is

FATES = [(0.0, 0.1, "1.0"), (0.5, 0.2, "2.0"), (1.0, 3.0, "no answer"), (1.1, 0.01, "404")]
MOMENTS = [charts.Moment(0.4, "2.0 is there"), charts.Moment(0.9, "1.0 is deleted")]
BANDS = [("5%", 10, 0.1, -0.1, 0.4), ("5%", 40, 0.08, -0.02, 0.2), ("50%", 40, 0.07, 0.01, 0.15)]
DRAWN = {
    "fates": panels.request_fates(FATES, answered=("1.0", "2.0"), moments=MOMENTS, title="A switch"),
    "nothing lost": panels.request_fates(FATES[:2], answered=("1.0", "2.0"), title="A switch"),
    "narrowing": curves.narrowing(BANDS, title="A canary", y_title="fails more often by"),
}


def test_every_chart_draws_and_says_what_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    """Vega-Lite 5 compiles it without a warning; title and description are in the drawing, no text is small."""
    for chart in DRAWN.values():
        assert_draws_and_says_what_it_is(chart, capfd)


def test_lost_requests_are_crosses_and_counted_in_words() -> None:
    """Answered and lost differ in shape, a version's own errors have its colour; the description has the numbers."""
    fates, answered = ["1.0", "1.0 failed", "2.0", "404", "no answer"], ("1.0", "1.0 failed", "2.0")
    looks = panels.fate_looks(fates, answered)
    assert [looks[fate][1] for fate in fates] == ["circle", "triangle-up", "circle", "cross", "cross"]
    first, failed, *others = (looks[fate][0] for fate in fates)
    assert (first, len({first, *others})) == (failed, 4)
    text = charts.spec(DRAWN["fates"])["description"]
    said = ("4 requests", "1 404, 1 no answer", "1.0 is deleted at 0.9 s")
    assert [words for words in said if words not in text] == []


def timeline(**changes: Any) -> dict[str, Any]:
    """The specification of a load's timeline."""
    data: dict[str, Any] = {
        "replicas": [(0.0, 1), (5.0, 1), (9.0, 2), (12.0, 3), (20.0, 1)],
        "under_way": [(0.5, 1), (0.6, 0), (4.0, 7), (15.0, 0)],
        "latencies": [(0.5, 0.1), (4.0, 3.0), (8.0, 1.2)],
        "title": "T",
    }
    spec: dict[str, Any] = charts.spec(charts.scaling_timeline(**{**data, **changes}))
    return spec


def test_the_timeline_has_three_panels_on_one_axis() -> None:
    """Replicas, requests under way and latency, each to the same end; the description has the extremes and losses."""
    drawn = timeline(moments=[charts.Moment(3.0, "the step")], lost=[2.0, 2.5])
    ends = [str(panel["encoding"]["x"]["scale"]["domain"]) for panel in timeline()["vconcat"]]
    assert (len(ends), len(set(ends))) == (3, 1)
    said = (
        *("1 from 0.0 s, 2 from 9.0 s, 3 from 12.0 s", "At most 7 requests under way", "2 requests lost"),
        "Latency from 0.10 to 3.00 s; the step at 3.0 s",
    )
    assert [words for words in said if words not in drawn["description"]] == []
    assert charts.svg(drawn).startswith("<svg")


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=1500), st.integers(0, 20))
def test_a_thinned_curve_keeps_its_top_and_its_end(gaps: list[float], seed: int) -> None:
    """However many points, few are drawn, in order of time; the highest value and the last point are among them."""
    times = list(itertools.accumulate(gaps))
    points = [(at, float((n * 7919 + seed) % 101)) for n, at in enumerate(times)]
    drawn = _thinned(points, times[-1])
    assert len(drawn) <= MOST + 2
    assert [at for at, _ in drawn] == sorted(at for at, _ in drawn)
    assert max(value for _, value in drawn) == max(value for _, value in points)
    assert drawn[-1] == points[-1]
    assert set(drawn) <= set(points)


def reading(server: str, client: str, *values: float, quantity: str = "speed") -> Reading:
    """In tokens per second."""
    return Reading(server=server, client=client, quantity=quantity, unit="tok/s", values=values)


def test_every_slice_of_both_clients_is_a_point() -> None:
    """A panel a quantity, a point a slice, all of them on an axis from zero; the description has the means."""
    rows = [reading(s, c, 3.0, 5.0, quantity=q) for q in ("x", "y") for s in ("A", "B") for c in ("one", "two")]
    spec = charts.spec(two_clients(rows, title="t", caption="m"))
    values = [row["value"] for panel in spec["vconcat"] for row in panel["data"]["values"]]
    assert sorted(values) == [3.0] * 8 + [5.0] * 8
    low, high = zip(*(panel["encoding"]["x"]["scale"]["domain"] for panel in spec["vconcat"]), strict=True)
    assert set(low) == {0}
    assert min(high) >= 5.0
    assert "x, A, one: mean 4 tok/s" in spec["description"]
    assert charts.svg(spec).startswith("<svg")


def test_charts_of_nothing_are_refused() -> None:
    """Without requests, intervals, replicas or latencies there is nothing to draw; two clients are two."""
    refused: list[tuple[str, Callable[[], object]]] = [
        ("no requests", lambda: panels.request_fates([], answered=(), title="t")),
        ("no intervals", lambda: curves.narrowing([], title="t", y_title="y")),
        ("nothing to show", lambda: timeline(replicas=[])),
        ("nothing to show", lambda: timeline(latencies=[])),
        ("of 0 clients", lambda: two_clients([], title="t")),
        ("of 3 clients", lambda: two_clients([reading("A", client, 1.0) for client in "abc"], title="t")),
    ]
    for message, draw in refused:
        with pytest.raises(UsageError, match=message):
            draw()
