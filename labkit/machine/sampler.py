"""How busy the machine was while something ran: a thread that reads CPU, memory and GPUs at a fixed interval."""

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import psutil

from labkit.machine import gpus as gpu_room
from labkit.machine.gpus import GpuUse


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One reading, since the one before. Machine CPU: 100 is every core busy. Processes' CPU: 100 is one core busy."""

    at_s: float
    machine_cpu_percent: float
    processes_cpu_percent: float
    processes_rss_bytes: int
    gpus: tuple[GpuUse, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Span:
    """Mean and highest value of what was sampled."""

    mean: float
    max: float


@dataclass(frozen=True, kw_only=True)
class UseSummary:
    """All of a sampler's readings. `processes_cpu_s`: CPU-seconds of the given processes and their descendants."""

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

    The processes are the given ones with all their descendants, looked up anew each time: they may end, or start
    others. RSS counts a page that several of them share once for each.
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
        """Takes the zero reading and starts the thread. A second start of a running sampler changes nothing."""
        if self._thread is None:
            self._open_gpus()
            self._ended.clear()
            self._started_s = self._last_s = time.monotonic()
            self._machine = psutil.cpu_times()
            self._cpu_s = {process: cpu_s for process, cpu_s, _ in self._processes()}
            self._thread = threading.Thread(target=self._loop, name="labkit-sampler", daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """Takes a last reading and ends the thread; does nothing where none runs."""
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
        """Mean and maximum of everything sampled so far; None where there was nothing to sample."""
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
        while not self._ended.wait(self.interval_s):
            self._samples.append(self._read())
        self._samples.append(self._read())

    def _read(self) -> Sample:
        now_s, machine, processes = time.monotonic(), psutil.cpu_times(), self._processes()
        # A process that was not there before has used all its CPU time since.
        used_s = sum(cpu_s - self._cpu_s.get(process, 0.0) for process, cpu_s, _ in processes)
        share = machine_cpu_percent(self._machine, machine)
        elapsed_s = max(now_s - self._last_s, 1e-9)
        self._last_s, self._machine = now_s, machine
        self._cpu_s = {process: cpu_s for process, cpu_s, _ in processes}
        self._processes_cpu_s += used_s
        return Sample(
            at_s=now_s - self._started_s,
            machine_cpu_percent=share,
            processes_cpu_percent=100 * used_s / elapsed_s,
            processes_rss_bytes=sum(rss for _, _, rss in processes),
            gpus=tuple(use for each in self._handles if (use := gpu_room.read_use(self._nvml, each)) is not None),
        )

    def _processes(self) -> list[tuple[psutil.Process, float, int]]:
        """(process, CPU-seconds, RSS bytes) of the roots and their descendants that are there now, each once."""
        found: set[psutil.Process] = set()
        for pid in self._pids:
            found.update(family(pid))
        readings = (_reading(process) for process in found)
        return [reading for reading in readings if reading is not None]

    def _open_gpus(self) -> None:
        self._nvml = self._nvml or gpu_room.load_nvml()
        if self._nvml is None:
            return
        try:
            self._gpus.enter_context(gpu_room.session(self._nvml))
            self._handles = [handle for _, handle in gpu_room.handles(self._nvml)[0]]
        except self._nvml.NVMLError:
            self._handles = []


def family(pid: int) -> list[psutil.Process]:
    """The process and all its descendants; empty once it has ended."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def machine_cpu_percent(before: Any, after: Any) -> float:
    """Share of all cores' time between two `psutil.cpu_times()` that was neither idle nor waiting for a disk, 0-100."""
    fields = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    spent = {name: max(0.0, getattr(after, name, 0.0) - getattr(before, name, 0.0)) for name in fields}
    total = sum(spent.values())
    return 100 * (total - spent["idle"] - spent["iowait"]) / total if total else 0.0


def _reading(process: psutil.Process) -> tuple[psutil.Process, float, int] | None:
    try:
        with process.oneshot():
            times, rss = process.cpu_times(), process.memory_info().rss
    except psutil.Error:  # it ended between the list and the reading
        return None
    return process, times.user + times.system, rss
