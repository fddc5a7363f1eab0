"""vLLM's own KV-cache classes beside ours, in a process of its own since all of vLLM comes along: prints one object.

python -m tests.engine.kvcache_oracle
"""

import json
import random
from typing import Any

from labkit.models import Architecture
from labkit.theory.kv_pool import Group
from labkit.theory.kv_size import bytes_per_block
from labkit.theory.prefix_cache import BlockPool


def manager(blocks: int, block_size: int) -> Any:
    """vLLM's KVCacheManager over `blocks` usable blocks (one more, since it keeps one as a placeholder)."""
    import torch
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

    spec = FullAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)
    config = KVCacheConfig(
        num_blocks=blocks + 1, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
    )
    sizes = {"scheduler_block_size": block_size, "hash_block_size": block_size}
    return KVCacheManager(config, max_model_len=8192, **sizes)


def disagreements(seed: int, *, prompts: int = 40) -> tuple[list[str], dict[str, int]]:
    """Random prompts of few different tokens, one after the other: where the two find different prefixes, and how many
    tokens were found, and blocks evicted, on our side."""
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher
    from vllm.v1.request import Request

    chance = random.Random(seed)
    block_size, blocks = chance.choice([1, 2, 4]), chance.randint(12, 30)
    theirs, ours = manager(blocks, block_size), BlockPool(blocks, block_size=block_size)
    hasher = get_request_block_hasher(block_size, sha256)
    seen = {"hits": 0, "evictions": 0}
    for number in range(prompts):
        tokens = [chance.randint(0, 1) for _ in range(chance.randint(1, 12))]
        request = Request(f"{seed}-{number}", tokens, SamplingParams(max_tokens=1), None, block_hasher=hasher)
        blocks_found, hit_tokens, *_ = theirs.get_computed_blocks(request)
        theirs.allocate_slots(request, len(tokens) - hit_tokens, hit_tokens, blocks_found)
        request.num_computed_tokens = len(tokens)
        theirs.free(request)
        our_hits = ours.compute(tokens)
        if our_hits != hit_tokens:
            return [f"seed {seed}, prompt {number}: vLLM found {hit_tokens} tokens, ours {our_hits}"], seen
        seen["hits"] += our_hits
    return [], seen | {"evictions": ours.evictions}


def wrong_sizes(seed: int) -> list[str]:
    """Bytes of a block and blocks of a sequence with a window, for a random architecture, where they differ."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

    chance = random.Random(seed)
    kv_heads, block_size = chance.randint(1, 16), 16 * chance.randint(1, 16)
    ours = Architecture(
        model_type="llama",
        layers=chance.randint(1, 80),
        attention_heads=kv_heads,
        kv_heads=kv_heads,
        head_dim=chance.choice([64, 80, 128]),
        hidden_size=1,
        dtype_bytes=2,
        max_positions=8192,
    )
    kind = {"num_kv_heads": kv_heads, "head_size": ours.head_dim, "dtype": torch.bfloat16, "block_size": block_size}
    window, flight, length = (chance.randint(1, 5000) for _ in range(3))
    held = Group(layers=1, block_size=block_size, window=window).blocks(length, in_flight_tokens=flight)
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
