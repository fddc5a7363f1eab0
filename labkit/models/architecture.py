"""Facts about a model from its config.json and the headers of its weights, without loading it."""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import ModelError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit; a longer one is a damaged length
# A config without a dtype means float32: what transformers assumes too.
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What the memory arithmetic needs. Sizes count elements unless the name says bytes."""

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

    @property
    def weight_bytes(self) -> int | None:
        """Bytes of the weights in their own dtype; None when no weights lie beside the config."""
        return None if self.parameters is None else self.parameters * self.dtype_bytes


def architecture(path: Path | str) -> Architecture:
    """Reads a model folder or a config.json. Raises `ModelError` naming the file and the missing key."""
    config_file = Path(path)
    config_file = config_file / "config.json" if config_file.is_dir() else config_file
    config = _read_json(config_file)
    if isinstance(config.get("text_config"), dict):  # a multimodal config's language model
        config |= config["text_config"]
    try:
        return from_config(config, parameters=parameter_count(config_file.parent))
    except KeyError as missing:
        raise ModelError(
            f"{config_file} has no key {missing}, so the size of its KV cache cannot be told",
            remedy="name the folder or config.json of a decoder model (num_hidden_layers, num_attention_heads, ...)",
        ) from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(
            f"{config_file} holds a size that is no whole number above 0: {error}", remedy="correct it, or fetch again"
        ) from error


def parameter_count(folder: Path) -> int | None:
    """Counts the parameters in the headers of the folder's safetensors files; None when there are none."""
    files = sorted(folder.glob("*.safetensors"))
    return sum(_elements(file) for file in files) if files else None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"there is no {file.name} in {file.parent}",
            remedy="name the folder that holds the model's config.json, an embedded model, or a hub id",
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {error}", remedy="fetch the model again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds a {type(content).__name__}, not an object", remedy="fetch the model again")
    return content


def from_config(config: Mapping[str, Any], *, parameters: int | None) -> Architecture:
    """From the keys of a config.json. KeyError, TypeError or ValueError: one is missing or not a size."""
    heads = int(config["num_attention_heads"])
    hidden = int(config["hidden_size"])
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    return Architecture(
        model_type=str(config.get("model_type", "unknown")),
        layers=int(config["num_hidden_layers"]),
        attention_heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        hidden_size=hidden,
        dtype_bytes=DTYPE_BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 4),
        max_positions=int(config.get("max_position_embeddings", 0)),
        sliding_window=int(window) if window else None,
        parameters=parameters,
    )


def _elements(file: Path) -> int:
    """A safetensors file starts with the header's length (8 bytes, little endian) and a JSON header of shapes."""
    try:
        with file.open("rb") as stream:
            length = struct.unpack("<Q", stream.read(8))[0]
            header = json.loads(stream.read(min(length, MAX_HEADER_BYTES)))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, struct.error, AttributeError, KeyError, TypeError) as error:
        raise ModelError(f"{file} is not a whole safetensors file: {error}", remedy="fetch the model again") from error
