"""A model's architecture from its config.json and the headers of its weights, without loading it.

Missing fields come from the model's class in transformers, if it is installed and knows the model. vLLM is not imported
(that takes five seconds); tests/unit/test_kv_cases.py compares with its convertor.
"""

import json
import logging
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from labkit.errors import ConfigError, ModelError
from labkit.models import attention
from labkit.models.attention import Fields, KvLayers, first, required, size

MAX_HEADER_BYTES = 100_000_000  # the format's own limit; a longer one is a damaged length
# Without a dtype: float32, as in transformers.
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}
SERVED_PARTS = {"F64": 0.25, "F32": 0.5}  # of a tensor's bytes, in 16 bits under vLLM's dtype auto
POSITIONS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_target_positions",
    "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
DEFAULT_POSITIONS = 2048  # vLLM's, for a config without positions
TEXT_CONFIGS = (
    "text_config", "llm_config", "language_config", "thinker_config", "language_model_config", "text_model_config",
    "lm_config", "llm",
)  # fmt: skip
# Scalings whose factor the positions already include (config/model.py, _get_and_verify_max_len).
SCALED_POSITIONS = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
ENCODER_FIELDS = (
    "type_vocab_size", "classifier_pooling", "sinusoidal_pos_embds", "num_channels", "feat_extract_norm",
    "num_mel_bins",
)  # fmt: skip
BIDIRECTIONAL = ("Bidirectional", "EmbeddingGemma2", "OpenAIPrivacyFilter")
"""Parts of the names of decoders that vLLM serves as encoders: every token attends to all others, and none is kept."""
STATE_FIELDS = ("state_size", "num_ssm_heads", "decay_low_rank_dim", "chunkwise_kernel")
GENERATING = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "ChatModel")  # as in vLLM's config/model.py
ENCODER_DECODER = "an encoder-decoder: it keeps the encoder's keys and values too, which are not described here"
ENCODER = "an encoder: it generates nothing and keeps no KV cache"
STATE = "a state-space or recurrent model: it keeps a fixed state per sequence, and no keys and values"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes for memory arithmetic, in elements unless the name says bytes.

    `kv_layers`: the layers that store keys and values; default: all `layers`, with `kv_heads` of `head_dim`.
    `state_layers`: layers with a fixed state, possibly in addition to keys and values. `kv_dtype`: the KV cache's type
    under vLLM's `auto`; default: that of the weights. `served_bytes`: the weights as vLLM loads them, if present.
    `no_kv_cache`: why the model has none, or "".
    """

    model_type: str
    layers: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    dtype_bytes: int
    max_positions: int
    sliding_window: int | None = None
    parameters: int | None = None
    served_bytes: int | None = field(default=None, repr=False)
    kv_dtype: str = ""
    kv_layers: tuple[KvLayers, ...] = field(default=(), repr=False)
    state_layers: int = field(default=0, repr=False)
    default_length: int | None = field(default=None, repr=False)
    no_kv_cache: str = field(default="", repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)

    @property
    def weight_bytes(self) -> int | None:
        """Bytes of the weights in their dtype; None without weights next to the config."""
        return None if self.parameters is None else self.parameters * self.dtype_bytes

    @property
    def storing_layers(self) -> tuple[KvLayers, ...]:
        """The layers that store keys and values."""
        uniform = KvLayers(
            count=self.layers,
            kv_heads=self.kv_heads,
            key_size=self.head_dim,
            value_size=self.head_dim,
            window=self.sliding_window,
        )
        return self.kv_layers or (uniform,)


def architecture(path: Path | str) -> Architecture:
    """Read a model folder or a config.json. ConfigError with the file and the missing key."""
    file = Path(path)
    file = file / "config.json" if file.is_dir() else file
    config = _read_json(file)
    if not first(config, ("quantization_config", "compression_config")):  # ModelOpt up to 0.29 writes another file
        beside = file.with_name("hf_quant_config.json")
        config |= {"quantization_config": _read_json(beside)} if beside.is_file() else {}
    try:
        model = from_config(_complete(config), parameters=parameter_count(file.parent))
        return replace(model, served_bytes=served_bytes(file.parent))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error.what}", remedy=error.remedy) from None
    except (TypeError, ValueError, ArithmeticError, KeyError, AttributeError, IndexError) as error:
        raise ConfigError(f"{file} has a field of a form that is not known: {error!r}", remedy="correct it") from error


def parameter_count(folder: Path) -> int | None:
    """Count the parameters in the headers of the folder's safetensors files; None without any."""
    return _sum_of(folder, lambda tensor: math.prod(tensor["shape"]))


def served_bytes(folder: Path) -> int | None:
    """Return the bytes of the folder's weights as vLLM loads them: as stored, but 32- and 64-bit floats in 16 bits."""

    def served(tensor: Mapping[str, Any]) -> int:
        begin, end = tensor["data_offsets"]
        return math.ceil(int(end - begin) * SERVED_PARTS.get(tensor["dtype"], 1))

    return _sum_of(folder, served)


def _sum_of(folder: Path, size_of: Callable[[Mapping[str, Any]], int]) -> int | None:
    """Sum over all tensors. With an index, sum over its files (others repeat them); None if one is missing."""
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if files and index.is_file() and isinstance(named := _read_json(index).get("weight_map"), dict):
        files = sorted({folder / str(name) for name in named.values()})
        if not all(file.is_file() for file in files):
            return None
    return sum(_sum_in(file, size_of) for file in files) if files else None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ModelError(
            f"there is no {file.name} in {file.parent}",
            remedy="name the folder that holds the model's config.json, an embedded model, or a hub id",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read as JSON: {error}", remedy="fetch the model again") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds a {type(content).__name__}, not an object", remedy="fetch the model again")
    return content


# --- which fields ---


def read_fields(file: Path) -> dict[str, Any]:
    """Read the language model's fields of a config.json, unchanged."""
    return text_fields(_read_json(file))


def is_multimodal(file: Path) -> bool:
    """Whether a config.json has its language model as a part, beside encoders of pictures or sound."""
    return _has_part(_read_json(file))


def _has_part(config: Fields) -> bool:
    return any(isinstance(config.get(name), dict) for name in TEXT_CONFIGS)


def _part(config: Fields) -> Fields:
    """Return the innermost language model's part as it is written, or the config itself."""
    name = next((name for name in TEXT_CONFIGS if isinstance(config.get(name), dict)), None)
    return config if name is None else _part(config[name])


def text_fields(config: Fields) -> dict[str, Any]:
    """Return the language model's fields, with the whole model's types and quantisation."""
    name = next((name for name in TEXT_CONFIGS if isinstance(config.get(name), dict)), None)
    if name is None:
        return dict(config)
    own = {key: value for key, value in text_fields(config[name]).items() if value is not None}
    whole = ("architectures", "dtype", "torch_dtype", "quantization_config", "compression_config")
    inherited = {key: config[key] for key in whole if config.get(key) is not None}
    return inherited | own | ({"architectures": config["architectures"]} if config.get("architectures") else {})


def _complete(config: Fields) -> dict[str, Any]:
    """Return the language model's fields, with defaults of its class in transformers for an incomplete file.

    A config.json written by transformers has every field of its class, except in a part of a larger config, which has
    only those that differ.
    """
    fields = text_fields(config)
    given = {name: value for name, value in fields.items() if value is not None}
    named = (attention.LAYERS[:3], attention.HEADS, attention.HIDDEN, POSITIONS)
    part = _has_part(config)
    whole = "transformers_version" in config and not part and all(first(given, names) is not None for names in named)
    whole = whole and "H_cycles" not in config  # HRM-Text: the class computes the layers of an older file
    unplaced = attention.sliding_window(given) is not None and first(given, attention.WINDOW_PATTERNS) is None
    if whole and not unplaced:
        return given
    defaults = _class_fields(config)
    if not defaults and part and unplaced:
        raise ConfigError(
            "config.json names a window, but not the layers that have it",
            remedy="install a transformers whose class for this model knows them, or read the engine's own log",
        )
    defaults = defaults or {}
    computed = {name: value for name, value in defaults.items() if name == "num_hidden_layers"}  # by some classes
    return defaults | given | computed


def _class_fields(config: Fields) -> dict[str, Any] | None:
    """Return this package's fields from the model's class in transformers; {} without a class, None without
    transformers. The class gets the part as it is written: a null there is not the class's default."""
    try:
        from transformers import CONFIG_MAPPING
    except ImportError:
        return None
    source = next((part for part in (config, _part(config)) if str(part.get("model_type")) in CONFIG_MAPPING), None)
    if source is None:
        return {}
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # hide warnings about single fields
    try:
        built = CONFIG_MAPPING[source["model_type"]].from_dict(dict(source)).get_text_config()
    except Exception:  # classes raise many kinds of errors for unsupported values
        return {}
    finally:
        logger.setLevel(level)
    names = (*attention.FIELDS, *POSITIONS, "is_encoder_decoder", "rope_parameters", *ENCODER_FIELDS)
    values = {name: _value(built, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _value(built: Any, name: str) -> Any:
    try:
        return getattr(built, name, None)
    except RuntimeError:  # transformers refuses a single value if layers differ
        return None


# --- their meaning ---


def from_config(config: Mapping[str, Any], *, parameters: int | None) -> Architecture:
    """Build from a config.json's fields. ConfigError for a missing field, an invalid size or an unknown layer."""
    fields = text_fields(config)
    dtype = str(first(fields, ("dtype", "torch_dtype")) or "float32").removeprefix("torch.")
    model = Architecture(
        model_type=str(fields.get("model_type", "unknown")),
        layers=size(fields, *attention.LAYERS) or 0,
        attention_heads=0,
        kv_heads=0,
        head_dim=0,
        hidden_size=size(fields, *attention.HIDDEN) or 0,
        dtype_bytes=DTYPE_BYTES.get(dtype, 4),
        max_positions=0,
        parameters=parameters,
        no_kv_cache=_why_no_kv_cache(fields),
    )
    if model.no_kv_cache:
        return model
    kinds = attention.layer_kinds(fields)
    stored = attention.kv_layers(fields, kinds)
    if not stored:
        return replace(model, no_kv_cache=STATE)
    limit, default = _positions(fields)
    model = replace(
        model,
        layers=len(kinds),
        attention_heads=attention.attention_heads(fields),
        kv_heads=stored[0].kv_heads,
        head_dim=stored[0].key_size,
        max_positions=limit or DEFAULT_POSITIONS,
        sliding_window=attention.sliding_window(fields) if attention.WINDOWED in kinds else None,
        kv_dtype=kv_dtype(fields, dtype),
        state_layers=attention.state_layers(fields, kinds),
        default_length=default,
        notes=tuple(_notes(kinds, named_positions=limit is not None, dtype=dtype)),
    )
    return model if model.storing_layers == stored else replace(model, kv_layers=stored)


def _why_no_kv_cache(fields: Fields) -> str:
    architectures = [str(name) for name in fields.get("architectures") or ()]
    generates = any(name.endswith(GENERATING) for name in architectures)
    if fields.get("is_encoder_decoder") or first(fields, ("decoder_layers", "num_decoder_layers")) is not None:
        return ENCODER_DECODER
    names = "".join(architectures)
    if fields.get("is_causal") is False or any(word in names for word in BIDIRECTIONAL):
        return ENCODER
    both_ways = fields.get("use_bidirectional_attention") is True  # PaliGemma generates in spite of it
    encoder = both_ways or first(fields, ENCODER_FIELDS) is not None or "ForMaskedLM" in names
    if encoder and not fields.get("is_decoder") and not generates:
        return ENCODER
    attends = first(fields, ("num_attention_heads", "num_key_value_heads")) is not None
    recurrent = fields.get("rescale_every") is not None or fields.get("ssm_cfg") is not None
    return STATE if recurrent or (first(fields, STATE_FIELDS) is not None and not attends) else ""


def _positions(fields: Fields) -> tuple[int | None, int | None]:
    """Return the model's positions (None if not named), and vLLM's default length if that is smaller."""
    named = [required(fields, name) for name in POSITIONS if fields.get(name) is not None]
    limit = size(fields, "model_max_length") or min(named, default=None)
    scalings = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    parts = [part for part in scalings.values() if isinstance(part, Mapping)] or [scalings]
    kinds = {str(first(part, ("rope_type", "type"))) for part in parts}
    factors = [
        part["factor"]
        for part in parts
        if first(part, ("rope_type", "type")) not in SCALED_POSITIONS and isinstance(part.get("factor"), int | float)
    ]
    if limit and factors and "gemma3" not in str(fields.get("model_type")):  # its positions are scaled already
        limit = required({"positions": int(limit * factors[-1])}, "positions")
    shorter = size(fields, "original_max_position_embeddings") if kinds & {"longrope", "su"} else None
    return limit, shorter


def kv_dtype(fields: Fields, dtype: str) -> str:
    """Return the KV cache's type under vLLM's `auto`: the checkpoint's, or the 16-bit type in which it is served.

    From utils/torch_utils.py `get_kv_cache_quant_algo_string`, layers/attention/attention.py and config/model.py
    `_resolve_auto_dtype`. MLA ignores the scheme of compressed-tensors (mla_attention.py).
    """
    quantization = first(fields, ("quantization_config", "compression_config"))
    if isinstance(quantization, Mapping):
        inner = quantization.get("quantization")
        inner = inner if isinstance(inner, Mapping) else quantization
        scheme = first(inner, ("kv_cache_scheme",)) or first(quantization, ("kv_cache_scheme",))
        algorithm = scheme or inner.get("kv_cache_quant_algo") or quantization.get("kv_cache_quant_algo")
        if attention.latent(fields) and not str(quantization.get("quant_method", "modelopt")).startswith("modelopt"):
            algorithm = None
        if isinstance(algorithm, Mapping):
            algorithm = {8: "fp8", 4: "nvfp4"}.get(algorithm.get("num_bits", 0))
        if str(algorithm).lower() in ("fp8", "nvfp4"):
            return str(algorithm).lower()
    return "float16" if dtype in ("float16", "half") else "bfloat16"


def _notes(kinds: list[str], *, named_positions: bool, dtype: str) -> list[str]:
    chunked = kinds.count(attention.CHUNKED)
    notes = {
        f"config.json names no positions: vLLM assumes {DEFAULT_POSITIONS:,}": not named_positions,
        "config.json names no 16-bit type: vLLM's dtype auto serves it in 16 bits": DTYPE_BYTES.get(dtype, 4) != 2,
        f"{chunked} of {len(kinds)} layers attend to chunks only, but vLLM 0.32 keeps all their tokens": chunked > 0,
    }
    return [text for text, applies in notes.items() if applies]


def _sum_in(file: Path, size_of: Callable[[Mapping[str, Any]], int]) -> int:
    """Sum over a safetensors file, which starts with the header's length (8 bytes, little endian) and a JSON header."""
    try:
        with file.open("rb") as stream:
            length = struct.unpack("<Q", stream.read(8))[0]
            header = json.loads(stream.read(min(length, MAX_HEADER_BYTES)))
        return sum(size_of(tensor) for name, tensor in header.items() if name != "__metadata__")
    except (OSError, ValueError, struct.error, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{file} is not a whole safetensors file: {error}", remedy="fetch the model again") from error
