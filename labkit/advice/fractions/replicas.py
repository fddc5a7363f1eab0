"""Place each replica as Ray does, and start the replicas one after the other."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from labkit.advice.fractions.cluster import Card, Cluster
from labkit.advice.fractions.deployments import Deployment
from labkit.errors import UsageError
from labkit.files import Frozen
from labkit.theory import kv_size
from labkit.theory.nodes import Place, Request, place


class Replica(Frozen):
    """A replica, its GPUs (none: it waits), and the memory there when it starts.

    `waits_on`: the node that Ray chose although none of its GPUs has enough left. `rest_bytes`, `free_bytes`: the
    memory that it holds once it runs and that it finds free, on its tightest GPU. `kv_tokens`, `at_full_length` (how
    many of the longest requests fit): None if weights or architecture are unknown. `refused`: why it does not start.
    """

    name: str
    deployment: Deployment
    gpus: tuple[int, ...]
    waits_on: int | None = None
    rest_bytes: int | None
    free_bytes: int = 0
    kv_bytes: int = 0
    kv_tokens: int | None = None
    longest_tokens: int | None = None
    at_full_length: float | None = None
    kv_notes: tuple[str, ...] = ()
    refused: str = ""

    @property
    def starts(self) -> bool:
        """Whether it is placed and, as far as is known, finds enough free memory."""
        return bool(self.gpus) and not self.refused


class GpuAudit(Frozen):
    """A GPU, its replicas, the sum of their num_gpus, and the memory that all of them hold at rest.

    `unknown`: the replicas whose memory is not in the sum.
    """

    index: int
    node: int
    replicas: tuple[str, ...]
    num_gpus: float
    rest_bytes: int
    total_bytes: int
    unknown: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return self.rest_bytes <= self.total_bytes


def place_replicas(
    deployments: Sequence[Deployment], cluster: Cluster, *, packed: bool
) -> list[tuple[Deployment, int, Place]]:
    """Return each replica with its number and its place. A deployment that Ray refuses gets no GPU."""
    copies = [(deployment, n) for deployment in deployments for n in range(deployment.replicas)]
    # Those above an autoscaler's minimum come later, when load arrives.
    copies.sort(key=lambda copy: copy[0].min_replicas is not None and copy[1] >= copy[0].min_replicas)
    requests = [
        Request(
            bundles=deployment.bundles if deployment.valid else (0.0,),
            strategy=deployment.strategy if deployment.is_group else None,
            nodes=cluster.nodes_with(deployment.accelerator_type),
            deployment=deployment.name,
            per_node=deployment.max_replicas_per_node,
        )
        for deployment, _ in copies
    ]
    places = place(requests, cluster.gpus_per_node, packed=packed)
    return [(deployment, n, where) for (deployment, n), where in zip(copies, places, strict=True)]


def start_replicas(deployments: Sequence[Deployment], cluster: Cluster) -> Iterator[Replica]:
    """Place all replicas and start them in turn, each in the memory that those before it have left."""
    cards = cluster.cards
    free = [card.total_bytes - card.used_bytes for card in cards]
    for deployment, n, (gpus, waits_on) in place_replicas(deployments, cluster, packed=cluster.scheduling == "pack"):
        facts: dict[str, Any] = {"rest_bytes": deployment.rest_bytes(cards[0])}
        if gpus:
            shared = {gpu: free[gpu] // gpus.count(gpu) for gpu in gpus}  # two bundles can get the same GPU
            facts |= _start(deployment, [(cards[gpu], free_bytes) for gpu, free_bytes in shared.items()])
            if deployment.is_engine and len(shared) < len(gpus):
                gpu = next(gpu for gpu in gpus if gpus.count(gpu) > 1)
                on_one = f"Ray puts {gpus.count(gpu)} of its bundles on GPU {gpu}"
                facts["refused"] = f"{on_one}, and NCCL refuses two ranks on a GPU"
        name = f"{deployment.name}#{n}" if deployment.replicas > 1 else deployment.name
        replica = Replica(name=name, deployment=deployment, gpus=gpus, waits_on=waits_on, **facts)
        for gpu in gpus if replica.starts else ():
            free[gpu] -= deployment.rest_bytes(cards[gpu]) or 0
        yield replica


def _start(deployment: Deployment, cards: Sequence[tuple[Card, int]]) -> dict[str, Any]:
    """Return the memory facts of a replica that starts on GPUs with these free bytes."""

    def left(card_and_free: tuple[Card, int]) -> int:
        return card_and_free[1] - (deployment.rest_bytes(card_and_free[0]) or 0)

    card, free_bytes = min(cards, key=left)
    rest_bytes = deployment.rest_bytes(card)
    facts: dict[str, Any] = {"rest_bytes": rest_bytes, "free_bytes": free_bytes}
    if deployment.engine_share is None:
        fits = rest_bytes is None or rest_bytes <= free_bytes
        return {**facts, "refused": "" if fits else "out of memory"}
    share = kv_size.EngineShare(
        utilization=deployment.engine_share,
        weights_bytes=deployment.weight_bytes or 0,
        other_bytes=deployment.other_bytes,
    )
    budgets = [
        kv_size.start_in_turn([share], total_bytes=card.total_bytes, used_bytes=card.total_bytes - free)[0]
        for card, free in cards
    ]
    refused = next((budget.refused for budget in budgets if budget.refused), "")
    if deployment.weight_bytes is None:  # the share is known, the KV cache beside the weights is not
        return {**facts, "refused": refused}
    kv_bytes = min(budget.kv_bytes for budget in budgets)  # the smallest rank sizes the cache of all
    facts |= {"kv_bytes": kv_bytes, "refused": refused}
    return facts if refused or deployment.architecture is None else facts | _cache(deployment, kv_bytes)


def _cache(deployment: Deployment, kv_bytes: int) -> dict[str, Any]:
    try:
        cache = deployment.kv_plan(kv_bytes)
    except UsageError as error:  # less than a block, or heads that cannot be split over the GPUs
        return {"refused": error.what}
    return {
        "kv_tokens": cache.tokens,
        "longest_tokens": cache.longest_tokens,
        "at_full_length": cache.max_concurrency,
        "kv_notes": cache.notes if cache.fits else (),
        "refused": "" if cache.fits else f"the longest request that fits has {cache.longest_tokens:,} tokens",
    }


def audit_gpu(index: int, card: Card, replicas: Sequence[Replica]) -> GpuAudit:
    """Add up num_gpus and memory of the replicas on one GPU."""
    parts = [
        (replica, part)
        for replica in replicas
        for gpu, part in zip(replica.gpus, replica.deployment.parts if replica.gpus else (), strict=True)
        if gpu == index
    ]
    held = {replica.name: replica.deployment.rest_bytes(card) for replica, _ in parts}
    return GpuAudit(
        index=index,
        node=card.node,
        replicas=tuple(held),
        num_gpus=math.fsum(part for _, part in parts),
        rest_bytes=card.used_bytes + sum(held[replica.name] or 0 for replica, _ in parts),
        total_bytes=card.total_bytes,
        unknown=tuple(name for name, size in held.items() if size is None),
    )
