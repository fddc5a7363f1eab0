"""Numbers that fit: num_gpus and engine_share for every deployment, or how many GPUs it would take."""

import math
from collections.abc import Mapping, Sequence

from labkit.advice.fractions.deployments import GIB, Deployment, Gpus
from labkit.errors import UsageError
from labkit.files import Frozen
from labkit.theory import kv_size
from labkit.theory.placement import best_fit

MARGIN = 0.005  # of a GPU, so that no sum of shares ends exactly at what is free
FACTORS = (8.0, 6.0, 4.0, 3.0, 2.5, 2.0, 1.75, 1.5, 1.25, 1.1, 1.0)  # of the least need, for the caches
MOST_GPUS_TRIED = 4096


class Suggestion(Frozen):
    """Deployments with num_gpus and engine_share that fit, to be deployed in this order, one when the last one runs.

    Empty where nothing fits on these GPUs: `gpus_needed` is then how many of them would do; 0 where a replica is
    larger than a GPU, or cannot be split over as many as it asks for (`impossible` says so, with the numbers).
    """

    deployments: tuple[Deployment, ...] = ()
    gpus_needed: int = 0
    impossible: str = ""


def suggest(deployments: Sequence[Deployment], gpus: Gpus) -> Suggestion:
    """The deployments with numbers that fit on these GPUs, the caches as large as some common factor allows."""
    least: dict[str, float] = {}
    for deployment in deployments:
        fraction, impossible = least_fraction(deployment, gpus), _cannot_be_split(deployment)
        if impossible or fraction is None:
            return Suggestion(impossible=impossible or _too_large(deployment, gpus))
        least[deployment.name] = fraction
    for factor in FACTORS:
        scaled = _scaled(deployments, least, factor, gpus)
        if _all_placed(scaled, gpus.count):
            return Suggestion(deployments=tuple(scaled))
    enough = (count for count in range(gpus.count + 1, MOST_GPUS_TRIED) if _all_placed(scaled, count))
    return Suggestion(gpus_needed=next(enough, 0))


def least_fraction(deployment: Deployment, gpus: Gpus) -> float | None:
    """The smallest num_gpus, in hundredths, whose part of the free memory holds a replica; None: it fits no GPU."""
    parts = (hundredths / 100 for hundredths in range(1, 101))
    return next(
        (part for part in parts if share_of_part(part, gpus) * gpus.total_bytes >= deployment.least_bytes), None
    )


def share_of_part(part: float, gpus: Gpus) -> float:
    """The share of all memory that belongs to `part` of a GPU, in whole hundredths, a margin below it."""
    return max(0.0, math.floor((part * gpus.free_share - MARGIN) * 100) / 100)


def _cannot_be_split(deployment: Deployment) -> str:
    """Why the model's heads cannot be split over the replica's GPUs; "" where they can."""
    if deployment.architecture is None or deployment.gpus_each == 1:
        return ""
    try:
        kv_size.kv_heads_per_rank(deployment.architecture, deployment.gpus_each)
    except UsageError as error:
        return f"{deployment.name}: {error.what}"
    return ""


def _too_large(deployment: Deployment, gpus: Gpus) -> str:
    free_gib = gpus.free_share * gpus.total_bytes / GIB
    text = f"{deployment.name} needs {deployment.least_bytes / GIB:.1f} GiB on a GPU with {free_gib:.1f} free"
    for count in (2, 4, 8):
        split = deployment.model_copy(update={"num_gpus": float(count)})
        if not _cannot_be_split(split) and least_fraction(split, gpus) is not None:
            return f"{text}; split over {count} GPUs (num_gpus: {count}) it would fit"
    return text


def _scaled(
    deployments: Sequence[Deployment], least: Mapping[str, float], factor: float, gpus: Gpus
) -> list[Deployment]:
    """Each with its least part of a GPU, an engine's times `factor`, the largest first: that wastes least in Ray."""
    scaled = []
    for deployment in deployments:
        is_engine, part = deployment.engine_share is not None, deployment.num_gpus
        if not deployment.valid or part <= 1:
            wanted = least[deployment.name] * (factor if is_engine else 1.0)
            part = min(1.0, math.floor(wanted * 100 + 1e-6) / 100)
        share = share_of_part(min(1.0, part), gpus) if is_engine else None
        scaled.append(deployment.model_copy(update={"num_gpus": part, "engine_share": share}))
    return sorted(scaled, key=lambda deployment: -deployment.num_gpus)


def _all_placed(deployments: Sequence[Deployment], count: int) -> bool:
    asked = [deployment.num_gpus for deployment in deployments for _ in range(deployment.replicas)]
    return all(best_fit(asked, count))
