"""Read the deployments and GPUs of an audit from Python data or YAML, and write them."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, field_validator

from labkit.advice.fractions.cluster import (
    GIB,
    MOST_GPUS,
    AboveZero,
    Card,
    Cluster,
    Entry,
    FromZero,
    Gpus,
    Scheduling,
    memory_gib_of,
)
from labkit.errors import LabkitError, UsageError, require, shortened
from labkit.files import GPU_BLOCK_SIZE, MOST_BYTES, parse_yaml, position, read_yaml
from labkit.models import EMBEDDED, Architecture, architecture, resolve
from labkit.models.examples import example_models
from labkit.theory import kv_size
from labkit.theory.kv_pool import type_bytes
from labkit.theory.nodes import Strategy

SERVED_BYTES = 2  # vLLM's dtype auto serves float32 weights in 16 bits
# Assumptions, which `other_gib` replaces by the figures of a log or nvidia-smi: CUDA context, activations and graphs of
# a vLLM engine; the CUDA context of any other process.
ENGINE_OTHER_GIB, PLAIN_OTHER_GIB = 3.0, 0.5

Count = Annotated[int, Field(ge=1, le=2**31)]
Ranks = Annotated[int, Field(ge=1, le=MOST_GPUS)]
Bundles = Annotated[list[Annotated[float, Field(gt=0, le=MOST_GPUS)]], Field(min_length=1, max_length=MOST_GPUS)]


class DeploymentEntry(Entry):
    """A Ray Serve deployment as in the file.

    `num_gpus`: the actor's number, or a list with the GPUs of each bundle of its placement group. `engine_share`: the
    engine's gpu_memory_utilization; None for a replica without such an engine. `model`: an example or embedded model,
    a folder or a config.json; `weight_gib` takes precedence over its files. `tensor_parallel`: GPUs of a replica, each
    with a bundle of `num_gpus` if that is at most 1. `max_model_len`: tokens; None: the model's limit. `min_replicas`:
    set if Serve scales up to `replicas`.
    """

    name: Annotated[str, Field(max_length=200)] = ""
    model: Annotated[str, Field(max_length=4096)] | None = None
    weight_gib: AboveZero | None = None
    num_gpus: Annotated[float, Field(ge=0, le=MOST_GPUS)] | Bundles
    tensor_parallel: Ranks | None = None
    strategy: Strategy = "PACK"
    accelerator_type: str | None = None
    engine_share: float | None = Field(default=None, gt=0, le=1)
    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    min_replicas: Annotated[int, Field(ge=0, le=1000)] | None = None
    max_replicas_per_node: Count | None = None
    max_model_len: Count | None = None
    max_num_seqs: Count | None = None
    kv_cache_dtype: Annotated[str, Field(max_length=40)] | None = None
    other_gib: FromZero | None = None

    @field_validator("name", mode="before")
    @classmethod
    def _name_is_text(cls, name: Any) -> Any:
        return str(name) if isinstance(name, int | float) else name


class Deployment(DeploymentEntry):
    """A deployment with the architecture of its model, if known; `unknown`: why its memory is not known."""

    architecture: Architecture | None = Field(default=None, exclude=True)
    unknown: str = Field(default="", exclude=True)

    @property
    def is_group(self) -> bool:
        """Whether a replica is a placement group, whose bundles can be on several nodes, and not one actor."""
        return isinstance(self.num_gpus, list) or ((self.tensor_parallel or 1) > 1 and self.num_gpus <= 1)

    @property
    def bundles(self) -> tuple[float, ...]:
        """The GPUs of each bundle, or of the one actor."""
        if isinstance(self.num_gpus, list):
            return tuple(self.num_gpus)
        return (self.num_gpus,) * (self.tensor_parallel or 1 if self.is_group else 1)

    @property
    def parts(self) -> tuple[float, ...]:
        """The part of each of its GPUs that a replica requests, at most 1."""
        return tuple(min(1.0, gpus) for gpus in self.bundles for _ in range(max(1, int(gpus))))

    @property
    def part(self) -> float:
        """The smallest of its parts."""
        return min(self.parts)

    @property
    def asks(self) -> str:
        """`num_gpus` as text, such as "2 x 0.5"."""
        if len(self.bundles) > 1 and len(set(self.bundles)) == 1:
            return f"{len(self.bundles)} x {self.part:g}"
        return " + ".join(f"{gpus:g}" for gpus in self.bundles)

    @property
    def valid(self) -> bool:
        """Whether Ray accepts num_gpus: a part of one GPU, or whole GPUs."""
        return all(gpus <= 1 or gpus == int(gpus) for gpus in self.bundles)

    @property
    def gpus_each(self) -> int:
        """The GPUs over which a replica is split (tensor parallel)."""
        return len(self.parts)

    @property
    def is_engine(self) -> bool:
        """Whether it takes a share of each GPU at its start, like vLLM."""
        return self.engine_share is not None

    @property
    def generates(self) -> bool:
        """Whether it keeps a KV cache that can be computed."""
        return self.architecture is not None and not self.architecture.no_kv_cache

    @property
    def model_bytes(self) -> int | None:
        """The weights as served; None if they are unknown."""
        if self.weight_gib is not None:
            return round(self.weight_gib * GIB)
        model = self.architecture
        if model is None or model.parameters is None:
            return None
        if model.served_bytes is not None:
            return model.served_bytes
        return model.parameters * min(model.dtype_bytes, SERVED_BYTES)  # an example model without files

    @property
    def weight_bytes(self) -> int | None:
        """The weights on each of its GPUs; None if they are unknown."""
        return None if self.model_bytes is None else -(-self.model_bytes // self.gpus_each)

    @property
    def other_bytes(self) -> int:
        """The memory on each GPU besides weights and KV cache."""
        default = ENGINE_OTHER_GIB if self.is_engine else PLAIN_OTHER_GIB
        return round((default if self.other_gib is None else self.other_gib) * GIB)

    @property
    def context_tokens(self) -> int:
        """The longest request in tokens; 0 if the model does not generate."""
        model = self.architecture
        return self.max_model_len or (model.default_length or model.max_positions if model else 0)

    @property
    def least_bytes(self) -> int | None:
        """The memory that a replica needs on each GPU, with the KV cache of one request for an engine.

        None: the weights are unknown.
        """
        if self.weight_bytes is None:
            return None
        least = self.weight_bytes + self.other_bytes
        if not self.is_engine or self.architecture is None:
            return least
        try:
            plan = self.kv_plan(2**60)
        except UsageError:  # the heads cannot be split over the GPUs: its start will be refused
            return least
        return least + plan.bytes_per_sequence + plan.bytes_per_block  # the block is vLLM's placeholder

    def kv_plan(self, kv_bytes: int) -> kv_size.KvPlan:
        """Size the KV cache for these bytes on each GPU. UsageError: less than a block, heads that cannot be split."""
        assert self.architecture is not None
        return kv_size.describe(
            self.architecture,
            memory_bytes=kv_bytes,
            block_size=GPU_BLOCK_SIZE,
            max_model_len=self.context_tokens,
            tensor_parallel=self.gpus_each,
            kv_dtype_bytes=type_bytes(self.kv_cache_dtype) if self.kv_cache_dtype else None,
        )

    def rest_bytes(self, card: Card) -> int | None:
        """The memory that a running replica holds on a card: for an engine its whole share."""
        if self.engine_share is not None:
            return -int(-card.total_bytes * self.engine_share // 1)
        return None if self.weight_bytes is None else self.weight_bytes + self.other_bytes


class _File(Entry):
    gpu: Annotated[list[Gpus], Field(min_length=1)]
    scheduling: Scheduling | None = None
    deployments: list[DeploymentEntry] = Field(default_factory=list)


def read(
    path: Path, *, gpu: Mapping[str, Any] | None = None, default: Mapping[str, Any] | None = None
) -> tuple[list[Deployment], Cluster]:
    """Read deployments and GPUs from a YAML file (see `parse`); model paths in it are relative to its folder."""
    require(path.exists(), f"there is no file {path}", fix="name a YAML file of deployments")
    fix = "correct that line, or name a YAML file of deployments (labkit fractions --help shows one)"
    return parse(_content(path, fix), gpu=gpu, default=default, folder=path.parent)


RAY_SERVICE = "RayService"
HAS_CONTENT = re.compile(r"(?m)^(?!\s*(?:#|%|\.\.\.\s*$|null\s*$|~\s*$))\s*\S")


def _kind(document: Any) -> Any:
    """Return the kind of a Kubernetes object; a plain Serve config is as good as a RayService."""
    return document.get("kind", RAY_SERVICE) if isinstance(document, Mapping) else None


def _content(path: Path, fix: str) -> Any:
    """Return the content of a YAML file; of several documents, such as a RayService and a Secret, the Serve config."""
    from labkit.advice.fractions.serve_config import is_serve_config

    try:
        small = path.is_file() and path.stat().st_size <= MOST_BYTES
        text = path.read_text(encoding="utf-8-sig") if small else ""
    except (OSError, UnicodeDecodeError):
        text = ""  # read_yaml says why
    split = re.split(r"(?m)^---(?:[ \t].*)?$", text)
    parts = [part for part in split if HAS_CONTENT.search(part)]
    if len(parts) < 2 and len(split) < 3:
        return read_yaml(path, Any, remedy=fix)
    documents = [parse_yaml(part, Any, where=f"{path}, document {n}", remedy=fix) for n, part in enumerate(parts, 1)]
    configs = [one for one in documents if is_serve_config(one) and _kind(one) == RAY_SERVICE]
    what = f"{path} has {len(documents)} documents, of which {len(configs)} are Serve configs or RayServices"
    require(len(configs) == 1, what, fix="name a file with one of them")
    return configs[0]


def parse(
    content: Any,
    *,
    gpu: Mapping[str, Any] | None = None,
    default: Mapping[str, Any] | None = None,
    folder: Path = Path(),
) -> tuple[list[Deployment], Cluster]:
    """Read deployments and GPUs from plain data, a Ray Serve config or a RayService (see `serve_config`).

    `{"gpu": {"memory_gib", "count", "nodes", "used_gib", "accelerator_type"} or a list of them, "scheduling",
    "deployments": [{"name", "num_gpus", "model" or "weight_gib", "engine_share", ...}]}`. `gpu` takes precedence over
    the content; `default` (this machine's GPUs) fills in if neither names a card.

    UsageError: an unknown key, a missing key or a wrong value, with its place.
    """
    from labkit.advice.fractions import serve_config

    unread, without_gpu, unknown = list[str](), list[str](), dict[str, str]()
    if serve_config.is_serve_config(content):
        content, unknown, (unread, without_gpu) = serve_config.to_deployments(content, folder)
        rows = content["gpu"] if isinstance(content["gpu"], list) else [content["gpu"] or {}]
        counted = all("count" in {**(default or {}), **row, **(gpu or {})} for row in rows)
        require(counted, "a Serve config does not name the number of GPUs", fix=GIVE_GPUS)
    if not isinstance(content, Mapping):
        raise UsageError(f"the file is {shortened(repr(content))}", remedy="write KEY: VALUE")
    content = {**content, **_merged_gpus(content, gpu or {}, default or {})}
    try:
        file = _File.model_validate(content)
    except ValidationError as error:
        raise _refusal(error, content) from None
    open_ends = {"unread": tuple(unread), "without_gpu": tuple(without_gpu)}
    cluster = Cluster(rows=tuple(file.gpu), scheduling=file.scheduling, **open_ends)
    cluster.check()
    nothing = "; ".join(["there are no deployments to audit", *unread, *cluster.on_cpus])
    require(bool(file.deployments), nothing, fix="list at least one under `deployments:`")
    deployments = [_resolved(entry, number, folder, unknown) for number, entry in enumerate(file.deployments, 1)]
    names = [deployment.name for deployment in deployments]
    twice = sorted({name for name in names if names.count(name) > 1})
    require(not twice, f"two deployments are called {shortened(', '.join(twice))}", fix="rename one of them")
    return deployments, cluster


def as_yaml(deployments: Sequence[Deployment], cluster: Cluster) -> str:
    """Return the file for `labkit fractions` with these deployments."""
    rows = [row.model_dump(exclude_none=True, exclude={"nodes"} if row.nodes == 1 else None) for row in cluster.rows]
    content = {
        "gpu": rows[0] if len(rows) == 1 else rows,
        **({"scheduling": cluster.scheduling} if cluster.scheduling else {}),
        "deployments": [as_entry(deployment) for deployment in deployments],
    }
    return str(yaml.safe_dump(content, sort_keys=False))


def as_entry(deployment: Deployment) -> dict[str, Any]:
    """Return a deployment as an entry of the file."""
    return deployment.model_dump(exclude_defaults=True)


def _merged_gpus(content: Mapping[str, Any], options: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """Return the file's GPUs and scheduling, overridden by the options, completed by known cards or the default."""
    given = {key: value for key, value in options.items() if value is not None}
    scheduling = {"scheduling": given.pop("scheduling")} if "scheduling" in given else {}
    gpu = content.get("gpu") or {}
    rows = gpu if isinstance(gpu, list) else [gpu]
    if not all(isinstance(row, Mapping) for row in rows):
        return {"gpu": rows, **scheduling}
    several = f"the file has {len(rows)} rows of GPUs: {', '.join(given)} cannot apply to all"
    require(len(rows) == 1 or not given.keys() - {"memory_gib", "used_gib"}, several, fix="change it in the file")
    merged = []
    for row in rows:
        new = {key: value for key, value in row.items() if value is not None} | given
        card = new.get("accelerator_type")
        if "memory_gib" not in new and isinstance(card, str) and (gib := memory_gib_of(card)) is not None:
            new["memory_gib"] = gib
        merged.append(new if "memory_gib" in new or card else {**default, **new})
    return {"gpu": merged, **scheduling}


def _refusal(error: ValidationError, content: Any) -> UsageError:
    """Describe the first problem, unknown keys before all others, with its place, its value and the remedy."""
    problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "extra_forbidden")
    same = [problem for problem in problems if problem["loc"][:3] == problems[0]["loc"][:3]]
    problem = max(same, key=lambda problem: len(problem["loc"]))  # for a number or a list: the item of the list
    steps = tuple(step for step in problem["loc"] if not isinstance(step, str) or not step.startswith(KINDS))
    if len(content["gpu"]) == 1 and steps[:2] == ("gpu", 0):
        steps = ("gpu", *steps[2:])
    value, place = shortened(repr(problem["input"])), shortened(position(*steps)) or "the file"
    if problem["type"] == "extra_forbidden":
        section: type[Entry] = _File if len(steps) == 1 else Gpus if steps[0] == "gpu" else DeploymentEntry
        return UsageError(f"there is no key called {place}", remedy=f"use {', '.join(section.model_fields)}")
    if problem["type"] == "missing":
        return UsageError(f"there is no {place}", remedy=GIVE_GPUS if steps[0] == "gpu" else "give it a value")
    if problem["type"] == "model_type":
        return UsageError(f"{place} is {value}", remedy="write KEY: VALUE")
    name = content["deployments"][steps[1]].get("name") if len(steps) > 2 and steps[0] == "deployments" else None
    named = shortened(name) if isinstance(name, str) else None
    what = f"{named}: {steps[2]} is {value} ({place})" if named else f"{place} is {value}"
    fix = problem["msg"].replace("Input should be", "give").removeprefix("Value error, ")
    return UsageError(what, remedy=f"{fix}, without a unit" if str(steps[-1]).endswith("_gib") else fix)


KINDS = ("float", "constrained-", "list[")  # pydantic's names for the members of a union
GIVE_GPUS = "name the GPUs: --gpu-gib N and --gpus N, --nodes N for several nodes; or gpu: in the file"


def _resolved(entry: DeploymentEntry, number: int, folder: Path, unknown: Mapping[str, str]) -> Deployment:
    """Complete an entry with name and architecture. `unknown`: why the memory of some is not known, by name."""
    name, model = entry.name or f"deployment {number}", entry.model
    reason = unknown.get(name, "")
    given = model is not None or entry.weight_gib is not None
    require(given or bool(reason), f"{name} has neither model nor weight_gib", fix="give one of the two")
    config = None
    try:
        config = None if model is None else _architecture(model, name, folder)
    except LabkitError:
        if not reason:
            raise
    deployment = Deployment(**{**dict(entry), "name": name, "architecture": config})
    if deployment.model_bytes is None:
        no_weights = f"{name}: there are no weights beside the config of {model}"
        require(bool(reason), no_weights, fix="give weight_gib too, or the whole folder")
        deployment = deployment.model_copy(update={"unknown": reason})
    ranks, gpus = entry.tensor_parallel, deployment.gpus_each
    unequal = f"{name}: tensor_parallel is {ranks}, and a replica requests {gpus} GPUs (num_gpus {deployment.asks})"
    require(ranks in (None, gpus), unequal, fix="give as many bundles or GPUs as ranks")
    if config is not None and entry.engine_share is not None and not deployment.generates:
        what = f"{name} has an engine_share, but a model of type {config.model_type} is {config.no_kv_cache}"
        raise UsageError(what, remedy="leave engine_share out, or name a model that generates text")
    if entry.kv_cache_dtype is not None:
        type_bytes(entry.kv_cache_dtype)
    has_length = not deployment.generates or deployment.context_tokens > 0
    require(has_length, f"{name}: its config has no maximum length", fix="give max_model_len, in tokens")
    return deployment


_examples = cache(example_models)


def _architecture(model: str, name: str, folder: Path) -> Architecture:
    examples = _examples()
    if model in examples:
        return examples[model]
    if model in EMBEDDED:
        return architecture(resolve(model))
    for path in (folder / model, Path(model).expanduser()):
        if "\0" not in model and path.exists():
            return architecture(path)
    fix = f"use a folder, a config.json, or one of {', '.join([*EMBEDDED, *examples])}"
    raise UsageError(f"{name}: there is no model {shortened(model)!r}", remedy=fix)
