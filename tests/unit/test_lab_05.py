"""Lab 05: the rules of its exercises against independent counts."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course import lab_05


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=6), st.data())
def test_parallel_stages_take_their_longest_path(lengths: list[float], data: st.DataObject) -> None:
    """The time is the longest of all paths, found here by trying every one; never above the chain's."""
    stages: dict[str, lab_05.Stage] = {}
    for n, length in enumerate(lengths):
        before = data.draw(st.sets(st.sampled_from(sorted(stages)))) if stages else set()
        stages[f"s{n}"] = lab_05.Stage(length, tuple(sorted(before)))
    names = list(stages)
    longest = max(
        sum(stages[name].seconds for name in path)
        for size in range(1, len(names) + 1)
        for path in itertools.combinations(names, size)
        if all(earlier in stages[later].needs for earlier, later in itertools.pairwise(path))
    )
    found = lab_05.parallel_s(stages)
    assert found == pytest.approx(longest)
    assert max(lengths) <= found <= lab_05.chain_s(stages) * (1 + 1e-9)


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from([0, 0.25, 0.5, 1])), min_size=1, max_size=6))
def test_gpus_are_asked_for_by_each_replica(asked: list[tuple[int, float]]) -> None:
    """The total is that of a list with one entry for every replica."""
    deployments = [lab_05.Asked(str(n), replicas, 0.1, gpus) for n, (replicas, gpus) in enumerate(asked)]
    assert lab_05.total_gpus(deployments) == sum(gpus for replicas, gpus in asked for _ in range(replicas))
