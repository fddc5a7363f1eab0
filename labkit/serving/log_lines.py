"""The lines of a log as its program wrote them, whatever carried them: journald, Kubernetes, Ray, a terminal."""

import contextlib
import gzip
import io
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from labkit.errors import UsageError

LONGEST_LINE = 65_536  # characters; the rest of a longer line is skipped
NARROWEST, LONGEST_WORD = 40, 25  # columns of a terminal; characters that an editor takes to the next line
WINDOW = 60  # lines over which a terminal may have wrapped one: vLLM's longest message is about 4,000 characters
# Colours; rsyslog writes the escape as #033, and a paste into a web page drops it.
COLOUR = re.compile(r"(?:\x1b|#033)?\[[\d;]+m|\x1b\[[\d;?]*[A-Za-ln-z]")
# What a new line of a log starts with. Anything else may be the rest of a line that a terminal wrapped.
BEGINS = re.compile(
    r".{0,100}?(?:\(\w[^()]*pid=\d+|(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d )"
    r"|\s*(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\b|\d{4}-\d\d-\d\d|\w{3} +\d+ \d\d:\d\d:"
    r"|[\w.-]+ +\| |\[\d{4}-)"
)
# (VllmWorker rank=1 pid=12) (VllmWorker TP1 pid=12) (Worker_DP1_PP0_TP3_EP3 pid=12) (EngineCore_DP0 pid=12)
RANK = re.compile(r"Worker rank=(\d{1,6})|Worker(?:[_ ]DP\d+)?((?:[_ ](?:PP|PCP|TP|DCP)\d{1,6})+)")
ENGINE = re.compile(r"[_ ]DP(\d+)|\bEngineCore_(\d+)")
# (VllmWorkerProcess pid=12) (RayWorkerWrapper pid=12, ip=10.0.0.2)
PROCESS = re.compile(r"\b(?:VllmWorkerProcess|RayWorker\w*) pid=(\d+)(?:, ip=([\w.:]+))?")


@dataclass(frozen=True)
class Worker:
    """Who wrote a line. `label`: its rank, such as "TP1", or its process; `engine`: its data parallel rank.

    Both are empty and `rank` is None where the line does not say.
    """

    label: str = ""
    rank: int | None = None
    engine: str = ""


@dataclass(frozen=True)
class Line:
    """A line, counted from 1, without colours. `begins`: it is not the rest of the line before."""

    number: int
    text: str
    begins: bool


@contextlib.contextmanager
def open_log(file: Path | str) -> Iterator[TextIO]:
    """A log as text, "-" for standard input; also gzip and UTF-16, and bytes that are no text do not end the reading.

    UsageError: there is no such file, or it cannot be read.
    """
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


def records(stream: TextIO) -> Iterator[list[Line]]:
    """The log's lines in groups: one that begins, and those after it that may be its rest. Memory stays bounded."""
    record: list[Line] = []
    for line in _lines(stream):
        if record and (line.begins or len(record) > WINDOW):
            yield record
            record = []
        record.append(line)
    if record:
        yield record


def readings(record: list[Line], at: int) -> list[str]:
    """What the line `at` of a record may say: alone, and with the lines after it put together again.

    A terminal cuts at its width, within a word or at a space that is then lost; an editor cuts between words.
    """
    texts = [line.text for line in record[at:]]
    width = max(map(len, texts[:-1]), default=0)
    if len(texts[0]) < max(NARROWEST, width - LONGEST_WORD):  # no terminal would have cut it here
        return texts[:1]
    cut = "".join(text if len(text) == width else f"{text} " for text in texts)
    return [texts[0], cut, " ".join(text.strip() for text in texts)]


def worker(prefix: str) -> Worker:
    """Who wrote a line, from what comes before its message."""
    engine = next((found[1] or found[2] for found in ENGINE.finditer(prefix)), "")
    if found := RANK.search(prefix):
        label = found[2].replace("_", " ").strip() if found[2] else f"rank {found[1]}"
        return Worker(label, int(re.findall(r"\d+", label)[-1]), engine)
    processes = [f"process {pid} on {ip}" if ip else f"process {pid}" for pid, ip in PROCESS.findall(prefix)]
    return Worker(processes[-1] if processes else "", None, engine)


def _lines(stream: TextIO) -> Iterator[Line]:
    number = 0
    while raw := stream.readline(LONGEST_LINE):
        number += 1
        rest = raw
        while rest and not rest.endswith("\n"):  # the end of a line that is too long to keep
            rest = stream.readline(LONGEST_LINE)
        text = COLOUR.sub("", raw)
        for part in _unpacked(text.rstrip("\r\n")) or text.splitlines():
            if part.strip():
                yield Line(number, part, BEGINS.match(part) is not None)
    yield Line(number, "", begins=True)  # how many there were


def _unpacked(text: str) -> list[str]:
    """The lines in the fields of a line of JSON, each after the name of the process; empty where it is none."""
    start = text.find('{"')
    if start < 0 or not text.endswith("}"):
        return []
    try:
        values = json.loads(text[start:]).values()
        # journald writes a message with colours in it as a list of bytes
        fields = [bytes(value).decode(errors="replace") if isinstance(value, list) else value for value in values]
    except (ValueError, TypeError):
        return []
    fields = [COLOUR.sub("", field) for field in fields if isinstance(field, str)]
    names = (field for field in fields if len(field) < 40 and (RANK.search(field) or ENGINE.search(field)))
    process = next(names, "")
    return [f"INFO {process} {line}" for field in fields for line in field.splitlines()]
