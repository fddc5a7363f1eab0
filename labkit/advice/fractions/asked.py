"""What is to be audited: deployments with their fractions, shares and models, and the GPUs; in Python or as YAML."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from labkit.errors import UsageError
from labkit.models import EMBEDDED, Architecture, architecture, resolve
from labkit.models.examples import example_models
from labkit.theory.kv_size import ENCODERS


class Reader:
    """One mapping of a file. UsageError at once: it is none, or has a key that nobody reads."""

    def __init__(self, values: Any, owner: str, keys: frozenset[str]) -> None:
        if not isinstance(values, Mapping):
            raise UsageError(f"{owner} is a {type(values).__name__}, not keys with values", remedy="write KEY: VALUE")
        if unknown := sorted(str(key) for key in values if key not in keys):
            remedy = f"use {', '.join(sorted(keys))}"
            raise UsageError(f"{owner}: there is no key called {', '.join(unknown)}", remedy=remedy)
        self.values, self.owner = values, owner

    def number(self, key: str, *, above: float | None = None, most: float = math.inf) -> float:
        """A finite number from 0 (or above `above`) to `most`. UsageError where there is none."""
        found = self.number_or_none(key, above=above, most=most)
        if found is None:
            raise UsageError(f"{self.owner} has no {key}", remedy=f"give it: `{key}: NUMBER`")
        return found

    def number_or_none(self, key: str, *, above: float | None = None, most: float = math.inf) -> float | None:
        """The same, or None where the key is missing or empty."""
        value = self.values.get(key)
        if value is None:
            return None
        if not _is_number(value) or value > most or (value < 0 if above is None else value <= above):
            bounds = "from 0" if above is None else f"above {above:g}"
            bounds += f" to {most:g}" if most < math.inf else ""
            raise UsageError(f"{self.owner}: {key} is {value!r}", remedy=f"give a number {bounds}")
        return float(value)

    def whole_or_none(self, key: str, *, most: int = 2**31) -> int | None:
        """A whole number from 1 to `most`, or None where the key is missing or empty."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise UsageError(f"{self.owner}: {key} is {value!r}", remedy=f"give a whole number from 1 to {most}")
        return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# --- model facts ---


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


# --- asked ---


GIB = 2**30
# Assumptions, since only a start can tell: CUDA's context, activations and graphs of a vLLM engine; the context of any
# other process that computes on a GPU. `other_gib` replaces them by what your own log or nvidia-smi says.
ENGINE_OTHER_GIB, PLAIN_OTHER_GIB = 3.0, 0.5
MOST_REPLICAS, MOST_GPUS = 1000, 1024
GPU_KEYS = frozenset({"memory_gib", "count", "used_gib"})
SIZES = {"replicas", "max_model_len", "max_num_seqs", "other_gib"}
DEPLOYMENT_KEYS = frozenset({"name", "num_gpus", "model", "weight_gib", "engine_share", *SIZES})


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """The GPUs of one node, all alike: memory of each, how many, and what other processes use on each of them."""

    total_bytes: int
    count: int = 1
    used_bytes: int = 0

    @property
    def free_share(self) -> float:
        """The share of a GPU's memory that nobody uses yet."""
        return (self.total_bytes - self.used_bytes) / self.total_bytes


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One Ray Serve deployment. `num_gpus` is what each replica asks of Ray; `engine_share` the engine's own
    gpu_memory_utilization, None where the replica runs no engine that takes a share up front.

    `model`: its weights and, for an engine, its architecture. `max_model_len`: tokens, None: the model's own limit.
    """

    name: str
    num_gpus: float
    model: ModelFacts
    engine_share: float | None = None
    replicas: int = 1
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    other_bytes: int | None = None

    @property
    def valid(self) -> bool:
        """Whether Ray takes num_gpus: a part of one GPU, or whole ones."""
        return self.num_gpus <= 1 or self.num_gpus == int(self.num_gpus)

    @property
    def gpus_each(self) -> int:
        """The GPUs over which a replica is split (tensor parallel): num_gpus where it is whole, otherwise one."""
        return max(1, int(self.num_gpus))

    @property
    def weight_bytes(self) -> int:
        """The weights on each of its GPUs."""
        return -(-self.model.weight_bytes // self.gpus_each)

    @property
    def besides_bytes(self) -> int:
        """What a replica takes on each GPU besides weights and cache."""
        default = PLAIN_OTHER_GIB if self.engine_share is None else ENGINE_OTHER_GIB
        return int(default * GIB) if self.other_bytes is None else self.other_bytes

    @property
    def context_tokens(self) -> int:
        """The longest request, in tokens; 0 for a model that generates nothing."""
        architecture = self.model.architecture
        return self.max_model_len or (architecture.max_positions if architecture else 0)


def read(
    path: Path, *, gpu: Mapping[str, Any] | None = None, default: Mapping[str, Any] | None = None
) -> tuple[list[Deployment], Gpus]:
    """The deployments and GPUs of a YAML file (see `parse`); paths of models in it are relative to its folder.

    `gpu` goes before what the file says, `default` after it.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}", remedy="name a YAML file of deployments") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read as YAML: {error}", remedy="correct it") from error
    return parse(content, gpu=gpu, default=default, folder=path.parent)


def parse(
    content: Any,
    *,
    gpu: Mapping[str, Any] | None = None,
    default: Mapping[str, Any] | None = None,
    folder: Path = Path(),
) -> tuple[list[Deployment], Gpus]:
    """Deployments and GPUs from plain data; `gpu` goes before what the content says, `default` after it.

    `{"gpu": {"memory_gib", "count", "used_gib"}, "deployments": [{"name", "num_gpus", "model" or "weight_gib",
    "engine_share", "replicas", "max_model_len", "max_num_seqs", "other_gib"}]}`

    Raises:
        UsageError: an unknown key, a missing one, a value that is none, with the deployment's name.
    """
    whole = Reader(content, "the file", frozenset({"gpu", "deployments"}))
    entries = whole.values.get("deployments")
    if not isinstance(entries, list) or not entries:
        raise UsageError("there are no deployments to audit", remedy="list at least one under `deployments:`")
    found = [_deployment(entry, number, folder) for number, entry in enumerate(entries, 1)]
    names = [one.name for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two deployments are called {', '.join(twice)}", remedy="give each its own name")
    given = Reader(whole.values.get("gpu") or {}, "gpu", GPU_KEYS).values
    layers = (default or {}, given, gpu or {})
    return found, _gpus({key: value for layer in layers for key, value in layer.items() if value is not None})


def _gpus(values: Mapping[str, Any]) -> Gpus:
    reader = Reader(values, "gpu", GPU_KEYS)
    total, used = reader.number("memory_gib", above=0), reader.number_or_none("used_gib") or 0.0
    if used >= total:
        raise UsageError(
            f"gpu: used_gib is {used:g} of {total:g} GiB: nothing is free", remedy="stop what uses it, or take another"
        )
    count = reader.whole_or_none("count", most=MOST_GPUS) or 1
    return Gpus(total_bytes=round(total * GIB), count=count, used_bytes=round(used * GIB))


def _deployment(entry: Any, number: int, folder: Path) -> Deployment:
    name = str(entry["name"]) if isinstance(entry, Mapping) and entry.get("name") else f"deployment {number}"
    reader = Reader(entry, name, DEPLOYMENT_KEYS)
    share = reader.number_or_none("engine_share", above=0, most=1)
    weights = _bytes(reader.number_or_none("weight_gib", above=0))
    model = reader.values.get("model")
    one = Deployment(
        name=name,
        num_gpus=reader.number("num_gpus"),
        model=model_facts(model, weight_bytes=weights, name=name, folder=folder, has_engine=share is not None),
        engine_share=share,
        replicas=reader.whole_or_none("replicas", most=MOST_REPLICAS) or 1,
        max_model_len=reader.whole_or_none("max_model_len"),
        max_num_seqs=reader.whole_or_none("max_num_seqs"),
        other_bytes=_bytes(reader.number_or_none("other_gib")),
    )
    if one.model.generates and not one.context_tokens:
        raise UsageError(f"{name}: its config names no longest request", remedy="give max_model_len, in tokens")
    return one


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else round(gib * GIB)
