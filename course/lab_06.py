"""Exercises of lab 06: GPUs that are asked for, where Ray puts a fraction, and models onto few GPUs."""

import math
from collections.abc import Callable

from labkit.teaching import solution

# The article's listing, as (name, replicas, num_gpus): a preprocessor that splits text, and a model.
ARTICLE_LISTING = (("Preprocessor", 2, 0.5), ("Model", 4, 1.0))


def gpus_of_one(replicas: int, num_gpus: float) -> float:
    return replicas * num_gpus


def gpus_asked(deployments: list[tuple[str, int, float]]) -> float:
    return sum(replicas * num_gpus for _, replicas, num_gpus in deployments)


solution(
    "06.gpus_asked",
    gpus_asked,
    unit="GPUs",
    worked=gpus_of_one,
    cases=(([("a", 3, 0.25), ("b", 2, 2)],), ([("a", 2, 0.3), ("b", 1, 0.5), ("c", 1, 1)],)),
    wrong={
        "the replicas forgotten": lambda deployments: sum(num_gpus for _, _, num_gpus in deployments),
        "the fraction forgotten": lambda deployments: sum(replicas for _, replicas, _ in deployments),
        "a fraction rounded up": lambda deployments: sum(
            replicas * math.ceil(num_gpus) for _, replicas, num_gpus in deployments
        ),
        "the largest deployment only": lambda deployments: max(
            replicas * num_gpus for _, replicas, num_gpus in deployments
        ),
    },
)


def gpu_for(left: list[float], asked: float) -> int:
    best = -1
    for gpu, free in enumerate(left):
        if free >= asked and (best < 0 or free < left[best]):
            best = gpu
    return best


solution(
    "06.gpu_for",
    gpu_for,
    cases=(
        ([0.5, 0.75, 0.25, 1.0], 0.25),
        ([1.0, 0.75, 0.5, 0.75], 0.6),
        ([0.4, 0.4, 0.4], 0.5),
        ([1.0, 0.5], 0.5),
        ([0.9, 0.3, 1.0], 0.3),
    ),
    exact=True,
    wrong={
        "the first that fits": lambda left, asked: next((gpu for gpu, free in enumerate(left) if free >= asked), -1),
        "the emptiest GPU": lambda left, asked: left.index(max(left)) if max(left) >= asked else -1,
        "parts of two GPUs added up": lambda left, asked: (
            gpu_for(left, asked) if max(left) >= asked or sum(left) < asked else left.index(max(left))
        ),
        "at least taken for above": lambda left, asked: min(
            (gpu for gpu in range(len(left)) if left[gpu] > asked), key=left.__getitem__, default=-1
        ),
    },
)


Models = list[tuple[float, float]]  # memory and load of each
MODELS = [(10.0, 0.125), (40.0, 0.25), (30.0, 0.5), (24.0, 0.125), (16.0, 0.5), (50.0, 0.125), (12.0, 0.375)]


def _packed(
    *, largest_first: bool = True, newest_only: bool = False, best_fit: bool = False
) -> Callable[..., list[int]]:
    """Packs in another order than asked for, looks at the newest GPU only, or takes the fullest one with room."""

    def packing(models: Models, gpu_gib: float, most_load: float) -> list[int]:
        used: list[list[float]] = []
        place = [0] * len(models)
        for number in sorted(range(len(models)), key=lambda n: -models[n][0] if largest_first else n):
            gib, load = models[number]
            gpus = list(range(len(used))[-1 if newest_only else 0 :])
            if best_fit:
                gpus.sort(key=lambda n: -used[n][0])
            gpu = next((n for n in gpus if used[n][0] + gib <= gpu_gib and used[n][1] + load <= most_load), len(used))
            used[gpu:] = used[gpu:] or [[0.0, 0.0]]
            used[gpu] = [used[gpu][0] + gib, used[gpu][1] + load]
            place[number] = gpu
        return place

    return packing


def pack(models: list[tuple[float, float]], gpu_gib: float, most_load: float) -> list[int]:
    used: list[list[float]] = []  # memory and load of each GPU
    place = [0] * len(models)
    for number in sorted(range(len(models)), key=lambda n: -models[n][0]):
        gib, load = models[number]
        fits = [n for n, (a, b) in enumerate(used) if a + gib <= gpu_gib and b + load <= most_load]
        gpu = fits[0] if fits else len(used)
        if gpu == len(used):
            used.append([0.0, 0.0])
        used[gpu][0] += gib
        used[gpu][1] += load
        place[number] = gpu
    return place


solution(
    "06.pack",
    pack,
    cases=[
        (MODELS, 80.0, 0.75),
        (MODELS, 64.0, 1.0),
        ([(40.0, 0.25), (40.0, 0.5), (40.0, 0.25), (40.0, 0.5)], 80.0, 0.75),
        ([(50.0, 0.125), (40.0, 0.125), (35.0, 0.125), (5.0, 0.125)], 80.0, 1.0),
    ],
    exact=True,
    wrong={
        "memory alone": lambda models, gpu_gib, _most_load: pack(models, gpu_gib, math.inf),
        "load alone": lambda models, _gpu_gib, most_load: pack(models, math.inf, most_load),
        "in the order given": _packed(largest_first=False),
        "only the newest GPU looked at": _packed(newest_only=True),
        "best fit for first fit": _packed(best_fit=True),
        "a GPU for each model": lambda models, _gpu_gib, _most_load: list(range(len(models))),
    },
)
