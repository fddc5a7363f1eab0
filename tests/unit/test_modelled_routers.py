"""Routers on fake replicas: the choice by load and by prefix cache."""

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from labkit.modelled import TokenRequest, routers

REQUEST = TokenRequest(token_ids=[1, 2, 3], output_tokens=1)


@dataclass
class StandIn:
    """A replica with `in_flight` requests that caches the first `holds` tokens of every prompt."""

    in_flight: int = 0
    holds: int = 0
    waiting: int = 0
    kv_usage: float = 0.0

    @property
    def running(self) -> int:
        return self.in_flight - self.waiting

    def cached_tokens(self, token_ids: Sequence[int]) -> int:
        return min(self.holds, len(token_ids))


fleets = st.lists(st.builds(StandIn, st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=6)


@given(fleets, st.integers(0, 30))
def test_round_robin_ignores_the_load(fleet: list[StandIn], rounds: int) -> None:
    """Replicas take turns in order; each router has its own turn."""
    router, other = routers.round_robin(), routers.round_robin()
    chosen = [router(REQUEST, fleet) for _ in range(rounds * len(fleet))]
    assert chosen == list(range(len(fleet))) * rounds
    assert other(REQUEST, fleet) == 0


@given(fleets)
def test_least_loaded_takes_the_first_of_the_least_loaded(fleet: list[StandIn]) -> None:
    """No replica has fewer requests in flight, and no earlier one equally few."""
    chosen = routers.least_loaded(REQUEST, fleet)
    least = min(replica.in_flight for replica in fleet)
    assert [replica.in_flight for replica in fleet].index(least) == chosen


@given(fleets, st.integers(0, 20))
def test_prefix_aware_follows_the_prefix_within_its_limit(fleet: list[StandIn], extra: int) -> None:
    """The choice has at most `extra` more requests than the least loaded; among such replicas it caches most of the
    prompt, and of equal ones it is the least loaded."""
    chosen = fleet[routers.prefix_aware(most_extra=extra)(REQUEST, fleet)]
    least = min(replica.in_flight for replica in fleet)
    assert chosen.in_flight <= least + extra
    for other in fleet:
        if other.in_flight <= least + extra:
            assert (chosen.holds, -chosen.in_flight) >= (other.holds, -other.in_flight)
