"""Numbers as people read them: three significant digits, the unit beside the number, a factor in words."""

import math
import re

from labkit.errors import UsageError, shortened


def number(value: float, *, digits: int = 3) -> str:
    """Integers exactly, other numbers to `digits` significant digits; thousands are separated by commas."""
    if isinstance(value, int) or not math.isfinite(value):
        return f"{value:,}"
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    text = f"{rounded:,.{max(decimals, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def amount(value: float, unit: str | None) -> str:
    """The number with its unit; seconds below a tenth are given in milliseconds."""
    if unit == "s" and 0 < abs(value) < 0.1:
        return f"{number(value * 1000)} ms"
    if not unit:
        return number(value)
    joint = "" if unit in {"%", "x"} else " "
    return f"{number(value)}{joint}{unit}"


def span(low: float, high: float, unit: str | None) -> str:
    """An interval, both ends in the unit that suits the upper one."""
    if unit == "s" and 0 < abs(high) < 0.1:
        return f"{number(low * 1000)} to {number(high * 1000)} ms"
    return f"{number(low)} to {amount(high, unit)}"


def share(value: float) -> str:
    """A share between 0 and 1 as a whole percentage."""
    return f"{100 * value:.0f}%"


def factor_between(a: float, b: float) -> float | None:
    """How many times the larger of two positive numbers is the smaller; None where a factor means nothing."""
    if a <= 0 or b <= 0:
        return None
    return max(a / b, b / a)


def off_by(guess: float, truth: float, unit: str | None = None) -> str:
    """How far a guess is from the truth, in words: a factor, or a difference where a factor means nothing."""
    factor = factor_between(guess, truth)
    if factor is None:
        return "exact" if guess == truth else f"off by {amount(abs(guess - truth), unit)}"
    if factor < 1.005:
        return "the same, to within half a percent"
    return f"{number(factor)} times too {'high' if guess > truth else 'low'}"


def clock(seconds: float) -> str:
    """Minutes and seconds: "3:07"."""
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


UNITS = {"": 1, "b": 1} | {
    f"{prefix}{ending}": base ** (power + 1)
    for power, prefix in enumerate("kmgt")
    for base, endings in ((1000, ("", "b")), (1024, ("i", "ib")))
    for ending in endings
}


def parse_bytes(text: str) -> int:
    """ "1GiB", "500 MB", "2g" or plain bytes. UsageError for anything else."""
    match = re.fullmatch(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([a-z]*)\s*", text.lower())
    if not match or match[2] not in UNITS:
        raise UsageError(
            f"{shortened(text)!r} is not a number of bytes", remedy="write it as 1073741824, 1GiB, 500MB or 2G"
        )
    return int(float(match[1]) * UNITS[match[2]]) if "." in match[1] else int(match[1]) * UNITS[match[2]]
