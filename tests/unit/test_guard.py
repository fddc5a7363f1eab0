"""The guard as a program: exit codes, orphans, and its end."""

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


def guarded(*command: str, grace_s: float = 5.0, folder: Path = Path("/no/such")) -> "subprocess.Popen[bytes]":
    """Start the guard with a command; the test holds the write end of its stdin."""
    return subprocess.Popen(
        [sys.executable, "-P", guard.__file__, str(folder), str(grace_s), *command],
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
def test_a_signal_ends_the_command_in_order(tmp_path: Path, number: signal.Signals) -> None:
    """A signal to the guard ends the command in order: it gets SIGTERM and its own time to clean up.

    The guard's exit code names the signal, and the command's temporary files are gone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    with guarded(*python(POLITE.format(here=str(tmp_path))), grace_s=30, folder=folder) as process:
        wait_for(tmp_path / "ready")
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    assert (tmp_path / "cleaned").exists()
    assert not folder.exists()


@pytest.mark.parametrize("killed", ["outer", "inner"])
def test_a_killed_guard_ends_the_command(tmp_path: Path, killed: str) -> None:
    """If either guard is killed, the command, its workers and its temporary files are still removed."""
    worker = python(POLITE.format(here=str(tmp_path)))
    command = f"import subprocess, time; subprocess.Popen({list(worker)!r}, start_new_session=True); time.sleep(600)"
    folder = tmp_path / "temporary"
    folder.mkdir()
    with guarded(*python(command), folder=folder) as process:
        wait_for(tmp_path / "ready")
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) == 3
        victim = process.pid if killed == "outer" else family[0].pid
        os.kill(victim, signal.SIGKILL)
        assert not survivors(family, within_s=10)
        assert process.wait(10) in (-signal.SIGKILL, 128 + signal.SIGKILL)
    assert not folder.exists()


def test_pipe_closed() -> None:
    """When the other end of its pipe closes, the guard ends the command."""
    with guarded(*python("import time; time.sleep(600)")) as process:
        family = wait_for_children(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not survivors(family, within_s=0)


def wait_for_children(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """The inner guard and its command, once both are there."""
    deadline = time.monotonic() + 60
    while len(family := psutil.Process(process.pid).children(recursive=True)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    return family


def test_words_in_the_pipe() -> None:
    """Bytes in the pipe are ignored; only its end counts."""
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
        inner = psutil.Process(process.pid).children()[0]
        deadline = time.monotonic() + 20
        while len(children := inner.children()) > 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(children) == 1
        process.terminate()
        process.wait(60)


def test_idle_guard_costs_nothing() -> None:
    """While the command runs, both guards together use less than 1% of a core, for any number of processes."""
    with guarded(*python("import time; time.sleep(600)")) as process:
        watched = [psutil.Process(process.pid), wait_for_children(process)[0]]
        before_s = cpu_s(watched)
        time.sleep(3)
        spent_s = cpu_s(watched) - before_s
        process.terminate()
        process.wait(60)
    assert spent_s <= 0.03 + 2 / os.sysconf("SC_CLK_TCK")


def cpu_s(processes: list[psutil.Process]) -> float:
    """The CPU time that they have taken."""
    return sum(process.cpu_times().user + process.cpu_times().system for process in processes)
