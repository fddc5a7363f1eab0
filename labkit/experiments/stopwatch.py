"""Wall seconds and CPU-seconds of a block of code, of this process and of others."""

import resource
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil

from labkit.errors import ServerError, UsageError


class Stopwatch:
    """Wall seconds and CPU-seconds of a block of code. Waiting for a core that others have costs wall seconds only.

    A neighbour on the same core (another thread of it, another machine of the same host) slows both: the core then does
    less in each of its seconds. Compare in rounds or in turns.

        with Stopwatch(pids=[server.pid]) as watch:
            ...
        watch.wall_s, watch.cpu_s, watch.pids_cpu_s

    Attributes, all in seconds, readable after the block:
        wall_s: elapsed.
        own_cpu_s: CPU of this process alone, all threads, user and system.
        cpu_s: CPU of this process, its descendants, `pids` and their descendants; each process counts once.
        pids_cpu_s: CPU of `pids` and their descendants alone: what a server used, without its client.

    Other processes are read through psutil, in steps of the kernel's clock tick (10 ms on Linux): time blocks of a
    second or more. Children that ended inside the block count, if their parent waited for them.

    Raises:
        UsageError: a pid that is not running at the start, or a reading taken before the block has ended.
        ServerError: a process of `pids` ended inside the block, so that its CPU-seconds cannot be known.
    """

    def __init__(self, *, pids: Iterable[int] = ()) -> None:
        self._pids = tuple(pids)
        self._spent: _Usage | None = None

    def __enter__(self) -> Self:
        self._spent = None
        self._start = _usage(self._pids, opening=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._spent = _usage(self._pids, opening=False).since(self._start)
        except UsageError as gone:
            if error is None:  # never hide the error that the block itself raised
                raise ServerError(
                    f"{gone.what}: it ended while it was being timed, so its CPU-seconds are unknown",
                    remedy="read its log, start it again and measure again",
                ) from gone

    @property
    def _reading(self) -> "_Usage":
        if self._spent is None:
            raise UsageError("the stopwatch has no reading yet", remedy="read it after its `with` block")
        return self._spent

    @property
    def wall_s(self) -> float:
        return self._reading.wall_s

    @property
    def own_cpu_s(self) -> float:
        return self._reading.own_cpu_s

    @property
    def cpu_s(self) -> float:
        return self._reading.cpu_s

    @property
    def pids_cpu_s(self) -> float:
        return self._reading.pids_cpu_s


@dataclass(frozen=True, kw_only=True)
class _Usage:
    """Totals since each process began, in seconds; `wall_s` is a clock's reading."""

    wall_s: float
    own_cpu_s: float
    cpu_s: float
    pids_cpu_s: float

    def since(self, start: "_Usage") -> "_Usage":
        return _Usage(
            wall_s=self.wall_s - start.wall_s,
            own_cpu_s=self.own_cpu_s - start.own_cpu_s,
            # A descendant that ended without being waited for takes its seconds with it: less than nothing is nothing.
            cpu_s=max(0.0, self.cpu_s - start.cpu_s),
            pids_cpu_s=max(0.0, self.pids_cpu_s - start.pids_cpu_s),
        )


def _usage(pids: Sequence[int], *, opening: bool) -> _Usage:
    """Read every clock, the wall innermost: last when a block opens, first when it closes."""
    if opening:
        cpu_s, pids_cpu_s = _others(pids)
        own_cpu_s, wall_s = time.process_time(), time.perf_counter()
    else:
        wall_s, own_cpu_s = time.perf_counter(), time.process_time()
        cpu_s, pids_cpu_s = _others(pids)
    return _Usage(wall_s=wall_s, own_cpu_s=own_cpu_s, cpu_s=own_cpu_s + cpu_s, pids_cpu_s=pids_cpu_s)


def _others(pids: Sequence[int]) -> tuple[float, float]:
    """CPU-seconds of (all other processes of interest, those of `pids` and their descendants)."""
    me = psutil.Process()
    given = {process for pid in pids for process in _tree(_running(pid))}
    others = {*me.children(recursive=True), *given} - {me}
    waited_for = resource.getrusage(resource.RUSAGE_CHILDREN)  # finer than psutil's ticks
    mine = waited_for.ru_utime + waited_for.ru_stime
    return mine + sum(map(_cpu_s, others)), sum(map(_cpu_s, given))


def _running(pid: int) -> psutil.Process:
    try:
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return process
    except psutil.NoSuchProcess:
        pass
    raise UsageError(f"process {pid} is not running", remedy="pass the pid of a server that is up")


def _tree(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return [process]


def _cpu_s(process: psutil.Process) -> float:
    """User and system seconds of a process and of those of its children that it has waited for."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:  # ended between the listing and this line
        return 0.0
    return times.user + times.system + times.children_user + times.children_system
