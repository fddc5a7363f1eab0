"""Checks of parameters: each raises a UsageError with the value and the remedy."""

import math

from labkit.errors import UsageError


def whole(name: str, value: object, *, at_least: int) -> None:
    """`value` is an int (no bool) of `at_least` or more."""
    remedy = f"pass {name}={at_least} or more"
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f"{name} is {value!r}; it must be a whole number", remedy=remedy)
    if value < at_least:
        raise UsageError(f"{name} is {value}; it must be at least {at_least}", remedy=remedy)


def number(name: str, value: object, *, low: float = 0.0, high: float = math.inf) -> None:
    """`value` is a finite number from `low` to `high`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:  # type: ignore[arg-type, operator]
        wanted = f"from {low:g} to {high:g}" if high < math.inf else f"of {low:g} or more"
        raise UsageError(f"{name} is {value!r}; it must be a number {wanted}", remedy=f"pass a {name} {wanted}")


def above_zero(name: str, value: object, *, unit: str) -> None:
    """`value` is a finite number above 0."""
    number(name, value)
    if value == 0:
        raise UsageError(f"{name} is 0; it must be above 0", remedy=f"pass {name} in {unit}, above 0")


def span(name: str, low: int | None, high: int, *, at_least: int) -> None:
    """`high`, and `low` where given, are whole numbers of `at_least` or more, in order."""
    whole(name, high, at_least=at_least)
    if low is None:
        return
    whole(f"{name}_low", low, at_least=at_least)
    if low > high:
        raise UsageError(f"{name}_low is {low}, above {name} of {high}", remedy=f"pass {name}_low={high} or less")
