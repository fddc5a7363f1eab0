"""How many bytes, blocks and tokens: the KV cache's size from a model's architecture, whole and exact in bytes.

The formulas are those of vLLM 0.32 (v1/kv_cache_interface.py `AttentionSpec`, `SlidingWindowSpec`;
v1/core/kv_cache_utils.py `get_kv_cache_config_from_groups`, `get_max_concurrency_for_kv_cache_config`), so that what
is computed here is what its start-up log says. All sizes are for one GPU (or one CPU worker), as the log's are.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from labkit.errors import number, require, whole
from labkit.models import Architecture

KEY_AND_VALUE = 2  # each token stores one key and one value vector per head and layer
CPU_BLOCK_MULTIPLE = 32  # vLLM's cpu_attn.py, get_supported_kernel_block_sizes
GPU_BLOCK_MULTIPLE = 16  # vLLM's flash_attn.py; single kernels ask for more


def check_block_size(block_size: int, *, gpu: bool) -> None:
    """Refuse a block size (in tokens) that vLLM's attention kernels refuse, before the engine is started."""
    whole("block_size", block_size, at_least=1)
    multiple = GPU_BLOCK_MULTIPLE if gpu else CPU_BLOCK_MULTIPLE
    lower = block_size - block_size % multiple
    require(
        lower == block_size,
        f"block_size is {block_size}; vLLM on a {'GPU' if gpu else 'CPU'} takes multiples of {multiple} only",
        fix=f"use {lower} or {lower + multiple}" if lower else f"use {multiple}",
    )


def kv_heads_per_rank(architecture: Architecture, tensor_parallel: int = 1) -> int:
    """KV heads that one of `tensor_parallel` GPUs stores; with fewer heads than GPUs each head is stored several times.

    Source: vLLM's config/model.py `get_num_kv_heads`. UsageError where vLLM refuses to split the heads.
    """
    whole("tensor_parallel", tensor_parallel, at_least=1)
    heads, kv_heads = architecture.attention_heads, architecture.kv_heads
    require(
        heads % tensor_parallel == 0,
        f"tensor_parallel is {tensor_parallel}, which does not divide the model's {heads} attention heads",
        fix=f"use one of {', '.join(str(n) for n in range(1, heads + 1) if heads % n == 0)}",
    )
    require(
        max(kv_heads, tensor_parallel) % min(kv_heads, tensor_parallel) == 0,
        f"{kv_heads} KV heads can be neither divided nor repeated over {tensor_parallel} GPUs",
        fix=f"use a tensor_parallel that divides {kv_heads} or is a multiple of it",
    )
    return max(1, kv_heads // tensor_parallel)


def bytes_per_token(architecture: Architecture, *, tensor_parallel: int = 1, kv_dtype_bytes: int | None = None) -> int:
    """2 x layers x KV heads x head_dim x bytes of a number, on one GPU.

    Source: section 3 of Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with
    PagedAttention" (arXiv 2309.06180), with KV heads in place of heads for grouped-query attention (arXiv 2305.13245);
    vLLM's `AttentionSpec` computes the same for a block. `kv_dtype_bytes`: where the cache has a type of its own, such
    as 1 for fp8.
    """
    size = architecture.dtype_bytes if kv_dtype_bytes is None else kv_dtype_bytes
    whole("kv_dtype_bytes", size, at_least=1)
    heads = kv_heads_per_rank(architecture, tensor_parallel)
    return KEY_AND_VALUE * architecture.layers * heads * architecture.head_dim * size


def bytes_per_block(
    architecture: Architecture, *, block_size: int, tensor_parallel: int = 1, kv_dtype_bytes: int | None = None
) -> int:
    """Bytes of one block of `block_size` tokens, over all layers, on one GPU."""
    per_token = bytes_per_token(architecture, tensor_parallel=tensor_parallel, kv_dtype_bytes=kv_dtype_bytes)
    whole("block_size", block_size, at_least=1)
    return block_size * per_token


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


# By `model_type` in transformers 5.19: a config with kv_lora_rank; layer_types that mix full and sliding attention;
# layers that keep a fixed state in place of keys and values. config.json's common fields do not tell these apart.
# fmt: off
COMPRESSED = frozenset({
    "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "kimi_linear", "longcat_flash", "minicpm3",
    "mistral4", "youtu",
})
MIXED_WINDOW = frozenset({
    "cohere2", "exaone4", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "gemma4", "gpt_oss",
    "llama4", "llama4_text", "ministral", "olmo3",
})
RECURRENT = frozenset({
    "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "lfm2", "mamba", "mamba2", "nemotron_h",
    "olmo_hybrid", "qwen3_next", "zamba2",
})
ENCODERS = frozenset({
    "albert", "bert", "camembert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "nomic_bert",
    "roberta", "xlm-roberta",
})
# fmt: on
NULL_BLOCKS = 1  # vLLM's BlockPool keeps block 0 for itself, and get_kv_cache_configs checks the length without it


@dataclass(frozen=True, kw_only=True)
class KvPlan:
    """The KV cache of one GPU. `tokens` is blocks x block_size; `logged_tokens` is what vLLM's start-up line prints.

    `max_concurrency` is the log's "Maximum concurrency": how many sequences fit if all have `max_model_len` tokens, a
    worst case and no limit. `allocatable_blocks` leaves out the one that vLLM keeps as a placeholder. `longest_tokens`:
    the longest sequence that fits into these, at most `max_model_len`; below it the engine refuses to start.
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
    memory_bytes: int
    block_size: int
    max_model_len: int
    bytes_per_token: int
    bytes_per_block: int
    blocks: int
    allocatable_blocks: int
    tokens: int
    unused_bytes: int
    blocks_per_sequence: int
    bytes_per_sequence: int
    max_concurrency: float
    logged_tokens: int
    longest_tokens: int
    fits: bool
    notes: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """The arithmetic, one step a line, every number computed."""
        return [*_size_lines(self), *_budget_lines(self), *(f"note: {note}" for note in self.notes)]

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data, with its lines."""
        return {**asdict(self), "notes": list(self.notes), "lines": self.lines}


def describe(
    architecture: Architecture,
    *,
    memory_bytes: int,
    block_size: int,
    max_model_len: int | None = None,
    tensor_parallel: int = 1,
    kv_dtype_bytes: int | None = None,
    in_flight_tokens: int = 1,
) -> KvPlan:
    """The plan for `memory_bytes` of KV cache on each GPU. `max_model_len`: tokens (default: the model's own limit).

    UsageError: a number below 1, heads that cannot be split, memory below one block, a model that generates nothing.
    """
    require(
        architecture.model_type not in ENCODERS,
        f"a model of type {architecture.model_type} is an encoder: it generates nothing and keeps no KV cache",
        fix="name a model that generates text, such as the embedded smollm2-135m",
    )
    length = architecture.max_positions if max_model_len is None else max_model_len
    for name, value in (("max_model_len", length), ("memory_bytes", memory_bytes)):
        whole(name, value, at_least=1)
    heads = kv_heads_per_rank(architecture, tensor_parallel)
    kv_type = {"tensor_parallel": tensor_parallel, "kv_dtype_bytes": kv_dtype_bytes}
    per_block = bytes_per_block(architecture, block_size=block_size, **kv_type)  # type: ignore[arg-type]
    require(
        memory_bytes >= per_block,
        f"memory_bytes is {memory_bytes:,}; one block takes {per_block:,} bytes",
        fix=f"give at least {per_block:,} bytes, or a smaller block_size",
    )
    blocks = memory_bytes // per_block
    window = None if architecture.model_type in MIXED_WINDOW | RECURRENT else architecture.sliding_window
    kept = {"sliding_window": window, "in_flight_tokens": in_flight_tokens}
    each = blocks_per_sequence(length, block_size=block_size, **kept)  # type: ignore[arg-type]
    usable = blocks - NULL_BLOCKS
    longest = longest_sequence(usable, block_size=block_size, at_most=length, **kept)  # type: ignore[arg-type]
    return KvPlan(
        model_type=architecture.model_type,
        layers=architecture.layers,
        attention_heads=architecture.attention_heads,
        kv_heads=architecture.kv_heads,
        kv_heads_per_rank=heads,
        head_dim=architecture.head_dim,
        kv_dtype_bytes=kv_dtype_bytes or architecture.dtype_bytes,
        tensor_parallel=tensor_parallel,
        sliding_window=window,
        memory_bytes=memory_bytes,
        block_size=block_size,
        max_model_len=length,
        bytes_per_token=per_block // block_size,
        bytes_per_block=per_block,
        blocks=blocks,
        allocatable_blocks=usable,
        tokens=blocks * block_size,
        unused_bytes=memory_bytes - blocks * per_block,
        blocks_per_sequence=each,
        bytes_per_sequence=each * per_block,
        max_concurrency=blocks / each,
        logged_tokens=int(blocks / each * length),
        longest_tokens=longest,
        fits=usable >= each,
        notes=tuple(_notes(architecture, length=length, longest=longest, kv_dtype_bytes=kv_dtype_bytes)),
    )


def _size_lines(plan: KvPlan) -> list[str]:
    heads = f"{plan.kv_heads_per_rank} KV heads"
    if plan.tensor_parallel > 1:
        heads += f" (of {plan.kv_heads}, over {plan.tensor_parallel} GPUs)"
    lines = [
        f"one token: {KEY_AND_VALUE} (key and value) x {plan.layers} layers x {heads} x {plan.head_dim} numbers a head "
        f"x {plan.kv_dtype_bytes} bytes = {plan.bytes_per_token:,} bytes",
        f"one block: {plan.block_size} tokens x {plan.bytes_per_token:,} bytes = {plan.bytes_per_block:,} bytes",
    ]
    if plan.kv_heads < plan.attention_heads:
        factor, all_heads = plan.attention_heads / plan.kv_heads, plan.attention_heads
        lines.insert(1, f"with a KV head for each of the {all_heads} attention heads: {factor:g} times as much")
    return lines


def _budget_lines(plan: KvPlan) -> list[str]:
    sequence = f"one sequence of {plan.max_model_len:,} tokens holds up to {plan.blocks_per_sequence:,} blocks"
    if plan.sliding_window is not None:
        sequence += f" (it keeps a window of {plan.sliding_window:,} tokens)"
    return [
        f"blocks: {plan.memory_bytes:,} bytes / {plan.bytes_per_block:,} = {plan.blocks:,} whole blocks, "
        f"{plan.unused_bytes:,} bytes left over",
        f"tokens: {plan.blocks:,} blocks x {plan.block_size} = {plan.tokens:,} tokens",
        sequence,
        f"sequences get at most {plan.allocatable_blocks:,} blocks: vLLM keeps {NULL_BLOCKS} as a placeholder",
        f"maximum concurrency: {plan.blocks:,} blocks / {plan.blocks_per_sequence:,} = {plan.max_concurrency:.2f}x",
    ]


def _notes(architecture: Architecture, *, length: int, longest: int, kv_dtype_bytes: int | None) -> list[str]:
    kind = architecture.model_type
    limit = architecture.max_positions
    said = {
        f"{kind} stores compressed keys and values (MLA): the engine needs less than this": kind in COMPRESSED,
        f"{kind} mixes full and sliding-window layers: counted as full, so the engine needs less": kind in MIXED_WINDOW,
        f"{kind} has layers with a fixed state in place of keys and values: not described here": kind in RECURRENT,
        "the weights are float32, which vLLM's dtype auto serves in 16 bits: pass kv_dtype_bytes=2 for that": (
            architecture.dtype_bytes == 4 and kv_dtype_bytes is None
        ),
        f"max_model_len {length:,} is above the model's {limit:,} positions: vLLM refuses it unless the model scales "
        "its positions": 0 < limit < length,
        f"no sequence of {length:,} tokens fits: vLLM refuses to start; the longest that fits has {longest:,}": (
            longest < length
        ),
    }
    return [text for text, applies in said.items() if applies]


@dataclass(frozen=True, kw_only=True)
class EngineShare:
    """One instance: its gpu_memory_utilization (0 to 1), its weights, and `other`: activations, context, graphs."""

    utilization: float
    weights_bytes: int
    other_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What an instance found and got. `kv_bytes` is 0 where `refused` says why it does not start."""

    requested_bytes: int
    free_bytes: int
    kv_bytes: int
    refused: str = ""


def start_in_turn(engines: Sequence[EngineShare], *, total_bytes: int, used_bytes: int = 0) -> list[Budget]:
    """The budgets of instances that start one after the other on a GPU with `total_bytes`, of which others use some.

    UsageError: a share that is not above 0 and at most 1, or sizes below zero.
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
