"""vLLM's own KV-cache classes beside ours, in a process of its own since all of vLLM comes along: prints one object.

python -m tests.engine.kvcache_oracle
"""

import json
import random
from collections.abc import Callable
from typing import Any

from labkit.models import Architecture
from labkit.theory.kv_size import blocks_per_sequence, bytes_per_block
from labkit.theory.prefix_cache import BlockPool, Lease


def manager(blocks: int, block_size: int) -> Any:
    """vLLM's KVCacheManager over so many usable blocks (one more, since it keeps one as a placeholder)."""
    import torch
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

    spec = FullAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)
    config = KVCacheConfig(
        num_blocks=blocks + 1, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
    )
    sizes = {"scheduler_block_size": block_size, "hash_block_size": block_size}
    return KVCacheManager(config, max_model_len=8192, **sizes)


class Pair:
    """The same sequences in vLLM's manager and in our pool."""

    def __init__(self, chance: random.Random) -> None:
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher

        block_size, blocks = chance.choice([1, 2, 4]), chance.randint(6, 30)
        self.chance = chance
        self.theirs, self.ours = manager(blocks, block_size), BlockPool(blocks, block_size=block_size)
        self.hasher: Callable[..., Any] = get_request_block_hasher(block_size, sha256)
        self.live: list[tuple[Any, Lease]] = []
        self.seen = {"hits": 0, "refused": 0, "grown": 0, "evictions": 0}

    def admit(self, name: str) -> tuple[object, object]:
        """A new sequence of few different tokens; what each side found of its prefix, None where it has no room."""
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        tokens = [self.chance.randint(0, 1) for _ in range(self.chance.randint(1, 12))]
        request = Request(name, tokens, SamplingParams(max_tokens=999), None, block_hasher=self.hasher)
        found, hit_tokens, *_ = self.theirs.get_computed_blocks(request)
        given = self.theirs.allocate_slots(request, len(tokens) - hit_tokens, hit_tokens, found)
        lease = self.ours.lease(tokens)
        if lease is not None and given is not None:
            request.num_computed_tokens = len(tokens)
            self.live.append((request, lease))
            self.seen["hits"] += lease.hit_tokens
        self.seen["refused"] += lease is None
        return None if given is None else hit_tokens, None if lease is None else lease.hit_tokens

    def grow(self, place: int) -> tuple[bool, bool]:
        """One more token for a sequence; whether each side had room."""
        request, lease = self.live[place]
        token = self.chance.randint(0, 1)
        request.append_output_token_ids(token)
        theirs, ours = self.theirs.allocate_slots(request, 1) is not None, self.ours.append(lease, token)
        if theirs and ours:
            request.num_computed_tokens += 1
            self.seen["grown"] += 1
        else:
            self.end(place)
        return theirs, ours

    def end(self, place: int) -> None:
        """Releases a sequence on both sides."""
        request, lease = self.live.pop(place)
        self.theirs.free(request)
        self.ours.release(lease)


def disagreements(seed: int, *, steps: int = 60) -> tuple[list[str], dict[str, int]]:
    """A random history on both sides: the first difference, if any, and what happened."""
    chance = random.Random(seed)
    pair = Pair(chance)
    for step in range(steps):
        said = [pair.admit(f"{seed}-{step}")]
        said += [pair.grow(place) for place in reversed(range(len(pair.live))) if chance.random() < 0.3]
        while pair.live and chance.random() < 0.55:
            pair.end(chance.randrange(len(pair.live)))
        said.append((pair.theirs.block_pool.get_num_free_blocks(), pair.ours.free_blocks))
        if wrong := [f"seed {seed}, step {step}: vLLM {a}, ours {b}" for a, b in said if a != b]:
            return wrong, pair.seen
    pair.seen["evictions"] = pair.ours.evictions
    return [], pair.seen


def wrong_sizes(seed: int) -> list[str]:
    """Bytes of a block and blocks of a sequence with a window, for a random architecture, where they differ."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

    chance = random.Random(seed)
    kv_heads, block_size = chance.randint(1, 16), 16 * chance.randint(1, 16)
    shape = {"layers": chance.randint(1, 80), "head_dim": chance.choice([64, 80, 128]), "kv_heads": kv_heads}
    ours = Architecture(
        model_type="llama", attention_heads=kv_heads, hidden_size=1, dtype_bytes=2, max_positions=8192, **shape
    )
    kind = {"num_kv_heads": kv_heads, "head_size": ours.head_dim, "dtype": torch.bfloat16, "block_size": block_size}
    window, flight, length = (chance.randint(1, 5000) for _ in range(3))
    held = blocks_per_sequence(length, block_size=block_size, sliding_window=window, in_flight_tokens=flight)
    theirs = SlidingWindowSpec(sliding_window=window, **kind).max_admission_blocks_per_request(flight, length)
    pairs = [
        (FullAttentionSpec(**kind).page_size_bytes * ours.layers, bytes_per_block(ours, block_size=block_size)),
        (theirs, held),
    ]
    return [f"seed {seed}: vLLM {a}, ours {b}" for a, b in pairs if a != b]


def main(trials: int = 200) -> None:
    """Runs the trials and prints what differed and how much happened."""
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import init_none_hash

    init_none_hash(sha256)
    wrong, seen = list[str](), dict[str, int]()
    for seed in range(trials):
        differences, happened = disagreements(seed)
        wrong += differences + wrong_sizes(seed)
        seen = {name: seen.get(name, 0) + count for name, count in happened.items()}
    print(json.dumps({"trials": trials, "wrong": wrong, "seen": seen}))


if __name__ == "__main__":
    main()
