"""What is wrong, in a sentence with its numbers, and what to change, with a number too."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from labkit.advice.fractions.deployments import GIB, Deployment, Gpus
from labkit.advice.fractions.replicas import GpuAudit, Replica
from labkit.advice.fractions.suggest import least_fraction, share_of_part

WASTE = 0.1  # of a GPU: a promise that exceeds the share by more than this is reported


class Finding(NamedTuple):
    """`error`: it does not come up, or does not fit. `warning`: it works until something happens. `note`: waste."""

    level: Literal["error", "warning", "note"]
    subject: str
    text: str
    change: str


def deployment_findings(
    deployment: Deployment, replicas: Sequence[Replica], on_gpus: Sequence[GpuAudit], gpus: Gpus
) -> Iterator[Finding]:
    """The findings on one deployment."""
    own = [replica for replica in replicas if replica.deployment is deployment]
    yield from _num_gpus(deployment, gpus)
    if deployment.valid and deployment.num_gpus > 0:
        yield from _waiting(deployment, [replica for replica in own if not replica.gpus], on_gpus)
        yield from _promise(deployment, own[0].rest_bytes, gpus)
    yield from (_refused(deployment, replica, gpus) for replica in own if replica.refused)
    yield from _length(deployment, next((replica for replica in own if replica.starts), None))


def gpu_findings(gpu: GpuAudit, replicas: Sequence[Replica], gpus: Gpus) -> Iterator[Finding]:
    """The findings on one GPU: the sum of its memory, and the order in which its engines start."""
    here = [replica for replica in replicas if gpu.index in replica.gpus]
    subject = f"GPU {gpu.index}"
    if not gpu.fits:
        parts = [f"{replica.name} {gib(replica.rest_bytes)}" for replica in here]
        parts += [f"others {gib(gpus.used_bytes)}"] if gpus.used_bytes else []
        text = (
            f"num_gpus adds up to {gpu.num_gpus:.2f}, the memory to {gib(gpu.rest_bytes)} of {gib(gpu.total_bytes)}: "
            f"{', '.join(parts)}"
        )
        excess = gib(gpu.rest_bytes - gpu.total_bytes)
        yield Finding("error", subject, text, f"take {excess} less: lower the shares, or move a replica elsewhere")
    engines = [replica.name for replica in here if replica.deployment.engine_share and replica.starts]
    if len(engines) > 1:
        text = f"{len(engines)} engines measure what is free while they start, and Ray starts replicas side by side"
        change = f"deploy one after the other, each when the last one runs: {', then '.join(engines)}"
        yield Finding("warning", subject, text, change)


def gib(count: float) -> str:
    """A number of bytes in GiB."""
    return f"{count / GIB:.1f} GiB"


def _num_gpus(deployment: Deployment, gpus: Gpus) -> Iterator[Finding]:
    least, asked = least_fraction(deployment, gpus), deployment.num_gpus
    wanted = f"num_gpus: {least:.2f}" if least is not None else "a larger GPU"
    if not deployment.valid:
        text = f"num_gpus is {asked:g}: Ray takes a part of one GPU or whole ones, and fails the deployment"
        change = f"{wanted}, or {math.ceil(asked)} for a model that is split over so many"
        yield Finding("error", deployment.name, text, change)
    elif asked == 0:
        text = f"num_gpus is 0: Ray reserves no GPU for it, but each replica takes {gib(deployment.least_bytes)}"
        yield Finding("error", deployment.name, text, wanted)


def _waiting(deployment: Deployment, waiting: Sequence[Replica], on_gpus: Sequence[GpuAudit]) -> Iterator[Finding]:
    if not waiting:
        return
    left, asked = [max(0.0, 1 - gpu.num_gpus) for gpu in on_gpus], deployment.num_gpus
    text = (
        f"{len(waiting)} of {deployment.replicas} replicas wait: none of the GPUs has {asked:g} left "
        f"({', '.join(f'{part:.2f}' for part in left)} are left, {sum(left):.2f} in all, but Ray never adds up parts "
        "of two GPUs)"
    )
    smaller = f", or num_gpus of at most {_floor(max(left))}" if 0 < max(left) < asked <= 1 else ""
    yield Finding("error", deployment.name, text, f"fewer replicas, more GPUs{smaller}")


def _promise(deployment: Deployment, rest_bytes: int, gpus: Gpus) -> Iterator[Finding]:
    """Ray's number against the memory that a replica really takes, on each GPU."""
    promised, taken = min(1.0, deployment.num_gpus), rest_bytes / gpus.total_bytes
    asks = f"it asks Ray for {promised:.2f} of a GPU and takes {taken:.2f}"
    enough = f"num_gpus: {min(1.0, math.ceil(taken * 100 - 1e-6) / 100):.2f}"
    if taken > promised + 1e-6:
        text = f"{asks} of its memory ({gib(rest_bytes)}): nobody enforces the smaller number"
        change = f"{enough}, or engine_share: {promised:.2f}" if deployment.engine_share else enough
        yield Finding("warning", deployment.name, text, change)
    elif deployment.engine_share and promised - taken > WASTE:
        text = f"{asks}: {gib((promised - taken) * gpus.total_bytes)} stay unused, and nobody else is let in"
        yield Finding("note", deployment.name, text, f"{enough}, or a larger engine_share")


def _refused(deployment: Deployment, replica: Replica, gpus: Gpus) -> Finding:
    where = ", ".join(map(str, replica.gpus))
    wants = f"asks for {gib(replica.rest_bytes)}, finds {gib(replica.free_bytes)} free"
    text = f"does not start on GPU {where} ({wants}): {replica.refused}"
    return Finding("error", replica.name, text, _more_memory(deployment, replica, gpus))


def _more_memory(deployment: Deployment, replica: Replica, gpus: Gpus) -> str:
    least = deployment.least_bytes
    if deployment.engine_share is None:
        return f"put it where {gib(least)} are free"
    share = math.ceil(least / gpus.total_bytes * 100) / 100
    promised = share_of_part(min(1.0, deployment.num_gpus), gpus)
    words = f"weights, the engine itself and one request of {deployment.context_tokens:,} tokens take {gib(least)}"
    if replica.longest_tokens and replica.rest_bytes <= replica.free_bytes:
        return f"max_model_len: {replica.longest_tokens}, or engine_share: {share:.2f} ({words})"
    if share <= promised < deployment.engine_share:
        return f"engine_share: {_floor(promised)} in every replica, its part of what is free ({words})"
    if least <= replica.free_bytes:
        return f"engine_share from {share:.2f} ({words}) to {_floor(replica.free_bytes / gpus.total_bytes)}"
    return f"put it on a GPU where {gib(least)} are free ({words}), or shorten max_model_len"


def _floor(share: float) -> str:
    return f"{math.floor(share * 100 + 1e-6) / 100:.2f}"


def _length(deployment: Deployment, running: Replica | None) -> Iterator[Finding]:
    asked, fit = deployment.max_num_seqs, running.at_full_length if running else None
    if running and asked and fit is not None and fit < asked:
        text = (
            f"of {asked} requests at a time {fit:.1f} fit at their full {deployment.context_tokens:,} tokens "
            f"({running.kv_tokens:,} tokens of cache); more of them are preempted and computed again"
        )
        change = f"nothing if requests are short; otherwise max_num_seqs: {max(1, int(fit))}"
        yield Finding("note", deployment.name, text, change)
