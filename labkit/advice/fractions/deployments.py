"""What is audited: deployments with their fractions, shares and models, and the GPUs; in Python or as YAML."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from labkit.errors import UsageError, require
from labkit.files import GPU_BLOCK_SIZE, Frozen, position, read_yaml
from labkit.models import EMBEDDED, Architecture, architecture, resolve
from labkit.models.examples import example_models
from labkit.theory import kv_size
from labkit.theory.kv_pool import pool_of

GIB = 2**30
SERVED_BYTES = 2  # vLLM's dtype auto serves float32 weights in 16 bits
# Assumptions, since only a start can tell: CUDA's context, activations and graphs of a vLLM engine; the context of any
# other process that computes on a GPU. `other_gib` replaces them by what your own log or nvidia-smi says.
ENGINE_OTHER_GIB, PLAIN_OTHER_GIB = 3.0, 0.5

FromZero = Annotated[float, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, le=2**31)]


class _Entry(Frozen):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {key: value for key, value in values.items() if value is not None}


class Gpus(_Entry):
    """The GPUs of one node, all alike: memory of each, how many, and what other processes use on each of them."""

    memory_gib: AboveZero
    count: int = Field(default=1, ge=1, le=1024)
    used_gib: FromZero = 0.0

    @property
    def total_bytes(self) -> int:
        """The memory of one GPU."""
        return round(self.memory_gib * GIB)

    @property
    def used_bytes(self) -> int:
        """What other processes use of it."""
        return round(self.used_gib * GIB)

    @property
    def free_share(self) -> float:
        """The free share of a GPU's memory."""
        return (self.total_bytes - self.used_bytes) / self.total_bytes


class DeploymentEntry(_Entry):
    """One Ray Serve deployment as the file has it. `num_gpus` is what each replica asks of Ray; `engine_share` the
    engine's own gpu_memory_utilization, None where the replica runs no engine that takes a share up front.

    `model`: an example model's name, an embedded model, a folder or a config.json. `weight_gib` takes precedence over
    the model's files. `max_model_len`: tokens, None: the model's own limit.
    """

    name: str = ""
    model: str | None = None
    weight_gib: AboveZero | None = None
    num_gpus: FromZero
    engine_share: float | None = Field(default=None, gt=0, le=1)
    replicas: int = Field(default=1, ge=1, le=1000)
    max_model_len: Count | None = None
    max_num_seqs: Count | None = None
    other_gib: FromZero | None = None

    @field_validator("name", mode="before")
    @classmethod
    def _name_is_text(cls, name: Any) -> str:
        return str(name)


class Deployment(DeploymentEntry):
    """A deployment with the architecture of its model, where that is known."""

    architecture: Architecture | None = Field(default=None, exclude=True)

    @property
    def valid(self) -> bool:
        """Whether Ray takes num_gpus: a part of one GPU, or whole ones."""
        return self.num_gpus <= 1 or self.num_gpus == int(self.num_gpus)

    @property
    def gpus_each(self) -> int:
        """The GPUs over which a replica is split (tensor parallel): num_gpus where it is whole, otherwise one."""
        return max(1, int(self.num_gpus))

    @property
    def generates(self) -> bool:
        """Whether it keeps a KV cache that can be computed."""
        return self.architecture is not None and not self.architecture.no_kv_cache

    @property
    def model_bytes(self) -> int | None:
        """The weights as served; None if neither the deployment nor the model's files tell."""
        if self.weight_gib is not None:
            return round(self.weight_gib * GIB)
        known = self.architecture
        if known is None or known.parameters is None:
            return None
        return known.parameters * min(known.dtype_bytes, SERVED_BYTES)

    @property
    def weight_bytes(self) -> int:
        """The weights on each of its GPUs."""
        return -(-(self.model_bytes or 0) // self.gpus_each)

    @property
    def besides_bytes(self) -> int:
        """What a replica takes on each GPU besides weights and cache."""
        default = PLAIN_OTHER_GIB if self.engine_share is None else ENGINE_OTHER_GIB
        return round((default if self.other_gib is None else self.other_gib) * GIB)

    @property
    def context_tokens(self) -> int:
        """The longest request, in tokens; 0 for a model that generates nothing."""
        return self.max_model_len or (self.architecture.max_positions if self.architecture else 0)

    @property
    def least_bytes(self) -> int:
        """What a replica needs on each GPU: weights, the rest of the process, and for an engine one request's cache."""
        if self.engine_share is None or self.architecture is None:
            return self.weight_bytes + self.besides_bytes
        pool = pool_of(self.architecture, block_size=GPU_BLOCK_SIZE)
        blocks = pool.blocks(self.context_tokens, in_flight_tokens=1) + kv_size.NULL_BLOCKS
        # Fewer KV heads than GPUs are repeated, never split further.
        split = min(self.gpus_each, self.architecture.kv_heads)
        return self.weight_bytes + self.besides_bytes + -(-blocks * pool.bytes_per_block // split)


class _Question(_Entry):
    gpu: Gpus
    deployments: list[DeploymentEntry] = Field(default_factory=list)


def read(
    path: Path, *, gpu: Mapping[str, Any] | None = None, default: Mapping[str, Any] | None = None
) -> tuple[list[Deployment], Gpus]:
    """The deployments and GPUs of a YAML file (see `parse`); paths of models in it are relative to its folder."""
    require(path.exists(), f"there is no file {path}", fix="name a YAML file of deployments")
    return parse(read_yaml(path, Any, remedy="correct it"), gpu=gpu, default=default, folder=path.parent)


def parse(
    content: Any,
    *,
    gpu: Mapping[str, Any] | None = None,
    default: Mapping[str, Any] | None = None,
    folder: Path = Path(),
) -> tuple[list[Deployment], Gpus]:
    """Deployments and GPUs from plain data; `gpu` takes precedence over the content, and the content over `default`.

    `{"gpu": {"memory_gib", "count", "used_gib"}, "deployments": [{"name", "num_gpus", "model" or "weight_gib",
    "engine_share", "replicas", "max_model_len", "max_num_seqs", "other_gib"}]}`

    UsageError: an unknown key, a missing one or a wrong value, with its place.
    """
    if isinstance(content, Mapping) and isinstance(content.get("gpu") or {}, Mapping):
        layers = [default or {}, content.get("gpu") or {}, gpu or {}]
        merged = {key: value for layer in layers for key, value in layer.items() if value is not None}
        content = {**content, "gpu": merged}
    try:
        question = _Question.model_validate(content)
    except ValidationError as error:
        raise _refusal(error, content) from None
    gpus, fix = question.gpu, "list at least one under `deployments:`"
    require(bool(question.deployments), "there are no deployments to audit", fix=fix)
    used = f"gpu: used_gib is {gpus.used_gib:g} of {gpus.memory_gib:g} GiB: nothing is free"
    require(gpus.used_gib < gpus.memory_gib, used, fix="stop what uses it, or take another")
    deployments = [_resolved(entry, number, folder) for number, entry in enumerate(question.deployments, 1)]
    names = [deployment.name for deployment in deployments]
    twice = sorted({name for name in names if names.count(name) > 1})
    require(not twice, f"two deployments are called {', '.join(twice)}", fix="give each its own name")
    return deployments, gpus


def as_yaml(deployments: Sequence[Deployment], gpus: Gpus) -> str:
    """The file that `labkit fractions` reads, for these deployments."""
    content = {"gpu": gpus.model_dump(), "deployments": [as_entry(deployment) for deployment in deployments]}
    return str(yaml.safe_dump(content, sort_keys=False))


def as_entry(deployment: Deployment) -> dict[str, Any]:
    """A deployment as the file has it."""
    return deployment.model_dump(exclude_defaults=True)


def _refusal(error: ValidationError, content: Any) -> UsageError:
    """The first problem, unknown keys before all others: its place in the file, its value and what it should be."""
    problem = min(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    steps, value = problem["loc"], problem["input"]
    place = position(*steps) or "the file"
    if problem["type"] == "extra_forbidden":
        section: type[_Entry] = (_Question, Gpus, DeploymentEntry)[len(steps) - 1]
        return UsageError(f"there is no key called {place}", remedy=f"use {', '.join(section.model_fields)}")
    if problem["type"] == "missing":
        return UsageError(f"there is no {place}", remedy="give it a value")
    if problem["type"] == "model_type":
        return UsageError(f"{place} is {value!r}", remedy="write KEY: VALUE")
    name = content["deployments"][steps[1]].get("name") if len(steps) == 3 else None
    what = f"{name}: {steps[-1]} is {value!r} ({place})" if name else f"{place} is {value!r}"
    return UsageError(what, remedy=problem["msg"].replace("Input should", "it should"))


def _resolved(entry: DeploymentEntry, number: int, folder: Path) -> Deployment:
    name, model = entry.name or f"deployment {number}", entry.model
    given = model is not None or entry.weight_gib is not None
    require(given, f"{name} has neither model nor weight_gib", fix="give one of the two")
    known = None if model is None else _architecture(model, name, folder)
    deployment = Deployment(**{**dict(entry), "name": name, "architecture": known})
    no_weights = f"{name}: no weights lie beside the config of {model}"
    require(deployment.model_bytes is not None, no_weights, fix="give weight_gib too, or the whole folder")
    if known is not None and entry.engine_share is not None and not deployment.generates:
        raise UsageError(
            f"{name} has an engine_share, but a model of type {known.model_type} is {known.no_kv_cache}",
            remedy="leave engine_share out, or name a model that generates text",
        )
    has_length = not deployment.generates or deployment.context_tokens > 0
    require(has_length, f"{name}: its config names no longest request", fix="give max_model_len, in tokens")
    return deployment


def _architecture(model: str, name: str, folder: Path) -> Architecture:
    examples = example_models()
    if model in examples:
        return examples[model]
    if model in EMBEDDED:
        return architecture(resolve(model))
    for path in (folder / model, Path(model).expanduser()):
        if path.exists():
            return architecture(path)
    known = ", ".join([*EMBEDDED, *examples])
    raise UsageError(
        f"{name}: there is no model {model!r} here", remedy=f"use a folder, a config.json, or one of {known}"
    )
