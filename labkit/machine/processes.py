"""Every process that a lab starts, and the end of all of them.

A lab's kernel starts servers in process groups of their own, and what dies in the middle leaves orphans. On Linux this
process adopts orphans (it becomes their "child subreaper"), so that whatever a lab started stays below us in the tree,
however often it forked.
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
    found = ctypes.c_int(0)
    ctypes.CDLL(None).prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(found), 0, 0, 0)
    return bool(found.value)


def adopt_orphans(yes: bool) -> None:
    """Makes this process the new parent of orphans below it, or no longer. Without effect outside of Linux."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)


class Scope:
    """The processes below this one that start inside the `with` block, which adopts orphans while it lasts."""

    def __enter__(self) -> Self:
        self._adopted_before = adopts_orphans()
        adopt_orphans(True)
        self._older = set(_descendants())
        return self

    def __exit__(self, *_error: object) -> None:
        adopt_orphans(self._adopted_before)

    def alive(self) -> list[psutil.Process]:
        """Those that still run. Zombies that nobody else waits for are reaped on the way."""
        return [process for process in _descendants() if process not in self._older and not _taken_away(process)]

    def end(self, *, wait_s: float = 0.0) -> int:
        """Ends them all: `wait_s` for their own end, then SIGTERM, then SIGKILL. Returns how many had to be ended."""
        left = wait_for_end(self.alive(), timeout_s=wait_s)
        ended = len(left)
        end_processes(left)
        end_processes(self.alive())  # started while the others were ending
        return ended


def end_processes(processes: Iterable[psutil.Process]) -> None:
    """SIGTERM to all, SIGKILL to what is alive after `TERMINATE_GRACE_S`; returns when they are gone."""
    left = list(processes)
    for act, grace_s in ((psutil.Process.terminate, TERMINATE_GRACE_S), (psutil.Process.kill, KILL_GRACE_S)):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                act(process)
        left = wait_for_end(left, timeout_s=grace_s)


def wait_for_end(processes: Iterable[psutil.Process], *, timeout_s: float) -> list[psutil.Process]:
    """Waits at most `timeout_s` for their own end; returns those that run on.

    psutil.wait_procs would wait for zombies, too: an orphan that ended stays one for as long as the process that
    adopted it (see `adopt_orphans`) does something else.
    """
    deadline = time.monotonic() + timeout_s
    while (left := [process for process in processes if not _taken_away(process)]) and time.monotonic() < deadline:
        time.sleep(POLL_S)
        processes = left
    return left


def _descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def running(pids: Iterable[int]) -> list[int]:
    """The processes that still run. Zombies count as ended."""
    wanted = set(pids)
    return [process.pid for process in psutil.process_iter() if process.pid in wanted and not has_ended(process)]


def has_ended(process: psutil.Process) -> bool:
    """True for a process that is gone, and for a zombie, which only its parent can reap."""
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _taken_away(process: psutil.Process) -> bool:
    """Whether it has ended; a zombie that is our own child leaves the process table."""
    if not has_ended(process):
        return False
    if process.is_running():  # a zombie, and not another process that has got its number since
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)
    return True
