"""The configuration for what was chosen, each setting explained. Rendered from `data/selector/configs/`, never run.

The engines' own readers check all files in tests/engine/test_selector_configs.py.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import Field

from labkit.advice.selector.answers import check_model
from labkit.files import Frozen, data_path, parse_yaml

T = TypeVar("T")
GPU_MODEL, CPU_MODEL = "Qwen/Qwen2.5-7B-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"


class Setting(Frozen):
    """One setting of a file: its name and value as written there, and why."""

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
    served = check_model(model) or (CPU_MODEL if answers["hardware"] == "cpu" else GPU_MODEL)
    files = _render(stack, tuple[ConfigFile, ...], answers, model=served, engine=engine_settings(answers))
    return tuple(file.model_copy(update={"text": file.text or _lines(file)}) for file in files)


def _lines(file: ConfigFile) -> str:
    return "".join(f"{setting.name}{file.separator}{setting.value}\n" for setting in file.settings)


def engine_settings(answers: Mapping[str, str]) -> tuple[Setting, ...]:
    """What a vLLM engine is started with, as command-line flags without their dashes."""
    return _render("engine", tuple[Setting, ...], answers)


def _render(template: str, kind: type[T], answers: Mapping[str, str], **values: Any) -> T:
    name = f"{template}.yaml.j2"
    text = _templates().get_template(name).render(**answers, **_facts(answers), **values)
    return parse_yaml(text, kind, where=name)


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(data_path("selector/configs")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["yaml"] = lambda text: yaml.safe_dump(text).removesuffix("\n...\n").strip()
    return environment


def _facts(answers: Mapping[str, str]) -> dict[str, Any]:
    """What follows from several answers and more than one template asks for."""
    one_gpu, kind = answers["hardware"] == "one", answers["kind"]
    shared_gpu = answers["gpu"] == "shared" or (one_gpu and answers["models"] != "one")
    engine_has_the_gpu = one_gpu and kind != "other" and not shared_gpu
    return {
        "shared_gpu": shared_gpu,
        "several_gpus": answers["hardware"] in ("several", "cluster"),
        "short_gaps": answers["priority"] == "latency" or answers["slo"] == "p99",
        "other_models": answers["pattern"] == "pipeline" or kind == "both",
        "own_models_on_gpu": answers["hardware"] != "cpu" and not engine_has_the_gpu,
        "own_num_gpus": 0.25 if shared_gpu else 1,
    }
