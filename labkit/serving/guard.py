"""Stands between us and a server, so that no server outlives the one who started it.

    python -m labkit.serving.guard GRACE_S COMMAND ...

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

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
POLL_S = 0.2


def main(grace_s: float, command: list[str]) -> int:
    """Runs `command` until it ends or we are asked to stop. Returns its exit code."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    stop_asked = _note_signals()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        while child.poll() is None and not stop_asked and not _parent_gone():
            pass
    finally:
        end_descendants(psutil.Process(), grace_s=grace_s)
    return child.wait()


def _note_signals() -> list[int]:
    """SIGTERM and SIGINT only leave a note: the loop ends the tree in order."""
    asked: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)
    return asked


def _parent_gone() -> bool:
    """Waits a moment on the pipe; it becomes readable, with nothing to read, when its other end closes."""
    readable, _, _ = select.select([0], [], [], POLL_S)
    return bool(readable) and os.read(0, 1) == b""


def end_descendants(root: psutil.Process, *, grace_s: float) -> None:
    """SIGTERM to the direct children, which stop their own workers in order; after `grace_s`, SIGKILL to the rest."""
    _signal_all(root.children(), signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while (left := root.children(recursive=True)) and time.monotonic() < deadline:
        if not any(process.ppid() == root.pid and process.status() != psutil.STATUS_ZOMBIE for process in _alive(left)):
            break  # the server itself is gone: whatever is left is orphaned
        psutil.wait_procs(left, timeout=POLL_S)
    while left := _alive(root.children(recursive=True)):
        _signal_all(left, signal.SIGKILL)
        psutil.wait_procs(left, timeout=1)


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def _signal_all(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
