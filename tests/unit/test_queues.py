"""The law of batching against a simulation, event by event. (Erlang's waits: test_costs.py.)"""

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.theory.queues import BatchCost, law


def simulated(cost: BatchCost, *, clients: int, batch_size: int, delay_s: float, batches: int = 400) -> float:
    """Requests per second of one worker, event by event: it waits for a first request, then for others or the delay."""
    blink_s = 1e-9  # between an answer and the client's next request
    arrivals = [0.0] * clients
    now, done, counted_from, counted = 0.0, 0, 0.0, 0
    while done < batches:
        first = heapq.heappop(arrivals)
        opens = max(now, first)
        rows, leaves = 1, opens
        while rows < batch_size:
            if not arrivals or arrivals[0] > opens + delay_s:
                leaves = opens + delay_s
                break
            leaves = max(leaves, heapq.heappop(arrivals))
            rows += 1
        now = leaves + cost.seconds(rows)
        for _ in range(rows):
            heapq.heappush(arrivals, now + blink_s)
        done += 1
        if done == batches // 2:
            counted_from = now
        elif done > batches // 2:
            counted += rows
    return counted / (now - counted_from)


@given(
    clients=st.integers(1, 40),
    batch_size=st.integers(1, 20),
    delay_s=st.floats(0.001, 2.0),
    cost=st.builds(BatchCost, fixed_s=st.floats(0.01, 1.0), per_row_s=st.floats(0.0, 0.1)),
)
def test_the_law_of_batching_is_what_a_simulation_gives(
    clients: int, batch_size: int, delay_s: float, cost: BatchCost
) -> None:
    """For any setting the throughput is that of a simulated worker, and Little's law holds with the latency."""
    found = law(cost, clients=clients, batch_size=batch_size, delay_s=delay_s)
    expected = simulated(cost, clients=clients, batch_size=batch_size, delay_s=delay_s)
    assert found.throughput == pytest.approx(expected, rel=1e-3)
    assert found.throughput * found.latency_s == pytest.approx(clients)


def test_a_lone_client_pays_the_delay_and_many_do_not() -> None:
    """The whole delay with batches of more than one, and nothing where clients fill them; no clients: refused."""
    cost = BatchCost(fixed_s=0.1, per_row_s=0.005)
    assert law(cost, clients=1, batch_size=1, delay_s=0.5).latency_s == pytest.approx(0.105)
    assert law(cost, clients=1, batch_size=8, delay_s=0.5).latency_s == pytest.approx(0.605)
    assert law(cost, clients=16, batch_size=8, delay_s=0.01) == law(cost, clients=16, batch_size=8, delay_s=5.0)
    with pytest.raises(UsageError, match="0 clients, batches of 1"):
        law(cost, clients=0, batch_size=1, delay_s=0.0)
