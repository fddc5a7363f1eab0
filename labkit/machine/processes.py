"""Track and end every process that a lab starts.

A lab's kernel starts servers in new process groups, and a process that dies leaves orphans. On Linux this process
adopts orphans (as their "child subreaper"), so that everything a lab started stays below it in the process tree.
"""

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Iterable
from typing import Self

import psutil

PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 36, 37  # linux/prctl.h
TERMINATE_GRACE_S = 3.0
KILL_GRACE_S = 5.0
POLL_S = 0.05


def adopts_orphans() -> bool:
    """Whether this process is the new parent of orphans below it."""
    if not sys.platform.startswith("linux"):
        return False
    is_subreaper = ctypes.c_int(0)
    ctypes.CDLL(None).prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(is_subreaper), 0, 0, 0)
    return bool(is_subreaper.value)


def adopt_orphans(yes: bool) -> None:
    """Start or stop adopting orphans below this process. No effect outside Linux."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)


class Scope:
    """The processes below this one that start inside the `with` block. The block adopts orphans."""

    def __enter__(self) -> Self:
        self._adopted_before = adopts_orphans()
        adopt_orphans(True)
        self._older = set(_descendants())
        return self

    def __exit__(self, *_error: object) -> None:
        adopt_orphans(self._adopted_before)

    def alive(self) -> list[psutil.Process]:
        """Return the processes that still run; reap zombies that are our children."""
        return [process for process in _descendants() if process not in self._older and not _taken_away(process)]

    def end(self, *, wait_s: float = 0.0) -> int:
        """Wait up to `wait_s` seconds, then send SIGTERM, then SIGKILL. Return how many processes had to be ended."""
        left = wait_for_end(self.alive(), timeout_s=wait_s)
        ended = len(left)
        end_processes(left)
        end_processes(self.alive())  # started while the others were ending
        return ended


def end_processes(processes: Iterable[psutil.Process]) -> None:
    """Send SIGTERM to all, and SIGKILL to those alive after `TERMINATE_GRACE_S`; return when they are gone."""
    left = list(processes)
    for act, grace_s in ((psutil.Process.terminate, TERMINATE_GRACE_S), (psutil.Process.kill, KILL_GRACE_S)):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                act(process)
        left = wait_for_end(left, timeout_s=grace_s)


def wait_for_end(processes: Iterable[psutil.Process], *, timeout_s: float) -> list[psutil.Process]:
    """Wait up to `timeout_s` for processes to end; return those that still run.

    psutil.wait_procs would also wait for zombies, such as adopted orphans that have not been reaped.
    """
    deadline = time.monotonic() + timeout_s
    while (left := [process for process in processes if not _taken_away(process)]) and time.monotonic() < deadline:
        time.sleep(POLL_S)
        processes = left
    return left


def _descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def running(pids: Iterable[int]) -> list[int]:
    """Return the processes that still run. Zombies count as ended."""
    wanted = set(pids)
    return [process.pid for process in psutil.process_iter() if process.pid in wanted and not has_ended(process)]


def has_ended(process: psutil.Process) -> bool:
    """Whether a process is gone or a zombie, which only its parent can reap."""
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _taken_away(process: psutil.Process) -> bool:
    """Whether a process has ended; reap it if it is a zombie and our child."""
    if not has_ended(process):
        return False
    if process.is_running():  # a zombie, not another process with a reused id
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
    return True
