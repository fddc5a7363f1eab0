"""End a process's children when that process ends, for whatever reason. Runs as a script and needs only psutil.

    python guard.py FOLDER GRACE_S COMMAND ...    start a command; end it with all its descendants
    python guard.py --watch FOLDER [PID ...]      end processes that already run, with all their descendants

FOLDER holds their temporary files and is removed at the end; a watch without PIDs removes it when its parent ends. Both
modes read from a pipe (stdin) whose write end their parent holds. The pipe closes when the parent ends: normally, by
Ctrl-C, by a kernel restart, or by SIGKILL, which runs no `atexit`. A command has two guards, one inside the other: when
one is killed, the other ends the command. Both adopt orphans (PR_SET_CHILD_SUBREAPER), so they also find workers whose
parent died. The watch serves Ray, which leaves two agents running when its driver is killed, and a lab's temporary
files.
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
SCAN_S = 2.0  # between scans of the process table: more would disturb measurements
OWN_END_S, TERMINATE_GRACE_S, REMOVAL_S = 3.0, 3.0, 20.0
CANNOT_START = 127  # a shell's exit code for a missing command


def run(folder: str, grace_s: float, command: list[str]) -> int:
    """Run `command` until it ends, a signal arrives, or the parent ends.

    Return its exit code, or 128 + N: N is the signal that ended it, the signal that arrived, or else SIGTERM.
    """
    parent, outer = os.getppid(), os.getpid()
    libc = ctypes.CDLL(None)
    stop_signals: list[int] = []

    def record_signal(number: int, _frame: FrameType | None) -> None:  # the loop below ends the tree in order
        stop_signals.append(number)

    signal.signal(signal.SIGTERM, record_signal)
    signal.signal(signal.SIGINT, record_signal)
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
    """Start a watch over these processes; it ends after them."""
    return subprocess.Popen(
        [sys.executable, "-P", __file__, "--watch", folder, *map(str, pids)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that a Ctrl-C does not reach it
    )


def watch(folder: str, pids: list[int]) -> None:
    """Wait until the parent or all watched processes have ended; then end what is left."""
    parent, watched, scanned_at = os.getppid(), set[psutil.Process](), 0.0
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            watched.add(psutil.Process(pid))
    while not _parent_gone(parent) and (_alive(watched) or not pids):
        if pids and time.monotonic() - scanned_at > SCAN_S:
            scanned_at = time.monotonic()
            watched = _alive(watched) | _children(watched)
    watched |= _children(watched)
    _wait(watched, OWN_END_S)
    _signal_all(_alive(watched), signal.SIGTERM)
    _wait(watched, TERMINATE_GRACE_S)
    _signal_all(_alive(watched), signal.SIGKILL)
    deadline = time.monotonic() + REMOVAL_S
    while os.path.exists(folder) and time.monotonic() < deadline:  # ending processes may still write there
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(POLL_S)


def _parent_gone(parent: int) -> bool:
    """Wait up to POLL_S; True if the pipe's write end has closed (end of file) or the parent's pid has changed.

    The pid is needed too: a fork of the parent may still hold the write end.
    """
    readable, _, _ = select.select([0], [], [], POLL_S)
    return os.getppid() != parent or (bool(readable) and os.read(0, 1) == b"")


def _reaped(child: int) -> int | None:
    """Reap orphans that ended, so that no zombies stay; return the exit code if `child` ended."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            return os.waitstatus_to_exitcode(status)
        if pid == 0:
            return None


def _end_descendants(root: psutil.Process, *, grace_s: float) -> None:
    """Send SIGTERM to direct children, which stop their own workers in order; after `grace_s`, SIGKILL to the rest.

    A worker whose parent ended without stopping it becomes a direct child and gets SIGTERM then.
    """
    signalled: set[psutil.Process] = set()
    deadline = time.monotonic() + grace_s
    while (left := root.children(recursive=True)) and time.monotonic() < deadline:
        new = set(root.children()) - signalled
        _signal_all(new, signal.SIGTERM)
        signalled |= new
        psutil.wait_procs(left, timeout=POLL_S)
    while running := _alive(root.children(recursive=True)):
        _signal_all(running, signal.SIGKILL)
        psutil.wait_procs(running, timeout=1)


def _children(processes: set[psutil.Process]) -> set[psutil.Process]:
    """Their children, by one scan of the process table."""
    pids = {process.pid for process in processes}
    return {process for process in psutil.process_iter(["ppid"]) if process.info["ppid"] in pids}


def _alive(processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    """Those that still run; zombies count as ended."""
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
