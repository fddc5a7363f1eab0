"""Measure wall seconds and CPU-seconds of a block of code, in this process and in others."""

import resource
import time
from collections.abc import Iterable
from types import TracebackType
from typing import NoReturn, Self

import psutil

from labkit.errors import ServerError, UsageError


class Stopwatch:
    """Wall seconds and CPU-seconds of a block of code. Waiting for a busy core adds to wall seconds only.

    Load on the same core (its other hardware thread, another virtual machine) adds to both, because the core does less
    per second. Compare in rounds or in turns.

        with Stopwatch(pids=[server.pid]) as watch:
            ...
        watch.wall_s, watch.cpu_s, watch.pids_cpu_s

    Attributes, all in seconds, readable after the block:
        wall_s: elapsed.
        own_cpu_s: CPU of this process alone, all threads, user and system.
        cpu_s: CPU of this process, its descendants, `pids` and their descendants; each process counts once.
        pids_cpu_s: CPU of `pids` and their descendants alone: a server without its client.

    psutil reads other processes in steps of the kernel's clock tick (10 ms on Linux): time blocks of a second or more.
    Children that ended inside the block count if their parent waited for them.

    Raises:
        UsageError: a pid that is not running at the start, or a reading taken before the block has ended.
        ServerError: a process of `pids` ended inside the block, so that its CPU-seconds cannot be known.
    """

    wall_s: float
    own_cpu_s: float
    cpu_s: float
    pids_cpu_s: float

    def __init__(self, *, pids: Iterable[int] = ()) -> None:
        self._pids = tuple(pids)

    def __getattr__(self, name: str) -> NoReturn:
        if name not in Stopwatch.__annotations__:
            raise AttributeError(name)
        raise UsageError("the stopwatch has no reading yet", remedy="read it after its `with` block")

    def __enter__(self) -> Self:
        for name in Stopwatch.__annotations__:
            self.__dict__.pop(name, None)
        # The wall clock is read last when a block opens, first when it closes.
        self._before = (*self._others(), time.process_time(), time.perf_counter())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wall_s, own_s = time.perf_counter(), time.process_time()
        try:
            others_s, pids_s = self._others()
        except UsageError as gone:
            if error is not None:  # do not hide the block's own error
                return
            raise ServerError(
                f"{gone.what}: it ended while it was being timed, so its CPU-seconds are unknown",
                remedy="read its log, start it again and measure again",
            ) from gone
        others_before_s, pids_before_s, own_before_s, wall_before_s = self._before
        self.wall_s, self.own_cpu_s = wall_s - wall_before_s, own_s - own_before_s
        # The seconds of a descendant that ended without being waited for are lost, so the difference may be negative.
        self.cpu_s = max(0.0, self.own_cpu_s + others_s - others_before_s)
        self.pids_cpu_s = max(0.0, pids_s - pids_before_s)

    def _others(self) -> tuple[float, float]:
        """Return CPU-seconds of all other processes, and of `pids` with their descendants."""
        own = psutil.Process()
        given = {process for pid in self._pids for process in _tree(pid)}
        others = {*own.children(recursive=True), *given} - {own}
        waited_for = resource.getrusage(resource.RUSAGE_CHILDREN)  # finer than psutil's ticks
        children_s = waited_for.ru_utime + waited_for.ru_stime
        return children_s + sum(map(_cpu_s, others)), sum(map(_cpu_s, given))


def _tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        pass
    raise UsageError(f"process {pid} is not running", remedy="pass the pid of a server that is up")


def _cpu_s(process: psutil.Process) -> float:
    """Return user and system seconds of a process, including children that it has waited for."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:  # ended between the listing and this line
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)
