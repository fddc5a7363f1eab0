"""Reads what vLLM's log says of memory, explains each line and recomputes it.

Takes the text of a log: of `vllm serve` or of an engine in process, with colours and process names or without; an error
message will do, too. The wording is vLLM 0.32's (`labkit.startup_lines`); a line that is not about memory is passed
over. Nothing here starts or asks an engine.
"""

import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

from labkit.errors import UsageError
from labkit.models import Architecture
from labkit.startup_lines import READERS, State

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# (EngineCore pid=8505) INFO 11-24 07:31:58 [kv_cache_utils.py:2327] ...
PREFIX = re.compile(
    r"^(?:\([^)]*pid=\d+\) )?(?:(?:DEBUG|INFO|WARNING|ERROR) )?(?:\d\d-\d\d \d\d:\d\d:\d\d )?(?:\[[\w./]+:\d+\] )?"
)
CELL = "text-align:left;vertical-align:top;white-space:normal;padding:.3em .6em"


@dataclass(frozen=True, kw_only=True)
class MemoryLine:
    """One line of a log that is about memory. `number` counts the log's lines from 1.

    `recomputed`: what should stand there, with the arithmetic; empty where what is known does not tell. `agrees`:
    whether it does stand there; None where there is nothing to compare.
    """

    number: int
    kind: str
    text: str
    meaning: str
    recomputed: str = ""
    agrees: bool | None = None

    @property
    def check(self) -> str:
        """The recomputation and whether the line agrees with it."""
        verdict = {True: " - agrees", False: " - DIFFERS", None: ""}[self.agrees]
        return f"{self.recomputed}{verdict}" if self.recomputed else ""


@dataclass(frozen=True, repr=False)
class Reading:
    """The memory lines of a log, in its order. In a notebook it shows itself as a table."""

    lines: tuple[MemoryLine, ...]

    @property
    def agrees(self) -> bool:
        """Whether there are lines that could be compared with what was computed, and all of them agree."""
        compared = [line.agrees for line in self.lines if line.agrees is not None]
        return bool(compared) and all(compared)

    def of(self, kind: str) -> tuple[MemoryLine, ...]:
        """The lines of one kind (a name in `startup_lines.READERS`)."""
        return tuple(line for line in self.lines if line.kind == kind)

    def __str__(self) -> str:
        parts = [(f"{line.number}: {line.text}", line.meaning, line.check) for line in self.lines]
        return "\n\n".join("\n  ".join(filter(None, part)) for part in parts)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        heads = ("line", "the log says", "it means", "recomputed")
        head = "".join(f"<th style='{CELL}'>{name}</th>" for name in heads)
        rows = "".join(
            f"<tr><td style='{CELL}'>{line.number}</td><td style='{CELL}'><code>{escape(line.text)}</code></td>"
            f"<td style='{CELL}'>{escape(line.meaning)}</td><td style='{CELL}'>{escape(line.check)}</td></tr>"
            for line in self.lines
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def read_text(file: Path | str) -> str:
    """The text of a log file. UsageError: there is none, or it cannot be read."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise UsageError(f"there is no log file {file}", remedy="name a file, or leave it empty for the lab's own log")
    return path.read_text(encoding="utf-8", errors="replace")


def read(text: str, *, architecture: Architecture | None = None, block_size: int | None = None) -> Reading:
    """The memory lines of a log's text, explained, and with the model's `architecture` recomputed.

    `architecture`: as its config says; a number type that the log names goes before the config's. `block_size`: for a
    log that names none (default: vLLM's for the device).
    """
    state = State(architecture=architecture, given_block_size=block_size)
    found = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = PREFIX.sub("", COLOUR.sub("", raw).strip())
        for kind, (pattern, explain) in READERS.items():
            match = pattern.search(line)
            if match is None:
                continue
            said = explain(match, state)
            if said is not None:
                found.append(
                    MemoryLine(
                        number=number,
                        kind=kind,
                        text=said.shown or line,
                        meaning=said.meaning,
                        recomputed=said.recomputed,
                        agrees=said.agrees,
                    )
                )
            break
    return Reading(tuple(found))
