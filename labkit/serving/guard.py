"""Ends what a process started when that process is gone, however it went. Runs by its file and needs only psutil.

    python guard.py FOLDER GRACE_S COMMAND ...    starts a command and ends it, with everything that it started
    python guard.py --watch FOLDER [PID ...]      ends processes that are already running, and everything below them

FOLDER has their temporary files and is removed at the end, by a watch of no process when its parent is gone. Both hold
the read end of a pipe (their stdin) whose other end their parent holds. When the parent ends - normally, by Ctrl-C, by
a kernel restart, or by SIGKILL, which no `atexit` survives - the pipe closes. A command has two guards, one inside the
other: when one is killed, the other ends the command. Both adopt orphans (PR_SET_CHILD_SUBREAPER), so a worker whose
own parent died is found too. The watch is for Ray, whose processes end themselves when their driver is killed, except
two agents that stay for ever, and for a lab's temporary files.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from types import FrameType

import psutil

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
POLL_S = 0.2
LOOK_S = 2.0  # between two looks at the process table, which would be felt by what is measured meanwhile
OWN_END_S, TERMINATE_GRACE_S, REMOVAL_S = 3.0, 3.0, 20.0
CANNOT_START = 127  # what a shell says of a command that does not exist


def run(folder: str, grace_s: float, command: list[str]) -> int:
    """Run `command` until it ends or we are asked to stop.

    Return its exit code, 128 + N when signal N ended it, or 128 + SIGTERM or the signal that asked when we ended it.
    """
    parent, outer = os.getppid(), os.getpid()
    libc = ctypes.CDLL(None)
    stop_signals: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:  # no more: `_guard` ends the tree in order
        stop_signals.append(number)

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)
    child = os.fork()
    if child == 0:  # the inner guard
        parent = outer
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            ).pid
        except OSError as error:
            print(f"{command[0]} cannot be started: {error.strerror}", file=sys.stderr)
            return CANNOT_START
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    code = None
    try:
        while (code := _reaped(child)) is None and not stop_signals and not _parent_gone(parent):
            pass
    finally:
        _end_descendants(psutil.Process(), grace_s=grace_s)
        shutil.rmtree(folder, ignore_errors=True)
    if code is None:
        code = -(stop_signals or [signal.SIGTERM])[0]
    return code if code >= 0 else 128 - code


def start_watch(folder: str, pids: Sequence[int]) -> "subprocess.Popen[bytes]":
    """Start a watch over these processes; it ends when they have ended."""
    return subprocess.Popen(
        [sys.executable, "-P", __file__, "--watch", folder, *map(str, pids)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C is for our parent
    )


def watch(folder: str, pids: list[int]) -> None:
    """Wait until the parent is gone, or nothing of what was seen is left; then end what is."""
    parent, seen, looked = os.getppid(), set[psutil.Process](), 0.0
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            seen.add(psutil.Process(pid))
    while not _parent_gone(parent) and (_alive(seen) or not pids):
        if pids and time.monotonic() - looked > LOOK_S:
            looked = time.monotonic()
            seen = _alive(seen) | _below(seen)
    seen |= _below(seen)
    _wait(seen, OWN_END_S)
    _signal_all(_alive(seen), signal.SIGTERM)
    _wait(seen, TERMINATE_GRACE_S)
    _signal_all(_alive(seen), signal.SIGKILL)
    deadline = time.monotonic() + REMOVAL_S
    while os.path.exists(folder) and time.monotonic() < deadline:  # those that end may still write there
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(POLL_S)


def _parent_gone(parent: int) -> bool:
    """Waits a moment on the pipe; it becomes readable, with nothing to read, when its other end closes.

    A fork of the parent may hold the other end too and live on, so the parent's pid is looked at as well.
    """
    readable, _, _ = select.select([0], [], [], POLL_S)
    return os.getppid() != parent or (bool(readable) and os.read(0, 1) == b"")


def _reaped(child: int) -> int | None:
    """Collect orphans that ended, which would stay in the process table; return the exit code of an ended `child`."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            return os.waitstatus_to_exitcode(status)
        if pid == 0:
            return None


def _end_descendants(root: psutil.Process, *, grace_s: float) -> None:
    """SIGTERM to the direct children, which stop their own workers in order; after `grace_s`, SIGKILL to the rest.

    A worker whose parent ended without stopping it becomes a direct child and gets its SIGTERM then.
    """
    asked: set[psutil.Process] = set()
    deadline = time.monotonic() + grace_s
    while (left := root.children(recursive=True)) and time.monotonic() < deadline:
        new = set(root.children()) - asked
        _signal_all(new, signal.SIGTERM)
        asked |= new
        psutil.wait_procs(left, timeout=POLL_S)
    while running := _alive(root.children(recursive=True)):
        _signal_all(running, signal.SIGKILL)
        psutil.wait_procs(running, timeout=1)


def _below(processes: set[psutil.Process]) -> set[psutil.Process]:
    """Their children, by one look at the process table."""
    pids = {process.pid for process in processes}
    return {process for process in psutil.process_iter(["ppid"]) if process.info["ppid"] in pids}


def _alive(processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    """Those that still run; a zombie does not."""
    running = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                running.add(process)
    return running


def _wait(processes: set[psutil.Process], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while _alive(processes) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _signal_all(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


if __name__ == "__main__":
    if sys.argv[1] == "--watch":
        watch(sys.argv[2], [int(pid) for pid in sys.argv[3:]])
    else:
        sys.exit(run(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
