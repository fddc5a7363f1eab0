"""Exercises of lab 02 on bytes: what a cache holds, and what two engines on one GPU get."""

from typing import Any

from labkit.models import Architecture
from labkit.teaching.exercises import Context, Misconception, ValueExercise
from labkit.teaching.lab_00 import EXAMPLE as CONFIG_EXAMPLE

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


def _tokens(gib_bytes: float, per_token: int, block_size: int) -> int:
    return int(gib_bytes // (block_size * per_token)) * block_size


KV_TOKENS = ValueExercise(
    id="02.kv_tokens",
    title="how many tokens a cache holds",
    prompt="""
The config says: {layers} layers, {attention_heads} attention heads, {kv_heads} KV heads of {head_dim} numbers, hidden
size {hidden_size}; numbers are served in {dtype_bytes} bytes. The cache has {kv_gib} GiB, in blocks of {block_size}
tokens. For **how many tokens** is there room in whole blocks?
""",
    starter="kv_tokens = ...  # tokens",
    answer_name="kv_tokens",
    unit="tokens",
    needs=EXAMPLE,
    solution=kv_tokens,
    hints=(
        "Bytes of one token first: a key and a value in each layer, for each KV head.",
        "Then bytes of a block, then whole blocks in the memory, then tokens in these blocks.",
        "A GiB is 2 to the power of 30 bytes.",
    ),
    misconceptions=(
        Misconception(
            "all attention heads instead of the KV heads",
            "This keeps keys and values for every attention head (the hidden size's width). In grouped-query attention"
            " several query heads share one KV head, and only those are kept.",
            (
                lambda layers, attention_heads, head_dim, dtype_bytes, kv_gib, block_size: _tokens(
                    kv_gib * 2**30, 2 * layers * attention_heads * head_dim * dtype_bytes, block_size
                ),
                lambda layers, hidden_size, dtype_bytes, kv_gib, block_size: _tokens(
                    kv_gib * 2**30, 2 * layers * hidden_size * dtype_bytes, block_size
                ),
            ),
        ),
        Misconception(
            "keys without values",
            "This has room for twice the tokens: a token leaves a key and a value, both are kept.",
            (
                lambda layers, kv_heads, head_dim, dtype_bytes, kv_gib, block_size: _tokens(
                    kv_gib * 2**30, layers * kv_heads * head_dim * dtype_bytes, block_size
                ),
            ),
        ),
        Misconception(
            "a partial block counted",
            "Close: the memory divided by a token's bytes. But the memory is cut into whole blocks, and the rest at the"
            " end that makes no block stays unused.",
            (
                lambda layers, kv_heads, head_dim, dtype_bytes, kv_gib: (
                    int(kv_gib * 2**30) // (2 * layers * kv_heads * head_dim * dtype_bytes)
                ),
                lambda layers, kv_heads, head_dim, dtype_bytes, kv_gib: (
                    kv_gib * 2**30 / (2 * layers * kv_heads * head_dim * dtype_bytes)
                ),
            ),
        ),
        Misconception(
            "GB for GiB",
            "This takes a GiB for a thousand million bytes. The log's GiB are powers of two.",
            (
                lambda layers, kv_heads, head_dim, dtype_bytes, kv_gib, block_size: _tokens(
                    kv_gib * 1e9, 2 * layers * kv_heads * head_dim * dtype_bytes, block_size
                ),
            ),
        ),
        Misconception(
            "one layer only",
            "This stores keys and values of a single layer. Each layer has its own.",
            (
                lambda kv_heads, head_dim, dtype_bytes, kv_gib, block_size: _tokens(
                    kv_gib * 2**30, 2 * kv_heads * head_dim * dtype_bytes, block_size
                ),
            ),
        ),
        Misconception(
            "blocks for tokens",
            "This is the number of blocks. Each holds several tokens.",
            (
                lambda layers, kv_heads, head_dim, dtype_bytes, kv_gib, block_size: (
                    int(kv_gib * 2**30) // (block_size * 2 * layers * kv_heads * head_dim * dtype_bytes)
                ),
            ),
        ),
    ),
)


def kv_gib_each(total_gib: float, utilization: float, weights_gib: float, other_gib: float) -> float:
    return utilization * total_gib - weights_gib - other_gib


TWO_ENGINES = ValueExercise(
    id="02.two_engines",
    title="two engines on one GPU",
    prompt="""
A GPU has {total_gib} GiB. Two engines with the same model are started on it, one after the other, each with
`--gpu-memory-utilization {utilization}`. The weights take {weights_gib} GiB; activations, context and CUDA graphs take
{other_gib} GiB in each engine. How many GiB does **each** engine have for its KV cache?
""",
    starter="kv_gib_each = ...  # GiB",
    answer_name="kv_gib_each",
    unit="GiB",
    data={"total_gib": 40.0, "utilization": 0.48, "weights_gib": 9.0, "other_gib": 1.5},
    solution=kv_gib_each,
    tolerance=0.005,
    hints=(
        "The share is one of the GPU's whole memory, for everything that the engine takes.",
        "Two processes share nothing: each loads weights of its own.",
    ),
    misconceptions=(
        Misconception(
            "a share of what is left",
            "This applies the share to what the other things leave. It is a share of the whole GPU, and weights and"
            " activations come out of it.",
            (
                lambda total_gib, utilization, weights_gib, other_gib: (
                    utilization * (total_gib - weights_gib - other_gib)
                ),
                lambda total_gib, utilization, weights_gib, other_gib: (
                    utilization * (total_gib - 2 * weights_gib - 2 * other_gib)
                ),
                lambda total_gib, utilization, weights_gib, other_gib: (
                    utilization * (1 - utilization) * total_gib - weights_gib - other_gib
                ),
            ),
        ),
        Misconception(
            "the weights shared",
            "This counts the weights once for both engines. Two processes have two copies.",
            (
                lambda total_gib, utilization, weights_gib, other_gib: (
                    utilization * total_gib - weights_gib / 2 - other_gib
                ),
                lambda total_gib, utilization, weights_gib, other_gib: (
                    (2 * utilization * total_gib - weights_gib - 2 * other_gib) / 2
                ),
            ),
        ),
        Misconception(
            "both together",
            "This is the cache of both engines together. Neither can use the other's.",
            (
                lambda total_gib, utilization, weights_gib, other_gib: (
                    2 * (utilization * total_gib - weights_gib - other_gib)
                ),
            ),
        ),
        Misconception(
            "the cache alone",
            "This gives the whole share to the cache. It is for everything: weights and activations first, the cache"
            " gets the rest.",
            (lambda total_gib, utilization: utilization * total_gib,),
        ),
    ),
)
