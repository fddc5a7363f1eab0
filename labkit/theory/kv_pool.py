"""vLLM's groups of layers, which share one pool of equally large KV-cache blocks.

From vLLM 0.32, v1/core/kv_cache_utils.py: `get_kv_cache_groups`, `unify_kv_cache_spec_page_size`,
`_get_kv_cache_groups_uniform_page_size` and `_get_kv_cache_bytes_per_block`, for its default layouts.
"""

from bisect import bisect_right
from dataclasses import dataclass

from labkit.errors import require, whole
from labkit.models import Architecture
from labkit.models.attention import KvLayers

TYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "fp8_inc": 1}
"""Bytes per number by vLLM's name of the KV cache's type, without packed types, which add scales."""


def type_bytes(name: str) -> int:
    """Return the bytes per number of this type. UsageError for an unknown type."""
    require(
        name in TYPE_BYTES,
        f"the KV cache's type is {name!r}, whose size is unknown",
        fix=f"choose one of auto, {', '.join(TYPE_BYTES)}",
    )
    return TYPE_BYTES[name]


def number_bytes(architecture: Architecture, kv_dtype_bytes: int | None) -> int:
    """Return the bytes per number in the cache; by default of the type that vLLM's `auto` chooses for this model."""
    if kv_dtype_bytes is None:
        kv_dtype_bytes = type_bytes(architecture.kv_dtype) if architecture.kv_dtype else architecture.dtype_bytes
    whole("kv_dtype_bytes", kv_dtype_bytes, at_least=1)
    return kv_dtype_bytes


def heads_per_rank(layers: KvLayers, architecture: Architecture, tensor_parallel: int) -> int:
    """Return the KV heads that each of `tensor_parallel` GPUs stores; with fewer heads than GPUs, heads are replicated.

    Source: vLLM's config/model.py `get_num_kv_heads`. UsageError if vLLM refuses to split the heads.
    """
    whole("tensor_parallel", tensor_parallel, at_least=1)
    heads, kv_heads = architecture.attention_heads, layers.kv_heads
    require(
        heads % tensor_parallel == 0,
        f"tensor_parallel is {tensor_parallel}, which does not divide the model's {heads} attention heads",
        fix=f"use one of {', '.join(str(n) for n in range(1, min(heads, 1024) + 1) if heads % n == 0)}",
    )
    if layers.replicated:
        return kv_heads
    require(
        max(kv_heads, tensor_parallel) % min(kv_heads, tensor_parallel) == 0,
        f"{kv_heads} KV heads can be neither divided nor repeated over {tensor_parallel} GPUs",
        fix=f"use a tensor_parallel that divides {kv_heads} or is a multiple of it",
    )
    return max(1, kv_heads // tensor_parallel)


def layer_bytes(layers: KvLayers, architecture: Architecture, tensor_parallel: int, kv_dtype_bytes: int | None) -> int:
    """Return the bytes per token in one of these layers, on one GPU."""
    size = layers.number_bytes or number_bytes(architecture, kv_dtype_bytes)
    return heads_per_rank(layers, architecture, tensor_parallel) * (layers.key_size + layers.value_size) * size


@dataclass(frozen=True, kw_only=True)
class Group:
    """Layers with a common block table, whose blocks hold `block_size` tokens each.

    `window`: the tokens that a sequence keeps; None: all. Equal layers form several groups if they do not fit into one
    block of the pool.
    """

    layers: int
    block_size: int
    window: int | None = None

    def blocks(self, length: int, *, in_flight_tokens: int) -> int:
        """Return the most blocks that one sequence of `length` tokens holds at once.

        With a window it keeps the last `window - 1` tokens and those in flight, in one block more, since the window
        need not begin at a block's edge (vLLM's `SlidingWindowSpec`, which reserves that block for short sequences
        too).
        """
        if self.window is None:
            return -(-length // self.block_size)
        return -(-min(self.window - 1 + in_flight_tokens, length) // self.block_size) + 1


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The groups, and the bytes of a block, which any group can use, on one GPU."""

    groups: tuple[Group, ...]
    bytes_per_block: int

    def blocks(self, length: int, *, in_flight_tokens: int) -> int:
        """Return the most blocks that one sequence of `length` tokens holds at once, over all groups."""
        return sum(group.blocks(length, in_flight_tokens=in_flight_tokens) for group in self.groups)

    def longest(self, blocks: int, *, at_most: int, in_flight_tokens: int) -> int:
        """Return the longest sequence up to `at_most` that fits into `blocks`, 0 if none does: the "estimated maximum
        model length" of vLLM's start-up error."""
        lengths = range(1, at_most + 1)
        return bisect_right(lengths, blocks, key=lambda length: self.blocks(length, in_flight_tokens=in_flight_tokens))


def pool_of(
    architecture: Architecture, *, block_size: int, tensor_parallel: int = 1, kv_dtype_bytes: int | None = None
) -> Pool:
    """Return vLLM's groups of a model's layers, with `block_size` tokens in a block of full attention."""
    whole("block_size", block_size, at_least=1)
    storing = architecture.storing_layers
    pages = [layer_bytes(layers, architecture, tensor_parallel, kv_dtype_bytes) * block_size for layers in storing]
    windows = {layers.window for layers in storing}
    if len(windows) == 1:  # one kind of layer: one group, even if sizes differ
        group = Group(layers=sum(layers.count for layers in storing), block_size=block_size, window=windows.pop())
        per_block = sum(page * layers.count for page, layers in zip(pages, storing, strict=True))
        return Pool(groups=(group,), bytes_per_block=per_block)
    largest, counts = max(pages), [layers.count for layers in storing]
    in_group = max(counts) if max(counts) < 1.5 * min(counts) else min(counts)
    groups = []
    for page, layers in zip(pages, storing, strict=True):
        # A smaller page holds more tokens if they fill it exactly, and is padded otherwise.
        tokens = block_size * (largest // page) if largest % page == 0 else block_size
        group = Group(layers=in_group, block_size=tokens, window=layers.window)
        groups += [group] * -(-layers.count // in_group)
    return Pool(groups=tuple(groups), bytes_per_block=in_group * largest)
