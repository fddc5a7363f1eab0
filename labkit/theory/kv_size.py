"""Compute the KV cache's size in bytes, blocks and tokens from a model's architecture, exactly.

The formulas are those of vLLM 0.32 (v1/kv_cache_interface.py, v1/core/kv_cache_utils.py), so that results equal its
start-up log. All sizes are for one GPU (or one CPU worker), as in the log.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from labkit.errors import number, require, whole
from labkit.models import Architecture
from labkit.models.attention import KvLayers
from labkit.theory.kv_pool import Pool, heads_per_rank, layer_bytes, number_bytes, pool_of

CPU_BLOCK_MULTIPLE = 32  # vLLM's cpu_attn.py, get_supported_kernel_block_sizes
GPU_BLOCK_MULTIPLE = 16  # vLLM's flash_attn.py; some kernels need more
MOST = 10**19  # bytes or tokens: far above any cache
STEPS_IN_FLIGHT = 2
"""Steps for whose tokens layers with a window reserve blocks: vLLM's max_concurrent_batches with async scheduling, its
default on a GPU."""
BATCHED_TOKENS = 4096
"""max_num_batched_tokens if it is not known: between the defaults of small and large cards."""


def check_block_size(block_size: int, *, gpu: bool) -> None:
    """UsageError for a block size (in tokens) that vLLM's attention kernels refuse, before an engine starts."""
    whole("block_size", block_size, at_least=1)
    multiple = GPU_BLOCK_MULTIPLE if gpu else CPU_BLOCK_MULTIPLE
    lower = block_size - block_size % multiple
    require(
        lower == block_size,
        f"block_size is {block_size}; vLLM on a {'GPU' if gpu else 'CPU'} takes multiples of {multiple} only",
        fix=f"use {lower} or {lower + multiple}" if lower else f"use {multiple}",
    )


def check_kv_cache(architecture: Architecture) -> None:
    """UsageError, with the reason, for a model without a KV cache."""
    require(
        not architecture.no_kv_cache,
        f"a model of type {architecture.model_type} is {architecture.no_kv_cache}",
        fix="choose a model that generates text, such as the embedded smollm2-135m",
    )


def kv_heads_per_rank(architecture: Architecture, tensor_parallel: int = 1) -> int:
    """Return the KV heads that each of `tensor_parallel` GPUs stores (the least, if layers differ). UsageError if vLLM
    refuses to split the heads."""
    check_kv_cache(architecture)
    return min(heads_per_rank(layers, architecture, tensor_parallel) for layers in architecture.storing_layers)


def bytes_per_token(architecture: Architecture, *, tensor_parallel: int = 1, kv_dtype_bytes: int | None = None) -> int:
    """Return the bytes that one more token of a long sequence takes on one GPU: layers x KV heads x (key + value) x
    bytes per number, over the layers that keep all tokens, or over all layers if all have a window.

    Source: section 3 of Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with
    PagedAttention" (arXiv 2309.06180), with KV heads in place of heads for grouped-query attention (arXiv 2305.13245);
    vLLM's `AttentionSpec` computes the same for a block. `kv_dtype_bytes`: bytes per number; None: by vLLM's `auto`.
    """
    check_kv_cache(architecture)
    storing = architecture.storing_layers
    growing = [layers for layers in storing if layers.window is None] or storing
    return sum(layers.count * layer_bytes(layers, architecture, tensor_parallel, kv_dtype_bytes) for layers in growing)


def window_bytes(architecture: Architecture, *, tensor_parallel: int = 1, kv_dtype_bytes: int | None = None) -> int:
    """Return the bytes that a sequence of any length beyond the window keeps in layers with a window, on one GPU."""
    return sum(
        layers.count * layers.window * layer_bytes(layers, architecture, tensor_parallel, kv_dtype_bytes)
        for layers in architecture.storing_layers
        if layers.window is not None
    )


def bytes_per_block(
    architecture: Architecture, *, block_size: int, tensor_parallel: int = 1, kv_dtype_bytes: int | None = None
) -> int:
    """Return the bytes of one block of `block_size` tokens on one GPU: over all layers, or over the pool's largest
    group if some layers keep all tokens and others a window."""
    check_kv_cache(architecture)
    split = {"tensor_parallel": tensor_parallel, "kv_dtype_bytes": kv_dtype_bytes}
    return pool_of(architecture, block_size=block_size, **split).bytes_per_block  # type: ignore[arg-type]


def blocks_for_tokens(tokens: int, *, block_size: int) -> int:
    """Return the number of blocks for `tokens` tokens; the last may be partly empty."""
    return -(-tokens // block_size)


NULL_BLOCKS = 1  # vLLM's BlockPool keeps block 0 for itself, and get_kv_cache_configs checks the length without it


@dataclass(frozen=True, kw_only=True)
class KvPlan:
    """The KV cache of one GPU. `logged_tokens`: the number in vLLM's start-up line; `tokens` equals it if layers
    differ, and is blocks x block_size if all are equal.

    `max_concurrency`: the log's "Maximum concurrency", the number of sequences of `max_model_len` tokens that fit: a
    worst case, not a limit; None for models with state layers, whose blocks are not computed here.
    `allocatable_blocks`: without vLLM's null block. `longest_tokens`: the longest sequence that fits, up to
    `max_model_len`; if it is shorter, the engine refuses to start. `window_bytes_per_sequence`: what a long sequence
    keeps in layers with a window, in addition to `bytes_per_token`.
    """

    model_type: str
    layers: int
    attention_heads: int
    kv_heads: int
    kv_heads_per_rank: int
    head_dim: int
    kv_dtype_bytes: int
    tensor_parallel: int
    sliding_window: int | None
    state_layers: int
    memory_bytes: int
    block_size: int
    max_model_len: int
    bytes_per_token: int
    window_bytes_per_sequence: int
    bytes_per_block: int
    blocks: int
    allocatable_blocks: int
    tokens: int
    unused_bytes: int
    blocks_per_sequence: int
    bytes_per_sequence: int
    max_concurrency: float | None
    logged_tokens: int | None
    longest_tokens: int
    fits: bool
    size_lines: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """The arithmetic, one step per line."""
        return [*self.size_lines, *_budget_lines(self), *(f"note: {note}" for note in self.notes)]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain data, with its lines."""
        plan = asdict(self)
        del plan["size_lines"]  # the first of the lines
        return {**plan, "notes": list(self.notes), "lines": self.lines}


def describe(
    architecture: Architecture,
    *,
    memory_bytes: int,
    block_size: int,
    max_model_len: int | None = None,
    tensor_parallel: int = 1,
    kv_dtype_bytes: int | None = None,
    max_num_batched_tokens: int | None = None,
) -> KvPlan:
    """Return the plan for `memory_bytes` of KV cache on each GPU. `max_model_len`: tokens (default: the model's limit).
    `max_num_batched_tokens`: of a step, with as many steps in flight as on a GPU; it matters to layers with a window.

    UsageError: a number below 1, heads that cannot be split, memory below one block, a model without a KV cache.
    """
    check_kv_cache(architecture)
    length = max_model_len
    if length is None:
        length = architecture.default_length or architecture.max_positions
    per_step = BATCHED_TOKENS if max_num_batched_tokens is None else max_num_batched_tokens
    sizes = {"max_model_len": length, "memory_bytes": memory_bytes, "max_num_batched_tokens": per_step}
    for name, value in sizes.items():
        whole(name, value, at_least=1)
        require(value <= MOST, f"{name} has {len(str(value))} digits", fix=f"pass at most {MOST:,}")
    in_flight_tokens = STEPS_IN_FLIGHT * per_step
    split: dict[str, Any] = {"tensor_parallel": tensor_parallel, "kv_dtype_bytes": kv_dtype_bytes}
    pool = pool_of(architecture, block_size=block_size, **split)
    per_block = pool.bytes_per_block
    require(
        memory_bytes >= per_block,
        f"memory_bytes is {memory_bytes:,}; one block takes {per_block:,} bytes",
        fix=f"give at least {per_block:,} bytes, or a smaller block_size",
    )
    blocks = memory_bytes // per_block
    per_sequence = pool.blocks(length, in_flight_tokens=in_flight_tokens)
    usable = blocks - NULL_BLOCKS
    longest = pool.longest(usable, at_most=length, in_flight_tokens=in_flight_tokens)
    concurrency = None if architecture.state_layers else blocks / per_sequence
    logged = None if concurrency is None else int(concurrency * length)
    return KvPlan(
        model_type=architecture.model_type,
        layers=architecture.layers,
        attention_heads=architecture.attention_heads,
        kv_heads=architecture.kv_heads,
        kv_heads_per_rank=kv_heads_per_rank(architecture, tensor_parallel),
        head_dim=architecture.head_dim,
        kv_dtype_bytes=number_bytes(architecture, kv_dtype_bytes),
        tensor_parallel=tensor_parallel,
        sliding_window=architecture.sliding_window,
        state_layers=architecture.state_layers,
        memory_bytes=memory_bytes,
        block_size=block_size,
        max_model_len=length,
        bytes_per_token=bytes_per_token(architecture, **split),
        window_bytes_per_sequence=window_bytes(architecture, **split),
        bytes_per_block=per_block,
        blocks=blocks,
        allocatable_blocks=usable,
        tokens=blocks * block_size if len(pool.groups) == 1 or logged is None else logged,
        unused_bytes=memory_bytes - blocks * per_block,
        blocks_per_sequence=per_sequence,
        bytes_per_sequence=per_sequence * per_block,
        max_concurrency=concurrency,
        logged_tokens=logged,
        longest_tokens=longest,
        fits=usable >= per_sequence,
        size_lines=tuple(_size_lines(architecture, **split)),
        notes=tuple(_notes(architecture, pool, length=length, usable=usable, in_flight_tokens=in_flight_tokens)),
    )


def _size_lines(architecture: Architecture, *, tensor_parallel: int, kv_dtype_bytes: int | None) -> list[str]:
    storing = architecture.storing_layers
    growing = [layers for layers in storing if layers.window is None]
    lines = []
    for layers in storing:
        size = layers.number_bytes or number_bytes(architecture, kv_dtype_bytes)
        total = layers.count * layer_bytes(layers, architecture, tensor_parallel, kv_dtype_bytes)
        kept = "" if layers.window is None or not growing else f", kept for a window of {layers.window:,} tokens"
        shape = _shape(layers, heads_per_rank(layers, architecture, tensor_parallel), tensor_parallel)
        lines.append(f"one token: {shape} x {size} bytes = {total:,} bytes{kept}")
    own, shared = architecture.attention_heads, storing[0]
    if not shared.replicated and shared.kv_heads < own:
        times = f"{own / shared.kv_heads:g} times as much"
        lines.insert(1, f"with a KV head for each of the {own} attention heads: {times}")
    return lines


def _shape(layers: KvLayers, heads: int, tensor_parallel: int) -> str:
    if layers.replicated:
        return f"{layers.count} layers x one vector of {layers.key_size} numbers (the same on every GPU)"
    shared = f"{heads} KV heads"
    if tensor_parallel > 1:
        shared += f" (of {layers.kv_heads}, over {tensor_parallel} GPUs)"
    if layers.key_size == layers.value_size:
        return f"2 (key and value) x {layers.count} layers x {shared} x {layers.key_size} numbers per head"
    sizes = f"({layers.key_size} of the key + {layers.value_size} of the value)"
    return f"{layers.count} layers x {shared} x {sizes} numbers"


def _budget_lines(plan: KvPlan) -> list[str]:
    sequence = f"one sequence of {plan.max_model_len:,} tokens holds up to {plan.blocks_per_sequence:,} blocks"
    if plan.sliding_window is not None:
        sequence += f" (a window of {plan.sliding_window:,} tokens is kept where there is one)"
    block = f"{plan.block_size} tokens x {plan.bytes_per_token:,} bytes"
    if plan.bytes_per_block != plan.block_size * plan.bytes_per_token:
        block = "as many tokens of one group of layers as fill a block of the largest group"
    lines = [
        f"one block: {block} = {plan.bytes_per_block:,} bytes",
        f"blocks: {plan.memory_bytes:,} bytes / {plan.bytes_per_block:,} = {plan.blocks:,} whole blocks, "
        f"{plan.unused_bytes:,} bytes left over",
        sequence,
        f"sequences get at most {plan.allocatable_blocks:,} blocks: vLLM keeps {NULL_BLOCKS} as a placeholder",
    ]
    if plan.tokens == plan.blocks * plan.block_size:
        lines.insert(2, f"tokens: {plan.blocks:,} blocks x {plan.block_size} = {plan.tokens:,} tokens")
    if plan.max_concurrency is not None:
        ratio = f"{plan.blocks:,} blocks / {plan.blocks_per_sequence:,} = {plan.max_concurrency:.2f}x"
        lines.append(f"maximum concurrency: {ratio}, {plan.logged_tokens:,} tokens in all")
    return lines


def _notes(architecture: Architecture, pool: Pool, *, length: int, usable: int, in_flight_tokens: int) -> list[str]:
    state, limit = architecture.state_layers, architecture.max_positions
    windowed = any(group.window is not None for group in pool.groups)
    least = pool.blocks(length, in_flight_tokens=1)
    longest = pool.longest(usable, at_most=length, in_flight_tokens=in_flight_tokens)
    notes = {
        f"{state} of {architecture.layers} layers keep a fixed state for each sequence, which takes blocks too: it is "
        "not counted here, so fewer tokens fit, and the concurrency is not known": state > 0,
        f"layers with a window also reserve blocks for {in_flight_tokens:,} tokens in flight: {STEPS_IN_FLIGHT} steps "
        f"(async scheduling, the default on a GPU) of max_num_batched_tokens, {in_flight_tokens // STEPS_IN_FLIGHT:,}. "
        "vllm serve's default is 2,048 on an A100 or below 70 GiB, 8,192 above, and 16,384 from 160 GiB: pass yours as "
        "--max-num-batched-tokens": windowed,
        "vLLM takes blocks of 64 tokens for this model; in 8 bits a token's vector takes 656 bytes on Hopper "
        "(fp8_ds_mla) and 576 on Blackwell": any(layers.number_bytes for layers in architecture.storing_layers),
        "on a CPU vLLM keeps all tokens in the layers with a window too, and fewer sequences fit": len(pool.groups) > 1,
        f"max_model_len {length:,} is above the model's {limit:,} positions: vLLM refuses it unless "
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1": 0 < limit < length,
        f"no sequence of {length:,} tokens fits: vLLM refuses to start; the longest that fits has "
        f"{'at most ' if state else 'about ' if windowed else ''}{longest:,}": usable < least,
        f"whether a sequence of {length:,} tokens fits depends on the tokens in flight: with {in_flight_tokens:,} the "
        f"longest has about {longest:,}": least <= usable and longest < length,
    }
    return [*architecture.notes, *(text for text, applies in notes.items() if applies)]


@dataclass(frozen=True, kw_only=True)
class EngineShare:
    """One engine: its gpu_memory_utilization (0 to 1), weights, and `other`: activations, CUDA context and graphs."""

    utilization: float
    weights_bytes: int
    other_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One engine's memory at its start. If it does not start, `refused` is the reason and `kv_bytes` is 0."""

    requested_bytes: int
    free_bytes: int
    kv_bytes: int
    refused: str = ""


def start_in_turn(engines: Sequence[EngineShare], *, total_bytes: int, used_bytes: int = 0) -> list[Budget]:
    """Return the budgets of engines that start one after the other on a GPU of `total_bytes`.

    `used_bytes`: used by other processes. UsageError for a share outside (0, 1] or a negative size.
    """
    budgets = []
    free = total_bytes - used_bytes
    for engine in engines:
        require(
            0 < engine.utilization <= 1,
            f"utilization is {engine.utilization}, not a share",
            fix="pass a number above 0, at most 1",
        )
        sizes = {"total": total_bytes, "free": free, "weights": engine.weights_bytes, "other": engine.other_bytes}
        for name, size in sizes.items():
            number(f"{name}_bytes", size)
        budget = _budget(engine, total_bytes=total_bytes, free_bytes=free)
        free -= 0 if budget.refused else budget.requested_bytes
        budgets.append(budget)
    return budgets


def _budget(engine: EngineShare, *, total_bytes: int, free_bytes: int) -> Budget:
    requested = math.ceil(total_bytes * engine.utilization)
    rest = requested - engine.weights_bytes - engine.other_bytes
    refused = ""
    if free_bytes < requested:
        refused = "less memory is free than the share asks for"
    elif rest <= 0:
        refused = "the share leaves nothing for the KV cache"
    return Budget(requested_bytes=requested, free_bytes=free_bytes, kv_bytes=0 if refused else rest, refused=refused)
