"""What a handful of repeats is worth: means, medians and paired ratios, each with its interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from labkit.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    FloatArray = np.ndarray[tuple[int], np.dtype[np.float64]]

Statistic = Literal["mean", "median"]

RESAMPLES = 4_000  # the ends of a 95% interval then move by some 2% of its width from seed to seed


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean or median of `n` values, in their unit, between `low` and `high` at `confidence`.

    With n = 1 there is nothing to tell the spread from: low = high = value, and `warning` says so.
    """

    value: float
    low: float
    high: float
    n: int
    confidence: float = 0.95
    statistic: Statistic = "mean"

    @property
    def warning(self) -> str | None:
        return None if self.n > 1 else "1 value: no spread can be told from it; repeat at least 3 times for an interval"

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g}, n={self.n})"


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times larger the first arm is than the second: geometric mean of `values`, one for each pair.

    `low` and `high` bound it at `confidence`. With one pair low = high = value, and `warning` says so.
    """

    name: str
    value: float
    low: float
    high: float
    pairs: int
    confidence: float = 0.95
    values: tuple[float, ...] = ()

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out 1, that is, whether these pairs tell the two arms apart."""
        return self.pairs > 1 and not self.low <= 1 <= self.high

    @property
    def warning(self) -> str | None:
        subject = f"ratio {self.name!r}" if self.name else "this ratio"
        few = f"{subject} rests on 1 pair: no spread can be told from it; repeat at least 3 times for an interval"
        return None if self.pairs > 1 else few

    def __str__(self) -> str:
        return f"{self.value:.3g}x ({self.low:.3g} to {self.high:.3g}, {self.pairs} pairs)"


def paired_ratio(
    a: Sequence[float], b: Sequence[float], *, name: str = "", confidence: float = 0.95, seed: int = 0
) -> Ratio:
    """a over b, pair by pair: the geometric mean of a[k] / b[k] with a bootstrap interval on the logarithms.

    Logarithms make the comparison fair in both directions: ratio(b, a) is 1 / ratio(a, b), bounds included. The
    interval is deterministic for a seed. See `interval` for the correction for few repeats.

    Raises:
        UsageError: different lengths, no pair, or a value that is not finite and above zero (a ratio needs both).
    """
    import numpy as np

    if len(a) != len(b):
        raise UsageError(f"{len(a)} values cannot pair with {len(b)}", remedy="measure both arms in every round")
    for label, values in (("first", a), ("second", b)):
        _check_finite(values, what=f"the {label} arm of ratio {name!r}", above_zero=True)
    logs = np.log(np.asarray(a, dtype=float)) - np.log(np.asarray(b, dtype=float))
    value, low, high = (float(np.exp(x)) for x in _bounds(logs, "mean", confidence=confidence, seed=seed))
    ratios = tuple(float(x) for x in np.exp(logs))
    # Exponentials of nearly equal logarithms may come out in another order by one last digit.
    low, high = min(low, value), max(high, value)
    return Ratio(name=name, value=value, low=low, high=high, pairs=len(a), confidence=confidence, values=ratios)


def interval(
    values: Sequence[float], *, statistic: Statistic = "mean", confidence: float = 0.95, seed: int = 0
) -> Interval:
    """The mean or median of `values` with a bootstrap interval (deterministic for a seed), in the values' unit.

    The percentile bootstrap is too narrow for few values: of three it reaches only their own minimum and maximum, which
    hold the true mean 75% of the time, not 95%. So its distances from the estimate are stretched by
    sqrt(n / (n - 1)) x t / z, Student's quantile over the normal one: the "narrowness bias" of T. Hesterberg, "What
    Teachers Should Know about the Bootstrap", The American Statistician 69 (2015). At n = 3 it is 2.7, at
    n = 20 it is 1.1; the coverage is then near nominal from two values up (the tests measure it).

    Raises:
        UsageError: no value, or one that is not finite.
    """
    import numpy as np

    if statistic not in ("mean", "median"):
        raise UsageError(f"statistic is {statistic!r}", remedy="take 'mean' or 'median'")
    _check_finite(values, what="the values", above_zero=False)
    value, low, high = _bounds(np.asarray(values, dtype=float), statistic, confidence=confidence, seed=seed)
    if min(values) >= 0:
        low = max(low, 0.0)  # what cannot be negative (a rate, a time) has no mean below zero either
    return Interval(value=value, low=low, high=high, n=len(values), confidence=confidence, statistic=statistic)


def _check_finite(values: Sequence[float], *, what: str, above_zero: bool) -> None:
    if not len(values):
        raise UsageError(f"{what}: 0 values", remedy="measure at least once")
    for index, value in enumerate(values):
        if not math.isfinite(value) or (above_zero and value <= 0):
            need = "finite and above zero" if above_zero else "finite"
            raise UsageError(
                f"{what}: value {index} is {float(value)}; it must be {need}", remedy="look at that repeat"
            )


def _bounds(values: "FloatArray", statistic: Statistic, *, confidence: float, seed: int) -> tuple[float, float, float]:
    """(estimate, low, high) of a sample by the stretched percentile bootstrap."""
    import numpy as np
    from scipy import stats

    if not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence}; it must lie between 0 and 1", remedy="pass 0.95")
    take = np.mean if statistic == "mean" else np.median
    value = float(take(values))
    if len(values) == 1 or np.all(values == values[0]):
        return value, value, value
    random_numbers = np.random.default_rng(seed)
    found = stats.bootstrap(
        (values,), take, confidence_level=confidence, n_resamples=RESAMPLES, method="percentile", rng=random_numbers
    ).confidence_interval
    stretch = _stretch(len(values), confidence)
    return value, value - stretch * max(0.0, value - found.low), value + stretch * max(0.0, found.high - value)


def _stretch(n: int, confidence: float) -> float:
    from scipy import stats

    tail = (1 + confidence) / 2
    return float((n / (n - 1)) ** 0.5 * stats.t.ppf(tail, n - 1) / stats.norm.ppf(tail))
