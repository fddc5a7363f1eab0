"""Public models as examples for memory arithmetic: their configs and parameter counts."""

from collections.abc import Mapping
from typing import Any

from labkit.errors import did_you_mean, require
from labkit.files import data_path, read_yaml
from labkit.models.architecture import Architecture, from_config


def example_models() -> dict[str, Architecture]:
    """Return the models of data/example_models.yaml by name, with their parameter counts."""
    configs = read_yaml(data_path("example_models.yaml"), dict[str, dict[str, Any]])
    return {  # all are published in 16 bits
        name: from_config({**config, "dtype": "bfloat16"}, parameters=decoder_parameters(config))
        for name, config in configs.items()
    }


def find(name: str, known: Mapping[str, Architecture]) -> Architecture:
    """Return the example of that name. UsageError for an unknown one."""
    require(name in known, f"there is no example model called {name!r}", fix=did_you_mean(name, known))
    return known[name]


def decoder_parameters(config: Mapping[str, Any]) -> int:
    """Count the parameters of a Llama-like decoder: embeddings, attention, gated MLP and norms.

    Shapes are from transformers 5.19 (models/llama, mistral, qwen2): Qwen2 has biases on queries, keys and values;
    without tied embeddings the output has its own matrix.
    """
    hidden, heads, kv_heads = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    qkv_width = (heads + 2 * kv_heads) * head_dim
    attention = hidden * qkv_width + heads * head_dim * hidden + (qkv_width if config.get("qkv_bias") else 0)
    mlp = 3 * hidden * config["intermediate_size"]
    norms = 2 * hidden
    embeddings = config["vocab_size"] * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return int(embeddings + config["num_hidden_layers"] * (attention + mlp + norms) + hidden)
