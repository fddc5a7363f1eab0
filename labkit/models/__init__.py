"""Models to serve (embedded, a folder, or a hub id) and their architecture."""

from labkit.models.architecture import Architecture, architecture, parameter_count
from labkit.models.fetch import (
    CHAT,
    EMBEDDED,
    EMBEDDING,
    EmbeddedModel,
    cache_dir,
    cached,
    fetch,
    is_complete,
    is_intact,
    resolve,
)

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
