"""Models onto GPUs: Ray's best fit, first fit decreasing against the best plan, and sizes that are refused."""

import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.theory import placement
from labkit.theory.placement import Model

quick = settings(max_examples=150, deadline=None)
parts = st.integers(1, 10_000).map(lambda units: units / 10_000)
asked = st.lists(st.one_of(parts, st.integers(0, 4).map(float)), max_size=14)
GPU_GIB, MOST_LOAD = 80.0, 0.75
# Binary fractions: their sums are exact, so that an oracle may compare them.
sizes = st.tuples(st.integers(1, 64).map(lambda n: n * 1.25), st.integers(1, 24).map(lambda n: n / 32))


def models(drawn: Sequence[tuple[float, float]]) -> list[Model]:
    return [Model(name=f"m{n}", memory_gib=gib, load=load) for n, (gib, load) in enumerate(drawn)]


some_models = st.lists(sizes, min_size=1, max_size=6).map(models)


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
    """Above one only whole GPUs, and never less than nothing."""
    for wrong in (1.5, -0.1, math.nan, math.inf, 2.0001):
        with pytest.raises(UsageError, match="num_gpus is"):
            placement.best_fit([wrong], 4)


def keeps(models: Sequence[Model], plan: Mapping[str, int], most_load: float) -> bool:
    """Whether no GPU has more memory or load than it takes."""
    here = [[model for model in models if plan[model.name] == gpu] for gpu in set(plan.values())]
    return all(
        sum(model.memory_gib for model in gpu) <= GPU_GIB and sum(model.load for model in gpu) <= most_load
        for gpu in here
    )


def fewest(models: Sequence[Model], most_load: float) -> int:
    """The best plan by trying all of them: the oracle."""
    for count in range(1, len(models) + 1):
        for places in itertools.product(range(count), repeat=len(models)):
            if keeps(models, {model.name: place for model, place in zip(models, places, strict=True)}, most_load):
                return count
    raise AssertionError("unreachable: a GPU for each always does")


@settings(max_examples=60, deadline=None)
@given(some_models, st.sampled_from([MOST_LOAD, math.inf]))
def test_a_plan_lies_between_the_lower_bound_and_one_gpu_each(some: list[Model], most_load: float) -> None:
    """No plan is better than the best one, the bound is never above it, and all plans keep to memory and load."""
    plan = placement.first_fit_decreasing(some, gpu_gib=GPU_GIB, most_load=most_load)
    used, best = len(set(plan.values())), fewest(some, most_load)
    assert placement.lower_bound(some, gpu_gib=GPU_GIB, most_load=most_load) <= best <= used <= len(some)
    assert set(plan) == {one.name for one in some}
    assert set(plan.values()) == set(range(used))
    assert keeps(some, plan, most_load)
    dedicated = placement.dedicated(some)
    assert placement.loads(some, dedicated) == {gpu: one.load for gpu, one in enumerate(some)}


@quick
@given(some_models)
def test_fractions_for_ray_keep_both_bounds(some: list[Model]) -> None:
    """Where Ray places what `num_gpus` says, neither memory nor load passes its bound, the largest coming first."""
    parts = placement.num_gpus(some, gpu_gib=GPU_GIB, most_load=MOST_LOAD)
    assert list(parts.values()) == sorted(parts.values(), reverse=True)
    placed = placement.best_fit(list(parts.values()), len(some))
    assert keeps(some, {name: where[0] for name, where in zip(parts, placed, strict=True)}, MOST_LOAD)


def test_models_without_a_plan_are_refused() -> None:
    """The message has the model and the numbers; a plan is a GPU for each name."""
    refused = {
        "called nothing": ([], 1.0),
        "needs 90 GiB and a load of 0.1; a GPU has 80 GiB": ([(90.0, 0.1)], 1.0),
        "takes a load of 0.7": ([(10.0, 0.9)], 0.7),
        "the memory of m0 is 0": ([(0.0, 0.1)], 1.0),
        "the memory of m0 is nan": ([(math.nan, 0.1)], 1.0),
        "most_load is 0": ([(10.0, 0.1)], 0.0),
    }
    for message, (drawn, most_load) in refused.items():
        with pytest.raises(UsageError, match=message):
            placement.first_fit_decreasing(models(drawn), gpu_gib=GPU_GIB, most_load=most_load)
    with pytest.raises(UsageError, match="called m0, m0"):
        placement.check_models(models([(1.0, 0.1)]) * 2, gpu_gib=80)


def test_the_one_that_leaves_makes_room() -> None:
    """Without the chosen replica the late one is placed; where no departure does that, it is said."""
    scene = [0.5, 0.25, 0.7, 0.6, 0.6]
    number = placement.makes_room(scene, late=0.5, gpus=4)
    where = placement.best_fit(scene, 4)[number][0]
    assert placement.left_over(scene, 4)[where] + scene[number] >= 0.5
    with pytest.raises(UsageError, match="after the first two"):
        placement.makes_room([0.9, 0.9], late=0.5, gpus=2)
    with pytest.raises(UsageError, match=r"at most 0\.60 left"):
        placement.makes_room([0.5, 0.5, 0.5, 0.4], late=0.8, gpus=2)
