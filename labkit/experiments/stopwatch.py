"""Measure wall seconds and CPU-seconds of a block of code."""

import time
from types import TracebackType
from typing import NoReturn, Self

from labkit.errors import UsageError


class Stopwatch:
    """Wall seconds and CPU-seconds of a block of code. Waiting for a busy core adds to wall seconds only.

    Load on the same core (its other hardware thread, another virtual machine) adds to both, because the core does less
    per second. Compare in rounds or in turns.

        with Stopwatch() as watch:
            ...
        watch.wall_s, watch.own_cpu_s

    Attributes, in seconds, readable after the block (before its end: UsageError):
        wall_s: elapsed.
        own_cpu_s: CPU of this process alone, all threads, user and system.
    """

    wall_s: float
    own_cpu_s: float

    def __getattr__(self, name: str) -> NoReturn:
        if name not in Stopwatch.__annotations__:
            raise AttributeError(name)
        raise UsageError("the stopwatch has no reading yet", remedy="read it after its `with` block")

    def __enter__(self) -> Self:
        for name in Stopwatch.__annotations__:
            self.__dict__.pop(name, None)
        # The wall clock is read last when a block opens, first when it closes.
        self._before = time.process_time(), time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wall_s, own_s = time.perf_counter(), time.process_time()
        own_before_s, wall_before_s = self._before
        self.wall_s, self.own_cpu_s = wall_s - wall_before_s, own_s - own_before_s
