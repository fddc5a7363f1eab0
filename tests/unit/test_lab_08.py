"""Lab 08: requests accounted for by fate, intervals of a difference of failures, loads that cannot work."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course import lab_08
from labkit.experiments import Interval
from labkit.serving.ray_watch import Answer
from tests.unit.refusals import not_refused


def answer(status: int, version: str = "", *, at_s: float = 0.0) -> Answer:
    """An answer that a version signed, or that none did."""
    body = {"version": version} if version else {"code": status, "message": "no"}
    return Answer(at_s, at_s + 0.1, status, json.dumps(body) if status else "TimeoutError")


def test_the_fate_of_a_request() -> None:
    """A version signs its answers and its own errors; everything else goes by its status, or is no answer."""
    answers = {
        "1.0": answer(200, "1.0"),
        "2.0 failed": answer(500, "2.0"),
        "404": answer(404),
        "no answer": answer(0),
        "503": Answer(0, 1, 503, "<html>"),
        "200": Answer(0, 1, 200, "[1]"),
    }
    assert [lab_08.fate(received) for received in answers.values()] == list(answers)


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


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of 1000 canaries drawn by chance, about 95 percent have the true difference inside their interval."""
    rng, inside = random.Random(0), 0
    for _ in range(1000):
        canary, before = (sum(rng.random() < share for _ in range(n)) for share, n in ((0.1, 60), (0.03, 200)))
        found = lab_08.failure_difference(canary, 60, before, 200)
        inside += found.low <= 0.07 <= found.high
    assert 0.93 <= inside / 1000 <= 0.98


def test_the_canary_as_it_went() -> None:
    """It begins when both versions have answered, ends with all of them, and goes by when answers came."""
    answers = [answer(200, "3.0", at_s=3), answer(500, "3.0", at_s=1), answer(200, "2.0", at_s=2), answer(404, at_s=4)]
    found = lab_08.as_it_went(answers, canary="3.0", before="2.0")
    assert [(place, one.value) for place, one in found] == [(2, 1.0), (3, 0.5), (4, 0.5)]


def test_the_conclusion_of_an_interval() -> None:
    """Only an interval that leaves out zero says which one fails more."""
    for low, high, said in ((0.01, 0.2, "worse"), (-0.2, -0.01, "better"), (-0.1, 0.1, "cannot tell")):
        assert lab_08.conclusion(Interval(value=(low + high) / 2, low=low, high=high, n=10)) == said


@given(st.lists(st.sampled_from("ab"), max_size=6), st.lists(st.sampled_from("ab"), max_size=6))
def test_the_first_difference(left: list[str], right: list[str]) -> None:
    """Up to it both are the same, at it they are not; without one they are equal."""
    found = lab_08.first_difference(left, right)
    if found is None:
        assert left == right
    else:
        assert left[:found] == right[:found]
        assert left[found : found + 1] != right[found : found + 1]


def test_what_cannot_work_is_refused() -> None:
    """One worker answers 8 requests in 0.07 s: 80/s pass, 110/s do not; a canary needs requests on both sides."""
    cost = {"batch_size": 8, "fixed_s": 0.05, "per_row_s": 0.0025}
    lab_08.check_load(80, **cost)  # type: ignore[arg-type]
    loads = [(110, "110 requests/s are too many for one worker, which answers 114"), (110, "102 or less")]
    assert not_refused(lambda rate: lab_08.check_load(rate, **cost), loads) == []  # type: ignore[arg-type]
    lab_08.check_canary(400, 0.05)
    shares = [(0.01, "leaves one side 4"), (0.99, "leaves one side 4")]
    assert not_refused(lambda share: lab_08.check_canary(400, share), shares) == []
    counts = [((1, 2, 0, 0), "the version before got 0 requests")]
    assert not_refused(lambda sides: lab_08.failure_difference(*sides), counts) == []
