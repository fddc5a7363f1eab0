"""What a record may hold: plain JSON values, so that what is read back is what was written, bit by bit."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from labkit.errors import UsageError
from labkit.records.files import position


def plain(value: Any, *steps: str | int) -> JsonValue:
    """`value` as JSON holds it: tuples become lists; numpy's scalars and arrays, and enums, become plain.

    `steps` say where the value stands, for the message.

    Raises:
        UsageError: NaN, infinity, a key that is not text, or a type that JSON lacks, with its position.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # a StrEnum's text, not its subclass
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _finite(float(value), *steps)
    if isinstance(value, Mapping):
        return {_key(key, *steps): plain(item, *steps, key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, *steps, index) for index, item in enumerate(value)]
    if type(value).__module__ == "numpy":
        return plain(value.tolist(), *steps)
    raise UsageError(
        f"{position(*steps)} is of type {type(value).__name__}, which JSON does not have",
        remedy="record text, numbers, true or false, None, lists or dicts: str(path), sorted(set), asdict(dataclass)",
    )


def _finite(value: float, *steps: str | int) -> float:
    if not math.isfinite(value):
        raise UsageError(
            f"{position(*steps)} is {value}, which JSON does not have",
            remedy="record None for what was not measured, and look at what made the number so",
        )
    return value


def _key(key: Any, *steps: str | int) -> str:
    if not isinstance(key, str):
        raise UsageError(f"{position(*steps)} has the key {key!r}; JSON's keys are text", remedy="use str(key)")
    return str.__str__(key)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One place where two records differ. `only_in`: "a" or "b" where the other has nothing there."""

    lab: str
    path: str
    a: JsonValue
    b: JsonValue
    only_in: str | None = None


def differences(lab: str, a: JsonValue, b: JsonValue, *steps: str | int) -> Iterator[Difference]:
    """Every place where two JSON values are not the same to the last bit: 1, 1.0 and true are three values."""
    if isinstance(a, dict) and isinstance(b, dict):
        yield from _dict_differences(lab, a, b, *steps)
    elif isinstance(a, list) and isinstance(b, list):
        yield from _list_differences(lab, a, b, *steps)
    elif type(a) is not type(b) or _bits(a) != _bits(b):
        yield Difference(lab=lab, path=position(*steps), a=a, b=b)


def _dict_differences(
    lab: str, a: dict[str, JsonValue], b: dict[str, JsonValue], *steps: str | int
) -> Iterator[Difference]:
    for key in sorted(a.keys() | b.keys()):
        if key in a and key in b:
            yield from differences(lab, a[key], b[key], *steps, key)
        else:
            only_in = "a" if key in a else "b"
            yield Difference(lab=lab, path=position(*steps, key), a=a.get(key), b=b.get(key), only_in=only_in)


def _list_differences(lab: str, a: list[JsonValue], b: list[JsonValue], *steps: str | int) -> Iterator[Difference]:
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        yield from differences(lab, left, right, *steps, index)
    only_in, longer = ("a", a) if len(a) > len(b) else ("b", b)
    for index in range(min(len(a), len(b)), len(longer)):
        left, right = (longer[index], None) if only_in == "a" else (None, longer[index])
        yield Difference(lab=lab, path=position(*steps, index), a=left, b=right, only_in=only_in)


def _bits(value: JsonValue) -> JsonValue:
    return value.hex() if isinstance(value, float) else value  # tells 0.0 from -0.0
