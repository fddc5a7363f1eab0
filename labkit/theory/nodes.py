"""Ray's placement of actors and placement groups on several nodes.

Ray chooses a node by the *sum* of its free GPU capacity, and only then a GPU on it: a request for 0.6 of a GPU goes
to a node with 8 x 0.4 free, and waits there while another node is empty (ray-project/ray#20933, open in Ray 2.60:
NodeResources::IsAvailable compares sums, NodeResourceInstanceSet::TryAllocate looks at each GPU).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from labkit.theory.placement import PRECISION, take, units_of

Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A replica's resources: an actor's num_gpus, or with a `strategy` the GPUs of a placement group's bundles.

    `nodes`: allowed nodes (by accelerator type); None: any. `per_node`: most replicas of `deployment` per node
    (max_replicas_per_node).
    """

    bundles: tuple[float, ...]
    strategy: Strategy | None = None
    nodes: frozenset[int] | None = None
    deployment: str = ""
    per_node: int | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """A replica's GPUs, bundle by bundle, numbered over all nodes; () while it waits. `waits_on`: the node that Ray
    chose by its sum although none of its GPUs has enough free capacity."""

    gpus: tuple[int, ...] = ()
    waits_on: int | None = None


def place(requests: Sequence[Request], gpus: Sequence[int], *, packed: bool = False) -> list[Place]:
    """Place replicas that arrive one after the other; `gpus`: the number of GPUs of each node.

    Serve spreads by default: actors go round-robin over the nodes (Ray's spread_scheduling_policy.cc). With `packed`
    (RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY=1) the largest come first, each on the used node with the least free
    capacity (Serve's deployment_scheduler.py, which still spreads if a placement group need not be on one node).
    Groups over several nodes follow bundle_scheduling_policy.cc. UsageError for a number that Ray refuses.
    """
    nodes = _Nodes(gpus)
    packed = packed and all(request.strategy in (None, "STRICT_PACK") for request in requests)
    units = [[units_of(part) for part in request.bundles] for request in requests]
    order = sorted(range(len(requests)), key=lambda n: -sum(units[n]) if packed else 0)
    places = {}
    for n in order:
        request = requests[n]
        if not any(units[n]):
            places[n] = Place()
            continue
        allowed = nodes.allowed(request)
        if packed:
            chosen = nodes.fullest(sum(units[n]), allowed)
        elif request.strategy is None:
            chosen = nodes.next_in_turn(sum(units[n]), allowed)
        else:
            chosen = nodes.for_bundles(units[n], request.strategy, allowed)
        places[n] = nodes.take(request, units[n], chosen)
    return [places[n] for n in range(len(requests))]


class _Nodes:
    """The free capacity of each GPU, by node."""

    def __init__(self, gpus: Sequence[int]) -> None:
        self.free = [[PRECISION] * count for count in gpus]
        self.first = [sum(gpus[:node]) for node in range(len(gpus))]
        self.planned = [PRECISION * count for count in gpus]  # free capacity by the packing scheduler's sums
        self.turn = 0
        self.replicas: Counter[tuple[str, int]] = Counter()

    def allowed(self, request: Request) -> list[int]:
        """Return the nodes on which the request may run."""
        return [
            node
            for node in range(len(self.free))
            if (request.nodes is None or node in request.nodes)
            and (request.per_node is None or self.replicas[request.deployment, node] < request.per_node)
        ]

    def next_in_turn(self, units: int, allowed: Iterable[int]) -> list[int]:
        count, allowed = len(self.free), frozenset(allowed)
        for node in ((self.turn + step) % count for step in range(count)):
            if node in allowed and sum(self.free[node]) >= units:
                self.turn = (node + 1) % count
                return [node]
        return []

    def fullest(self, units: int, allowed: Sequence[int]) -> list[int]:
        fitting = [node for node in allowed if self.planned[node] >= units]
        in_use = [node for node in fitting if self.planned[node] < PRECISION * len(self.free[node])]
        return [min(in_use or fitting, key=lambda node: self.planned[node])] if fitting else []

    def for_bundles(self, units: Sequence[int], strategy: Strategy, allowed: Sequence[int]) -> list[int]:
        """Choose a node for each bundle, the largest bundle first: always the one with the largest free share left."""
        left = {node: sum(self.free[node]) for node in allowed}
        chosen: dict[int, int] = {}
        unused = list(allowed)

        def best(needed: int, candidates: Sequence[int]) -> int | None:
            fitting = [node for node in candidates if left[node] >= needed]
            return max(fitting, key=lambda node: (left[node] - needed) / left[node], default=None)

        if strategy == "STRICT_PACK":
            node = best(sum(units), unused)
            return [] if node is None else [node] * len(units)
        for bundle in sorted(range(len(units)), key=lambda bundle: -units[bundle]):
            if bundle in chosen:
                continue
            node = best(units[bundle], unused)
            if node is None and strategy == "SPREAD":
                node = best(units[bundle], sorted(set(chosen.values())))
            if node is None:
                return []
            unused = [other for other in unused if other != node]
            rest = [n for n in range(len(units)) if n not in chosen and n != bundle] if strategy == "PACK" else []
            for n in (bundle, *sorted(rest, key=lambda n: -units[n])):
                if left[node] >= units[n]:
                    left[node] -= units[n]
                    chosen[n] = node
        return [chosen[bundle] for bundle in range(len(units))]

    def take(self, request: Request, units: Sequence[int], chosen: Sequence[int]) -> Place:
        """Take a GPU for each bundle on the chosen nodes; if a node has none free, take nothing: the request waits."""
        if not chosen:
            return Place()
        if request.strategy is None or len(set(chosen)) == 1:
            self.planned[chosen[0]] -= sum(units)
        before = [list(node) for node in self.free]
        gpus: list[int] = []
        for node, needed in zip([chosen[0]] * len(units) if len(chosen) == 1 else chosen, units, strict=True):
            taken = take(self.free[node], needed)
            if not taken:
                self.free = before
                return Place(waits_on=node)
            gpus += [self.first[node] + gpu for gpu in taken]
        for node in set(chosen):
            self.replicas[request.deployment, node] += 1
        return Place(gpus=tuple(gpus))
