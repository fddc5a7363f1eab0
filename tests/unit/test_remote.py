"""A run on a cluster without a cluster: may we join it, which lab fits which node, and one lab's process on a node."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from labkit.labs import Lab
from labkit.records import read
from labkit.runs import knock as knocking
from labkit.runs import on_node
from labkit.runs.cluster import PLACE, RAY_ADDRESS, Node, misfit, require_fit, strongest, task_options
from labkit.runs.knock import GET_CLUSTER_ID, TIMEOUT_S, knock
from labkit.runs.on_node import Cell, Facts, LabEnd, Order, run_lab
from labkit.runs.plan import Job, Plan, make_plan
from tests.unit import synthetic
from tests.unit.refusals import not_refused
from tests.unit.test_runner import carrying, with_token

GOOD, FAILS, SLEEPS, DIES, FORGETS = synthetic.LABS


def job(engine: str = "none", *, model: str = "", deploys: bool = False, **about: Any) -> Job:
    """A job of a lab that exists in these tests only."""
    declared = {RAY_ADDRESS: {"type": "str", "help": "h"}} if deploys else {}
    about |= {"title": "T", "question": "Q?", "minutes": 1, "engine": engine, "parameters": declared}
    lab = Lab.model_validate({"name": "50_lab", **about})
    parameters = {"model": model} if model else {}
    return Job(lab=lab, notebook=Path("unused"), given={}, parameters=parameters)


def node(name: str, *, cpus: float = 8, gpus: float = 0, head: bool = False, **machine: Any) -> Node:
    """A node with everything installed."""
    versions = {"vllm": "1", "ray": "1", "torchserve": "1"}
    facts = Facts(machine=synthetic.machine(**machine), versions=versions, code="c", commit="d")
    return Node(id=name, name=name, cpus=cpus, gpus=gpus, head=head, facts=facts)


def plan(out_dir: Path, *jobs: Job, gpu_gib: float = 0) -> Plan:
    """A plan of these jobs, sized to a machine with a GPU or without."""
    made = make_plan([GOOD], out_dir=out_dir, labs=synthetic.LABS, machine=synthetic.machine())
    return replace(made, machine=synthetic.machine(gpu_gib=gpu_gib), jobs=jobs)


@pytest.fixture(autouse=True)
def _synthetic_course(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_ROOT", str(synthetic.ROOT))


# --- what a lab takes, and where it fits


def test_an_engine_takes_a_node_or_a_gpu() -> None:
    """The smaller node's CPUs and no lab beside it, or one GPU with its share of them; without an engine one CPU."""
    for wanted, gpus, cpus, gpu, share in (
        (job(), 0, 1, 0, 0.01),
        (job("vllm"), 0, 6, 0, 1),
        (job("vllm"), 1, 6, 1, 0.01),
        (job("torchserve"), 3, 2, 1, 0.01),
        (job("vllm"), 16, 1, 1, 0.01),
        (job("ray", deploys=True), 2, 0, 0, 1),
    ):
        nodes = [node("large", cpus=8, gpus=gpus), node("small", cpus=6, gpus=gpus)]
        options = task_options(wanted, nodes, on_gpu=bool(gpus))
        assert (options["num_cpus"], options["num_gpus"], options["resources"]) == (cpus, gpu, {PLACE: share})
        assert options["label_selector"] == {"ray.io/node-id": "in(large,small)"}


def test_every_reason_against_a_node_is_told(tmp_path: Path) -> None:
    """Too few CPUs, no GPU, no memory, another course, a missing model: each is named, and a good node has none."""
    wanted = job("vllm", model="m", needs={"memory_gib": 8})
    good = node("good", gpus=1, gpu_gib=24)
    no_gpu = node("no gpu", gpus=1)
    assert good.facts is not None
    against = {
        "": good,
        synthetic.NO_GPU: no_gpu,
        "Ray counts no GPU": replace(good, gpus=0),
        "Ray counts no CPU": replace(good, cpus=0),
        "it takes 8 GiB of memory and 1.0": node("little memory", gpus=1, memory_gib=1, gpu_gib=24),
        "vllm not installed": replace(good, facts=replace(good.facts, versions={})),
        "it has another version of the course": replace(
            good, facts=None, reason="it has another version of the course"
        ),
        "no m": replace(good, missing_models={"m": "no m"}),
    }
    on_gpu = plan(tmp_path, wanted, gpu_gib=24)
    reasons = {reason: misfit(wanted, unfit, on_gpu) for reason, unfit in against.items()}
    assert [(reason, told) for reason, told in reasons.items() if not told.startswith(reason)] == []
    assert reasons[""] == ""
    unfit_alone = [([no_gpu], "no node of the cluster can run 50_lab (no gpu: no NVIDIA driver here)")]
    assert not_refused(lambda nodes: require_fit(on_gpu, nodes), unfit_alone) == []
    require_fit(on_gpu, [no_gpu, good])


def test_a_lab_that_deploys_runs_on_the_head(tmp_path: Path) -> None:
    """Ray Serve's HTTP listens on the head's loopback interface; a head without CPUs takes that lab and no other."""
    deploys, head, worker = job("ray", deploys=True), node("head", cpus=0, head=True, memory_gib=1), node("w")
    of = plan(tmp_path, deploys)
    assert misfit(deploys, head, of) == ""
    assert "loopback interface of the head" in misfit(deploys, worker, of)
    assert misfit(job(), head, of) == "Ray counts no CPU there"
    assert misfit(job(), worker, of) == ""


def test_the_strongest_node_decides_about_the_profile() -> None:
    """A GPU counts before memory, more of it before less; a node without CPUs or facts does not count."""
    nodes = [node("big", memory_gib=30), node("gpu", memory_gib=8, gpu_gib=24), node("small", gpu_gib=16)]
    unused = [node("no CPUs", cpus=0, gpu_gib=80), replace(node("unknown", gpu_gib=80), facts=None)]
    assert strongest([*nodes, *unused]) is nodes[1].facts


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


# --- is there a cluster, and may we join it


def test_an_address_where_no_cluster_answers_is_refused_at_once() -> None:
    """Ray itself would try for a minute."""
    no_address = ("127.0.0.1", "ray://127.0.0.1:1", "", "here:x", "127.0.0.1:99999")
    silent = [("127.0.0.1:1", "Connection refused")]
    began = time.monotonic()
    assert not_refused(knock, [*((address, "not an address") for address in no_address), *silent]) == []
    assert time.monotonic() - began < 2 * TIMEOUT_S


def test_auto_means_the_cluster_that_was_started_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by RAY_ADDRESS, or by the file that `ray start` leaves; without either, the message says so."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(knocking, "STARTED_HERE", tmp_path / "ray_current_cluster")
    assert not_refused(knock, [("auto", "no Ray cluster was started on this machine")]) == []
    (tmp_path / "ray_current_cluster").write_text("127.0.0.1:1\n")
    assert not_refused(knock, [("auto", "answers at '127.0.0.1:1'")]) == []
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:2")
    assert not_refused(knock, [("auto", "answers at '127.0.0.1:2'")]) == []


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

    service, _, method = GET_CLUSTER_ID[1:].rpartition("/")
    server = grpc.server(ThreadPoolExecutor(1))
    handlers = {method: grpc.unary_unary_rpc_method_handler(who_are_you)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", tokens
    server.stop(0).wait()


def test_the_token_decides_how_ray_is_spoken_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: tuple[str, list[str]]
) -> None:
    """A cluster without tokens is asked without one; else ours is tried, from the variable or from a file."""
    address, tokens = head
    for lets_in, ours, mode, says in (
        ("", "anything", "disabled", ""),
        ("", "", "disabled", ""),
        ("right", "right", "token", ""),
        ("right", "wrong", "before", "refuses the token of this machine"),
        ("right", "", "before", "needs a token, and this machine has none"),
    ):
        tokens[:] = [lets_in]
        (tmp_path / "token").write_text(f"{ours}\n")
        for variable, file in ((ours, "absent"), ("", "token" if ours else "absent")):
            monkeypatch.setenv("RAY_AUTH_MODE", "before")
            monkeypatch.setenv("RAY_AUTH_TOKEN", variable)
            monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / file))
            if says:
                assert not_refused(knock, [(address, says)]) == []
            else:
                assert knock(address) == address
            assert os.environ["RAY_AUTH_MODE"] == mode


# --- one lab's process on the node


def sleeping() -> Order:
    """The synthetic lab that sleeps."""
    content = (synthetic.ROOT / "notebooks" / f"{SLEEPS}.ipynb").read_bytes()
    return Order(lab=SLEEPS, notebook=content, parameters={"number": 2.0, "guess": 1.9})


class Watched:
    """The sleeping lab, run in a thread as its task would run it."""

    def __init__(self) -> None:
        self.token, self.stops, self.cell = uuid.uuid4().hex, 0, (0, 0)
        self.outcome: Future[LabEnd] = Future()
        threading.Thread(target=self._run, daemon=True).start()
        wait_for(lambda: carrying(self.token, "sleep 297") >= 4)

    def _run(self) -> None:
        environment = {**os.environ, "LABKIT_TEST_TOKEN": self.token}
        self.outcome.set_result(run_lab(sleeping(), self._report, environment=environment))

    def _report(self, cell: Cell) -> int:
        self.cell = cell
        return self.stops


def wait_for(condition: Callable[[], bool], within_s: float = 60) -> None:
    """Waits for it, and fails when it does not come."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


@pytest.mark.notebook
def test_a_lab_that_is_asked_to_stop_brings_home_what_was_found(tmp_path: Path) -> None:
    """The record of the interrupted lab comes home, and the four sleepers are gone."""
    lab = Watched()
    wait_for(lambda: lab.cell == (4, 6))  # papermill puts in a cell for the parameters
    lab.stops = 1
    outcome = lab.outcome.result(60)
    assert outcome.end.status == "interrupted"
    (tmp_path / f"{SLEEPS}.json").write_bytes(outcome.files[f"{SLEEPS}.json"])
    assert read(tmp_path / f"{SLEEPS}.json").exact == {"kept": 1}
    wait_for(lambda: not carrying(lab.token))


@pytest.mark.notebook
def test_a_lab_process_that_dies_is_a_failed_lab() -> None:
    """Killed from outside: no outcome pretends that all went well, and the reason is told."""
    lab = Watched()
    try:
        for process, command in with_token(lab.token).items():
            if "labkit.runs.lab_process" in command:
                process.kill()
        end = lab.outcome.result(60).end
        assert end.status == "failed"
        assert "the process that ran the lab died" in end.error
    finally:  # nothing on the machine can clean up after a SIGKILL to a lab's process
        for process in with_token(lab.token):
            process.kill()


@pytest.mark.notebook
def test_nothing_outlives_a_worker_that_is_killed_with_its_children(tmp_path: Path) -> None:
    """As Ray ends a worker: SIGKILL to its children, then to itself. Kernel, sleepers and folder go."""
    token = uuid.uuid4().hex
    worker = (
        "import os\nfrom labkit.runs.on_node import run_lab\nfrom tests.unit.test_remote import sleeping\n"
        "run_lab(sleeping(), lambda cell: 0, environment=os.environ)"
    )
    environment = {**os.environ, "LABKIT_TEST_TOKEN": token, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", worker], env=environment, cwd=Path(__file__).parents[2])
    wait_for(lambda: carrying(token, "sleep 297") >= 4 or process.poll() is not None)
    for child in psutil.Process(process.pid).children():
        child.kill()
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not carrying(token))
    wait_for(lambda: not list(tmp_path.glob("labkit-*")))
