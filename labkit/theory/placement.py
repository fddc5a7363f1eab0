"""Models onto GPUs: what Ray's scheduler does with fractions, and what a plan by memory and load would do.

GPUs are numbered from 0. Memory in GiB; a model's load is the share of one GPU's compute that its traffic takes
(requests per second x seconds of GPU time for one).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labkit.errors import above_zero, require

PRECISION = 10_000  # Ray counts GPUs in ten-thousandths
TINY = 1e-9  # sums of decimal fractions miss a whole number by less
Placement = dict[str, int]
"""The GPU of each model."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What one model needs: memory at rest (weights, context and its cache) and compute under its traffic."""

    name: str
    memory_gib: float
    load: float


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


def dedicated(models: Sequence[Model]) -> Placement:
    """A GPU for each model."""
    return {model.name: gpu for gpu, model in enumerate(models)}


def first_fit_decreasing(models: Sequence[Model], *, gpu_gib: float, most_load: float = math.inf) -> Placement:
    """The largest model first (by its larger share of memory or load), each on the first GPU that holds it.

    A GPU holds models up to `gpu_gib` of memory and a load of `most_load` together; without `most_load` memory alone
    counts. It need not be the best plan: compare with `lower_bound`. UsageError: a model that fits no GPU.
    """
    check_models(models, gpu_gib=gpu_gib, most_load=most_load)
    used: list[tuple[float, float]] = []
    plan: Placement = {}
    for model in sorted(models, key=lambda model: -share_of(model, gpu_gib=gpu_gib, most_load=most_load)):
        fits = (n for n, (gib, load) in enumerate(used) if _holds(gib, load, model, gpu_gib, most_load))
        gpu = next(fits, len(used))
        gib, load = used[gpu] if gpu < len(used) else (0.0, 0.0)
        used[gpu : gpu + 1] = [(gib + model.memory_gib, load + model.load)]
        plan[model.name] = gpu
    return plan


def lower_bound(models: Sequence[Model], *, gpu_gib: float, most_load: float = math.inf) -> int:
    """So many GPUs at least, whatever the plan: for the memory, for the load, and one for each of the models of which
    no two fit together (more than half a GPU's memory each, or of its load)."""
    check_models(models, gpu_gib=gpu_gib, most_load=most_load)
    memory = [model.memory_gib / gpu_gib for model in models]
    load = [model.load / most_load for model in models]
    halves = [sum(share > 0.5 + TINY for share in shares) for shares in (memory, load)]
    return max(*(math.ceil(math.fsum(shares) - TINY) for shares in (memory, load)), *halves)


def share_of(model: Model, *, gpu_gib: float, most_load: float = math.inf) -> float:
    """The share of a GPU that a model needs: of its memory or of its load, whichever is larger."""
    return max(model.memory_gib / gpu_gib, model.load / most_load)


def num_gpus(models: Sequence[Model], *, gpu_gib: float, most_load: float = math.inf) -> dict[str, float]:
    """The fraction to ask Ray for: each model's share, rounded up to a hundredth, the largest first.

    Ray adds up one number for each GPU; if it is the larger of the two shares, neither memory nor load is exceeded.
    """
    check_models(models, gpu_gib=gpu_gib, most_load=most_load)
    shares = {model.name: share_of(model, gpu_gib=gpu_gib, most_load=most_load) for model in models}
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return {name: math.ceil(share * 100 - TINY) / 100 for name, share in ordered}


def loads(models: Sequence[Model], plan: Mapping[str, int]) -> dict[int, float]:
    """The load of each GPU under a plan; above 1 its queue grows for ever."""
    return {
        gpu: math.fsum(model.load for model in models if plan[model.name] == gpu) for gpu in sorted(set(plan.values()))
    }


def check_models(models: Sequence[Model], *, gpu_gib: float, most_load: float = math.inf) -> None:
    """UsageError where no plan exists: no model, two of one name, a size that is none, a model larger than a GPU."""
    names = [model.name for model in models]
    require(
        0 < len(set(names)) == len(names),
        f"the models are called {', '.join(names) or 'nothing'}",
        fix="give each its own name",
    )
    above_zero("gpu_gib", gpu_gib, unit="GiB")
    require(most_load > 0, f"most_load is {most_load}", fix="give a load above 0")
    for model in models:
        above_zero(f"the memory of {model.name}", model.memory_gib, unit="GiB")
        above_zero(f"the load of {model.name}", model.load, unit="shares of a GPU")
        require(
            _holds(0.0, 0.0, model, gpu_gib, most_load),
            f"{model.name} needs {model.memory_gib:g} GiB and a load of {model.load:g}; a GPU has {gpu_gib:g} GiB "
            f"and takes a load of {most_load:g}",
            fix="take larger GPUs, allow more load, or split the model's traffic over replicas",
        )


def _holds(gib: float, load: float, model: Model, gpu_gib: float, most_load: float) -> bool:
    return gib + model.memory_gib <= gpu_gib + TINY and load + model.load <= most_load + TINY


def _least_left(free: list[int], units: int) -> tuple[int, ...]:
    if not units:
        return ()
    fitting = [(left, gpu) for gpu, left in enumerate(free) if left >= units]
    return (min(fitting)[1],) if fitting else ()


def _whole(free: list[int], count: int) -> tuple[int, ...]:
    empty = [gpu for gpu, left in enumerate(free) if left == PRECISION]
    return tuple(empty[:count]) if len(empty) >= count else ()


def makes_room(fractions: Sequence[float], *, late: float, gpus: int) -> int:
    """The number of the replica, after the first two, whose leaving lets the late one in. UsageError: none does."""
    left, placed = left_over(fractions, gpus), best_fit(fractions, gpus)
    rooms = [(left[placed[n][0]] + fractions[n], n) for n in range(2, len(fractions))]
    room, number = max(rooms, default=(0.0, 0))
    require(
        units_of(min(1.0, round(room, 4))) >= units_of(late),
        f"late_fraction is {late:g}; when one of the fractions {list(fractions)[2:]} leaves, a GPU has at most "
        f"{room:.2f} left",
        fix="take a smaller late_fraction, or a larger fraction after the first two",
    )
    return number


def left_over(fractions: Sequence[float], gpus: int) -> list[float]:
    """What the replicas leave of each GPU, when Ray has placed all of them that fit."""
    left = [PRECISION] * gpus
    for asked, where in zip(fractions, best_fit(fractions, gpus), strict=True):
        for gpu in where:
            left[gpu] -= min(PRECISION, units_of(asked))
    return [units / PRECISION for units in left]
