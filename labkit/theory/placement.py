"""Ray's placement of GPU fractions on one node. GPUs are numbered from 0."""

import math
from collections.abc import Sequence

from labkit.errors import require

PRECISION = 10_000  # Ray counts GPUs in ten-thousandths


def best_fit(num_gpus: Sequence[float], gpus: int) -> list[tuple[int, ...]]:
    """Return the GPUs of replicas that request `num_gpus` one after the other; () for replicas that wait.

    A fraction goes to the fitting GPU with the least free capacity, the lowest number first; whole GPUs go to empty
    ones. A waiting replica does not block the next. Source: Ray 2.60, NodeResourceInstanceSet::TryAllocate in
    src/ray/common/scheduling/resource_instance_set.cc. UsageError for a number that Ray refuses.
    """
    free = [PRECISION] * gpus
    return [take(free, units_of(fraction)) for fraction in num_gpus]


def take(free: list[int], units: int) -> tuple[int, ...]:
    """Take `units` from a node's `free` GPUs as Ray does; return the GPUs, () if the request does not fit."""
    chosen = _whole(free, units // PRECISION) if units >= PRECISION else _least_left(free, units)
    for gpu in chosen:
        free[gpu] -= min(units, PRECISION)
    return chosen


def units_of(num_gpus: float) -> int:
    """Return num_gpus in Ray's ten-thousandths. UsageError for a negative number, or one above 1 that is not whole."""
    require(
        0 <= num_gpus < math.inf and (num_gpus <= 1 or num_gpus == int(num_gpus)),
        f"num_gpus is {num_gpus}: Ray accepts a fraction of one GPU or whole GPUs",
        fix="pass a number from 0 to 1, or a whole number",
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
    """Return the free share of each GPU after Ray has placed all replicas that fit."""
    free = [PRECISION] * gpus
    for fraction in fractions:
        take(free, units_of(fraction))
    return [units / PRECISION for units in free]
