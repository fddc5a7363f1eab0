"""A pool of blocks that sequences share by prefix: reference counts, a hash chain, and eviction of the longest unused.

It does what vLLM's v1/core/block_pool.py does, on token numbers alone. A block is found again by the hash of its own
tokens and of the block before it, so equal hashes mean an equal prefix; only full blocks have a hash.
"""

import hashlib
import itertools
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from labkit.errors import UsageError
from labkit.theory.kv_size import blocks_for_tokens, require_positive

ROOT = b""


@dataclass(slots=True)
class Block:
    """One block: how many sequences hold it, and the hash under which it is found, if it is full and known."""

    number: int
    references: int = 0
    hash: bytes | None = None


@dataclass(slots=True)
class Lease:
    """The blocks of one sequence, in order; the first `hit_blocks` of them were found, the rest taken new."""

    blocks: list[int]
    hit_blocks: int
    hit_tokens: int
    tokens: list[int] = field(repr=False)
    hashes: list[bytes] = field(repr=False)


def block_hashes(tokens: Sequence[int], *, block_size: int) -> tuple[bytes, ...]:
    """The chain: for each full block SHA-256 of (hash of the block before, its tokens); none for a partial block."""
    hashes = []
    parent = ROOT
    for end in range(block_size, len(tokens) + 1, block_size):
        parent = chain_hash(parent, tokens[end - block_size : end])
        hashes.append(parent)
    return tuple(hashes)


def chain_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """One link of the chain (vLLM's `hash_block_tokens`, with the tokens as 64-bit numbers in place of a pickle)."""
    return hashlib.sha256(parent + struct.pack(f"<{len(tokens)}q", *tokens)).digest()


class BlockPool:
    """`blocks` blocks of `block_size` tokens. What is released stays findable until its block is needed for others."""

    def __init__(self, blocks: int, *, block_size: int, caching: bool = True) -> None:
        self.block_size = require_positive("block_size", block_size)
        self.caching = caching
        self.blocks = [Block(number) for number in range(require_positive("blocks", blocks))]
        # Sequences that compute an equal block at the same time each keep theirs, so one hash may have several.
        self._known: dict[bytes, dict[int, None]] = {}
        # Free blocks; the first is given away next: those that nobody can find, then the longest unused.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(blocks))
        self.evictions = 0

    @property
    def free_blocks(self) -> int:
        """Blocks that no sequence holds, findable or not."""
        return len(self._free)

    @property
    def cached_blocks(self) -> int:
        """Blocks that carry a hash and can be found by it."""
        return sum(map(len, self._known.values()))

    def take(self, count: int) -> list[int] | None:
        """`count` blocks of one's own, or None (and nothing changed) where fewer are free."""
        if count > len(self._free):
            return None
        return [self._take_one() for _ in range(count)]

    def give_back(self, numbers: Iterable[int]) -> None:
        """Drops one reference of each block. Those with a hash are evicted in this order, the others before all."""
        nameless = [number for number in numbers if self._drop(number) and self.blocks[number].hash is None]
        for number in reversed(nameless):
            self._free.move_to_end(number, last=False)

    def match(self, tokens: Sequence[int]) -> list[int]:
        """The blocks that hold the longest known prefix of `tokens`: whole blocks only. Changes nothing."""
        return self._find(block_hashes(tokens, block_size=self.block_size))

    def lease(self, tokens: Sequence[int]) -> Lease | None:
        """Blocks for a sequence of `tokens`, shared where its prefix is known; None where too few are free.

        At least the last token is computed, since its result is needed: of a prompt that is known to its end, the last
        block is taken new (vLLM's kv_cache_manager.py, `max_cache_hit_length`).
        """
        hashes = list(block_hashes(tokens, block_size=self.block_size))
        hits = self._find(hashes)[: max(0, len(tokens) - 1) // self.block_size]
        needed = blocks_for_tokens(len(tokens), block_size=self.block_size) - len(hits)
        idle_hits = sum(self.blocks[number].references == 0 for number in hits)
        if needed > len(self._free) - idle_hits:
            return None
        for number in hits:
            self._hold(number)
        blocks = hits + [self._take_one() for _ in range(needed)]
        for number, each in zip(blocks, hashes, strict=False):
            self._remember(number, each)
        return Lease(blocks, len(hits), len(hits) * self.block_size, list(tokens), hashes)

    def append(self, lease: Lease, token: int) -> bool:
        """Adds one generated token; False (and nothing changed) where that needs a block and none is free."""
        if len(lease.tokens) == len(lease.blocks) * self.block_size:
            new = self.take(1)
            if new is None:
                return False
            lease.blocks += new
        lease.tokens.append(token)
        if len(lease.tokens) % self.block_size == 0:
            lease.hashes.append(
                chain_hash(lease.hashes[-1] if lease.hashes else ROOT, lease.tokens[-self.block_size :])
            )
            self._remember(lease.blocks[-1], lease.hashes[-1])
        return True

    def release(self, lease: Lease) -> None:
        """Gives the sequence's blocks back, last block first: of a prefix, the end is evicted before the beginning."""
        self.give_back(reversed(lease.blocks))
        lease.blocks = []

    def reset(self) -> None:
        """Forgets every prefix (vLLM's `reset_prefix_cache`)."""
        for block in self.blocks:
            block.hash = None
        self._known.clear()

    def _hold(self, number: int) -> None:
        self.blocks[number].references += 1
        self._free.pop(number, None)

    def _drop(self, number: int) -> bool:
        """Takes one reference away; True where it was the last."""
        block = self.blocks[number]
        if block.references < 1:
            raise UsageError(f"block {number} is given back, but nothing holds it", remedy="release a lease once")
        block.references -= 1
        if block.references == 0:
            self._free[number] = None
        return block.references == 0

    def _take_one(self) -> int:
        number, _ = self._free.popitem(last=False)
        block = self.blocks[number]
        if block.hash is not None:
            self._evict(number, block.hash)
        block.references = 1
        return number

    def _evict(self, number: int, its_hash: bytes) -> None:
        same = self._known[its_hash]
        del same[number]
        if not same:
            del self._known[its_hash]
        self.blocks[number].hash = None
        self.evictions += 1

    def _find(self, hashes: Iterable[bytes]) -> list[int]:
        known = itertools.takewhile(self._known.__contains__, hashes if self.caching else ())
        return [next(iter(self._known[each])) for each in known]

    def _remember(self, number: int, its_hash: bytes) -> None:
        """Makes a full block findable, behind those that hold the same prefix already."""
        if self.caching and self.blocks[number].hash is None:
            self._known.setdefault(its_hash, {})[number] = None
            self.blocks[number].hash = its_hash


# --- replay ---


Router = Callable[[int, Sequence[int]], int]


@dataclass(frozen=True, kw_only=True)
class HitCount:
    """Tokens that were asked for and found, as vLLM counts them (`prefix_cache_queries` and `prefix_cache_hits`)."""

    queried_tokens: int
    hit_tokens: int
    evictions: int
    by_prompt: tuple[int, ...]

    @property
    def hit_rate(self) -> float:
        """Found over asked for; 0 where nothing was asked."""
        return self.hit_tokens / self.queried_tokens if self.queried_tokens else 0.0


def replay(prompts: Sequence[Sequence[int]], *, pools: Sequence[BlockPool], route: Router | None = None) -> HitCount:
    """The prompts (as token numbers) one after the other through the pools, each released before the next comes.

    `route(index, prompt)` chooses the pool; the default goes round. UsageError for a prompt longer than its pool.
    """
    hits = [
        _hit_tokens(prompt, pools[_chosen(route, index, prompt, len(pools))]) for index, prompt in enumerate(prompts)
    ]
    return HitCount(
        queried_tokens=sum(map(len, prompts)),
        hit_tokens=sum(hits),
        evictions=sum(pool.evictions for pool in pools),
        by_prompt=tuple(hits),
    )


def common_full_blocks(a: Sequence[int], b: Sequence[int], *, block_size: int) -> int:
    """Full blocks that two token lists have in common from their beginning: what one can hit of the other."""
    equal = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
    return equal // block_size


def _chosen(route: Router | None, index: int, prompt: Sequence[int], pools: int) -> int:
    return index % pools if route is None else route(index, prompt) % pools


def _hit_tokens(prompt: Sequence[int], pool: BlockPool) -> int:
    lease = pool.lease(prompt)
    if lease is None:
        capacity = len(pool.blocks) * pool.block_size
        raise UsageError(
            f"a prompt of {len(prompt):,} tokens does not fit into a pool of {capacity:,} tokens",
            remedy="shorten the prompt or give the pool more blocks",
        )
    pool.release(lease)
    return lease.hit_tokens
