"""What engines that share one GPU get for their KV caches, by vLLM's own rule: a share of the whole, taken up front.

vLLM 0.32 (v1/worker/utils.py `request_memory`, v1/worker/gpu_worker.py `determine_available_memory`): each instance
asks for gpu_memory_utilization x the GPU's total memory, refuses to start when less is free at that moment, and gives
its KV cache what weights and everything else leave of the share. No instance knows of another.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from labkit.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class EngineShare:
    """One instance: its gpu_memory_utilization (0 to 1), its weights, and `other`: activations, context, graphs."""

    utilization: float
    weights_bytes: int
    other_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What an instance found and got. `kv_bytes` is 0 where `refused` says why it does not start."""

    requested_bytes: int
    free_bytes: int
    kv_bytes: int
    refused: str = ""


def start_in_turn(engines: Sequence[EngineShare], *, total_bytes: int, used_bytes: int = 0) -> list[Budget]:
    """The budgets of instances that start one after the other on a GPU with `total_bytes`, of which others use some.

    UsageError: a share that is none, or sizes below zero.
    """
    budgets = []
    free = total_bytes - used_bytes
    for engine in engines:
        _check(engine, total_bytes=total_bytes, free_bytes=free)
        budget = _budget(engine, total_bytes=total_bytes, free_bytes=free)
        free -= 0 if budget.refused else budget.requested_bytes
        budgets.append(budget)
    return budgets


def _budget(engine: EngineShare, *, total_bytes: int, free_bytes: int) -> Budget:
    requested = math.ceil(total_bytes * engine.utilization)
    rest = requested - engine.weights_bytes - engine.other_bytes
    refused = ""
    if free_bytes < requested:
        refused = "less memory is free than the share asks for"
    elif rest <= 0:
        refused = "the share leaves nothing for the KV cache"
    return Budget(requested_bytes=requested, free_bytes=free_bytes, kv_bytes=0 if refused else rest, refused=refused)


def _check(engine: EngineShare, *, total_bytes: int, free_bytes: int) -> None:
    if not 0 < engine.utilization <= 1:
        raise UsageError(f"utilization is {engine.utilization}, not a share", remedy="pass a number above 0, at most 1")
    if min(total_bytes, free_bytes, engine.weights_bytes, engine.other_bytes) < 0:
        raise UsageError(
            f"total {total_bytes:,}, free {free_bytes:,}, weights {engine.weights_bytes:,}, other "
            f"{engine.other_bytes:,} bytes: a size below zero",
            remedy="give sizes in bytes, from 0 up",
        )
