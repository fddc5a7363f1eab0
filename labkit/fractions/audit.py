"""`audit()`: where Ray would put the replicas, what each finds when it starts, and whether it all fits at rest.

Three things decide, and none knows of the others: Ray's scheduler adds up `num_gpus` and looks at no memory; each vLLM
instance takes its own share of the whole GPU (gpu_memory_utilization) if so much is free when it starts; and the
memory itself ends where it ends. One node with equal GPUs is audited.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from labkit import kvcache
from labkit.errors import UsageError
from labkit.fractions.asked import Deployment, Gpus
from labkit.fractions.findings import Finding, deployment_findings, gpu_findings
from labkit.fractions.results import GpuAudit, Replica
from labkit.fractions.suggest import Suggestion, suggest
from labkit.packing import best_fit
from labkit.settings import GPU_BLOCK_SIZE


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
    share = kvcache.EngineShare(
        utilization=one.engine_share or 0.0, weights_bytes=one.weight_bytes, other_bytes=one.besides_bytes
    )
    (budget,) = kvcache.start_in_turn([share], total_bytes=gpus.total_bytes, used_bytes=gpus.total_bytes - free_bytes)
    found = replace(each, free_bytes=free_bytes, kv_bytes=budget.kv_bytes, refused=budget.refused)
    architecture = one.model.architecture
    if budget.refused or architecture is None:
        return found
    try:
        plan = kvcache.describe(
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
