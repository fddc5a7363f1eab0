"""How a batch run shows itself: on a terminal one live line, elsewhere one line when a lab starts and one when it ends.

Everything goes to stderr: stdout belongs to results.
"""

import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass
class _Shown:
    """A lab that runs. `cell` from 1; `cells` is 0 before the first."""

    started_s: float
    cell: int = 0
    cells: int = 0

    @property
    def where(self) -> str:
        return f", cell {self.cell} of {self.cells}" if self.cells else ""


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
        self._waiting, self._running = dict.fromkeys(labs), dict[str, _Shown]()
        self._drawn_s = 0.0

    def lab_started(self, lab: str) -> None:
        """A lab begins; others may be running."""
        self._waiting.pop(lab, None)
        self._running[lab] = _Shown(started_s=self._now())
        if not self._live:
            rest = f"about {clock(self._estimates_s[lab])}, all about {clock(self.left_s())}"
            self._print(f"{self._position(lab)}: {rest}")

    def cell_started(self, index: int, total: int, *, lab: str = "") -> None:
        """A cell of the lab (default: the one that runs) begins (`index` from 0)."""
        for name in [lab] if lab else self._running:
            if shown := self._running.get(name):
                shown.cell, shown.cells = index + 1, total

    def tick(self) -> None:
        """Redraws the live line, at most once a second."""
        if self._live and self._running and self._now() - self._drawn_s >= 1:
            self._drawn_s = self._now()
            labs = " + ".join(f"{self._position(lab)}{shown.where}" for lab, shown in self._running.items())
            elapsed = clock(self._now() - min(shown.started_s for shown in self._running.values()))
            line = f"{labs}, {elapsed}, about {clock(self.left_s())} left"
            self._stream.write(f"\r\x1b[2K{line[: shutil.get_terminal_size().columns - 1]}")
            self._stream.flush()

    def note(self, text: str) -> None:
        """One line that stays, whatever runs."""
        if self._live:
            self._stream.write("\r\x1b[2K")
        self._print(text)

    def lab_ended(self, lab: str, status: str, seconds: float, detail: str = "") -> None:
        """A lab is over: its line stays."""
        self._running.pop(lab, None)
        self.note(f"{self._position(lab)}: {status} in {clock(seconds)}{f' - {detail}' if detail else ''}")

    def left_s(self) -> float:
        """The rest in seconds: what the running labs have left of their estimates, and those that wait.

        Labs that run at the same time share what waits; the longest of them is the least that it can take.
        """
        now = self._now()
        running = [max(0.0, self._estimates_s[lab] - (now - it.started_s)) for lab, it in self._running.items()]
        waiting = sum(self._estimates_s[lab] for lab in self._waiting)
        return max(max(running, default=0.0), (sum(running) + waiting) / max(1, len(running)))

    def _position(self, lab: str) -> str:
        return f"[{self._labs.index(lab) + 1}/{len(self._labs)}] {lab}"

    def _print(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()
