"""The guard as a program of its own: exit codes, orphans, and its end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from labkit.serving import guard
from tests.unit.standin import survivors, wait_for


def guarded(*command: str, grace_s: float = 5.0) -> "subprocess.Popen[bytes]":
    """The guard around a command; its stdin is the pipe that we hold."""
    return subprocess.Popen(
        [sys.executable, "-P", guard.__file__, str(grace_s), *command],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def python(program: str) -> tuple[str, ...]:
    """A Python one-liner as a command; -S starts faster."""
    return (sys.executable, "-S", "-c", program)


@pytest.mark.parametrize("code", [0, 3, 255])
def test_exit_code(code: int) -> None:
    """The guard ends with the exit code of its command."""
    with guarded(*python(f"raise SystemExit({code})")) as process:
        assert process.wait(60) == code


def test_exit_code_of_a_signal() -> None:
    """A command that a signal ended is reported as a shell does it: 128 + the signal's number."""
    with guarded(*python("import os; os.kill(os.getpid(), 9)")) as process:
        assert process.wait(60) == 128 + signal.SIGKILL


def test_no_such_command() -> None:
    """A command that is not there: exit code 127 and one line that names it."""
    with guarded("/no/such/server") as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == guard.CANNOT_START
    assert stderr.decode() == "/no/such/server cannot be started: No such file or directory\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_by_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    """A signal to the guard ends the command in order: it gets SIGTERM and its own time to clean up."""
    program = f"""
import pathlib, signal, sys, time
here = pathlib.Path({str(tmp_path)!r})
def clean(*_):
    time.sleep(.5)
    (here / "cleaned").touch()
    sys.exit()
signal.signal(signal.SIGTERM, clean)
(here / "ready").touch()
time.sleep(600)"""
    with guarded(*python(program), grace_s=30) as process:
        wait_for(tmp_path / "ready")
        process.send_signal(number)
        process.wait(60)
    assert (tmp_path / "cleaned").exists()


def test_pipe_closed(tmp_path: Path) -> None:
    """When the other end of its pipe closes, the guard ends the command."""
    program = f"""
import os, time
open({str(tmp_path / "half")!r}, "w").write(str(os.getpid()))
os.rename({str(tmp_path / "half")!r}, {str(tmp_path / "pid")!r})
time.sleep(600)"""
    with guarded(*python(program)) as process:
        child = psutil.Process(int(wait_for(tmp_path / "pid")))
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)
    assert not survivors([child], within_s=0)


def test_words_in_the_pipe() -> None:
    """Bytes in the pipe mean nothing: only its end does."""
    with guarded(*python("import time; time.sleep(2)")) as process:
        assert process.stdin is not None
        process.stdin.write(b"hello\n" * 3)
        process.stdin.flush()
        assert process.wait(60) == 0


@pytest.mark.parametrize("ends_by_itself", [True, False])
def test_orphan_asked_politely(tmp_path: Path, ends_by_itself: bool) -> None:
    """A worker that the command leaves behind, when it ends or when it is stopped, is asked with SIGTERM: it is not
    killed at once, and not waited for in vain."""
    worker = f"""
import pathlib, signal, sys, time
here = pathlib.Path({str(tmp_path)!r})
def clean(*_):
    (here / "cleaned").touch()
    sys.exit()
signal.signal(signal.SIGTERM, clean)
(here / "ready").touch()
time.sleep(600)"""
    command = f"""
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-S", "-c", {worker!r}], start_new_session=True)
while not os.path.exists({str(tmp_path / "ready")!r}):
    time.sleep(.05)
{"sys.exit(5)" if ends_by_itself else "time.sleep(600)"}"""
    began = time.monotonic()
    with guarded(*python(command), grace_s=60) as process:
        if not ends_by_itself:
            wait_for(tmp_path / "ready")
            process.terminate()
        process.wait(120)
    assert (tmp_path / "cleaned").exists()
    assert time.monotonic() - began < 45


def test_ended_orphans_are_collected(tmp_path: Path) -> None:
    """Orphans that end while the command runs do not stay in the process table."""
    command = f"""
import os, time
for _ in range(20):
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            time.sleep(.1)
        os._exit(0)
    os.waitpid(middle, 0)
time.sleep(1)
open({str(tmp_path / "done")!r}, "w").close()
time.sleep(600)"""
    with guarded(*python(command)) as process:
        wait_for(tmp_path / "done")
        children = psutil.Process(process.pid).children()
        deadline = time.monotonic() + 20
        while len(children) > 1 and time.monotonic() < deadline:
            time.sleep(0.1)
            children = psutil.Process(process.pid).children()
        assert [child.status() for child in children] != []
        assert len(children) == 1
        process.terminate()
        process.wait(60)


def test_idle_guard_costs_nothing() -> None:
    """While the command runs the guard takes less than a hundredth of a core, however many processes there are."""
    with guarded(*python("import time; time.sleep(600)")) as process:
        watched = psutil.Process(process.pid)
        deadline = time.monotonic() + 60
        while not watched.children() and time.monotonic() < deadline:
            time.sleep(0.05)
        before = watched.cpu_times()
        time.sleep(3)
        after = watched.cpu_times()
        process.terminate()
        process.wait(60)
    assert after.user + after.system - before.user - before.system <= 0.03 + 1 / os.sysconf("SC_CLK_TCK")
