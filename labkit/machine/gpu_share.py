"""One rule for a share of a GPU: it is free, and what each engine gets of it holds the weights and a cache."""

import math

from labkit.errors import UsageError
from labkit.machine import Gpu

GIB = 2**30
ROOM_FOR_WEIGHTS = 1.1
"""A share has to hold the weights and a tenth of them: with less cache than that an engine serves nobody."""


def require_share(
    gpu: Gpu, share: float, *, model: str = "the model", weight_bytes: int | None = None, engines: int = 1
) -> None:
    """UsageError, with the numbers, where `share` of the GPU is not free, or where one of `engines` that part it evenly
    has no room for the weights (`weight_bytes`, where known)."""
    if not 0 < share <= 1:
        raise UsageError(f"gpu_memory_share is {share}, not a share", remedy="pass a number between 0 and 1")
    free_share = math.floor(gpu.memory_free_bytes / gpu.memory_total_bytes * 100) / 100
    total_gib, free_gib = gpu.memory_total_bytes / GIB, gpu.memory_free_bytes / GIB
    if share > free_share:
        raise UsageError(
            f"gpu_memory_share {share:g} asks for {share * total_gib:.1f} GiB of GPU {gpu.index} ({gpu.name}), but "
            f"only {free_gib:.1f} of its {total_gib:.1f} GiB are free",
            remedy=f"pass a gpu_memory_share of at most {free_share:.2f}, or end what else uses the GPU (nvidia-smi)",
        )
    room_bytes = share / engines * gpu.memory_total_bytes
    if weight_bytes is not None and room_bytes < ROOM_FOR_WEIGHTS * weight_bytes:
        parted = f", parted by {engines} engines," if engines > 1 else ""
        raise UsageError(
            f"the weights of {model} take {weight_bytes / GIB:.1f} GiB; gpu_memory_share {share:g} of GPU {gpu.index} "
            f"({gpu.name}){parted} is {room_bytes / GIB:.1f} GiB for each engine, which must hold the KV cache too",
            remedy=f"choose a smaller model or a larger share ({free_gib:.1f} GiB are free now)",
        )
