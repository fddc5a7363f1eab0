"""Ray's best fit, and numbers that Ray refuses."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.theory import placement

quick = settings(max_examples=150, deadline=None)
parts = st.integers(1, 10_000).map(lambda units: units / 10_000)
asked = st.lists(st.one_of(parts, st.integers(0, 4).map(float)), max_size=14)


@quick
@given(asked, st.integers(1, 5))
def test_replicas_are_placed_by_rays_rule(fractions: list[float], gpus: int) -> None:
    """The parts on a GPU add up to one at most, and a whole GPU is nobody else's. A replica waits only if no GPU has
    its part left (or too few are empty), and takes the fullest that has."""
    placed, left = placement.best_fit(fractions, gpus), [Fraction(1)] * gpus
    for asks, where in zip(fractions, placed, strict=True):
        part = Fraction(round(asks * 10_000), 10_000)
        if 0 < part <= 1:
            holding = [free for free in left if free >= part]
            assert bool(where) == bool(holding)
            assert not where or left[where[0]] == min(holding)
        elif part > 1:
            assert (len(where) == part) == (left.count(Fraction(1)) >= part)
        for gpu in where:
            left[gpu] -= min(part, Fraction(1))
    assert min(left) >= 0
    assert placement.left_over(fractions, gpus) == [float(free) for free in left]


def test_the_lab_placement_of_ray() -> None:
    """What Ray 2.60 did on four logical GPUs: gaps are filled, and 1.35 GPUs in all do not hold a half."""
    scene = [0.5, 0.25, 0.7, 0.6, 0.6]
    assert placement.best_fit([*scene, 0.5], 4) == [(0,), (0,), (1,), (2,), (3,), ()]
    assert placement.left_over(scene, 4) == [0.25, 0.3, 0.4, 0.4]
    assert placement.best_fit([0.25] * 4 + [0.5] * 2, 4) == [(0,)] * 4 + [(1,)] * 2
    assert placement.best_fit([0.5, 2, 3, 1], 4) == [(0,), (1, 2), (), (3,)]


def test_what_ray_refuses_is_refused() -> None:
    """Fractions above 1 and negative numbers are UsageErrors."""
    for wrong in (1.5, -0.1, math.nan, math.inf, 2.0001):
        with pytest.raises(UsageError, match="num_gpus is"):
            placement.best_fit([wrong], 4)
