"""Restore a log's original lines from what journald, Kubernetes, Ray, a terminal and others add or cut."""

import contextlib
import gzip
import io
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from labkit.errors import UsageError
from labkit.serving.log_carriers import Entry

NARROWEST, LONGEST_WORD = 40, 25  # columns of a terminal; characters that an editor moves to the next line
WINDOW = 60  # most lines of a wrapped message: vLLM's longest has about 4,000 characters
# Colours; rsyslog writes the escape as #033, and a paste into a web page drops it.
COLOUR = re.compile(r"(?:\x1b|#033)?\[[\d;]+m|\x1b\[[\d;?]*[A-Za-ln-z]")
# The start of a new log line. Other lines may continue one that a terminal wrapped.
BEGINS = re.compile(
    r".{0,300}?(?:\(\w[^()]*pid=\d+|(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d )"
    r"|\s*\[?(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\b|\d{4}-\d\d-\d\d|\w{3} +\d+ \d\d:\d\d:"
    r"|\d\d/\d\d/\d\d|rank\d+\]:|pod/)"
    r"|[\w.-]+ +\| |Traceback \(most recent|Loading \w+ checkpoint shards"
)
# (VllmWorker rank=1 pid=12) (VllmWorker TP1 pid=12) (Worker_DP1_PP0_TP3_EP3 pid=12) (EngineCore_DP0 pid=12)
RANK = re.compile(r"Worker rank=(\d{1,6})|Worker(?:[_ ]DP\d+)?((?:[_ ](?:PP|PCP|TP|DCP)\d{1,6})+)")
ENGINE = re.compile(r"[_ ]DP(\d+)|\bEngineCore_(\d+)")
# (VllmWorkerProcess pid=12) (RayWorkerWrapper pid=12, ip=10.0.0.2)
PROCESS = re.compile(r"\b(?:VllmWorkerProcess|RayWorker\w*) pid=(\d+)(?:, ip=([\w.:]+))?")


@dataclass(frozen=True)
class Worker:
    """The process that wrote a line. `label`: its rank, such as "TP1", or its process; `engine`: its data-parallel
    rank. Empty, and `rank` None, if unknown."""

    label: str = ""
    rank: int | None = None
    engine: str = ""


@dataclass(frozen=True)
class Line:
    """A line without colours; `number` counts from 1. `begins`: it does not continue the previous line."""

    number: int
    text: str
    begins: bool


@contextlib.contextmanager
def open_log(file: Path | str) -> Iterator[TextIO]:
    """Open a log as text ("-": standard input), also gzip and UTF-16; replace undecodable bytes. UsageError if it
    cannot be read."""
    path = Path(file).expanduser()
    remedy = "name the log that vLLM wrote, or - to read it from a pipe"
    piped = str(file) == "-"
    if not piped and (path.is_dir() or not path.exists()):
        raise UsageError(f"there is no log file {file}", remedy=remedy)
    try:
        with contextlib.ExitStack() as stack:
            source: int | Path = sys.stdin.fileno() if piped else path
            buffer: io.BufferedReader[Any] = stack.enter_context(open(source, "rb", closefd=not piped))
            if buffer.peek(2)[:2] == b"\x1f\x8b":
                buffer = io.BufferedReader(gzip.GzipFile(fileobj=buffer))
            encoding = "utf-16" if buffer.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
            yield io.TextIOWrapper(buffer, encoding=encoding, errors="replace", newline="\n")
    except (OSError, EOFError) as error:
        raise UsageError(f"{file} cannot be read: {error}", remedy=remedy) from None


def records(entries: Iterable[Entry]) -> Iterator[list[Line]]:
    """Group the log's lines: one that begins, and those that may continue it. Memory is bounded."""
    record: list[Line] = []
    for line in _lines(entries):
        if record and (line.begins or len(record) > WINDOW):
            yield record
            record = []
        record.append(line)
    if record:
        yield record


def readings(record: list[Line], at: int) -> list[str]:
    """Return the possible originals of the line `at` of a record: alone, and joined with the lines after it.

    A terminal cuts at its width, inside a word or at a space, which is lost; an editor cuts between words.
    """
    texts = [line.text for line in record[at:]]
    width = max(map(len, texts[:-1]), default=0)
    if len(texts[0]) < max(NARROWEST, width - LONGEST_WORD):  # too short to be cut by a terminal
        return texts[:1]
    cut = "".join(text if len(text) == width else f"{text} " for text in texts)
    return [texts[0], cut, " ".join(text.strip() for text in texts)]


def worker(prefix: str) -> Worker:
    """Parse the writer of a line from the text before its message."""
    engine = next((match[1] or match[2] for match in ENGINE.finditer(prefix)), "")
    if match := RANK.search(prefix):
        label = match[2].replace("_", " ").strip() if match[2] else f"rank {match[1]}"
        return Worker(label, int(re.findall(r"\d+", label)[-1]), engine)
    processes = [f"process {pid} on {ip}" if ip else f"process {pid}" for pid, ip in PROCESS.findall(prefix)]
    return Worker(processes[-1] if processes else "", None, engine)


def _lines(entries: Iterable[Entry]) -> Iterator[Line]:
    number = 0
    for number, texts in entries:
        if isinstance(texts, str):
            parts = COLOUR.sub("", texts).splitlines()
        else:  # fields, of which a short one may name the process
            texts = [COLOUR.sub("", text) for text in texts]
            names = (text for text in texts if len(text) < 40 and (RANK.search(text) or ENGINE.search(text)))
            process = next(names, "")
            parts = [f"INFO {process} {line}" for text in texts for line in text.splitlines()]
        for part in parts:
            if part.strip():
                yield Line(number, part, BEGINS.match(part) is not None)
    yield Line(number, "", begins=True)  # carries the number of lines
