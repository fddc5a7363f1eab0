"""Numbers that fit: num_gpus and engine_share for every deployment, or how many GPUs it would take."""

import math
from collections.abc import Callable, Mapping, Sequence

from labkit.advice.fractions.cluster import GIB, Card, Cluster
from labkit.advice.fractions.deployments import Deployment
from labkit.advice.fractions.replicas import placed, start_replicas
from labkit.errors import UsageError
from labkit.files import Frozen
from labkit.theory import kv_size
from labkit.theory.placement import PRECISION

MARGIN = 0.005  # of a GPU, so that no sum of shares ends exactly at what is free
FACTORS = [1.02**step for step in range(234)]  # of the least need, up to the whole GPU of what needs a hundredth
MOST_GPUS_TRIED = 4096
MOST_SHARE = 0.92  # vLLM 0.32's default; CUDA itself needs some of the rest
MORE_THAN_HALF = 0.51  # two bundles of a replica cannot get the same GPU


class Suggestion(Frozen):
    """Deployments with num_gpus and engine_share that fit, to be deployed in this order, one when the last one runs.

    Empty where nothing fits on these GPUs: `gpus_needed` is then how many of them would do; 0 where a replica is
    larger than a GPU, or cannot be split over as many as it asks for (`impossible` says so, with the numbers).
    """

    deployments: tuple[Deployment, ...] = ()
    gpus_needed: int = 0
    impossible: str = ""


def suggest(deployments: Sequence[Deployment], cluster: Cluster) -> Suggestion | None:
    """Deployments with numbers that fit on these GPUs: caches as large as some common factor allows, then fractions of
    the others that use the GPUs there are. None where the memory of one is not known."""
    if any(deployment.least_bytes is None for deployment in deployments):
        return None
    least: dict[str, float] = {}
    for deployment in deployments:
        fraction, impossible = least_fraction(deployment, cluster.cards), _cannot_be_split(deployment)
        if impossible or fraction is None:
            return Suggestion(impossible=impossible or _too_large(deployment, cluster.cards))
        least[deployment.name] = fraction

    def scaled(engines: float, others: float, where: Cluster) -> list[Deployment]:
        return _scaled(deployments, least, engines=engines, others=others, cluster=where)

    if not _all_start(scaled(1, 1, cluster), cluster):
        more = _last(lambda more: not _all_start(scaled(1, 1, cluster.larger(more)), cluster.larger(more)))
        return Suggestion(gpus_needed=0 if more is None else len(cluster.larger(more + 1).cards))
    kinds = {deployment.is_engine for deployment in deployments}
    engines = _best(lambda factor: scaled(factor, 1, cluster), cluster) if True in kinds else 1
    others = _best(lambda factor: scaled(engines, factor, cluster), cluster) if False in kinds else 1
    return Suggestion(deployments=tuple(scaled(engines, others, cluster)))


def least_fraction(deployment: Deployment, cards: Sequence[Card]) -> float | None:
    """The smallest num_gpus, in hundredths, whose part of the free memory holds a replica, on each of the cards that
    can hold one at all; None: none of them can, or its memory is not known."""
    if (least := deployment.least_bytes) is None:
        return None
    sizes = [card.total_bytes for card in set(cards) if share_of_part(1, [card]) * card.total_bytes >= least]
    parts = (hundredths / 100 for hundredths in range(1, 101) if sizes)
    return next((part for part in parts if share_of_part(part, cards) * min(sizes) >= least), None)


def share_of_part(part: float, cards: Sequence[Card]) -> float:
    """The share of all memory that belongs to `part` of any of the GPUs, in whole hundredths, a margin below it."""
    free_share = min(card.free_share for card in cards)
    return max(0.0, math.floor((part * free_share - MARGIN) * 100) / 100)


def _cannot_be_split(deployment: Deployment) -> str:
    """Why the model's heads cannot be split over the replica's GPUs; "" where they can."""
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
    """Each with its least part of a GPU times a factor, the largest first: that wastes least in Ray."""
    scaled = []
    for deployment in deployments:
        factor = engines if deployment.is_engine else others
        asked, part = deployment.num_gpus, deployment.part
        if not deployment.valid or deployment.part < 1 or deployment.gpus_each == 1:
            part = min(1.0, math.floor(least[deployment.name] * factor * 100 + 1e-6) / 100)
            if len(deployment.bundles) > 1:
                part = max(part, MORE_THAN_HALF)
            elif len(cluster.gpus_per_node) > 1:  # 1/n of a GPU leaves nothing that Ray could add up
                part = math.floor(PRECISION / math.floor(1 / part)) / PRECISION
            asked = [part] * len(deployment.bundles) if isinstance(asked, list) else part
        most = max(MOST_SHARE, share_of_part(least[deployment.name], cluster.cards))
        share = min(most, share_of_part(part, cluster.cards)) if deployment.is_engine else None
        scaled.append(deployment.model_copy(update={"num_gpus": asked, "engine_share": share}))
    return sorted(scaled, key=lambda deployment: -sum(deployment.bundles))


def _all_start(deployments: Sequence[Deployment], cluster: Cluster) -> bool:
    """Whether all replicas are placed, however Ray schedules, and start: on equal cards their parts see to that."""
    unsaid = cluster.scheduling is None and len(cluster.gpus_per_node) > 1
    packings = (False, True) if unsaid else (cluster.scheduling == "pack",)
    for packed in packings:
        if not all(where.gpus for _, _, where in placed(deployments, cluster, packed=packed)):
            return False
    equal = len({card[1:] for card in cluster.cards}) == 1
    return equal or all(replica.starts for replica in start_replicas(deployments, cluster))


def _best(scaled: Callable[[float], Sequence[Deployment]], cluster: Cluster) -> float:
    """The largest of the factors, by bisection, with which all replicas start; the first one does."""
    step = _last(lambda step: _all_start(scaled(FACTORS[step]), cluster), most=len(FACTORS))
    return FACTORS[-1 if step is None else step]


def _last(holds: Callable[[int], bool], *, most: int = MOST_GPUS_TRIED) -> int | None:
    """The last number before `holds` fails, of a property that holds at 0; None: it still holds at `most` - 1."""
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
