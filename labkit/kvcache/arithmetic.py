"""How many bytes, blocks and tokens: the KV cache's size from a model's architecture, whole and exact in bytes.

The formulas are those of vLLM 0.32 (v1/kv_cache_interface.py `AttentionSpec`, `SlidingWindowSpec`;
v1/core/kv_cache_utils.py `get_kv_cache_config_from_groups`, `get_max_concurrency_for_kv_cache_config`), so that what
is computed here is what its start-up log says. All sizes are for one GPU (or one CPU worker), as the log's are.
"""

from labkit.errors import UsageError
from labkit.models import Architecture

KEY_AND_VALUE = 2  # each token stores one key and one value vector per head and layer
CPU_BLOCK_MULTIPLE = 32  # vLLM's cpu_attn.py, get_supported_kernel_block_sizes
GPU_BLOCK_MULTIPLE = 16  # vLLM's flash_attn.py; single kernels ask for more


def require_positive(name: str, value: int) -> int:
    """The value, or a UsageError with the name and the number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(
            f"{name} is {value!r}; it must be a whole number of at least 1", remedy=f"give {name} such a number"
        )
    return value


def check_block_size(block_size: int, *, gpu: bool) -> int:
    """The block size, or the UsageError that saves waiting for the engine to refuse it. Unit: tokens."""
    require_positive("block_size", block_size)
    multiple = GPU_BLOCK_MULTIPLE if gpu else CPU_BLOCK_MULTIPLE
    if block_size % multiple:
        lower = max(multiple, block_size - block_size % multiple)
        raise UsageError(
            f"block_size is {block_size}; vLLM on a {'GPU' if gpu else 'CPU'} takes multiples of {multiple} only",
            remedy=f"use {lower} or {lower + multiple}" if lower < block_size else f"use {multiple}",
        )
    return block_size


def kv_heads_per_rank(architecture: Architecture, tensor_parallel: int = 1) -> int:
    """KV heads that one of `tensor_parallel` GPUs stores; with fewer heads than GPUs each head is stored several times.

    Source: vLLM's config/model.py `get_num_kv_heads`. UsageError where vLLM refuses to split the heads.
    """
    require_positive("tensor_parallel", tensor_parallel)
    heads = architecture.attention_heads
    if heads % tensor_parallel:
        raise UsageError(
            f"tensor_parallel is {tensor_parallel}, which does not divide the model's {heads} attention heads",
            remedy=f"use one of {', '.join(str(n) for n in range(1, heads + 1) if heads % n == 0)}",
        )
    kv_heads = architecture.kv_heads
    if max(kv_heads, tensor_parallel) % min(kv_heads, tensor_parallel):
        raise UsageError(
            f"{kv_heads} KV heads can be neither divided nor repeated over {tensor_parallel} GPUs",
            remedy=f"use a tensor_parallel that divides {kv_heads} or is a multiple of it",
        )
    return max(1, kv_heads // tensor_parallel)


def bytes_per_token(architecture: Architecture, *, tensor_parallel: int = 1, kv_dtype_bytes: int | None = None) -> int:
    """2 x layers x KV heads x head_dim x bytes of a number, on one GPU.

    Source: section 3 of Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with
    PagedAttention" (arXiv 2309.06180), with KV heads in place of heads for grouped-query attention (arXiv 2305.13245);
    vLLM's `AttentionSpec` computes the same for a block. `kv_dtype_bytes`: where the cache has a type of its own, such
    as 1 for fp8.
    """
    size = architecture.dtype_bytes if kv_dtype_bytes is None else require_positive("kv_dtype_bytes", kv_dtype_bytes)
    heads = kv_heads_per_rank(architecture, tensor_parallel)
    return KEY_AND_VALUE * architecture.layers * heads * architecture.head_dim * size


def bytes_per_block(
    architecture: Architecture, *, block_size: int, tensor_parallel: int = 1, kv_dtype_bytes: int | None = None
) -> int:
    """Bytes of one block of `block_size` tokens, over all layers, on one GPU."""
    per_token = bytes_per_token(architecture, tensor_parallel=tensor_parallel, kv_dtype_bytes=kv_dtype_bytes)
    return require_positive("block_size", block_size) * per_token


def blocks_for_tokens(tokens: int, *, block_size: int) -> int:
    """Whole blocks that hold so many tokens: the last one may be partly empty."""
    return -(-tokens // block_size)


def blocks_per_sequence(
    length: int, *, block_size: int, sliding_window: int | None = None, in_flight_tokens: int = 1
) -> int:
    """Blocks that one sequence of `length` tokens may hold at once.

    With a sliding window only the last `sliding_window - 1` tokens and those of the steps under way are kept, in one
    block more since the window need not begin at a block's edge (vLLM's `SlidingWindowSpec`, which reserves that block
    for short sequences too). `in_flight_tokens`: 1 while decoding; the engine reserves for its whole batch of tokens.
    """
    if sliding_window is None:
        return blocks_for_tokens(length, block_size=block_size)
    kept = min(sliding_window - 1 + in_flight_tokens, length)
    return blocks_for_tokens(kept, block_size=block_size) + 1


def longest_sequence(
    blocks: int, *, block_size: int, at_most: int, sliding_window: int | None = None, in_flight_tokens: int = 1
) -> int:
    """The longest length up to `at_most` tokens for which one sequence fits into `blocks`; 0 where none does.

    It is the "estimated maximum model length" of vLLM's start-up error.
    """
    window = {"sliding_window": sliding_window, "in_flight_tokens": in_flight_tokens}
    if blocks_per_sequence(at_most, block_size=block_size, **window) <= blocks:  # type: ignore[arg-type]
        return at_most
    return max(0, blocks - (sliding_window is not None)) * block_size
