"""A server as a child process: it starts, explains a failed start, and never outlives its parent."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from labkit.errors import ServerError, UsageError
from labkit.files import root
from labkit.serving.process import LOOPBACK, ServerProcess, free_port, require_free_port
from tests.unit.standin import alive, family_of, processes_of, running, stand_in, survivors, url_of, wait_for

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


@contextlib.contextmanager
def run_parent(tmp_path: Path, inside: str, *, modes: str = "'family'") -> "Iterator[subprocess.Popen[str]]":
    """Starts the parent program; its server runs when tmp_path/parent holds the parent's own words."""
    say = "temporary = here / 'words'; temporary.write_text(' '.join(map(str, server.pids))); "
    say += "temporary.rename(here / 'parent'); "
    program = PARENT.format(inside=say + inside, modes=modes)
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(root())},
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


def test_a_servers_temporary_files_go_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They and its sockets are in a folder of its own, also below a TMPDIR with a blank; where that is too long for a
    socket's path, the folder is in /tmp."""
    for prefix in ("with a blank ", "x" * 100):
        with tempfile.TemporaryDirectory(prefix=prefix, dir="/tmp") as users:
            monkeypatch.setattr(tempfile, "tempdir", users)
            with stand_in(tmp_path, "facts") as server:
                own = Path(psutil.Process(server.pids[0]).environ()["TMPDIR"])
                assert str(own.parent) == (users if " " in prefix else "/tmp")
                (own / "vllm_dist_0a1b").touch()
                with socket.socket(socket.AF_UNIX) as left:
                    left.bind(f"{own}/{uuid.uuid4()}")
            assert not own.exists()
            assert server.log_path.exists()


def test_ready_when_200(tmp_path: Path) -> None:
    """`start` returns once the health address answers 200, with the seconds that it took; each 503 means another
    wait."""
    waits: list[str] = []
    began = time.monotonic()
    server = stand_in(tmp_path, "warming")
    try:
        server.start(progress=waits.append)
        assert server.running
        assert urllib.request.urlopen(url_of(server)).status == 200
        assert 0 < (server.start_seconds or 0) <= time.monotonic() - began
        assert len(waits) >= 2
        assert all(re.fullmatch(r"stand-in: starting, \d+ s", wait) for wait in waits)
    finally:
        server.stop()


def test_environment_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server sees the given variables and its private folder, and ours stay as they were. A proxy is not asked for
    an address of this machine, and a file in the folder never stands in for a module that the guard imports."""
    for name in ("no_proxy", "NO_PROXY", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://{LOOPBACK}:{free_port()}")
    (tmp_path / "run").mkdir()
    for name in ("psutil", "signal", "ctypes"):
        (tmp_path / "run" / f"{name}.py").write_text("raise SystemExit('imported from the folder')")
    with stand_in(tmp_path, "facts", env={"STAND_IN": "seen"}) as server:
        assert f"{tmp_path / 'run'} seen" in server.log_text()
        assert server.log_path == tmp_path / "run" / "server.log"
    assert "STAND_IN" not in os.environ


def test_dies_at_start(tmp_path: Path) -> None:
    """A server that dies at start is an error with its exit code and its last fifteen lines, and names the log; a known
    failure turns the log into what happened and what to do; a command that does not exist is named."""
    with pytest.raises(ServerError, match="stand-in died with exit code 3") as caught:
        stand_in(tmp_path, "dies").start()
    assert caught.value.log_tail.splitlines() == [f"line {number}" for number in range(25, 40)]
    assert str(tmp_path / "run" / "server.log") in caught.value.remedy
    assert "line 39" in str(caught.value)
    failures = [("not in it", "another reason", ""), (r"line (\d+)", "the known reason {0}", "do this")]
    with pytest.raises(ServerError, match="exit code 3: the known reason 39\n  To fix it: do this"):
        stand_in(tmp_path, "dies", failures=failures).start()
    nobody = ServerProcess(["no-such-server"], name="nobody", folder=tmp_path, health_url=f"http://{LOOPBACK}:9")
    with pytest.raises(ServerError) as caught:
        nobody.start()
    assert caught.value.log_tail == "no-such-server cannot be started: No such file or directory"


@pytest.mark.parametrize("mode", ["silent", "garbage"])
def test_never_ready(tmp_path: Path, mode: str) -> None:
    """A server that never answers 200 is given up after `start_timeout_s`, and all of it is gone."""
    processes: list[psutil.Process] = []
    server = stand_in(tmp_path, mode, "family", start_timeout_s=10.0)  # time for its family, too
    with pytest.raises(ServerError, match=r"stand-in was not ready after \d+ s"):
        server.start(progress=lambda _: processes.extend(processes_of(server)))
    assert not server.running
    assert not alive([*family_of(tmp_path), *processes])


def test_interrupted_start(tmp_path: Path) -> None:
    """Ctrl-C during the start leaves no process."""

    def interrupt(_: str) -> None:
        if (tmp_path / "run" / "family").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stand_in(tmp_path, "family", "silent").start(progress=interrupt)
    assert not alive(family_of(tmp_path))


def test_stop_ends_the_family(tmp_path: Path) -> None:
    """`pids` starts with the server itself and holds everything that it started, also in other sessions. The server
    outlives the thread that started it; when `stop` returns, workers in other groups, orphans of a double fork and deaf
    ones are gone."""
    server = stand_in(tmp_path, "family")
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        assert "standin_server.py" in " ".join(psutil.Process(server.pids[0]).cmdline())
        assert os.getpgid(server.pids[0]) != os.getpgid(0)
        helpers = family_of(tmp_path)
        assert len(helpers) == 5
        assert {process.pid for process in helpers} <= set(server.pids)
        time.sleep(1)
        server.check()
        processes = [*helpers, *processes_of(server)]
    finally:
        server.stop()
    assert not alive(processes)
    assert (server.pids, server.running) == ((), False)


def test_stop_ends_a_storm(tmp_path: Path) -> None:
    """A server that keeps starting processes during its stop is ended with all of them."""
    server = stand_in(tmp_path, "storm", stop_grace_s=0.5).start()
    marker = str(tmp_path / "standin_server.py")
    server.stop()
    assert not [process for process in psutil.process_iter(["cmdline"]) if marker in (process.info["cmdline"] or [])]


def test_the_grace_of_a_stop(tmp_path: Path) -> None:
    """A server that ignores SIGTERM is killed after the grace period, not before; others end long before."""
    for modes, grace_s, at_least_s, at_most_s in ((["deaf"], 1.5, 1.5, 60), ([], 120.0, 0, 60)):
        server = stand_in(tmp_path, *modes, stop_grace_s=grace_s).start()
        processes = processes_of(server)
        began = time.monotonic()
        server.stop()
        assert at_least_s <= time.monotonic() - began < at_most_s
        assert not alive(processes)


def test_start_and_stop_again(tmp_path: Path) -> None:
    """`stop` may be called before a start and as often as one likes. A second `start` keeps the running server; after a
    stop it starts another, with a new log."""
    server = stand_in(tmp_path, "facts")
    server.stop()
    with server:
        first = server.pids
        assert server.start().pids == first
        server.stop()
        server.stop()
        server.check()
        assert server.pids == ()
        server.start()
        assert server.running
        assert server.pids != first
        assert server.log_text().count(str(tmp_path / "run")) == 1


def test_exception_in_the_block(tmp_path: Path) -> None:
    """An exception inside the `with` block propagates, and the server has ended."""
    processes: list[psutil.Process] = []

    def lesson() -> None:
        with stand_in(tmp_path, "family") as server:
            processes.extend([*family_of(tmp_path), *processes_of(server)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lesson()
    assert processes
    assert not alive(processes)


def test_dies_later(tmp_path: Path) -> None:
    """After a server died, `check` says how, with its last words, and its orphans are gone too."""
    with stand_in(tmp_path, "family") as server:
        server.check()
        processes = family_of(tmp_path)
        with pytest.raises((OSError, urllib.error.URLError)):
            urllib.request.urlopen(f"{url_of(server)}/die")
        assert not survivors(processes)
        assert "the last words" in how_it_ended(server)


@pytest.mark.parametrize("killed", ["outer", "inner", "both"])
def test_guard_killed(tmp_path: Path, killed: str) -> None:
    """If one or both guards are killed, the server ends with its workers and `check` reports it."""
    with stand_in(tmp_path, "worker" if killed == "both" else "family") as server:
        processes = processes_of(server)
        assert len(processes) == (2 if killed == "both" else 6)
        inner = psutil.Process(server.pids[0]).parent()
        assert inner is not None
        outer = inner.parent()
        assert outer is not None
        for guard in {"outer": [outer], "inner": [inner], "both": [outer, inner]}[killed]:
            guard.kill()
        assert not survivors(processes)
        how_it_ended(server)


def how_it_ended(server: ServerProcess) -> str:
    """The end of a killed server's log. The guard needs a moment to notice that its server is gone."""
    while server.running:  # at worst until the test's time limit
        time.sleep(0.05)
    with pytest.raises(ServerError, match="stand-in was killed") as caught:
        server.check()
    return caught.value.log_tail


@pytest.mark.parametrize("ended_by", ["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "os._exit(0)"])
def test_parent_ended(tmp_path: Path, ended_by: str) -> None:
    """However the parent is ended - kill -9, Ctrl-C, a closed terminal, its own exit - the server is gone within
    seconds."""
    by_signal = ended_by.startswith("SIG")
    wait_for_it = "[time.sleep(0.05) for _ in range(1200) if not (here / 'seen').exists()]; "
    with run_parent(tmp_path, wait_for_it + ("time.sleep(600)" if by_signal else ended_by)) as parent:
        processes = all_processes(tmp_path)
        assert len(alive(processes)) == len(processes)
        (tmp_path / "seen").touch()
        if by_signal:
            parent.send_signal(signal.Signals[ended_by])
        parent.communicate(timeout=60)
    assert (parent.returncode != 0) == by_signal
    assert not survivors(processes)


FORK = "fork = os.fork() or time.sleep(600); (here / 'fork').write_text(str(fork)); "


def test_fork_of_the_parent_and_stop(tmp_path: Path) -> None:
    """A fork that inherited the guard's pipe, as in multiprocessing, does not delay a stop."""
    inside = FORK + "began = time.monotonic(); server.stop(); (here / 'took').write_text(str(time.monotonic() - began))"
    with run_parent(tmp_path, inside, modes="stop_grace_s=60.0") as parent:
        parent.wait(120)
        psutil.Process(int(wait_for(tmp_path / "fork"))).kill()
    assert float((tmp_path / "took").read_text()) < 45


def test_fork_of_the_parent_lives_on(tmp_path: Path) -> None:
    """Such a fork does not keep the server alive after the parent was killed."""
    with run_parent(tmp_path, FORK + "os.kill(os.getpid(), signal.SIGKILL)") as parent:
        processes = all_processes(tmp_path)
        parent.wait(60)
        fork = psutil.Process(int(wait_for(tmp_path / "fork")))
        try:
            assert not survivors(processes)
            assert alive([fork])
        finally:
            fork.kill()


def test_two_servers_side_by_side(tmp_path: Path) -> None:
    """Stopping one server leaves another one running."""
    for name in "ab":
        (tmp_path / name).mkdir()
    with stand_in(tmp_path / "a") as first, stand_in(tmp_path / "b") as second:
        first.stop()
        second.check()
        assert urllib.request.urlopen(url_of(second)).status == 200


def test_a_port_that_cannot_be_used() -> None:
    """A port on which something listens is refused, and the message names one that is free; so is a number that is no
    port."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} on {LOOPBACK} cannot be used") as caught:
            require_free_port(port)
    (named,) = (int(number) for number in re.findall(r"\((\d+) is free now\)", caught.value.remedy))
    assert require_free_port(named) == named != port
    for number in (-1, 0, 65536):
        with pytest.raises(UsageError, match=f"port {number} does not exist"):
            require_free_port(number)


def test_port_just_used() -> None:
    """A port whose listener has just closed, its connections still lingering, can be taken again."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
        client = socket.create_connection((LOOPBACK, port))
        accepted, _ = listener.accept()
        accepted.close()  # the side that closes first lingers in TIME_WAIT
        client.close()
    assert require_free_port(port) == port
