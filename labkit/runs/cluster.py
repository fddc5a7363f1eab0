"""Ray's side of a run on a cluster: joining it, looking at its nodes, one actor a lab."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from labkit.errors import UsageError
from labkit.labs import LABS, Lab
from labkit.runs import on_node
from labkit.runs.notebook import NotebookEnd, Stop
from labkit.runs.on_node import (
    RAY_ADDRESS,
    Demand,
    Facts,
    Node,
    Order,
    Outcome,
    Surveyed,
    demand,
    fingerprint,
    misfit,
    require_fit,
    strongest,
)
from labkit.runs.plan import Job, Plan, make_plan
from labkit.runs.runner import Executor, Progress, RunResult, Step, git_commit, now_and_then, opening_lines, run_labs
from labkit.serving import ray_serve
from labkit.serving.ray_serve import TOKEN_FILE

TRIES = 3  # a lab whose node is lost starts again on another, so often in all
POLL_S = 0.25
TELL_EVERY_S = 30.0
STOP_PATIENCE_S, URGENT_PATIENCE_S = 60.0, 15.0  # a node that does not answer by then is left alone


class LostError(Exception):
    """The node, or the worker on it, is gone."""


class AnyTenancy(Protocol):
    """A lab on its node."""

    def outcome(self) -> Outcome | None:
        """None while it runs. LostError: the node or the worker is gone."""

    def cell(self) -> tuple[int, int] | None:
        """(the cell that runs, how many there are); None before the node has answered."""

    def stop(self) -> None:
        """Asks the lab to stop; the second time, at once."""

    def leave(self) -> None:
        """Gives the node back; a lab that still runs there ends."""


class Grid(Protocol):
    """A cluster."""

    def nodes(self) -> Sequence[Node]:
        """The nodes that are alive."""

    def open(self, node: Node, demand: Demand, order: Order) -> AnyTenancy:
        """Starts a lab on the node as soon as what it demands is free there; returns at once."""


@dataclass
class Attempt:
    """A lab that has been given to a node. `lost_on`: the nodes that earlier attempts were lost with."""

    job: Job
    node: Node
    demand: Demand
    tenancy: AnyTenancy
    lost_on: tuple[str, ...]
    asked: list[float] = field(default_factory=list)


@dataclass
class Dispatcher:
    """Runs `jobs` on the grid. `fits(job, node)`: what the lab takes there, None where it cannot run."""

    grid: Grid
    jobs: Sequence[Job]
    fits: Callable[[Job, Node], Demand | None]
    out_dir: Path
    stop: Stop
    shown: Progress
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        self.running: list[Attempt] = []
        self.waiting: list[tuple[Job, tuple[str, ...]]] = [(job, ()) for job in self.jobs]
        self._told = now_and_then(self.shown.note, every_s=TELL_EVERY_S, now=self.now)

    def steps(self) -> Iterator[Step]:
        """(job, None) when a lab starts and (job, its end) when its files are in `out_dir`."""
        try:
            while self.waiting or self.running:
                if self.stop.asked.is_set():
                    yield from self._give_up_waiting()
                    self._ask_to_stop()
                elif self.waiting:
                    yield from self._start_what_fits(self.grid.nodes())
                yield from self._ends()
                self.shown.tick()
                self.sleep(POLL_S)
        finally:
            for attempt in self.running:
                attempt.tenancy.leave()

    def _start_what_fits(self, nodes: Sequence[Node]) -> Iterator[Step]:
        for job, lost_on in list(self.waiting):
            able = {node.id: (node, asked) for node in nodes if (asked := self.fits(job, node)) is not None}
            if not able:
                self.waiting.remove((job, lost_on))
                if not lost_on:
                    yield job, None
                yield job, failed(f"no node that is left can run it{_after(lost_on)}")
            elif chosen := self._choose(able, lost_on):
                self.waiting.remove((job, lost_on))
                self._open(job, *chosen, lost_on)
                if not lost_on:
                    yield job, None
        if self.waiting and not self.running:
            self._told(f"{self.waiting[0][0].lab.name} waits: others hold the cluster's CPUs or GPUs")

    def _choose(self, able: Mapping[str, tuple[Node, Demand]], lost_on: Sequence[str]) -> tuple[Node, Demand] | None:
        """The fullest node with room for the lab, so that whole nodes stay free for engines; one that was lost last."""
        if any(attempt.demand.alone for attempt in self.running):
            return None
        others = [pair for id, pair in able.items() if id not in lost_on] or list(able.values())
        with_room = [pair for pair in others if self._has_room(*pair)]
        return min(with_room, key=lambda pair: pair[0].free_cpus, default=None)

    def _has_room(self, node: Node, asked: Demand) -> bool:
        ours = [attempt.demand for attempt in self.running if attempt.node.id == node.id]
        if asked.alone:
            return not self.running
        if not ours and (node.free_cpus < asked.cpus or node.free_gpus < asked.gpus):
            return False
        cpus, gpus = node.cpus - sum(each.cpus for each in ours), node.gpus - sum(each.gpus for each in ours)
        return asked.cpus <= cpus and asked.gpus <= gpus

    def _open(self, job: Job, node: Node, asked: Demand, lost_on: tuple[str, ...]) -> None:
        order = Order(
            lab=job.lab.name,
            notebook=job.lab.notebook,
            content=job.notebook.read_bytes(),
            parameters=dict(job.given),
        )
        self.shown.note(f"{job.lab.name}: on node {node.name}{f', try {len(lost_on) + 1}' if lost_on else ''}")
        self.running.append(Attempt(job, node, asked, self.grid.open(node, asked, order), lost_on))

    def _ends(self) -> Iterator[Step]:
        for attempt in list(self.running):
            if (cell := attempt.tenancy.cell()) and cell[1]:
                self.shown.cell_started(*cell, lab=attempt.job.lab.name)
            try:
                outcome = attempt.tenancy.outcome()
            except LostError as error:
                self._leave(attempt)
                yield from self._lost(attempt, str(error))
                continue
            if outcome is not None:
                self._leave(attempt)
                _unpack(outcome.files, self.out_dir)
                yield attempt.job, outcome.end
            elif self._unanswered(attempt):
                self._leave(attempt)
                yield attempt.job, _stopped(f"its node {attempt.node.name} did not answer")

    def _leave(self, attempt: Attempt) -> None:
        self.running.remove(attempt)
        attempt.tenancy.leave()

    def _lost(self, attempt: Attempt, why: str) -> Iterator[Step]:
        lost_on, name = (*attempt.lost_on, attempt.node.id), attempt.job.lab.name
        if self.stop.asked.is_set():
            yield attempt.job, _stopped(f"its node {attempt.node.name} was lost")
        elif len(lost_on) == TRIES:
            yield attempt.job, failed(f"its node was lost {TRIES} times, at last {attempt.node.name}: {why}")
        else:
            self.shown.note(f"{name}: node {attempt.node.name} was lost ({why}); the lab starts again")
            self.waiting.insert(0, (attempt.job, lost_on))

    def _give_up_waiting(self) -> Iterator[Step]:
        """A lab that has been lost and waits for another node was running for those who watch: it needs an end."""
        for job, lost_on in self.waiting:
            if lost_on:
                yield job, _stopped("its node was lost")
        self.waiting = []

    def _ask_to_stop(self) -> None:
        times = 2 if self.stop.urgent.is_set() else 1
        for attempt in self.running:
            while len(attempt.asked) < times:
                attempt.asked.append(self.now())
                attempt.tenancy.stop()

    def _unanswered(self, attempt: Attempt) -> bool:
        """Whether it was asked to stop and nothing more can be expected: it was not placed yet, or time is up."""
        if not attempt.asked:
            return False
        patience_s = URGENT_PATIENCE_S if len(attempt.asked) > 1 else STOP_PATIENCE_S
        return attempt.tenancy.cell() is None or self.now() - attempt.asked[-1] > patience_s


def _unpack(files: Mapping[str, bytes], out_dir: Path) -> None:
    for name, content in files.items():
        path = out_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def failed(why: str) -> NotebookEnd:
    """The end of a lab that has no notebook to tell of it."""
    return NotebookEnd(status="failed", seconds=0.0, error=why)


def _stopped(why: str) -> NotebookEnd:
    return NotebookEnd(status="interrupted", seconds=0.0, error=f"stopped by the user; {why}")


def _after(lost_on: Sequence[str]) -> str:
    return f", after its node was lost {len(lost_on)} times" if lost_on else ""


# --- is there a Ray cluster at an address, and may we join it? Asked before ray is imported ---


MODE, TOKEN, TOKEN_PATH, ADDRESS = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"
AUTO = "auto"
STARTED_HERE = Path("/tmp/ray/ray_current_cluster")  # written by `ray start` on this machine
TIMEOUT_S = 5.0
WHO_ARE_YOU = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # answered to whoever has the token
ON_A_NODE = "name HOST:PORT of its head, on a machine that is a node of it; or `auto` there"


def knock(address: str) -> str:
    """HOST:PORT of the cluster's head; the environment then says how to speak to it.

    `address`: that, or "auto" for the cluster that was started on this machine. UsageError: nobody answers, somebody
    else does, or our token is missing or wrong.
    """
    found = _started_here() if address == AUTO else address
    host, _, port = found.rpartition(":")
    if not host or not port.isdecimal() or "/" in found:
        raise UsageError(f"{found!r} is no address of a Ray cluster", remedy=ON_A_NODE)
    if _lets_in(found, token=""):
        os.environ[MODE] = "disabled"  # a token of ours, from another Ray, would make us deaf to its nodes
    elif not (token := _token()):
        remedy = "copy ~/.ray/auth_token from the cluster's head (mode 600), or set RAY_AUTH_TOKEN"
        raise UsageError(f"the Ray cluster at {found} asks for a token, and there is none here", remedy=remedy)
    elif not _lets_in(found, token=token):
        remedy = "copy ~/.ray/auth_token from the cluster's head (mode 600); RAY_AUTH_TOKEN comes before the file"
        raise UsageError(f"the Ray cluster at {found} refuses the token of this machine", remedy=remedy)
    else:
        os.environ[MODE] = "token"
    return found


def _started_here() -> str:
    if found := os.environ.get(ADDRESS, ""):
        return found
    try:
        return STARTED_HERE.read_text(encoding="utf-8").strip()
    except OSError:
        raise UsageError("no Ray cluster was started on this machine", remedy=ON_A_NODE) from None


def _token() -> str:
    """As Ray looks for it."""
    if token := os.environ.get(TOKEN, ""):
        return token
    try:
        return Path(os.environ.get(TOKEN_PATH) or TOKEN_FILE).expanduser().read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _lets_in(address: str, *, token: str) -> bool:
    import grpc  # type: ignore[import-untyped]  # comes with ray

    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(WHO_ARE_YOU)(b"", timeout=TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return False
            raise UsageError(f"no Ray cluster answers at {address!r}: {error.details()}", remedy=ON_A_NODE) from None
    return True


# --- run ---


def run_on_cluster(
    address: str,
    names: Sequence[str] = (),
    *,
    profile: str | None = None,
    out_dir: Path | None = None,
    resume: bool = False,
    settings: Sequence[str] = (),
    labs: Mapping[str, Lab] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> RunResult:
    """As `make_plan` and `run_labs`, on the Ray cluster whose head is at `address` (HOST:PORT, or "auto").

    UsageError, before any lab starts: no cluster there, no right to it, no node that fits, another course on all nodes.
    """
    labs = labs or LABS
    with join(address, say=say) as cluster:
        strongest = cluster.strongest
        plan = make_plan(
            names,
            profile=profile,
            out_dir=out_dir,
            resume=resume,
            settings=[*_addresses(cluster.address, labs), *settings],
            labs=labs,
            machine=strongest.machine,
            versions=strongest.versions,
            models=lambda _: None,  # the nodes that run the labs fetch them, each into its own cache
        )
        executor = cluster.executor(plan)
        say("\n".join(opening_lines(plan)))
        return run_labs(plan, executor=executor)


def _addresses(address: str, labs: Mapping[str, Lab]) -> list[str]:
    """A lab that deploys into a cluster gets this one, unless the user's own settings, which come later, say other."""
    return [f"all.{RAY_ADDRESS}={address}"] if any(RAY_ADDRESS in lab.parameters for lab in labs.values()) else []


# ---   init   ---


__all__ = ["run_on_cluster"]


# --- ray's side of a run on a cluster: joining it, looking at its nodes, one actor a lab ---


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

    def open(self, node: Node, demand: Demand, order: on_node.Order) -> "Tenancy":
        """An actor of its own for the lab, on that node and no other."""
        import ray

        options = {"num_cpus": demand.cpus, "num_gpus": demand.gpus, "max_concurrency": 4}
        actor = ray.remote(on_node.Room).options(scheduling_strategy=_on(node.id), **options).remote()
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
        asked = {id: _task(on_node.missing_models, id).remote(names) for id in self.surveyed.facts}
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

    def __init__(self, actor: Any, order: on_node.Order) -> None:
        self._actor = actor
        self._result = actor.run.remote(order)
        self._asked_cell = actor.cell.remote()
        self._cell: tuple[int, int] | None = None

    def outcome(self) -> on_node.Outcome | None:
        """None while it runs. LostError: the node or the worker is gone."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        if not _is_ready(self._result):
            return None
        try:
            outcome: on_node.Outcome = ray.get(self._result)
        except RayTaskError as error:  # an error of ours on the node, such as a full disk
            return on_node.Outcome(end=failed(f"on the node: {_one_line(error)}"), files={})
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
    asked = {node.id: _task(on_node.look, node.id).remote() for node in nodes}
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
