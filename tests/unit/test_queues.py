"""The queueing model against queueing theory, what holds for any traffic, and the law of batching."""

import heapq
import math
from dataclasses import astuple
from statistics import fmean
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.load.workloads import poisson_arrivals_s
from labkit.theory.queues import (
    Arrival,
    Balancer,
    BatchCost,
    Served,
    Service,
    law,
    replicas_needed,
    serve_all,
)

STEP_S, TOKENS = 0.005, 200.0  # a mean service of 1 s, nearly exponential
ARRIVALS = st.lists(
    st.builds(
        Arrival,
        at_s=st.floats(0, 50),
        prompt_tokens=st.integers(0, 50),
        output_tokens=st.integers(1, 40),
    ),
    min_size=1,
    max_size=40,
)
SERVICES = st.builds(
    Service,
    step_s=st.dictionaries(st.integers(1, 20), st.floats(0.001, 1), min_size=1, max_size=4),
    prefill_s_per_token=st.floats(0, 0.1),
    places=st.integers(1, 10),
)


def poisson(
    rate: float, *, requests: int, seed: int, prompt_tokens: int = 0, mean_output_tokens: float = TOKENS
) -> list[Arrival]:
    """Poisson arrivals with outputs that are geometric with that mean, as of a coin per token."""
    outputs = np.random.default_rng(seed).geometric(1 / mean_output_tokens, size=requests)
    times = poisson_arrivals_s(requests, rate=rate, seed=seed)
    return [
        Arrival(at_s=at, prompt_tokens=prompt_tokens, output_tokens=int(output))
        for at, output in zip(times, outputs, strict=True)
    ]


def erlang_c(servers: int, load: float) -> float:
    """The probability that an arrival waits in M/M/c with `load` erlangs (Erlang, 1917)."""
    terms = [load**k / math.factorial(k) for k in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(terms) + last)


def test_equal_steps_are_the_queue_of_erlang() -> None:
    """Steps that take no longer with more requests: as many servers as places; the mean wait is Erlang's."""
    service_s = (TOKENS - 1) * STEP_S
    for places, rate in ((1, 0.6), (4, 3.0), (8, 7.0)):
        served = serve_all(Service(step_s={1: STEP_S}, places=places), poisson(rate, requests=60_000, seed=3))
        load = rate * service_s
        expected_s = erlang_c(places, load) / (places - load) * service_s
        assert fmean(one.ttft_s for one in served) == pytest.approx(expected_s, rel=0.12)


def test_steps_that_grow_with_the_batch_are_processor_sharing() -> None:
    """Where a step takes n times as long with n requests, the mean time of M/G/1-PS comes out: S / (1 - load)."""
    service, mean_s = Service(step_s={1: STEP_S, 2: 2 * STEP_S}, places=400), (TOKENS - 1) * STEP_S
    for load in (0.3, 0.7):
        served = serve_all(service, poisson(load / mean_s, requests=40_000, seed=5))
        assert fmean(one.e2e_s for one in served) == pytest.approx(mean_s / (1 - load), rel=0.1)


def test_reading_alone_is_the_queue_with_a_fixed_service() -> None:
    """With one token to write, prompts queue for the reader: the mean wait of M/D/1, load * S / (2 * (1 - load))."""
    service = Service(step_s={1: 0.001}, prefill_s_per_token=0.01, places=10)
    read_s, load = 1.0, 0.7
    arrivals = poisson(load / read_s, requests=60_000, prompt_tokens=100, mean_output_tokens=1, seed=1)
    waits = [one.ttft_s - read_s for one in serve_all(service, arrivals)]
    assert fmean(waits) == pytest.approx(load * read_s / (2 * (1 - load)), rel=0.1)


@given(service=SERVICES, arrivals=ARRIVALS, replicas=st.integers(1, 5), balancer=st.sampled_from(get_args(Balancer)))
def test_every_request_is_served_once_and_in_time_order(
    service: Service, arrivals: list[Arrival], replicas: int, balancer: Balancer
) -> None:
    """None is lost or made up; it arrives, gets a place, reads, writes; no faster than alone; twice the same result. At
    any moment at most `places` requests of a replica have a place."""
    served = serve_all(service, arrivals, replicas=replicas, balancer=balancer)
    assert sorted(map(astuple, arrivals)) == sorted(astuple(one.arrival) for one in served)
    fastest_s = min(service.step_of(n) for n in range(1, service.places + 1))
    for one in served:
        read_s = one.arrival.prompt_tokens * service.prefill_s_per_token
        assert one.arrival.at_s <= one.placed_s <= one.first_token_s <= one.finished_s
        assert one.ttft_s >= read_s * (1 - 1e-9) - 1e-9
        assert one.tpot_s is None or one.tpot_s >= fastest_s * (1 - 1e-6) - 1e-9
        held = sum(other.placed_s <= one.placed_s < other.finished_s for other in served)
        assert held <= service.places * replicas
    assert served == serve_all(service, arrivals, replicas=replicas, balancer=balancer)


def test_a_lone_request_takes_what_it_takes() -> None:
    """Nobody else there: its prompt's time, then a step of one for each further token. Steps are as the first below the
    first number, between two on their line, and above the last on the last two's."""
    service = Service(step_s={1: 0.02, 4: 0.05}, prefill_s_per_token=0.001, places=4)
    (one,) = serve_all(service, [Arrival(at_s=5, prompt_tokens=100, output_tokens=11)])
    assert (one.ttft_s, one.e2e_s, one.tpot_s) == pytest.approx((0.1, 0.1 + 10 * 0.02, 0.02))
    service = Service(step_s={2: 0.02, 4: 0.04, 8: 0.06}, places=16)
    steps_s = [service.step_of(n) for n in (1, 2, 3, 6, 8, 16)]
    assert steps_s == pytest.approx([0.02, 0.02, 0.03, 0.05, 0.06, 0.1])


def test_a_full_replica_finishes_what_its_capacity_says() -> None:
    """Always full, a replica's rate over a long run is its capacity."""
    service = Service(step_s={1: 0.01, 8: 0.03}, prefill_s_per_token=0.0005, places=8)
    arrivals = [Arrival(at_s=0, prompt_tokens=40, output_tokens=33)] * 4_000
    served = serve_all(service, arrivals)
    rate = len(served) / max(one.finished_s for one in served)
    assert rate == pytest.approx(service.capacity_per_s(prompt_tokens=40, output_tokens=33), rel=0.02)


def test_looking_at_two_queues_beats_looking_at_none() -> None:
    """The mean wait falls from random to two choices to the fewest, on the same traffic (Mitzenmacher, 1996)."""
    arrivals = poisson(20 * 2 * 0.9, requests=30_000, mean_output_tokens=101, seed=2)
    ways: tuple[Balancer, ...] = ("fewest", "two_choices", "random")
    waits = [
        fmean(one.ttft_s for one in serve_all(Service(step_s={1: 0.01}, places=2), arrivals, replicas=20, balancer=way))
        for way in ways
    ]
    assert waits[0] < waits[1] < waits[2]


@given(at_least=st.integers(1, 40))
def test_the_number_of_replicas_is_the_least_that_does(at_least: int) -> None:
    """One less would not keep the share; a search that begins higher finds the same, or where it begins. An SLO below
    what an empty replica takes: a message, not a search without end."""
    service = Service(step_s={1: 0.05, 4: 0.08}, prefill_s_per_token=0.001, places=4)
    arrivals = poisson(20.0, requests=300, prompt_tokens=20, mean_output_tokens=10, seed=2)

    def good(one: Served) -> bool:
        return one.ttft_s <= 0.2

    found = replicas_needed(service, arrivals, good, share=0.95)
    shares = [fmean(map(good, serve_all(service, arrivals, replicas=number))) for number in (found - 1, found)]
    assert shares[0] < 0.95 <= shares[1]
    assert replicas_needed(service, arrivals, good, share=0.95, at_least=at_least) == max(found, at_least)
    with pytest.raises(UsageError, match="64 replicas do not keep 99% of the requests good"):
        replicas_needed(service, arrivals, lambda one: one.ttft_s <= 0.01, at_most=64)


def test_a_replica_that_cannot_be_is_refused() -> None:
    """No step's time, or one that is not positive; no place; a negative time."""
    for step_s, places, prefill_s in (({}, 1, 0), ({0: 0.1}, 1, 0), ({1: 0.0}, 1, 0), ({1: 1}, 0, 0), ({1: 1}, 1, -1)):
        with pytest.raises(UsageError):
            Service(step_s=step_s, places=places, prefill_s_per_token=prefill_s)


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
