"""A server as a child process: it comes up, says why not, and never outlives the one who started it."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from labkit.errors import ServerError, UsageError
from labkit.serving import vllm
from labkit.serving.process import LOOPBACK, ServerProcess, free_port, require_free_port
from tests.unit.standin import (
    ROOT,
    alive,
    family_of,
    processes_of,
    running,
    stand_in,
    survivors,
    url_of,
    wait_for,
)

# A program that starts a stand-in as a learner's script would: {setup}, then {inside} while the server runs.
PARENT = """
import os, signal, sys, time
from pathlib import Path
from tests.unit.standin import stand_in
signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal, also where the tests run in the background
signal.signal(signal.SIGHUP, signal.SIG_DFL)
here = Path(sys.argv[1])
with stand_in(here, {modes}) as server:
    {inside}
"""


@pytest.fixture
def family(tmp_path: Path) -> Iterator[ServerProcess]:
    """A running stand-in with a family of helpers."""
    with stand_in(tmp_path, "family") as server:
        yield server


@contextlib.contextmanager
def run_parent(tmp_path: Path, inside: str, *, modes: str = "'family'") -> "Iterator[subprocess.Popen[str]]":
    """Starts the parent program; its server runs when tmp_path/parent holds the parent's own words."""
    say = "temporary = here / 'words'; temporary.write_text(' '.join(map(str, server.pids))); "
    say += "temporary.rename(here / 'parent'); "
    program = PARENT.format(inside=say + inside, modes=modes)
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with parent:
        try:
            yield parent
        finally:
            parent.kill()


def all_processes(tmp_path: Path) -> list[psutil.Process]:
    """Every process of the parent program's server, but for those that are gone already."""
    return [*running(wait_for(tmp_path / "parent")), *family_of(tmp_path)]


def test_no_socket_stays_in_a_servers_folder(tmp_path: Path) -> None:
    """What a server spoke to its own processes through goes with it; its log and its files stay."""
    with stand_in(tmp_path) as server, socket.socket(socket.AF_UNIX) as left:
        left.bind(str(server.folder / "left"))
        (server.folder / "kept").touch()
    assert {one.name for one in server.folder.iterdir()} >= {"kept", "server.log"}
    assert not (server.folder / "left").exists()


def test_what_the_log_names_elsewhere_goes_with_the_server(tmp_path: Path) -> None:
    """Of vLLM's files among everybody's temporary ones the one that the log names goes, another server's stays."""
    own, other = tmp_path / "vllm_dist_0a1b", tmp_path / "vllm_dist_2c3d"
    with stand_in(tmp_path, elsewhere=vllm.meeting_files) as server:
        own.touch()
        other.touch()
        with server.log_path.open("a") as log:
            log.write(f"INFO world_size=1 rank=0 distributed_init_method=file://{own} backend=gloo\n")
    assert (own.exists(), other.exists()) == (False, True)


def test_ready_when_started(tmp_path: Path) -> None:
    """`start` returns once the health address answers 200, with the seconds that it took."""
    began = time.monotonic()
    with stand_in(tmp_path, "warming") as server:
        assert server.running
        assert urllib.request.urlopen(url_of(server)).status == 200
        assert server.start_seconds is not None
        assert 0 < server.start_seconds <= time.monotonic() - began


def test_not_ready_while_503(tmp_path: Path) -> None:
    """A server that answers 503 is not ready: each such answer means another wait."""
    waits: list[str] = []
    server = stand_in(tmp_path, "warming")
    try:
        server.start(progress=waits.append)
        assert len(waits) >= 2
        assert all(re.fullmatch(r"stand-in: starting, \d+ s", wait) for wait in waits)
    finally:
        server.stop()


def test_proxy_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment is not asked for an address of this machine."""
    monkeypatch.setenv("http_proxy", f"http://{LOOPBACK}:{free_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with stand_in(tmp_path) as server:
        assert server.running


def test_environment_and_folder(tmp_path: Path) -> None:
    """The server sees the given variables and its private folder, and ours stay as they were."""
    with stand_in(tmp_path, "facts", env={"STAND_IN": "seen"}) as server:
        assert f"{tmp_path / 'run'} seen" in server.log_text()
        assert server.log_path == tmp_path / "run" / "server.log"
    assert "STAND_IN" not in os.environ


def test_files_in_the_folder_are_no_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the server's folder never stands in for a module that the guard imports."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "run").mkdir()
    for name in ("psutil", "signal", "ctypes"):
        (tmp_path / "run" / f"{name}.py").write_text("raise SystemExit('imported from the folder')")
    with stand_in(tmp_path) as server:
        assert server.running


def test_dies_at_start(tmp_path: Path) -> None:
    """A server that dies at start is an error with its exit code and its last fifteen lines, and names the log."""
    with pytest.raises(ServerError, match="stand-in died with exit code 3") as caught:
        stand_in(tmp_path, "dies").start()
    assert caught.value.log_tail.splitlines() == [f"line {number}" for number in range(25, 40)]
    assert str(tmp_path / "run" / "server.log") in caught.value.remedy
    assert "line 39" in str(caught.value)


def test_explained_death(tmp_path: Path) -> None:
    """A known failure turns the log into what happened and what to do."""
    failures = [("not in it", "another reason", ""), (r"line (\d+)", "the known reason {0}", "do this")]
    with pytest.raises(ServerError, match="exit code 3: the known reason 39\n  To fix it: do this"):
        stand_in(tmp_path, "dies", failures=failures).start()


def test_command_that_is_not_there(tmp_path: Path) -> None:
    """A command that does not exist is an error that names it, without a traceback."""
    server = ServerProcess(
        ["no-such-server"], name="nobody", folder=tmp_path, health_url=f"http://{LOOPBACK}:{free_port()}"
    )
    with pytest.raises(ServerError) as caught:
        server.start()
    assert caught.value.log_tail == "no-such-server cannot be started: No such file or directory"


@pytest.mark.parametrize("mode", ["silent", "garbage"])
def test_never_ready(tmp_path: Path, mode: str) -> None:
    """A server that never answers 200 is given up after `start_timeout_s`, and all of it is gone."""
    processes: list[psutil.Process] = []
    server = stand_in(tmp_path, mode, "family", start_timeout_s=3.0)
    with pytest.raises(ServerError, match=r"stand-in was not ready after \d+ s"):
        server.start(progress=lambda _: processes.extend(processes_of(server)))
    assert not server.running
    assert not alive([*family_of(tmp_path), *processes])


def test_interrupted_start(tmp_path: Path) -> None:
    """Ctrl-C while the server is starting leaves nothing of it."""
    server = stand_in(tmp_path, "family", "silent")

    def interrupt(_: str) -> None:
        if (tmp_path / "run" / "family").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        server.start(progress=interrupt)
    assert not alive(family_of(tmp_path))


def test_pids(family: ServerProcess, tmp_path: Path) -> None:
    """`pids` starts with the server itself and holds everything that it started, also in other sessions."""
    assert "standin_server.py" in " ".join(psutil.Process(family.pids[0]).cmdline())
    helpers = {process.pid for process in family_of(tmp_path)}
    assert len(helpers) == 5
    assert helpers <= set(family.pids)
    assert os.getpgid(family.pids[0]) != os.getpgid(0)


def test_stop_ends_the_family(family: ServerProcess, tmp_path: Path) -> None:
    """When `stop` returns, workers in other groups, orphans of a double fork and deaf ones are gone."""
    processes = [*family_of(tmp_path), *processes_of(family)]
    family.stop()
    assert not alive(processes)
    assert family.pids == ()
    assert not family.running


def test_stop_ends_a_storm(tmp_path: Path) -> None:
    """A server that keeps starting processes while it is being stopped is gone to the last one."""
    server = stand_in(tmp_path, "storm", stop_grace_s=0.5).start()
    marker = str(tmp_path / "standin_server.py")
    server.stop()
    assert not [process for process in psutil.process_iter(["cmdline"]) if marker in (process.info["cmdline"] or [])]


def test_deaf_server(tmp_path: Path) -> None:
    """A server that ignores SIGTERM is killed after the grace, and not before."""
    server = stand_in(tmp_path, "deaf", stop_grace_s=1.5).start()
    processes = processes_of(server)
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began >= 1.5
    assert not alive(processes)


def test_polite_server_is_quick(tmp_path: Path) -> None:
    """A server that heeds SIGTERM ends long before the grace is over."""
    server = stand_in(tmp_path, stop_grace_s=120.0).start()
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 60


def test_stop_twice_or_never_started(tmp_path: Path) -> None:
    """`stop` may be called before a start and as often as one likes."""
    server = stand_in(tmp_path)
    server.stop()
    server.start()
    server.stop()
    server.stop()
    server.check()
    assert not server.running


def test_start_again(tmp_path: Path) -> None:
    """A second `start` keeps the running server; after a stop it starts another, with a new log."""
    with stand_in(tmp_path, "facts") as server:
        first = server.pids
        assert server.start().pids == first
        server.stop()
        server.start()
        assert server.running
        assert server.pids != first
        assert server.log_text().count(str(tmp_path / "run")) == 1


def test_exception_in_the_block(tmp_path: Path) -> None:
    """An exception inside the `with` block passes through, and the server is gone."""
    processes: list[psutil.Process] = []

    def lesson() -> None:
        with stand_in(tmp_path, "family") as server:
            processes.extend([*family_of(tmp_path), *processes_of(server)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lesson()
    assert processes
    assert not alive(processes)


def test_dies_later(family: ServerProcess, tmp_path: Path) -> None:
    """After a server died, `check` says how, with its last words, and its orphans are gone too."""
    family.check()
    processes = family_of(tmp_path)
    with pytest.raises((OSError, urllib.error.URLError)):
        urllib.request.urlopen(f"{url_of(family)}/die")
    assert not survivors(processes)
    wait_until_ended(family)
    with pytest.raises(ServerError, match="stand-in was killed") as caught:
        family.check()
    assert "the last words" in caught.value.log_tail


def test_guard_killed(tmp_path: Path) -> None:
    """When even the guard is killed, the server ends with it and `check` says so."""
    with stand_in(tmp_path) as server:
        processes = processes_of(server)
        psutil.Process(server.pids[0]).parent().kill()  # type: ignore[union-attr]
        assert not survivors(processes)
        wait_until_ended(server)
        with pytest.raises(ServerError, match="stand-in was killed"):
            server.check()


def wait_until_ended(server: ServerProcess) -> None:
    """The guard needs a moment to notice that its server is gone."""
    deadline = time.monotonic() + 30
    while server.running and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_parent_ended_by_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    """However the parent is ended - kill -9, Ctrl-C, a closed terminal - the server is gone within seconds."""
    with run_parent(tmp_path, "time.sleep(600)") as parent:
        processes = all_processes(tmp_path)
        assert len(alive(processes)) == len(processes)
        parent.send_signal(number)
        parent.communicate(timeout=60)
    assert parent.returncode != 0
    assert not survivors(processes)


def test_parent_ends_without_a_stop(tmp_path: Path) -> None:
    """A parent that just ends, with `os._exit`, leaves no server."""
    with run_parent(tmp_path, "os._exit(0)") as parent:
        parent.communicate(timeout=60)
    assert not survivors(all_processes(tmp_path))


FORK = "fork = os.fork() or time.sleep(600); (here / 'fork').write_text(str(fork)); "


def test_fork_of_the_parent_and_stop(tmp_path: Path) -> None:
    """A fork that inherited the guard's pipe (multiprocessing makes such) does not hold up a stop."""
    inside = FORK + "began = time.monotonic(); server.stop(); (here / 'took').write_text(str(time.monotonic() - began))"
    with run_parent(tmp_path, inside, modes="stop_grace_s=60.0") as parent:
        parent.wait(120)
        psutil.Process(int(wait_for(tmp_path / "fork"))).kill()
    assert float((tmp_path / "took").read_text()) < 45


def test_fork_of_the_parent_lives_on(tmp_path: Path) -> None:
    """Such a fork keeps no server alive after the parent was killed."""
    with run_parent(tmp_path, FORK + "os.kill(os.getpid(), signal.SIGKILL)") as parent:
        processes = all_processes(tmp_path)
        parent.wait(60)
        fork = psutil.Process(int(wait_for(tmp_path / "fork")))
        try:
            assert not survivors(processes)
            assert alive([fork])
        finally:
            fork.kill()


def test_started_in_a_thread(tmp_path: Path) -> None:
    """A server outlives the thread that started it and is stopped from another one."""
    server = stand_in(tmp_path, "family")
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        time.sleep(1)
        server.check()
        assert server.running
        processes = processes_of(server)
    finally:
        server.stop()
    assert not alive(processes)


def test_two_servers_side_by_side(tmp_path: Path) -> None:
    """Stopping one server leaves another one running."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with stand_in(tmp_path / "a") as first, stand_in(tmp_path / "b") as second:
        first.stop()
        second.check()
        assert second.running
        assert urllib.request.urlopen(url_of(second)).status == 200


def test_port_in_use() -> None:
    """A port on which something listens is refused, and the message names one that is free."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} on {LOOPBACK} cannot be used") as caught:
            require_free_port(port)
    found = re.search(r"\((\d+) is free now\)", caught.value.remedy)
    assert found is not None
    assert int(found[1]) != port
    assert require_free_port(int(found[1])) == int(found[1])


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_port_that_does_not_exist(port: int) -> None:
    """A number that is no port is refused."""
    with pytest.raises(UsageError, match=f"port {port} does not exist"):
        require_free_port(port)


def test_port_just_used() -> None:
    """A port whose listener has just closed, its connections still lingering, can be taken again."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
        client = socket.create_connection((LOOPBACK, port))
        accepted, _ = listener.accept()
        accepted.close()  # the side that closes first lingers in TIME_WAIT
        client.close()
    assert require_free_port(port) == port
