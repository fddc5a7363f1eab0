"""Sample the CPU time and memory of processes at a fixed interval, in a thread."""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import psutil


@dataclass(frozen=True, kw_only=True)
class UseSummary:
    """What processes and their descendants used. `most_rss_bytes`: the largest reading; shared pages count per process.

    `duration_s`: from the start to the last reading.
    """

    duration_s: float
    processes_cpu_s: float
    most_rss_bytes: int


class Sampler:
    """Samples while it is open: `with Sampler(pids=[server.pid]) as use: ...; use.summary()`.

    Each reading includes the current descendants of `pids`. A new `with` block counts from zero.
    """

    def __init__(self, *, pids: Iterable[int], interval_s: float = 0.5) -> None:
        self.interval_s = interval_s
        self._pids = tuple(pids)
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._ended.clear()
        self._duration_s = self._used_s = 0.0
        self._most_rss_bytes = 0
        self._started_s = time.monotonic()
        self._cpu_s = {process: cpu_s for process, cpu_s, _ in self._processes()}
        self._thread = threading.Thread(target=self._loop, name="labkit-sampler", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def summary(self) -> UseSummary:
        """Return what was used from the start of the block to the last reading."""
        return UseSummary(
            duration_s=self._duration_s, processes_cpu_s=self._used_s, most_rss_bytes=self._most_rss_bytes
        )

    def _loop(self) -> None:
        while not self._ended.wait(self.interval_s):
            self._read()
        self._read()

    def _read(self) -> None:
        self._duration_s, processes = time.monotonic() - self._started_s, self._processes()
        # All CPU time of a new process is since the previous reading.
        self._used_s += sum(cpu_s - self._cpu_s.get(process, 0.0) for process, cpu_s, _ in processes)
        self._cpu_s = {process: cpu_s for process, cpu_s, _ in processes}
        self._most_rss_bytes = max(self._most_rss_bytes, sum(rss for _, _, rss in processes))

    def _processes(self) -> list[tuple[psutil.Process, float, int]]:
        """Return (process, CPU-seconds, RSS bytes) of `pids` and their descendants, each once."""
        processes = {process for pid in self._pids for process in family(pid)}
        return [reading for process in processes if (reading := _reading(process)) is not None]


def family(pid: int) -> list[psutil.Process]:
    """Return the process and all its descendants; [] if it has ended."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _reading(process: psutil.Process) -> tuple[psutil.Process, float, int] | None:
    try:
        with process.oneshot():
            times, rss = process.cpu_times(), process.memory_info().rss
    except psutil.Error:  # it ended between the list and the reading
        return None
    return process, times.user + times.system, rss
