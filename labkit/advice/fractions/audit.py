"""Audit deployments: where Ray would place the replicas, whether each one starts, and whether all fit at rest.

Three independent limits decide. Ray's scheduler adds up `num_gpus` and ignores memory. Each vLLM engine takes its share
of the whole GPU (gpu_memory_utilization) if that much is free when it starts. And the memory itself is finite.
"""

from collections.abc import Sequence

from labkit.advice.fractions.cluster import Cluster
from labkit.advice.fractions.deployments import Deployment
from labkit.advice.fractions.findings import Finding, cluster_findings, deployment_findings, gpu_findings
from labkit.advice.fractions.replicas import GpuAudit, Replica, audit_gpu, place_replicas, start_replicas
from labkit.advice.fractions.suggest import Suggestion, suggest
from labkit.errors import require
from labkit.files import Frozen


class Audit(Frozen):
    """The deployments, their placement and what is wrong with it. `suggestion` is None if nothing has to change.

    `waits_if_packed`: replicas that wait only if Ray packs nodes instead of spreading replicas over them.
    """

    deployments: tuple[Deployment, ...]
    gpus_asked: Cluster
    replicas: tuple[Replica, ...]
    gpus: tuple[GpuAudit, ...]
    findings: tuple[Finding, ...]
    waits_if_packed: tuple[str, ...] = ()
    suggestion: Suggestion | None = None

    @property
    def ok(self) -> bool:
        """Whether all replicas are known to be placed, to start one after the other, and to fit at rest."""
        return not any(finding.level in ("error", "unknown") for finding in self.findings)

    @property
    def fails(self) -> bool:
        """Whether something is known not to fit."""
        return any(finding.level == "error" for finding in self.findings)


def audit(deployments: Sequence[Deployment], cluster: Cluster) -> Audit:
    """Audit deployments on these GPUs, started in the given order.

    UsageError: no deployment, or a GPU without free memory.
    """
    require(bool(deployments), "there are no deployments to audit", fix="give at least one deployment")
    cluster.check()
    replicas = tuple(start_replicas(deployments, cluster))
    gpus = tuple(audit_gpu(index, card, replicas) for index, card in enumerate(cluster.cards))
    on_deployments = [
        finding for entry in deployments for finding in deployment_findings(entry, replicas, gpus, cluster)
    ]
    used = [card.used_bytes for card in cluster.cards]
    on_gpus = [finding for gpu in gpus for finding in gpu_findings(gpu, replicas, used[gpu.index])]
    packed = _waiting_if_packed(deployments, cluster, replicas)
    on_cluster = list(cluster_findings(cluster, packed))
    # A GPU's warning is about the order of starts, which other numbers do not change.
    repair = any(finding.level in ("error", "warning") for finding in (*on_deployments, *on_cluster))
    repair = repair or any(finding.level == "error" for finding in on_gpus)
    return Audit(
        deployments=tuple(deployments),
        gpus_asked=cluster,
        replicas=replicas,
        gpus=gpus,
        findings=(*on_deployments, *on_gpus, *on_cluster),
        waits_if_packed=tuple(replica.name for replica in packed),
        suggestion=suggest(deployments, cluster) if repair else None,
    )


def _waiting_if_packed(
    deployments: Sequence[Deployment], cluster: Cluster, replicas: Sequence[Replica]
) -> list[Replica]:
    """Return the replicas that would wait if Ray packed several nodes, unless the scheduling is given."""
    if cluster.scheduling is not None or len(cluster.gpus_per_node) == 1:
        return []
    packed = place_replicas(deployments, cluster, packed=True)
    return [replica for replica, (_, _, place) in zip(replicas, packed, strict=True) if replica.gpus and not place.gpus]
