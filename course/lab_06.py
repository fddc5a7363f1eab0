"""Lab 06: Ray's best fit and a Serve config that must fit a card (exercises), and two engines on one card."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from labkit import charts, modelled
from labkit.advice import fractions as auditor
from labkit.errors import LabkitError, require
from labkit.modelled import Drive, ModelledGpu, shape_of
from labkit.serving import ray_serve
from labkit.session import LabSession
from labkit.teaching import solution
from labkit.theory import placement

GIB = 2**30


def gpu_for(left: list[float], asked: float) -> int:
    best = -1
    for gpu, free in enumerate(left):
        if free >= asked and (best < 0 or free < left[best]):
            best = gpu
    return best


solution(
    "06.gpu_for",
    gpu_for,
    cases=(
        ([0.5, 0.75, 0.25, 1.0], 0.25),
        ([1.0, 0.75, 0.5, 0.75], 0.6),
        ([0.4, 0.4, 0.4], 0.5),
        ([1.0, 0.5], 0.5),
        ([0.9, 0.3, 1.0], 0.3),
        ([0.3, 0.9], 0.25),
    ),
    exact=True,
    wrong={
        "first fit instead of best fit": lambda left, asked: next(
            (gpu for gpu, free in enumerate(left) if free >= asked), -1
        ),
        "emptiest GPU chosen": lambda left, asked: left.index(max(left)) if max(left) >= asked else -1,
        "fractions of two GPUs added up": lambda left, asked: (
            gpu_for(left, asked) if max(left) >= asked or sum(left) < asked else left.index(max(left))
        ),
        "'at least' taken for 'more than'": lambda left, asked: min(
            (gpu for gpu in range(len(left)) if left[gpu] > asked), key=left.__getitem__, default=-1
        ),
    },
)


# --- a Serve config for one card ---

CARD_GIB = 80.0
MODELS = {"chat", "code"}
LONGEST = 8192


def audited(config: str) -> auditor.Audit:
    """The audit of a Serve config on one card of 80 GiB."""
    return auditor.audit(*auditor.parse(yaml.safe_load(config), gpu={"memory_gib": CARD_GIB, "count": 1}))


def audited_file(name: str) -> auditor.Audit:
    """The audit of a learner's own file: a Serve config, a RayService or a list of deployments."""
    return auditor.audit(*auditor.read(Path(name).expanduser()))


def fits(config: Any) -> dict[str, str]:
    """Return the tests of a Serve config, each with the failure ("" if it passes)."""
    if not isinstance(config, str):
        return {"the config can be read": f"it is a {type(config).__name__}, not a text"}
    try:
        audit = audited(config)
    except (LabkitError, yaml.YAMLError, AttributeError, TypeError) as error:
        return {"the config can be read": str(error)}
    names = {deployment.name for deployment in audit.deployments}
    short = [deployment for deployment in audit.deployments if deployment.context_tokens < LONGEST]
    placed = [replica for replica in audit.replicas if replica.gpus]
    waiting = [f"{late.name} asks for {late.deployment.asks} and waits" for late in audit.replicas if not late.gpus]
    return {
        "both models are served": ", ".join(f"{name} is missing" for name in sorted(MODELS - names)),
        f"requests of {LONGEST:,} tokens are accepted": ", ".join(
            f"{deployment.name} takes {deployment.context_tokens:,}" for deployment in short
        ),
        "Ray places every replica": ", ".join(waiting),
        "every engine starts": ", ".join(f"{replica.name}: {replica.refused}" for replica in placed if replica.refused),
        "no engine takes more of the card than Ray counts": ", ".join(
            f"{deployment.name} takes {deployment.engine_share:.2f} and asks for {deployment.asks}"
            for deployment in audit.deployments
            if (deployment.engine_share or 0) > deployment.part
        ),
    }


def _config(*gpus: float, shares: Sequence[float | None] = (), tokens: int = LONGEST) -> str:
    models = []
    for name, part, share in zip(sorted(MODELS), gpus, shares or [None] * len(gpus), strict=False):
        engine = {"max_model_len": tokens} | ({} if share is None else {"gpu_memory_utilization": share})
        models.append(
            {
                "model_loading_config": {"model_id": name, "model_source": "Qwen2.5-7B"},
                "engine_kwargs": engine,
                "placement_group_config": {"bundles": [{"CPU": 1, "GPU": part}]},
            }
        )
    application = {"import_path": "ray.serve.llm:build_openai_app", "args": {"llm_configs": models}}
    return str(yaml.safe_dump({"applications": [{"name": "assistants", **application}]}, sort_keys=False))


def fitting() -> str:
    return """
applications:
- name: assistants
  import_path: ray.serve.llm:build_openai_app
  args:
    llm_configs:
    - model_loading_config: {model_id: chat, model_source: Qwen2.5-7B}
      engine_kwargs: {max_model_len: 8192, gpu_memory_utilization: 0.47}
      placement_group_config: {bundles: [{CPU: 1, GPU: 0.5}]}
    - model_loading_config: {model_id: code, model_source: Qwen2.5-7B}
      engine_kwargs: {max_model_len: 8192, gpu_memory_utilization: 0.47}
      placement_group_config: {bundles: [{CPU: 1, GPU: 0.5}]}
"""


solution(
    "06.fits",
    fitting,
    observe=fits,
    wrong={
        "only num_gpus corrected": lambda: _config(0.5, 0.5),
        "only the engines' shares corrected": lambda: _config(0.6, 0.6, shares=(0.47, 0.47)),
        "a share of the remaining memory": lambda: _config(0.5, 0.5, shares=(0.5, 0.92)),
        "engine's share larger than Ray's fraction": lambda: _config(0.4, 0.4, shares=(0.47, 0.47)),
        "one model not served": lambda: _config(0.95, shares=(0.92,)),
        "shorter requests accepted": lambda: _config(0.5, 0.5, shares=(0.47, 0.47), tokens=2048),
    },
)


def placed_by_ray(config: str, *, gpus: int, wait_s: float = 3.0) -> dict[str, str]:
    """Return what Ray's scheduler does with each replica of a config on one empty GPU of a node with `gpus` GPUs.

    A placement group reserves what a replica would reserve and starts nothing; all groups are removed afterwards.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    wanted: list[tuple[str, tuple[float, ...]]] = [("", (1.0,))] * (gpus - 1)  # the scene is one card
    wanted += [(replica.name, replica.deployment.bundles) for replica in audited(config).replicas]
    groups = {}
    try:
        for number, (name, bundles) in enumerate(wanted):
            group = placement_group([{"GPU": part} for part in bundles])
            groups[number, name] = group, group.wait(timeout_seconds=wait_s)
        return {name: "placed" if ready else "waits" for (_, name), (_, ready) in groups.items() if name}
    finally:
        for group, _ in groups.values():
            remove_placement_group(group)


# --- the scene on logical GPUs ---


def check_sizes(lab: LabSession) -> None:
    """Raise a UsageError if not all replicas find room, or if the late one would not wait."""
    parameters = lab.parameters
    fractions, late, gpus = parameters["fractions"], parameters["late_fraction"], parameters["gpus"]
    placed = placement.best_fit([*fractions, late], gpus)
    waiting = ", ".join(f"{part:g}" for part, where in zip(fractions, placed, strict=False) if not where)
    full = f"on {gpus} GPUs the fractions {fractions} do not all find room: {waiting} would wait"
    require(not waiting, full, fix="use smaller fractions, another order, or more GPUs")
    left = placement.left_over(fractions, gpus)
    roomy = f"late_fraction is {late:g}, and a GPU of {gpus} has {max(left):g} left: it would not have to wait"
    require(not placed[-1], roomy, fix="use a larger late_fraction, fewer GPUs, or more fractions")
    room = left[placed[0][0]] + fractions[0]
    stuck = f"late_fraction is {late:g}; when the first of the fractions leaves, its GPU has {room:g} left"
    require(placement.units_of(round(room, 4)) >= placement.units_of(late), stuck, fix="use a smaller late_fraction")
    shared = [gpu for gpu in range(gpus) if len(parts_on(fractions[1:], placed[1:], gpu)) > 1]
    apart = f"after the first, no two different fractions of {fractions} share a GPU: nothing to compare"
    require(bool(shared), apart, fix="use a pair that fits one GPU, such as 0.7 and 0.25")
    modelled.gpu(parameters["card"], model="llama-3.1-8b")  # or its refusal
    if parameters["audit_file"]:
        audited_file(parameters["audit_file"])
    models = [parameters[name] for name in ("models", "models_gib", "model_loads")]
    unequal = "{} names, {} memories and {} loads".format(*map(len, models))
    require(len(set(map(len, models))) == 1, unequal, fix="give one of each for every model")


def parts_on(fractions: Sequence[float], placed: Sequence[Sequence[int]], gpu: int) -> set[float]:
    """The different fractions on a GPU."""
    return {part for part, where in zip(fractions, placed, strict=False) if list(where) == [gpu]}


def check_cluster(nodes: Sequence[Mapping[str, Any]], gpus: int) -> None:
    """Raise a UsageError for a cluster other than one node with `gpus` GPUs."""
    free = [node["Resources"]["GPU"] for node in nodes if node["Alive"] and node["Resources"].get("GPU")]
    scattered = f"the cluster's nodes have {free or 'no'} GPUs; this lab's scene is one node with {gpus}"
    require(free == [gpus], scattered, fix="leave ray_address empty, or join a cluster with one such node")


def pair_on_one_gpu(where: Mapping[str, str], num_gpus: Mapping[str, float]) -> tuple[str, str]:
    """Return two replicas with different fractions of one GPU, without the first, which has been deleted by then."""
    names = list(where)[1:]
    return next((a, b) for a in names for b in names if where[a] == where[b] and num_gpus[a] > num_gpus[b])


OUTCOMES = {
    "RUNNING": "it starts",
    "DEPLOYING": "it waits until there is room",
    "DEPLOY_FAILED": "Ray refuses it with an error",
}
"""What an application's status means for a replica that is deployed late."""


def delete(applications: Iterable[str]) -> None:
    """Delete those of the applications that are still deployed, at once; `serve.delete` waits for each."""
    from ray import serve

    with ThreadPoolExecutor() as pool:
        list(pool.map(serve.delete, serve.status().applications.keys() & {*applications}))


def first_message(application: str) -> str:
    """Return Serve's first message about an application that does not start, or "" once it runs."""
    from ray import serve

    def deployments() -> list[Any]:
        known = serve.status().applications.get(application)
        return list(known.deployments.values()) if known else []

    def told() -> bool:
        return any(deployment.message or deployment.status == "HEALTHY" for deployment in deployments())

    ray_serve.wait_for(told, timeout_s=60, what=f"a message about {application}")
    return "\n".join(deployment.message for deployment in deployments())


Surroundings = tuple[Mapping[str, str], Mapping[str, Any], str]
"""A process's environment, its limits, and its control group."""


def told_apart(one: Surroundings, other: Surroundings) -> dict[str, list[str]]:
    """The names of environment variables and of limits (with the control group) that differ between two processes."""
    variables, limits = (
        sorted(name for name in {*a, *b} if a.get(name) != b.get(name)) for a, b in zip(one[:2], other[:2], strict=True)
    )
    return {"environment variables": variables, "limits": limits + ["control group"] * (one[2] != other[2])}


def what_differs(apart: Mapping[str, Sequence[str]]) -> str:
    """Return the right option of the prediction."""
    if apart["limits"]:
        return "a limit or a control group"
    return "an environment variable only" if apart["environment variables"] else "none of them"


def memory_evidence(lab: LabSession, apart: Mapping[str, Sequence[str]], *, same_device: bool) -> None:
    """Record evidence on C36: what differs between two replicas with different fractions of a GPU."""
    variables, limits = (len(apart[name]) for name in ("environment variables", "limits"))
    lab.evidence("C36", variables_apart=variables, limits_apart=limits, same_device=same_device)


def sum_evidence(lab: LabSession, where: Mapping[str, str], *, late_waits: bool) -> None:
    """Record evidence on C37: the largest sum of fractions on a GPU, and whether the replica without room waited."""
    parameters = lab.parameters
    sums: dict[str, float] = {}
    for gpu, part in zip(where.values(), parameters["fractions"], strict=True):
        sums[gpu] = sums.get(gpu, 0.0) + part
    left = placement.left_over(parameters["fractions"], parameters["gpus"])
    lab.says("The fractions on a GPU never add up to more than one", max(sums.values()) <= 1)
    lab.evidence("C37", largest_sum=round(max(sums.values()), 4), late_fraction=parameters["late_fraction"])
    lab.evidence("C37", most_left=max(left), late_waits=late_waits)


# --- two engines on one card ---


def cache_tokens(llm: Any) -> int:
    """The tokens that an engine's KV cache holds."""
    cache = llm.llm_engine.vllm_config.cache_config
    return int(cache.num_gpu_blocks * cache.block_size)


def in_turn(engines: Sequence[Any]) -> Callable[[], None]:
    """Return a callback after each step with which modelled engines share one card: only one computes at a time.

    Time-slicing without its costs. A step advances the other engines' clocks to just before its end, so they are next.
    """
    cards = [engine.llm_engine.model_executor for engine in engines]

    def share() -> None:
        now_s = max(card.clock_s for card in cards)
        for card in cards:
            card.clock_s = max(card.clock_s, now_s - 1e-9)

    return share


def output_per_s(driven: Drive) -> float:
    """Output tokens per second of a load that was driven to its end."""
    return round(sum(request.output_tokens or 0 for request in driven.result.records) / driven.result.duration_s, 1)


FORM = """\
gpu: {memory_gib: 80}
deployments:
- {name: chat, model: Qwen2.5-7B, num_gpus: 0.7, engine_share: 0.7, max_model_len: 8192}
- {name: embeddings, weight_gib: 1.2, num_gpus: 0.2, engine_share: 0.15, max_model_len: 8192}
"""
"""The first question of the auditor's form, different from the exercise's."""

ONE, SHARED = "one engine, whole card", "two engines, one card"
Loads = Mapping[str, Mapping[int, float]]
"""Output tokens per second by arrangement and clients."""
Plans = Mapping[str, Sequence[Sequence[str]]]
"""By plan, the models on each GPU."""


def record(lab: LabSession, served: Loads, cache_tokens: Sequence[int]) -> None:
    """Record the values that must be the same in every run, and check what the text says about them."""
    lab.exact("modelled_cache_tokens", cache_tokens)
    lab.exact("modelled_output_per_s", {name: {str(n): rate for n, rate in by.items()} for name, by in served.items()})
    lab.says("In turns, replicas of the same model on one card gain nothing", max(_of_one_engine(served)) <= 1)


def load_chart(served: Loads) -> charts.Chart:
    """Output tokens per second by clients; the title says what two engines on a card give."""
    points = [charts.LinePoint(n, rate, name) for name, by in served.items() for n, rate in by.items()]
    percents = [100 * share for share in _of_one_engine(served)]
    title = f"Two engines on one card give {min(percents):.0f} to {max(percents):.0f}% of one engine's tokens/s"
    axes = {"x_title": "concurrent clients", "y_title": "output tokens/s (modelled)"}
    return charts.lines(points, title=title, log_x=True, **axes)


def _of_one_engine(served: Loads) -> list[float]:
    return [served[SHARED][n] / rate for n, rate in served[ONE].items()]


def sharing_evidence(lab: LabSession, served: Loads, plans: Plans) -> None:
    """Record evidence on C08: GPUs that sharing saves for the lab's models, and two engines' throughput over one's."""
    lab.exact("plans", plans)
    used = {name: len(gpus) for name, gpus in plans.items()}
    ratios = _of_one_engine(served)
    lab.evidence("C08", gpus_dedicated=used["one each"], gpus_shared=used["memory and load"])
    lab.evidence("C08", saved_percent=round(100 * (1 - used["memory and load"] / used["one each"]), 1))
    lab.evidence("C08", lowest_ratio=round(min(ratios), 3), highest_ratio=round(max(ratios), 3))


# --- adapters, and the plan ---


def adapter_bytes(gpu: ModelledGpu, rank: int) -> int:
    """Return the bytes of a LoRA adapter of all linear layers, in 16 bits: rank x (inputs + outputs) for each matrix.

    This is what vLLM allocates for each of `--max-loras` slots (vllm/lora/layers/base_linear.py, create_lora_weights).
    """
    fields = json.loads((gpu.folder / "config.json").read_text())
    hidden, middle, heads = fields["hidden_size"], fields["intermediate_size"], fields["num_attention_heads"]
    head = fields.get("head_dim") or hidden // heads
    queries, keys = heads * head, fields["num_key_value_heads"] * head
    matrices = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    matrices += [(hidden, middle), (hidden, middle), (middle, hidden)]
    return int(fields["num_hidden_layers"] * sum(map(sum, matrices)) * rank * 2)


def ways_to_serve(gpu: ModelledGpu, tasks: int, *, rank: int, workspace_gib: float) -> dict[str, dict[str, float]]:
    """Return the GiB that `tasks` fine-tuned variants of a model take, and the cache that 0.9 of the card leaves."""
    shape = shape_of(gpu.folder)
    engine = shape.weight_bytes + workspace_gib * GIB
    ways = {f"{tasks} engines": tasks * engine}
    ways[f"1 engine, {tasks} adapters"] = engine + tasks * adapter_bytes(gpu, rank)
    rows = {}
    for name, size in ways.items():
        left = max(0, int((0.9 * gpu.card.memory_bytes - size) / shape.kv_bytes_per_token))
        rows[name] = {"GiB before any cache": round(size / GIB, 1), "tokens of cache": left}
    return rows


def plan(models: Mapping[str, tuple[float, float]], *, gpu_gib: float, most_load: float) -> list[list[str]]:
    """Place models with (GiB, load) on GPUs: the largest first, each on the first GPU with room for both."""
    gpus: list[list[str]] = []
    for name in sorted(models, key=lambda name: -models[name][0]):
        gib, load = models[name]
        for gpu in gpus:
            memory, work = (sum(models[other][n] for other in gpu) for n in (0, 1))
            if memory + gib <= gpu_gib and work + load <= most_load:
                gpu.append(name)
                break
        else:
            gpus.append([name])
    return gpus


def plans(lab: LabSession) -> dict[str, list[list[str]]]:
    """The lab's models, one GPU each, and shared by memory and load or by memory alone."""
    parameters = lab.parameters
    models = dict(
        zip(parameters["models"], zip(parameters["models_gib"], parameters["model_loads"], strict=True), strict=True)
    )
    gpu_gib = modelled.gpu(parameters["card"]).card.memory_gib
    return {
        "one each": [[name] for name in models],
        "memory and load": plan(models, gpu_gib=gpu_gib, most_load=parameters["most_load"]),
        "memory alone": plan(models, gpu_gib=gpu_gib, most_load=float("inf")),
    }


def plan_table(lab: LabSession, plans: Plans) -> dict[str, dict[str, Any]]:
    """GPUs, GPUs saved, throughput for each GPU, and the largest load with what it does to a request's mean time.

    Processor sharing with Poisson arrivals: the work over what the load leaves (Kleinrock, Queueing Systems, vol. 2).
    """
    loads = dict(zip(lab.parameters["models"], lab.parameters["model_loads"], strict=True))
    most, rows = len(plans["one each"]), {}
    for name, gpus in plans.items():
        busiest = max(sum(loads[model] for model in gpu) for gpu in gpus)
        rows[name] = {
            "GPUs": len(gpus),
            "GPUs and bill, %": round(100 * (len(gpus) / most - 1)),
            "requests per GPU, %": round(100 * (most / len(gpus) - 1)),
            "highest load": round(busiest, 2),
            "mean time there": f"{1 / (1 - busiest):.1f} x its work" if busiest < 1 else "unstable",
        }
    return rows
