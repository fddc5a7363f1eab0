"""Numbers that work: for each deployment the least memory that it needs, and from it num_gpus and engine_share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from labkit import kvcache
from labkit.errors import UsageError
from labkit.fractions.asked import GIB, Deployment, Gpus
from labkit.packing import best_fit
from labkit.settings import GPU_BLOCK_SIZE

MARGIN = 0.005  # of a GPU, so that no sum of shares ends exactly at what is free
FACTORS = (8.0, 6.0, 4.0, 3.0, 2.5, 2.0, 1.75, 1.5, 1.25, 1.1, 1.0)  # of the least need, for the caches
MOST_GPUS_TRIED = 4096


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """Deployments with num_gpus and engine_share that fit, to be deployed in this order, one when the last one runs.

    Empty where nothing fits on these GPUs: `gpus_needed` is then how many of them would do; 0 where a replica is
    larger than a GPU, or cannot be split over as many as it asks for (`impossible` says so, with the numbers).
    """

    deployments: tuple[Deployment, ...] = ()
    gpus_needed: int = 0
    impossible: str = ""


def least_bytes(one: Deployment) -> int:
    """What a replica needs on each GPU: weights, the rest of the process, and for an engine one request's cache."""
    cache = 0
    architecture = one.model.architecture
    if one.engine_share is not None and architecture is not None:
        context = one.context_tokens
        block = kvcache.bytes_per_token(architecture, kv_dtype_bytes=one.model.cache_dtype_bytes) * GPU_BLOCK_SIZE
        # One block more is vLLM's placeholder. Fewer KV heads than GPUs are repeated, never split further.
        split = min(one.gpus_each, architecture.kv_heads)
        blocks = kvcache.blocks_per_sequence(
            context, block_size=GPU_BLOCK_SIZE, sliding_window=architecture.sliding_window
        )
        cache = -(-(blocks + 1) * block // split)
    return one.weight_bytes + one.besides_bytes + cache


def least_fraction(one: Deployment, gpus: Gpus) -> float | None:
    """The smallest num_gpus, in hundredths, whose part of the free memory holds a replica; None: it fits no GPU."""
    for hundredths in range(1, 101):
        if share_of_part(hundredths / 100, gpus) * gpus.total_bytes >= least_bytes(one):
            return hundredths / 100
    return None


def suggest(deployments: Sequence[Deployment], gpus: Gpus) -> Suggestion:
    """The deployments with numbers that fit on these GPUs, the caches as large as some common factor allows."""
    needs = {one.name: least_fraction(one, gpus) for one in deployments}
    for one in deployments:
        if impossible := cannot_be_split(one) or (_too_large(one, gpus) if needs[one.name] is None else ""):
            return Suggestion(impossible=impossible)
    least = {name: need for name, need in needs.items() if need is not None}
    for factor in FACTORS:
        found = _scaled(deployments, least, factor, gpus)
        if _all_placed(found, gpus.count):
            return Suggestion(deployments=tuple(found))
    found = _scaled(deployments, least, 1.0, gpus)
    enough = (count for count in range(gpus.count + 1, MOST_GPUS_TRIED) if _all_placed(found, count))
    return Suggestion(gpus_needed=next(enough, 0))


def cannot_be_split(one: Deployment) -> str:
    """Why the model's heads cannot be split over the replica's GPUs; "" where they can."""
    architecture = one.model.architecture
    if architecture is None or one.gpus_each == 1:
        return ""
    try:
        kvcache.kv_heads_per_rank(architecture, one.gpus_each)
    except UsageError as error:
        return f"{one.name}: {error.what}"
    return ""


def _too_large(one: Deployment, gpus: Gpus) -> str:
    free_gib = gpus.free_share * gpus.total_bytes / GIB
    text = f"{one.name} needs {least_bytes(one) / GIB:.1f} GiB on a GPU with {free_gib:.1f} free"
    split = (replace(one, num_gpus=float(count)) for count in (2, 4, 8))
    fits = (each for each in split if not cannot_be_split(each) and least_fraction(each, gpus) is not None)
    found = next(fits, None)
    return text + (f"; split over {found.gpus_each} GPUs (num_gpus: {found.gpus_each}) it would fit" if found else "")


def _scaled(deployments: Sequence[Deployment], least: dict[str, float], factor: float, gpus: Gpus) -> list[Deployment]:
    """Each with its least part of a GPU, an engine's times `factor`, the largest first: so Ray wastes least."""
    found = []
    for one in deployments:
        whole = one.valid and one.num_gpus > 1
        times = factor if one.engine_share is not None else 1.0
        part = one.num_gpus if whole else min(1.0, math.floor(least[one.name] * times * 100 + 1e-6) / 100)
        share = None if one.engine_share is None else share_of_part(min(1.0, part), gpus)
        found.append(replace(one, num_gpus=part, engine_share=share))
    return sorted(found, key=lambda one: -one.num_gpus)


def share_of_part(part: float, gpus: Gpus) -> float:
    """The share of all memory that belongs to `part` of a GPU, in whole hundredths, a margin below it."""
    return max(0.0, math.floor((part * gpus.free_share - MARGIN) * 100) / 100)


def _all_placed(deployments: Sequence[Deployment], count: int) -> bool:
    asked = [one.num_gpus for one in deployments for _ in range(one.replicas)]
    return all(best_fit(asked, count))
