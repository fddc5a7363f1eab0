"""The list of labs and what each may be asked: `data/labs.yaml`, read and validated once.

papermill does not check parameters (an unknown name prints a line, a wrong type runs); `check_parameters` does, before
anything starts. It knows nothing of machines, profiles or notebooks.
"""

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from labkit.errors import UsageError
from labkit.paths import data_path

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


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the closest known one, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"choose one of: {', '.join(names)}"


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
