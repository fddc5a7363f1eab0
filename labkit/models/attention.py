"""The layers of a model that keep keys and values, and their sizes, from the fields of its config.json.

The rules are vLLM 0.32's (transformers_utils/model_arch_config_convertor.py, config/model.py and the attention classes
of model_executor/models), expressed by fields instead of model names, so that they cover new models.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labkit.errors import ConfigError

Fields = Mapping[str, Any]

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KV_HEADS = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num", "num_attention_groups")
HEAD_SIZE = ("head_dim", "hidden_size_per_head", "attention_head_dim", "kv_channels")
HIDDEN = ("hidden_size", "n_embd", "n_embed", "d_model", "dim")
WINDOW = ("sliding_window", "sliding_window_size", "attn_window_size", "attention_window_size")
MOST_LAYERS = 10_000
LARGEST = 10**9  # far above any real size: larger values mean a damaged file

PATTERNS = ("layer_types", "layers_block_type", "attn_type_list", "hybrid_override_pattern")
WINDOW_PATTERNS = (
    "layer_types", "use_sliding_window", "hybrid_layer_pattern", "sliding_window_pattern", "_sliding_window_pattern",
    "block_types", "attn_logit_softcapping",
)  # fmt: skip
SPARSE = ("compress_ratios", "sparse_attention_config", "index_head_dim")
OTHER_CACHES = ("cross_attention_layers", "param_sink_number")
REPEATED = ("loop_num", "index_kpool")
"""Fields of caches that are not described here: keys and values of pictures, sinks; above 1, loops and pooled
indexers."""
STATES = ("mamba_d_state", "mamba_d_conv", "ssm_state_size", "linear_num_value_heads", "conv_L_cache", "lru_width")

FIELDS = (
    *LAYERS, *HEADS, *KV_HEADS, *HEAD_SIZE, *HIDDEN, *WINDOW,
    "attn_config", "multi_query", "new_decoder_architecture", "multi_query_attention", "num_kv_shared_layers",
    "layer_types", "layers_block_type", "attn_type_list", "hybrid_override_pattern", "block_types", "block_configs",
    "linear_attn_config", "full_attn_idxs", "attn_layer_indices", "attn_layer_period", "attn_layer_offset",
    "full_attention_interval", "layer_group_size", "attention_chunk_size", "no_rope_layers", "sliding_window_pattern",
    "use_sliding_window", "max_window_layers", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim",
    "index_head_dim", "global_head_dim", "attention_k_eq_v", "num_global_key_value_heads", "compress_ratios",
    "mamba_d_ssm", "state_size", "index_topk_freq", "index_topk_pattern", "index_skip_topk_offset", "zero_expert_num",
    "sparse_attention_config", *OTHER_CACHES, *REPEATED, "sliding_windows", *STATES, "rescale_every",
    "attn_logit_softcapping",
)  # fmt: skip
"""The fields that this module reads."""

MLA_WIDTHS = (320, 512, 576)
"""Widths of the compressed vector in vLLM's MLA kernels (mla_attention.py, get_supported_head_sizes). A model with
another width, such as MiniCPM3 with 288, stores expanded keys and values."""

FULL, WINDOWED, CHUNKED, STATE, NONE = "full", "window", "chunk", "state", "none"
KINDS = {
    FULL: ("full_attention", "attention", "indexed_attention", "global", "global_attention", "hybrid", "*", "1"),
    WINDOWED: ("sliding_attention", "sliding_window", "sliding_window_attention", "local", "local_attention"),
    CHUNKED: ("chunked_attention",),
    STATE: ("linear_attention", "mamba", "mamba2", "recurrent", "conv", "short_conv", "gated_delta_net", "M", "0"),
    NONE: ("mlp", "moe", "-", "E"),
}  # fmt: skip
KIND_OF = {entry: kind for kind, entries in KINDS.items() for entry in entries}


@dataclass(frozen=True, kw_only=True)
class KvLayers:
    """`count` equal layers: a key and a value of `key_size` and `value_size` numbers per KV head and token.

    `window`: tokens kept per sequence; None for all. `replicated`: every tensor-parallel rank stores the same single
    vector (MLA). `number_bytes`: if different from the KV cache's type.
    """

    count: int
    kv_heads: int
    key_size: int
    value_size: int
    window: int | None = None
    replicated: bool = False
    number_bytes: int | None = None


def first(fields: Fields, names: Iterable[str]) -> Any:
    """Return the first of these fields with a value."""
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def size(fields: Fields, *names: str) -> int | None:
    """Return the whole number above 0 under the first of these names, or None. ConfigError for any other value."""
    name = next((name for name in names if fields.get(name) is not None), None)
    if name is None:
        return None
    value = fields[name]
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST:
        return value
    shown = str(value)
    shown = shown if len(shown) <= 40 else f"{shown[:20]}... ({len(shown):,} characters)"
    raise ConfigError(
        f"{name} is {shown}; it must be a whole number from 1 to {LARGEST:,}",
        remedy="correct config.json, or fetch the model again",
    )


def _if_any(fields: Fields, name: str) -> int | None:
    """Like `size`, but 0 means None."""
    return size(fields, name) if fields.get(name) else None


def required(fields: Fields, *names: str) -> int:
    """Like `size`, for a required field."""
    value = size(fields, *names)
    if value is None:
        raise ConfigError(
            f"there is no {names[0]} (nor {', '.join(names[1:])}), so the size of its KV cache is unknown",
            remedy="name the folder or config.json of a decoder model; where transformers is installed, its defaults "
            "fill in what a config.json leaves out",
        )
    return value


def attention_heads(fields: Fields) -> int:
    """Return the number of query heads: the largest if layers differ."""
    for name in HEADS:
        if isinstance(fields.get(name), list):
            return max(required({name: entry}, name) for entry in fields[name])
    return required(fields, *HEADS)


def head_size(fields: Fields) -> int:
    """Return the numbers in a key. As in vLLM, a `head_dim` of 0 means none."""
    given = {name: value for name in HEAD_SIZE if (value := fields.get(name))}
    if stated := size(given, *HEAD_SIZE):
        return stated
    shared = {"hidden_size / num_attention_heads": required(fields, *HIDDEN) // attention_heads(fields)}
    return required(shared, *shared)


def kv_head_count(fields: Fields) -> int:
    """Return the number of KV heads under any of its names; default: the query heads."""
    attention = fields.get("attn_config")  # MPT, DBRX
    if isinstance(attention, Mapping):
        if attention.get("attn_type") == "multiquery_attention":
            return 1
        if attention.get("kv_n_heads") is not None:
            return required(attention, "kv_n_heads")
    new_falcon = fields.get("new_decoder_architecture")
    if new_falcon is None:  # older configs: only Falcon 40B has a number of KV heads
        new_falcon = "n_head_kv" in fields
    if fields.get("multi_query") and not new_falcon:
        return 1
    heads = attention_heads(fields)
    if fields.get("multi_query_attention") is False:
        return heads
    return size(fields, *KV_HEADS) or heads


# --- the kinds of a model's layers ---


def layer_kinds(fields: Fields) -> list[str]:
    """Return FULL, WINDOWED, CHUNKED, STATE or NONE for each layer. ConfigError for an unknown kind."""
    layers = size(fields, *LAYERS) or len(first(fields, PATTERNS) or ()) or required(fields, *LAYERS)
    if layers > MOST_LAYERS:
        raise ConfigError(f"it has {layers:,} layers", remedy="correct config.json, or fetch the model again")
    if fields.get("zero_expert_num") is not None and fields.get("num_hidden_layers") is None:
        layers *= 2  # LongCat: two attentions per layer
    sparse = next((name for name in SPARSE if fields.get(name)), None)
    if "indexed_attention" in (first(fields, PATTERNS) or ()):
        sparse = sparse or "indexed_attention"
    if sparse and not (fields.get("index_head_dim") and latent(fields)):
        raise ConfigError(
            f"its layers keep compressed or sparse caches ({sparse}), whose size is not known here",
            remedy="read the size from the engine's own start-up log",
        )
    other = [name for name in OTHER_CACHES if fields.get(name)]
    other += [name for name in REPEATED if (_if_any(fields, name) or 1) > 1]
    other += ["sliding_windows"] if len(_windows(fields)) > 1 else []
    if other:
        raise ConfigError(
            f"it has caches ({', '.join(other)}) whose size is not known here",
            remedy="read the size from the engine's own start-up log",
        )
    kinds = _listed(fields, layers) or _periodic(fields, layers) or _windowed(fields, layers)
    shared = fields.get("num_kv_shared_layers")
    if shared:  # the last ones read the keys and values of an earlier layer
        own = layers - required(fields, "num_kv_shared_layers")
        kinds = [kind if index < own else NONE for index, kind in enumerate(kinds)]
    return kinds


def _listed(fields: Fields, layers: int) -> list[str]:
    """Read a config that names each layer's kind."""
    for name in ("block_types", "_block_types"):  # RecurrentGemma repeats its pattern; its attention has a window
        if fields.get(name):
            pattern = _known(name, fields[name], len(fields[name]))
            return [WINDOWED if pattern[n % len(pattern)] == FULL else STATE for n in range(layers)]
    for name in PATTERNS:
        if fields.get(name):
            return _known(name, fields[name], layers)
    if entries := fields.get("hybrid_layer_pattern"):
        return _known("hybrid_layer_pattern", ["local" if entry == 1 else "global" for entry in entries], layers)
    if blocks := fields.get("block_configs"):
        return _fitting("block_configs", [FULL if _attends(block) else NONE for block in blocks], layers)
    linear = fields.get("linear_attn_config")
    attending = first(fields, ("full_attn_idxs", "attn_layer_indices", "hybrid_layer_ids"))
    if isinstance(linear, Mapping) and linear.get("full_attn_layers"):
        attending = [number - 1 for number in linear["full_attn_layers"]]
    return [] if attending is None else [FULL if n in attending else STATE for n in range(layers)]


def _known(name: str, entries: Sequence[Any], layers: int) -> list[str]:
    unknown = sorted({str(entry) for entry in entries} - set(KIND_OF))
    if unknown:
        raise ConfigError(
            f"{name} has layers of the kind {', '.join(unknown)[:200]}, whose cache is not known here",
            remedy="read the size from the engine's own start-up log",
        )
    return _fitting(name, [KIND_OF[str(entry)] for entry in entries], layers)


def _fitting(name: str, kinds: list[str], layers: int) -> list[str]:
    if len(kinds) < layers:
        raise ConfigError(f"{name} names {len(kinds)} of {layers} layers", remedy="correct it, or fetch again")
    return kinds[:layers]  # further entries are layers for speculative decoding


def _attends(block: Any) -> bool:
    attention = block.get("attention") if isinstance(block, Mapping) else None
    if not isinstance(attention, Mapping):
        return isinstance(block, Mapping) and block.get("block_type") == "attention"
    return not (attention.get("no_op") or attention.get("replace_with_linear"))


def _periodic(fields: Fields, layers: int) -> list[str]:
    """Read a config with attention layers at intervals between state layers."""
    if period := size(fields, "attn_layer_period"):
        offset = fields.get("attn_layer_offset") or 0
        return [FULL if n % period == offset else STATE for n in range(layers)]
    if period := size(fields, "full_attention_interval"):
        return [FULL if (n + 1) % period == 0 else STATE for n in range(layers)]
    if (period := size(fields, "layer_group_size")) and period > 1:
        whole = layers // period * period
        return [FULL if (n + 1) % period == 0 or n >= whole else STATE for n in range(layers)]
    return []


def _windowed(fields: Fields, layers: int) -> list[str]:
    """Read a config in which some layers attend to a window or chunk, or all are equal."""
    window, chunk = sliding_window(fields), fields.get("attention_chunk_size")
    state = next((name for name in STATES if fields.get(name) is not None), None)
    if state and fields.get("mamba_d_ssm") is None:  # with this field, every layer has both
        raise ConfigError(
            f"it has layers with a state ({state}), but does not say which layers keep keys and values",
            remedy="name a config.json with layer_types, or read the size from the engine's own start-up log",
        )
    if chunk:
        roped = fields.get("no_rope_layers") or []
        every = size(fields, "no_rope_layer_interval") or 4
        if not roped:
            roped = [int((n + 1) % every != 0) for n in range(layers)]
        return _fitting("no_rope_layers", [CHUNKED if uses else FULL for uses in roped], layers)
    if not window:
        return [FULL] * layers
    if per_layer := fields.get("sliding_windows"):
        return _fitting("sliding_windows", [WINDOWED if one else FULL for one in per_layer], layers)
    pattern = first(fields, ("sliding_window_pattern", "_sliding_window_pattern"))
    if pattern is None and fields.get("attn_logit_softcapping") is not None:
        pattern = 2  # Gemma 2, before its config named the pattern
    if isinstance(pattern, str):  # "LLLG"
        return [WINDOWED if pattern[n % len(pattern)] == "L" else FULL for n in range(layers)]
    if pattern is not None:
        every = required({"sliding_window_pattern": pattern}, "sliding_window_pattern")
        return [FULL if (n + 1) % every == 0 else WINDOWED for n in range(layers)]
    full = fields.get("max_window_layers") if fields.get("use_sliding_window") else None
    return [FULL if n < (full or 0) else WINDOWED for n in range(layers)]


def sliding_window(fields: Fields) -> int | None:
    """Return the sliding window in tokens; None without one, or if it is turned off."""
    if fields.get("use_sliding_window") is False:
        return None
    if windows := _windows(fields):
        return required({"sliding_windows": min(windows)}, "sliding_windows")
    return size(fields, *WINDOW) if first(fields, WINDOW) else None


def _windows(fields: Fields) -> set[Any]:
    """Return the windows of a list with an entry per layer; layers with full attention have none."""
    return {window for window in fields.get("sliding_windows") or () if window}


def state_layers(fields: Fields, kinds: Sequence[str]) -> int:
    """Count the layers with a fixed state per sequence, also in addition to keys and values (Falcon-H1, Zamba2)."""
    beside = fields.get("mamba_d_ssm") is not None or "hybrid" in (first(fields, PATTERNS) or ())
    return len(kinds) if beside else kinds.count(STATE)


# --- sizes ---


def kv_layers(fields: Fields, kinds: Sequence[str]) -> tuple[KvLayers, ...]:
    """Group the layers that store keys and values by size, full attention first.

    Chunked layers count as full: vLLM 0.32 keeps all their tokens (config/vllm.py disables its hybrid cache manager).
    """
    stored = Counter(
        _layer(fields, index, windowed=kind == WINDOWED)
        for index, kind in enumerate(kinds)
        if kind in (FULL, WINDOWED, CHUNKED)
    )
    groups = [KvLayers(**{**vars(layer), "count": count}) for layer, count in stored.items()]
    if indexer := _if_any(fields, "index_head_dim"):  # 8-bit keys, and four bytes of scale per 128 numbers
        width = indexer + indexer // 128 * 4
        count = _indexing(fields, [n for n, kind in enumerate(kinds) if kind == FULL])
        groups.append(KvLayers(count=count, kv_heads=1, key_size=width, value_size=0, replicated=True, number_bytes=1))
    return tuple(sorted(groups, key=lambda layers: layers.window is not None))


def latent(fields: Fields) -> int | None:
    """Return the numbers in MLA's vector per token; None for a model that keeps keys and values."""
    width = (_if_any(fields, "kv_lora_rank") or 0) + (_if_any(fields, "qk_rope_head_dim") or 0)
    return width if fields.get("kv_lora_rank") and width in MLA_WIDTHS else None


def _indexing(fields: Fields, layers: Sequence[int]) -> int:
    """Count the layers that choose the tokens to attend to; others reuse the previous choice."""
    pattern, every = fields.get("index_topk_pattern"), size(fields, "index_topk_freq") or 1
    offset = 2 if fields.get("index_skip_topk_offset") is None else fields["index_skip_topk_offset"]
    if pattern:
        return sum(n >= len(pattern) or pattern[n] != "S" for n in layers)
    return sum(max(n - offset + 1, 0) % every == 0 for n in layers)


def _layer(fields: Fields, index: int, *, windowed: bool) -> KvLayers:
    window = sliding_window(fields) if windowed else None
    if width := latent(fields):
        return KvLayers(count=1, kv_heads=1, key_size=width, value_size=0, window=window, replicated=True)
    if fields.get("kv_lora_rank"):
        rope, nope = _if_any(fields, "qk_rope_head_dim") or 0, required(fields, "qk_nope_head_dim")
        return KvLayers(
            count=1, kv_heads=attention_heads(fields), key_size=nope + rope, value_size=nope + rope, window=window
        )
    fields = {**fields, **_layer_fields(fields, index, windowed=windowed)}
    key = head_size(fields)
    heads, kv_heads = attention_heads(fields), kv_head_count(fields)
    if heads % kv_heads:
        raise ConfigError(
            f"{heads} attention heads cannot share {kv_heads} KV heads",
            remedy="correct config.json, or fetch the model again",
        )
    return KvLayers(
        count=1, kv_heads=kv_heads, key_size=key, value_size=_if_any(fields, "v_head_dim") or key, window=window
    )


def _layer_fields(fields: Fields, index: int, *, windowed: bool) -> dict[str, Any]:
    """Return the fields in which a layer differs from the model."""
    own = {name: value[index] for name in (*HEADS, *KV_HEADS) if isinstance(value := fields.get(name), list)}
    per_layer = fields.get("per_layer_config")
    if isinstance(per_layer, Mapping):
        own |= {int(layer): values for layer, values in per_layer.items()}.get(index, {})
    for name in ("num_attention_heads", "num_key_value_heads"):
        if isinstance(value := fields.get(f"{name}_per_layer"), list):
            own[name] = value[index]
    if windowed:  # MiMo-V2
        swa = {name: fields.get(f"swa_{name}") for name in ("head_dim", "v_head_dim", *HEADS, *KV_HEADS)}
        own |= {name: value for name, value in swa.items() if value is not None}
    elif fields.get("global_head_dim"):  # Gemma 4
        own["head_dim"] = fields["global_head_dim"]
        if fields.get("attention_k_eq_v") and fields.get("num_global_key_value_heads"):
            own["num_key_value_heads"] = fields["num_global_key_value_heads"]
    other = fields.get("attention_other_setting")  # Step 3.5
    if isinstance(other, Mapping) and KIND_OF.get(str(other.get("attention_type"))) == (WINDOWED if windowed else FULL):
        own |= {name: value for name, value in other.items() if name in (*HEADS, *KV_HEADS, "head_dim")}
    if blocks := fields.get("block_configs"):
        attention = blocks[index].get("attention") or {}
        if per_kv_head := size(attention, "n_heads_in_group"):
            own["num_key_value_heads"] = attention_heads(fields) // per_kv_head
    return own
