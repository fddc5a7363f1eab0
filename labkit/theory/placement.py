"""Ray's placement of GPU fractions. GPUs are numbered from 0."""

import math
from collections.abc import Sequence

from labkit.errors import require

PRECISION = 10_000  # Ray counts GPUs in ten-thousandths


def best_fit(asked: Sequence[float], gpus: int) -> list[tuple[int, ...]]:
    """Where Ray puts replicas that ask for `asked` GPUs, one after the other: their GPUs, or () for those that wait.

    A part of a GPU goes to the GPU with the least left that still holds it, the lowest number first; whole GPUs go to
    empty ones. A replica that waits does not hold up the next one. Source: Ray 2.60, NodeResourceInstanceSet::
    TryAllocate in src/ray/common/scheduling/resource_instance_set.cc. UsageError: a number that Ray refuses.
    """
    free = [PRECISION] * gpus
    return [take(free, units_of(fraction)) for fraction in asked]


def take(free: list[int], units: int) -> tuple[int, ...]:
    """The GPUs of a node that Ray gives to a request for `units`, taken off `free`; () where none has so much left."""
    chosen = _whole(free, units // PRECISION) if units >= PRECISION else _least_left(free, units)
    for gpu in chosen:
        free[gpu] -= min(units, PRECISION)
    return chosen


def units_of(num_gpus: float) -> int:
    """num_gpus in Ray's ten-thousandths. UsageError for what Ray refuses: below 0, or above 1 and not whole."""
    require(
        0 <= num_gpus < math.inf and (num_gpus <= 1 or num_gpus == int(num_gpus)),
        f"num_gpus is {num_gpus}: Ray takes a part of one GPU or whole GPUs",
        fix="give a number from 0 to 1, or a whole number",
    )
    return round(num_gpus * PRECISION)


def _least_left(free: list[int], units: int) -> tuple[int, ...]:
    if not units:
        return ()
    fitting = [(left, gpu) for gpu, left in enumerate(free) if left >= units]
    return (min(fitting)[1],) if fitting else ()


def _whole(free: list[int], count: int) -> tuple[int, ...]:
    empty = [gpu for gpu, left in enumerate(free) if left == PRECISION]
    return tuple(empty[:count]) if len(empty) >= count else ()


def left_over(fractions: Sequence[float], gpus: int) -> list[float]:
    """What the replicas leave of each GPU, when Ray has placed all of them that fit."""
    left = [PRECISION] * gpus
    for asked, where in zip(fractions, best_fit(fractions, gpus), strict=True):
        for gpu in where:
            left[gpu] -= min(PRECISION, units_of(asked))
    return [units / PRECISION for units in left]
