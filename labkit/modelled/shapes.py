"""Sizes that determine a forward pass's compute and reads, from a model's config.json without weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from labkit.errors import ConfigError, UsageError
from labkit.files import data_path
from labkit.models.architecture import architecture, read_fields
from labkit.models.examples import decoder_parameters
from labkit.theory.kv_size import bytes_per_token

BYTES_16_BIT = 2
DENSE_TYPES = ("llama", "mistral", "qwen2")
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder's sizes, in parameters unless the name says bytes. `kv_bytes_per_token`: over all layers, in 16 bits.

    `active_parameters`: those used by one token (in a mixture of experts, attention and the chosen experts).
    `head_parameters`: the output matrix, used once per sampled row. Neither counts the input embedding, of which a step
    reads one row per token.
    """

    layers: int
    hidden_size: int
    attention_heads: int
    head_dim: int
    kv_bytes_per_token: int
    parameters: int
    active_parameters: int
    head_parameters: int
    embedding_parameters: int
    experts: int
    weight_bytes: int
    bytes_per_weight: int

    @property
    def read_bytes(self) -> int:
        """Bytes of weights read by a step that uses every expert: all but the input embedding."""
        return self.weight_bytes - self.embedding_parameters * BYTES_16_BIT


def model_folder(model: str | Path) -> Path:
    """Return the folder of a model of data/models, of a folder, or of a config.json. UsageError for anything else."""
    names = known_models()
    if str(model) in names:
        return data_path("models") / str(model)
    path = Path(model).expanduser()
    folder = path.parent if path.name == "config.json" else path
    if (folder / "config.json").is_file():
        return folder.resolve()
    raise UsageError(
        f"there is no modelled model {str(model)!r}",
        remedy=f"choose one of {', '.join(names)}, or name a folder with a config.json",
    )


def known_models() -> list[str]:
    """Return the names in data/models."""
    return sorted(folder.parent.name for folder in data_path("models").glob("*/config.json"))


@lru_cache(maxsize=16)
def shape_of(folder: Path) -> Shape:
    """Count the shape of the model in `folder`, built by transformers on the meta device.

    ConfigError if transformers cannot build the model; UsageError for an unsupported quantisation."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # transformers raises many kinds of errors
        raise ConfigError(
            f"{folder / 'config.json'} is not a decoder that transformers can build: {error}",
            remedy="name the config.json of a model that generates text",
        ) from error
    sizes = _sizes(model, config)
    linear_bytes = _bytes_per_weight(read_config(folder))
    quantised = sizes["linear"] * (BYTES_16_BIT - linear_bytes)
    return Shape(
        **_attention(folder),
        parameters=sizes["all"],
        active_parameters=sizes["active"],
        head_parameters=sizes["head"],
        embedding_parameters=sizes["embedding"],
        experts=sizes["experts"],
        weight_bytes=sizes["all"] * BYTES_16_BIT - quantised,
        bytes_per_weight=linear_bytes,
    )


def dense_shape(folder: Path) -> Shape | None:
    """Compute `shape_of` without torch for a dense 16-bit decoder of DENSE_TYPES; None for others."""
    config = read_config(folder)
    if config.get("model_type") not in DENSE_TYPES or not is_dense_16_bit(folder):
        return None
    attention = _attention(folder)
    try:
        parameters = decoder_parameters({**config, "qkv_bias": config["model_type"] == "qwen2"})
    except (KeyError, TypeError):  # a default of transformers, or a malformed value
        return None
    matrix = config["vocab_size"] * config["hidden_size"]
    embedding = 0 if config.get("tie_word_embeddings") else matrix
    return Shape(
        **attention,
        parameters=parameters,
        active_parameters=parameters - matrix - embedding,
        head_parameters=matrix,
        embedding_parameters=embedding,
        experts=0,
        weight_bytes=parameters * BYTES_16_BIT,
        bytes_per_weight=BYTES_16_BIT,
    )


def _attention(folder: Path) -> dict[str, int]:
    model = architecture(folder)
    sizes = {name: getattr(model, name) for name in ("layers", "hidden_size", "attention_heads", "head_dim")}
    return {**sizes, "kv_bytes_per_token": bytes_per_token(model, kv_dtype_bytes=BYTES_16_BIT)}


def _sizes(model: Any, config: Any) -> dict[str, int]:
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    tied = head is embedding
    experts = _first(config, *EXPERT_COUNTS)
    chosen = _first(config, "num_experts_per_tok", "num_experts_per_token") or 1
    total = linear = in_experts = 0
    for name, weight in model.named_parameters():
        count = weight.numel()
        total += count
        if weight is embedding or weight is head:
            continue
        if weight.dim() > 1:
            linear += count
        if experts and ".experts." in name:
            in_experts += count
    body = total - embedding.numel() - (0 if tied else head.numel())
    return {
        "all": total,
        "active": body - in_experts + (in_experts * chosen // experts if experts else 0),
        "head": head.numel(),
        "embedding": 0 if tied else embedding.numel(),
        "linear": linear,
        "experts": experts,
    }


def _first(config: Any, *names: str) -> int:
    return next((int(value) for name in names if (value := getattr(config, name, None))), 0)


def read_config(folder: Path) -> Mapping[str, Any]:
    """Read the text model's part of the folder's config.json. ModelError if it is not a JSON object."""
    return read_fields(folder / "config.json")


def is_dense_16_bit(folder: Path) -> bool:
    """Whether the model in `folder` has neither experts nor quantised weights, by its config.json."""
    config = read_config(folder)
    return not config.get("quantization_config") and not any(config.get(name) for name in EXPERT_COUNTS)


def _bytes_per_weight(config: Mapping[str, Any]) -> int:
    """Return 2, or 1 for fp8, whose kernel times the tables have. UsageError for other quantisations."""
    quantization = config.get("quantization_config")
    if not quantization:
        return BYTES_16_BIT
    if quantization.get("quant_method") == "fp8":
        return 1
    raise UsageError(
        f"the model's weights are quantised by {quantization.get('quant_method')!r}, for which there are no step times",
        remedy="name the config.json of the 16-bit or the fp8 checkpoint",
    )
