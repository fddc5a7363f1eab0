"""Exercises of lab 00: the memory that a model takes, from the numbers in its config."""

from typing import Any

from labkit.models import Architecture
from labkit.teaching import Context, solution

# For tests: any config whose numbers of heads, layers and bytes all differ. A lab passes its own model's.
EXAMPLE: dict[str, Any] = {
    "layers": 30,
    "attention_heads": 9,
    "kv_heads": 3,
    "head_dim": 64,
    "hidden_size": 576,
    "dtype_bytes": 2,
}


def facts(config: Architecture) -> Context:
    """Return the context for this lab's exercises from a model's architecture."""
    return {name: getattr(config, name) for name in (*EXAMPLE, "parameters")}


def kv_bytes_per_token(layers: int, kv_heads: int, head_dim: int, dtype_bytes: int) -> int:
    keys_and_values = 2
    return keys_and_values * layers * kv_heads * head_dim * dtype_bytes


solution(
    "00.kv_bytes_per_token",
    kv_bytes_per_token,
    unit="bytes",
    needs=EXAMPLE,
    wrong={
        "attention heads instead of KV heads": [
            lambda layers, attention_heads, head_dim, dtype_bytes: (
                2 * layers * attention_heads * head_dim * dtype_bytes
            ),
            lambda layers, hidden_size, dtype_bytes: 2 * layers * hidden_size * dtype_bytes,
        ],
        "half the size: keys without values": lambda layers, kv_heads, head_dim, dtype_bytes: (
            layers * kv_heads * head_dim * dtype_bytes
        ),
        "bits instead of bytes": lambda layers, kv_heads, head_dim, dtype_bytes: (
            16 * layers * kv_heads * head_dim * dtype_bytes
        ),
        "one layer only": lambda kv_heads, head_dim, dtype_bytes: 2 * kv_heads * head_dim * dtype_bytes,
        "one head only": lambda layers, head_dim, dtype_bytes: 2 * layers * head_dim * dtype_bytes,
    },
)


def weight_bytes(parameters: int) -> float:
    bits = 4 * parameters
    return bits / 8


solution(
    "00.weight_bytes",
    weight_bytes,
    unit="bytes",
    tolerance=0.01,
    needs={"parameters": 134_515_008},
    wrong={
        "16-bit numbers": lambda parameters: 2 * parameters,
        "bits instead of bytes": lambda parameters: 4 * parameters,
        "parameters taken for bytes": lambda parameters: parameters,
    },
)
