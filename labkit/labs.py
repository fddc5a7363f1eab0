"""The list of labs and what each may be asked: `data/labs.yaml`, read and validated once.

papermill does not check parameters (an unknown name prints a line, a wrong type runs); `check_parameters` does, before
anything starts. It knows nothing of machines, profiles or notebooks.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from labkit.cuda import engine_needs
from labkit.errors import ModelError, UsageError, did_you_mean
from labkit.files import data_path
from labkit.machine import Gpu, Machine, java
from labkit.machine.gpu_share import require_share
from labkit.models import EMBEDDED, architecture

Scalar = Literal["int", "float", "bool", "str"]
FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
TRUE, FALSE, NONE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}, {"none", "null", ""}


class Strict(BaseModel):
    """A frozen model that refuses fields it does not know: a misspelt key in a data file must not pass."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Parameter(Strict):
    """One parameter of a lab. `min` and `max` are inclusive, in `unit`, and hold for every element of a list."""

    type: Literal["int", "float", "bool", "str", "list[int]", "list[float]", "list[str]"]
    help: str
    min: float | None = None
    max: float | None = None
    choices: tuple[str | int | float, ...] = ()
    unit: str = ""
    optional: bool = False

    @model_validator(mode="after")
    def _range_makes_sense(self) -> "Parameter":
        if self.scalar in ("bool", "str") and (self.min is not None or self.max is not None):
            raise ValueError(f"a {self.type} has no min or max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self

    @property
    def is_list(self) -> bool:
        """Whether the value is a list."""
        return self.type.startswith("list[")

    @property
    def scalar(self) -> Scalar:
        """The type of the value, or of a list's elements."""
        return self.type.removeprefix("list[").removesuffix("]")  # type: ignore[return-value]  # the Literal's own parts

    def describe(self) -> str:
        """What is allowed, in words: "an int from 1 to 256 (requests in flight)"."""
        kind = f"a list of {self.scalar}s" if self.is_list else f"{'an' if self.type == 'int' else 'a'} {self.type}"
        low, high = (None if bound is None else f"{bound:g}" for bound in (self.min, self.max))
        span = {
            (True, True): f" from {low} to {high}",
            (True, False): f" of at least {low}",
            (False, True): f" of at most {high}",
        }.get((low is not None, high is not None), "")
        choices = f", one of {', '.join(map(str, self.choices))}" if self.choices else ""
        return f"{kind}{span}{choices}{f' ({self.unit})' if self.unit else ''}{' or none' if self.optional else ''}"


class Needs(Strict):
    """What a lab takes at its fullest on the embedded model. `engines`: those that part its share of a GPU."""

    engines: int = Field(default=1, ge=1)
    memory_gib: float = Field(default=0, ge=0)
    disk_gib: float = Field(default=0, ge=0)
    java: bool = False
    gpu: bool = False


Factor = int | float | str
Quantity = Factor | tuple[Factor, ...]


class Work(Strict):
    """A part of what a lab asks of vLLM: `starts` of an engine, then a closed loop of requests.

    A quantity is a number, a parameter (of a list its largest value), or a list of factors. The part is done `times`
    over, for every combination of the values of the lists in `each`; inside it these names mean one value. `eager`: the
    engine neither compiles nor captures CUDA graphs. Open loops: requests arrive at `rate` per second, or at
    `load_share` of the closed loop's rate.
    """

    each: tuple[str, ...] = ()
    times: Quantity = 1
    starts: Quantity = 0
    eager: bool = False
    requests: Quantity = 0
    input_tokens: Quantity = 1
    output_tokens: Quantity = 1
    concurrency: Quantity = 1
    load_share: Quantity = 1
    rate: Quantity = math.inf


class Lab(Strict):
    """One lab of the course. `minutes` is the batch run's time with the cpu profile on two cores; `host_minutes` the
    part of it without engine starts and requests, which `work` lists where step times can be modelled."""

    name: str = Field(pattern=r"^[0-9]{2}_[a-z0-9_]+$")
    title: str
    question: str
    minutes: float = Field(gt=0)
    host_minutes: float = Field(default=0, ge=0)
    work: tuple[Work, ...] = ()
    engine: Literal["none", "vllm", "ray", "torchserve", "all"]
    needs: Needs = Needs()
    claims: tuple[str, ...] = ()
    parameters: dict[str, Parameter]

    @property
    def notebook(self) -> str:
        """The notebook's file name."""
        return f"{self.name}.ipynb"


def load_labs(path: Path | None = None) -> dict[str, Lab]:
    """The labs of `path` (default: data/labs.yaml), in the file's order. UsageError names the entry that is wrong."""
    path = path or data_path("labs.yaml")
    try:
        entries: Mapping[str, Mapping[str, Any]] = yaml.load(path.read_text(encoding="utf-8"), Loader=FAST_LOADER) or {}
        return {name: Lab(name=name, **entry) for name, entry in entries.items()}
    except (yaml.YAMLError, ValidationError, TypeError, AttributeError, OSError) as error:
        raise UsageError(
            f"{path} is not a valid list of labs: {error}", remedy="correct the entry named above"
        ) from None


LABS: Mapping[str, Lab] = load_labs()


def find_lab(name: str, labs: Mapping[str, Lab] = LABS) -> Lab:
    """The lab called `name`; its number alone ("01", "1") or a unique beginning will do."""
    if name in labs:
        return labs[name]
    beginning = f"{name:0>2}_" if name.isdigit() else name  # "1" is lab 01, and not the beginning of 10
    found = [lab for key, lab in labs.items() if beginning and key.startswith(beginning)]
    if len(found) == 1:
        return found[0]
    raise UsageError(f"there is no lab called {name!r}", remedy=did_you_mean(name, labs))


def check_parameters(lab: Lab | str, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the types that `lab` declares (an int becomes a float, "1,2,4" a list), in the declared order.

    Names that are missing stay missing: the notebook's own default holds. UsageError: an unknown name, a wrong type, a
    number outside its range; the message has the value, what is allowed and the remedy.
    """
    lab = find_lab(lab) if isinstance(lab, str) else lab
    for name in values:
        if name not in lab.parameters:
            raise UsageError(f"{lab.name} has no parameter {name!r}", remedy=did_you_mean(name, lab.parameters))
    return {
        name: _checked(f"{lab.name}.{name}", parameter, values[name])
        for name, parameter in lab.parameters.items()
        if name in values
    }


def _checked(where: str, parameter: Parameter, value: object) -> object:
    if value is None or (parameter.optional and isinstance(value, str) and value.strip().lower() in NONE):
        if parameter.optional:
            return None
        raise _refused(where, value, parameter)
    if not parameter.is_list:
        return _in_range(where, parameter, _scalar(where, parameter, value), value)
    elements = _elements(value)
    if not elements:
        raise _refused(where, value, parameter)
    return [_in_range(where, parameter, _scalar(where, parameter, element), value) for element in elements]


def _elements(value: object) -> list[object]:
    """A list's elements: of a list or tuple, of JSON ("[1, 2]"), of "1,2", or the single value itself."""
    if isinstance(value, list | tuple):
        return list(value)
    if not isinstance(value, str):
        return [value]
    if value.strip().startswith("["):
        try:
            return list(json.loads(value))
        except json.JSONDecodeError:
            return []
    return [part.strip() for part in value.split(",") if part.strip()]


def _scalar(where: str, parameter: Parameter, value: object) -> str | int | float | bool:
    converted = _CONVERT[parameter.scalar](value)
    if converted is None:
        raise _refused(where, value, parameter)
    return converted


def _int(value: object) -> int | None:
    if isinstance(value, int):
        return None if isinstance(value, bool) else value
    if isinstance(value, str) and value.strip().lstrip("+-").isdecimal():
        return int(value)
    number = _float(value)
    return int(number) if number is not None and number.is_integer() else None


def _float(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _bool(value: object) -> bool | None:
    word = str(value).strip().lower()
    return None if not isinstance(value, bool | str) else True if word in TRUE else False if word in FALSE else None


def _str(value: object) -> str | None:
    return value if isinstance(value, str) else None


_CONVERT = {"int": _int, "float": _float, "bool": _bool, "str": _str}


def _in_range(
    where: str, parameter: Parameter, value: str | int | float | bool, given: object
) -> str | int | float | bool:
    if parameter.choices and value not in parameter.choices:
        raise _refused(where, given, parameter)
    if isinstance(value, str | bool):
        return value
    low = -math.inf if parameter.min is None else parameter.min
    high = math.inf if parameter.max is None else parameter.max
    if not math.isfinite(value) or not low <= value <= high:
        raise _refused(where, given, parameter)
    return value


def _refused(where: str, value: object, parameter: Parameter) -> UsageError:
    return UsageError(
        f"{where} is {value!r}; it must be {parameter.describe()}",
        remedy=f"give it such a value ({parameter.help})",
    )


# --- profiles ---


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


INSTALL = "run make again: it installs what requirements/ lists"


PACKAGES = {
    "none": (),
    "vllm": ("vllm",),
    "ray": ("ray", "vllm"),
    "torchserve": ("torchserve",),
    "all": ("vllm", "ray", "torchserve"),
}


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """Whether a lab runs on a machine: yes, small (the embedded model on the CPU) or no; why, and the fix."""

    runs: Literal["yes", "small", "no"]
    reason: str = ""
    fix: str = ""


def readiness(lab: Lab | str, machine: Machine, versions: Mapping[str, str]) -> Readiness:
    """What `lab` can do on `machine` with the installed `versions` (as `machine.versions()` tells them)."""
    lab = find_lab(lab) if isinstance(lab, str) else lab
    missing = [package for package in PACKAGES[lab.engine] if package not in versions]
    if missing:
        return Readiness(runs="no", reason=f"{' and '.join(missing)} not installed", fix=INSTALL)
    if lab.needs.gpu and not machine.gpus:
        return Readiness(runs="no", reason=machine.gpu_reason, fix="run it on a machine with an NVIDIA GPU")
    if lab.needs.java and java()[0] is None:
        return Readiness(runs="no", reason=java()[1], fix=INSTALL)
    if machine.memory_available_bytes < lab.needs.memory_gib * GIB:
        return _too_little_memory(lab, machine)
    if lab.engine != "none" and not machine.gpus:
        reason = f"no GPU ({machine.gpu_reason}): the embedded model on {machine.cpus} CPUs"
        return Readiness(runs="small", reason=reason, fix="nothing to do; a GPU shows larger models")
    need = next((need for need in engine_needs(machine.gpus) if not need.met), None) if machine.gpus else None
    if need is not None and lab.engine != "none":
        return Readiness(runs="no", reason=need.found, fix=need.fix)
    return Readiness(runs="yes")


def _too_little_memory(lab: Lab, machine: Machine) -> Readiness:
    free, total = machine.memory_available_bytes / GIB, machine.memory_total_bytes / GIB
    return Readiness(
        runs="no",
        reason=f"it takes {lab.needs.memory_gib:g} GiB of memory and {free:.1f} of {total:.1f} GiB are free",
        fix="close what else uses memory" if total >= lab.needs.memory_gib else "use a machine with more memory",
    )
