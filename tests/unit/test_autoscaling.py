"""How many replicas a load asks for, and loads that would show nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.theory.autoscaling import StepLoad, desired_replicas

rates = st.floats(0.1, 1000)
durations = st.floats(0.001, 60)
targets = st.floats(0.1, 100)


@given(rates, durations, targets, st.integers(0, 5), st.integers(5, 50))
def test_the_least_number_that_keeps_the_target(
    rate: float, duration_s: float, target: float, low: int, high: int
) -> None:
    """Each replica has at most its target under way, and with one replica fewer it would have more; within limits."""
    found = desired_replicas(rate, duration_s, target, low, high)
    assert low <= found <= high
    ongoing = rate * duration_s
    if found < high:
        assert ongoing <= found * target * (1 + 1e-9)
    if found > max(low, 1):
        assert ongoing > (found - 1) * target * (1 - 1e-9)


@given(rates, durations, targets)
def test_twice_as_long_is_as_good_as_twice_as_many(rate: float, duration_s: float, target: float) -> None:
    """Only the product of rate and duration counts: volume alone decides nothing."""
    one = desired_replicas(2 * rate, duration_s, target, 1, 10**9)
    other = desired_replicas(rate, 2 * duration_s, target, 1, 10**9)
    assert one == other


def step(**changes: float) -> StepLoad:
    """The lab's own load, changed."""
    values = {"rate": 8.0, "short_s": 0.05, "long_s": 0.7, **changes}
    return StepLoad(**values)


def test_the_labs_own_load_passes() -> None:
    """One replica before the step, three after it, and three are allowed."""
    step().check(target_ongoing=2, max_replicas=3)


@pytest.mark.parametrize(
    ("load", "target", "most", "message"),
    [
        (step(short_s=1.0), 2, 8, "8 requests/s of 1 s ask for 4 replicas before the step"),
        (step(long_s=0.1), 2, 8, "8 requests/s of 0.1 s ask for one replica: nothing would happen"),
        (step(long_s=2.0), 2, 4, "the step asks for 8 replicas and max_replicas is 4"),
    ],
)
def test_a_load_that_shows_nothing_is_refused(load: StepLoad, target: float, most: int, message: str) -> None:
    """The message has the numbers and says which parameter to change."""
    with pytest.raises(UsageError) as caught:
        load.check(target_ongoing=target, max_replicas=most)
    assert message in caught.value.what
    assert "step_rate" in caught.value.remedy or "long_s" in caught.value.remedy
