"""What a prefix cache would hit over a list of prompts, on one replica or on several: a model, not a measurement."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from labkit.errors import UsageError
from labkit.kvcache.pool import BlockPool

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
