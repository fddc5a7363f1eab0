"""Which replica takes a request: a router is a function of the request and the replicas that returns an index.

A router sees of a replica: `in_flight`, `running`, `waiting`, `kv_usage`, and `cached_tokens(token_ids)`."""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Protocol

from labkit.modelled.traffic import TokenRequest


class ReplicaView(Protocol):
    """What a router may look at."""

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
    """Replicas in turn."""
    turn = count()
    return lambda _request, replicas: next(turn) % len(replicas)


def least_loaded(_request: TokenRequest, replicas: Sequence[ReplicaView]) -> int:
    """The replica with the fewest requests running or waiting; the first of several."""
    return min(range(len(replicas)), key=lambda number: replicas[number].in_flight)


def prefix_aware(*, most_extra: int = 8) -> Router:
    """The replica whose cache holds most of the prompt, unless it has `most_extra` more requests than the least loaded
    one: then that one. Without the limit, one popular prefix would load a single replica."""

    def choose(request: TokenRequest, replicas: Sequence[ReplicaView]) -> int:
        least = min(replica.in_flight for replica in replicas)
        open_to = [n for n, replica in enumerate(replicas) if replica.in_flight <= least + most_extra]
        return max(open_to, key=lambda n: (replicas[n].cached_tokens(request.token_ids), -replicas[n].in_flight))

    return choose
