"""`audit()`: where Ray would put the replicas, what each finds when it starts, and whether it all fits at rest.

Three limits decide, each without regard to the others: Ray's scheduler adds up `num_gpus` and ignores memory; each vLLM
instance takes its own share of the whole GPU (gpu_memory_utilization) if that much is free when it starts; and the
memory itself is finite.
"""

from collections.abc import Sequence

from labkit.advice.fractions.cluster import Cluster
from labkit.advice.fractions.deployments import Deployment
from labkit.advice.fractions.findings import Finding, cluster_findings, deployment_findings, gpu_findings
from labkit.advice.fractions.replicas import GpuAudit, Replica, on_gpu, placed, start_replicas
from labkit.advice.fractions.suggest import Suggestion, suggest
from labkit.errors import require
from labkit.files import Frozen


class Audit(Frozen):
    """The question, where it lands, and what is wrong with it. `suggestion` is None where nothing has to change.

    `waits_if_packed`: replicas that wait only where Ray packs nodes in place of spreading replicas over them.
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
        """Whether all replicas are placed, start (one after the other) and fit at rest, and nothing is unknown."""
        return not any(finding.level in ("error", "unknown") for finding in self.findings)

    @property
    def fails(self) -> bool:
        """Whether something is known not to fit."""
        return any(finding.level == "error" for finding in self.findings)


def audit(deployments: Sequence[Deployment], cluster: Cluster) -> Audit:
    """Audit deployments, started in the order given, on these GPUs.

    UsageError: no deployment, or a GPU of which nothing is free.
    """
    require(bool(deployments), "there are no deployments to audit", fix="give at least one deployment")
    cluster.check()
    replicas = tuple(start_replicas(deployments, cluster))
    on_gpus = tuple(on_gpu(index, card, replicas) for index, card in enumerate(cluster.cards))
    by_deployment = [
        finding for deployment in deployments for finding in deployment_findings(deployment, replicas, on_gpus, cluster)
    ]
    by_gpu = [
        finding
        for gpu, card in zip(on_gpus, cluster.cards, strict=True)
        for finding in gpu_findings(gpu, replicas, card.used_bytes)
    ]
    packed = _wait_if_packed(deployments, cluster, replicas)
    by_cluster = list(cluster_findings(cluster, packed))
    # A GPU's warning is about the order of starts, which no other numbers change.
    repair = any(finding.level in ("error", "warning") for finding in (*by_deployment, *by_cluster)) or any(
        finding.level == "error" for finding in by_gpu
    )
    return Audit(
        deployments=tuple(deployments),
        gpus_asked=cluster,
        replicas=replicas,
        gpus=on_gpus,
        findings=(*by_deployment, *by_gpu, *by_cluster),
        waits_if_packed=tuple(replica.name for replica in packed),
        suggestion=suggest(deployments, cluster) if repair else None,
    )


def _wait_if_packed(deployments: Sequence[Deployment], cluster: Cluster, replicas: Sequence[Replica]) -> list[Replica]:
    """Where several nodes are spread over only by default: the replicas that would wait if Ray packed them."""
    if cluster.scheduling is not None or len(cluster.gpus_per_node) == 1:
        return []
    packed = placed(deployments, cluster, packed=True)
    return [replica for replica, (_, _, where) in zip(replicas, packed, strict=True) if replica.gpus and not where.gpus]
