"""What is to be audited: deployments with their fractions, shares and models, and the GPUs; in Python or as YAML."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from labkit.errors import UsageError
from labkit.fractions.model_facts import ModelFacts, model_facts
from labkit.fractions.reader import Reader

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
