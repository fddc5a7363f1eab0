"""The configuration for what was chosen, each setting explained. Rendered from `data/selector/configs/`, never run.

The engines' own readers check all files in tests/engine/test_selector_configs.py; test_selector_starts.py starts them.
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
"""A model to begin with, by size."""


class Setting(Frozen):
    name: str
    value: str
    why: str


class ConfigFile(Frozen):
    """A file or a command, with its settings explained. `language`: the one it is written in.

    `separator`: of name and value, in a template whose text is its settings alone, one a line.
    """

    name: str
    language: str
    text: str = ""
    settings: tuple[Setting, ...]
    separator: str = Field(default="", exclude=True)


def configure(stack: str, answers: Mapping[str, str], *, model: str | None = None) -> tuple[ConfigFile, ...]:
    """The files for a stack and complete answers. `model`: what is served (default: one that suits the hardware).

    UsageError for a model's name that could not be written into a command.
    """
    served = check_model(model) or _suitable_model(answers)
    values = {"model": served, "engine": engine_settings(answers), "second": _second(answers)}
    files = _render(stack, tuple[ConfigFile, ...], answers, gguf=_gguf(model, answers), **values)
    return tuple(file.model_copy(update={"text": file.text or _lines(file)}) for file in files)


def proof(stack: str) -> str:
    """What this course has tried of a stack's configuration: started, read by the engine's own parser, or neither."""
    if needs := catalogue().stacks[stack].needs:
        return f"Not started by this course, which would need {needs}: read it before you use it."
    return (
        "Started by this course's tests on two CPUs with a small model; what a GPU or other answers add was only "
        "checked against the engine's own parser."
    )


def _lines(file: ConfigFile) -> str:
    return "".join(f"{setting.name}{file.separator}{setting.value}\n" for setting in file.settings)


def engine_settings(answers: Mapping[str, str]) -> tuple[Setting, ...]:
    """What a vLLM engine is started with, as command-line flags without their dashes."""
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


def _suitable_model(answers: Mapping[str, str]) -> str:
    special = {"pooling": EMBEDDING_MODEL, "speech": SPEECH_MODEL}.get(answers["kind"])
    return special or (CPU_MODEL if answers["hardware"] in NO_GPU else GPU_MODELS[answers["size"]])


def _gguf(model: str | None, answers: Mapping[str, str]) -> str:
    """A repository with weights in llama.cpp's format. Qwen publishes its own."""
    if answers["kind"] == "pooling":
        return model or f"{EMBEDDING_MODEL}-GGUF:Q8_0"
    small = {"4b": "4B", "9b": "8B", "15b": "14B"}.get(answers["size"], "32B")
    return model or f"Qwen/Qwen3-{small}-GGUF:Q5_K_M"


def _second(answers: Mapping[str, str]) -> dict[str, Any] | None:
    """The second server: embeddings beside chat, or one more model."""
    if answers["kind"] in ("rag", "both"):
        gpu = "shared" if _shared_gpu(answers) else "dedicated"
        engine = engine_settings({**answers, "kind": "pooling", "size": "4b", "gpu": gpu})
        why = "Embeddings have their own path, so nginx need not read the request. Add /rerank and /v1/audio likewise."
        place = {"name": "embeddings", "location": "/v1/embeddings"}
        return {"model": EMBEDDING_MODEL, "engine": engine, "why": why, **place}
    if answers["models"] == "one":
        return None
    why = "The second model's base address is http://HOST/model-2/v1; a gateway that reads the model's name hides it."
    engine = engine_settings(answers)
    return {"model": "ANOTHER/MODEL", "name": "model-2", "engine": engine, "location": "/model-2/", "why": why}


def _facts(answers: Mapping[str, str]) -> dict[str, Any]:
    """What follows from several answers and more than one template asks for."""
    hardware, kind, cards = answers["hardware"], answers["kind"], cards_needed(answers)
    one_gpu, shared_gpu = hardware == "one", _shared_gpu(answers)
    several_gpus = hardware in ("several", "cluster")
    tensor_parallel = min(cards, PER_MACHINE) if several_gpus else 1
    other_models = answers["pattern"] == "pipeline" or kind == "both"
    share = 0.12 if kind == "pooling" else 0.8 if kind == "rag" and not other_models else 0.45
    many = answers["slo"] == "p99" or answers["rate"] == "high" or hardware == "cluster"
    return {
        "cards": cards,
        "context_tokens": 1024 * number(answers["context"]),
        "generates": kind in ("llm", "rag", "both"),
        "gpus_of_first": _numbers(0, tensor_parallel),
        "gpus_of_second": _numbers(
            0 if shared_gpu else tensor_parallel, 1 if kind in ("rag", "both") else tensor_parallel
        ),
        "has_gpu": hardware not in NO_GPU,
        "machines": max(1, cards // PER_MACHINE) if hardware == "cluster" else 1,
        "other_models": other_models,
        "own_models_on_gpu": hardware not in NO_GPU and not (one_gpu and kind != "other" and not shared_gpu),
        "own_num_gpus": 0.25 if shared_gpu else 1,
        "replicas": 2 if many and answers["traffic"] != "rare" else 1,
        "several_gpus": several_gpus,
        "shared_gpu": shared_gpu,
        "share": share,
        "short_gaps": answers["priority"] == "latency" or answers["slo"] == "p99",
        "tensor_parallel": tensor_parallel,
    }


def _shared_gpu(answers: Mapping[str, str]) -> bool:
    several = answers["models"] != "one" or answers["kind"] in ("rag", "both")
    return answers["gpu"] == "shared" or (answers["hardware"] == "one" and several)


def _numbers(first: int, count: int) -> str:
    return ",".join(str(number) for number in range(first, first + count))
