"""What a node offers, what a lab asks of it, and why one does not fit the other. Knows nothing of Ray."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from labkit.course import readiness
from labkit.errors import UsageError
from labkit.machine import Machine
from labkit.plan import Job, Plan
from labkit.profiles import check_gpu_memory

RAY_ADDRESS = "ray_address"  # a lab with this parameter deploys into the cluster itself


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a node says of itself. `code` and `commit`: which course it has."""

    machine: Machine
    versions: Mapping[str, str]
    code: str
    commit: str | None


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node that is alive. `cpus` and `gpus` as Ray counts them; `free_…`: what nobody in the cluster holds now.

    The `head` may offer no CPU at all. Ray Serve's HTTP proxy listens there, and on its loopback interface only.
    """

    id: str
    name: str
    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float
    head: bool = False


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a lab takes of its node. `alone`: of the whole cluster."""

    cpus: float
    gpus: float = 0
    alone: bool = False


@dataclass(frozen=True, kw_only=True)
class Surveyed:
    """The nodes that can be used, by id, and why the others cannot. `missing`: models by node that it cannot have."""

    facts: Mapping[str, Facts]
    unusable: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def strongest(surveyed: Surveyed, nodes: Iterable[Node]) -> Facts:
    """Whose machine decides about the profile: of the nodes that offer CPUs, with a GPU before without, then by memory.

    There must be one.
    """
    able = [surveyed.facts[node.id] for node in nodes if node.cpus >= 1 and node.id in surveyed.facts]
    return max(able, key=lambda facts: _strength(facts.machine))


def demand(job: Job, node: Node, *, on_gpu: bool) -> Demand:
    """One engine lab to a node, or to a GPU with its share of the CPUs; a lab without an engine takes one CPU."""
    if RAY_ADDRESS in job.lab.parameters:
        return Demand(cpus=0, alone=True)
    if job.lab.engine == "none":
        return Demand(cpus=1)
    if on_gpu:
        return Demand(cpus=max(1.0, node.cpus // max(1.0, node.gpus)), gpus=1)
    return Demand(cpus=node.cpus)


def misfit(job: Job, node: Node, surveyed: Surveyed, plan: Plan) -> str:
    """Why the lab cannot run on the node even when it is idle; "" where it can."""
    facts = surveyed.facts.get(node.id)
    if facts is None:
        return surveyed.unusable.get(node.id, "it joined after the run had started")
    asked = demand(job, node, on_gpu=bool(plan.machine.gpus))
    if asked.alone:  # its replicas go where Ray finds room; the lab itself only asks them, by HTTP too
        return "" if node.head else "it asks Ray Serve on the loopback interface of the head"
    if asked.gpus and (not facts.machine.gpus or node.gpus < asked.gpus):
        return facts.machine.gpu_reason or "Ray counts no GPU there (ray start --num-gpus)"
    if node.cpus < max(1, asked.cpus):
        return "Ray counts no CPU there"
    ready = readiness(job.lab, facts.machine, facts.versions)
    if ready.runs == "no":
        return ready.reason
    if model := surveyed.missing.get(node.id, {}).get(str(job.parameters.get("model"))):
        return model
    try:
        check_gpu_memory(job.parameters, facts.machine, plan.profile.weights, engines=job.lab.needs.engines)
    except UsageError as error:
        return error.what
    return ""


def require_fit(plan: Plan, nodes: Iterable[Node], surveyed: Surveyed) -> None:
    """UsageError where a lab of the plan fits no node, with each node's reason."""
    nodes = list(nodes)
    for job in plan.running:
        reasons = {node.name: misfit(job, node, surveyed, plan) for node in nodes}
        if all(reasons.values()):
            listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            remedy = "add a node that has it, or leave the lab out"
            raise UsageError(f"no node of the cluster can run {job.lab.name} ({listed})", remedy=remedy)


def _strength(machine: Machine) -> tuple[int, int]:
    return max((gpu.memory_free_bytes for gpu in machine.gpus), default=0), machine.memory_available_bytes
