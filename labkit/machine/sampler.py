"""Sample CPU, memory and GPU use at a fixed interval, in a thread."""

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Self

import psutil

from labkit.machine.gpus import GpuUse, handles, load_nvml, read_use, session


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Use since the previous reading. Machine CPU: 100 is all cores busy. Processes' CPU: 100 is one core busy."""

    at_s: float
    machine_cpu_percent: float
    processes_cpu_percent: float
    processes_rss_bytes: int
    gpus: tuple[GpuUse, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Span:
    """Mean and maximum of samples."""

    mean: float
    max: float


@dataclass(frozen=True, kw_only=True)
class UseSummary:
    """A summary of a sampler's readings. `processes_cpu_s`: CPU-seconds of the processes and their descendants."""

    samples: int
    duration_s: float
    machine_cpu_percent: Span | None
    processes_cpu_percent: Span | None
    processes_rss_bytes: Span | None
    processes_cpu_s: float
    gpu_busy_percent: Span | None
    gpu_memory_used_bytes: Span | None


class Sampler:
    """Samples while it is open: `with Sampler(pids=[server.pid]) as use: ...; use.summary()`.

    Each reading includes the current descendants of `pids`. RSS counts shared pages once per process.
    """

    def __init__(self, *, pids: Iterable[int] = (), interval_s: float = 0.5, nvml: Any | None = None) -> None:
        self.interval_s = interval_s
        self._pids = tuple(pids)
        self._nvml = nvml
        self._samples: list[Sample] = []
        self._processes_cpu_s = 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._gpus = ExitStack()
        self._handles: list[Any] = []

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The readings so far, oldest first."""
        return tuple(self._samples)

    def start(self) -> Self:
        """Take the first reading and start the thread. No effect on a running sampler."""
        if self._thread is None:
            self._open_gpus()
            self._ended.clear()
            self._started_s = self._last_s = time.monotonic()
            self._cpu_s = {process: cpu_s for process, cpu_s, _ in self._processes()}
            self._thread = threading.Thread(target=self._loop, name="labkit-sampler", daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """Take a last reading and end the thread. No effect on a stopped sampler."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None
            self._gpus.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def summary(self) -> UseSummary:
        """Return mean and maximum of all samples; None for quantities without samples."""
        return UseSummary(
            samples=len(self._samples),
            duration_s=self._samples[-1].at_s if self._samples else 0.0,
            machine_cpu_percent=self._span(lambda sample: [sample.machine_cpu_percent]),
            processes_cpu_percent=self._span(lambda sample: [sample.processes_cpu_percent]) if self._pids else None,
            processes_rss_bytes=self._span(lambda sample: [sample.processes_rss_bytes]) if self._pids else None,
            processes_cpu_s=self._processes_cpu_s,
            gpu_busy_percent=self._span(lambda s: [use.busy_percent for use in s.gpus if use.busy_percent is not None]),
            gpu_memory_used_bytes=self._span(
                lambda s: [sum(use.memory_used_bytes for use in s.gpus)] if s.gpus else []
            ),
        )

    def _span(self, values_of: Callable[[Sample], list[float]]) -> Span | None:
        values = [value for sample in self._samples for value in values_of(sample)]
        return Span(mean=sum(values) / len(values), max=max(values)) if values else None

    def _loop(self) -> None:
        psutil.cpu_percent()  # the next call in this thread returns the share since this one
        while not self._ended.wait(self.interval_s):
            self._samples.append(self._read())
        self._samples.append(self._read())

    def _read(self) -> Sample:
        now_s, processes = time.monotonic(), self._processes()
        # All CPU time of a new process is since the previous reading.
        used_s = sum(cpu_s - self._cpu_s.get(process, 0.0) for process, cpu_s, _ in processes)
        elapsed_s = max(now_s - self._last_s, 1e-9)
        self._last_s = now_s
        self._cpu_s = {process: cpu_s for process, cpu_s, _ in processes}
        self._processes_cpu_s += used_s
        return Sample(
            at_s=now_s - self._started_s,
            machine_cpu_percent=psutil.cpu_percent(),
            processes_cpu_percent=100 * used_s / elapsed_s,
            processes_rss_bytes=sum(rss for _, _, rss in processes),
            gpus=tuple(use for handle in self._handles if (use := read_use(self._nvml, handle)) is not None),
        )

    def _processes(self) -> list[tuple[psutil.Process, float, int]]:
        """Return (process, CPU-seconds, RSS bytes) of `pids` and their descendants, each once."""
        processes = {process for pid in self._pids for process in family(pid)}
        return [reading for process in processes if (reading := _reading(process)) is not None]

    def _open_gpus(self) -> None:
        self._handles = []
        self._nvml = self._nvml or load_nvml()
        if self._nvml is not None:
            with suppress(self._nvml.NVMLError):
                self._gpus.enter_context(session(self._nvml))
                self._handles = [handle for _, handle in handles(self._nvml)[0]]


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
