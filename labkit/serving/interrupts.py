"""Protect the processes that a cell started from an interrupt of that cell."""

import contextlib
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Block SIGINT for processes that start in this block; SIGTERM and SIGKILL still reach them.

    JupyterLab's *Interrupt* sends SIGINT to the kernel and its child processes. On a GPU, `LLM` runs its engine in a
    separate process, which SIGINT would end. Child processes inherit the signals that their parent blocks. The kernel
    can still be interrupted, through a thread that does not block SIGINT.
    """
    resource_tracker.ensure_running()  # starting it unblocks SIGINT, so start it first
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
