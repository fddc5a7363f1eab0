"""Read a log of vLLM 0.5 to 0.32: explain and recompute the lines about memory, explain failures, suggest changes."""

import io
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from html import escape
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, TextIO

from labkit.models import Architecture
from labkit.serving import log_carriers, log_readers  # noqa: F401  # log_readers fills READERS
from labkit.serving.log_engine import READERS, Engine
from labkit.serving.log_failures import CONSEQUENCE, READY, SERVED, UNKNOWN
from labkit.serving.log_lines import Line, Worker, open_log, readings, records, worker

KEPT = 100  # the last lines of a kind: a server writes statistics for months
# Every line that is explained contains one of these; searching for them first is ten times as fast.
HINTS = (
    "KV cache", "GiB", "weights took", "memory", "blocks", "args: ", "LLM engine", "asting torch", "max model len",
    "max seq len", "max_model_len", "type to store", "attention block size", "concurrency", "ALLOC_FAILED",
    "MemoryAllocation", "137", "OOMKilled", "/dev/shm", "oom-kill", "calloc", "Error", "Exception", "Errno", "NCCL",
    "gated repo", "Not Found for url", "is restricted", "custom code", "CUDA GPUs", "NVIDIA driver", "driver version",
    "kernel image", "CUDA error", "No space left", "us error", "SIGBUS", "Watchdog", "EngineCore enc", "died unexp",
    "core proc", "not a local folder", "already in use", "startup complete",
)  # fmt: skip
HARMLESS = ("preempted", "swap_space")
"""Kinds with a remedy that end no start."""
# Of docker compose, of kubectl logs --prefix, and of Ray Serve.
SERVICE = re.compile(
    r"(?!(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\b)(?=[\w.-]*[A-Za-z])([\w.-]+) +\| "
    r"|\[pod/([^/]+)/|\((ServeReplica:\S+ pid=\d+)"
)
CELL = "text-align:left;vertical-align:top;white-space:normal;padding:.3em .6em"


@dataclass(frozen=True)
class MemoryLine:
    """One line about memory. `number` counts the log's lines from 1; `rank` is the writer, if known.

    `recomputed`: the expected figure and its arithmetic, or "". `agrees`: None if nothing could be compared. `fix`:
    what to change after a failure.
    """

    number: int
    kind: str
    text: str
    meaning: str
    recomputed: str = ""
    agrees: bool | None = None
    fix: str = ""
    rank: str = ""

    @property
    def check(self) -> str:
        verdict = {True: "agrees", False: "DIFFERS", None: "not compared"}[self.agrees]
        return f"{self.recomputed} - {verdict}" if self.recomputed else "nothing to compare with"

    @property
    def explained(self) -> str:
        return f"{self.meaning} To change: {self.fix}." if self.fix else self.meaning


@dataclass(frozen=True, repr=False)
class MemoryLog:
    """The memory lines of a log's last start; a table in a notebook.

    `kv_tokens`: capacity of one engine's cache, or None if not logged. `starts`: consecutive engine starts in the log.
    `lines_read`: all lines of the log.
    """

    lines: tuple[MemoryLine, ...]
    kv_tokens: int | None = None
    starts: int = 0
    lines_read: int = 0
    notes: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool | None:
        """Whether all compared lines agree; None without any."""
        compared = [line.agrees for line in self.lines if line.agrees is not None]
        return all(compared) if compared else None

    def of(self, kind: str) -> tuple[MemoryLine, ...]:
        """The lines of one kind, such as "cache_size"."""
        return tuple(line for line in self.lines if line.kind == kind)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "agrees": self.agrees}

    def __str__(self) -> str:
        parts = [
            (f"{line.number}: {f'[{line.rank}] ' if line.rank else ''}{line.text}", line.explained, line.check)
            for line in self.lines
        ]
        return "\n\n".join([*(f"note: {note}" for note in self.notes), *("\n  ".join(part) for part in parts)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='{CELL}'>{name}</th>" for name in ("line", "the log says", "it means", "recomputed"))
        rows = "".join(
            f"<tr><td style='{CELL}'>{line.number}</td><td style='{CELL}'><code>{escape(line.text)}</code></td>"
            f"<td style='{CELL}'>{escape(line.explained)}</td><td style='{CELL}'>{escape(line.check)}</td></tr>"
            for line in self.lines
        )
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return f"{notes}<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def read(
    log: str | TextIO, *, architecture: Architecture | None = None, tensor_parallel: int | None = None
) -> MemoryLog:
    """Explain the memory lines of a log; recompute them with the model's `architecture`.

    A number type in the log overrides the config's. `tensor_parallel`: GPUs that share the model, for a log that does
    not say. A log of lines is read once, in bounded memory.
    """
    engine = Engine(architecture, tensor_parallel)
    kept: dict[str, deque[MemoryLine]] = {}
    starts, first, last, left_out = 0, 1, 0, 0
    services, current, mixed, failed = set[str](), "", False, ""
    notes, entries = log_carriers.entries(io.StringIO(log) if isinstance(log, str) else log)
    for record in records(entries):
        last = record[-1].number
        for number, kind, match, source in _statements(record):
            engine.worker = source
            if service := SERVICE.match(record[0].text):
                name = next(filter(None, service.groups()))
                if name != current and name in services:  # its lines come again after another's
                    begins = kind in ("arguments", "engine")  # as in a restart
                    mixed = not begins
                    services = set() if begins else services
                services.add(name)
                current = name
            if engine.starts_again(kind):
                for line in (line for line in _causes(kept) if line.kind not in HARMLESS and line.fix):
                    failed = f"start {starts + 1} ended with an error, line {line.number:,}: {line.meaning}"
                engine, kept, first = Engine(architecture, tensor_parallel, worker=source), {}, number
                starts += 1
            engine.kinds.add((kind, source.engine, source.label))
            engine.ranks |= set() if source.rank is None else {source.rank}
            if kind in SERVED and len(services) < 2:  # what failed before did not end this start
                kept = {
                    name: lines
                    for name, lines in kept.items()
                    if name != UNKNOWN and not lines[0].meaning.startswith("No start")
                }
            if kind == READY or (kind == UNKNOWN and kind in kept):
                continue
            means = READERS[kind][1](match, engine)
            text = means.shown or " ".join(match[0].split())
            lines = kept.setdefault(kind, deque(maxlen=KEPT))
            if means.fix and any(line.text == text for line in lines):  # every rank repeats an error
                continue
            left_out += len(lines) == KEPT
            lines.append(
                MemoryLine(number, kind, text, means.meaning, means.recomputed, means.agrees, means.fix, source.label)
            )
    result = _causes(kept)
    if mixed:  # settings of one engine would be applied to the sizes of another
        result = tuple(replace(line, agrees=None) for line in result)
    notes += [
        *([f"the lines of {', '.join(sorted(services))} are mixed: pass the log of one"] if mixed else []),
        *([failed] if failed else []),
        *([f"the log has {starts + 1} starts; this is the last one, from line {first:,}"] if starts else []),
        *([f"{left_out:,} earlier lines are omitted: the last {KEPT} of a kind are shown"] if left_out else []),
        *engine.notes(),
    ]
    kv_tokens = None if mixed else min(engine.sizes.values(), default=None)
    return MemoryLog(result, kv_tokens, starts + 1 if result else 0, last, tuple(notes))


def _causes(kept: Mapping[str, Iterable[MemoryLine]]) -> tuple[MemoryLine, ...]:
    """Return the lines in order, without what follows from a failure that is explained."""
    lines = sorted(chain.from_iterable(kept.values()), key=lambda line: line.number)
    unknown = [line for line in lines if line.kind == UNKNOWN]
    explained = any(line.fix and line.kind not in (*HARMLESS, CONSEQUENCE, UNKNOWN) for line in lines)
    shown = [] if explained else unknown or [line for line in lines if line.kind == CONSEQUENCE]
    return tuple(line for line in lines if line.kind not in (CONSEQUENCE, UNKNOWN) or line in shown)


def read_text(file: Path | str) -> str:
    """Return the text of a log file. UsageError if it cannot be read."""
    with open_log(file) as stream:
        return stream.read()


def _statements(record: list[Line]) -> Iterator[tuple[int, str, re.Match[str], Worker]]:
    """Yield the statements about memory in a record: line number, kind, match and writer."""
    parsed = 0  # characters without spaces
    ends = list(accumulate(len(line.text.replace(" ", "")) for line in record))
    for at, line in enumerate(record):
        if at and ends[at - 1] < parsed:  # the end of a wrapped line
            continue
        start = line.text + (record[at + 1].text if at + 1 < len(record) else "")
        if not any(hint in start for hint in HINTS):
            continue
        for kind, (pattern, _) in READERS.items():
            # The start of a cut line may match alone: "# GPU blocks: 13" is the first half of 1381.
            matches = [match for text in readings(record, at) if (match := pattern.search(text))]
            matches = [match for match in matches if match.start() < len(line.text)]
            if matches:
                # An unknown error takes no line that may hold the start of a known one.
                match = (
                    matches[0] if kind == UNKNOWN else max(matches, key=lambda match: len(match[0].replace(" ", "")))
                )
                prefix = match.string[: match.start()]
                before = ends[at - 1] if at else 0
                parsed = 0 if kind == UNKNOWN else before + len(match.string[: match.end()].replace(" ", ""))
                if not re.search("['\"]", prefix):  # else it is quoted in a request's prompt or an error
                    yield line.number, kind, match, worker(f"{record[0].text} {prefix}" if at else prefix)
                break
