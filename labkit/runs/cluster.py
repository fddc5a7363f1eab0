"""Run labs on a Ray cluster: join it, inspect its nodes, and submit one task per lab. Ray chooses the node."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from labkit.errors import UsageError, require
from labkit.labs import Lab, check_gpu_memory, readiness
from labkit.runs import on_node
from labkit.runs.knock import knock
from labkit.runs.notebook import NotebookEnd, Stop
from labkit.runs.on_node import Cell, Facts, LabEnd, Order
from labkit.runs.plan import Job, Plan, make_plan, selected_labs
from labkit.runs.runner import Progress, RunResult, Step, git_commit, opening_lines, run_labs
from labkit.serving import ray_serve

RAY_ADDRESS = "ray_address"  # labs with this parameter deploy into the cluster
TRIES = 3  # maximum attempts if nodes are lost
POLL_S = 0.5
STOP_PATIENCE_S, URGENT_PATIENCE_S = 60.0, 15.0  # from a stop request until the lab's task is cancelled
SURVEY_TIMEOUT_S = 180.0
HEAD = "node:__internal_head__"  # the resource that marks Ray's head node
PLACE = "node:__internal_implicit_resource_labkit"
"""Every node has 1 of it by default; Ray Serve limits replicas per node in the same way."""
SMALL_SHARE = 0.01  # of a node, for a lab that may share it with others
NODE_ID = "ray.io/node-id"  # Ray's label of a node's id

Say = Callable[[str], None]


def run_on_cluster(
    address: str,
    names: Sequence[str] = (),
    *,
    settings: Sequence[str] = (),
    say: Say = lambda _: None,
    **options: Any,
) -> RunResult:
    """Plan and run labs on the Ray cluster whose head is at `address` (HOST:PORT, or "auto"); see `make_plan`.

    UsageError, before any lab starts: no cluster, no access to it, no node that fits, or another version of the course
    on all nodes.
    """
    address = knock(address)
    ray_serve.connect(address)
    import ray  # after `knock`, which sets the authentication mode

    _silence_raylets()
    try:
        nodes = survey(address, say=say)
        facts = strongest(nodes)
        if any(map(_deploys, selected_labs(names))):  # the address at which all nodes reach the head
            settings = [f"all.{RAY_ADDRESS}={ray.get_runtime_context().gcs_address}", *settings]
        plan = make_plan(
            names,
            **options,
            settings=settings,
            machine=facts.machine,
            versions=facts.versions,
            fetch=lambda _: None,  # the nodes that run the labs fetch models, each into its own cache
        )
        nodes = _with_models(plan, nodes, say=say)
        require_fit(plan, nodes)
        say("\n".join(opening_lines(plan)))
        return run_labs(plan, executor=lambda *run: _phases(nodes, *run))
    finally:
        ray.shutdown()


def _silence_raylets() -> None:
    """Keep Ray from printing twenty log lines per lost node to stdout; the progress has a line for it."""
    from ray._private import worker

    worker.print_to_stdstream = lambda *_data, **_options: None


def _deploys(lab: Lab) -> bool:
    """Whether the lab deploys into the cluster."""
    return RAY_ADDRESS in lab.parameters


# --- nodes, and the labs that fit them


@dataclass(frozen=True, kw_only=True)
class Node:
    """A live node. `cpus` and `gpus`: Ray's counts; without `facts` it is not used, for `reason`.

    The `head` may have no CPUs. Ray Serve's HTTP proxy listens there, on its loopback interface only.
    """

    id: str
    name: str
    cpus: float
    gpus: float
    head: bool = False
    facts: Facts | None = None
    reason: str = ""
    missing_models: Mapping[str, str] = field(default_factory=dict)


def survey(address: str, *, say: Say) -> list[Node]:
    """Inspect the head and all nodes with CPUs. UsageError if no node can run a lab."""
    code, commit = on_node.fingerprint(), git_commit()  # a "+" after a commit: files were changed since
    nodes = []
    for node, facts, reason in _ask([node for node in _alive() if node.cpus >= 1 or node.head], on_node.look):
        if facts and facts.code != code:
            theirs = f"code {facts.code}, commit {facts.commit or 'no clone'}"
            reason = f"it has another version of the course ({theirs}; here {code}, {commit or 'no clone'})"
        if reason:
            say(f"node {node.name} is not used: {reason}")
        nodes.append(replace(node, facts=None if reason else facts, reason=reason))
    with_cpus = [node for node in nodes if node.cpus >= 1]
    listed = "; ".join(f"{node.name}: {node.reason}" for node in with_cpus) or "none has a CPU"
    what = f"no node of the cluster at {address} can run a lab ({listed})"
    fix = "start Ray there from a .venv of the same commit, with --num-cpus of 1 or more (docs/ray-serve.md)"
    require(any(node.facts for node in with_cpus), what, fix=fix)
    return nodes


def _alive() -> list[Node]:
    import ray

    alive = [info for info in ray.nodes() if info["Alive"]]
    hosts = [info["NodeManagerAddress"] for info in alive]
    nodes = []
    for info, host in zip(alive, hosts, strict=True):
        id, resources = info["NodeID"], info["Resources"]
        name = host if hosts.count(host) == 1 else f"{host}/{id[:6]}"
        cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
        nodes.append(Node(id=id, name=name, cpus=cpus, gpus=gpus, head=HEAD in resources))
    return nodes


def _with_models(plan: Plan, nodes: Sequence[Node], *, say: Say) -> list[Node]:
    """Let all used nodes fetch the labs' models into their caches, in parallel."""
    if not plan.models:
        return list(nodes)
    say(f"models on the nodes: {', '.join(plan.models)}")
    with_models = [node for node in nodes if not node.facts]
    for node, missing, reason in _ask(
        [node for node in nodes if node.facts], on_node.missing_models, plan.models, timeout_s=None
    ):
        missing = dict.fromkeys(plan.models, reason) if reason else missing
        with_models.append(replace(node, missing_models=missing))
    return with_models


def _ask(
    nodes: Sequence[Node], function: Callable[..., Any], *arguments: object, timeout_s: float | None = SURVEY_TIMEOUT_S
) -> Iterator[tuple[Node, Any, str]]:
    """Call `function` on all nodes in parallel; yield (node, its result or None, the problem in words or "")."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    remote, calls = ray.remote(function), []
    for node in nodes:
        task = remote.options(num_cpus=0, max_retries=0, label_selector={NODE_ID: node.id})
        calls.append(task.remote(*arguments))
    for node, call in zip(nodes, calls, strict=True):
        try:
            yield node, ray.get(call, timeout=timeout_s), ""
        except GetTimeoutError:
            yield node, None, f"no answer within {timeout_s:.0f} s"
        except (RayError, ImportError, AttributeError) as error:
            missing = "No module named 'labkit'" in str(error)
            reason = "labkit is not installed in the Python that Ray runs there" if missing else _last_line(error)
            yield node, None, reason


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def strongest(nodes: Sequence[Node]) -> Facts:
    """Return the facts of the node for which a run is planned: the most free GPU memory, then the most memory."""

    def strength(facts: Facts) -> tuple[int, int]:
        gpus = facts.machine.gpus
        return max((gpu.memory_free_bytes for gpu in gpus), default=0), facts.machine.memory_available_bytes

    return max((node.facts for node in nodes if node.facts and node.cpus >= 1), key=strength)


def misfit(job: Job, node: Node, plan: Plan) -> str:
    """Return why the lab cannot run on the node even if it is idle; "" if it can."""
    if node.facts is None:
        return node.reason
    machine = node.facts.machine
    if _deploys(job.lab):  # Ray places its replicas; the lab itself only calls them, also by HTTP
        return "" if node.head else "it calls Ray Serve on the loopback interface of the head"
    if plan.machine.gpus and job.lab.engine != "none" and not (machine.gpus and node.gpus >= 1):
        return machine.gpu_reason or "Ray counts no GPU there (ray start --num-gpus)"
    if node.cpus < 1:
        return "Ray counts no CPU there"
    ready = readiness(job.lab, machine, node.facts.versions)
    if ready.runs == "no":
        return ready.reason
    if model := node.missing_models.get(str(job.parameters.get("model"))):
        return model
    try:
        check_gpu_memory(job.parameters, machine, plan.profile.weights, engines=job.lab.needs.engines)
    except UsageError as error:
        return error.what
    return ""


def require_fit(plan: Plan, nodes: Sequence[Node]) -> None:
    """UsageError, with each node's reason, if a lab of the plan fits no node."""
    for job in plan.running:
        reasons = {node.name: misfit(job, node, plan) for node in nodes}
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        what = f"no node of the cluster can run {job.lab.name} ({listed})"
        require(not all(reasons.values()), what, fix="add a node that can run it, or leave the lab out")


def task_options(job: Job, nodes: Sequence[Node], *, on_gpu: bool) -> dict[str, Any]:
    """Return the task's Ray options: one of `nodes`, which all fit, and there one GPU, the whole node, or one CPU.

    The whole node means all CPUs of the smallest node, and `PLACE`, which keeps other labs off a larger one.
    """
    cpus, gpus, share = 1.0, 0, SMALL_SHARE
    if _deploys(job.lab):
        cpus, share = 0.0, 1.0
    elif job.lab.engine != "none" and on_gpu:
        cpus, gpus = max(1.0, min(node.cpus // node.gpus for node in nodes)), 1
    elif job.lab.engine != "none":
        cpus, share = min(node.cpus for node in nodes), 1.0
    ids = ",".join(node.id for node in nodes)
    return {
        "num_cpus": cpus,
        "num_gpus": gpus,
        "resources": {PLACE: share},
        "label_selector": {NODE_ID: f"in({ids})"},
        "max_retries": TRIES - 1,
    }


# --- the labs as tasks


class Board:
    """An actor on the driver's node: labs report to it and read the number of stop requests from it."""

    def __init__(self) -> None:
        self.attempts: list[tuple[str, str]] = []  # (lab, id of the node)
        self.cells: dict[str, Cell] = {}
        self.stops = 0

    def begin(self, lab: str, node_id: str) -> int:
        """Record an attempt; return its number among the lab's attempts."""
        self.attempts.append((lab, node_id))
        return [name for name, _ in self.attempts].count(lab)

    def report(self, lab: str, cell: Cell) -> int:
        """Record the running cell; return the number of stop requests."""
        self.cells[lab] = cell
        return self.stops

    def stop(self) -> None:
        """Request all labs to stop; the second request is urgent."""
        self.stops += 1

    def read(self) -> tuple[list[tuple[str, str]], dict[str, Cell]]:
        """Return all attempts so far, and each lab's running cell."""
        return self.attempts, self.cells


def run_order(order: Order, board: Any) -> LabEnd:
    """The Ray task: run one lab on the node that Ray chose."""
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    if (
        ray.get(board.begin.remote(order.lab, node_id)) > TRIES
    ):  # Ray does not limit retries after running out of memory
        raise MemoryError(f"Ray killed it {TRIES} times because memory ran out")
    return on_node.run_lab(order, lambda cell: int(ray.get(board.report.remote(order.lab, cell))))


def _phases(nodes: Sequence[Node], jobs: Sequence[Job], plan: Plan, stop: Stop, progress: Progress) -> Iterator[Step]:
    """Run labs that deploy into the cluster after the others, so that they have it to themselves."""
    for deploying in (False, True):
        phase = [job for job in jobs if _deploys(job.lab) == deploying]
        if phase and not stop.asked.is_set():
            yield from Dispatch(phase, nodes, plan, stop, progress).steps()


class Dispatch:
    """Labs as Ray tasks, from submission to end."""

    def __init__(self, jobs: Sequence[Job], nodes: Sequence[Node], plan: Plan, stop: Stop, progress: Progress) -> None:
        import ray

        self.nodes, self.plan, self.stop, self.progress = nodes, plan, stop, progress
        here = ray.get_runtime_context().get_node_id()
        self.board = ray.remote(Board).options(num_cpus=0, label_selector={NODE_ID: here}).remote()
        self.jobs = {self._submit(job): job for job in jobs}  # by task
        self.attempts: dict[str, list[str]] = {job.lab.name: [] for job in jobs}  # names of nodes
        self.stops_s: list[float] = []

    def steps(self) -> Iterator[Step]:
        """Yield (job, None) when a lab starts and (job, its end) when its files are in the run's folder."""
        import ray

        try:
            while self.jobs:
                ended, _ = ray.wait(list(self.jobs), timeout=POLL_S)
                yield from self._begun()
                for task in ended:
                    yield from self._ended(task, self.jobs.pop(task))
                if self.stop.asked.is_set():
                    yield from self._stopped()
        finally:
            for task in self.jobs:
                ray.cancel(task, force=True)

    def _submit(self, job: Job) -> Any:
        import ray

        fitting = [node for node in self.nodes if not misfit(job, node, self.plan)]
        options = task_options(job, fitting, on_gpu=bool(self.plan.machine.gpus))
        order = Order(lab=job.lab.name, parameters=dict(job.given), notebook=job.notebook.read_bytes())
        return ray.remote(run_order).options(**options).remote(order, self.board)

    def _begun(self) -> Iterator[Step]:
        """Read new attempts and the running cells from the board."""
        import ray

        jobs = {job.lab.name: job for job in self.jobs.values()}
        names = {node.id: node.name for node in self.nodes}
        attempts, cells = ray.get(self.board.read.remote())
        for lab, node_id in attempts[sum(map(len, self.attempts.values())) :]:
            before, node = self.attempts[lab], names[node_id]
            if before:
                note = f"node {before[-1]} was lost; restarting on node {node}, try {len(before) + 1}"
            else:
                note = f"on node {node}"
                if lab in jobs:  # a stop may have ended it meanwhile
                    yield jobs[lab], None
            self.progress.note(f"{lab}: {note}")
            before.append(node)
        for lab, (index, total) in cells.items():
            self.progress.cell_started(lab, index, total)

    def _ended(self, task: Any, job: Job) -> Iterator[Step]:
        import ray
        from ray.exceptions import RayError, RayTaskError, TaskUnschedulableError

        attempts = self.attempts[job.lab.name]
        lost = f"its node was lost {len(attempts)} times, last {attempts[-1]}" if attempts else "it was not started"
        if not attempts:
            yield job, None
        try:
            outcome: LabEnd = ray.get(task)
        except TaskUnschedulableError:
            yield job, _end("failed", f"no remaining node can run it; {lost}")
        except RayTaskError as error:  # labkit's own error on the node, such as a full disk
            yield job, _end("failed", f"on the node: {_last_line(error)}")
        except RayError as error:
            yield job, _end("failed", f"{lost}: {_last_line(error)}")
        else:
            for name, content in outcome.files.items():
                path = self.plan.out_dir / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            yield job, outcome.end

    def _stopped(self) -> Iterator[Step]:
        """Pass stop requests on to the labs; cancel labs that have not started or do not answer."""
        import ray

        while len(self.stops_s) < (2 if self.stop.urgent.is_set() else 1):
            self.stops_s.append(time.monotonic())
            self.board.stop.remote()
        patience_s = URGENT_PATIENCE_S if len(self.stops_s) > 1 else STOP_PATIENCE_S
        late = time.monotonic() - self.stops_s[-1] > patience_s
        for task, job in list(self.jobs.items()):
            attempts = self.attempts[job.lab.name]
            if late or not attempts:
                ray.cancel(task, force=True)
                del self.jobs[task]
            if late and attempts:
                yield job, _end("interrupted", f"stopped by the user; its node {attempts[-1]} did not answer")


def _end(status: str, error: str) -> NotebookEnd:
    """The end of a lab without an executed notebook."""
    return NotebookEnd(status=status, seconds=0.0, error=error)
