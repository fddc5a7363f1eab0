"""The Serve configuration file (`serve run FILE`, `serve deploy FILE`) for what is to run in Ray Serve."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from labkit.selector.configs import ConfigFile, Setting, shares

Answers = Mapping[str, str]
PREFIX_ROUTER = "ray.serve.llm.request_router.PrefixCacheAffinityRouter"
STAGE = "your_models:app"


def llm_files(answers: Answers, model: str, engine: Sequence[Setting]) -> tuple[ConfigFile, ...]:
    """vLLM inside Ray Serve by ray.serve.llm, and beside it an application of your own where other models take part."""
    several = answers["models"] != "one" and answers["kind"] == "llm"
    names = [model, "ANOTHER/MODEL"] if several else [model]  # two show the form; one more entry for each more
    entries = [_llm_config(answers, name, n, engine) for n, name in enumerate(names)]
    applications = [
        {
            "name": "llm",
            "route_prefix": "/",
            "import_path": "ray.serve.llm:build_openai_app",
            "args": {"llm_configs": entries},
        }
    ]
    if _has_stages(answers):
        applications.append(_own_application(answers, route="/desk"))
    settings = (*_where(), *_llm_settings(answers), *engine, *(_own_settings(answers) if _has_stages(answers) else ()))
    return (_file(applications, settings),)


def own_files(answers: Answers) -> tuple[ConfigFile, ...]:
    """Your own models as deployments of Ray Serve."""
    return (_file([_own_application(answers, route="/")], (*_where(), *_own_settings(answers))),)


def _has_stages(answers: Answers) -> bool:
    return answers["pattern"] == "pipeline" or answers["kind"] == "both"


def _file(applications: list[dict[str, Any]], settings: Sequence[Setting]) -> ConfigFile:
    tree = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "127.0.0.1", "port": 8000, "request_timeout_s": 600},
        "applications": applications,
    }
    text = yaml.safe_dump(tree, sort_keys=False)
    return ConfigFile(name="serve_config.yaml", language="yaml", text=text, settings=tuple(settings))


def _where() -> Iterator[Setting]:
    why = "Loopback only. The port asks for no key: check one in your ingress, or in a gateway before it."
    yield Setting(name="http_options.host", value="127.0.0.1", why=why)
    why = "Seconds after which a request is answered with 408; without it a request that hangs, hangs."
    yield Setting(name="http_options.request_timeout_s", value="600", why=why)


def _llm_config(answers: Answers, model: str, number: int, engine: Sequence[Setting]) -> dict[str, Any]:
    kwargs = {one.name.replace("-", "_"): _typed(one.value) for one in engine}
    deployment: dict[str, Any] = {"max_ongoing_requests": 128, **_replicas(answers)}
    if answers["prefixes"] == "yes":
        deployment["request_router_config"] = {"request_router_class": PREFIX_ROUTER}
    found: dict[str, Any] = {
        "model_loading_config": {"model_id": "main" if number == 0 else f"model-{number + 1}", "model_source": model},
        "engine_kwargs": kwargs,
        "deployment_config": deployment,
    }
    if answers["hardware"] == "cpu":
        found["placement_group_config"] = {"bundles": [{"CPU": 1}]}
    elif shares(answers):
        found["placement_group_config"] = {"bundles": [{"CPU": 1, "GPU": 0.5}]}
    return found


def _replicas(answers: Answers) -> dict[str, Any]:
    """One replica on one device; else as many as the load asks for."""
    if answers["hardware"] in ("cpu", "one"):
        return {"num_replicas": 1}
    low = 2 if answers["slo"] == "p99" or answers["rate"] == "high" else 1
    scaling = {"min_replicas": low, "max_replicas": 4, "target_ongoing_requests": 32}
    return {"autoscaling_config": scaling}


def _llm_settings(answers: Answers) -> Iterator[Setting]:
    why = "Requests that a replica takes at a time. Serve's default of 5 would starve the engine's batch."
    yield Setting(name="max_ongoing_requests", value="128", why=why)
    yield _scaling(answers)
    if answers["prefixes"] == "yes":
        why = "Requests with the same beginning go to the same replica, so that its cache has it."
        yield Setting(name="request_router_class", value=PREFIX_ROUTER, why=why)
    if answers["hardware"] == "cpu":
        why = "Without it a replica would wait for a GPU that never comes."
        yield Setting(name="placement_group_config", value="CPU: 1", why=why)
    elif shares(answers):
        why = "Half a GPU by Ray's count, as gpu_memory_utilization takes half of its memory: the two have to agree."
        yield Setting(name="placement_group_config", value="GPU: 0.5", why=why)


def _scaling(answers: Answers) -> Setting:
    if answers["hardware"] in ("cpu", "one"):
        return Setting(name="num_replicas", value="1", why="There is one device; a second replica would stay pending.")
    why = (
        "Ray Serve scales by requests under way for each replica, not by their rate: measure at how many your latency"
        " still holds (lab 01), and let that be the target. Two at least where a tail is promised or much comes."
    )
    return Setting(name="autoscaling_config", value="1 or 2 to 4, at 32 under way", why=why)


def _own_application(answers: Answers, *, route: str) -> dict[str, Any]:
    names = ["Model"] if answers["models"] == "one" else ["ModelA", "ModelB"]
    replicas = {"num_replicas": 2 if answers["slo"] == "p99" else 1}
    options = {"num_cpus": 1, **({"num_gpus": _fraction(answers)} if _on_gpu(answers) else {})}
    deployments = [
        {"name": name, **replicas, "max_ongoing_requests": 16, "ray_actor_options": options.copy()} for name in names
    ]
    return {"name": "models", "route_prefix": route, "import_path": STAGE, "deployments": deployments}


def _on_gpu(answers: Answers) -> bool:
    """Not where there is none, nor where the only one is an engine's."""
    alone = answers["hardware"] == "one" and answers["kind"] != "other" and not shares(answers)
    return answers["hardware"] != "cpu" and not alone


def _fraction(answers: Answers) -> float:
    return 0.25 if shares(answers) else 1


def _own_settings(answers: Answers) -> Iterator[Setting]:
    why = "Your module and the application in it (lab 05 writes one); the deployments below have its classes' names."
    yield Setting(name="import_path", value=STAGE, why=why)
    why = "Beyond it requests wait in the queue. At least the batch size of @serve.batch, or its batches never fill."
    yield Setting(name="max_ongoing_requests", value="16", why=why)
    if _on_gpu(answers):
        why = "What Ray's scheduler counts. It refuses more than a whole GPU; it does not watch memory (lab 06)."
        yield Setting(name="num_gpus", value=str(_fraction(answers)), why=why)


def _typed(value: str) -> Any:
    """A flag's value as YAML has it; a flag without a value is true."""
    return True if value == "" else yaml.safe_load(value)
