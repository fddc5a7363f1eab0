"""Convert Ray Serve configs and KubeRay RayServices to a file of deployments.

Source: Ray 2.60, serve/schema.py, serve/config.py (AutoscalingConfig), llm/_internal/serve (LLMConfig, LLMServer), and
KubeRay's RayService. Numbers that a config leaves to its code are named, never assumed.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from labkit.errors import LabkitError, require, shortened
from labkit.files import parse_yaml, read_yaml

ENGINE_SHARE = 0.92  # vLLM 0.32's default of gpu_memory_utilization
AUTO_MAX_REPLICAS = 100  # Serve's default for num_replicas: auto
CONFIGS = ("llm_config", "prefill_config", "decode_config")  # besides llm_configs, in the builders of ray.serve.llm
PARALLEL = ("pipeline_parallel_size", "data_parallel_size", "decode_context_parallel_size")
NOT_COMPUTED = (
    "quantization", "speculative_config", "cpu_offload_gb", "kv_cache_memory_bytes", "num_gpu_blocks_override",
    "enable_lora",
)  # fmt: skip
"""Arguments of the engine that change its memory or its GPUs, and are not part of this arithmetic."""
GPU_RESOURCE = re.compile(r"gpu$|^nvidia\.com/mig-\d+g\.\d+gb$")  # as KubeRay counts GPUs
SIXTEEN_BITS = (None, "auto", "bfloat16", "float16", "half")

Plain = Mapping[str, Any]
EntryAndReason = tuple[dict[str, Any], str]
"""An entry of `deployments:`, and the reason why its memory is unknown if its model is not on this machine."""


def is_serve_config(content: Any) -> bool:
    """Whether this is a Ray Serve config (of several applications or one) or a RayService."""
    keys = ("applications", "serveConfigV2", "import_path", "kind", "llm_configs")
    return isinstance(content, Mapping) and any(key in content for key in keys)


class OpenEnds(NamedTuple):
    """What a config leaves to its code: `unread` in sentences, and the deployments `without_gpu` by name."""

    unread: list[str]
    without_gpu: list[str]


def to_deployments(content: Plain, folder: Path) -> tuple[dict[str, Any], dict[str, str], OpenEnds]:
    """Return a file of deployments, the reasons why the memory of some is unknown, by name, and the open ends."""
    gpu = _worker_groups(content)
    entries, unknown, open_ends = list[dict[str, Any]](), dict[str, str](), OpenEnds([], [])
    for application in _mappings(_serve_config(content), "applications", "applications"):
        before = len(entries)
        changed = {str(one.get("name")) for one in _mappings(application, "deployments", "deployments")}
        for entry, reason in (*_llms(application, folder, open_ends), *_deployments(application, open_ends)):
            name = entry["name"]
            if any(one.partition(":")[2] == name.replace("/", "--").replace(".", "_") for one in changed):
                open_ends.unread.append(f"`deployments:` changes options of {name}, which are not read here")
            entry["name"] = name if name not in unknown else f"{application.get('name', 'app')}:{name}"
            unknown[entry["name"]] = reason
            entries.append(entry)
        if before == len(entries) and not application.get("deployments"):
            name = shortened(str(application.get("name") or application.get("import_path")))
            open_ends.unread.append(f"application {name} names no deployment with GPUs: its code decides")
    types = {str(entry["accelerator_type"]) for entry in entries if entry.get("accelerator_type")}
    if len(types) > 1:
        open_ends.unread.append(f"cards of several types ({', '.join(sorted(types))}) on nodes that name none")
    if len(types) == 1:
        gpu = [{**row, "accelerator_type": next(iter(types))} for row in gpu or [{}]]
    return {"gpu": gpu[0] if len(gpu) == 1 else gpu or None, "deployments": entries}, unknown, open_ends


def _serve_config(content: Plain) -> Plain:
    """Return the Serve config, also from a RayService's text or a single application."""
    spec = content.get("spec")
    text = content.get("serveConfigV2", spec.get("serveConfigV2") if isinstance(spec, Mapping) else None)
    if "kind" in content or text is not None:
        kind = shortened(str(content.get("kind")))
        require(isinstance(text, str), f"a {kind} without the text serveConfigV2", fix="give a RayService with one")
        return _mapping(parse_yaml(text, Any, where="serveConfigV2", remedy="correct it"), "serveConfigV2")
    if "llm_configs" in content:
        return {"applications": [{"args": content}]}
    return content if "applications" in content else {"applications": [content]}


def _worker_groups(content: Plain) -> list[dict[str, Any]]:
    """Return the largest cluster of a RayService: a row for the head and for each worker group with GPUs."""
    spec = content.get("spec")
    cluster = spec.get("rayClusterConfig") if isinstance(spec, Mapping) else None
    if not isinstance(cluster, Mapping):
        return []
    replicas = "maxReplicas" if cluster.get("enableInTreeAutoscaling") else "replicas"
    groups: list[Any] = [cluster.get("headGroupSpec"), *_mappings(cluster, "workerGroupSpecs", "workerGroupSpecs")]
    rows = []
    for group in groups:
        try:
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            counted = sum(int(number) for key, number in limits.items() if GPU_RESOURCE.search(key))
            count = int((group.get("rayStartParams") or {}).get("num-gpus", counted))
            nodes = int(group.get(replicas, group.get("replicas", 1))) * int(group.get("numOfHosts", 1))
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            continue
        if count and nodes:
            rows.append({"count": count, "nodes": nodes})
    return rows


def _deployments(application: Plain, open_ends: OpenEnds) -> Iterator[EntryAndReason]:
    """Yield the deployments of an application that request GPUs in the config."""
    for deployment in _mappings(application, "deployments", "deployments"):
        name = shortened(str(deployment.get("name")))
        options, bundles = deployment.get("ray_actor_options"), deployment.get("placement_group_bundles")
        if options is None and bundles is None:
            if not (_configs(application) and name.startswith("OpenAiIngress")):  # an ingress needs only CPUs
                open_ends.unread.append(f"{name} has no ray_actor_options here: its code sets the number of GPUs")
            continue
        options = _mapping(options or {}, f"{name}: ray_actor_options")
        num_gpus = _gpus_of(bundles, name) if bundles is not None else options.get("num_gpus", 0)
        if not num_gpus:
            open_ends.without_gpu.append(name)
            continue
        entry = {"name": name, "num_gpus": num_gpus, **_replicas(deployment, name)}
        entry |= _renamed(
            deployment, strategy="placement_group_strategy", max_replicas_per_node="max_replicas_per_node"
        )
        entry |= _renamed(options, accelerator_type="accelerator_type")
        yield entry, "a Serve config does not contain the weights of a deployment"


def _llms(application: Plain, folder: Path, open_ends: OpenEnds) -> Iterator[EntryAndReason]:
    """Yield the deployments that the builders of ray.serve.llm create from LLMConfigs."""
    for config, in_groups in _configs(application):
        if isinstance(config, str):  # the path of a file
            config = read_yaml(folder / config, Any, remedy="correct it")
        config = _mapping(config, "an entry of llm_configs")
        yield from _llm(config, folder, in_groups=in_groups, open_ends=open_ends)


def _configs(application: Plain) -> list[tuple[Any, bool]]:
    """Return the LLMConfigs, and whether their builder starts a replica for each data-parallel rank."""
    args = application.get("args")
    if not isinstance(args, Mapping):
        return []
    listed = args.get("llm_configs", [])
    require(isinstance(listed, list), f"llm_configs is {shortened(repr(listed))}", fix="write a list of LLMConfigs")
    return [*((config, False) for config in listed), *((args[name], True) for name in CONFIGS if name in args)]


def _stored_quantization(folder: Path, source: Any) -> Any:
    """Return the quantisation method in the config.json of a local model; None without one."""
    from labkit.models.architecture import read_fields

    try:
        file = folder / str(source) / "config.json"
        method = read_fields(file).get("quantization_config") if file.is_file() else None
    except (LabkitError, OSError):
        return None
    return method.get("quant_method") if isinstance(method, dict) else None


def _llm(config: Plain, folder: Path, *, in_groups: bool, open_ends: OpenEnds) -> Iterator[EntryAndReason]:
    sections = ("model_loading_config", "engine_kwargs", "deployment_config", "placement_group_config")
    loading, engine, options, group = (_mapping(config.get(section) or {}, section) for section in sections)
    name = shortened(str(loading.get("model_id")))
    source = loading.get("model_source", loading.get("model_id"))
    accelerator = _mapping(config.get("accelerator_config") or {}, f"{name}: accelerator_config").get("kind", "gpu")
    if accelerator != "gpu" or str(config.get("accelerator_type")).startswith("TPU"):
        return
    tensor, pipeline, data = (_size(engine, key, name) for key in ("tensor_parallel_size", *PARALLEL[:2]))
    ranks = tensor * pipeline
    if data > 1 and not in_groups:
        only = "only build_dp_openai_app and build_pd_openai_app start a replica for each rank"
        open_ends.unread.append(
            f"{name} has data_parallel_size {data} in llm_configs, whose GPUs are not known: {only}"
        )
    group_size = data if in_groups else 1
    worker = group.get("bundle_per_worker", config.get("resources_per_bundle"))
    bundles = group.get("bundles", [{"GPU": 1} if worker is None else worker] * ranks)
    num_gpus = _gpus_of(bundles, name)
    if not num_gpus:  # it runs on CPUs
        return
    actor = _mapping(options.get("ray_actor_options") or {}, f"{name}: ray_actor_options").get("num_gpus", 0)
    if isinstance(actor, int | float) and actor:  # the replica's actor shares the first bundle
        num_gpus[0] += actor
    entry: dict[str, Any] = {"name": name, "num_gpus": num_gpus, "tensor_parallel": ranks}
    entry |= _replicas(options, name, group_size=group_size)
    entry["engine_share"] = engine.get("gpu_memory_utilization", ENGINE_SHARE)
    entry |= _renamed(config, accelerator_type="accelerator_type")
    entry |= _renamed(group, strategy="strategy") if group_size == 1 else {}  # a data-parallel group is packed
    limits = _renamed(engine, **{key: key for key in ("max_model_len", "max_num_seqs", "kv_cache_dtype")})
    entry |= {key: value for key, value in limits.items() if value != "auto" and (key, value) != ("max_model_len", -1)}
    unsupported = [key for key in PARALLEL if engine.get(key, 1) not in (None, 1)]
    unsupported += [key for key in NOT_COMPUTED if engine.get(key)]
    if "quantization" in unsupported and engine["quantization"] == _stored_quantization(folder, source):
        unsupported.remove("quantization")  # the sizes are those of the files
    unsupported += [] if engine.get("dtype") in SIXTEEN_BITS else ["dtype"]
    unsupported += ["max_model_len"] if engine.get("max_model_len") in ("auto", -1) else []  # what fits, at the start
    unsupported = [f"{key}: {shortened(str(engine[key]))}" for key in unsupported]
    if unsupported or not isinstance(source, str):
        yield entry, f"{' and '.join(unsupported) or 'a model in a bucket'} is not computed here"
    else:
        yield entry | {"model": source}, f"the weights of {shortened(source)} are not on this machine"


def _replicas(options: Plain, name: str, *, group_size: int = 1) -> dict[str, Any]:
    """Return the largest number of replicas that Serve may start, and the smallest if it scales.

    `group_size`: replicas of a data-parallel group, of which the options state the number (Ray's dp_server.py).
    """
    scaling = options.get("autoscaling_config")
    if scaling is None and options.get("num_replicas") != "auto":
        numbers = _renamed(options, replicas="num_replicas") or ({"replicas": 1} if group_size > 1 else {})
    else:
        scaling = _mapping(scaling or {}, f"{name}: autoscaling_config")
        by_default = AUTO_MAX_REPLICAS if options.get("num_replicas") == "auto" or group_size > 1 else 1
        numbers = {"replicas": scaling.get("max_replicas", by_default), "min_replicas": scaling.get("min_replicas", 1)}
    return {key: number * group_size if isinstance(number, int) else number for key, number in numbers.items()}


def _size(engine: Plain, key: str, name: str) -> int:
    size = 1 if engine.get(key) is None else engine[key]
    whole = isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= 1024
    require(whole, f"{name}: {key} is {shortened(repr(size))}", fix="give a whole number from 1")
    return int(size)


def _gpus_of(bundles: Any, name: str) -> list[Any]:
    """Return the GPUs of each bundle that requests GPUs."""
    require(isinstance(bundles, list), f"{name}: bundles are {shortened(repr(bundles))}", fix="write a list of them")
    return [_mapping(bundle, f"{name}: a bundle")["GPU"] for bundle in bundles if _mapping(bundle, name).get("GPU")]


def _renamed(source: Plain, **keys: str) -> dict[str, Any]:
    """Return the values of the source's keys under our names, except missing ones."""
    return {name: source[key] for name, key in keys.items() if source.get(key) is not None}


def _mappings(source: Plain, key: str, where: str) -> list[Plain]:
    entries = source.get(key) or []
    require(isinstance(entries, list), f"{where} is {shortened(repr(entries))}", fix="write a list")
    return [_mapping(entry, f"{where}[{n}]") for n, entry in enumerate(entries)]


def _mapping(value: Any, where: str) -> Plain:
    require(isinstance(value, Mapping), f"{where} is {shortened(repr(value))}", fix="write KEY: VALUE")
    return value  # type: ignore[no-any-return]
