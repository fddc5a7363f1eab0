"""Two ways to give KV memory to sequences: whole reservations side by side, or blocks as they are needed.

The contiguous policies are the three that the PagedAttention paper compares with (Kwon et al. 2023, section 6.1):
reserve the model's whole length, the next power of two of the true output, or, knowing the future, just what is needed.
"""

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from labkit.errors import UsageError
from labkit.kvcache.arithmetic import blocks_for_tokens, require_positive
from labkit.kvcache.pool import BlockPool


class Policy(StrEnum):
    """How memory is given to a sequence."""

    RESERVE_MAX = "reserve the model's length"
    RESERVE_POWER_OF_TWO = "reserve the next power of two"
    RESERVE_KNOWN = "reserve the known length"
    PAGED = "paged"


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """One request. `arrival`: the step before which it comes; a step is one forward pass of the engine."""

    arrival: int
    prompt_tokens: int
    output_tokens: int

    @property
    def final_tokens(self) -> int:
        """KV entries when it ends: the last generated token is never fed back, so it has none."""
        return self.prompt_tokens + self.output_tokens - 1


@dataclass(frozen=True)
class Extent:
    """A piece of memory, in tokens: where it begins and how much it holds."""

    start: int
    tokens: int


class Memory(Protocol):
    """What the simulation asks of a policy. `admit` and `grow` return what was given, or None and change nothing."""

    capacity_tokens: int

    @property
    def free_tokens(self) -> int:
        """Tokens that no sequence has been given."""

    def admit(self, index: int, sequence: Sequence, tokens: int) -> list[Extent] | None:
        """Memory for a sequence of which `tokens` are stored at once."""

    def grow(self, index: int) -> Extent | None:
        """The next piece for a sequence whose memory is full."""

    def release(self, index: int) -> None:
        """Takes back everything that the sequence has."""

    def needed_tokens(self, sequence: Sequence) -> int:
        """What the sequence takes when it is as long as it gets."""

    def fragmented(self, sequence: Sequence) -> bool:
        """Whether the sequence would fit into all free memory together, but not into one piece of it."""


class PagedMemory:
    """Blocks from a pool, one by one; a sequence's blocks lie anywhere."""

    def __init__(self, memory_tokens: int, *, block_size: int) -> None:
        require_positive("block_size", block_size)
        if memory_tokens < block_size:
            raise UsageError(
                f"memory_tokens is {memory_tokens}, less than one block of {block_size} tokens",
                remedy="give more memory or a smaller block_size",
            )
        self.block_size = block_size
        self._pool = BlockPool(memory_tokens // block_size, block_size=block_size, caching=False)
        self._tables: dict[int, list[int]] = {}
        self.capacity_tokens = len(self._pool.blocks) * block_size

    @property
    def free_tokens(self) -> int:
        """Tokens in free blocks."""
        return self._pool.free_blocks * self.block_size

    def admit(self, index: int, sequence: Sequence, tokens: int) -> list[Extent] | None:  # noqa: ARG002
        """The blocks for the tokens that are there now."""
        numbers = self._pool.take(blocks_for_tokens(tokens, block_size=self.block_size))
        if numbers is None:
            return None
        self._tables[index] = numbers
        return [self._extent(number) for number in numbers]

    def grow(self, index: int) -> Extent | None:
        """One more block."""
        numbers = self._pool.take(1)
        if numbers is None:
            return None
        self._tables[index] += numbers
        return self._extent(numbers[0])

    def release(self, index: int) -> None:
        """Its blocks go back to the pool."""
        self._pool.give_back(reversed(self._tables.pop(index)))

    def needed_tokens(self, sequence: Sequence) -> int:
        """Its final length in whole blocks."""
        return blocks_for_tokens(sequence.final_tokens, block_size=self.block_size) * self.block_size

    def fragmented(self, sequence: Sequence) -> bool:  # noqa: ARG002
        """Never: any free block will do."""
        return False

    def _extent(self, number: int) -> Extent:
        return Extent(number * self.block_size, self.block_size)


class ContiguousMemory:
    """One piece for each sequence, reserved when it starts, in the first hole that is large enough."""

    def __init__(self, memory_tokens: int, *, policy: Policy, max_model_len: int) -> None:
        self.capacity_tokens = require_positive("memory_tokens", memory_tokens)
        self.policy = policy
        self.max_model_len = require_positive("max_model_len", max_model_len)
        self.free_tokens = memory_tokens
        self._holes = [(0, memory_tokens)]  # (start, tokens), by start, never touching
        self._extents: dict[int, Extent] = {}

    def admit(self, index: int, sequence: Sequence, tokens: int) -> list[Extent] | None:  # noqa: ARG002
        """The whole reservation at once."""
        size = self.needed_tokens(sequence)
        place = next((at for at, (_, hole) in enumerate(self._holes) if hole >= size), None)
        if place is None:
            return None
        start, hole = self._holes.pop(place)
        if hole > size:
            self._holes.insert(place, (start + size, hole - size))
        self.free_tokens -= size
        self._extents[index] = Extent(start, size)
        return [self._extents[index]]

    def grow(self, index: int) -> Extent | None:
        """Nothing: a reservation holds all that the sequence can become."""
        raise UsageError(f"sequence {index} outgrew its reservation", remedy="check its lengths against max_model_len")

    def release(self, index: int) -> None:
        """Its piece becomes a hole and melts into the holes beside it."""
        extent = self._extents.pop(index)
        self.free_tokens += extent.tokens
        place = bisect.bisect(self._holes, (extent.start, extent.tokens))
        self._holes.insert(place, (extent.start, extent.tokens))
        for left in (place, place - 1):
            self._melt(left)

    def needed_tokens(self, sequence: Sequence) -> int:
        """The reservation, by the policy."""
        if self.policy is Policy.RESERVE_KNOWN:
            return sequence.final_tokens
        if self.policy is Policy.RESERVE_POWER_OF_TWO:
            output = 1 << (sequence.output_tokens - 1).bit_length()
            return min(self.max_model_len, sequence.prompt_tokens + output)
        return self.max_model_len

    def fragmented(self, sequence: Sequence) -> bool:
        """Whether only the holes' sizes are in the way."""
        size = self.needed_tokens(sequence)
        return self.free_tokens >= size > max((hole for _, hole in self._holes), default=0)

    def _melt(self, left: int) -> None:
        """Joins the hole at `left` with the next one where they touch."""
        if 0 <= left < len(self._holes) - 1:
            (start, tokens), (next_start, next_tokens) = self._holes[left : left + 2]
            if start + tokens == next_start:
                self._holes[left : left + 2] = [(start, tokens + next_tokens)]


def memory_for(policy: Policy, *, memory_tokens: int, block_size: int, max_model_len: int) -> Memory:
    """The memory of a policy. `block_size` matters to `Policy.PAGED` only."""
    if policy is Policy.PAGED:
        return PagedMemory(memory_tokens, block_size=block_size)
    return ContiguousMemory(memory_tokens, policy=policy, max_model_len=max_model_len)


def check_fit(sequences: Iterable[Sequence], memory: Memory, *, max_model_len: int) -> None:
    """UsageError for the first sequence with a length below 1, beyond the model, or that memory can never hold."""
    for index, each in enumerate(sequences):
        require_positive(f"prompt_tokens of sequence {index}", each.prompt_tokens)
        require_positive(f"output_tokens of sequence {index}", each.output_tokens)
        total, needed = each.prompt_tokens + each.output_tokens, memory.needed_tokens(each)
        if total > max_model_len:
            raise UsageError(
                f"sequence {index} has {total:,} tokens, max_model_len is {max_model_len:,}",
                remedy="shorten it or raise max_model_len",
            )
        if needed > memory.capacity_tokens:
            raise UsageError(
                f"sequence {index} needs {needed:,} tokens of memory; there are {memory.capacity_tokens:,}",
                remedy="give more memory, or lower max_model_len where it is reserved",
            )
