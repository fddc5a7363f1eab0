"""Placement on several nodes: chosen by sums, filled GPU by GPU; Serve's own code is the oracle for packing."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.theory import nodes, placement
from labkit.theory.nodes import Place, Request, place

quick = settings(max_examples=150, deadline=None)
parts = st.one_of(st.sampled_from([0.1, 0.18, 0.25, 0.3, 0.45, 0.5, 0.6, 0.9, 1.0]), st.integers(1, 4).map(float))
actors = st.lists(parts.map(lambda part: Request(bundles=(part,))), max_size=16)
strategies = st.sampled_from([None, "PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"])
groups = st.builds(
    lambda bundles, strategy: Request(bundles=tuple(bundles if strategy else bundles[:1]), strategy=strategy),
    st.lists(st.sampled_from([0.25, 0.45, 0.6, 1.0, 2.0]), min_size=1, max_size=4),
    strategies,
)
clusters = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@quick
@given(actors, st.integers(1, 6))
def test_one_node_is_best_fit(requests: list[Request], gpus: int) -> None:
    """On a single node actors are placed by best fit."""
    fitted = placement.best_fit([request.bundles[0] for request in requests], gpus)
    assert [where.gpus for where in place(requests, [gpus])] == fitted


@quick
@given(st.lists(groups, max_size=10), clusters, st.booleans())
def test_no_gpu_is_promised_twice(requests: list[Request], gpus: list[int], packed: bool) -> None:
    """Parts on a GPU add up to at most one; an actor or a STRICT_PACK group is on one node, and the bundles of a
    STRICT_SPREAD group are on different nodes."""
    node_of = [node for node, count in enumerate(gpus) for _ in range(count)]
    held: Counter[int] = Counter()
    for request, where in zip(requests, place(requests, gpus, packed=packed), strict=True):
        units = [min(1.0, part) for part in request.bundles for _ in range(max(1, int(part)))]
        if not where.gpus:
            continue
        assert len(where.gpus) == len(units)
        for gpu, part in zip(where.gpus, units, strict=True):
            held[gpu] += round(part * 100)
        used = {node_of[gpu] for gpu in where.gpus}
        assert request.strategy not in (None, "STRICT_PACK") or len(used) == 1
        assert request.strategy != "STRICT_SPREAD" or len(used) == len(request.bundles)
    assert max(held.values(), default=0) <= 100


@quick
@given(actors, clusters)
def test_packing_chooses_serves_node(requests: list[Request], gpus: list[int]) -> None:
    """Replica by replica, the largest first, the node is the choice of Ray Serve's own code."""
    scheduler = pytest.importorskip("ray.serve._private.deployment_scheduler")
    own = scheduler.DeploymentScheduler
    fake: Any = SimpleNamespace(_compacting_node=None)
    fake._best_fit_node = lambda *given: own._best_fit_node(fake, *given)
    left = {str(node): scheduler.AvailableNodeResources({"GPU": count}) for node, count in enumerate(gpus)}
    in_use: dict[str, set[str]] = {}
    ours = place(requests, gpus, packed=True)
    node_of = [node for node, count in enumerate(gpus) for _ in range(count)]
    for n in sorted(range(len(requests)), key=lambda n: -requests[n].bundles[0]):
        needed = scheduler.RequestedResources({"GPU": requests[n].bundles[0]})
        chosen = own._find_best_fit_node_for_pack(fake, needed, left, in_use)
        where = node_of[ours[n].gpus[0]] if ours[n].gpus else ours[n].waits_on
        if chosen is None:
            assert where is None
            continue
        # Serve's floats may differ by rounding from Ray's ten-thousandths: nodes with about the same left are equal.
        same = [node for node in left if left[node].get("GPU") == pytest.approx(left[chosen].get("GPU"))]
        assert str(where) in same
        left[str(where)] = left[str(where)] - needed
        in_use[str(where)] = {"some"}


def test_a_sum_misleads() -> None:
    """ray#20933, ray#52133, and a small node that is chosen in turn although none of its GPUs has room."""
    ten = [Request(bundles=(0.6,))] * 10
    assert [where.gpus for where in place(ten, [8, 8])] == [(n // 2 + 8 * (n % 2),) for n in range(10)]
    assert place(ten, [8, 8], packed=True)[8:] == [Place(waits_on=0)] * 2
    assert all(where.gpus for where in place([Request(bundles=(0.2,))] * 80, [8, 8], packed=True))
    assert place(ten[:5], [2, 8])[4] == Place(waits_on=0)  # two wholes less 2 x 0.6 leave 0.8 in all


def test_groups_and_limits() -> None:
    """Bundles of half a GPU can share one; strategies, node types and replicas per node are respected."""
    assert place([Request(bundles=(0.45, 0.45), strategy="PACK")], [2]) == [Place(gpus=(0, 0))]
    assert place([Request(bundles=(0.6, 0.6), strategy="PACK")], [2]) == [Place(gpus=(0, 1))]
    four = Request(bundles=(1.0,) * 4, strategy="PACK")
    assert place([four, four], [3, 3]) == [Place(gpus=(0, 1, 2, 3)), Place()]
    assert place([Request(bundles=(1.0,) * 4, strategy="STRICT_PACK")], [3, 3]) == [Place()]
    assert place([Request(bundles=(1.0, 1.0), strategy="STRICT_SPREAD")], [4]) == [Place()]
    assert place([Request(bundles=(1.0, 1.0), strategy="SPREAD")], [2, 2]) == [Place(gpus=(0, 2))]
    limited = [Request(bundles=(0.1,), deployment="a", per_node=1, nodes=frozenset({0, 1}))] * 3
    assert place(limited, [4, 4, 4]) == [Place(gpus=(0,)), Place(gpus=(4,)), Place()]
    assert nodes.place([Request(bundles=(0.0,))], [1]) == [Place()]
