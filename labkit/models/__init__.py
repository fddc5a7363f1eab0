"""What is served: the embedded models, a folder, or a hub id; and facts about a model's architecture."""

from labkit.models.architecture import Architecture, architecture, parameter_count
from labkit.models.fetch import cached, fetch, is_complete, is_intact, resolve
from labkit.models.registry import CHAT, EMBEDDED, EMBEDDING, EmbeddedModel, cache_dir

__all__ = [
    "CHAT",
    "EMBEDDED",
    "EMBEDDING",
    "Architecture",
    "EmbeddedModel",
    "architecture",
    "cache_dir",
    "cached",
    "fetch",
    "is_complete",
    "is_intact",
    "parameter_count",
    "resolve",
]
