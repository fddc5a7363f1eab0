"""A run on a cluster without a cluster: which lab goes where, what becomes of a lost node's lab, one lab's process."""

import io
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.cli.main import main
from labkit.errors import UsageError
from labkit.labs import Lab
from labkit.records import read, read_run
from labkit.runs import cluster, on_node
from labkit.runs import cluster as knocking
from labkit.runs.cluster import TIMEOUT_S, WHO_ARE_YOU, Dispatcher, LostError, knock
from labkit.runs.notebook import NotebookEnd, Stop
from labkit.runs.on_node import (
    Demand,
    Facts,
    Node,
    Order,
    Outcome,
    Room,
    Surveyed,
    demand,
    misfit,
    require_fit,
    strongest,
)
from labkit.runs.plan import Job, Plan, make_plan
from labkit.runs.runner import Progress, log_path, run_labs
from tests.unit import synthetic
from tests.unit.test_runner import carrying

GOOD, FAILS, SLEEPS, DIES, FORGETS = synthetic.LABS
PARAMETERS: dict[str, Any] = {"seed": {"type": "int", "help": "h"}}


def lab(number: int, engine: str = "none", **parameters: Any) -> Lab:
    """A lab that exists in these tests only."""
    declared = PARAMETERS | parameters
    return Lab(name=f"{number}_lab", title="T", question="Q?", minutes=1, engine=engine, parameters=declared)  # type: ignore[arg-type]


def job(lab: Lab, **parameters: Any) -> Job:
    """A job whose notebook is there."""
    return Job(lab=lab, notebook=synthetic.ROOT / "notebooks" / f"{GOOD}.ipynb", given={}, parameters=parameters)


def node(name: str, *, cpus: float = 8, gpus: float = 0, free_cpus: float | None = None) -> Node:
    """A node that is idle unless told otherwise."""
    free = cpus if free_cpus is None else free_cpus
    return Node(id=name, name=name, cpus=cpus, gpus=gpus, free_cpus=free, free_gpus=gpus)


def facts(**machine: Any) -> Facts:
    """What a node with everything installed says."""
    return Facts(
        machine=synthetic.machine(**machine),
        versions={"vllm": "1", "ray": "1", "torchserve": "1"},
        code="c",
        commit="d",
    )


def plan(*jobs: Job, gpu_gib: float = 0, out_dir: Path = Path("unused")) -> Plan:
    """A plan of these jobs, sized to a machine with a GPU or without."""
    (good,) = make_plan([GOOD], out_dir=out_dir, labs=synthetic.LABS, machine=synthetic.machine()).jobs
    made = make_plan([GOOD], out_dir=out_dir, labs=synthetic.LABS, machine=synthetic.machine())
    return replace(made, machine=synthetic.machine(gpu_gib=gpu_gib), jobs=jobs or (good,))


@pytest.fixture(autouse=True)
def _synthetic_course(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_ROOT", str(synthetic.ROOT))


# --- what a lab takes, and where it fits


@pytest.mark.parametrize(
    ("engine", "gpus", "parameters", "asked"),
    [
        ("none", 0, {}, Demand(cpus=1)),
        ("vllm", 0, {}, Demand(cpus=8)),
        ("vllm", 1, {}, Demand(cpus=8, gpus=1)),
        ("torchserve", 3, {}, Demand(cpus=2, gpus=1)),
        ("vllm", 16, {}, Demand(cpus=1, gpus=1)),
        ("ray", 2, {on_node.RAY_ADDRESS: {"type": "str", "help": "h"}}, Demand(cpus=0, alone=True)),
    ],
)
def test_an_engine_takes_a_node_or_a_gpu(engine: str, gpus: int, parameters: dict[str, Any], asked: Demand) -> None:
    """All CPUs of a node, or one GPU with its share of them; without an engine one CPU; the whole cluster for Serve."""
    assert demand(job(lab(50, engine, **parameters)), node("n", gpus=gpus), on_gpu=bool(gpus)) == asked


def test_every_reason_against_a_node_is_told(tmp_path: Path) -> None:
    """Too few CPUs, no GPU, no memory, another course, a missing model: each is named, and a good node has none."""
    of_all = {
        "good": facts(gpu_gib=24),
        "no gpu": facts(),
        "uncounted": facts(gpu_gib=24),
        "little memory": facts(memory_gib=1, gpu_gib=24),
        "no vllm": replace(facts(gpu_gib=24), versions={}),
        "no model": facts(gpu_gib=24),
    }
    hungry = lab(50, "vllm").model_copy(update={"needs": lab(50).needs.model_copy(update={"memory_gib": 8})})
    wanted = job(hungry, model="m")
    surveyed = Surveyed(
        facts=of_all, unusable={"other": "its course is another one"}, missing={"no model": {"m": "no m"}}
    )
    on_gpu = plan(wanted, gpu_gib=24, out_dir=tmp_path)
    found = {
        name: misfit(wanted, node(name, gpus=0 if name == "uncounted" else 1), surveyed, on_gpu)
        for name in [*of_all, "other", "late"]
    }
    assert found.pop("good") == ""
    assert found.pop("no gpu") == synthetic.NO_GPU
    assert "Ray counts no GPU" in found.pop("uncounted")
    assert "it takes 8 GiB of memory and 1.0" in found.pop("little memory")
    assert "vllm not installed" in found.pop("no vllm")
    assert found == {
        "other": "its course is another one",
        "no model": "no m",
        "late": "it joined after the run had started",
    }
    with pytest.raises(UsageError, match=r"no node of the cluster can run 50_lab \(no gpu: no NVIDIA driver here\)"):
        require_fit(on_gpu, [node("no gpu", gpus=1)], surveyed)
    require_fit(on_gpu, [node("no gpu", gpus=1), node("good", gpus=1)], surveyed)


def test_a_lab_that_deploys_runs_on_the_head(tmp_path: Path) -> None:
    """Ray Serve's HTTP listens on the head's loopback interface; a head without CPUs takes that lab and no other."""
    deploys = job(lab(50, "ray", **{on_node.RAY_ADDRESS: {"type": "str", "help": "h"}}))
    surveyed = Surveyed(facts={"head": replace(facts(memory_gib=1), versions={}), "w": facts()})
    head, worker, of = replace(node("head", cpus=0), head=True), node("w"), plan(deploys, out_dir=tmp_path)
    assert misfit(deploys, head, surveyed, of) == ""
    assert "loopback interface of the head" in misfit(deploys, worker, surveyed, of)
    assert misfit(job(lab(51)), head, surveyed, of) == "Ray counts no CPU there"
    assert misfit(job(lab(51)), worker, surveyed, of) == ""
    require_fit(of, [head, worker], surveyed)


def test_the_strongest_node_decides_about_the_profile() -> None:
    """A GPU counts before memory, more of it before less."""
    by_node = {"big": facts(memory_gib=30), "gpu": facts(memory_gib=8, gpu_gib=24), "small": facts(gpu_gib=16)}
    by_node["no CPUs"] = facts(gpu_gib=80)
    on_node = [node(name, cpus=0 if name == "no CPUs" else 8) for name in [*by_node, "unknown"]]
    assert strongest(Surveyed(facts=by_node), on_node) is by_node["gpu"]


def test_the_fingerprint_sees_data_and_code_but_no_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed data file is another course; an executed notebook, or a file beside, is not."""
    shutil.copytree(synthetic.ROOT, tmp_path / "course")
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path / "course"))
    before = on_node.fingerprint()
    assert before == on_node.fingerprint()
    (tmp_path / "course" / "notebooks" / f"{GOOD}.ipynb").write_text("{}")
    assert on_node.fingerprint() == before
    (tmp_path / "course" / "data" / "labs.yaml").open("a").write("# changed\n")
    assert on_node.fingerprint() != before


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1", "no address of a Ray cluster"),
        ("ray://127.0.0.1:1", "no address of a Ray cluster"),
        ("", "no address of a Ray cluster"),
        ("here:x", "no address of a Ray cluster"),
        ("127.0.0.1:1", "Connection refused"),
        ("127.0.0.1:99999", "no Ray cluster answers"),
    ],
)
def test_an_address_where_no_cluster_answers_is_refused_at_once(address: str, says: str) -> None:
    """Ray itself would try for a minute."""
    began = time.monotonic()
    with pytest.raises(UsageError) as caught:
        knock(address)
    assert says in caught.value.what
    assert "HOST:PORT of its head" in caught.value.remedy
    assert time.monotonic() - began < 2 * TIMEOUT_S


def test_auto_means_the_cluster_that_was_started_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by RAY_ADDRESS, or by the file that `ray start` leaves; without either, the message says so."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(knocking, "STARTED_HERE", tmp_path / "ray_current_cluster")
    with pytest.raises(UsageError, match="no Ray cluster was started on this machine"):
        knock("auto")
    (tmp_path / "ray_current_cluster").write_text("127.0.0.1:1\n")
    with pytest.raises(UsageError, match=r"answers at '127\.0\.0\.1:1'"):
        knock("auto")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:2")
    with pytest.raises(UsageError, match=r"answers at '127\.0\.0\.1:2'"):
        knock("auto")


@pytest.fixture
def head() -> Iterator[tuple[str, list[str]]]:
    """(address, the tokens that it lets in) of a gRPC server that answers as Ray's head does; "" lets in everybody."""
    import grpc  # type: ignore[import-untyped]  # comes with ray

    tokens: list[str] = []

    def who_are_you(_request: bytes, context: Any) -> bytes:
        sent = dict(context.invocation_metadata()).get("authorization", "").removeprefix("Bearer ")
        if sent not in tokens and "" not in tokens:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""

    service, _, method = WHO_ARE_YOU[1:].rpartition("/")
    server = grpc.server(ThreadPoolExecutor(1))
    handlers = {method: grpc.unary_unary_rpc_method_handler(who_are_you)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", tokens
    server.stop(0).wait()


@pytest.mark.parametrize(
    ("lets_in", "ours", "mode", "says"),
    [
        ("", "anything", "disabled", ""),
        ("", "", "disabled", ""),
        ("right", "right", "token", ""),
        ("right", "wrong", "", "refuses the token of this machine"),
        ("right", "", "", "asks for a token, and there is none here"),
    ],
)
@pytest.mark.parametrize("by", ["variable", "file"])
def test_the_token_decides_how_ray_is_spoken_to(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    head: tuple[str, list[str]],
    lets_in: str,
    ours: str,
    mode: str,
    says: str,
    by: str,
) -> None:
    """A cluster without tokens is asked without one; else ours is tried, from the variable or from a file."""
    address, tokens = head
    tokens.append(lets_in)
    (tmp_path / "token").write_text(f"{ours}\n")
    monkeypatch.setenv("RAY_AUTH_MODE", "before")
    monkeypatch.setenv("RAY_AUTH_TOKEN", ours if by == "variable" else "")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / ("token" if by == "file" and ours else "absent")))
    if says:
        with pytest.raises(UsageError, match=says):
            knock(address)
        assert os.environ["RAY_AUTH_MODE"] == "before"
    else:
        assert knock(address) == address
        assert os.environ["RAY_AUTH_MODE"] == mode


def test_the_command_line_says_where_a_cluster_must_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`labkit run --ray` at a wrong address: exit 2, one message, no folder."""
    with pytest.raises(SystemExit) as ended:
        main(["run", GOOD, "--ray", "nowhere", "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert "'nowhere' is no address of a Ray cluster" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# --- who runs where


class FakeGrid:
    """Nodes on which a lab takes as many polls as `takes` says, and some of which are lost."""

    def __init__(self, *names: str, cpus: float = 8, takes: int = 3, lose: tuple[str, ...] = ()) -> None:
        self.alive = {name: node(name, cpus=cpus) for name in names}
        self.takes, self.lose = takes, lose
        self.opened: list[tuple[str, str]] = []
        self.open_now: list[FakeTenancy] = []
        self.busiest = 0

    def nodes(self) -> list[Node]:
        """Those that are not lost; what nobody else holds is free."""
        return list(self.alive.values())

    def open(self, node: Node, demand: Demand, order: Order) -> "FakeTenancy":
        """A lab that ends by itself."""
        self.opened.append((order.lab, node.id))
        self.open_now.append(FakeTenancy(self, node, demand, order))
        return self.open_now[-1]


class FakeTenancy:
    """Counts the polls."""

    def __init__(self, grid: FakeGrid, node: Node, demand: Demand, order: Order) -> None:
        self.grid, self.node, self.demand, self.order = grid, node, demand, order
        self.polls = self.stops = 0
        self.deaf = False

    def outcome(self) -> Outcome | None:
        """Ends after so many polls, or when it was asked to stop."""
        self.polls += 1
        for each in self.grid.alive.values():
            taken = sum(open.demand.cpus for open in self.grid.open_now if open.node.id == each.id)
            assert taken <= each.cpus
        if any(open.demand.alone for open in self.grid.open_now):
            assert len(self.grid.open_now) == 1
        if self.node.id in self.grid.lose:
            self.grid.alive.pop(self.node.id, None)
            raise LostError("it was lost")
        if (self.stops and not self.deaf) or self.polls > self.grid.takes:
            end = NotebookEnd(status="interrupted" if self.stops else "done", seconds=1.0)
            return Outcome(end=end, files={f"logs/{self.order.lab}.log": b"log"})
        return None

    def cell(self) -> tuple[int, int] | None:
        """Its polls as cells."""
        return (self.polls, self.grid.takes)

    def stop(self) -> None:
        """Counts how often it was asked."""
        self.stops += 1

    def leave(self) -> None:
        """Gives the room back."""
        self.grid.open_now.remove(self)


def dispatcher(grid: FakeGrid, jobs: list[Job], out_dir: Path, stop: Stop | None = None, **options: Any) -> Dispatcher:
    """One that never sleeps, in whose grid every lab fits every node."""
    shown = Progress([each.lab.name for each in jobs], {each.lab.name: 1.0 for each in jobs}, stream=io.StringIO())

    def fits(job: Job, node: Node) -> Demand | None:
        return demand(job, node, on_gpu=False)

    return Dispatcher(
        grid, jobs, options.pop("fits", fits), out_dir, stop or Stop(), shown, sleep=lambda _: None, **options
    )


def told(steps: Iterator[tuple[Job, NotebookEnd | None]]) -> list[tuple[str, str]]:
    """(lab, "starts" or how it ended)."""
    return [(job.lab.name, end.status if end else "starts") for job, end in steps]


@settings(deadline=None)
@given(
    engines=st.lists(st.sampled_from(["none", "vllm", "serve"]), min_size=1, max_size=8),
    count=st.integers(min_value=1, max_value=3),
    takes=st.integers(min_value=0, max_value=4),
)
def test_every_lab_runs_once_and_no_node_is_overbooked(
    tmp_path_factory: pytest.TempPathFactory, engines: list[str], count: int, takes: int
) -> None:
    """Whatever the labs: each starts and ends, no node is promised twice, and a lab that deploys has all for itself."""
    declared = {on_node.RAY_ADDRESS: {"type": "str", "help": "h"}}
    labs = [lab(10 + n, "ray", **declared) if e == "serve" else lab(10 + n, e) for n, e in enumerate(engines)]
    grid = FakeGrid(*[f"n{n}" for n in range(count)], cpus=2, takes=takes)
    steps = told(dispatcher(grid, [job(each) for each in labs], tmp_path_factory.mktemp("d")).steps())
    assert sorted(steps) == sorted((each.name, what) for each in labs for what in ("starts", "done"))
    assert grid.open_now == []


def test_engine_labs_run_at_the_same_time_on_different_nodes(tmp_path: Path) -> None:
    """Two nodes take two of three labs at once; the third follows on the node that comes free."""
    grid = FakeGrid("a", "b")
    steps = told(dispatcher(grid, [job(lab(n, "vllm")) for n in (10, 11, 12)], tmp_path).steps())
    assert steps[:2] == [("10_lab", "starts"), ("11_lab", "starts")]
    assert {name for _, name in grid.opened[:2]} == {"a", "b"}
    assert (tmp_path / "logs" / "12_lab.log").read_bytes() == b"log"


def test_a_small_lab_leaves_whole_nodes_to_engines(tmp_path: Path) -> None:
    """It joins the node that is in use already."""
    grid = FakeGrid("a", "b")
    grid.alive["b"] = node("b", free_cpus=3)
    told(dispatcher(grid, [job(lab(10))], tmp_path).steps())
    assert grid.opened == [("10_lab", "b")]


def test_a_lost_nodes_lab_starts_again_elsewhere(tmp_path: Path) -> None:
    """It is told once as started and once as done; the run goes on without the node."""
    grid = FakeGrid("a", "b", lose=("a",))
    steps = told(dispatcher(grid, [job(lab(10, "vllm")), job(lab(11, "vllm"))], tmp_path).steps())
    assert sorted(steps) == [("10_lab", "done"), ("10_lab", "starts"), ("11_lab", "done"), ("11_lab", "starts")]
    assert sorted(grid.opened) == [("10_lab", "a"), ("10_lab", "b"), ("11_lab", "b")]


def test_a_lab_that_loses_every_node_fails_with_the_number(tmp_path: Path) -> None:
    """After three tries it is given up; before, when no node is left."""
    ends = []
    for names in (("a", "b", "c", "d"), ("a", "b")):
        grid = FakeGrid(*names, lose=names)
        ends += [end for _, end in dispatcher(grid, [job(lab(10, "vllm"))], tmp_path).steps() if end]
        assert grid.open_now == []
    assert [end.status for end in ends] == ["failed", "failed"]
    assert "its node was lost 3 times, at last" in ends[0].error
    assert ends[1].error == "no node that is left can run it, after its node was lost 2 times"


def test_a_worker_that_died_on_the_only_node_is_tried_there_again(tmp_path: Path) -> None:
    """The node still lives (memory ran out, say): better there than nowhere."""
    grid = FakeGrid("a")
    steps = dispatcher(grid, [job(lab(10, "vllm"))], tmp_path).steps()
    next(steps)
    lost = grid.open_now[0]
    lost.outcome = _raise_lost  # type: ignore[method-assign]
    assert [end.status if end else None for _, end in steps] == ["done"]
    assert grid.opened == [("10_lab", "a")] * 2


def _raise_lost() -> Outcome | None:
    raise LostError("the worker died")


def test_a_stop_reaches_every_lab_and_starts_no_other(tmp_path: Path) -> None:
    """Labs that run are asked and end as interrupted, with their files; the one that waits is not even told."""
    grid, stop = FakeGrid("a", "b", takes=10**6), Stop()
    steps = dispatcher(grid, [job(lab(n, "vllm")) for n in (10, 11, 12)], tmp_path, stop).steps()
    assert told(iter([next(steps), next(steps)])) == [("10_lab", "starts"), ("11_lab", "starts")]
    stop.ask()
    assert told(steps) == [("10_lab", "interrupted"), ("11_lab", "interrupted")]
    assert grid.open_now == []


def test_a_node_that_answers_no_stop_is_left_after_a_while(tmp_path: Path) -> None:
    """A minute of patience, less when the user is urgent; then the node's own end of the connection cleans up."""
    waited = []
    for urgent in (False, True):
        grid, stop, now = FakeGrid("a", takes=10**6), Stop(), [0.0]

        def sleep(seconds: float, now: list[float] = now) -> None:
            now[0] += seconds

        running = dispatcher(grid, [job(lab(10, "vllm"))], tmp_path, stop, now=lambda now=now: now[0])
        running.sleep = sleep
        steps = running.steps()
        next(steps)
        grid.open_now[0].deaf = True
        began = now[0]
        stop.ask()
        if urgent:
            stop.ask()
        ((_, end),) = list(steps)
        assert end is not None
        assert "did not answer" in end.error
        waited.append(now[0] - began)
    assert waited[0] > cluster.STOP_PATIENCE_S > waited[1] > cluster.URGENT_PATIENCE_S


def test_an_error_in_the_run_leaves_no_lab_behind(tmp_path: Path) -> None:
    """Whoever stops asking for steps gives every node back."""
    grid = FakeGrid("a", takes=10**6)
    steps = dispatcher(grid, [job(lab(10, "vllm"))], tmp_path).steps()
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert grid.open_now == []


# --- one lab's process on the node


def order(name: str) -> Order:
    """One of the synthetic labs."""
    content = (synthetic.ROOT / "notebooks" / f"{name}.ipynb").read_bytes()
    return Order(lab=name, notebook=f"{name}.ipynb", content=content, parameters={"number": 2.0, "guess": 1.9})


@pytest.mark.notebook
def test_a_room_that_is_asked_stops_its_lab_and_keeps_what_was_found(tmp_path: Path) -> None:
    """The record of the interrupted lab comes home, and the four sleepers are gone."""
    token = uuid.uuid4().hex
    room = Room({**os.environ, "LABKIT_TEST_TOKEN": token})
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(room.run(order(SLEEPS))), daemon=True)
    thread.start()
    wait_for(lambda: sum("sleep 297" in line for line in carrying(token)) >= 4)
    assert room.cell() == (4, 6)  # papermill puts in a cell for the parameters
    room.stop()
    thread.join(60)
    (outcome,) = outcomes
    assert outcome.end.status == "interrupted"
    (tmp_path / f"{SLEEPS}.json").write_bytes(outcome.files[f"{SLEEPS}.json"])
    assert read(tmp_path / f"{SLEEPS}.json").exact == {"kept": 1}
    wait_for(lambda: not carrying(token))


@pytest.mark.notebook
def test_nothing_outlives_a_worker_that_is_killed_with_its_children(tmp_path: Path) -> None:
    """As Ray ends a worker: SIGKILL to its children, then to itself. Kernel, sleepers and folder go."""
    token = uuid.uuid4().hex
    worker = (
        "import os\nfrom labkit.runs.on_node import Room\nfrom tests.unit.test_remote import SLEEPS, order\n"
        "Room(dict(os.environ)).run(order(SLEEPS))"
    )
    environment = {**os.environ, "LABKIT_TEST_TOKEN": token, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", worker], env=environment, cwd=Path(__file__).parents[2])
    wait_for(lambda: sum("sleep 297" in line for line in carrying(token)) >= 4 or process.poll() is not None)
    for child in psutil.Process(process.pid).children():
        child.kill()
    process.kill()
    process.wait()
    wait_for(lambda: not carrying(token))
    wait_for(lambda: not list(tmp_path.glob("labkit-*")))


@pytest.mark.notebook
def test_a_lab_process_that_dies_is_a_failed_lab() -> None:
    """Killed from outside: no outcome pretends that all went well, and the reason is told."""
    token = uuid.uuid4().hex
    room = Room({**os.environ, "LABKIT_TEST_TOKEN": token})
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(room.run(order(SLEEPS))), daemon=True)
    thread.start()
    wait_for(lambda: sum("sleep 297" in line for line in carrying(token)) >= 4)
    for process in psutil.process_iter():
        if lab_process_of(process, token):
            process.kill()
    thread.join(60)
    try:
        assert outcomes[0].end.status == "failed"
        assert "the process that ran the lab died" in outcomes[0].end.error
    finally:
        end_all(token)


def lab_process_of(process: psutil.Process, token: str) -> bool:
    """Whether it is the process that runs this test's lab."""
    try:
        return "labkit.runs.lab_process" in process.cmdline() and process.environ()["LABKIT_TEST_TOKEN"] == token
    except (psutil.Error, KeyError):
        return False


def end_all(token: str) -> None:
    """Ends what carries the token: a SIGKILL to a lab's process is what nothing on the machine can clean up after."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("LABKIT_TEST_TOKEN") == token:
                process.kill()
        except psutil.Error:
            continue


def wait_for(condition: Callable[[], bool], within_s: float = 60) -> None:
    """Waits for it, and fails when it does not come."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


# --- a whole run, with rooms instead of a cluster


class Rooms:
    """A grid of two nodes whose labs are real, in processes of this machine."""

    def nodes(self) -> list[Node]:
        """Two of them."""
        return [node("a", cpus=2), node("b", cpus=2)]

    def open(self, node: Node, demand: Demand, order: Order) -> "InRoom":
        """A real room in a thread."""
        assert node.cpus >= demand.cpus
        return InRoom(order)


class InRoom:
    """A tenancy in a thread of this process."""

    def __init__(self, order: Order) -> None:
        self.room, self.outcomes = Room(dict(os.environ)), list[Outcome]()
        self.thread = threading.Thread(target=lambda: self.outcomes.append(self.room.run(order)), daemon=True)
        self.thread.start()

    def outcome(self) -> Outcome | None:
        """When the thread has it."""
        return self.outcomes[0] if self.outcomes else None

    def cell(self) -> tuple[int, int] | None:
        """The room's own."""
        return self.room.cell()

    def stop(self) -> None:
        """The room's own."""
        self.room.stop()

    def leave(self) -> None:
        """It has ended."""
        self.thread.join()


@pytest.mark.notebook
def test_a_run_on_a_grid_leaves_the_folder_of_a_local_run(tmp_path: Path) -> None:
    """Same records, errors and run.json for labs that end well, fail and forget, run at the same time."""
    jobs = make_plan([GOOD, FAILS, FORGETS], out_dir=tmp_path, labs=synthetic.LABS, machine=synthetic.machine())

    def executor(jobs: Any, plan: Plan, stop: Stop, shown: Progress) -> Any:
        def fits(job: Job, node: Node) -> Demand | None:
            return demand(job, node, on_gpu=False)

        return Dispatcher(Rooms(), jobs, fits, plan.out_dir, stop, shown).steps()

    result = run_labs(jobs, executor=executor, progress=lambda *a: Progress(*a, stream=io.StringIO()))
    assert {lab.name: (lab.status, lab.error) for lab in result.labs} == {
        GOOD: ("done", ""),
        FAILS: (
            "failed",
            'ValueError: seed 7 is unlucky (in cell 6 [In 5]: raise ValueError(f"seed {seed} is unlucky"))',
        ),
        FORGETS: ("failed", "the notebook ended without lab.finish()"),
    }
    assert read_run(tmp_path).labs == result.labs
    assert "a good day" in log_path(tmp_path, GOOD).read_text()
    notebook = nbformat.read(tmp_path / f"{FAILS}.ipynb", 4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output.ename for output in outputs if output.output_type == "error"] == ["ValueError"]
    assert {lab: read(tmp_path / f"{lab}.json").status for lab in (GOOD, FAILS, FORGETS)} == {
        GOOD: "done",
        FAILS: "failed",
        FORGETS: "failed",
    }
    again = make_plan([GOOD, FAILS], out_dir=tmp_path, labs=synthetic.LABS, machine=synthetic.machine(), resume=True)
    assert [job.done for job in again.jobs] == [True, False]
