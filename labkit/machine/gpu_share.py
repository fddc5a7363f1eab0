"""One rule for a share of a GPU: it is free, and what each engine gets of it holds the weights and a cache."""

import math

from labkit.errors import require
from labkit.machine import Gpu

GIB = 2**30
ROOM_FOR_WEIGHTS = 1.1
"""A share has to hold the weights and a tenth of them: an engine with less cache than that serves no request."""


def require_share(
    gpu: Gpu, share: float, *, model: str = "the model", weight_bytes: int | None = None, engines: int = 1
) -> None:
    """UsageError, with the numbers, where `share` of the GPU is not free, or where one of `engines` that part it evenly
    has no room for the weights (`weight_bytes`, where known)."""
    require(0 < share <= 1, f"gpu_memory_share is {share}, not a share", fix="pass a number between 0 and 1")
    free_share = math.floor(gpu.memory_free_bytes / gpu.memory_total_bytes * 100) / 100
    total_gib, free_gib = gpu.memory_total_bytes / GIB, gpu.memory_free_bytes / GIB
    require(
        share <= free_share,
        f"gpu_memory_share {share:g} asks for {share * total_gib:.1f} GiB of GPU {gpu.index} ({gpu.name}), but "
        f"only {free_gib:.1f} of its {total_gib:.1f} GiB are free",
        fix=f"pass a gpu_memory_share of at most {free_share:.2f}, or end what else uses the GPU (nvidia-smi)",
    )
    room_gib, weight_gib = share / engines * total_gib, (weight_bytes or 0) / GIB
    parted = f", parted by {engines} engines," if engines > 1 else ""
    require(
        room_gib >= ROOM_FOR_WEIGHTS * weight_gib,
        f"the weights of {model} take {weight_gib:.1f} GiB; gpu_memory_share {share:g} of GPU {gpu.index} "
        f"({gpu.name}){parted} is {room_gib:.1f} GiB for each engine, which must hold the KV cache too",
        fix=f"choose a smaller model or a larger share ({free_gib:.1f} GiB are free now)",
    )
