"""Ray Serve configs and KubeRay RayServices as people have them, read as a file of deployments.

Source: Ray 2.60, serve/schema.py, serve/config.py (AutoscalingConfig), llm/_internal/serve (LLMConfig, LLMServer), and
KubeRay's RayService. What a config leaves to its code is named, never assumed.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from labkit.errors import require, shortened
from labkit.files import parse_yaml, read_yaml

ENGINE_SHARE = 0.92  # vLLM 0.32's default of gpu_memory_utilization
AUTO_MAX_REPLICAS = 100  # Serve's for num_replicas: auto
CONFIGS = ("llm_config", "prefill_config", "decode_config")  # beside llm_configs, in the builders of ray.serve.llm
# What changes the memory of a rank in a way that is not computed here.
NOT_COMPUTED = ("pipeline_parallel_size", "data_parallel_size", "decode_context_parallel_size")

Plain = Mapping[str, Any]
Found = tuple[dict[str, Any], str]
"""An entry of `deployments:`, and why its memory is not known if its model is not here either."""


def is_one(content: Any) -> bool:
    """Whether this is a Ray Serve config (of several applications or one), or a RayService around one."""
    keys = ("applications", "serveConfigV2", "import_path", "kind", "llm_configs")
    return isinstance(content, Mapping) and any(key in content for key in keys)


class Left(NamedTuple):
    """What a config leaves open: `unread` in sentences, and the deployments `without_gpu` by name."""

    unread: list[str]
    without_gpu: list[str]


def translated(content: Plain, folder: Path) -> tuple[dict[str, Any], dict[str, str], Left]:
    """The same as a file of deployments; why the memory of some is not known, by name; and what is left to code."""
    gpu = _worker_groups(content)
    serve = _serve_config(content)
    entries, unknown, left = list[dict[str, Any]](), dict[str, str](), Left([], [])
    for application in _mappings(serve, "applications", "applications"):
        entries_before = len(entries)
        for entry, reason in (*_llms(application, folder), *_deployments(application, left)):
            name = entry["name"]
            entry["name"] = name if name not in unknown else f"{application.get('name', 'app')}:{name}"
            unknown[entry["name"]] = reason
            entries.append(entry)
        if entries_before == len(entries) and not _names(application):
            name = shortened(str(application.get("name") or application.get("import_path")))
            left.unread.append(f"application {name} names no deployment that asks for GPUs: its code decides")
    types = {str(entry["accelerator_type"]) for entry in entries if entry.get("accelerator_type")}
    if len(types) == 1:
        gpu = [{**row, "accelerator_type": next(iter(types))} for row in gpu or [{}]]
    return {"gpu": gpu[0] if len(gpu) == 1 else gpu or None, "deployments": entries}, unknown, left


def _serve_config(content: Plain) -> Plain:
    """The Serve config itself, out of a RayService's text, with one application where there is no list of them."""
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
    """The nodes with GPUs of a RayService's cluster, at their most: a row for the head and each group that has some."""
    spec = content.get("spec")
    cluster = spec.get("rayClusterConfig") if isinstance(spec, Mapping) else None
    if not isinstance(cluster, Mapping):
        return []
    replicas = "maxReplicas" if cluster.get("enableInTreeAutoscaling") else "replicas"
    head = cluster.get("headGroupSpec")
    groups = [
        *([head] if isinstance(head, Mapping) else []),
        *_mappings(cluster, "workerGroupSpecs", "workerGroupSpecs"),
    ]
    rows = []
    for group in groups:
        try:
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            count = int(group.get("rayStartParams", {}).get("num-gpus", limits.get("nvidia.com/gpu", 0)))
            nodes = int(group.get(replicas, group.get("replicas", 1))) * int(group.get("numOfHosts", 1))
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            continue
        if count and nodes:
            rows.append({"count": count, "nodes": nodes})
    return rows


def _deployments(application: Plain, left: Left) -> Iterator[Found]:
    """The deployments of an application that ask for GPUs, as far as the config says so."""
    for deployment in _mappings(application, "deployments", "deployments"):
        name = shortened(str(deployment.get("name")))
        options, bundles = deployment.get("ray_actor_options"), deployment.get("placement_group_bundles")
        if options is None and bundles is None:
            if not (_configs(application) and name.startswith("OpenAiIngress")):  # that one asks for CPUs only
                left.unread.append(f"{name} has no ray_actor_options here: its code says how many GPUs it asks for")
            continue
        options = _mapping(options or {}, f"{name}: ray_actor_options")
        asked = _gpus_of(bundles, name) if bundles is not None else options.get("num_gpus", 0)
        if not asked:
            left.without_gpu.append(name)
            continue
        entry = {"name": name, "num_gpus": asked, **_replicas(deployment, name)}
        entry |= _given(deployment, strategy="placement_group_strategy", max_replicas_per_node="max_replicas_per_node")
        entry |= _given(options, accelerator_type="accelerator_type")
        yield entry, "a Serve config says nothing about a deployment's weights"


def _llms(application: Plain, folder: Path) -> Iterator[Found]:
    """The deployments that the builders of ray.serve.llm make of LLMConfigs."""
    for config in _configs(application):
        if isinstance(config, str):  # a file of its own
            config = read_yaml(folder / config, Any, remedy="correct it")
        yield from _llm(_mapping(config, "an entry of llm_configs"))


def _configs(application: Plain) -> list[Any]:
    args = application.get("args")
    if not isinstance(args, Mapping):
        return []
    listed = args.get("llm_configs", [])
    require(isinstance(listed, list), f"llm_configs is {shortened(repr(listed))}", fix="write a list of LLMConfigs")
    return [*listed, *(args[name] for name in CONFIGS if name in args)]


def _llm(config: Plain) -> Iterator[Found]:
    loading = _mapping(config.get("model_loading_config", {}), "model_loading_config")
    engine = _mapping(config.get("engine_kwargs") or {}, "engine_kwargs")
    options = _mapping(config.get("deployment_config") or {}, "deployment_config")
    group = _mapping(config.get("placement_group_config") or {}, "placement_group_config")
    name = shortened(str(loading.get("model_id")))
    source = loading.get("model_source", loading.get("model_id"))
    ranks = 1
    for key in ("tensor_parallel_size", "pipeline_parallel_size"):
        size = engine.get(key, 1)
        whole = isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= 1024
        require(whole, f"{name}: {key} is {shortened(repr(size))}", fix="give a whole number from 1")
        ranks *= size
    worker = group.get("bundle_per_worker", config.get("resources_per_bundle"))
    bundles = group.get("bundles", [{"GPU": 1} if worker is None else worker] * ranks)
    asked = _gpus_of(bundles, name)
    if not asked:  # it runs on CPUs
        return
    actor = _mapping(options.get("ray_actor_options") or {}, f"{name}: ray_actor_options").get("num_gpus", 0)
    if isinstance(actor, int | float) and actor:  # the replica's actor shares the first bundle
        asked[0] += actor
    entry: dict[str, Any] = {"name": name, "num_gpus": asked, "tensor_parallel": ranks, **_replicas(options, name)}
    entry["engine_share"] = engine.get("gpu_memory_utilization", ENGINE_SHARE)
    entry |= _given(group, strategy="strategy") | _given(config, accelerator_type="accelerator_type")
    lengths = {key: key for key in ("max_model_len", "max_num_seqs", "kv_cache_dtype")}
    entry |= {key: value for key, value in _given(engine, **lengths).items() if value != "auto"}
    odd = [f"{key}: {engine[key]}" for key in NOT_COMPUTED if engine.get(key, 1) != 1]
    if odd or not isinstance(source, str):
        yield entry, f"{' and '.join(odd) or 'a model in a bucket'} is not computed here"
    else:
        yield entry | {"model": source}, f"the weights of {shortened(source)} are not on this machine"


def _replicas(options: Plain, name: str) -> dict[str, Any]:
    """The most replicas that Serve may start, and the least."""
    scaling = options.get("autoscaling_config")
    if scaling is None and options.get("num_replicas") != "auto":
        return _given(options, replicas="num_replicas")
    scaling = _mapping(scaling or {}, f"{name}: autoscaling_config")
    most = scaling.get("max_replicas", AUTO_MAX_REPLICAS if options.get("num_replicas") == "auto" else 1)
    return {"replicas": most, "min_replicas": scaling.get("min_replicas", 1)}


def _gpus_of(bundles: Any, name: str) -> list[Any]:
    """The GPUs of the bundles that ask for some."""
    require(isinstance(bundles, list), f"{name}: bundles are {shortened(repr(bundles))}", fix="write a list of them")
    return [_mapping(bundle, f"{name}: a bundle")["GPU"] for bundle in bundles if _mapping(bundle, name).get("GPU")]


def _given(source: Plain, **keys: str) -> dict[str, Any]:
    """Our key with the value of theirs, where it has one."""
    return {ours: source[theirs] for ours, theirs in keys.items() if source.get(theirs) is not None}


def _names(application: Plain) -> list[Any]:
    return [entry.get("name") for entry in _mappings(application, "deployments", "deployments")]


def _mappings(source: Plain, key: str, where: str) -> list[Plain]:
    entries = source.get(key) or []
    require(isinstance(entries, list), f"{where} is {shortened(repr(entries))}", fix="write a list")
    return [_mapping(entry, f"{where}[{n}]") for n, entry in enumerate(entries)]


def _mapping(value: Any, where: str) -> Plain:
    require(isinstance(value, Mapping), f"{where} is {shortened(repr(value))}", fix="write KEY: VALUE")
    return value  # type: ignore[no-any-return]
