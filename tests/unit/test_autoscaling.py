"""How many replicas a load asks for."""

from hypothesis import given
from hypothesis import strategies as st

from labkit.theory.autoscaling import desired_replicas

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
