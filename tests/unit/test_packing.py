"""Models onto GPUs: Ray's best fit, first fit decreasing against the best plan, and sizes that are refused."""

import itertools
import math
from collections.abc import Sequence
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


# --- Ray's placement


@quick
@given(asked, st.integers(1, 5))
def test_nothing_is_placed_above_a_whole_gpu(fractions: list[float], gpus: int) -> None:
    """However replicas come, the parts on a GPU add up to one at most, and a whole GPU is nobody else's."""
    placed = placement.best_fit(fractions, gpus)
    sums = [Fraction(0)] * gpus
    for part, where in zip(fractions, placed, strict=True):
        for gpu in where:
            sums[gpu] += min(Fraction(round(part * 10_000), 10_000), Fraction(1))
    assert max(sums) <= 1
    assert [float(1 - total) for total in sums] == placement.left_over(fractions, gpus)


@quick
@given(asked, st.integers(1, 5))
def test_who_waits_finds_room_nowhere(fractions: list[float], gpus: int) -> None:
    """A replica waits only if no GPU has its part left (or too few are empty), and takes the fullest that has."""
    placed = placement.best_fit(fractions, gpus)
    for number, (part, where) in enumerate(zip(fractions, placed, strict=True)):
        left = placement.left_over(fractions[:number], gpus)
        holding = [free for free in left if free >= part - 1e-9]
        if 0 < part <= 1:
            assert bool(where) == bool(holding)
            assert not where or left[where[0]] == min(holding)
        elif part > 1:
            assert (len(where) == part) == (left.count(1.0) >= part)


def test_the_lab_placement_of_ray() -> None:
    """What Ray 2.60 did on four logical GPUs: gaps are filled, and 1.35 GPUs in all do not hold a half."""
    scene = [0.5, 0.25, 0.7, 0.6, 0.6]
    assert placement.best_fit([*scene, 0.5], 4) == [(0,), (0,), (1,), (2,), (3,), ()]
    assert placement.left_over(scene, 4) == [0.25, 0.3, 0.4, 0.4]
    assert placement.best_fit([0.25] * 4 + [0.5] * 2, 4) == [(0,)] * 4 + [(1,)] * 2
    assert placement.best_fit([0.5, 2, 3, 1], 4) == [(0,), (1, 2), (), (3,)]


@pytest.mark.parametrize("wrong", [1.5, -0.1, math.nan, math.inf, 2.0001])
def test_what_ray_refuses_is_refused(wrong: float) -> None:
    """Above one only whole GPUs, and never less than nothing."""
    with pytest.raises(UsageError, match="num_gpus is"):
        placement.best_fit([wrong], 4)


# --- plans


def fewest(models: Sequence[Model], most_load: float) -> int:
    """The best plan by trying all of them: the oracle."""
    for count in range(1, len(models) + 1):
        for places in itertools.product(range(count), repeat=len(models)):
            on = [[one for one, place in zip(models, places, strict=True) if place == gpu] for gpu in range(count)]
            if all(
                sum(one.memory_gib for one in here) <= GPU_GIB and sum(one.load for one in here) <= most_load
                for here in on
            ):
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
    for gpu, load in placement.loads(some, plan).items():
        assert load <= most_load
        assert sum(one.memory_gib for one in some if plan[one.name] == gpu) <= GPU_GIB
    assert set(plan.values()) == set(range(used))


@quick
@given(some_models)
def test_fractions_for_ray_keep_both_bounds(some: list[Model]) -> None:
    """Where Ray places what `num_gpus` says, neither memory nor load passes its bound, the largest coming first."""
    parts = placement.num_gpus(some, gpu_gib=GPU_GIB, most_load=MOST_LOAD)
    assert list(parts.values()) == sorted(parts.values(), reverse=True)
    placed = placement.best_fit(list(parts.values()), len(some))
    plan = {name: where[0] for name, where in zip(parts, placed, strict=True)}
    for gpu, load in placement.loads(some, plan).items():
        assert load <= MOST_LOAD
        assert sum(one.memory_gib for one in some if plan[one.name] == gpu) <= GPU_GIB


def test_dedicated_is_a_gpu_for_each() -> None:
    """No two models share."""
    some = models([(10.0, 0.5), (20.0, 0.25)])
    assert placement.dedicated(some) == {"m0": 0, "m1": 1}
    assert placement.loads(some, placement.dedicated(some)) == {0: 0.5, 1: 0.25}


# --- what is refused


@pytest.mark.parametrize(
    ("drawn", "most_load", "says"),
    [
        ([], 1.0, "called nothing"),
        ([(90.0, 0.1)], 1.0, "needs 90 GiB and a load of 0.1; a GPU has 80 GiB"),
        ([(10.0, 0.9)], 0.7, "takes a load of 0.7"),
        ([(0.0, 0.1)], 1.0, "needs 0.0 GiB"),
        ([(math.nan, 0.1)], 1.0, "nan GiB"),
        ([(10.0, 0.1)], 0.0, "load 0"),
    ],
)
def test_models_without_a_plan_are_refused(drawn: list[tuple[float, float]], most_load: float, says: str) -> None:
    """The message has the model and the numbers."""
    with pytest.raises(UsageError, match=says):
        placement.first_fit_decreasing(models(drawn), gpu_gib=GPU_GIB, most_load=most_load)


def test_two_models_of_one_name_are_refused() -> None:
    """A plan is a GPU for each name."""
    with pytest.raises(UsageError, match="called a, a"):
        placement.check_models(placement.models_of(["a", "a"], [1, 1], [0.1, 0.1]), gpu_gib=80)
    with pytest.raises(UsageError, match="2 names, 1 memories and 1 loads"):
        placement.models_of(["a", "b"], [1], [0.1])


@pytest.mark.parametrize(
    ("fractions", "late", "says"),
    [
        ([0.6, 0.6, 0.6], 0.5, "0.6 would wait"),
        ([0.5, 0.25, 0.6], 0.25, "would not have to wait"),
        ([0.9, 0.9], 0.5, "after the first two"),
        ([0.5, 0.5, 0.5, 0.4], 0.8, "at most 0.60 left"),
    ],
)
def test_a_scene_that_shows_nothing_is_refused(fractions: list[float], late: float, says: str) -> None:
    """Replicas that wait from the start, a late one that does not, and a departure that makes no room."""
    with pytest.raises(UsageError, match=says):
        placement.check_scene(fractions, late=late, gpus=2)


def test_the_one_that_leaves_makes_room() -> None:
    """Without the chosen replica the late one is placed."""
    scene = [0.5, 0.25, 0.7, 0.6, 0.6]
    placement.check_scene(scene, late=0.5, gpus=4)
    number = placement.makes_room(scene, late=0.5, gpus=4)
    where = placement.best_fit(scene, 4)[number][0]
    assert placement.left_over(scene, 4)[where] + scene[number] >= 0.5


@pytest.mark.parametrize(("promised", "taken", "says"), [(600, 600, "no promise"), (1, 600, "1,000 MiB of memory")])
def test_memory_that_shows_nothing_is_refused(promised: int, taken: int, says: str) -> None:
    """A promise has to be broken, and the machine has to survive it."""
    with pytest.raises(UsageError, match=says):
        placement.check_memory(promised_mib=promised, taken_mib=taken, available_bytes=1000 * 2**20)
    placement.check_memory(promised_mib=100, taken_mib=500, available_bytes=1000 * 2**20)


@pytest.mark.parametrize(("free", "ok"), [([7], True), ([0, 8, 0], True), ([], False), ([6], False), ([4, 4], False)])
def test_the_scene_is_one_node(free: list[float], ok: bool) -> None:
    """All GPUs on one node of the cluster, or the numbers and the way out."""
    if ok:
        placement.check_nodes(free, needed=7)
        return
    with pytest.raises(UsageError, match="one node with 7"):
        placement.check_nodes(free, needed=7)
