"""Lab 08b: users assigned by a hash, intervals of a difference of failures, the size of a test."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course import lab_08b
from labkit.experiments import Interval
from labkit.session import LabSession
from tests.unit.chart_drill import assert_draws_and_says_what_it_is
from tests.unit.refusals import not_refused
from tests.unit.test_lab_08 import answer

# --- assignment ---


@given(st.text(max_size=12), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_keeps_the_users_of_the_smaller_one(user: str, one: float, other: float) -> None:
    """A user with the canary keeps it when the share grows; at 0 no user has it, at 1 all have."""
    small, large = sorted((one, other))
    assert lab_08b.gets_canary(user, small, "t") <= lab_08b.gets_canary(user, large, "t")
    assert (lab_08b.gets_canary(user, 0, "t"), lab_08b.gets_canary(user, 1, "t")) == (False, True)


def test_the_share_is_kept_and_tests_are_independent() -> None:
    """Of 4,000 users a fifth has the canary, and of these a fifth has that of another test as well."""
    users = [f"user-{n}" for n in range(4000)]
    first, second = ({user for user in users if lab_08b.gets_canary(user, 0.2, test)} for test in ("a", "b"))
    assert len(first) / 4000 == pytest.approx(0.2, abs=0.02)
    assert len(first & second) / len(first) == pytest.approx(0.2, abs=0.05)


# --- intervals ---


def test_the_interval_is_that_of_the_paper() -> None:
    """Newcombe's own examples: 56 of 70 against 48 of 80, and 9 of 10 against 3 of 10 (table II, method 10)."""
    first, second = lab_08b.failure_difference(56, 70, 48, 80), lab_08b.failure_difference(9, 10, 3, 10)
    assert (first.value, first.low, first.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert (second.value, second.low, second.high) == pytest.approx((0.6, 0.1705, 0.8090), abs=5e-5)


counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, counts)
def test_the_interval_holds_its_value(canary: tuple[int, int], before: tuple[int, int]) -> None:
    """It stays between -1 and 1, mirrors when the sides change places, and narrows with more requests."""
    found = lab_08b.failure_difference(*canary, *before)
    other = lab_08b.failure_difference(*before, *canary)
    assert -1 - 1e-9 <= found.low <= found.value <= found.high <= 1 + 1e-9
    assert (other.low, other.high) == pytest.approx((-found.high, -found.low))
    more = lab_08b.failure_difference(canary[0] * 4, canary[1] * 4, before[0] * 4, before[1] * 4)
    assert more.high - more.low < found.high - found.low


ANSWERS = [answer(500, "3.0", at_s=1), answer(200, "2.0", at_s=2), answer(200, "3.0", at_s=3), answer(404, at_s=4)]


def test_the_path_of_an_interval() -> None:
    """It begins when both versions have answered; an answer that no version signed changes nothing."""
    found = lab_08b.path(ANSWERS, canary="3.0", before="2.0")
    assert [(place, interval.value) for place, interval in found] == [(2, 1.0), (3, 0.5), (4, 0.5)]
    assert (lab_08b.group(ANSWERS, "3.0"), lab_08b.group(ANSWERS, "2.0")) == ((1, 2), (0, 1))


def test_the_conclusion_of_an_interval() -> None:
    """Only an interval that leaves out zero says which version fails more."""
    for low, high, said in ((0.01, 0.2, "worse"), (-0.2, -0.01, "better"), (-0.1, 0.1, "cannot tell")):
        assert lab_08b.conclusion(Interval(value=(low + high) / 2, low=low, high=high, n=10)) == said


def test_the_forest_has_a_row_for_each_canary(capfd: pytest.CaptureFixture[str]) -> None:
    """In percentage points, with the conclusion beside the interval and its way in a panel of its own."""
    paths = {name: lab_08b.path(ANSWERS, canary="3.0", before="2.0") for name in ("5%", "50%")}
    chart = lab_08b.forest_chart(paths, title="T")
    assert_draws_and_says_what_it_is(chart, capfd)
    forest, inset = chart["hconcat"]
    rows = [(row["name"], row["value"], row["text"]) for row in forest["layer"][1]["data"]["values"]]
    assert rows == [("5%", 50, "cannot tell"), ("50%", 50, "cannot tell")]
    assert {row["n"] for row in inset["layer"][1]["data"]["values"]} == {2, 3, 4}


# --- the size of a test ---


def test_the_size_of_a_test_has_the_power_that_was_asked_for() -> None:
    """A textbook's number (10% against 5%: 432 in each group), and a simulation that agrees; equal versions are called
    worse in a fortieth of all tests."""
    assert lab_08b.requests_needed(0.1, 0.05) == 432
    assert lab_08b.detected(0.1, 0.05, 432) == pytest.approx(0.8, abs=0.04)
    assert lab_08b.detected(0.1, 0.05, 100) < 0.4
    assert lab_08b.detected(0.05, 0.05, 432) == pytest.approx(0.025, abs=0.015)


def test_more_looks_are_more_false_alarms() -> None:
    """One look keeps its 5%; twenty looks do not."""
    one, many = (lab_08b.false_alarms(0.05, 2000, looks=looks) for looks in (1, 20))
    assert one == pytest.approx(0.05, abs=0.015)
    assert many > 3 * one


def test_a_canary_that_can_say_nothing_is_refused() -> None:
    """Too few requests for the canary, versions that fail alike, and a side without requests."""
    usual = {"fail_share": 0.05, "canary_fail_share": 0.15, "canary_requests": 400, "canary_share": 0.05}

    def checked(changes: dict[str, Any]) -> None:
        lab_08b.check(cast(LabSession, SimpleNamespace(parameters=usual | changes)))

    checked({})
    refused = [
        ({"canary_share": 0.02}, "leaves the canary 8"),
        ({"canary_fail_share": 0.05}, "both versions fail in 5%"),
    ]
    assert not_refused(checked, refused) == []
    sides = [((1, 2, 0, 0), "the version before got 0 requests")]
    assert not_refused(lambda side: lab_08b.failure_difference(*side), sides) == []
