"""Exercises of lab 02: blocks and what they waste, who is let in, and what a cache of so many bytes holds."""

from typing import Any

from course.lab_00 import EXAMPLE as CONFIG_EXAMPLE
from labkit.models import Architecture
from labkit.teaching import Context, solution

# For tests: lab 00's config, with a cache. The lab passes its own model's, as the engine serves it.
EXAMPLE: dict[str, Any] = {**CONFIG_EXAMPLE, "kv_gib": 1, "block_size": 128}


def facts(served: Architecture, *, kv_gib: float, block_size: int) -> Context:
    """The context for this lab's exercises: the architecture in the type that it is served in, and the cache."""
    numbers = {name: getattr(served, name) for name in EXAMPLE if hasattr(served, name)}
    return {**numbers, "kv_gib": kv_gib, "block_size": block_size}


def kv_tokens(layers: int, kv_heads: int, head_dim: int, dtype_bytes: int, kv_gib: float, block_size: int) -> int:
    bytes_per_block = block_size * 2 * layers * kv_heads * head_dim * dtype_bytes
    blocks = int(kv_gib * 2**30) // bytes_per_block
    return blocks * block_size


solution(
    "02.kv_tokens",
    kv_tokens,
    unit="tokens",
    needs=EXAMPLE,
    wrong={
        "all attention heads instead of the KV heads": [
            lambda layers, attention_heads, head_dim, dtype_bytes, kv_gib, block_size: kv_tokens(
                layers, attention_heads, head_dim, dtype_bytes, kv_gib, block_size
            ),
            lambda layers, hidden_size, dtype_bytes, kv_gib, block_size: kv_tokens(
                layers, 1, hidden_size, dtype_bytes, kv_gib, block_size
            ),
        ],
        "keys without values": lambda layers, kv_heads, head_dim, dtype_bytes, kv_gib, block_size: kv_tokens(
            layers, kv_heads, head_dim, dtype_bytes, 2 * kv_gib, block_size
        ),
        "a partial block counted": [
            lambda layers, kv_heads, head_dim, dtype_bytes, kv_gib: kv_tokens(
                layers, kv_heads, head_dim, dtype_bytes, kv_gib, 1
            ),
            lambda layers, kv_heads, head_dim, dtype_bytes, kv_gib: (
                kv_gib * 2**30 / (2 * layers * kv_heads * head_dim * dtype_bytes)
            ),
        ],
        "GB for GiB": lambda layers, kv_heads, head_dim, dtype_bytes, kv_gib, block_size: kv_tokens(
            layers, kv_heads, head_dim, dtype_bytes, kv_gib * 1e9 / 2**30, block_size
        ),
        "one layer only": lambda kv_heads, head_dim, dtype_bytes, kv_gib, block_size: kv_tokens(
            1, kv_heads, head_dim, dtype_bytes, kv_gib, block_size
        ),
        "blocks for tokens": lambda layers, kv_heads, head_dim, dtype_bytes, kv_gib, block_size: (
            kv_tokens(layers, kv_heads, head_dim, dtype_bytes, kv_gib, block_size) // block_size
        ),
        "the placeholder block taken off": lambda layers, kv_heads, head_dim, dtype_bytes, kv_gib, block_size: (
            kv_tokens(layers, kv_heads, head_dim, dtype_bytes, kv_gib, block_size) - block_size
        ),
    },
)


def kv_gib_each(total_gib: float, utilization: float, weights_gib: float, other_gib: float) -> float:
    return utilization * total_gib - weights_gib - other_gib


solution(
    "02.two_engines",
    kv_gib_each,
    unit="GiB",
    tolerance=0.005,
    wrong={
        "a share of what is left": [
            lambda total_gib, utilization, weights_gib, other_gib: utilization * (total_gib - weights_gib - other_gib),
            lambda total_gib, utilization, weights_gib, other_gib: (
                utilization * (total_gib - 2 * weights_gib - 2 * other_gib)
            ),
            lambda total_gib, utilization, weights_gib, other_gib: (
                utilization * (1 - utilization) * total_gib - weights_gib - other_gib
            ),
        ],
        "the weights shared": [
            lambda total_gib, utilization, weights_gib, other_gib: (
                utilization * total_gib - weights_gib / 2 - other_gib
            ),
            lambda total_gib, utilization, weights_gib, other_gib: (
                (2 * utilization * total_gib - weights_gib - 2 * other_gib) / 2
            ),
        ],
        "both together": lambda total_gib, utilization, weights_gib, other_gib: (
            2 * (utilization * total_gib - weights_gib - other_gib)
        ),
        "the cache alone": lambda total_gib, utilization: utilization * total_gib,
    },
)


def blocks_worked(prompt_tokens: int = 40, output_tokens: int = 30, block_size: int = 16) -> int:
    stored = prompt_tokens + output_tokens - 1  # the last token is never fed back: it needs no place
    return -(-stored // block_size)  # 69 tokens: four full blocks, and a fifth for the last five


def empty_slots(prompt_tokens: int, output_tokens: int, block_size: int) -> int:
    stored = prompt_tokens + output_tokens - 1
    blocks = -(-stored // block_size)
    return blocks * block_size - stored


solution(
    "02.empty_slots",
    empty_slots,
    unit="token slots",
    worked=blocks_worked,
    wrong={
        "the last token counted": lambda prompt_tokens, output_tokens, block_size: (
            -(prompt_tokens + output_tokens) % block_size
        ),
        "rounded down": lambda prompt_tokens, output_tokens, block_size: (
            (prompt_tokens + output_tokens - 1) % block_size
        ),
        "prompt and answer in blocks of their own": [
            lambda prompt_tokens, output_tokens, block_size: (
                -prompt_tokens % block_size + -(output_tokens - 1) % block_size
            ),
            lambda prompt_tokens, output_tokens, block_size: -prompt_tokens % block_size + -output_tokens % block_size,
        ],
        "half a block, as on average": [lambda block_size: block_size // 2, lambda block_size: (block_size - 1) / 2],
    },
)


def waste_share(stored_tokens: list[int], block_size: int) -> float:
    given = sum(-(-tokens // block_size) * block_size for tokens in stored_tokens)
    return 1 - sum(stored_tokens) / given


solution(
    "02.waste_share",
    waste_share,
    unit="share",
    cases=(([5, 32, 33, 100], 32), ([16], 16), ([1, 1, 1], 128), ([250, 17, 64, 90, 31], 16)),
    wrong={
        "a spare block for a full one": lambda tokens, size: (
            1 - sum(tokens) / sum((each // size + 1) * size for each in tokens)
        ),
        "each sequence's share, averaged": lambda tokens, size: (
            sum(1 - each / (-(-each // size) * size) for each in tokens) / len(tokens)
        ),
        "one block shared by all": lambda tokens, size: 1 - sum(tokens) / (-(-sum(tokens) // size) * size),
        "empty over stored": lambda tokens, size: (
            (sum(-(-each // size) * size for each in tokens) - sum(tokens)) / sum(tokens)
        ),
        "the filled share": lambda tokens, size: sum(tokens) / sum(-(-each // size) * size for each in tokens),
    },
)


def _overtaking(waiting: list[tuple[int, int]], free: int, running: int, most: int, size: int) -> int:
    admitted = 0
    for prompt, _ in waiting:
        needed = -(-prompt // size)
        if running + admitted < most and needed <= free:
            free -= needed
            admitted += 1
    return admitted


def _taking_nothing(waiting: list[tuple[int, int]], free: int, running: int, most: int, size: int) -> int:
    admitted = 0
    for prompt, _ in waiting:
        if running + admitted == most or -(-prompt // size) > free:
            break
        admitted += 1
    return admitted


def admit(waiting: list[tuple[int, int]], free_blocks: int, running: int, max_num_seqs: int, block_size: int) -> int:
    admitted = 0
    for prompt_tokens, _max_tokens in waiting:
        needed = -(-prompt_tokens // block_size)
        if running + admitted == max_num_seqs or needed > free_blocks:
            break
        free_blocks -= needed
        admitted += 1
    return admitted


solution(
    "02.admit",
    admit,
    unit="requests",
    cases=(
        ([(56, 48)] * 6, 15, 0, 8, 32),
        ([(40, 200), (300, 10), (10, 10)], 8, 0, 8, 32),
        ([(16, 16)] * 9, 100, 2, 6, 16),
        ([(33, 1), (33, 1), (64, 1)], 6, 0, 8, 32),
        ([(500, 12)], 3, 0, 4, 128),
        ([(40, 20), (24, 40)], 2, 1, 8, 32),
        ([], 5, 0, 4, 16),
        ([(64, 1)] * 3, 3, 0, 8, 32),
    ),
    wrong={
        "the answer reserved": [
            lambda waiting, free, running, most, size: admit(
                [(prompt + out, 0) for prompt, out in waiting], free, running, most, size
            ),
            lambda waiting, free, running, most, size: admit(
                [(prompt + out - 1, 0) for prompt, out in waiting], free, running, most, size
            ),
        ],
        "overtaking": _overtaking,
        "tokens taken for blocks": lambda waiting, free, running, most, size: admit(
            waiting, free * size, running, most, 1
        ),
        "blocks rounded down": lambda waiting, free, running, most, size: admit(
            [(prompt // size * size, 0) for prompt, _ in waiting], free, running, most, size
        ),
        "the running ones forgotten": lambda waiting, free, _running, most, size: admit(waiting, free, 0, most, size),
        "one free block given twice": _taking_nothing,
    },
)
