"""Starting and stopping Ray, with a stand-in for Ray: retries, ended processes, messages."""

import functools
import os
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest

from labkit.errors import ServerError, UsageError
from labkit.serving import guard, ray_serve
from labkit.serving.process import SOCKET_PATH_BYTES
from tests.unit.standin import survivors

BUSY = "The current node timed out during startup. This could happen because some of the Ray processes failed"
SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module `ray` whose functions do nothing."""
    ray: Any = types.ModuleType("ray")
    monkeypatch.setattr(ray_serve, "_reread_environment", lambda: None)
    monkeypatch.setattr(ray_serve, "_start_serve", lambda port, *_: port)
    monkeypatch.setattr(ray_serve, "CALM_WAIT_S", 0.0)
    monkeypatch.setattr(ray_serve, "STOP_WAIT_S", 0.2)
    for name, value in ray_serve.ENV.items():
        monkeypatch.setenv(name, value)  # and taken back after the test: a start leaves its own in the environment
    ray.is_initialized = lambda: False
    ray.shutdown = lambda: None
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray  # type: ignore[no-any-return]


def failing(times: int, error: Exception, started: list[psutil.Process]) -> Callable[..., None]:
    """An `init` that leaves a process behind each time and fails the first `times` times."""

    def init(*_: Any, **__: Any) -> None:
        started.append(psutil.Process(subprocess.Popen(SLEEP).pid))
        if len(started) <= times:
            raise error

    return init


def test_a_busy_machine_gets_another_try(fake_ray: Any) -> None:
    """A start that times out is retried; only processes of the failed tries are ended."""
    started: list[psutil.Process] = []
    messages: list[str] = []
    fake_ray.init = failing(2, Exception(BUSY), started)
    with subprocess.Popen(SLEEP) as bystander:
        ray = ray_serve.start(progress=messages.append)
        try:
            assert ray.pids == (started[2].pid,)
            assert not survivors(started[:2], within_s=5)
            assert len(messages) == 2
            assert bystander.poll() is None
        finally:
            bystander.kill()
            ray.stop()
    assert not survivors(started, within_s=5)


def test_a_start_that_keeps_failing_is_an_error_and_leaves_no_process(fake_ray: Any) -> None:
    """On an endlessly busy machine, after the last try, with the number of tries; at once where another try cannot
    help."""
    failures = {
        Exception(BUSY): (ServerError, "did not start in 5 tries", 5),
        ValueError("num_cpus must be positive"): (ValueError, "num_cpus", 1),
    }
    for error, (raised, message, tries) in failures.items():
        started: list[psutil.Process] = []
        fake_ray.init = failing(9, error, started)
        with pytest.raises(raised, match=message):
            ray_serve.start(num_cpus=-1)
        assert len(started) == tries
        assert not survivors(started, within_s=5)


def test_a_node_that_dies_while_serve_waits_for_it_is_an_error() -> None:
    """Ray Serve waits for ever for a dead node: we do not, and what the node had started is ended."""
    parent = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); time.sleep(1); sys.exit(1)"
    node = psutil.Process(subprocess.Popen([sys.executable, "-S", "-c", parent, *SLEEP]).pid)
    left: list[psutil.Process] = []

    def waits_for_ever() -> None:
        while not left:
            left.extend(node.children())
        threading.Event().wait()

    with pytest.raises(ServerError, match="node died"):
        ray_serve._with_live(waits_for_ever, [node], timeout_s=60)
    assert left
    assert not survivors(left, within_s=5)


def test_what_serve_says_comes_through_within_a_time_limit() -> None:
    """A result and an error of the start are the caller's; a start that neither ends nor fails is given up."""
    assert ray_serve._with_live(lambda: 7, [], timeout_s=60) == 7
    with pytest.raises(ValueError, match="port"):
        ray_serve._with_live(lambda: int("port"), [], timeout_s=60)
    with pytest.raises(ServerError, match=r"took more than 0 s"):
        ray_serve._with_live(threading.Event().wait, [], timeout_s=0.1)


def test_on_a_users_cluster(fake_ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not answer is the user's input, with the address in the message. When Serve cannot be started
    there, we leave the cluster; what others deployed stays."""
    left: list[str] = []
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    fake_ray.init = Mock(side_effect=ConnectionError("could not find any running Ray instance"))
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:1"):
        ray_serve.start(address="127.0.0.1:1")
    fake_ray.init = lambda *_, **__: None
    fake_ray.shutdown = lambda: left.append("shutdown")
    monkeypatch.setattr(ray_serve, "_applications", lambda: frozenset({"theirs"}))
    monkeypatch.setattr(ray_serve, "_end_applications", lambda _: left.append("deleted"))
    monkeypatch.setattr(ray_serve, "_start_serve", Mock(side_effect=ServerError("no proxy", remedy="")))
    with pytest.raises(ServerError, match="no proxy"):
        ray_serve.start(address="127.0.0.1:1")
    assert left == ["shutdown"]


def test_a_ray_of_our_own_has_a_folder_that_goes_with_it(fake_ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sessions and its processes' temporary files are there; where TMPDIR is too long for Ray's sockets, in /tmp.

    The folder goes after a stop and after a failed start, and the environment is what it was."""
    folders: list[Path] = []

    def init(*, fails: bool = False, **given: Any) -> None:
        folders.append(Path(given["_temp_dir"]))
        assert os.environ["TMPDIR"] == os.environ["VLLM_RPC_BASE_PATH"] == given["_temp_dir"]
        assert folders[-1].is_dir()
        if fails:
            raise ValueError("it fails")

    for prefix in ("short", "x" * 100):
        with tempfile.TemporaryDirectory(prefix=prefix, dir="/tmp") as users:
            monkeypatch.setenv("TMPDIR", users)
            monkeypatch.setattr(tempfile, "tempdir", None)
            fake_ray.init = init
            ray_serve.start().stop()
            fake_ray.init = functools.partial(init, fails=True)
            with pytest.raises(ValueError, match="it fails"):
                ray_serve.start()
            assert {str(folder.parent) for folder in folders[-2:]} == {users if prefix == "short" else "/tmp"}
            assert os.environ["TMPDIR"] == users
            assert "VLLM_RPC_BASE_PATH" not in os.environ
    assert [folder for folder in folders if folder.exists()] == []
    longest = max(len(f"{folder}{' ' * ray_serve.SOCKET_NAME_BYTES}") for folder in folders)
    assert longest <= SOCKET_PATH_BYTES


def test_a_mode_that_is_set_after_rays_import_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook may have imported ray long before: driver and nodes agree on the environment of the start."""
    from ray._raylet import AuthenticationMode, get_authentication_mode  # type: ignore[attr-defined]

    for mode, meant in (("token", AuthenticationMode.TOKEN), ("disabled", AuthenticationMode.DISABLED)):
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
        ray_serve._reread_environment()
        assert get_authentication_mode() == meant


def test_ray_twice_in_one_process_is_refused(fake_ray: Any) -> None:
    """The error of a second start in the same process says how to stop the first."""
    fake_ray.is_initialized = lambda: True
    with pytest.raises(UsageError, match="already"):
        ray_serve.start()


def test_waiting_ends_with_the_seconds_and_the_thing() -> None:
    """`wait_for` returns the seconds it took; its error names what did not happen."""
    assert ray_serve.wait_for(lambda: True, timeout_s=1, what="nothing") < 1
    with pytest.raises(ServerError, match="a miracle did not happen within 0 s"):
        ray_serve.wait_for(lambda: False, timeout_s=0.1, what="a miracle")


PARENT = """
import os, subprocess, sys, time
from labkit.serving import guard
child = subprocess.Popen([sys.executable, "-S", "-c", "import subprocess, sys, time; "
    "p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'], start_new_session=True); "
    "print(p.pid, flush=True); time.sleep(600)"], stdout=subprocess.PIPE, start_new_session=True)
grandchild = int(child.stdout.readline())
watcher = guard.start_watch(sys.argv[1], [child.pid])
time.sleep(5)
print(child.pid, grandchild, watcher.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_the_watcher_ends_what_a_killed_process_left(tmp_path: Path) -> None:
    """Children and grandchildren in sessions of their own end after their parent's SIGKILL, and so does the watcher.

    Their temporary files go too."""
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    pids = [int(word) for word in ended.stdout.split()]
    assert len(pids) == 3
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    assert not survivors(processes, within_s=15)
    assert not tmp_path.exists()


def test_the_watcher_ends_with_what_it_watches(tmp_path: Path) -> None:
    """The watcher ends when all its processes have ended."""
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(1)"])
    watcher = guard.start_watch(str(tmp_path), [child.pid])
    child.wait()
    assert watcher.wait(20) == 0


def test_a_process_of_ray_builds_no_grammar_at_its_import() -> None:
    """What costs each process of Ray some seconds of CPU at its import, and a node its start, is not installed."""
    code = "import sys, ray; print('rfc3987_syntax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_what_ray_sees_of_gpus(fake_ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own numbers Ray does not see CUDA_VISIBLE_DEVICES: it would refuse seven GPUs where that names one. With
    the CPU build it looks for no GPU by itself, and counts those asked for even where all are hidden. The variable is
    back afterwards."""
    seen: list[tuple[int, str | None]] = []
    fake_ray.init = lambda **given: seen.append((given["num_gpus"], os.environ.get("CUDA_VISIBLE_DEVICES")))
    for version, visible, options in (
        ("0.32.0", "1", {"num_gpus": 7, "own_numbers": True}),
        ("0.32.0", "1", {"num_gpus": 7}),
        ("0.32.0+cpu", "", {}),
        ("0.32.0+cpu", "", {"num_gpus": 1}),
    ):
        monkeypatch.setattr(ray_serve, "vllm_version", lambda version=version: version)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        ray_serve.start(**options).stop()  # type: ignore[arg-type]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == visible
    assert seen == [(7, None), (7, "1"), (0, None), (1, None)]
