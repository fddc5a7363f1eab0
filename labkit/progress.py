"""How a batch run shows itself: on a terminal one live line, elsewhere one line when a lab starts and one when it ends.

Everything goes to stderr: stdout belongs to results.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO


def clock(seconds: float) -> str:
    """Minutes and seconds: "3:07"."""
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


def now_and_then(
    say: Callable[[str], None], *, every_s: float = 10.0, now: Callable[[], float] = time.monotonic
) -> Callable[[str], None]:
    """`say` for a wait that is told of many times a second: the first text, then one every `every_s` seconds."""
    due_s = now()

    def tell(text: str) -> None:
        nonlocal due_s
        if now() >= due_s:
            due_s = now() + every_s
            say(text)

    return tell


class Progress:
    """Lab k of n, its cell, the time so far, and about how long the rest takes (`estimates_s` by lab)."""

    def __init__(
        self,
        labs: Sequence[str],
        estimates_s: Mapping[str, float],
        *,
        stream: TextIO | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._labs, self._estimates_s = list(labs), dict(estimates_s)
        self._stream, self._now = stream or sys.stderr, now
        self._live = self._stream.isatty()
        self._index, self._cell, self._cells = -1, 0, 0
        self._started_s, self._drawn_s = now(), 0.0

    def lab_started(self, lab: str) -> None:
        """A lab begins."""
        self._index, self._cell, self._cells = self._labs.index(lab), 0, 0
        self._started_s = self._now()
        if not self._live:
            self._print(f"{self._position()}: about {clock(self._estimates_s[lab])}, all about {clock(self.left_s())}")

    def cell_started(self, index: int, total: int) -> None:
        """A cell of the lab begins (`index` from 0)."""
        self._cell, self._cells = index + 1, total

    def tick(self) -> None:
        """Redraws the live line, at most once a second."""
        if self._live and self._now() - self._drawn_s >= 1:
            self._drawn_s = self._now()
            cell = f", cell {self._cell} of {self._cells}" if self._cells else ""
            elapsed = clock(self._now() - self._started_s)
            self._stream.write(f"\r\x1b[2K{self._position()}{cell}, {elapsed}, about {clock(self.left_s())} left")
            self._stream.flush()

    def lab_ended(self, lab: str, status: str, seconds: float, detail: str = "") -> None:
        """A lab is over: its line stays."""
        if self._live:
            self._stream.write("\r\x1b[2K")
        self._print(f"{self._position(lab)}: {status} in {clock(seconds)}{f' - {detail}' if detail else ''}")

    def left_s(self) -> float:
        """The rest in seconds: what the current lab has left of its estimate, and the labs after it."""
        if self._index < 0:
            return sum(self._estimates_s[lab] for lab in self._labs)
        current = self._estimates_s[self._labs[self._index]] - (self._now() - self._started_s)
        return max(0.0, current) + sum(self._estimates_s[lab] for lab in self._labs[self._index + 1 :])

    def _position(self, lab: str = "") -> str:
        index = self._labs.index(lab) if lab else self._index
        return f"[{index + 1}/{len(self._labs)}] {self._labs[index]}"

    def _print(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()
