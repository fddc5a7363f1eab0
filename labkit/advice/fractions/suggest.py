"""Suggest num_gpus and engine_share for every deployment so that all fit, or the number of GPUs that they need."""

import math
from collections.abc import Callable, Mapping, Sequence

from labkit.advice.fractions.cluster import GIB, Card, Cluster
from labkit.advice.fractions.deployments import Deployment
from labkit.advice.fractions.replicas import place_replicas, start_replicas
from labkit.errors import UsageError
from labkit.files import Frozen
from labkit.theory import kv_size
from labkit.theory.placement import PRECISION

MARGIN = 0.005  # of a GPU, so that no sum of shares takes exactly the free memory
FACTORS = [1.02**step for step in range(234)]  # multiples of the least need, from a hundredth of a GPU to a whole one
MOST_GPUS_TRIED = 4096
MOST_SHARE = 0.92  # vLLM 0.32's default; CUDA needs some of the rest
MORE_THAN_HALF = 0.51  # so that two bundles of a replica cannot get the same GPU


class Suggestion(Frozen):
    """Deployments with num_gpus and engine_share that fit, to be deployed in this order, one after the other.

    Empty if nothing fits: `gpus_needed` is then a sufficient number of GPUs, or 0 if a replica is larger than a GPU or
    cannot be split over its GPUs (`impossible` describes it).
    """

    deployments: tuple[Deployment, ...] = ()
    gpus_needed: int = 0
    impossible: str = ""


def suggest(deployments: Sequence[Deployment], cluster: Cluster) -> Suggestion | None:
    """Scale the engines' shares by the largest common factor that fits, then the fractions of the other deployments.

    None: the memory of a deployment is unknown."""
    if any(deployment.least_bytes is None for deployment in deployments):
        return None
    least: dict[str, float] = {}
    for deployment in deployments:
        fraction, impossible = least_fraction(deployment, cluster.cards), _cannot_be_split(deployment)
        if impossible or fraction is None:
            return Suggestion(impossible=impossible or _too_large(deployment, cluster.cards))
        least[deployment.name] = fraction

    def starts(engines: float, others: float, on: Cluster) -> bool:
        return _all_start(_scaled(deployments, least, engines=engines, others=others, cluster=on), on)

    if not starts(1, 1, cluster):
        more = _last(lambda more: not starts(1, 1, cluster.larger(more)))
        return Suggestion(gpus_needed=0 if more is None else len(cluster.larger(more + 1).cards))
    kinds = {deployment.is_engine for deployment in deployments}
    engines = _largest(lambda factor: starts(factor, 1, cluster)) if True in kinds else 1
    others = _largest(lambda factor: starts(engines, factor, cluster)) if False in kinds else 1
    scaled = _scaled(deployments, least, engines=engines, others=others, cluster=cluster)
    return Suggestion(deployments=tuple(scaled))


def least_fraction(deployment: Deployment, cards: Sequence[Card]) -> float | None:
    """Return the smallest num_gpus, in hundredths, whose part of the free memory holds a replica on every card that can
    hold one at all; None: no card can, or the memory is unknown."""
    if (least := deployment.least_bytes) is None:
        return None
    sizes = [card.total_bytes for card in set(cards) if share_of_part(1, [card]) * card.total_bytes >= least]
    parts = (hundredths / 100 for hundredths in range(1, 101) if sizes)
    return next((part for part in parts if share_of_part(part, cards) * min(sizes) >= least), None)


def share_of_part(part: float, cards: Sequence[Card]) -> float:
    """Return the share of a GPU's memory for `part` of its free memory, in hundredths and with a margin."""
    free_share = min(card.free_share for card in cards)
    return max(0.0, math.floor((part * free_share - MARGIN) * 100) / 100)


def _cannot_be_split(deployment: Deployment) -> str:
    """Return why the model's heads cannot be split over the replica's GPUs, or ""."""
    if deployment.architecture is None or deployment.gpus_each == 1:
        return ""
    try:
        kv_size.kv_heads_per_rank(deployment.architecture, deployment.gpus_each)
    except UsageError as error:
        return f"{deployment.name}: {error.what}"
    return ""


def _too_large(deployment: Deployment, cards: Sequence[Card]) -> str:
    card = max(cards, key=lambda card: card.total_bytes - card.used_bytes)
    free_gib = (card.total_bytes - card.used_bytes) / GIB
    text = f"{deployment.name} needs {(deployment.least_bytes or 0) / GIB:.1f} GiB on a GPU with {free_gib:.1f} free"
    for count in (2, 4, 8, 16):
        split = deployment.model_copy(update={"num_gpus": float(count), "tensor_parallel": None})
        if count > deployment.gpus_each and not _cannot_be_split(split) and least_fraction(split, cards) is not None:
            return f"{text}; split over {count} GPUs (num_gpus: {count}) it would fit"
    return text


def _scaled(
    deployments: Sequence[Deployment], least: Mapping[str, float], *, engines: float, others: float, cluster: Cluster
) -> list[Deployment]:
    """Give each deployment its least part of a GPU times a factor; the largest come first and waste least."""
    scaled = []
    for deployment in deployments:
        factor = engines if deployment.is_engine else others
        num_gpus, part = deployment.num_gpus, deployment.part
        if not deployment.valid or deployment.part < 1 or deployment.gpus_each == 1:
            part = min(1.0, math.floor(least[deployment.name] * factor * 100 + 1e-6) / 100)
            if len(deployment.bundles) > 1:
                part = max(part, MORE_THAN_HALF)
            elif len(cluster.gpus_per_node) > 1:  # 1/n of a GPU leaves nothing that Ray could add up
                part = math.floor(PRECISION / math.floor(1 / part)) / PRECISION
            num_gpus = [part] * len(deployment.bundles) if isinstance(num_gpus, list) else part
        most = max(MOST_SHARE, share_of_part(least[deployment.name], cluster.cards))
        share = min(most, share_of_part(part, cluster.cards)) if deployment.is_engine else None
        scaled.append(deployment.model_copy(update={"num_gpus": num_gpus, "engine_share": share}))
    return sorted(scaled, key=lambda deployment: -sum(deployment.bundles))


def _all_start(deployments: Sequence[Deployment], cluster: Cluster) -> bool:
    """Whether all replicas are placed by every possible scheduling, and start; on equal cards their parts ensure it."""
    both = cluster.scheduling is None and len(cluster.gpus_per_node) > 1
    for packed in (False, True) if both else (cluster.scheduling == "pack",):
        if not all(place.gpus for _, _, place in place_replicas(deployments, cluster, packed=packed)):
            return False
    equal = len({card[1:] for card in cluster.cards}) == 1
    return equal or all(replica.starts for replica in start_replicas(deployments, cluster))


def _largest(holds: Callable[[float], bool]) -> float:
    """Return the largest of FACTORS for which `holds`, by bisection; it holds for the first."""
    step = _last(lambda step: holds(FACTORS[step]), most=len(FACTORS))
    return FACTORS[-1 if step is None else step]


def _last(holds: Callable[[int], bool], *, most: int = MOST_GPUS_TRIED) -> int | None:
    """Return the last number before `holds` fails (it holds at 0); None: it still holds at `most` - 1."""
    low, high = 0, 1
    while high < most and holds(high):
        low, high = high, 2 * high
    if high >= most and holds(most - 1):
        return None
    high = min(high, most - 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
