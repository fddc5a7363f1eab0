"""Simulate contiguous and paged allocation of the KV cache for a stream of sequences, step by step.

A simulation, not a measurement. A step is one forward pass: each running sequence stores one more token, and a new one
stores its whole prompt. First come, first served, as in vLLM. When blocks run out, the last sequence to arrive is
preempted: it frees its blocks, waits, and later recomputes its prompt and generated tokens (vLLM's
v1/core/sched/scheduler.py).
"""

import math
import random
from bisect import insort
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from labkit.errors import require, whole
from labkit.theory.kv_size import blocks_for_tokens


class Policy(StrEnum):
    """How memory is allocated to a sequence."""

    RESERVE_MAX = "reserve the model's length"
    RESERVE_POWER_OF_TWO = "reserve the next power of two"
    RESERVE_KNOWN = "reserve the known length"
    PAGED = "paged"


@dataclass(frozen=True, kw_only=True)
class TokenSequence:
    """One request. `arrival`: the step before which it arrives."""

    arrival: int
    prompt_tokens: int
    output_tokens: int

    @property
    def final_tokens(self) -> int:
        """KV entries at its end: the last generated token is never fed back, so it has none."""
        return self.prompt_tokens + self.output_tokens - 1


# --- memory between two steps, of this simulation or of an engine ---


@dataclass(frozen=True, order=True)
class Extent:
    """A contiguous piece of memory: start and size in tokens."""

    start: int
    tokens: int


@dataclass(frozen=True)
class Holding:
    """One sequence's memory: `stored_tokens` fill its `extents` in order."""

    stored_tokens: int
    extents: tuple[Extent, ...]

    @property
    def given_tokens(self) -> int:
        """Tokens of allocated memory."""
        return sum(extent.tokens for extent in self.extents)

    @property
    def empty_tokens(self) -> int:
        """Tokens of allocated memory in which nothing is stored."""
        return self.given_tokens - self.stored_tokens


@dataclass(frozen=True, kw_only=True)
class MemorySnapshot:
    """The state after `step` (from 0). `preemptions`: since the start; `holdings`: by sequence number."""

    step: int
    running: int
    waiting: int
    preemptions: int
    capacity_tokens: int
    holdings: Mapping[int, Holding]

    @property
    def given_tokens(self) -> int:
        """Tokens of memory allocated to sequences."""
        return sum(holding.given_tokens for holding in self.holdings.values())

    @property
    def usage(self) -> float:
        """The allocated share of memory, 0 to 1 (vLLM's `kv_cache_usage_perc`)."""
        return self.given_tokens / self.capacity_tokens


def waste_share(snapshots: Iterable[MemorySnapshot]) -> float:
    """Return the empty share of the allocated memory, summed over all steps (0 to 1)."""
    holdings = [holding for snapshot in snapshots for holding in snapshot.holdings.values()]
    allocated = sum(holding.given_tokens for holding in holdings)
    return sum(holding.empty_tokens for holding in holdings) / allocated if allocated else 0.0


def worst_empty_tokens(snapshots: Iterable[MemorySnapshot]) -> int:
    """Return the most empty tokens that a sequence held after any step."""
    return max((holding.empty_tokens for snapshot in snapshots for holding in snapshot.holdings.values()), default=0)


# Two allocators. `admit` and `grow` return the allocated memory, or None without a change.


class PagedMemory:
    """Blocks of `block_size` tokens, allocated one by one anywhere in memory."""

    def __init__(self, memory_tokens: int, *, block_size: int) -> None:
        whole("block_size", block_size, at_least=1)
        require(
            memory_tokens >= block_size,
            f"memory_tokens is {memory_tokens}, less than one block of {block_size} tokens",
            fix="give more memory or a smaller block_size",
        )
        self.block_size = block_size
        self.capacity_tokens = memory_tokens - memory_tokens % block_size
        self._free = deque(Extent(start, block_size) for start in range(0, self.capacity_tokens, block_size))

    def admit(self, sequence: TokenSequence, tokens: int) -> tuple[Extent, ...] | None:  # noqa: ARG002
        """Allocate blocks for its current tokens."""
        count = blocks_for_tokens(tokens, block_size=self.block_size)
        return tuple(self._free.popleft() for _ in range(count)) if count <= len(self._free) else None

    def grow(self) -> Extent | None:
        """Allocate one more block."""
        return self._free.popleft() if self._free else None

    def release(self, extents: tuple[Extent, ...]) -> None:
        """Free the blocks; the last one is reused first, as in vLLM."""
        self._free.extendleft(extents)

    def needed_tokens(self, sequence: TokenSequence) -> int:
        """Return its final length, rounded up to whole blocks."""
        return blocks_for_tokens(sequence.final_tokens, block_size=self.block_size) * self.block_size


class ContiguousMemory:
    """One extent per sequence, reserved at its start in the first gap that is large enough (first fit)."""

    def __init__(self, memory_tokens: int, *, policy: Policy, max_model_len: int) -> None:
        whole("memory_tokens", memory_tokens, at_least=1)
        self.capacity_tokens, self.policy, self.max_model_len = memory_tokens, policy, max_model_len
        self._reserved: list[Extent] = []  # by address

    def admit(self, sequence: TokenSequence, tokens: int) -> tuple[Extent, ...] | None:  # noqa: ARG002
        """Allocate the whole reservation."""
        size, start = self.needed_tokens(sequence), 0
        for extent in self._reserved:
            if extent.start - start >= size:
                break
            start = extent.start + extent.tokens
        if start + size > self.capacity_tokens:
            return None
        insort(self._reserved, Extent(start, size))
        return (Extent(start, size),)

    def grow(self) -> Extent | None:
        """Return None: a reservation never has to grow."""
        return None

    def release(self, extents: tuple[Extent, ...]) -> None:
        """Free the reservation."""
        for extent in extents:
            self._reserved.remove(extent)

    def needed_tokens(self, sequence: TokenSequence) -> int:
        """Return the size of its reservation."""
        if self.policy is Policy.RESERVE_KNOWN:
            return sequence.final_tokens
        if self.policy is Policy.RESERVE_POWER_OF_TWO:
            output = 1 << (sequence.output_tokens - 1).bit_length()
            return min(self.max_model_len, sequence.prompt_tokens + output)
        return self.max_model_len


Memory = PagedMemory | ContiguousMemory


def allocate(
    sequences: Iterable[TokenSequence],
    *,
    policy: Policy,
    memory_tokens: int,
    max_model_len: int,
    block_size: int = 16,
    max_num_seqs: int | None = None,
) -> list[MemorySnapshot]:
    """Return a snapshot after each step, without the sequences that ended in it, until all have ended.

    `memory_tokens`: KV entries that fit (`KvPlan.tokens`). `max_num_seqs`: most running sequences. Sequences are
    numbered by arrival, in the given order for equal arrivals. Idle steps are skipped. Deterministic. UsageError for a
    sequence that can never run, or a size below 1.
    """
    whole("max_model_len", max_model_len, at_least=1)
    ordered = sorted(sequences, key=lambda sequence: sequence.arrival)
    memory: Memory = (
        PagedMemory(memory_tokens, block_size=block_size)
        if policy is Policy.PAGED
        else ContiguousMemory(memory_tokens, policy=policy, max_model_len=max_model_len)
    )
    _check_fit(ordered, memory, max_model_len=max_model_len)
    if max_num_seqs is not None:
        whole("max_num_seqs", max_num_seqs, at_least=1)
    stream = _Stream(ordered, memory, max_running=max_num_seqs or len(ordered))
    snapshots: list[MemorySnapshot] = []
    while not stream.done:
        snapshots.append(stream.step())
    return snapshots


class _Stream:
    """The state between steps. Sequences are numbered in the order of arrival."""

    def __init__(self, ordered: Sequence[TokenSequence], memory: Memory, *, max_running: int) -> None:
        self.ordered, self.memory, self.max_running = ordered, memory, max_running
        self.arriving, self.waiting = deque(range(len(ordered))), deque[int]()
        self.running: dict[int, Holding] = {}  # in the order of arrival: no sequence overtakes the first that waits
        self.tokens = [sequence.prompt_tokens for sequence in ordered]  # to be stored by the end of the step
        self.now = self.preemptions = 0

    @property
    def done(self) -> bool:
        return not (self.arriving or self.waiting or self.running)

    def step(self) -> MemorySnapshot:
        if not (self.waiting or self.running):
            self.now = max(self.now, self.ordered[self.arriving[0]].arrival)
        while self.arriving and self.ordered[self.arriving[0]].arrival <= self.now:
            self.waiting.append(self.arriving.popleft())
        self._grow_all()
        while self.waiting and len(self.running) < self.max_running and self._admit(self.waiting[0]):
            self.waiting.popleft()
        self._end_all()
        self.now += 1
        return MemorySnapshot(
            step=self.now - 1,
            running=len(self.running),
            waiting=len(self.waiting),
            preemptions=self.preemptions,
            capacity_tokens=self.memory.capacity_tokens,
            holdings=dict(self.running),
        )

    def _grow_all(self) -> None:
        """Store one more token of each sequence; if memory runs out, preempt the last to arrive."""
        for index in self.running:
            self.tokens[index] += 1
        for index in list(self.running):
            while index in self.running and not self._grow(index):
                self._preempt(next(reversed(self.running)))

    def _grow(self, index: int) -> bool:
        holding = self.running[index]
        extents = holding.extents
        if self.tokens[index] > holding.given_tokens:
            extent = self.memory.grow()
            if extent is None:
                return False
            extents = (*extents, extent)
        self.running[index] = Holding(self.tokens[index], extents)
        return True

    def _preempt(self, index: int) -> None:
        self.memory.release(self.running.pop(index).extents)
        self.waiting.appendleft(index)
        self.preemptions += 1

    def _admit(self, index: int) -> bool:
        extents = self.memory.admit(self.ordered[index], self.tokens[index])
        if extents is not None:
            self.running[index] = Holding(self.tokens[index], extents)
        return extents is not None

    def _end_all(self) -> None:
        for index, holding in list(self.running.items()):
            if holding.stored_tokens == self.ordered[index].final_tokens:
                self.memory.release(self.running.pop(index).extents)


def _check_fit(sequences: Sequence[TokenSequence], memory: Memory, *, max_model_len: int) -> None:
    """UsageError for the first sequence that is empty, longer than max_model_len, or larger than the memory."""
    for index, sequence in enumerate(sequences):
        whole(f"prompt_tokens of sequence {index}", sequence.prompt_tokens, at_least=1)
        whole(f"output_tokens of sequence {index}", sequence.output_tokens, at_least=1)
        total, needed = sequence.prompt_tokens + sequence.output_tokens, memory.needed_tokens(sequence)
        require(
            total <= max_model_len,
            f"sequence {index} has {total:,} tokens, max_model_len is {max_model_len:,}",
            fix="shorten it or raise max_model_len",
        )
        require(
            needed <= memory.capacity_tokens,
            f"sequence {index} needs {needed:,} tokens of memory; there are {memory.capacity_tokens:,}",
            fix="give more memory, or lower max_model_len if the policy reserves it",
        )


def stream(
    n: int,
    *,
    seed: int,
    mean_prompt_tokens: float = 160,
    mean_output_tokens: float = 340,
    spread: float = 1.0,
    per_step: float = 0.1,
    max_model_len: int = 2048,
) -> tuple[TokenSequence, ...]:
    """Return `n` sequences with log-normal lengths and Poisson arrivals, reproducible by `seed`.

    `spread`: standard deviation of the lengths' logarithm, 0 for equal lengths; `per_step`: arrivals per step. Prompt
    and output are each clipped to 1 at least and half of `max_model_len` at most; the means apply before that. Default
    means: the rounded ShareGPT lengths of figure 11 in the PagedAttention paper. UsageError for a number out of range.
    """
    whole("n", n, at_least=1)
    whole("max_model_len", max_model_len, at_least=2)
    require(
        spread >= 0 and per_step > 0 and min(mean_prompt_tokens, mean_output_tokens) >= 1,
        f"spread {spread}, per_step {per_step}, mean_prompt_tokens {mean_prompt_tokens}, mean_output_tokens "
        f"{mean_output_tokens}: out of range",
        fix="spread from 0, per_step above 0, means from 1",
    )
    rng = random.Random(seed)
    arrival = 0.0

    def length(mean: float) -> int:
        # The mean of a log-normal is exp(mu + sigma^2 / 2).
        drawn = rng.lognormvariate(math.log(mean) - spread**2 / 2, spread)
        return max(1, min(max_model_len // 2, round(drawn)))

    sequences = []
    for _ in range(n):
        arrival += rng.expovariate(per_step)
        prompt, output = length(mean_prompt_tokens), length(mean_output_tokens)
        sequences.append(TokenSequence(arrival=int(arrival), prompt_tokens=prompt, output_tokens=output))
    return tuple(sequences)
