"""Profiles: one file of parameters for a kind of machine, so that the same labs fill two CPU cores or a GPU.

A profile is YAML: `name`, `description`, `all` (for every lab that has the parameter), `labs` (for one lab), `weights`
(parameter counts of models whose size must be known before they are downloaded) and `base` (a profile that it changes).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from labkit.errors import ModelError, UsageError
from labkit.gpu_share import require_share
from labkit.labs import LABS, Lab, Strict, check_parameters, did_you_mean, find_lab
from labkit.machine import Gpu, Machine
from labkit.models import EMBEDDED, architecture
from labkit.paths import data_path

GIB = 2**30
AUTO = "auto"
LARGEST_SHARE = 0.92  # vLLM 0.32's own default
# CUDA's contexts take memory between our look at the GPU and the engine's: on small cards more than the share says.
SHARE_MARGIN, MARGIN_BYTES = 0.02, GIB
SMALLEST_SHARE = 0.05
WEIGHT_BYTES = 2  # a parameter in bfloat16, the dtype in which vLLM loads a 7-8B model
EVERY_LAB = "all"
GPU = "gpu"  # as a profile: the one that fits the card
# Profiles by what a card has in GiB, up to so much.
GPU_PROFILES = ((20, "gpu-16"), (38, "gpu-24"), (70, "gpu-48"), (130, "gpu-80"), (math.inf, "gpu-141"))


class _File(Strict):
    """A profile file as it is written."""

    name: str
    description: str
    base: str = ""
    all: dict[str, Any] = Field(default_factory=dict)
    labs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    weights: dict[str, int] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Parameters by lab. `weights`: number of parameters by model name, for the memory check."""

    name: str
    description: str
    every_lab: Mapping[str, Any]
    by_lab: Mapping[str, Mapping[str, Any]]
    weights: Mapping[str, int] = field(default_factory=dict)

    def parameters(self, lab: Lab, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
        """What `lab` runs with, checked: the profile's `all` and own values, then the overrides' `all` and own."""
        overrides = overrides or {}
        layers = (
            _known_to(lab, self.every_lab),
            self.by_lab.get(lab.name, {}),
            _known_to(lab, overrides.get(EVERY_LAB, {})),
            overrides.get(lab.name, {}),
        )
        return check_parameters(lab, {name: value for layer in layers for name, value in layer.items()})


def profile_for(machine: Machine) -> str:
    """The profile that fits the machine: the one of its first GPU's size, or "cpu"."""
    if not machine.gpus:
        return "cpu"
    total_gib = machine.gpus[0].memory_total_bytes / GIB
    return next(name for up_to_gib, name in GPU_PROFILES if total_gib < up_to_gib)


def load_profile(name_or_path: str, machine: Machine, labs: Mapping[str, Lab] = LABS) -> Profile:
    """The profile "cpu", "gpu" (the one that fits the card), another of data/profiles, or a YAML file.

    It is checked against `labs` and sized to the machine.

    UsageError: no such profile, a lab or parameter that does not exist, a value out of range, or a GPU profile on a
    machine without a GPU (with the reason why it has none).
    """
    if name_or_path == GPU:
        _require_gpu(GPU, machine)
        name_or_path = profile_for(machine)
    path = _find(name_or_path)
    written = _read(path)
    if _asks_for_a_gpu(written):
        _require_gpu(written.name, machine)
    profile = Profile(
        name=written.name,
        description=written.description,
        every_lab=_sized(written.all, machine),
        by_lab={lab: _sized(values, machine) for lab, values in written.labs.items()},
        weights=written.weights,
    )
    _check_names(profile.every_lab, labs, f"{path.name}: all")
    for lab_name in profile.by_lab:
        if lab_name not in labs:
            raise UsageError(f"{path.name}: there is no lab called {lab_name!r}", remedy=did_you_mean(lab_name, labs))
        profile.parameters(labs[lab_name])
    return profile


def parse_overrides(settings: Sequence[str], labs: Mapping[str, Lab] = LABS) -> dict[str, dict[str, str]]:
    """`["01_first_deployment.repeats=3", "all.seed=7"]` by lab (or "all") and name. UsageError for anything else."""
    overrides: dict[str, dict[str, str]] = {}
    for setting in settings:
        target, equals, value = setting.partition("=")
        lab_name, dot, name = target.partition(".")
        if not (equals and dot and lab_name and name):
            raise UsageError(
                f"{setting!r} sets no parameter",
                remedy="write LAB.NAME=VALUE, such as -p 01_first_deployment.repeats=3",
            )
        if lab_name == EVERY_LAB:
            _check_names([name], labs, f"-p {setting}")
        else:
            lab = find_lab(lab_name, labs)
            check_parameters(lab, {name: value})
            lab_name = lab.name
        overrides.setdefault(lab_name, {})[name] = value
    return overrides


def check_gpu_memory(
    parameters: Mapping[str, Any], machine: Machine, weights: Mapping[str, int], *, engines: int = 1
) -> None:
    """UsageError, with the numbers, where the share is not free on the GPU or the weights do not fit into what each of
    `engines` gets of it.

    Nothing is checked without a GPU, without a `gpu_memory_share`, or for a model whose size nobody tells.
    """
    share, model = parameters.get("gpu_memory_share"), parameters.get("model")
    if not machine.gpus or share is None or model is None:
        return
    count = count_parameters(model, weights)
    weight_bytes = None if count is None else count * WEIGHT_BYTES
    require_share(machine.gpus[0], share, model=model, weight_bytes=weight_bytes, engines=engines)


def count_parameters(model: str, weights: Mapping[str, int]) -> int | None:
    """Counted in the folder, told by the profile, or read from the name ("-7B-"); None where nobody tells."""
    folder = Path(model).expanduser()
    if model not in EMBEDDED and folder.is_dir():
        try:
            return architecture(folder).parameters
        except ModelError:  # `models.resolve` says what is wrong with the folder
            return None
    if model in weights:
        return weights[model]
    size = re.search(r"(?:^|[-_/])(\d+(?:\.\d+)?)([BM])(?:$|[-_])", model, flags=re.IGNORECASE)
    return int(float(size[1]) * (1e9 if size[2].upper() == "B" else 1e6)) if size else None


def _known_to(lab: Lab, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in lab.parameters}


def _find(name_or_path: str) -> Path:
    folder = data_path("profiles")
    named = folder / f"{name_or_path}.yaml"
    if named.is_file():
        return named
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    known = [file.stem for file in sorted(folder.glob("*.yaml"))]
    raise UsageError(
        f"there is no profile {name_or_path!r}",
        remedy=f"{did_you_mean(name_or_path, known)} (or the path of a YAML file)",
    )


def _read(path: Path) -> _File:
    """A profile, over its base: what it says itself goes before."""
    written = _read_alone(path)
    if not written.base:
        return written
    base = _read(_find(written.base))
    labs = {name: {**base.labs.get(name, {}), **written.labs.get(name, {})} for name in (*base.labs, *written.labs)}
    return written.model_copy(
        update={"all": {**base.all, **written.all}, "labs": labs, "weights": {**base.weights, **written.weights}}
    )


def _read_alone(path: Path) -> _File:
    try:
        return _File.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError, OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} is not a valid profile: {error}", remedy="compare it with data/profiles/cpu.yaml"
        ) from None


def _asks_for_a_gpu(written: _File) -> bool:
    return any(AUTO in values.values() for values in (written.all, *written.labs.values()))


def _require_gpu(name: str, machine: Machine) -> None:
    if not machine.gpus:
        raise UsageError(
            f"the profile {name!r} needs a GPU and this machine shows none: {machine.gpu_reason}",
            remedy="use --profile cpu, or make the GPU visible",
        )


def _sized(values: Mapping[str, Any], machine: Machine) -> dict[str, Any]:
    """`auto` becomes the share of the GPU that is free now."""
    return {name: _free_share(machine.gpus[0]) if value == AUTO else value for name, value in values.items()}


def _free_share(gpu: Gpu) -> float:
    """The largest share, in whole hundredths, that vLLM would still find free (never below the smallest allowed)."""
    margin = max(SHARE_MARGIN, MARGIN_BYTES / gpu.memory_total_bytes)
    free = gpu.memory_free_bytes / gpu.memory_total_bytes - margin
    return max(SMALLEST_SHARE, min(LARGEST_SHARE, int(free * 100) / 100))


def _check_names(names: Sequence[str] | Mapping[str, Any], labs: Mapping[str, Lab], where: str) -> None:
    known = list(dict.fromkeys(name for lab in labs.values() for name in lab.parameters))
    for name in names:
        if name not in known:
            raise UsageError(f"{where}: no lab has a parameter {name!r}", remedy=did_you_mean(name, known))
