"""Ends what a process started when that process is gone, however it went.

    python -m labkit.serving.watch PID ...

Ray's own processes end themselves when their driver is killed, except two agents that stay for ever. So somebody has to
remember them: this one looks at the trees below the given processes while its parent lives, and ends all it saw then.
"""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil

from labkit.machine.processes import end_processes, has_ended, wait_for_end
from labkit.serving.guard import parent_gone

LOOK_S = 2.0
OWN_END_S = 3.0


def start(pids: Sequence[int]) -> "subprocess.Popen[bytes]":
    """Starts a watcher of these processes of ours; it ends by itself when they have ended."""
    return subprocess.Popen(
        [sys.executable, "-m", "labkit.serving.watch", *map(str, pids)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C is for our parent
    )


def main(roots: list[psutil.Process], parent: int) -> None:
    """Watches until `parent` is gone, or nothing of what was seen is left."""
    seen = set(roots)
    looked = 0.0
    while not parent_gone(parent) and _alive(seen):
        if time.monotonic() - looked > LOOK_S:
            looked = time.monotonic()
            seen = _alive(seen) | _below(seen)
    end_processes(wait_for_end(seen | _below(seen), timeout_s=OWN_END_S))


def _below(processes: set[psutil.Process]) -> set[psutil.Process]:
    """Their children, by one look at the process table: many looks would be felt by what is measured meanwhile."""
    pids = {process.pid for process in processes}
    return {process for process in psutil.process_iter(["ppid"]) if process.info["ppid"] in pids}


def _alive(processes: set[psutil.Process]) -> set[psutil.Process]:
    return {process for process in processes if not has_ended(process)}


if __name__ == "__main__":
    import os

    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    trees = []
    for pid in sys.argv[1:]:
        with contextlib.suppress(psutil.NoSuchProcess):
            trees.append(psutil.Process(int(pid)))
    main(trees, os.getppid())
