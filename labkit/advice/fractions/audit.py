"""`audit()`: where Ray would put the replicas, what each finds when it starts, and whether it all fits at rest.

Three limits decide, each without regard to the others: Ray's scheduler adds up `num_gpus` and ignores memory; each vLLM
instance takes its own share of the whole GPU (gpu_memory_utilization) if that much is free when it starts; and the
memory itself is finite. One node with equal GPUs is audited.
"""

from collections.abc import Sequence

from labkit.advice.fractions.deployments import Deployment, Gpus
from labkit.advice.fractions.findings import Finding, deployment_findings, gpu_findings
from labkit.advice.fractions.replicas import GpuAudit, Replica, on_gpu, start_replicas
from labkit.advice.fractions.suggest import Suggestion, suggest
from labkit.errors import require
from labkit.files import Frozen


class Audit(Frozen):
    """The question, where it lands, and what is wrong with it. `suggestion` is None where nothing has to change."""

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
    """Audit deployments, started in the order given, on the GPUs of one node.

    UsageError: no deployment, or a GPU of which nothing is free.
    """
    free_bytes = gpus.total_bytes - gpus.used_bytes
    wrong = f"{len(deployments)} deployments on GPUs with {free_bytes:,} free bytes"
    fix = "give at least one deployment, and a GPU with free memory"
    require(bool(deployments) and free_bytes > 0, wrong, fix=fix)
    replicas = tuple(start_replicas(deployments, gpus))
    on_gpus = tuple(on_gpu(index, replicas, gpus) for index in range(gpus.count))
    by_deployment = [
        finding for deployment in deployments for finding in deployment_findings(deployment, replicas, on_gpus, gpus)
    ]
    by_gpu = [finding for gpu in on_gpus for finding in gpu_findings(gpu, replicas, gpus)]
    # A GPU's warning is about the order of starts, which no other numbers change.
    repair = any(finding.level != "note" for finding in by_deployment) or any(
        finding.level == "error" for finding in by_gpu
    )
    return Audit(
        deployments=tuple(deployments),
        gpus_asked=gpus,
        replicas=replicas,
        gpus=on_gpus,
        findings=(*by_deployment, *by_gpu),
        suggestion=suggest(deployments, gpus) if repair else None,
    )
