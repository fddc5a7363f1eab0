"""Waiting for processes that end: a zombie, which only its new parent can take away, has ended."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from labkit.machine.processes import end_processes, has_ended, running, wait_for_end

IDLE_PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
sys.stdin.readline()
child.stdin.close()
sys.stdin.read()  # never waits for the child: it stays a zombie
"""
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"


@pytest.fixture
def zombie() -> Iterator[psutil.Process]:
    """A grandchild that has ended and that its parent does not wait for."""
    with subprocess.Popen(
        [sys.executable, "-c", IDLE_PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin
        assert parent.stdout
        found = psutil.Process(int(parent.stdout.readline()))
        parent.stdin.write("\n")
        parent.stdin.flush()
        while found.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.02)
        yield found
        parent.kill()


def test_a_zombie_of_somebody_else_is_not_waited_for(zombie: psutil.Process) -> None:
    """With an hour to wait, the call is back at once: a zombie neither runs nor can be ended."""
    assert wait_for_end([zombie], timeout_s=3600) == []
    assert has_ended(zombie)
    end_processes([zombie])
    assert zombie.status() == psutil.STATUS_ZOMBIE  # it is still its parent's


def test_one_that_runs_is_waited_for_and_told() -> None:
    """After the time that was given, what runs on is returned; what ended meanwhile is not."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as child:
        process = psutil.Process(child.pid)
        assert wait_for_end([process], timeout_s=0.1) == [process]
        assert not has_ended(process)
        assert child.stdin
        child.stdin.close()
        assert wait_for_end([process], timeout_s=60) == []


def test_of_some_numbers_those_that_run_are_counted(zombie: psutil.Process) -> None:
    """This process runs; a zombie and one that was waited for do not."""
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    assert psutil.pid_exists(zombie.pid)
    assert running([os.getpid(), zombie.pid, child.pid]) == [os.getpid()]


def test_one_that_is_deaf_to_sigterm_is_killed() -> None:
    """`end_processes` returns when it is gone, and nothing of our own child stays in the process table."""
    with subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == b"up\n"
        deaf = psutil.Process(child.pid)
        end_processes([deaf])
        assert not psutil.pid_exists(child.pid)
