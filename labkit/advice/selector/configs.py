"""Render the configuration of a stack from `data/selector/configs/`, with every setting explained.

tests/engine/test_selector_configs.py checks all files with the engines' parsers; test_selector_starts.py starts them.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import Field

from labkit.advice.selector.answers import check_model
from labkit.advice.selector.catalogue import catalogue
from labkit.advice.selector.fit import NO_GPU, PER_MACHINE, cards_needed, number
from labkit.files import Frozen, data_path, parse_yaml

T = TypeVar("T")
CPU_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
EMBEDDING_MODEL, SPEECH_MODEL = "Qwen/Qwen3-Embedding-0.6B", "openai/whisper-large-v3"
GPU_MODELS = {
    "4b": "Qwen/Qwen3-4B-Instruct-2507",
    "9b": "Qwen/Qwen3-8B",
    "15b": "Qwen/Qwen3-14B",
    "34b": "Qwen/Qwen3-32B",
    "80b": "Qwen/Qwen2.5-72B-Instruct",
    "250b": "Qwen/Qwen3-235B-A22B-Instruct-2507",
    "700b": "deepseek-ai/DeepSeek-V3.1",
}
LONG_MODELS = {
    "9b": "mistralai/Ministral-3-8B-Instruct-2512",
    "15b": "mistralai/Ministral-3-14B-Instruct-2512",
    "34b": "Qwen/Qwen3-30B-A3B-Instruct-2507",
    "80b": "Qwen/Qwen3-Next-80B-A3B-Instruct",
}
"""A suitable model for each size, and for requests of 128k tokens if it accepts fewer."""
HOSTED = ("hosted-api", "managed-endpoint")
"""Stacks that compute elsewhere, whatever hardware is here."""


class Setting(Frozen):
    name: str
    value: str
    why: str


class ConfigFile(Frozen):
    """A file or a command in a `language`, with its settings explained.

    `separator`: between name and value, for a file that is a list of its settings.
    """

    name: str
    language: str
    text: str = ""
    settings: tuple[Setting, ...]
    separator: str = Field(default="", exclude=True)


def configure(stack: str, answers: Mapping[str, str], *, model: str | None = None) -> tuple[ConfigFile, ...]:
    """Return the files for a stack and complete answers. `model`: the model to serve (default: a suitable one).

    UsageError: a model name that needs quoting in a command.
    """
    served = check_model(model) or _suitable_model(stack, answers)
    values = {"model": served, "own_model": bool(model), "engine": engine_settings(answers), "second": _second(answers)}
    files = _render(stack, tuple[ConfigFile, ...], answers, gguf=_gguf(model, answers), **values)
    listed = ("".join(f"{entry.name}{file.separator}{entry.value}\n" for entry in file.settings) for file in files)
    return tuple(file.model_copy(update={"text": file.text or text}) for file, text in zip(files, listed, strict=True))


def proof(stack: str) -> str:
    """Return how this course has tested a stack's configuration."""
    if needs := catalogue().stacks[stack].needs:
        return f"Not started by this course, which would need {needs}: read it before you use it."
    return (
        "Started by this course's tests on two CPUs with a small model; what a GPU or other answers add was only "
        "checked against the engine's own parser."
    )


def engine_settings(answers: Mapping[str, str]) -> tuple[Setting, ...]:
    """Return the settings of a vLLM engine as command-line flags without dashes."""
    return _render("engine", tuple[Setting, ...], answers)


def _render(template: str, kind: type[T], answers: Mapping[str, str], **values: Any) -> T:
    name = f"{template}.yaml.j2"
    text = _templates().get_template(name).render(**answers, **_facts(answers), **values)
    return parse_yaml(text if text.strip() else "[]", kind, where=name)


@cache
def _templates() -> Environment:
    loader = FileSystemLoader(data_path("selector/configs"))
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["yaml"] = lambda text: yaml.safe_dump(text, width=1000).removesuffix("\n...\n").strip()
    return environment


def _suitable_model(stack: str, answers: Mapping[str, str]) -> str:
    special = {"pooling": EMBEDDING_MODEL, "speech": SPEECH_MODEL, "other": "YOUR/MODEL"}
    if name := special.get(answers["kind"]):
        return name
    size, is_long = answers["size"], answers["context"] == "128k"
    if answers["hardware"] in NO_GPU and stack not in HOSTED:
        return GPU_MODELS["4b"] if is_long else CPU_MODEL
    if answers["hardware"] == "one" and stack not in HOSTED:
        sizes = list(GPU_MODELS)[: list(GPU_MODELS).index(size) + 1]
        fitting = [option for option in sizes if cards_needed({**answers, "size": option}) == 1]
        if not fitting:
            return CPU_MODEL
        size = fitting[-1]
    return LONG_MODELS.get(size, GPU_MODELS[size]) if is_long else GPU_MODELS[size]


def _gguf(model: str | None, answers: Mapping[str, str]) -> str:
    """Return a repository with weights in llama.cpp's format. Qwen publishes its own."""
    if answers["kind"] == "pooling":
        return model or f"{EMBEDDING_MODEL}-GGUF:Q8_0"
    small = {"4b": "4B", "9b": "8B", "15b": "14B"}.get(answers["size"], "32B")
    return model or f"Qwen/Qwen3-{small}-GGUF:Q5_K_M"


def _second(answers: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the second server: embeddings beside chat, or another model."""
    if answers["kind"] in ("rag", "both"):
        gpu = "shared" if _shared_gpu(answers) else "dedicated"
        engine = engine_settings({**answers, "kind": "pooling", "size": "4b", "gpu": gpu})
        why = "Embeddings have their own path, so nginx need not read the request. Add /rerank and /v1/audio likewise."
        return {
            "model": EMBEDDING_MODEL,
            "engine": engine,
            "why": why,
            "name": "embeddings",
            "location": "/v1/embeddings",
        }
    if answers["models"] == "one":
        return None
    why = "The second model's base address is http://HOST/model-2/v1; a gateway that reads the model's name hides it."
    engine = engine_settings(answers)
    return {"model": "ANOTHER/MODEL", "name": "model-2", "engine": engine, "location": "/model-2/", "why": why}


def _facts(answers: Mapping[str, str]) -> dict[str, Any]:
    """Return values for the templates that follow from several answers."""
    hardware, kind, cards = answers["hardware"], answers["kind"], cards_needed(answers)
    has_gpu, shared_gpu = hardware not in NO_GPU, _shared_gpu(answers)
    several_gpus = hardware in ("several", "cluster")
    tensor_parallel = min(cards, PER_MACHINE) if several_gpus else 1
    second_gpus = 1 if kind in ("rag", "both") else tensor_parallel
    other_models = answers["pattern"] == "pipeline" or kind == "both"
    many = answers["slo"] == "p99" or answers["rate"] == "high" or hardware == "cluster"
    return {
        "cards": cards,
        "context_tokens": 1024 * number(answers["context"]),
        "generates": kind in ("llm", "rag", "both"),
        "gpus_of_first": _numbers(0, tensor_parallel),
        "gpus_of_second": _numbers(0 if shared_gpu else tensor_parallel, second_gpus),
        "has_gpu": has_gpu,
        "machines": max(1, cards // PER_MACHINE) if hardware == "cluster" else 1,
        "other_models": other_models,
        "own_models_on_gpu": has_gpu and (hardware != "one" or kind == "other" or shared_gpu),
        "own_num_gpus": 0.25 if shared_gpu else 1,
        "replicas": 2 if many and answers["traffic"] != "rare" and (several_gpus or not has_gpu) else 1,
        "several_gpus": several_gpus,
        "shared_gpu": shared_gpu,
        "share": 0.12 if kind == "pooling" else 0.8 if kind == "rag" and not other_models else 0.45,
        "short_gaps": answers["priority"] == "latency" or answers["slo"] == "p99",
        "tensor_parallel": tensor_parallel,
    }


def _shared_gpu(answers: Mapping[str, str]) -> bool:
    several = answers["models"] != "one" or answers["kind"] in ("rag", "both")
    return answers["gpu"] == "shared" or (answers["hardware"] == "one" and several)


def _numbers(first: int, count: int) -> str:
    return ",".join(map(str, range(first, first + count)))
