"""`audit()`: where Ray would put the replicas, what each finds when it starts, and whether it all fits at rest.

Three things decide, and none knows of the others: Ray's scheduler adds up `num_gpus` and looks at no memory; each vLLM
instance takes its own share of the whole GPU (gpu_memory_utilization) if so much is free when it starts; and the
memory itself ends where it ends. One node with equal GPUs is audited.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from labkit.advice.fractions.asked import GIB, Deployment, Gpus
from labkit.errors import UsageError
from labkit.files import GPU_BLOCK_SIZE
from labkit.theory import kv_size
from labkit.theory.placement import best_fit


@dataclass(frozen=True, kw_only=True)
class Replica:
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


@dataclass(frozen=True, kw_only=True)
class GpuAudit:
    """One GPU: the replicas that Ray puts there, the sum of their num_gpus, and the memory that all want at rest."""

    index: int
    replicas: tuple[str, ...]
    fraction: float
    rest_bytes: int
    total_bytes: int

    @property
    def fits(self) -> bool:
        """Whether all of it fits at rest."""
        return self.rest_bytes <= self.total_bytes


# --- suggest ---


MARGIN = 0.005  # of a GPU, so that no sum of shares ends exactly at what is free
FACTORS = (8.0, 6.0, 4.0, 3.0, 2.5, 2.0, 1.75, 1.5, 1.25, 1.1, 1.0)  # of the least need, for the caches
MOST_GPUS_TRIED = 4096


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """Deployments with num_gpus and engine_share that fit, to be deployed in this order, one when the last one runs.

    Empty where nothing fits on these GPUs: `gpus_needed` is then how many of them would do; 0 where a replica is
    larger than a GPU, or cannot be split over as many as it asks for (`impossible` says so, with the numbers).
    """

    deployments: tuple[Deployment, ...] = ()
    gpus_needed: int = 0
    impossible: str = ""


def least_bytes(one: Deployment) -> int:
    """What a replica needs on each GPU: weights, the rest of the process, and for an engine one request's cache."""
    cache = 0
    architecture = one.model.architecture
    if one.engine_share is not None and architecture is not None:
        context = one.context_tokens
        block = kv_size.bytes_per_token(architecture, kv_dtype_bytes=one.model.cache_dtype_bytes) * GPU_BLOCK_SIZE
        # One block more is vLLM's placeholder. Fewer KV heads than GPUs are repeated, never split further.
        split = min(one.gpus_each, architecture.kv_heads)
        blocks = kv_size.blocks_per_sequence(
            context, block_size=GPU_BLOCK_SIZE, sliding_window=architecture.sliding_window
        )
        cache = -(-(blocks + 1) * block // split)
    return one.weight_bytes + one.besides_bytes + cache


def least_fraction(one: Deployment, gpus: Gpus) -> float | None:
    """The smallest num_gpus, in hundredths, whose part of the free memory holds a replica; None: it fits no GPU."""
    for hundredths in range(1, 101):
        if share_of_part(hundredths / 100, gpus) * gpus.total_bytes >= least_bytes(one):
            return hundredths / 100
    return None


def suggest(deployments: Sequence[Deployment], gpus: Gpus) -> Suggestion:
    """The deployments with numbers that fit on these GPUs, the caches as large as some common factor allows."""
    needs = {one.name: least_fraction(one, gpus) for one in deployments}
    for one in deployments:
        if impossible := cannot_be_split(one) or (_too_large(one, gpus) if needs[one.name] is None else ""):
            return Suggestion(impossible=impossible)
    least = {name: need for name, need in needs.items() if need is not None}
    for factor in FACTORS:
        found = _scaled(deployments, least, factor, gpus)
        if _all_placed(found, gpus.count):
            return Suggestion(deployments=tuple(found))
    found = _scaled(deployments, least, 1.0, gpus)
    enough = (count for count in range(gpus.count + 1, MOST_GPUS_TRIED) if _all_placed(found, count))
    return Suggestion(gpus_needed=next(enough, 0))


def cannot_be_split(one: Deployment) -> str:
    """Why the model's heads cannot be split over the replica's GPUs; "" where they can."""
    architecture = one.model.architecture
    if architecture is None or one.gpus_each == 1:
        return ""
    try:
        kv_size.kv_heads_per_rank(architecture, one.gpus_each)
    except UsageError as error:
        return f"{one.name}: {error.what}"
    return ""


def _too_large(one: Deployment, gpus: Gpus) -> str:
    free_gib = gpus.free_share * gpus.total_bytes / GIB
    text = f"{one.name} needs {least_bytes(one) / GIB:.1f} GiB on a GPU with {free_gib:.1f} free"
    split = (replace(one, num_gpus=float(count)) for count in (2, 4, 8))
    fits = (each for each in split if not cannot_be_split(each) and least_fraction(each, gpus) is not None)
    found = next(fits, None)
    return text + (f"; split over {found.gpus_each} GPUs (num_gpus: {found.gpus_each}) it would fit" if found else "")


def _scaled(deployments: Sequence[Deployment], least: dict[str, float], factor: float, gpus: Gpus) -> list[Deployment]:
    """Each with its least part of a GPU, an engine's times `factor`, the largest first: so Ray wastes least."""
    found = []
    for one in deployments:
        whole = one.valid and one.num_gpus > 1
        times = factor if one.engine_share is not None else 1.0
        part = one.num_gpus if whole else min(1.0, math.floor(least[one.name] * times * 100 + 1e-6) / 100)
        share = None if one.engine_share is None else share_of_part(min(1.0, part), gpus)
        found.append(replace(one, num_gpus=part, engine_share=share))
    return sorted(found, key=lambda one: -one.num_gpus)


def share_of_part(part: float, gpus: Gpus) -> float:
    """The share of all memory that belongs to `part` of a GPU, in whole hundredths, a margin below it."""
    return max(0.0, math.floor((part * gpus.free_share - MARGIN) * 100) / 100)


def _all_placed(deployments: Sequence[Deployment], count: int) -> bool:
    asked = [one.num_gpus for one in deployments for _ in range(one.replicas)]
    return all(best_fit(asked, count))


# --- what is wrong, in a sentence with its numbers, and what to change, with a number too ---


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


# --- audit ---


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was asked, where it lands, and what is wrong with it. `suggestion` is empty where nothing has to change."""

    deployments: tuple[Deployment, ...]
    gpus_asked: Gpus
    replicas: tuple[Replica, ...]
    gpus: tuple[GpuAudit, ...]
    findings: tuple[Finding, ...]
    suggestion: Suggestion | None = None

    @property
    def ok(self) -> bool:
        """Whether all replicas are placed, start (one after the other) and fit at rest."""
        return not any(finding.level == "error" for finding in self.findings)


def audit(deployments: Sequence[Deployment], gpus: Gpus) -> Audit:
    """Audits deployments, started in the order given, on the GPUs of one node.

    Raises:
        UsageError: no deployment, or a GPU of which nothing is free.
    """
    if not deployments or gpus.used_bytes >= gpus.total_bytes:
        raise UsageError(
            f"{len(deployments)} deployments on GPUs with {gpus.total_bytes - gpus.used_bytes:,} free bytes",
            remedy="give at least one deployment, and a GPU with free memory",
        )
    replicas = tuple(_started(list(_placed(deployments, gpus)), gpus))
    on_gpus = tuple(_gpu(index, replicas, gpus) for index in range(gpus.count))
    by_deployment = [found for one in deployments for found in deployment_findings(one, replicas, on_gpus, gpus)]
    by_gpu = [found for one in on_gpus for found in gpu_findings(one, replicas, gpus)]
    # A GPU's warning is about the order of starts, which no other numbers change.
    wrong = any(one.level != "note" for one in by_deployment) or any(one.level == "error" for one in by_gpu)
    return Audit(
        deployments=tuple(deployments),
        gpus_asked=gpus,
        replicas=replicas,
        gpus=on_gpus,
        findings=(*by_deployment, *by_gpu),
        suggestion=suggest(deployments, gpus) if wrong else None,
    )


def _placed(deployments: Sequence[Deployment], gpus: Gpus) -> Iterator[Replica]:
    """Every replica with the GPUs that Ray gives it; what Ray refuses or leaves waiting has none."""
    names = [
        (one, f"{one.name}#{n}" if one.replicas > 1 else one.name) for one in deployments for n in range(one.replicas)
    ]
    valid = [one.num_gpus if one.valid else 0.0 for one, _ in names]
    for (one, name), where in zip(names, best_fit(valid, gpus.count), strict=True):
        yield Replica(name=name, deployment=one, gpus=where, rest_bytes=_rest_bytes(one, gpus))


def _rest_bytes(one: Deployment, gpus: Gpus) -> int:
    """What a running replica holds on each of its GPUs: an engine all of its share, whatever it uses of it."""
    if one.engine_share is None:
        return one.weight_bytes + one.besides_bytes
    return math.ceil(gpus.total_bytes * one.engine_share)


def _started(replicas: Sequence[Replica], gpus: Gpus) -> Iterator[Replica]:
    """Starts the placed replicas one after the other; each finds what those before it have left."""
    free = [gpus.total_bytes - gpus.used_bytes] * gpus.count
    for each in replicas:
        if not each.gpus:
            yield each
            continue
        found = min(free[gpu] for gpu in each.gpus)
        started = _with_cache(each, gpus, found) if each.deployment.engine_share else _plain(each, found)
        for gpu in each.gpus if started.starts else ():
            free[gpu] -= started.rest_bytes
        yield started


def _plain(each: Replica, free_bytes: int) -> Replica:
    refused = "" if each.rest_bytes <= free_bytes else "out of memory"
    return replace(each, free_bytes=free_bytes, refused=refused)


def _with_cache(each: Replica, gpus: Gpus, free_bytes: int) -> Replica:
    one = each.deployment
    share = kv_size.EngineShare(
        utilization=one.engine_share or 0.0, weights_bytes=one.weight_bytes, other_bytes=one.besides_bytes
    )
    (budget,) = kv_size.start_in_turn([share], total_bytes=gpus.total_bytes, used_bytes=gpus.total_bytes - free_bytes)
    found = replace(each, free_bytes=free_bytes, kv_bytes=budget.kv_bytes, refused=budget.refused)
    architecture = one.model.architecture
    if budget.refused or architecture is None:
        return found
    try:
        plan = kv_size.describe(
            architecture,
            memory_bytes=budget.kv_bytes,
            block_size=GPU_BLOCK_SIZE,
            max_model_len=one.context_tokens,
            tensor_parallel=one.gpus_each,
            kv_dtype_bytes=one.model.cache_dtype_bytes,
        )
    except UsageError as error:  # less than a block, or heads that cannot be split over the GPUs
        return replace(found, refused=error.what)
    too_long = "" if plan.fits else f"the longest request that fits has {plan.longest_tokens:,} tokens"
    return replace(found, kv_tokens=plan.tokens, longest_tokens=plan.longest_tokens,
                   at_full_length=plan.max_concurrency, refused=too_long)  # fmt: skip


def _gpu(index: int, replicas: Sequence[Replica], gpus: Gpus) -> GpuAudit:
    here = [each for each in replicas if index in each.gpus]
    return GpuAudit(
        index=index,
        replicas=tuple(each.name for each in here),
        fraction=math.fsum(min(1.0, each.deployment.num_gpus) for each in here),
        rest_bytes=gpus.used_bytes + sum(each.rest_bytes for each in here),
        total_bytes=gpus.total_bytes,
    )
