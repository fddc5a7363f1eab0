"""Ray's side of a run on a cluster: joining it, looking at its nodes, one actor a lab."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from labkit.batch import Stop
from labkit.errors import UsageError
from labkit.plan import Job, Plan
from labkit.progress import Progress
from labkit.remote import room
from labkit.remote.code import fingerprint
from labkit.remote.dispatch import Dispatcher, LostError, failed
from labkit.remote.knock import knock
from labkit.remote.nodes import RAY_ADDRESS, Demand, Facts, Node, Surveyed, demand, misfit, require_fit, strongest
from labkit.runner import Executor, Step, git_commit
from labkit.serving import ray_serve

SURVEY_TIMEOUT_S = 180.0
HEAD = "node:__internal_head__"  # the resource by which Ray marks it
Say = Callable[[str], None]


def join(address: str, *, say: Say = lambda _: None) -> "Cluster":
    """Joins the cluster and looks at its nodes. UsageError: none answers there, or no node of it can run a lab."""
    address = knock(address)
    ray_serve.connect(address)
    try:
        return Cluster(address, say=say)
    except BaseException:
        _disconnect()
        raise


class Cluster:
    """A Ray cluster that runs already. Use it in a `with` block: its end disconnects, and takes nothing down."""

    def __init__(self, address: str, *, say: Say) -> None:
        import ray

        _quiet()
        self._say = say
        self.address: str = ray.get_runtime_context().gcs_address  # the head's, as every node reaches it
        self.surveyed = _survey(self.nodes(), address)
        for node in self.nodes():
            if reason := self.surveyed.unusable.get(node.id):
                say(f"node {node.name} is left out: {reason}")

    @property
    def strongest(self) -> Facts:
        """The node for which a run is planned."""
        return strongest(self.surveyed, self.nodes())

    def nodes(self) -> Sequence[Node]:
        """The nodes that are alive and offer CPUs, and the head in any case."""
        import ray
        from ray._private.state import available_resources_per_node

        free: Mapping[str, Mapping[str, float]] = available_resources_per_node()
        alive = [each for each in ray.nodes() if each["Alive"] and (_cpus(each) >= 1 or HEAD in each["Resources"])]
        hosts = [each["NodeManagerAddress"] for each in alive]
        return [_node(each, free.get(each["NodeID"], {}), hosts) for each in alive]

    def open(self, node: Node, demand: Demand, order: room.Order) -> "Tenancy":
        """An actor of its own for the lab, on that node and no other."""
        import ray

        options = {"num_cpus": demand.cpus, "num_gpus": demand.gpus, "max_concurrency": 4}
        actor = ray.remote(room.Room).options(scheduling_strategy=_on(node.id), **options).remote()
        return Tenancy(actor, order)

    def executor(self, plan: Plan) -> Executor:
        """Runs the plan's labs here. UsageError where one of them fits no node, or a model cannot be had there."""
        self._fetch_models(plan)
        require_fit(plan, self.nodes(), self.surveyed)

        def fits(job: Job, node: Node) -> Demand | None:
            return None if misfit(job, node, self.surveyed, plan) else demand(job, node, on_gpu=bool(plan.machine.gpus))

        def execute(jobs: Sequence[Job], plan: Plan, stop: Stop, shown: Progress) -> Iterator[Step]:
            alone_last = sorted(jobs, key=lambda job: RAY_ADDRESS in job.lab.parameters)
            return Dispatcher(self, alone_last, fits, plan.out_dir, stop, shown).steps()

        return execute

    def _fetch_models(self, plan: Plan) -> None:
        """Every node that is used gets the labs' models into its own cache, all at the same time."""
        if not (names := list(plan.models)):
            return
        self._say(f"models on the nodes: {', '.join(names)}")
        asked = {id: _task(room.missing_models, id).remote(names) for id in self.surveyed.facts}
        missing: dict[str, Mapping[str, str]] = {}
        for id, ref in asked.items():
            found, problem = _answer(ref, timeout_s=None)
            missing[id] = found if not problem else dict.fromkeys(names, problem)
        self.surveyed = replace(self.surveyed, missing=missing)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _disconnect()


class Tenancy:
    """A lab in its actor."""

    def __init__(self, actor: Any, order: room.Order) -> None:
        self._actor = actor
        self._result = actor.run.remote(order)
        self._asked_cell = actor.cell.remote()
        self._cell: tuple[int, int] | None = None

    def outcome(self) -> room.Outcome | None:
        """None while it runs. LostError: the node or the worker is gone."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        if not _is_ready(self._result):
            return None
        try:
            outcome: room.Outcome = ray.get(self._result)
        except RayTaskError as error:  # an error of ours on the node, such as a full disk
            return room.Outcome(end=failed(f"on the node: {_one_line(error)}"), files={})
        except RayError as error:
            raise LostError(_one_line(error)) from error
        return outcome

    def cell(self) -> tuple[int, int] | None:
        """(the cell that runs, how many there are); None before the node has answered."""
        import ray
        from ray.exceptions import RayError

        if _is_ready(self._asked_cell):
            with contextlib.suppress(RayError):  # `outcome` tells of a lost node
                self._cell = ray.get(self._asked_cell)
                self._asked_cell = self._actor.cell.remote()
        return self._cell

    def stop(self) -> None:
        """Asks the lab to stop; the second time, at once."""
        self._actor.stop.remote()

    def leave(self) -> None:
        """Ends the actor; a lab that still runs in it sees that and ends itself."""
        import ray

        ray.kill(self._actor)


def _survey(nodes: Sequence[Node], address: str) -> Surveyed:
    if not any(node.cpus >= 1 for node in nodes):
        remedy = "start Ray with --num-cpus on a node that labs may use"
        raise UsageError(f"no node of the cluster at {address} offers a CPU", remedy=remedy)
    asked = {node.id: _task(room.look, node.id).remote() for node in nodes}
    facts: dict[str, Facts] = {}
    unusable: dict[str, str] = {}
    here, commit = fingerprint(), git_commit()
    for id, ref in asked.items():
        found, problem = _answer(ref, timeout_s=SURVEY_TIMEOUT_S)
        if problem or found.code != here:
            unusable[id] = problem or _other_course(found, here, commit)
        else:
            facts[id] = found
    if not any(node.id in facts for node in nodes if node.cpus >= 1):
        listed = "; ".join(f"{node.name}: {unusable[node.id]}" for node in nodes if node.cpus >= 1)
        remedy = "check out the same commit there, run make, and start Ray from that .venv (cluster/README.md)"
        raise UsageError(f"no node of the cluster at {address} can run a lab ({listed})", remedy=remedy)
    return Surveyed(facts=facts, unusable=unusable)


def _other_course(facts: Facts, here: str, commit: str | None) -> str:
    """In words. A "+" after a commit says that files were changed since."""
    there, ours = facts.commit or "no clone", commit or "no clone"
    return f"its course is another one (code {facts.code}, commit {there}; here {here}, {ours})"


def _task(function: Callable[..., Any], node_id: str) -> Any:
    """`function` as a task that takes no CPU, on that node."""
    import ray

    return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=_on(node_id))


def _answer(ref: Any, *, timeout_s: float | None) -> tuple[Any, str]:
    """(what the task returned, ""), or (None, the problem in words)."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        return ray.get(ref, timeout=timeout_s), ""
    except GetTimeoutError:
        return None, f"it did not answer within {timeout_s:.0f} s"
    except (RayError, ImportError, AttributeError) as error:
        missing = "No module named 'labkit'" in str(error)
        return None, "labkit is not installed in the Python that Ray runs there" if missing else _one_line(error)


def _on(node_id: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def _node(each: Mapping[str, Any], free: Mapping[str, float], hosts: Sequence[str]) -> Node:
    host, id = each["NodeManagerAddress"], each["NodeID"]
    return Node(
        id=id,
        name=host if hosts.count(host) == 1 else f"{host}/{id[:6]}",
        cpus=_cpus(each),
        gpus=each["Resources"].get("GPU", 0),
        free_cpus=free.get("CPU", 0),
        free_gpus=free.get("GPU", 0),
        head=HEAD in each["Resources"],
    )


def _is_ready(ref: Any) -> bool:
    import ray

    return bool(ray.wait([ref], timeout=0)[0])


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _cpus(each: Mapping[str, Any]) -> float:
    return float(each["Resources"].get("CPU", 0))


def _quiet() -> None:
    """Ray tells a driver of a lost node by twenty lines of its log, on stdout; `dispatch` does so by one on stderr."""
    from ray._private import worker

    worker.print_to_stdstream = lambda *_data, **_options: None


def _disconnect() -> None:
    import ray

    ray.shutdown()
