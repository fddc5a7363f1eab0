"""Where Ray puts each replica, and what it finds there when the replicas start one after the other."""

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
    """One replica: the GPUs that Ray gives it (none: it waits), and what it finds there when it starts.

    `waits_on`: the node that Ray chose for it, though none of its GPUs has enough left. `rest_bytes` and `free_bytes`:
    what it holds once it runs and what it finds free, on the tightest of its GPUs. `kv_tokens` and `at_full_length`
    (requests of the longest kind that fit at once): None where weights or architecture are not known. `refused` says
    why it does not start; "" if it does, or is not placed.
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
        """Placed, and as far as is known enough memory is free when its turn comes."""
        return bool(self.gpus) and not self.refused


class GpuAudit(Frozen):
    """One GPU: the replicas that Ray puts there, the sum of their num_gpus, and the memory that all want at rest.

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
        """Whether all of it that is known fits at rest."""
        return self.rest_bytes <= self.total_bytes


def placed(deployments: Sequence[Deployment], cluster: Cluster, *, packed: bool) -> list[tuple[Deployment, int, Place]]:
    """Each replica with its number and where Ray puts it. A deployment that Ray refuses gets no GPU."""
    copies = [(deployment, n) for deployment in deployments for n in range(deployment.replicas)]
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
    """Place all replicas as Ray does and start the placed ones in turn; each finds what those before it have left."""
    cards = cluster.cards
    free = [card.total_bytes - card.used_bytes for card in cards]
    for deployment, n, where in placed(deployments, cluster, packed=cluster.scheduling == "pack"):
        facts: dict[str, Any] = {"rest_bytes": deployment.rest_bytes(cards[0])}
        if where.gpus:
            shared = {gpu: free[gpu] // where.gpus.count(gpu) for gpu in where.gpus}  # two bundles may get the same GPU
            facts |= _start(deployment, [(cards[gpu], free_bytes) for gpu, free_bytes in shared.items()])
            facts |= _same_gpu(deployment, where.gpus)
        name = f"{deployment.name}#{n}" if deployment.replicas > 1 else deployment.name
        replica = Replica(name=name, deployment=deployment, gpus=where.gpus, waits_on=where.waits_on, **facts)
        for gpu in where.gpus if replica.starts else ():
            free[gpu] -= deployment.rest_bytes(cards[gpu]) or 0
        yield replica


def _same_gpu(deployment: Deployment, gpus: Sequence[int]) -> dict[str, Any]:
    """Bundles of at most half a GPU may get the same one, where an engine's ranks cannot both be."""
    if not deployment.is_engine or len(set(gpus)) == len(gpus):
        return {}
    shared = next(gpu for gpu in gpus if gpus.count(gpu) > 1)
    return {
        "refused": f"Ray puts {gpus.count(shared)} of its bundles on GPU {shared}, and NCCL refuses two ranks there"
    }


def _start(deployment: Deployment, cards: Sequence[tuple[Card, int]]) -> dict[str, Any]:
    """What a replica finds when it starts on GPUs with so many bytes free."""

    def left(card_and_free: tuple[Card, int]) -> int:
        return card_and_free[1] - (deployment.rest_bytes(card_and_free[0]) or 0)

    card, free_bytes = min(cards, key=left)
    rest_bytes = deployment.rest_bytes(card)
    found: dict[str, Any] = {"rest_bytes": rest_bytes, "free_bytes": free_bytes}
    if deployment.engine_share is None:
        fits = rest_bytes is None or rest_bytes <= free_bytes
        return {**found, "refused": "" if fits else "out of memory"}
    share = kv_size.EngineShare(
        utilization=deployment.engine_share,
        weights_bytes=deployment.weight_bytes or 0,
        other_bytes=deployment.besides_bytes,
    )
    budgets = [
        kv_size.start_in_turn([share], total_bytes=card.total_bytes, used_bytes=card.total_bytes - free)[0]
        for card, free in cards
    ]
    refused = next((budget.refused for budget in budgets if budget.refused), "")
    if deployment.weight_bytes is None:  # its share is known, what the weights leave of it is not
        return {**found, "refused": refused}
    kv_bytes = min(budget.kv_bytes for budget in budgets)  # the smallest rank sizes the cache of all
    found |= {"kv_bytes": kv_bytes, "refused": refused}
    return found if refused or deployment.architecture is None else found | _cache(deployment, kv_bytes)


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


def on_gpu(index: int, card: Card, replicas: Sequence[Replica]) -> GpuAudit:
    """What the replicas on one GPU ask for and hold."""
    here = [
        (replica, part)
        for replica in replicas
        for gpu, part in zip(replica.gpus, replica.deployment.parts if replica.gpus else (), strict=True)
        if gpu == index
    ]
    held = {replica.name: replica.deployment.rest_bytes(card) for replica, _ in here}
    return GpuAudit(
        index=index,
        node=card.node,
        replicas=tuple(held),
        num_gpus=math.fsum(part for _, part in here),
        rest_bytes=card.used_bytes + sum(held[replica.name] or 0 for replica, _ in here),
        total_bytes=card.total_bytes,
        unknown=tuple(name for name, size in held.items() if size is None),
    )
