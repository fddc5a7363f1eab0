"""Stands between us and a server, so that no server outlives the one who started it.

    python labkit/serving/guard.py GRACE_S COMMAND ...

The guard starts the command and holds the read end of a pipe (its stdin) whose other end its parent holds. When the
parent ends - normally, by Ctrl-C, by a kernel restart, or by SIGKILL, which no `atexit` survives - the pipe closes,
and the guard ends the command with everything it started. It adopts orphans (PR_SET_CHILD_SUBREAPER), so a worker
whose own parent died is found too.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from types import FrameType

import psutil

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
POLL_S = 0.2
CANNOT_START = 127  # what a shell says of a command that is not there


def main(grace_s: float, command: list[str]) -> int:
    """Runs `command` until it ends or we are asked to stop. Returns its exit code; 128 + N when signal N ended it."""
    parent = os.getppid()
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    stop_asked = _note_signals()
    try:
        # Should the guard itself be killed (out of memory), the kernel ends the server.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        )
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", file=sys.stderr)
        return CANNOT_START
    try:
        while child.poll() is None and not stop_asked and not parent_gone(parent):
            _reap_adopted(child.pid)
    finally:
        end_descendants(psutil.Process(), grace_s=grace_s)
    code = child.wait()
    return code if code >= 0 else 128 - code


def _note_signals() -> list[int]:
    """SIGTERM and SIGINT only leave a note: the loop ends the tree in order."""
    asked: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)
    return asked


def parent_gone(parent: int) -> bool:
    """Waits a moment on the pipe; it becomes readable, with nothing to read, when its other end closes.

    A fork of the parent may hold the other end too and live on, so the parent's pid is looked at as well.
    """
    readable, _, _ = select.select([0], [], [], POLL_S)
    return os.getppid() != parent or (bool(readable) and os.read(0, 1) == b"")


def _reap_adopted(server: int) -> None:
    """Collects orphans that ended, which would stay in the process table; the server's own exit code is Popen's."""
    peek = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while (ended := os.waitid(os.P_ALL, 0, peek)) and ended.si_pid != server:
        os.waitpid(ended.si_pid, 0)


def end_descendants(root: psutil.Process, *, grace_s: float) -> None:
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
    while left := [process for process in root.children(recursive=True) if _status(process) != psutil.STATUS_ZOMBIE]:
        _signal_all(left, signal.SIGKILL)
        psutil.wait_procs(left, timeout=1)


def _status(process: psutil.Process) -> str:
    """Its status; one that is already gone and collected counts as a zombie."""
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return str(psutil.STATUS_ZOMBIE)


def _signal_all(processes: "set[psutil.Process] | list[psutil.Process]", number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
