"""Keeps an interrupt of a cell from the processes that the cell started."""

import contextlib
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Processes that start in this block never hear SIGINT; SIGTERM and SIGKILL reach them as always.

    JupyterLab's *Interrupt* sends SIGINT to the kernel and to all that it started. On a GPU, `LLM` runs its engine in
    a process of its own, which would end; a process is born with the signals that its parent blocks. The kernel itself
    is still interrupted: by a thread of it that does not block them.
    """
    resource_tracker.ensure_running()  # its start unblocks SIGINT, so it has to be over
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
