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


def test_exit_codes() -> None:
    """The guard ends with the exit code of its command; 128 + N, as a shell says it, where signal N ended it; 127 and
    one line that names it for a command that is not there."""
    commands = {python(f"raise SystemExit({code})"): (code, "") for code in (0, 3, 255)}
    commands[python("import os; os.kill(os.getpid(), 9)")] = (128 + signal.SIGKILL, "")
    commands[("/no/such/server",)] = (127, "/no/such/server cannot be started: No such file or directory\n")
    for command, expected in commands.items():
        with guarded(*command) as process:
            assert process.stderr is not None
            code = process.wait(60)  # `communicate` would close the pipe
            assert (code, process.stderr.read().decode()) == expected


# Takes its time to clean up when it is asked to end; says when it is ready for that.
POLITE = """
import pathlib, signal, sys, time
here = pathlib.Path({here!r})
def clean(*_):
    time.sleep(.5)
    (here / "cleaned").touch()
    sys.exit()
signal.signal(signal.SIGTERM, clean)
(here / "ready").write_text("")
time.sleep(600)"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_by_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    """A signal to the guard ends the command in order: it gets SIGTERM and its own time to clean up."""
    with guarded(*python(POLITE.format(here=str(tmp_path))), grace_s=30) as process:
        wait_for(tmp_path / "ready")
        process.send_signal(number)
        process.wait(60)
    assert (tmp_path / "cleaned").exists()


def test_pipe_closed() -> None:
    """When the other end of its pipe closes, the guard ends the command."""
    with guarded(*python("import time; time.sleep(600)")) as process:
        (child,) = wait_for_children(process)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)
    assert not survivors([child], within_s=0)


def wait_for_children(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """The guard's children, once there is one."""
    deadline = time.monotonic() + 60
    while not (children := psutil.Process(process.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return children


def test_words_in_the_pipe() -> None:
    """Bytes in the pipe mean nothing: only its end does."""
    with guarded(*python("import time; time.sleep(2); raise SystemExit(7)")) as process:
        assert process.stdin is not None
        process.stdin.write(b"hello\n" * 3)
        process.stdin.flush()
        assert process.wait(60) == 7


@pytest.mark.parametrize("ends_by_itself", [True, False])
def test_orphan_asked_politely(tmp_path: Path, ends_by_itself: bool) -> None:
    """A worker that the command leaves behind, when it ends or when it is stopped, is asked with SIGTERM: it is not
    killed at once, and not waited for in vain."""
    worker = POLITE.format(here=str(tmp_path))
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
        assert len(children) == 1
        process.terminate()
        process.wait(60)


def test_idle_guard_costs_nothing() -> None:
    """While the command runs the guard takes less than a hundredth of a core, however many processes there are."""
    with guarded(*python("import time; time.sleep(600)")) as process:
        wait_for_children(process)
        watched = psutil.Process(process.pid)
        before = watched.cpu_times()
        time.sleep(3)
        after = watched.cpu_times()
        process.terminate()
        process.wait(60)
    assert after.user + after.system - before.user - before.system <= 0.03 + 1 / os.sysconf("SC_CLK_TCK")
