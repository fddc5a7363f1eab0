"""What memory a deployment's model needs: by name, by folder or config.json, or by the bytes of its weights alone."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import UsageError
from labkit.example_models import example_models
from labkit.kvcache.plan import ENCODERS
from labkit.models import EMBEDDED, Architecture, architecture, resolve

SERVED_BYTES = 2  # vLLM's dtype auto serves float32 weights in 16 bits


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The bytes of the weights, as served, and the architecture where it is known."""

    name: str
    weight_bytes: int
    architecture: Architecture | None = None

    @property
    def cache_dtype_bytes(self) -> int:
        """Bytes of a number in the KV cache: 16 bits, unless the engine is told otherwise."""
        return SERVED_BYTES

    @property
    def generates(self) -> bool:
        """Whether it keeps a KV cache that can be computed."""
        return self.architecture is not None and self.architecture.model_type not in ENCODERS


def model_facts(
    model: object, *, weight_bytes: int | None, name: str, folder: Path = Path(), has_engine: bool = False
) -> ModelFacts:
    """The facts of `model`: an example model's name, an embedded model, a folder or a config.json (relative to
    `folder`). `weight_bytes` goes before what the files say. `has_engine`: it has to generate.

    Raises:
        UsageError: neither a model nor bytes, an unknown name, or a config without weights beside it.
    """
    if model is None and weight_bytes is None:
        raise UsageError(f"{name} has neither model nor weight_gib", remedy="give one of the two")
    known = None if model is None else _architecture(str(model), name=name, folder=folder)
    weights = weight_bytes if weight_bytes is not None else _served_bytes(known)
    if weights is None:
        raise UsageError(
            f"{name}: no weights lie beside the config of {model}", remedy="give weight_gib too, or the whole folder"
        )
    found = ModelFacts(name=str(model or "unnamed"), weight_bytes=weights, architecture=known)
    if has_engine and known is not None and not found.generates:
        raise UsageError(
            f"{name} has an engine_share, but a model of type {known.model_type} generates nothing",
            remedy="leave engine_share out, or name a model that generates text",
        )
    return found


def _served_bytes(known: Architecture | None) -> int | None:
    if known is None or known.parameters is None:
        return None
    return known.parameters * min(known.dtype_bytes, SERVED_BYTES)


def _architecture(model: str, *, name: str, folder: Path) -> Architecture:
    ways: list[Callable[[], Architecture | None]] = [
        lambda: example_models().get(model),
        lambda: architecture(resolve(model)) if model in EMBEDDED else None,
        lambda: architecture(folder / model) if (folder / model).exists() else None,
        lambda: architecture(Path(model).expanduser()) if Path(model).expanduser().exists() else None,
    ]
    found = next((one for way in ways if (one := way()) is not None), None)
    if found is None:
        raise UsageError(
            f"{name}: there is no model {model!r} here",
            remedy=f"use a folder, a config.json, or one of {', '.join([*EMBEDDED, *example_models()])}",
        )
    return found
