"""Check a share of a GPU: it must be free, and each engine's part must hold the weights and a cache."""

import math

from labkit.errors import require
from labkit.machine import Gpu

GIB = 2**30
ROOM_FOR_WEIGHTS = 1.1
"""A share must hold the weights and a tenth more: with a smaller cache an engine cannot serve requests."""


def require_share(
    gpu: Gpu, share: float, *, model: str = "the model", weight_bytes: int | None = None, engines: int = 1
) -> None:
    """Raise a UsageError, with the numbers, if `share` of the GPU is not free, or if an equal part of it for each of
    `engines` is too small for the weights (`weight_bytes`, if known)."""
    require(0 < share <= 1, f"gpu_memory_share is {share}, not a share", fix="pass a number between 0 and 1")
    free_share = math.floor(gpu.memory_free_bytes / gpu.memory_total_bytes * 100) / 100
    total_gib, free_gib = gpu.memory_total_bytes / GIB, gpu.memory_free_bytes / GIB
    require(
        share <= free_share,
        f"gpu_memory_share {share:g} asks for {share * total_gib:.1f} GiB of GPU {gpu.index} ({gpu.name}), but "
        f"only {free_gib:.1f} of its {total_gib:.1f} GiB are free",
        fix=f"pass a gpu_memory_share of at most {free_share:.2f}, or end other GPU processes (nvidia-smi)",
    )
    room_gib, weight_gib = share / engines * total_gib, (weight_bytes or 0) / GIB
    divided = f", divided among {engines} engines," if engines > 1 else ""
    require(
        room_gib >= ROOM_FOR_WEIGHTS * weight_gib,
        f"the weights of {model} take {weight_gib:.1f} GiB; gpu_memory_share {share:g} of GPU {gpu.index} "
        f"({gpu.name}){divided} is {room_gib:.1f} GiB for each engine, which must hold the KV cache too",
        fix=f"choose a smaller model or a larger share ({free_gib:.1f} GiB are free now)",
    )
