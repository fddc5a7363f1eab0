"""Public models as examples for memory arithmetic: their configs, and the parameters that follow from one."""

from collections.abc import Mapping
from typing import Any

import yaml

from labkit.errors import UsageError
from labkit.files import data_path
from labkit.models import Architecture


def example_models() -> dict[str, Architecture]:
    """The models of data/example_models.yaml by name, each with its number of parameters."""
    entries = yaml.safe_load(data_path("example_models.yaml").read_text(encoding="utf-8"))
    return {name: _architecture(entry) for name, entry in entries.items()}


def find(name: str, known: Mapping[str, Architecture]) -> Architecture:
    """The example of that name. UsageError: there is none."""
    if name not in known:
        raise UsageError(f"there is no example model called {name!r}", remedy=f"use one of {', '.join(known)}")
    return known[name]


def decoder_parameters(config: Mapping[str, Any]) -> int:
    """The number of parameters of a Llama-like decoder: embeddings, attention, gated MLP and norms.

    From the layers' shapes in transformers 5.19 (models/llama, mistral, qwen2): Qwen2 adds biases to queries, keys and
    values; without tied embeddings the output has a matrix of its own.
    """
    hidden, heads, kv_heads = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    qkv_width = (heads + 2 * kv_heads) * head_dim
    attention = hidden * qkv_width + heads * head_dim * hidden + (qkv_width if config.get("qkv_bias") else 0)
    mlp = 3 * hidden * config["intermediate_size"]
    norms = 2 * hidden
    embeddings = config["vocab_size"] * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return int(embeddings + config["num_hidden_layers"] * (attention + mlp + norms) + hidden)


def _architecture(config: Mapping[str, Any]) -> Architecture:
    heads = config["num_attention_heads"]
    return Architecture(
        model_type=config["model_type"],
        layers=config["num_hidden_layers"],
        attention_heads=heads,
        kv_heads=config["num_key_value_heads"],
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        hidden_size=config["hidden_size"],
        dtype_bytes=2,  # all of them are published in 16 bits
        max_positions=config["max_position_embeddings"],
        sliding_window=config.get("sliding_window"),
        parameters=decoder_parameters(config),
    )
