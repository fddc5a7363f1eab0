"""`labkit run --ray` on a real Ray cluster of three nodes on this machine: a lost node, a Ctrl-C, a wrong token."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml

from labkit.records import read, read_run
from labkit.runs.cluster import URGENT_PATIENCE_S
from tests.engine.ray_nodes import RayNodes
from tests.unit import synthetic
from tests.unit.test_runner import with_token

pytestmark = pytest.mark.engine

GOOD, FAILS, SLEEPS = "90_good", "91_fails", "92_sleeps"
FIRST, SECOND, DEPLOYS = "95_waits", "96_waits", "97_deploys"
PARAMETERS = {"seed": {"type": "int", "help": "h"}, "out_dir": {"type": "str", "help": "h"}}
START = 'from labkit import session\n\nlab = session.start("{name}", globals(), out_dir=out_dir)'
# Where a lab runs is told by a file: all nodes are this machine.
WAIT = """import os
import time
from pathlib import Path

where = Path(os.environ["LABKIT_TEST_FOLDER"])
(where / f"{lab.lab.name}-{os.environ['LABKIT_TEST_NODE']}").touch()
while not (where / f"go-{lab.lab.name}").exists():
    time.sleep(0.1)
lab.exact("threads", os.environ.get("OMP_NUM_THREADS", "as Ray was started"))"""

DEPLOY = """import os

lab.exact("where", os.environ["LABKIT_TEST_NODE"])
lab.exact("address", ray_address)"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic course and three labs more: two that take a whole node and wait, one that deploys into Ray."""
    folder = tmp_path_factory.mktemp("cluster")
    for name in ("data", "notebooks"):
        (folder / name).mkdir()
    for path in (synthetic.ROOT / "notebooks").glob("*.ipynb"):
        (folder / "notebooks" / path.name).write_bytes(path.read_bytes())
    for name in ("claims.yaml", "profiles"):
        (folder / "data" / name).symlink_to(synthetic.ROOT / "data" / name)
    labs = yaml.safe_load((synthetic.ROOT / "data" / "labs.yaml").read_text())
    about = {"title": "T", "question": "Q?", "minutes": 0.1}
    for name in (FIRST, SECOND):
        labs[name] = about | {"engine": "vllm", "parameters": PARAMETERS}
        _write(folder, name, "seed = 7\nout_dir = ''", START.format(name=name), WAIT, "lab.finish()")
    labs[DEPLOYS] = about | {
        "engine": "ray",
        "parameters": PARAMETERS | {"ray_address": {"type": "str", "help": "h"}},
    }
    parameters = "seed = 7\nout_dir = ''\nray_address = ''"
    _write(folder, DEPLOYS, parameters, START.format(name=DEPLOYS), DEPLOY, "lab.finish()")
    (folder / "data" / "labs.yaml").write_text(yaml.safe_dump(labs, sort_keys=False))
    return folder


def _write(folder: Path, name: str, parameters: str, *cells: str) -> None:
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[first, *(nbformat.v4.new_code_cell(cell) for cell in cells)])
    nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")


@pytest.fixture(scope="module")
def nodes(folder: Path) -> Iterator[RayNodes]:
    """A head without CPUs and two nodes of two CPUs."""
    token = uuid.uuid4().hex
    env = {"LABKIT_ROOT": str(folder), "LABKIT_TEST_FOLDER": str(folder), "LABKIT_TEST_TOKEN": token}
    env["TMPDIR"] = str(folder)
    with RayNodes(2, env) as cluster:
        yield cluster
    psutil.wait_procs(list(with_token(token)), timeout=30)  # what a killed run left ends by itself
    assert with_token(token) == {}


@contextlib.contextmanager
def run_on(nodes: RayNodes, *labs: str, out: Path, token: str | None = None) -> Iterator["subprocess.Popen[str]"]:
    """`labkit run LABS --ray` with the cluster's token, or another; it does not outlive the test."""
    run = subprocess.Popen(
        [sys.executable, "-m", "labkit", "run", *labs, "--ray", nodes.address, "--out", str(out)],
        env={**nodes.env, "RAY_AUTH_TOKEN": token or nodes.token, "LABKIT_TEST_TOKEN": "the driver's"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield run
    finally:
        if run.poll() is None:
            run.kill()
            run.communicate()


def wait_for(condition: Callable[[], bool], run: "subprocess.Popen[str]", within_s: float = 240) -> None:
    """Waits for it; a run that ends before, or a time-out, fails with what the run said."""
    end = time.monotonic() + within_s
    while not condition():
        if run.poll() is not None or time.monotonic() > end:
            run.kill()
            raise AssertionError(f"it did not happen: {run.communicate()}")
        time.sleep(0.1)


def of_labs(nodes: RayNodes, *words: str) -> dict[psutil.Process, str]:
    """Kernels, labs' processes and what they started on all nodes, or those with one of the words in their commands."""
    words = words or ("ipykernel", "labkit.runs.lab_process", "sleep 297")
    processes = with_token(nodes.env["LABKIT_TEST_TOKEN"])
    return {process: line for process, line in processes.items() if any(word in line for word in words)}


def test_a_wrong_token_is_refused_before_anything_starts(nodes: RayNodes, tmp_path: Path) -> None:
    """Exit 2 and a message that names the token; no folder appears."""
    with run_on(nodes, GOOD, out=tmp_path / "run", token="0" * 64) as run:
        _, stderr = run.communicate(timeout=240)
    assert run.returncode == 2, stderr
    assert "refuses the token of this machine" in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "run").exists()


def test_ctrl_c_leaves_nothing_on_any_node(nodes: RayNodes, folder: Path, tmp_path: Path) -> None:
    """Exit 130; kernel, servers and private folder are gone; the record and notebook of the lab came home."""
    with run_on(nodes, SLEEPS, DEPLOYS, out=tmp_path) as run:
        wait_for(lambda: len(of_labs(nodes, "sleep 297")) >= 4, run)
        run.send_signal(signal.SIGINT)
        _, stderr = run.communicate(timeout=120)
    assert run.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert of_labs(nodes) == {}
    assert list(folder.glob("labkit-*")) == []
    assert [lab.status for lab in read_run(tmp_path).labs] == ["failed", "waiting"]
    assert read(tmp_path / f"{SLEEPS}.json").exact == {"kept": 1}
    assert nbformat.read(tmp_path / f"{SLEEPS}.ipynb", 4).cells
    assert (tmp_path / "report.html").exists()


def test_a_node_that_answers_no_stop_is_left_after_a_while(nodes: RayNodes, tmp_path: Path) -> None:
    """A lab's process that hangs: the second Ctrl-C ends the run after 15 s, and the lab is told as interrupted."""
    with run_on(nodes, SLEEPS, out=tmp_path) as run:
        wait_for(lambda: len(of_labs(nodes, "sleep 297")) >= 4, run)
        (hanging,) = of_labs(nodes, "labkit.runs.lab_process")
        hanging.suspend()
        try:
            run.send_signal(signal.SIGINT)
            time.sleep(1)
            run.send_signal(signal.SIGINT)
            asked_s = time.monotonic()
            _, stderr = run.communicate(timeout=120)
        finally:
            hanging.resume()
    assert run.returncode == 130, stderr
    assert time.monotonic() - asked_s > URGENT_PATIENCE_S
    (lab,) = read_run(tmp_path).labs
    assert lab.status == "failed"
    assert "did not answer" in lab.error
    psutil.wait_procs([hanging], timeout=60)
    assert of_labs(nodes) == {}


def test_a_lost_nodes_lab_runs_elsewhere_and_the_run_ends_complete(
    nodes: RayNodes, folder: Path, tmp_path: Path
) -> None:
    """Two engine labs, a node each; one node dies in the middle; its lab waits for the other node and ends well.

    The lab that deploys into Ray goes to the head, though that offers no CPU. The lab that fails leaves the others as
    they are, and its notebook comes home with the error.
    """
    with run_on(nodes, GOOD, FAILS, FIRST, SECOND, DEPLOYS, out=tmp_path) as run:
        wait_for(lambda: len(list(folder.glob("9[56]_waits-w?"))) == 2, run)
        (lost,) = folder.glob(f"{FIRST}-w?")
        (kept,) = folder.glob(f"{SECOND}-w?")
        assert lost.name[-2:] != kept.name[-2:]
        nodes.kill(lost.name[-2:])
        (folder / f"go-{SECOND}").touch()
        wait_for((folder / f"{FIRST}-{kept.name[-2:]}").exists, run)
        wait_for(lambda: len(of_labs(nodes, "ipykernel")) == 1, run)  # the lost node's kernel ends
        (folder / f"go-{FIRST}").touch()
        stdout, stderr = run.communicate(timeout=240)
    assert run.returncode == 1, stderr
    assert [line for line in stderr.splitlines() if line.startswith(f"{FIRST}: node") and "was lost" in line]
    assert "Raylet" not in stdout
    statuses = {lab.name: (lab.status, read(tmp_path / f"{lab.name}.json").status) for lab in read_run(tmp_path).labs}
    assert statuses == dict.fromkeys((GOOD, FIRST, SECOND, DEPLOYS), ("done", "done")) | {FAILS: ("failed", "failed")}
    cells = nbformat.read(tmp_path / f"{FAILS}.ipynb", 4).cells
    assert "ValueError" in [output.get("ename") for cell in cells for output in cell.get("outputs", [])]
    assert "a good day" in (tmp_path / "logs" / f"{GOOD}.log").read_text()
    assert read(tmp_path / f"{FIRST}.json").exact["threads"] == os.environ.get("OMP_NUM_THREADS", "as Ray was started")
    deployed = read(tmp_path / f"{DEPLOYS}.json").exact
    assert deployed["where"] == "head"
    assert str(deployed["address"]).endswith(nodes.address.partition(":")[2])
    assert of_labs(nodes) == {}
    assert list(folder.glob("labkit-*")) == []


def test_a_lab_fails_when_no_node_is_left(nodes: RayNodes, folder: Path, tmp_path: Path) -> None:
    """The last test of this cluster: its last worker dies, and the run says so instead of waiting for ever."""
    for path in [*folder.glob("*_waits-w?"), *folder.glob("go-*")]:
        path.unlink()
    (worker,) = [name for name in nodes.names if nodes.has_raylet(name)]
    with run_on(nodes, SECOND, out=tmp_path) as run:
        wait_for((folder / f"{SECOND}-{worker}").exists, run)
        nodes.kill(worker)
        _, stderr = run.communicate(timeout=240)
    assert run.returncode == 1, stderr
    (lab,) = read_run(tmp_path).labs
    assert "no remaining node can run it; its node was lost 1 times" in lab.error
