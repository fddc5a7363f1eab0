"""What a start of Ray needs on a busy machine: another try, a look at its processes while it waits, and an end to them.

A node's agent has about 15 s to write its port, whatever one sets. On a busy machine it may miss that; the node then
fails to start, or dies when it seemed to be up, and Ray Serve would wait for it without a limit.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

import psutil

from labkit.errors import ServerError, UsageError
from labkit.process_tree import end_processes, has_ended, wait_for_end
from labkit.serving.process import Progress

BUSY_PERCENT = 80.0  # of all cores: above it another try at once would meet what the last one met
CALM_WAIT_S = 20.0  # and this much longer after each failed try
LOOK_S = 0.25  # at the processes, while Ray Serve starts
STOP_WAIT_S = 3.0  # for their own end; then they are ended
NODE_DIED, SERVE_START = "Ray's node died while Ray Serve started", "the start of Ray Serve"
TRANSIENT = (
    "timed out during startup",
    "Failed to start",
    "failed to start",
    "The current node has not been updated",
    NODE_DIED,
    SERVE_START,
)
T = TypeVar("T")


def retried(start_once: Callable[[], T], tries: int, progress: Progress) -> T:
    """What `start_once` returns. A failed try leaves children behind: they are ended, and only they, before the next.

    Raises `ServerError` after `tries` tries, and at once whatever another try cannot help.
    """
    import ray

    for attempt in range(1, tries + 1):
        before = children()
        try:
            return start_once()
        except BaseException as error:
            ray.shutdown()
            end(with_children(children() - before))
            if not any(words in str(error) for words in TRANSIENT):
                raise
            if attempt == tries:
                remedy = "wait until the machine is less busy and start again"
                raise ServerError(f"Ray did not start in {tries} tries: {error}", remedy=remedy) from error
            reason = str(error).partition("\n")[0]  # what to do about it is being done
            progress(f"Ray: try {attempt} of {tries} failed on a busy machine ({reason}); once more")
            _wait_for_calm(CALM_WAIT_S * attempt)
    raise UsageError(f"{tries} tries are none", remedy="let tries be 1 or more")


def _wait_for_calm(at_most_s: float) -> None:
    began = time.monotonic()
    while psutil.cpu_percent(interval=1.0) > BUSY_PERCENT and time.monotonic() - began < at_most_s:
        pass


def beside(work: Callable[[], T], processes: list[psutil.Process], *, timeout_s: float) -> T:
    """What `work` returns, which needs `processes` and does not notice their end; it runs in a thread of its own.

    Raises `ServerError` when one of them dies, or after `timeout_s`; the thread is then left to itself, and what the
    processes had started is ended.
    """
    outcome, seen = _in_background(work), set(processes)
    began = time.monotonic()
    try:
        while not outcome.done():
            seen.update(with_children(processes))  # a dead one does not tell any more what it had started
            if died(processes):
                raise ServerError(NODE_DIED, remedy="free memory if it ran short, and start it again")
            if time.monotonic() - began > timeout_s:
                raise ServerError(f"{SERVE_START} took more than {timeout_s:.0f} s", remedy="start it again")
            time.sleep(LOOK_S)
        return outcome.result()
    except BaseException:
        end(seen)
        raise


def _in_background(work: Callable[[], T]) -> "Future[T]":
    """Runs `work` in a thread that nobody has to wait for, not even Python at its end."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome


def children() -> set[psutil.Process]:
    """This process's own children."""
    return set(psutil.Process().children())


def with_children(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those of `processes` that run, each with everything below it."""
    found: list[psutil.Process] = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [process, *process.children(recursive=True)]
    return found


def died(processes: list[psutil.Process]) -> bool:
    """True when one of them has ended, waited for or not."""
    return any(map(has_ended, processes))


def end(processes: Iterable[psutil.Process]) -> None:
    """Waits for their own end, then ends what is left."""
    end_processes(wait_for_end(processes, timeout_s=STOP_WAIT_S))
