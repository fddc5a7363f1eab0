"""The law of batching against a simulation that knows only TorchServe's rule."""

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.theory.queues import BatchCost, law

COST = BatchCost(fixed_s=0.1, per_row_s=0.005)
BLINK_S = 1e-9  # between an answer and the client's next request


def simulated(cost: BatchCost, *, clients: int, batch_size: int, delay_s: float, batches: int = 400) -> float:
    """Requests a second of one worker, event by event: it waits for a first request, then for others or the delay."""
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
            heapq.heappush(arrivals, now + BLINK_S)
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
    fixed_s=st.floats(0.01, 1.0),
    per_row_s=st.floats(0.0, 0.1),
)
def test_the_law_is_what_a_simulation_gives(
    clients: int, batch_size: int, delay_s: float, fixed_s: float, per_row_s: float
) -> None:
    """For any setting the throughput is that of a simulated worker, and Little's law holds with the latency."""
    cost = BatchCost(fixed_s=fixed_s, per_row_s=per_row_s)
    found = law(cost, clients=clients, batch_size=batch_size, delay_s=delay_s)
    expected = simulated(cost, clients=clients, batch_size=batch_size, delay_s=delay_s)
    assert found.throughput == pytest.approx(expected, rel=1e-3)
    assert found.throughput * found.latency_s == pytest.approx(clients)


def test_a_lone_client_pays_the_delay() -> None:
    """It waits for nobody with batches of one, and the whole delay with larger ones."""
    assert law(COST, clients=1, batch_size=1, delay_s=0.5).latency_s == pytest.approx(0.105)
    assert law(COST, clients=1, batch_size=8, delay_s=0.5).latency_s == pytest.approx(0.605)


def test_the_delay_is_free_where_batches_fill() -> None:
    """With as many clients as rows, or more, the delay changes nothing."""
    fast, slow = (law(COST, clients=16, batch_size=8, delay_s=delay_s) for delay_s in (0.01, 5.0))
    assert fast == slow
    assert fast.rows == 8


def test_what_cannot_be_is_refused() -> None:
    """No client, no row, a negative delay and a batch that costs nothing are usage errors."""
    for wrong in ({"clients": 0}, {"batch_size": 0}, {"delay_s": -1.0}):
        with pytest.raises(UsageError, match="clients, batches of"):
            law(COST, **{"clients": 1, "batch_size": 1, "delay_s": 0.0, **wrong})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is no cost"):
        BatchCost(fixed_s=0.0, per_row_s=0.0)
