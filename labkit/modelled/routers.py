"""Routers: functions of a request and the replicas that return a replica's index."""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Protocol

from labkit.modelled.traffic import TokenRequest


class ReplicaView(Protocol):
    """The state of a replica that a router may use."""

    @property
    def in_flight(self) -> int: ...
    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def kv_usage(self) -> float: ...
    def cached_tokens(self, token_ids: Sequence[int]) -> int: ...


Router = Callable[[TokenRequest, Sequence[ReplicaView]], int]


def round_robin() -> Router:
    """Choose replicas in turn."""
    turn = count()
    return lambda _request, replicas: next(turn) % len(replicas)


def least_loaded(_request: TokenRequest, replicas: Sequence[ReplicaView]) -> int:
    """Choose the first replica with the fewest requests in flight."""
    return min(range(len(replicas)), key=lambda number: replicas[number].in_flight)


def prefix_aware(*, most_extra: int = 8) -> Router:
    """Choose the replica that caches most of the prompt, among those with at most `most_extra` more requests than the
    least loaded. Without the limit, a popular prefix would overload one replica."""

    def choose(request: TokenRequest, replicas: Sequence[ReplicaView]) -> int:
        least = min(replica.in_flight for replica in replicas)
        candidates = [n for n, replica in enumerate(replicas) if replica.in_flight <= least + most_extra]
        return max(candidates, key=lambda n: (replicas[n].cached_tokens(request.token_ids), -replicas[n].in_flight))

    return choose
