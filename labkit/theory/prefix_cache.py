"""Prefix caching: which of a prompt's blocks a cache holds already, by a chain of hashes, and what it evicts.

It does what vLLM's v1/core/block_pool.py does for prompts that come one after the other, on token numbers alone. A
block is found again by the hash of its own tokens and of the block before it, so equal hashes mean an equal prefix;
only full blocks have a hash.
"""

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from labkit.errors import require, whole
from labkit.theory.kv_size import blocks_for_tokens

Route = Callable[[int, Sequence[int]], int]
"""From a prompt's place in the order and its tokens to the number of a pool."""


def block_hashes(tokens: Sequence[int], *, block_size: int) -> tuple[bytes, ...]:
    """The chain: for each full block SHA-256 of (hash of the block before, its tokens); none for a partial block.

    It is vLLM's `hash_block_tokens`, with the tokens as 64-bit numbers in place of a pickle.
    """
    hashes = []
    parent = b""
    for end in range(block_size, len(tokens) + 1, block_size):
        block = struct.pack(f"<{block_size}q", *tokens[end - block_size : end])
        parent = hashlib.sha256(parent + block).digest()
        hashes.append(parent)
    return tuple(hashes)


class BlockPool:
    """`blocks` blocks of `block_size` tokens. A released block stays findable until it is needed for another prompt."""

    def __init__(self, blocks: int, *, block_size: int) -> None:
        whole("blocks", blocks, at_least=1)
        whole("block_size", block_size, at_least=1)
        self.blocks, self.block_size = blocks, block_size
        self.evictions = 0
        # The free blocks with their hashes; the first is given away next: nameless ones, then the longest unused.
        self._free: OrderedDict[int, bytes | None] = OrderedDict.fromkeys(range(blocks))
        # A prompt's last token is always computed, so a full last block may be stored twice under one hash.
        self._by_hash: dict[bytes, list[int]] = {}

    def compute(self, prompt: Sequence[int]) -> int:
        """Compute a prompt and release its blocks: the tokens of it that were found.

        Of a prompt that is known to its end the last block is computed anew, since the result of its last token is
        needed (vLLM's kv_cache_manager.py, `max_cache_hit_length`). UsageError: a prompt longer than the pool.
        """
        needed = blocks_for_tokens(len(prompt), block_size=self.block_size)
        require(
            needed <= self.blocks,
            f"a prompt of {len(prompt):,} tokens does not fit into a pool of {self.blocks * self.block_size:,} tokens",
            fix="shorten the prompt or give the pool more blocks",
        )
        hashes = block_hashes(prompt, block_size=self.block_size)
        reusable = hashes[: max(0, len(prompt) - 1) // self.block_size]
        hits = [self._by_hash[known][0] for known in takewhile(self._by_hash.__contains__, reusable)]
        for number in hits:
            del self._free[number]
        taken = [self._take() for _ in range(needed - len(hits))]
        for number, new in zip(taken, hashes[len(hits) :], strict=False):
            self._by_hash.setdefault(new, []).append(number)
        # Of a prefix, the end is evicted before the beginning; a partial block holds nothing that could be found.
        for number, known in reversed(list(zip(hits + taken, hashes, strict=False))):
            self._free[number] = known
        if needed > len(hashes):
            self._free[taken[-1]] = None
            self._free.move_to_end(taken[-1], last=False)
        return len(hits) * self.block_size

    def _take(self) -> int:
        number, its_hash = self._free.popitem(last=False)
        if its_hash is not None:
            self.evictions += 1
            self._by_hash[its_hash].remove(number)
            if not self._by_hash[its_hash]:
                del self._by_hash[its_hash]
        return number


@dataclass(frozen=True, kw_only=True)
class HitCount:
    """Tokens that were asked for and found, as vLLM counts them (`prefix_cache_queries` and `prefix_cache_hits`)."""

    queried_tokens: int
    hit_tokens: int
    by_prompt: tuple[int, ...]

    @property
    def hit_rate(self) -> float:
        """Found over asked for; 0 where nothing was asked."""
        return self.hit_tokens / self.queried_tokens if self.queried_tokens else 0.0


def replay(prompts: Sequence[Sequence[int]], *, pools: Sequence[BlockPool], route: Route | None = None) -> HitCount:
    """The prompts (as token numbers) one after the other through the pools, in turn unless `route` chooses the pool."""
    chosen = [index if route is None else route(index, prompt) for index, prompt in enumerate(prompts)]
    hits = [pools[number % len(pools)].compute(prompt) for number, prompt in zip(chosen, prompts, strict=True)]
    return HitCount(queried_tokens=sum(map(len, prompts)), hit_tokens=sum(hits), by_prompt=tuple(hits))
