"""Describe what is wrong in a sentence with its numbers, and what to change."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from labkit.advice.fractions.cluster import GIB, Card, Cluster
from labkit.advice.fractions.deployments import Deployment
from labkit.advice.fractions.replicas import GpuAudit, Replica
from labkit.advice.fractions.suggest import MORE_THAN_HALF, least_fraction, share_of_part
from labkit.theory.placement import PRECISION

WASTE = 0.1  # of a GPU: report a num_gpus that exceeds the engine's share by more
MOST_LISTED = 16
LARGEST_NODE = 8  # GPUs of today's servers


class Finding(NamedTuple):
    """`error`: a replica does not start or fit. `unknown`: the file does not contain enough to decide.
    `warning`: it works under conditions. `note`: waste, or an assumption."""

    level: Literal["error", "unknown", "warning", "note"]
    subject: str
    text: str
    change: str


def deployment_findings(
    deployment: Deployment, replicas: Sequence[Replica], gpus: Sequence[GpuAudit], cluster: Cluster
) -> Iterator[Finding]:
    own = [replica for replica in replicas if replica.deployment is deployment]
    if deployment.unknown:
        text = f"its memory is unknown: {deployment.unknown}"
        yield Finding("unknown", deployment.name, text, "write it as a file of deployments, with weight_gib")
    yield from _num_gpus(deployment, cluster)
    if deployment.valid and deployment.part > 0:
        yield from _waiting(deployment, [replica for replica in own if not replica.gpus], gpus, cluster)
        yield from _num_gpus_and_memory(deployment, own[0], cluster)
    yield from (_refused(deployment, replica, cluster) for replica in own if replica.refused)
    yield from _cache(deployment, next((replica for replica in own if replica.starts), None))


def gpu_findings(gpu: GpuAudit, replicas: Sequence[Replica], used_bytes: int) -> Iterator[Finding]:
    """Check the sum of a GPU's memory, and the order in which its engines start."""
    placed = [replica for replica in replicas if gpu.index in replica.gpus]
    subject = f"GPU {gpu.index}"
    if not gpu.fits:
        parts = [f"{replica.name} {gib(replica.rest_bytes)}" for replica in placed if replica.rest_bytes is not None]
        parts += [f"others {gib(used_bytes)}"] if used_bytes else []
        text = (
            f"num_gpus adds up to {gpu.num_gpus:.2f}, the memory to {gib(gpu.rest_bytes)} of {gib(gpu.total_bytes)}: "
            f"{', '.join(parts)}"
        )
        excess = gib(gpu.rest_bytes - gpu.total_bytes)
        yield Finding("error", subject, text, f"free {excess}: lower the shares, or move a replica to another GPU")
    engines = [replica.name for replica in placed if replica.deployment.is_engine and replica.starts]
    if len(engines) > 1:
        text = f"{len(engines)} engines measure the free memory while they start, and Ray starts replicas concurrently"
        change = f"deploy one after the other, each when the previous one runs: {', then '.join(engines)}"
        yield Finding("warning", subject, text, change)


def cluster_findings(cluster: Cluster, packed: Sequence[Replica]) -> Iterator[Finding]:
    """Check the whole cluster. `packed`: the replicas that wait only if Ray packs nodes."""
    if packed:
        names = _listed([replica.name for replica in packed])
        text = (
            "Serve's default spreads replicas over the nodes, and all find room. With "
            "RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY=1, or as actors without Serve, Ray fills a node by the sum of "
            f"what its GPUs have left: {names} would wait for a part that no single GPU has"
        )
        change = "num_gpus: 1 / n, with n replicas on a GPU, leaves nothing to add up; or set scheduling: spread"
        yield Finding("error", "the nodes", text, change)
    for sentence in cluster.unread:
        yield Finding("unknown", "the file", sentence, "write it into the file, or audit it separately")
    for sentence in cluster.on_cpus:
        yield Finding("note", "the file", sentence, "nothing, if they compute on CPUs")
    if len(cluster.rows) > 1 and cluster.scheduling != "pack":
        text = "the nodes differ: Ray takes them in the order of their ids, the audit in the order of the file"
        yield Finding("note", "the nodes", text, "audit the rows in another order, too")
    row = cluster.rows[0]
    if len(cluster.gpus_per_node) == 1 and row.count > LARGEST_NODE:
        text = f"{row.count} GPUs are assumed to be on one node; Ray never adds up GPUs of two nodes for a replica"
        change = f"if they are on several: count: {LARGEST_NODE}, nodes: {math.ceil(row.count / LARGEST_NODE)}"
        yield Finding("note", "the nodes", text, change)


def gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB"


def _listed(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - MOST_LISTED} more" if len(texts) > MOST_LISTED else ""
    return ", ".join(texts[:MOST_LISTED]) + more


def _num_gpus(deployment: Deployment, cluster: Cluster) -> Iterator[Finding]:
    least = least_fraction(deployment, cluster.cards)
    change = f"num_gpus: {least:.2f}" if least is not None else "a larger GPU" if deployment.least_bytes else "a number"
    if not deployment.valid:
        text = f"num_gpus is {deployment.asks}: Ray takes a part of one GPU or whole GPUs, and fails the deployment"
        change += f", or {math.ceil(sum(deployment.bundles))} for a model that is split over as many GPUs"
        yield Finding("error", deployment.name, text, change)
    elif deployment.part == 0:
        takes = gib(deployment.least_bytes) if deployment.least_bytes else "memory"
        text = f"num_gpus is 0: Ray reserves no GPU for it, but each replica takes {takes}"
        yield Finding("error", deployment.name, text, change)


def _waiting(
    deployment: Deployment, waiting: Sequence[Replica], gpus: Sequence[GpuAudit], cluster: Cluster
) -> Iterator[Finding]:
    if not waiting:
        return
    left, needed = [max(0.0, 1 - gpu.num_gpus) for gpu in gpus], deployment.asks
    text = f"waiting: {len(waiting)} of {deployment.replicas} replicas; "
    stuck = sorted({replica.waits_on for replica in waiting if replica.waits_on is not None})
    parts = _listed([f"{part:.2f}" for part in left])
    several = len(cluster.gpus_per_node) > 1
    if deployment.accelerator_type and cluster.nodes_with(deployment.accelerator_type) == frozenset():
        text += f"no node has a GPU of type {deployment.accelerator_type}"
    elif several and stuck:
        chosen = ", ".join(map(str, stuck))
        sums = ", ".join(f"{sum(left[gpu.index] for gpu in gpus if gpu.node == node):.2f}" for node in stuck)
        text += (
            f"Ray chose node {chosen} for them, where {sums} GPUs are left in total, but none of its GPUs has {needed} "
            f"left ({parts} are left of all GPUs): Ray chooses a node by the sum, and they wait there for good"
        )
    else:
        text += (
            f"none of the GPUs has {needed} left ({parts} are left, {sum(left):.2f} in total, but Ray never adds up "
            f"parts of two GPUs{', nor GPUs of two nodes for an actor' if several else ''})"
        )
    if deployment.max_replicas_per_node:
        text += f"; max_replicas_per_node is {deployment.max_replicas_per_node}"
    if deployment.min_replicas is not None and deployment.replicas - len(waiting) >= deployment.min_replicas:
        text += f"; the {deployment.min_replicas} of min_replicas are placed, so it cannot scale to max_replicas"
    yield Finding("error", deployment.name, text, _more_room(deployment, max(left), cluster, stuck=bool(stuck)))


def _more_room(deployment: Deployment, most_left: float, cluster: Cluster, *, stuck: bool) -> str:
    part, count = deployment.part, deployment.gpus_each
    if stuck and not deployment.is_group and part < 1:
        unit = math.floor(PRECISION / math.floor(1 / part)) / PRECISION
        return f"num_gpus: {unit:g}, 1/n of a GPU, which leaves nothing that Ray could add up; or more GPUs"
    if not deployment.is_group and count > max(cluster.gpus_per_node):
        return f"num_gpus: 1 and tensor_parallel: {count}: the bundles of a placement group can be on several nodes"
    smaller = f", or num_gpus of at most {_floor(most_left)}" if 0 < most_left < part <= 1 else ""
    return f"fewer replicas, more GPUs{smaller}"


def _num_gpus_and_memory(deployment: Deployment, replica: Replica, cluster: Cluster) -> Iterator[Finding]:
    """Compare num_gpus with the memory that a replica takes on each GPU."""
    cards = [cluster.cards[gpu] for gpu in replica.gpus] or cluster.cards[:1]
    held = [
        (rest / card.total_bytes, rest, card) for card in cards if (rest := deployment.rest_bytes(card)) is not None
    ]
    if not held:
        return
    part, (taken, rest_bytes, card) = deployment.part, max(held)
    numbers = f"it asks Ray for {part:.2f} of a GPU and takes {taken:.2f}"
    change = f"num_gpus: {min(1.0, math.ceil(taken * 100 - 1e-6) / 100):.2f}"
    if taken > part + 1e-6:
        text = f"{numbers} of its memory ({gib(rest_bytes)}): nothing enforces the smaller number"
        change += f", or engine_share: {part:.2f}" if deployment.is_engine else ""
        yield Finding("warning", deployment.name, text, change)
    elif deployment.is_engine and part - max(taken, MORE_THAN_HALF if len(deployment.bundles) > 1 else 0) > WASTE:
        text = f"{numbers}: {gib((part - taken) * card.total_bytes)} stay unused, and no other replica may use them"
        smaller = f"{change}, or " if deployment.gpus_each == 1 else ""
        yield Finding("note", deployment.name, text, f"{smaller}a larger engine_share")


def _refused(deployment: Deployment, replica: Replica, cluster: Cluster) -> Finding:
    memory = f"needs {gib(replica.rest_bytes or 0)}, finds {gib(replica.free_bytes)} free"
    text = f"does not start on GPU {', '.join(map(str, replica.gpus))} ({memory}): {replica.refused}"
    if len(set(replica.gpus)) < len(replica.gpus):
        change = "num_gpus above 0.5 for each bundle, or strategy: STRICT_SPREAD over as many nodes"
    else:
        smallest = min((cluster.cards[gpu] for gpu in replica.gpus), key=lambda card: card.total_bytes)
        change = _more_memory(deployment, replica, smallest)
    return Finding("error", replica.name, text, change)


def _more_memory(deployment: Deployment, replica: Replica, card: Card) -> str:
    least, part_share = deployment.least_bytes, share_of_part(deployment.part, [card])
    if least is None:
        return f"engine_share: {_floor(part_share)} in every replica, its part of the free memory"
    if deployment.engine_share is None:
        return f"a GPU with {gib(least)} free"
    share = math.ceil(least / card.total_bytes * 100) / 100
    longest = deployment.context_tokens
    request = f", the engine itself and one request of {longest:,} tokens" if longest else " and the engine itself"
    words = f"weights{request} take {gib(least)}"
    if replica.longest_tokens and (replica.rest_bytes or 0) <= replica.free_bytes:
        return f"max_model_len: {replica.longest_tokens}, or engine_share: {share:.2f} ({words})"
    if share <= part_share < deployment.engine_share:
        return f"engine_share: {_floor(part_share)} in every replica, its part of the free memory ({words})"
    if least <= replica.free_bytes:
        return f"engine_share from {share:.2f} ({words}) to {_floor(replica.free_bytes / card.total_bytes)}"
    return f"a GPU with {gib(least)} free ({words}), or a smaller max_model_len"


def _floor(share: float) -> str:
    return f"{math.floor(share * 100 + 1e-6) / 100:.2f}"


def _cache(deployment: Deployment, running: Replica | None) -> Iterator[Finding]:
    """Yield the assumptions on the KV cache, and whether it holds max_num_seqs requests."""
    if running is None:
        return
    for note in running.kv_notes:
        yield Finding("note", deployment.name, note, "compare with the engine's own log (labkit log FILE)")
    requests, fit = deployment.max_num_seqs, running.at_full_length
    if requests and fit is not None and fit < requests:
        text = (
            f"of {requests} concurrent requests {fit:.1f} fit at their full {deployment.context_tokens:,} tokens "
            f"({running.kv_tokens:,} tokens of cache); the others are preempted and recomputed"
        )
        change = f"nothing if requests are short; otherwise max_num_seqs: {max(1, int(fit))}"
        yield Finding("note", deployment.name, text, change)
