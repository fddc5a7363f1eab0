"""Compares an answer with what is right, and says what kind of thing is off without giving it away."""

import math
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

UNITS = {
    8: "bits and bytes",
    1000: "thousands, as between seconds and milliseconds",
    1024: "1,024, as between bytes and KiB",
}


def call(function: Any, context: Mapping[str, Any]) -> Any:
    """Calls a function with the entries of the context that its parameters name; other values are returned as is."""
    if not callable(function):
        return function
    return function(**{name: context[name] for name in signature(function).parameters})


def is_unanswered(answer: Any) -> bool:
    """Whether an answer is still the starter's `None` or `...`."""
    return answer is None or answer is ... or (isinstance(answer, str) and not answer.strip())


def close(given: Any, expected: Any, *, tolerance: float) -> bool:
    """Equal; numbers to a relative tolerance; lists element by element."""
    if _is_number(given) and _is_number(expected):
        return math.isclose(float(given), float(expected), rel_tol=tolerance, abs_tol=1e-12)
    if _is_list(given) and _is_list(expected):
        return len(given) == len(expected) and all(
            close(one, other, tolerance=tolerance) for one, other in zip(given, expected, strict=True)
        )
    return bool(given == expected)


def describe(given: Any, expected: Any, *, unit: str = "") -> str:
    """What kind of thing is off about a wrong answer; never the right answer itself."""
    if _is_list(expected):
        return _describe_list(given, expected, unit=unit)
    if not _is_number(given):
        return f"A number is expected{f', in {unit}' if unit else ''}; this is a {type(given).__name__}."
    if not math.isfinite(given):
        return "The number is not finite: something was divided by zero."
    if given * expected <= 0:
        return "The sign is off, or the answer is zero: check what is subtracted from what."
    return _describe_size(float(given) / float(expected))


def attempt(function: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Any, Exception | None]:
    """A learner's function on one case: its result, or the error that it raised."""
    try:
        return function(*arguments), None
    except Exception as error:  # a learner's function may raise anything, and the lab has to go on
        return None, error


def met_a_blank(error: Exception) -> bool:
    """Whether an error comes from a blank `...` that is still in the code."""
    return "ellipsis" in str(error).lower()


def _describe_list(given: Any, expected: Sequence[Any], *, unit: str) -> str:
    if not _is_list(given):
        return f"A list is expected; this is a {type(given).__name__}."
    if len(given) != len(expected):
        more = "more" if len(given) > len(expected) else "fewer"
        return f"The list has {more} entries than it should: check which ones belong in it."
    wrong = [(one, other) for one, other in zip(given, expected, strict=True) if not close(one, other, tolerance=1e-6)]
    return "The list has the right length. " + describe(*wrong[0], unit=unit)


def _describe_size(ratio: float) -> str:
    way, size = ("too large", ratio) if ratio > 1 else ("too small", 1 / ratio)
    for base, name in UNITS.items():
        if math.isclose(size, base, rel_tol=0.01):
            return f"The number is {way} by a factor that units differ by ({name}): check the unit."
    if size < 1.1:
        return f"Nearly: the number is {way} by less than a tenth."
    return f"The number is {way}, by {'less' if size < 10 else 'more'} than a factor of ten."


def _is_number(value: Any) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, str | bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
