"""A configuration ready to use for what was chosen, each setting explained. Written from the answers; nothing is run.

The files are checked by the engines' own readers in tests/engine/test_selector_configs.py.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from labkit.advice.selector.catalogue import check_model

GPU_MODEL, CPU_MODEL = "Qwen/Qwen2.5-7B-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"
Answers = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of a file: as it stands there, and why."""

    name: str
    value: str
    why: str


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """A file or a command, with its settings explained. `language` is what it is written in."""

    name: str
    language: str
    text: str
    settings: tuple[Setting, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**self.__dict__, "settings": [dict(one.__dict__) for one in self.settings]}


def configure(stack: str, answers: Answers, *, model: str | None = None) -> tuple[ConfigFile, ...]:
    """The files for a stack. `model`: what is served; else what suits the hardware. UsageError for a name that is none.

    `answers` are complete ones (`answers.complete`).
    """
    name = check_model(model) or (CPU_MODEL if answers["hardware"] == "cpu" else GPU_MODEL)
    return WRITERS[stack](answers, name)


# --- vLLM ---------------------------------------------------------------------------------------------------------


def engine_settings(answers: Answers) -> tuple[Setting, ...]:
    """What a vLLM engine is started with, as command-line flags without their dashes."""
    return tuple(_engine(answers))


def _engine(answers: Answers) -> Iterator[Setting]:
    yield Setting(
        name="max-model-len",
        value="8192",
        why="The longest request, prompt and answer. All users share the cache: allow what you need, no more.",
    )
    if answers["hardware"] != "cpu":
        yield _memory(answers)
    if answers["priority"] == "throughput":
        why = "Tokens computed in a step. More make long prompts faster and let running answers wait longer (lab 04)."
        yield Setting(name="max-num-batched-tokens", value="8192", why=why)
    if answers["priority"] == "latency" or answers["slo"] == "p99":
        yield from _short_gaps(answers)
    if answers["prefixes"] == "yes":
        why = "The default, written down: whole blocks that prompts share are not computed again (lab 03)."
        yield Setting(name="enable-prefix-caching", value="", why=why)


def shares(answers: Answers) -> bool:
    """Whether several models stand on one GPU: by wish, or because there is only one."""
    return answers["gpu"] == "shared" or (answers["hardware"] == "one" and answers["models"] != "one")


def _memory(answers: Answers) -> Setting:
    if shares(answers):
        why = (
            "The share of the GPU that this engine takes at its start. The shares of all engines on it must not add up"
            " to more than one, and they have to be started one after the other (labs 02, 06)."
        )
        return Setting(name="gpu-memory-utilization", value="0.45", why=why)
    why = "The share of the GPU that the engine takes at its start: 0.92 is the default of vLLM 0.32, written down."
    return Setting(name="gpu-memory-utilization", value="0.92", why=why)


def _short_gaps(answers: Answers) -> Iterator[Setting]:
    if answers["priority"] != "throughput":
        why = "Tokens computed in a step. Few keep the gaps between a running answer's tokens short (lab 04)."
        yield Setting(name="max-num-batched-tokens", value="2048", why=why)
    why = "Answers under way at a time. Beyond the knee of your load curve more of them only make each slower (lab 01)."
    yield Setting(name="max-num-seqs", value="64", why=why)


def serve_command(answers: Answers, model: str, *, port: int = 8000, gpu: int | None = None) -> str:
    """`vllm serve` as a shell command, on loopback and with a key from the environment."""
    flags = [f"--host 127.0.0.1 --port {port}", '--api-key "$VLLM_API_KEY"', "--served-model-name main"]
    flags += [f"--{one.name} {one.value}".rstrip() for one in engine_settings(answers)]
    visible = "" if gpu is None else f"CUDA_VISIBLE_DEVICES={gpu} "
    return f"{visible}vllm serve {model} \\\n  " + " \\\n  ".join(flags)


def _served(answers: Answers) -> tuple[Setting, ...]:
    return (
        Setting(name="host", value="127.0.0.1", why="Loopback only: put a gateway with TLS before it."),
        Setting(
            name="api-key",
            value='"$VLLM_API_KEY"',
            why="Without it anybody who reaches the port is served; /metrics stays open.",
        ),
        Setting(name="served-model-name", value="main", why="Clients keep this name when you change the model."),
        *engine_settings(answers),
    )


def _vllm(answers: Answers, model: str) -> tuple[ConfigFile, ...]:
    command = f"export VLLM_API_KEY=$(openssl rand -hex 24)\n{serve_command(answers, model)}\n"
    files = [ConfigFile(name="start.sh", language="bash", text=command, settings=_served(answers))]
    if answers["models"] != "one":
        alone = answers["hardware"] in ("several", "cluster") and not shares(answers)
        other = serve_command(answers, "ANOTHER/MODEL", port=8001, gpu=1 if alone else None)
        why = "A server holds one base model; each further one has its own port, memory share or GPU."
        settings = (Setting(name="port", value="8001", why=why),)
        files.append(ConfigFile(name="start_second.sh", language="bash", text=f"{other}\n", settings=settings))
    return tuple(files)


def _replicas(answers: Answers, model: str) -> tuple[ConfigFile, ...]:
    commands = "\n\n".join(serve_command(answers, model, port=8001 + n, gpu=n) + " &" for n in range(2))
    start = f"export VLLM_API_KEY=$(openssl rand -hex 24)\n\n{commands}\nwait\n"
    where = "another machine's address in nginx.conf for each further machine"
    replica = Setting(name="CUDA_VISIBLE_DEVICES", value="0, 1", why=f"One replica on each GPU; {where}.")
    return (
        ConfigFile(name="start.sh", language="bash", text=start, settings=(replica, *_served(answers))),
        ConfigFile(name="nginx.conf", language="nginx", text=_nginx(answers), settings=tuple(_routing(answers))),
    )


NGINX = """\
events {}
http {
  upstream replicas {
POLICY  }
  server {
    listen 127.0.0.1:8000;
    location / {
      proxy_pass http://replicas;
      proxy_buffering off;
      proxy_read_timeout 600s;
    }
  }
}
"""


def _nginx(answers: Answers) -> str:
    weighted = answers["releases"] == "ab"
    policy = "" if weighted else f"    {_policy(answers)};\n"
    weights = (" weight=9", " weight=1") if weighted else ("", "")
    servers = "".join(f"    server 127.0.0.1:{8001 + n}{weight};\n" for n, weight in enumerate(weights))
    return NGINX.replace("POLICY", policy + servers)


def _policy(answers: Answers) -> str:
    return "hash $http_x_prefix_key consistent" if answers["prefixes"] == "yes" else "least_conn"


def _routing(answers: Answers) -> Iterator[Setting]:
    if answers["releases"] == "ab":
        why = "Nine of ten requests go to the old version, one to the new: A/B by weight."
        yield Setting(name="weight", value="9, 1", why=why)
    elif answers["prefixes"] == "yes":
        why = (
            "The client names what its prompt shares (a document, a conversation) in the header X-Prefix-Key, so that"
            " the same beginning finds the same cache. Routers that read the prompt itself: vllm-router, llm-d."
        )
        yield Setting(name="hash", value="$http_x_prefix_key consistent", why=why)
    else:
        why = "The replica with the fewest requests under way. Round robin would not see that answers differ in length."
        yield Setting(name="least_conn", value="", why=why)
    yield Setting(name="proxy_buffering", value="off", why="Tokens reach the client as they appear.")
    yield Setting(name="proxy_read_timeout", value="600s", why="Longer than your longest answer takes.")


# --- Ray Serve ----------------------------------------------------------------------------------------------------


def _ray_llm(answers: Answers, model: str) -> tuple[ConfigFile, ...]:

    return llm_files(answers, model, engine_settings(answers))


def _ray_own(answers: Answers, model: str) -> tuple[ConfigFile, ...]:  # noqa: ARG001 - the model is your own code

    return own_files(answers)


# --- TorchServe and a hosted API ----------------------------------------------------------------------------------


def _torchserve(answers: Answers, model: str) -> tuple[ConfigFile, ...]:  # noqa: ARG001 - what runs there goes on
    batch, delay = ("4", "20") if answers["priority"] == "latency" else ("8", "50")
    properties = {
        "inference_address": ("http://127.0.0.1:8080", "Loopback only: no security patches are coming."),
        "management_address": ("http://127.0.0.1:8081", "Whoever reaches it can register code and run it."),
        "metrics_address": ("http://127.0.0.1:8082", "Its metrics are open: they ask for no token."),
        "model_store": ("/srv/model-store", "Where the archives are; it must be an absolute path."),
        "load_models": ("all", "Everything in the store is loaded at the start."),
        "enable_model_api": (
            "false",
            "Nothing is registered over HTTP (the default); for a release switch it on.",
        ),
        "disable_token_authorization": ("false", "Tokens are asked for (the default)."),
        "metrics_mode": ("prometheus", "The default only writes metrics to a log."),
        "default_response_timeout": ("120", "Seconds. A request that takes longer kills its worker."),
    }
    handler = {
        "minWorkers": ("2", "With one worker a crash stops everything for some ten seconds (lab 08)."),
        "batchSize": (
            batch,
            "Requests in a batch at most (default: 1). The handler returns one answer for each.",
        ),
        "maxBatchDelay": (delay, "Milliseconds that a batch waits to fill up; a lone request waits them all (lab 07)."),
        "responseTimeout": ("120", "As above, for this model."),
    }
    return (
        _key_values("config.properties", "properties", properties, "="),
        _key_values("model-config.yaml", "yaml", handler, ": "),
    )


def _hosted(answers: Answers, model: str) -> tuple[ConfigFile, ...]:
    retries = "0" if answers["priority"] == "latency" or answers["slo"] == "p99" else "3"
    values = {
        "OPENAI_BASE_URL": ("https://VENDOR/v1", "Whoever speaks OpenAI's protocol; your own server would, too."),
        "OPENAI_API_KEY": ("", "From a secret store, never from a file in the repository."),
        "MODEL": (model, "An open model: the one that you could host yourself is the fair comparison (lab 11)."),
        "TIMEOUT_S": ("60", "A client without a time limit waits for ever."),
        "MAX_RETRIES": (retries, "Each try costs tokens and time; a promised latency leaves no room for them."),
    }
    return (_key_values("client.env", "dotenv", values, "="),)


def _key_values(name: str, language: str, values: Mapping[str, tuple[str, str]], separator: str) -> ConfigFile:
    text = "".join(f"{key}{separator}{value}\n" for key, (value, _) in values.items())
    settings = tuple(Setting(name=key, value=value, why=why) for key, (value, why) in values.items())
    return ConfigFile(name=name, language=language, text=text, settings=settings)


WRITERS: Mapping[str, Callable[[Answers, str], tuple[ConfigFile, ...]]] = {
    "vllm": _vllm,
    "hosted-api": _hosted,
    "vllm-replicas": _replicas,
    "own-ray-serve": _ray_own,
    "vllm-ray-serve": _ray_llm,
    "torchserve": _torchserve,
}


# --- configs ray ---


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
    deployment: dict[str, Any] = {"max_ongoing_requests": 128, **_configs_ray_replicas(answers)}
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


def _configs_ray_replicas(answers: Answers) -> dict[str, Any]:
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
