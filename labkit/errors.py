"""The error tree. Every error that a user can cause or meet is a `LabkitError`.

A message says what happened, with the number, and what to change. Raise with both parts:

    raise UsageError("concurrency is 0; it must be at least 1", remedy="pass --concurrency 1 or more")
"""

import difflib
import math
from collections.abc import Iterable


class LabkitError(Exception):
    """The root. `exit_code`: the command line's exit code for this error."""

    exit_code = 1

    def __init__(self, what: str, *, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}\n  To fix it: {self.remedy}" if self.remedy else self.what


class UsageError(LabkitError):
    """An unknown name, a parameter of the wrong type or outside its range, an unreadable input."""

    exit_code = 2


class ModelError(LabkitError):
    """A model that cannot be fetched, verified, converted or read."""


class ConfigError(ModelError):
    """A config.json that cannot be read, or has sizes or layers that no engine supports."""

    exit_code = 2


class ServerError(LabkitError):
    """A server that did not start, died or did not stop. `log_tail`: the last lines of its log."""

    def __init__(self, what: str, *, remedy: str = "", log_tail: str = "") -> None:
        super().__init__(what, remedy=remedy)
        self.log_tail = log_tail

    def __str__(self) -> str:
        tail = f"\n  The end of its log:\n{self.log_tail}" if self.log_tail else ""
        return super().__str__() + tail


class LoadError(LabkitError):
    """A load run that failed as a whole (failures of single requests are outcomes, not errors)."""


class RecordError(LabkitError):
    """A result record that is corrupt, has another format version, or cannot be written."""

    exit_code = 2


class LabError(LabkitError):
    """A lab that failed while it ran."""


def shortened(text: str, most: int = 80) -> str:
    """Return the text, or its beginning and its length."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


# --- checks of parameters: each raises a UsageError with the value and the remedy ---


def require(condition: bool, what: str, *, fix: str) -> None:
    """Raise a UsageError with `what` is wrong and how to `fix` it, unless `condition` holds."""
    if not condition:
        raise UsageError(what, remedy=fix)


def whole(name: str, value: object, *, at_least: int) -> None:
    """Check that `value` is an int (not a bool) of `at_least` or more."""
    fix = f"pass {name}={at_least} or more"
    is_int = isinstance(value, int) and not isinstance(value, bool)
    require(is_int, f"{name} is {value!r}; it must be a whole number", fix=fix)
    require(value >= at_least, f"{name} is {value}; it must be at least {at_least}", fix=fix)  # type: ignore[operator]


def number(name: str, value: object, *, low: float = 0.0, high: float = math.inf) -> None:
    """Check that `value` is a finite number from `low` to `high`."""
    wanted = f"from {low:g} to {high:g}" if high < math.inf else f"of {low:g} or more"
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    require(
        is_number and low <= value <= high,  # type: ignore[operator]
        f"{name} is {value!r}; it must be a number {wanted}",
        fix=f"pass a {name} {wanted}",
    )


def above_zero(name: str, value: object, *, unit: str) -> None:
    """Check that `value` is a finite number above 0."""
    number(name, value)
    require(value != 0, f"{name} is 0; it must be above 0", fix=f"pass {name} in {unit}, above 0")


def span(name: str, low: int | None, high: int, *, at_least: int) -> None:
    """Check that `high`, and `low` if given, are whole numbers of `at_least` or more, in order."""
    whole(name, high, at_least=at_least)
    if low is not None:
        whole(f"{name}_low", low, at_least=at_least)
        require(low <= high, f"{name}_low is {low}, above {name} of {high}", fix=f"pass {name}_low={high} or less")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a remedy for an unknown name: the closest known name, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"choose one of: {', '.join(names)}"
