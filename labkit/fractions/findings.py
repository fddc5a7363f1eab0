"""What is wrong, in a sentence with its numbers, and what to change, with a number too."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from labkit.fractions.asked import GIB, Deployment, Gpus
from labkit.fractions.results import GpuAudit, Replica
from labkit.fractions.suggest import least_bytes, least_fraction, share_of_part

Level = Literal["error", "warning", "note"]
WASTE = 0.1  # of a GPU: a promise that is larger than the share by so much is told


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`error`: it does not come up, or does not fit. `warning`: it works until something happens. `note`: waste."""

    level: Level
    subject: str
    text: str
    change: str


def deployment_findings(
    one: Deployment, replicas: Sequence[Replica], on_gpus: Sequence[GpuAudit], gpus: Gpus
) -> Iterator[Finding]:
    """What there is to say of one deployment."""
    mine = [each for each in replicas if each.deployment is one]
    yield from _asked(one, gpus)
    if one.valid and one.num_gpus > 0:
        yield from _waiting(one, mine, on_gpus)
        yield from _promise(one, mine[0], gpus)
    yield from _starts(one, [each for each in mine if each.refused], gpus)
    yield from _length(one, [each for each in mine if each.starts])


def gpu_findings(gpu: GpuAudit, replicas: Sequence[Replica], gpus: Gpus) -> Iterator[Finding]:
    """What there is to say of one GPU: the sum of its memory, and the order in which its engines start."""
    here = [each for each in replicas if gpu.index in each.gpus]
    if not gpu.fits:
        parts = [f"{each.name} {gib(each.rest_bytes)}" for each in here]
        parts += [f"others {gib(gpus.used_bytes)}"] if gpus.used_bytes else []
        yield Finding(
            level="error",
            subject=f"GPU {gpu.index}",
            text=f"num_gpus adds up to {gpu.fraction:.2f}, the memory to {gib(gpu.rest_bytes)} of "
            f"{gib(gpu.total_bytes)}: {', '.join(parts)}",
            change=f"take {gib(gpu.rest_bytes - gpu.total_bytes)} less: lower the shares, or move a replica elsewhere",
        )
    engines = [each.name for each in here if each.deployment.engine_share and each.starts]
    if len(engines) > 1:
        yield Finding(
            level="warning",
            subject=f"GPU {gpu.index}",
            text=f"{len(engines)} engines measure what is free while they start, and Ray starts replicas side by side",
            change=f"deploy one after the other, each when the last one runs: {', then '.join(engines)}",
        )


def gib(count: float) -> str:
    """A number of bytes in GiB."""
    return f"{count / GIB:.1f} GiB"


def _asked(one: Deployment, gpus: Gpus) -> Iterator[Finding]:
    least = least_fraction(one, gpus)
    wanted = f"num_gpus: {least:.2f}" if least is not None else "a larger GPU"
    if not one.valid:
        yield Finding(
            level="error",
            subject=one.name,
            text=f"num_gpus is {one.num_gpus:g}: Ray takes a part of one GPU or whole ones, and fails the deployment",
            change=f"{wanted}, or {math.ceil(one.num_gpus)} for a model that is split over so many",
        )
    elif one.num_gpus == 0:
        yield Finding(
            level="error",
            subject=one.name,
            text=f"num_gpus is 0: Ray reserves no GPU for it, but each replica takes {gib(least_bytes(one))}",
            change=wanted,
        )


def _waiting(one: Deployment, mine: Sequence[Replica], on_gpus: Sequence[GpuAudit]) -> Iterator[Finding]:
    waiting = [each for each in mine if not each.gpus]
    if not waiting:
        return
    left = [max(0.0, 1 - gpu.fraction) for gpu in on_gpus]
    each_left = ", ".join(f"{share:.2f}" for share in left)
    remedy = "fewer replicas, more GPUs"
    if 0 < max(left) < one.num_gpus <= 1:
        remedy += f", or num_gpus of at most {_floor(max(left))}"
    yield Finding(
        level="error",
        subject=one.name,
        text=f"{len(waiting)} of {one.replicas} replicas wait: none of the GPUs has {one.num_gpus:g} left "
        f"({each_left} are left, {sum(left):.2f} in all, but Ray never adds up parts of two GPUs)",
        change=remedy,
    )


def _promise(one: Deployment, each: Replica, gpus: Gpus) -> Iterator[Finding]:
    """Ray's number against the memory that the replica really takes, on each GPU."""
    promised, taken = min(1.0, one.num_gpus), each.rest_bytes / gpus.total_bytes
    if taken > promised + 1e-6:
        yield Finding(
            level="warning",
            subject=one.name,
            text=f"it asks Ray for {promised:.2f} of a GPU and takes {taken:.2f} of its memory "
            f"({gib(each.rest_bytes)}): nobody enforces the smaller number",
            change=f"num_gpus: {min(1.0, math.ceil(taken * 100 - 1e-6) / 100):.2f}"
            + (f", or engine_share: {promised:.2f}" if one.engine_share else ""),
        )
    elif one.engine_share and promised - taken > WASTE:
        yield Finding(
            level="note",
            subject=one.name,
            text=f"it asks Ray for {promised:.2f} of a GPU and takes {taken:.2f}: "
            f"{gib((promised - taken) * gpus.total_bytes)} stay unused, and nobody else is let in",
            change=f"num_gpus: {math.ceil(taken * 100 - 1e-6) / 100:.2f}, or a larger engine_share",
        )


def _starts(one: Deployment, refused: Sequence[Replica], gpus: Gpus) -> Iterator[Finding]:
    for each in refused:
        wants = f"asks for {gib(each.rest_bytes)}, finds {gib(each.free_bytes)} free"
        yield Finding(
            level="error",
            subject=each.name,
            text=f"does not start on GPU {', '.join(map(str, each.gpus))} ({wants}): {each.refused}",
            change=_more_memory(one, each, gpus),
        )


def _more_memory(one: Deployment, each: Replica, gpus: Gpus) -> str:
    least = least_bytes(one)
    if one.engine_share is None:
        return f"put it where {gib(least)} are free"
    share, promised = math.ceil(least / gpus.total_bytes * 100) / 100, share_of_part(min(1.0, one.num_gpus), gpus)
    words = f"weights, the engine itself and one request of {one.context_tokens:,} tokens take {gib(least)}"
    if each.longest_tokens and each.rest_bytes <= each.free_bytes:
        return f"max_model_len: {each.longest_tokens}, or engine_share: {share:.2f} ({words})"
    if share <= promised < one.engine_share:
        return f"engine_share: {_floor(promised)} in every replica, its part of what is free ({words})"
    if least <= each.free_bytes:
        return f"engine_share from {share:.2f} ({words}) to {_floor(each.free_bytes / gpus.total_bytes)}"
    return f"put it on a GPU where {gib(least)} are free ({words}), or shorten max_model_len"


def _floor(share: float) -> str:
    return f"{math.floor(share * 100 + 1e-6) / 100:.2f}"


def _length(one: Deployment, running: Sequence[Replica]) -> Iterator[Finding]:
    for each in running[:1]:
        seqs, fit = one.max_num_seqs, each.at_full_length
        if seqs and fit is not None and fit < seqs:
            yield Finding(
                level="note",
                subject=one.name,
                text=f"of {seqs} requests at a time {fit:.1f} fit at their full {one.context_tokens:,} tokens "
                f"({each.kv_tokens:,} tokens of cache); more of them are preempted and computed again",
                change=f"nothing if requests are short; otherwise max_num_seqs: {max(1, int(fit))}",
            )
