"""Format numbers: three significant digits, units, intervals and factors in words."""

import math
import re

from labkit.errors import UsageError, shortened


def number(value: float, *, digits: int = 3) -> str:
    """Format integers exactly, other numbers with `digits` significant digits; commas separate thousands."""
    if isinstance(value, int) or not math.isfinite(value):
        return f"{value:,}"
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    text = f"{rounded:,.{max(decimals, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def amount(value: float, unit: str | None) -> str:
    """Format a number with its unit; seconds below 0.1 as milliseconds."""
    if unit == "s" and 0 < abs(value) < 0.1:
        return f"{number(value * 1000)} ms"
    if not unit:
        return number(value)
    if unit == "$":
        return f"${number(value)}"
    joint = "" if unit in {"%", "x"} else " "
    return f"{number(value)}{joint}{unit}"


def span(low: float, high: float, unit: str | None) -> str:
    """Format an interval, both ends in the upper end's unit."""
    if unit == "s" and 0 < abs(high) < 0.1:
        return f"{number(low * 1000)} to {number(high * 1000)} ms"
    return f"{amount(low, unit) if unit == '$' else number(low)} to {amount(high, unit)}"


def share(value: float) -> str:
    """Format a share between 0 and 1 as a whole percentage."""
    return f"{100 * value:.0f}%"


def factor_between(a: float, b: float) -> float | None:
    """Return the larger of two positive numbers over the smaller; None if one is not positive."""
    return max(a / b, b / a) if a > 0 and b > 0 else None


def off_by(guess: float, truth: float, unit: str | None = None) -> str:
    """Return how far a guess is from the truth, in words: as a factor, or else as a difference."""
    factor = factor_between(guess, truth)
    if factor is None:
        return "exact" if guess == truth else f"off by {amount(abs(guess - truth), unit)}"
    if factor < 1.005:
        return "the same, to within half a percent"
    return f"{number(factor)} times too {'high' if guess > truth else 'low'}"


def clock(seconds: float) -> str:
    """Format seconds as minutes and seconds: "3:07"."""
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


UNITS = {"": 1, "b": 1} | {
    f"{prefix}{ending}": base ** (power + 1)
    for power, prefix in enumerate("kmgt")
    for base, endings in ((1000, ("", "b")), (1024, ("i", "ib")))
    for ending in endings
}


def parse_bytes(text: str) -> int:
    """Parse "1GiB", "500 MB", "2g" or plain bytes. UsageError: anything else."""
    match = re.fullmatch(r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([a-z]*)\s*", text.lower())
    if not match or match[2] not in UNITS:
        raise UsageError(
            f"{shortened(text)!r} is not a number of bytes", remedy="write it as 1073741824, 1GiB, 500MB or 2G"
        )
    return int(float(match[1]) * UNITS[match[2]]) if "." in match[1] else int(match[1]) * UNITS[match[2]]
