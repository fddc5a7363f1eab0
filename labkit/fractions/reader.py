"""Values that a person wrote into a file, each checked, with the name of what it belongs to in every message."""

import math
from collections.abc import Mapping
from typing import Any

from labkit.errors import UsageError


class Reader:
    """One mapping of a file. UsageError at once: it is none, or has a key that nobody reads."""

    def __init__(self, values: Any, owner: str, keys: frozenset[str]) -> None:
        if not isinstance(values, Mapping):
            raise UsageError(f"{owner} is a {type(values).__name__}, not keys with values", remedy="write KEY: VALUE")
        if unknown := sorted(str(key) for key in values if key not in keys):
            remedy = f"use {', '.join(sorted(keys))}"
            raise UsageError(f"{owner}: there is no key called {', '.join(unknown)}", remedy=remedy)
        self.values, self.owner = values, owner

    def number(self, key: str, *, above: float | None = None, most: float = math.inf) -> float:
        """A finite number from 0 (or above `above`) to `most`. UsageError where there is none."""
        found = self.number_or_none(key, above=above, most=most)
        if found is None:
            raise UsageError(f"{self.owner} has no {key}", remedy=f"give it: `{key}: NUMBER`")
        return found

    def number_or_none(self, key: str, *, above: float | None = None, most: float = math.inf) -> float | None:
        """The same, or None where the key is missing or empty."""
        value = self.values.get(key)
        if value is None:
            return None
        if not _is_number(value) or value > most or (value < 0 if above is None else value <= above):
            bounds = "from 0" if above is None else f"above {above:g}"
            bounds += f" to {most:g}" if most < math.inf else ""
            raise UsageError(f"{self.owner}: {key} is {value!r}", remedy=f"give a number {bounds}")
        return float(value)

    def whole_or_none(self, key: str, *, most: int = 2**31) -> int | None:
        """A whole number from 1 to `most`, or None where the key is missing or empty."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise UsageError(f"{self.owner}: {key} is {value!r}", remedy=f"give a whole number from 1 to {most}")
        return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
