"""Requests accounted for by fate, intervals of a difference of failures, loads that cannot work; and their charts."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from course import lab_08
from labkit import charts
from labkit.charts import curves, panels
from labkit.errors import UsageError
from labkit.experiments import Interval
from labkit.serving.ray_watch import Answer
from tests.unit.chart_drill import assert_draws_and_says_what_it_is


def answer(status: int, version: str = "", *, at_s: float = 0.0) -> Answer:
    """An answer that a version signed, or that none did."""
    body = {"version": version} if version else {"code": status, "message": "no"}
    return Answer(at_s, at_s + 0.1, status, json.dumps(body) if status else "TimeoutError")


@pytest.mark.parametrize(
    ("one", "fate"),
    [
        (answer(200, "1.0"), "1.0"),
        (answer(500, "2.0"), "2.0 failed"),
        (answer(404), "404"),
        (answer(0), "no answer"),
        (Answer(0, 1, 503, "<html>"), "503"),
        (Answer(0, 1, 200, "[1]"), "200"),
    ],
)
def test_the_fate_of_a_request(one: Answer, fate: str) -> None:
    """A version signs its answers and its own errors; everything else goes by its status, or is no answer."""
    assert lab_08.fate(one) == fate
    assert bool(lab_08.lost([one])) == (fate not in ("1.0", "2.0 failed"))


@given(st.lists(st.tuples(st.sampled_from([0, 200, 404, 500]), st.sampled_from(["", "1.0", "2.0"])), max_size=40))
def test_the_books_add_up(pairs: list[tuple[int, str]]) -> None:
    """Every request stands in the books once, and the lost ones are those that no version signed."""
    answers = [answer(status, version) for status, version in pairs]
    found = lab_08.books(answers)
    assert sum(found.values()) == len(answers)
    assert len(lab_08.lost(answers)) == sum(not version or not status for status, version in pairs)


def test_the_interval_is_that_of_the_paper() -> None:
    """Newcombe's own examples: 56 of 70 against 48 of 80, and 9 of 10 against 3 of 10 (table II, method 10)."""
    first, second = lab_08.failure_difference(56, 70, 48, 80), lab_08.failure_difference(9, 10, 3, 10)
    assert (first.value, first.low, first.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert (second.value, second.low, second.high) == pytest.approx((0.6, 0.1705, 0.8090), abs=5e-5)


counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, counts)
def test_the_interval_is_one(canary: tuple[int, int], before: tuple[int, int]) -> None:
    """It holds the value, stays between -1 and 1, mirrors when the sides change places, and narrows with more."""
    found = lab_08.failure_difference(*canary, *before)
    other = lab_08.failure_difference(*before, *canary)
    assert -1 - 1e-9 <= found.low <= found.value <= found.high <= 1 + 1e-9
    assert (other.low, other.high) == pytest.approx((-found.high, -found.low))
    more = lab_08.failure_difference(canary[0] * 4, canary[1] * 4, before[0] * 4, before[1] * 4)
    assert more.high - more.low < found.high - found.low


@given(counts, st.sampled_from([0.8, 0.95, 0.99]))
def test_the_interval_of_one_share(failed_of: tuple[int, int], confidence: float) -> None:
    """It is scipy's Wilson interval."""
    theirs = binomtest(*failed_of).proportion_ci(confidence, method="wilson")
    assert lab_08.wilson(*failed_of, confidence=confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of 2000 canaries drawn by chance, about 95 percent have the true difference inside their interval."""
    rng, inside = random.Random(0), 0
    for _ in range(2000):
        canary, before = (sum(rng.random() < share for _ in range(n)) for share, n in ((0.1, 60), (0.03, 200)))
        found = lab_08.failure_difference(canary, 60, before, 200)
        inside += found.low <= 0.07 <= found.high
    assert 0.93 <= inside / 2000 <= 0.98


def test_no_requests_no_difference() -> None:
    """A side without requests is told which one."""
    with pytest.raises(UsageError, match="the version before got 0 requests"):
        lab_08.failure_difference(1, 2, 0, 0)


def test_the_canary_as_it_went() -> None:
    """It begins when both versions have answered, ends with all of them, and goes by when answers came."""
    answers = [answer(200, "3.0", at_s=3), answer(500, "3.0", at_s=1), answer(200, "2.0", at_s=2), answer(404, at_s=4)]
    found = lab_08.as_it_went(answers, canary="3.0", before="2.0")
    assert [(place, one.value) for place, one in found] == [(2, 1.0), (3, 0.5), (4, 0.5)]


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.01, 0.2, "worse"), (-0.2, -0.01, "better"), (-0.1, 0.1, "cannot tell")]
)
def test_the_verdict_of_an_interval(low: float, high: float, said: str) -> None:
    """Only an interval that leaves out zero says which one fails more."""
    assert lab_08.verdict(Interval(value=(low + high) / 2, low=low, high=high, n=10)) == said


@given(st.lists(st.sampled_from("ab"), max_size=6), st.lists(st.sampled_from("ab"), max_size=6))
def test_the_first_difference(left: list[str], right: list[str]) -> None:
    """Up to it both are the same, at it they are not; without one they are equal."""
    found = lab_08.first_difference(left, right)
    if found is None:
        assert left == right
    else:
        assert left[:found] == right[:found]
        assert left[found : found + 1] != right[found : found + 1]


def test_a_load_has_to_fit_one_worker() -> None:
    """One worker answers 8 requests in 0.07 s: 80 a second pass, 110 are refused with the numbers."""
    cost = {"batch_size": 8, "fixed_s": 0.05, "per_row_s": 0.0025}
    assert lab_08.capacity(**cost) == pytest.approx(8 / 0.07)  # type: ignore[arg-type]
    lab_08.check_load(80, **cost)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="110 requests/s are too many for one worker, which answers 114") as caught:
        lab_08.check_load(110, **cost)  # type: ignore[arg-type]
    assert "102 or less" in caught.value.remedy


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_a_canary_needs_requests_on_both_sides(share: float) -> None:
    """A share that leaves one side a handful is refused."""
    lab_08.check_canary(400, 0.05)
    with pytest.raises(UsageError, match="leaves one side 4"):
        lab_08.check_canary(400, share)


FATES = [(0.0, 0.1, "1.0"), (0.5, 0.2, "2.0"), (1.0, 3.0, "no answer"), (1.1, 0.01, "404")]
MOMENTS = [charts.Moment(0.4, "2.0 is there"), charts.Moment(0.9, "1.0 is deleted")]
BANDS = [("5%", 10, 0.1, -0.1, 0.4), ("5%", 40, 0.08, -0.02, 0.2), ("50%", 40, 0.07, 0.01, 0.15)]
DRAWN = {
    "fates": panels.request_fates(FATES, answered=("1.0", "2.0"), moments=MOMENTS, title="A switch"),
    "nothing lost": panels.request_fates(FATES[:2], answered=("1.0", "2.0"), title="A switch"),
    "narrowing": curves.narrowing(BANDS, title="A canary", y_title="fails more often by"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_chart_draws_and_says_what_it_is(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Vega-Lite 5 compiles it without a warning; title and description are in the drawing, no text is small."""
    assert_draws_and_says_what_it_is(DRAWN[name], capfd)


def test_lost_requests_are_crosses_in_other_colours() -> None:
    """What was answered and what was not differ in shape and colour; a version's own errors have its colour."""
    fates, answered = ["1.0", "1.0 failed", "2.0", "404", "no answer"], ("1.0", "1.0 failed", "2.0")
    looks = panels.fate_looks(fates, answered)
    assert [looks[fate][1] for fate in fates] == ["circle", "triangle-up", "circle", "cross", "cross"]
    first, failed, *others = (looks[fate][0] for fate in fates)
    assert first == failed
    assert len({first, *others}) == 4


def test_empty_charts_are_refused() -> None:
    """A chart of nothing says so."""
    with pytest.raises(UsageError, match="no requests"):
        panels.request_fates([], answered=(), title="t")
    with pytest.raises(UsageError, match="no intervals"):
        curves.narrowing([], title="t", y_title="y")


def test_the_description_counts() -> None:
    """Whoever cannot see the chart is told how many requests met which fate, and when what happened."""
    text = charts.spec(DRAWN["fates"])["description"]
    assert "4 requests" in text
    assert "1 404, 1 no answer" in text
    assert "1.0 is deleted at 0.9 s" in text
    assert math.isclose(max(waited for _, waited, _ in FATES), 3.0)
