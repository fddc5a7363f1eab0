"""Where Ray puts each replica, and what it finds there when the replicas start one after the other."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from labkit.advice.fractions.deployments import Deployment, Gpus
from labkit.errors import UsageError
from labkit.files import GPU_BLOCK_SIZE, Frozen
from labkit.theory import kv_size
from labkit.theory.placement import best_fit


class Replica(Frozen):
    """One replica: the GPUs that Ray gives it (none: it waits), and what it finds there when it starts.

    `rest_bytes`: what it holds on each of its GPUs once it runs. `free_bytes`: what it finds free, on the fullest of
    them. `kv_tokens` and `at_full_length` (requests of the longest kind that fit at once): None where the model's
    architecture is not known. `refused` says why it does not start; "" if it does, or is not placed.
    """

    name: str
    deployment: Deployment
    gpus: tuple[int, ...]
    rest_bytes: int
    free_bytes: int = 0
    kv_bytes: int = 0
    kv_tokens: int | None = None
    longest_tokens: int | None = None
    at_full_length: float | None = None
    refused: str = ""

    @property
    def starts(self) -> bool:
        """Placed, and enough memory is free when its turn comes."""
        return bool(self.gpus) and not self.refused


class GpuAudit(Frozen):
    """One GPU: the replicas that Ray puts there, the sum of their num_gpus, and the memory that all want at rest."""

    index: int
    replicas: tuple[str, ...]
    num_gpus: float
    rest_bytes: int
    total_bytes: int

    @property
    def fits(self) -> bool:
        """Whether all of it fits at rest."""
        return self.rest_bytes <= self.total_bytes


def start_replicas(deployments: Sequence[Deployment], gpus: Gpus) -> Iterator[Replica]:
    """Place all replicas as Ray does and start the placed ones in turn; each finds what those before it have left.

    A replica that Ray refuses or leaves waiting has no GPUs.
    """
    copies = [(deployment, n) for deployment in deployments for n in range(deployment.replicas)]
    asked = [deployment.num_gpus if deployment.valid else 0.0 for deployment, _ in copies]
    free = [gpus.total_bytes - gpus.used_bytes] * gpus.count
    for (deployment, n), placed in zip(copies, best_fit(asked, gpus.count), strict=True):
        name = f"{deployment.name}#{n}" if deployment.replicas > 1 else deployment.name
        facts = _start(deployment, gpus, min(free[gpu] for gpu in placed)) if placed else {}
        replica = Replica(
            name=name, deployment=deployment, gpus=placed, rest_bytes=_rest_bytes(deployment, gpus), **facts
        )
        for gpu in placed if replica.starts else ():
            free[gpu] -= replica.rest_bytes
        yield replica


def _rest_bytes(deployment: Deployment, gpus: Gpus) -> int:
    """What a running replica holds on each of its GPUs: an engine all of its share, whatever it uses of it."""
    if deployment.engine_share is None:
        return deployment.weight_bytes + deployment.besides_bytes
    return math.ceil(gpus.total_bytes * deployment.engine_share)


def _start(deployment: Deployment, gpus: Gpus, free_bytes: int) -> dict[str, Any]:
    """What a replica finds when it starts."""
    if deployment.engine_share is None:
        fits = _rest_bytes(deployment, gpus) <= free_bytes
        return {"free_bytes": free_bytes, "refused": "" if fits else "out of memory"}
    share = kv_size.EngineShare(
        utilization=deployment.engine_share,
        weights_bytes=deployment.weight_bytes,
        other_bytes=deployment.besides_bytes,
    )
    (budget,) = kv_size.start_in_turn([share], total_bytes=gpus.total_bytes, used_bytes=gpus.total_bytes - free_bytes)
    started = {"free_bytes": free_bytes, "kv_bytes": budget.kv_bytes, "refused": budget.refused}
    if budget.refused or deployment.architecture is None:
        return started
    try:
        cache = kv_size.describe(
            deployment.architecture,
            memory_bytes=budget.kv_bytes,
            block_size=GPU_BLOCK_SIZE,
            max_model_len=deployment.context_tokens,
            tensor_parallel=deployment.gpus_each,
        )
    except UsageError as error:  # less than a block, or heads that cannot be split over the GPUs
        return {**started, "refused": error.what}
    return {
        **started,
        "kv_tokens": cache.tokens,
        "longest_tokens": cache.longest_tokens,
        "at_full_length": cache.max_concurrency,
        "refused": "" if cache.fits else f"the longest request that fits has {cache.longest_tokens:,} tokens",
    }


def on_gpu(index: int, replicas: Sequence[Replica], gpus: Gpus) -> GpuAudit:
    """What the replicas on one GPU ask for and hold."""
    here = [replica for replica in replicas if index in replica.gpus]
    return GpuAudit(
        index=index,
        replicas=tuple(replica.name for replica in here),
        num_gpus=math.fsum(min(1.0, replica.deployment.num_gpus) for replica in here),
        rest_bytes=gpus.used_bytes + sum(replica.rest_bytes for replica in here),
        total_bytes=gpus.total_bytes,
    )
