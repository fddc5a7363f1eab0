"""The allocation model against a slow one that moves every token, the paper's claims, and streams of sequences."""

from itertools import pairwise
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.theory.kv_allocation import (
    Extent,
    Holding,
    MemorySnapshot,
    Policy,
    TokenSequence,
    allocate,
    stream,
    waste_share,
    worst_empty_tokens,
)

quick = settings(max_examples=60)
BLOCK, MAX_LEN = 4, 16  # MAX_LEN is a multiple of BLOCK, as the comparison of policies needs
SEQUENCES = st.lists(
    st.builds(
        TokenSequence, arrival=st.integers(0, 30), prompt_tokens=st.integers(1, 8), output_tokens=st.integers(1, 8)
    ),
    min_size=1,
    max_size=20,
)
CAPACITY = st.integers(MAX_LEN, 80)


def run(
    sequences: list[TokenSequence], policy: Policy, capacity: int, *, block_size: int = BLOCK, **more: int
) -> list[MemorySnapshot]:
    """One run with the sizes of this file."""
    sizes = {"memory_tokens": capacity, "max_model_len": MAX_LEN, "block_size": block_size}
    return allocate(sequences, policy=policy, **sizes, **more)


def naive(sequences: list[TokenSequence], policy: Policy, capacity: int, most: int) -> list[tuple[int, ...]]:
    """The same rules cell by cell: (step, running, waiting, stored tokens, preemptions) after every step."""
    paged, unit = policy is Policy.PAGED, BLOCK if policy is Policy.PAGED else 1
    cells: list[int | None] = [None] * (capacity // unit)
    order = sorted(sequences, key=lambda sequence: sequence.arrival)
    coming, waiting, running = list(range(len(order))), list[int](), list[int]()
    made, stored, log = [0] * len(order), [0] * len(order), list[tuple[int, ...]]()
    step = preemptions = 0

    def reservation(sequence: TokenSequence) -> int:
        output = next(power for power in (1, 2, 4, 8) if power >= sequence.output_tokens)
        return {
            Policy.RESERVE_MAX: MAX_LEN,
            Policy.RESERVE_KNOWN: sequence.prompt_tokens + sequence.output_tokens - 1,
            Policy.RESERVE_POWER_OF_TWO: min(MAX_LEN, sequence.prompt_tokens + output),
        }[policy]

    def place(index: int, count: int) -> bool:
        free = [at for at, owner in enumerate(cells) if owner is None]
        runs = (free[k : k + count] for k in range(len(free)))
        together = (spots for spots in runs if spots == list(range(spots[0], spots[0] + count)))
        spots = free[:count] if paged else next(together, [])
        if len(spots) < count:
            return False
        for at in spots:
            cells[at] = index
        return True

    def vacate(index: int) -> None:
        running.remove(index)
        for at, owner in enumerate(cells):
            cells[at] = None if owner == index else owner

    while coming or waiting or running:
        if not (waiting or running):
            step = max(step, order[coming[0]].arrival)
        while coming and order[coming[0]].arrival <= step:
            waiting.append(coming.pop(0))
        preempted = False
        for index in list(running):
            if index not in running:
                continue
            stored[index] += 1
            while paged and index in running and stored[index] > BLOCK * cells.count(index) and not place(index, 1):
                victim, preempted = running[-1], True
                preemptions += 1
                vacate(victim)
                waiting.insert(0, victim)
        while waiting and not preempted and len(running) < most:
            head = waiting[0]
            tokens = order[head].prompt_tokens + made[head]
            if not place(head, -(-tokens // BLOCK) if paged else reservation(order[head])):
                break
            stored[head] = tokens
            running.append(waiting.pop(0))
        for index in list(running):
            made[index] += 1
            if made[index] == order[index].output_tokens:
                vacate(index)
        log.append((step, len(running), len(waiting), sum(stored[index] for index in running), preemptions))
        step += 1
    return log


@settings(max_examples=300)
@given(sequences=SEQUENCES, capacity=CAPACITY, policy=st.sampled_from(Policy), most=st.sampled_from([1, 3, 256]))
def test_the_model_is_the_cell_by_cell_one(
    policy: Policy, sequences: list[TokenSequence], capacity: int, most: int
) -> None:
    """Steps, queues, tokens and preemptions equal those of the slow model. Extents never overlap or exceed the memory,
    no sequence stores more than it holds, and at the end all memory is free."""
    snapshots = run(sequences, policy, capacity, max_num_seqs=most)
    assert naive(sequences, policy, capacity, most) == [
        (s.step, s.running, s.waiting, sum(held.stored_tokens for held in s.holdings.values()), s.preemptions)
        for s in snapshots
    ]
    for snapshot in snapshots:
        extents = sorted(extent for held in snapshot.holdings.values() for extent in held.extents)
        assert all(a.start + a.tokens <= b.start for a, b in pairwise([*extents, Extent(snapshot.capacity_tokens, 0)]))
        assert all(held.empty_tokens >= 0 for held in snapshot.holdings.values())
        assert snapshot.running == len(snapshot.holdings)
    assert not snapshots[-1].holdings


@quick
@given(sequences=SEQUENCES, capacity=CAPACITY, block=st.integers(1, MAX_LEN))
def test_paging_wastes_less_than_a_block_a_sequence(sequences: list[TokenSequence], capacity: int, block: int) -> None:
    """The paper's claim: at any moment less than one block of each running sequence is empty."""
    snapshots = run(sequences, Policy.PAGED, capacity + block, block_size=block)
    assert worst_empty_tokens(snapshots) < block
    assert 0 <= waste_share(snapshots) < 1


@quick
@given(sequences=SEQUENCES, capacity=CAPACITY)
def test_paging_ends_no_later_than_reservations(sequences: list[TokenSequence], capacity: int) -> None:
    """Where reservations cover whole blocks, paging needs no more steps, preempted or not."""
    for policy in (Policy.RESERVE_MAX, Policy.RESERVE_POWER_OF_TWO, Policy.RESERVE_KNOWN):
        block_size = BLOCK if policy is Policy.RESERVE_MAX else 1
        paged = run(sequences, Policy.PAGED, capacity, block_size=block_size)
        assert paged[-1].step <= run(sequences, policy, capacity)[-1].step


def test_shares_of_nothing() -> None:
    """Unused memory has no waste, and a stream without sequences has no steps."""
    state = {"step": 0, "waiting": 1, "preemptions": 0, "capacity_tokens": 64}
    empty = MemorySnapshot(**state, running=0, holdings={})
    assert (waste_share([empty]), worst_empty_tokens([empty]), empty.usage) == (0, 0, 0)
    half = MemorySnapshot(**state, running=1, holdings={0: Holding(24, (Extent(0, 32),))})
    assert (waste_share([half, empty]), worst_empty_tokens([half]), half.usage) == (0.25, 8, 0.5)
    assert run([], Policy.PAGED, 64) == []


def test_impossible_sequences_are_refused() -> None:
    """A sequence that can never run is a usage error with both numbers, before the first step."""
    refused = {
        "prompt_tokens of sequence 0 is 0": (0, 1, 64),
        "output_tokens of sequence 0 is 0": (1, 0, 64),
        "sequence 0 has 17 tokens, max_model_len is 16": (10, 7, 64),
        "sequence 0 needs 16 tokens of memory; there are 12": (8, 8, 12),
        "memory_tokens is 3, less than one block of 4": (1, 1, 3),
    }
    for message, (prompt, output, memory) in refused.items():
        sequence = TokenSequence(arrival=0, prompt_tokens=prompt, output_tokens=output)
        with pytest.raises(UsageError, match=message):
            run([sequence], Policy.PAGED, memory)


def test_a_stream_is_its_seed() -> None:
    """Equal arguments give equal streams, and another seed a different one; means, order and limits are respected."""
    sizes: dict[str, Any] = {"mean_prompt_tokens": 40, "mean_output_tokens": 60, "spread": 0.5, "per_step": 0.5}
    many, again, other = (stream(4000, seed=seed, **sizes) for seed in (1, 1, 2))
    assert many == again != other
    means = [fmean(sequence.prompt_tokens for sequence in many), fmean(sequence.output_tokens for sequence in many)]
    assert [*means, many[-1].arrival] == pytest.approx([40, 60, 8000], rel=0.1)
    assert all(a.arrival <= b.arrival for a, b in pairwise(many))
    assert {sequence.prompt_tokens for sequence in stream(20, seed=1, spread=0)} == {160}
    assert max(sequence.prompt_tokens for sequence in stream(200, seed=1, mean_prompt_tokens=900)) == 1024
    with pytest.raises(UsageError, match="per_step 0"):
        stream(1, seed=1, per_step=0)
