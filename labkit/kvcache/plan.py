"""`describe()`: one model, one memory budget, every number of its KV cache and the arithmetic line by line."""

from dataclasses import asdict, dataclass
from typing import Any

from labkit.errors import UsageError
from labkit.kvcache.arithmetic import (
    KEY_AND_VALUE,
    blocks_per_sequence,
    bytes_per_token,
    kv_heads_per_rank,
    longest_sequence,
    require_positive,
)
from labkit.models import Architecture

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
    _require_decoder(architecture)
    length = require_positive("max_model_len", architecture.max_positions if max_model_len is None else max_model_len)
    require_positive("in_flight_tokens", in_flight_tokens)
    per_token = bytes_per_token(architecture, tensor_parallel=tensor_parallel, kv_dtype_bytes=kv_dtype_bytes)
    per_block = per_token * require_positive("block_size", block_size)
    blocks = _whole_blocks(memory_bytes, per_block)
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
        kv_heads_per_rank=kv_heads_per_rank(architecture, tensor_parallel),
        head_dim=architecture.head_dim,
        kv_dtype_bytes=kv_dtype_bytes or architecture.dtype_bytes,
        tensor_parallel=tensor_parallel,
        sliding_window=window,
        memory_bytes=memory_bytes,
        block_size=block_size,
        max_model_len=length,
        bytes_per_token=per_token,
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


def _require_decoder(architecture: Architecture) -> None:
    if architecture.model_type in ENCODERS:
        raise UsageError(
            f"a model of type {architecture.model_type} is an encoder: it generates nothing and keeps no KV cache",
            remedy="name a model that generates text, such as the embedded smollm2-135m",
        )


def _whole_blocks(memory_bytes: int, per_block: int) -> int:
    if require_positive("memory_bytes", memory_bytes) < per_block:
        raise UsageError(
            f"memory_bytes is {memory_bytes:,}; one block takes {per_block:,} bytes",
            remedy=f"give at least {per_block:,} bytes, or a smaller block_size",
        )
    return memory_bytes // per_block


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
