"""Labs and their parameters (`data/labs.yaml`), profiles (`data/profiles`), and which labs run on a machine.

papermill does not check parameters (an unknown name prints a line, a wrong type runs); `check_parameters` does, before
anything starts.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StrictStr, TypeAdapter, model_validator
from pydantic_core import from_json

from labkit.cuda import engine_needs
from labkit.errors import ModelError, UsageError, did_you_mean, require, shortened
from labkit.files import Frozen, data_path, read_named, read_yaml
from labkit.machine import Gpu, Machine, java
from labkit.machine.gpu_share import require_share
from labkit.models import EMBEDDED, architecture

NONE = {"none", "null", ""}


def _not_a_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("true and false are not numbers")
    return value


def _elements(value: object) -> object:
    """Return the elements of a list or tuple, of JSON ("[1, 2]"), of "1,2", or a single value as a list."""
    if not isinstance(value, str):
        return value if isinstance(value, list | tuple) else [value]
    if value.strip().startswith("["):
        return from_json(value)
    return [part.strip() for part in value.split(",") if part.strip()]


Int = Annotated[int, BeforeValidator(_not_a_bool)]
Float = Annotated[float, BeforeValidator(_not_a_bool), Field(allow_inf_nan=False)]
Elements = (BeforeValidator(_elements), Field(min_length=1))
TYPES: Mapping[str, TypeAdapter[Any]] = {
    "int": TypeAdapter(Int),
    "float": TypeAdapter(Float),
    "bool": TypeAdapter(bool),
    "str": TypeAdapter(StrictStr),
    "list[int]": TypeAdapter(Annotated[list[Int], *Elements]),
    "list[float]": TypeAdapter(Annotated[list[Float], *Elements]),
    "list[str]": TypeAdapter(Annotated[list[StrictStr], *Elements]),
}


class Parameter(Frozen):
    """A parameter of a lab. `min` and `max` are inclusive, in `unit`, and apply to every element of a list."""

    type: Literal["int", "float", "bool", "str", "list[int]", "list[float]", "list[str]"]
    help: str
    min: float = -math.inf
    max: float = math.inf
    choices: tuple[str | int | float, ...] = ()
    unit: str = ""
    optional: bool = False

    @model_validator(mode="after")
    def _range_makes_sense(self) -> Self:
        if self.scalar in ("bool", "str") and not self.model_fields_set.isdisjoint({"min", "max"}):
            raise ValueError(f"a {self.type} has no min or max")
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self

    @property
    def scalar(self) -> str:
        """The type of the value, or of a list's elements."""
        return self.type.removeprefix("list[").removesuffix("]")

    def convert(self, value: object) -> Any:
        """Return `value` as the declared type. ValueError: the wrong type, or not allowed."""
        if self.optional and str(value).strip().lower() in NONE:
            return None
        converted = TYPES[self.type].validate_python(value)
        if not all(map(self._allows, converted if isinstance(converted, list) else [converted])):
            raise ValueError("not allowed")
        return converted

    def _allows(self, value: str | float) -> bool:
        if self.choices and value not in self.choices:
            return False
        return isinstance(value, str) or self.min <= value <= self.max

    def describe(self) -> str:
        """Return what is allowed, in words: "an int from 1 to 256 (requests in flight)"."""
        article = "an" if self.type == "int" else "a"
        text = f"{article} {self.type}" if self.type == self.scalar else f"a list of {self.scalar}s"
        if math.isfinite(self.min) and math.isfinite(self.max):
            text += f" from {self.min:g} to {self.max:g}"
        elif math.isfinite(self.min):
            text += f" of at least {self.min:g}"
        elif math.isfinite(self.max):
            text += f" of at most {self.max:g}"
        if self.choices:
            text += f", one of {', '.join(map(str, self.choices))}"
        return f"{text}{f' ({self.unit})' if self.unit else ''}{' or none' if self.optional else ''}"


class Needs(Frozen):
    """A lab's peak needs with the embedded model. `engines`: the number that divide its share of a GPU."""

    engines: int = Field(default=1, ge=1)
    memory_gib: float = Field(default=0, ge=0)
    disk_gib: float = Field(default=0, ge=0)
    java: bool = False
    gpu: bool = False


Factor = int | float | str
Quantity = Factor | tuple[Factor, ...]


class Work(Frozen):
    """A part of a lab's work for vLLM: `starts` of an engine, then a closed loop of requests.

    A quantity is a number, a parameter (of a list, its largest value), or a list of factors. The part is repeated
    `times` times for every combination of values of the list parameters in `each`; within it, these names mean a single
    value. `eager`: the engine neither compiles nor captures CUDA graphs. Open loops: requests arrive at `rate` per
    second, or at `load_share` of the closed loop's rate.
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


class Lab(Frozen):
    """A lab of the course. `minutes`: the batch run's time with the cpu profile on two cores; `host_minutes`: its part
    without engine starts and requests, which `work` lists if step times can be modelled. A batch run skips an
    `optional` lab unless it is named."""

    name: str = Field(pattern=r"^[0-9]{2}[a-z]?_[a-z0-9_]+$")
    title: str
    question: str
    minutes: float = Field(gt=0)
    host_minutes: float = Field(default=0, ge=0)
    work: tuple[Work, ...] = ()
    engine: Literal["none", "vllm", "ray", "torchserve", "all"]
    needs: Needs = Needs()
    claims: tuple[str, ...] = ()
    optional: bool = False
    parameters: dict[str, Parameter]

    @property
    def number(self) -> str:
        """The name's prefix: "05", or "05b"."""
        return self.name.partition("_")[0]

    @property
    def heading(self) -> str:
        """Number and title."""
        return f"{self.number} {self.title}"

    @property
    def notebook(self) -> str:
        """The notebook's file name."""
        return f"{self.name}.ipynb"


def load_labs(path: Path | None = None) -> dict[str, Lab]:
    """Return the labs of `path` (default: data/labs.yaml), in the file's order. UsageError: a wrong entry."""
    return read_named(path or data_path("labs.yaml"), Lab)


LABS: Mapping[str, Lab] = load_labs()


def find_lab(name: str, labs: Mapping[str, Lab] = LABS) -> Lab:
    """Return the lab called `name`, which may be its number ("01", "1") or a unique prefix."""
    if name in labs:
        return labs[name]
    prefix = f"{name:0>2}_" if name.isdigit() else name  # "1" is lab 01, not a prefix of 10
    matches = [lab for key, lab in labs.items() if prefix and key.startswith(prefix)]
    if len(matches) == 1:
        return matches[0]
    raise UsageError(f"there is no lab called {name!r}", remedy=did_you_mean(name, labs))


def check_parameters(lab: Lab | str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with the types that `lab` declares (an int becomes a float, "1,2,4" a list), in declared order.

    Missing names stay missing: the notebook's default applies. UsageError: an unknown name, a wrong type, a number
    outside its range; the message has the value, what is allowed and the remedy.
    """
    lab = find_lab(lab) if isinstance(lab, str) else lab
    for name in values:
        known = lab.parameters
        require(name in known, f"{lab.name} has no parameter {name!r}", fix=did_you_mean(name, known))
    return {
        name: _checked(f"{lab.name}.{name}", parameter, values[name])
        for name, parameter in lab.parameters.items()
        if name in values
    }


def _checked(where: str, parameter: Parameter, value: object) -> object:
    shown = shortened(repr(value))
    try:
        converted = parameter.convert(value)
    except ValueError:  # pydantic's ValidationError is one
        raise UsageError(
            f"{where} is {shown}; it must be {parameter.describe()}", remedy=f"change it ({parameter.help})"
        ) from None
    texts = [text for text in (converted if isinstance(converted, list) else [converted]) if isinstance(text, str)]
    lone = any("\ud800" <= character <= "\udfff" for character in "".join(texts))
    fix = r"leave out bytes that are not UTF-8, and in JSON \ud800 to \udfff, which are halves of a character"
    require(not lone, f"{where} is {shown}; it must be Unicode text", fix=fix)
    return converted


# --- profiles ---

GIB = 2**30
AUTO = "auto"
LARGEST_SHARE = 0.92  # vLLM 0.32's own default
# CUDA contexts take memory after this check and before the engine's: on small cards more than the share's margin.
SHARE_MARGIN, MARGIN_BYTES = 0.02, GIB
SMALLEST_SHARE = 0.05
WEIGHT_BYTES = 2  # a parameter in bfloat16, the dtype in which vLLM loads a 7-8B model
EVERY_LAB = "all"
GPU = "gpu"  # the profile that fits the card
# The profile for cards below this many GiB.
GPU_PROFILES = ((20, "gpu-16"), (38, "gpu-24"), (70, "gpu-48"), (130, "gpu-80"), (math.inf, "gpu-141"))


class Profile(Frozen):
    """Parameters by lab, over those of `base`. `all`: for every lab that has a parameter of that name.

    `weights`: number of parameters by model name, for the memory check.
    """

    name: str
    description: str
    base: str = ""
    all: dict[str, Any] = Field(default_factory=dict)
    labs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    weights: dict[str, int] = Field(default_factory=dict)
    free_share_in: tuple[str, ...] = ()
    """The labs, or "all", for which `auto` was replaced by the share of the GPU that was free."""

    def parameters(self, lab: Lab, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
        """Return checked parameters: the profile's `all` and values for the lab, then those of the overrides."""
        values: dict[str, Any] = {}
        for layer in ({**self.labs, EVERY_LAB: self.all}, overrides or {}):
            shared = layer.get(EVERY_LAB, {}).items()
            values |= {name: value for name, value in shared if name in lab.parameters}
            values |= layer.get(lab.name, {})
        return check_parameters(lab, values)

    def over(self, base: "Profile") -> "Profile":
        """Return a profile with this profile's values, and those of `base` for the rest."""
        names = dict.fromkeys((*base.labs, *self.labs))
        changes = {
            "all": {**base.all, **self.all},
            "labs": {name: {**base.labs.get(name, {}), **self.labs.get(name, {})} for name in names},
            "weights": {**base.weights, **self.weights},
        }
        return self.model_copy(update=changes)

    def sized(self, machine: Machine) -> "Profile":
        """Replace `auto` by the GPU's free share. UsageError: there is no GPU."""
        if not any(AUTO in values.values() for values in (self.all, *self.labs.values())):
            return self
        _require_gpu(self.name, machine)
        share = _free_share(machine.gpus[0])
        layers = {
            lab: {name: share if value == AUTO else value for name, value in values.items()}
            for lab, values in {**self.labs, EVERY_LAB: self.all}.items()
        }
        replaced = [lab for lab, values in {**self.labs, EVERY_LAB: self.all}.items() if AUTO in values.values()]
        changes = {"all": layers.pop(EVERY_LAB), "labs": layers, "free_share_in": tuple(replaced)}
        return self.model_copy(update=changes)

    def has_free_share(self, lab: Lab, name: str) -> bool:
        """Whether the lab's parameter `name` is the share of the GPU that was free when the profile was sized."""
        return (lab.name if name in self.labs.get(lab.name, {}) else EVERY_LAB) in self.free_share_in


def profile_for(machine: Machine) -> str:
    """Return the profile for the machine: by the memory of its first GPU, or "cpu"."""
    if not machine.gpus:
        return "cpu"
    total_gib = machine.gpus[0].memory_total_bytes / GIB
    return next(name for up_to_gib, name in GPU_PROFILES if total_gib < up_to_gib)


def load_profile(name_or_path: str, machine: Machine, labs: Mapping[str, Lab] = LABS) -> Profile:
    """Load "cpu", "gpu" (the profile that fits the card), another of data/profiles, or a YAML file.

    The profile is checked against `labs` and sized to the machine.

    UsageError: an unknown profile, lab or parameter, a value out of range, or a GPU profile on a machine without a GPU
    (with the reason).
    """
    if name_or_path == GPU:
        _require_gpu(GPU, machine)
        name_or_path = profile_for(machine)
    path = _find(name_or_path)
    profile = _read(path).sized(machine)
    _check_names(profile.all, labs, f"{path.name}: all")
    for name in profile.labs:
        require(name in labs, f"{path.name}: there is no lab called {name!r}", fix=did_you_mean(name, labs))
        profile.parameters(labs[name])
    return profile


def parse_overrides(settings: Sequence[str], labs: Mapping[str, Lab] = LABS) -> dict[str, dict[str, str]]:
    """Parse `["01_first_deployment.repeats=3", "all.seed=7"]` by lab (or "all") and name. UsageError: another form."""
    overrides: dict[str, dict[str, str]] = {}
    for setting in settings:
        target, equals, value = setting.partition("=")
        lab_name, dot, name = target.partition(".")
        require(
            all((equals, dot, lab_name, name)),
            f"{shortened(setting)!r} sets no parameter",
            fix="write LAB.NAME=VALUE, such as -p 01_first_deployment.repeats=3",
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
    """Raise a UsageError, with the numbers, if the share is not free on the GPU, or an engine's part of it is too small
    for the weights.

    Nothing is checked without a GPU or a `gpu_memory_share`; models of unknown size are not checked for fit.
    """
    share, model = parameters.get("gpu_memory_share"), parameters.get("model")
    if machine.gpus and share is not None and model is not None:
        count = count_parameters(model, weights)
        weight_bytes = None if count is None else count * WEIGHT_BYTES
        require_share(machine.gpus[0], share, model=model, weight_bytes=weight_bytes, engines=engines)


def count_parameters(model: str, weights: Mapping[str, int]) -> int | None:
    """Count parameters in the model's folder, or take them from the profile or the name ("-7B-"); None if unknown."""
    folder = Path(model).expanduser()
    if model not in EMBEDDED and folder.is_dir():
        try:
            return architecture(folder).parameters
        except ModelError:  # `models.resolve` reports what is wrong with the folder
            return None
    if model in weights:
        return weights[model]
    size = re.search(r"(?:^|[-_/])(\d+(?:\.\d+)?)([BM])(?:$|[-_])", model, flags=re.IGNORECASE)
    return int(float(size[1]) * (1e9 if size[2].upper() == "B" else 1e6)) if size else None


def _find(name_or_path: str) -> Path:
    folder = data_path("profiles")
    for path in (folder / f"{name_or_path}.yaml", Path(name_or_path).expanduser()):
        if path.is_file():
            return path
    known = [file.stem for file in sorted(folder.glob("*.yaml"))]
    raise UsageError(
        f"there is no profile {name_or_path!r}",
        remedy=f"{did_you_mean(name_or_path, known)} (or the path of a YAML file)",
    )


def _read(path: Path) -> Profile:
    profile = read_yaml(path, Profile, remedy="compare it with data/profiles/cpu.yaml")
    return profile.over(_read(_find(profile.base))) if profile.base else profile


def _require_gpu(name: str, machine: Machine) -> None:
    require(
        bool(machine.gpus),
        f"the profile {name!r} needs a GPU and this machine shows none: {machine.gpu_reason}",
        fix="use --profile cpu, or make the GPU visible",
    )


def _free_share(gpu: Gpu) -> float:
    """Return the largest share, in whole hundredths, that vLLM will find free, at least SMALLEST_SHARE."""
    margin = max(SHARE_MARGIN, MARGIN_BYTES / gpu.memory_total_bytes)
    free = gpu.memory_free_bytes / gpu.memory_total_bytes - margin
    return max(SMALLEST_SHARE, min(LARGEST_SHARE, int(free * 100) / 100))


def _check_names(names: Iterable[str], labs: Mapping[str, Lab], where: str) -> None:
    known = list(dict.fromkeys(name for lab in labs.values() for name in lab.parameters))
    for name in names:
        require(name in known, f"{where}: no lab has a parameter {name!r}", fix=did_you_mean(name, known))


# --- readiness ---

INSTALL = "run make setup again: it installs what requirements/ lists"
PACKAGES = {
    "none": (),
    "vllm": ("vllm",),
    "ray": ("ray", "vllm"),
    "torchserve": ("torchserve",),
    "all": ("vllm", "ray", "torchserve"),
}


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """Whether a lab runs on a machine: yes, small (the embedded model on the CPU) or no, with reason and fix."""

    runs: Literal["yes", "small", "no"]
    reason: str = ""
    fix: str = ""


def readiness(lab: Lab | str, machine: Machine, versions: Mapping[str, str]) -> Readiness:
    """Return whether `lab` runs on `machine` with the installed `versions` (see `machine.versions`)."""
    lab = find_lab(lab) if isinstance(lab, str) else lab
    if missing := [package for package in PACKAGES[lab.engine] if package not in versions]:
        return Readiness(runs="no", reason=f"{' and '.join(missing)} not installed", fix=INSTALL)
    if lab.needs.gpu and not machine.gpus:
        return Readiness(runs="no", reason=machine.gpu_reason, fix="run it on a machine with an NVIDIA GPU")
    java_path, java_reason = java()
    if lab.needs.java and java_path is None:
        return Readiness(runs="no", reason=java_reason, fix=INSTALL)
    free_gib, total_gib = machine.memory_available_bytes / GIB, machine.memory_total_bytes / GIB
    if free_gib < lab.needs.memory_gib:
        reason = f"it takes {lab.needs.memory_gib:g} GiB of memory and {free_gib:.1f} of {total_gib:.1f} GiB are free"
        enough = total_gib >= lab.needs.memory_gib
        fix = "close other programs" if enough else "use a machine with more memory"
        return Readiness(runs="no", reason=reason, fix=fix)
    if lab.engine == "none":
        return Readiness(runs="yes")
    if not machine.gpus:
        reason = f"no GPU ({machine.gpu_reason}): the embedded model on {machine.cpus} CPUs"
        return Readiness(runs="small", reason=reason, fix="nothing to do; a GPU shows larger models")
    if unmet := [need for need in engine_needs(machine.gpus) if not need.met]:
        return Readiness(runs="no", reason=unmet[0].found, fix=unmet[0].fix)
    return Readiness(runs="yes")
