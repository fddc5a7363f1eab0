"""Unpack a log from what carries it: JSON and CSV that log services export, in lines or as one document, newest or
oldest entry first.

No service is known by name. An entry is an object or a row, its texts are all its strings, and a text is a part of the
log if it is one of vLLM's statements; other texts (names, times, labels) match none.
"""

import contextlib
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, TextIO

from labkit.errors import UsageError

LONGEST_LINE = 65_536  # characters; the rest of a longer line is skipped
ORDER_SAMPLE = 2_000  # entries whose times show whether the newest comes first
NEWEST_FIRST = "the log has its newest entries first: it is read, and its lines are counted, from the end"
DOCUMENT = re.compile(r"\s*(?:\[\s*(?:[\[{\"]|$)|\{\s*(?:\"|$))")
"""The start of JSON, and not of a log line in brackets."""
HEADER = re.compile(
    r"(?=[^\n]*(?i:message|content|log|line))(?!.*, )\"?@?[A-Za-z_][\w .\[\]]*\"?(?:,\"?[\w@.\[\] ]+\"?)+$"
)
# A line of indented JSON or of YAML.
VALUE = re.compile(r"\s*\"?(?i:\w*(?:message|payload|content|entry|log|line))\"?: (?:(\".*\")|'(.*)'),?$")
# Labels of Loki: {app="vllm", pod="vllm-0"}
LABELS = re.compile(r"\{\w+=\"[^\"]*\"(?:, ?\w+=\"[^\"]*\")*\} ?")
# The forms of a time: 2026-11-28T10:00:00.123, vLLM's 11-28 10:00:00, and milliseconds or nanoseconds since 1970.
TIME = re.compile(
    r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?)|\b(\d\d-\d\d \d\d:\d\d:\d\d)\b|^(1\d{12})\b|^(1\d{18})\b",
    re.MULTILINE,
)
WORD = re.compile(r"\S")
Entry = tuple[int, str | list[str]]
"""The number of a line and its text; or the number of an entry and the texts in it."""


def entries(stream: TextIO) -> tuple[list[str], Iterator[Entry]]:
    """Return notes on the carrier, and the log's entries, oldest first.

    A log of lines, oldest first, is read in bounded memory; a document, and a log with its newest entry first, is held.
    """
    numbered = _entries(stream)
    sample = list(islice(numbered, ORDER_SAMPLE))
    if not _newest_first(sample):
        return [], chain(sample, numbered)
    texts = [texts for _, texts in chain(sample, numbered)]
    return [NEWEST_FIRST], enumerate(reversed(texts), start=1)


def _newest_first(sample: Iterable[Entry]) -> bool:
    """Whether times fall more often than they rise from one entry to the next."""
    first: dict[int | None, str] = {}  # by form
    last: dict[int | None, str] = {}
    falls = rises = 0
    for _, texts in sample:
        text = texts if isinstance(texts, str) else "\n".join(texts)
        times = {match.lastindex: match[0] for match in reversed(list(TIME.finditer(text)))}
        falls += sum(time < last.get(form, time) for form, time in times.items())
        rises += sum(time > last.get(form, time) for form, time in times.items())
        first, last = times | first, last | times
    # In a log of two machines, one with a slow clock, times fall as often as they rise.
    return falls > rises and any(last[form] < time for form, time in first.items())


def _entries(stream: TextIO) -> Iterator[Entry]:
    first = stream.readline(LONGEST_LINE)
    if DOCUMENT.match(first) and _decoded(first) is None:
        rest = f"{first}{stream.read()}"
        if (trees := _documents(rest)) is not None:
            yield from enumerate(chain.from_iterable(map(_unpacked, trees)), start=1)
            return
        lines: Iterable[str] = io.StringIO(rest)  # cut off, or not JSON
    elif HEADER.match(first.strip()):
        yield from _rows(chain([first], iter(stream.readline, "")))
        return
    else:
        lines = chain([first], iter(lambda: stream.readline(LONGEST_LINE), ""))
    number, ended = 1, True
    for line in filter(None, lines):
        if ended:  # else it is the end of a line that is too long to keep
            yield from ((number, texts) for texts in _of_line(line))
        ended = line.endswith("\n")
        number += ended
    yield number - ended, ""


def _rows(lines: Iterable[str]) -> Iterator[Entry]:
    reader = csv.reader(lines)
    try:
        yield from ((reader.line_num, cells) for cells in reader)
    except csv.Error as error:
        fix = "export the log as text or JSON"
        raise UsageError(f"the CSV cannot be read at line {reader.line_num}: {error}", remedy=fix) from None


def _of_line(line: str) -> Iterator[str | list[str]]:
    """Yield the line, or the texts of the JSON in it; after a prefix, both."""
    if "{" in line:
        line = LABELS.sub("", line)
        start = min((at for mark in ('{"', '[{"', '[["') if (at := line.find(mark)) >= 0), default=None)
        if start is not None and (tree := _decoded(line[start:])) is not None:
            yield from _unpacked(tree)
            if not line[:start].strip():
                return
    if match := VALUE.match(line):
        text = _decoded(match[1]) if match[1] else match[2].replace("''", "'")
        line = text if isinstance(text, str) else line
    yield line.rstrip("\r\n")


def _decoded(text: str) -> Any:
    """Return what the JSON stands for, or None."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    return None


def _documents(text: str) -> list[Any] | None:
    """Return the JSON values in the text, one after another; None if anything else is in it."""
    decoder, at, trees = json.JSONDecoder(), 0, []
    with contextlib.suppress(ValueError, RecursionError):
        while start := WORD.search(text, at):
            tree, at = decoder.raw_decode(text, start.start())
            trees.append(tree)
        return trees
    return None


def _unpacked(tree: Any) -> Iterator[list[str]]:
    """Yield the texts of each entry in the tree. The parts of a list are entries, unless they are plain values."""
    texts: list[str] = []
    parts = [tree]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            request = "model" in part and not {"messages", "prompt"}.isdisjoint(part)  # its texts are a user's
            parts += [] if request else reversed(part.values())
        elif isinstance(part, list) and part and all(isinstance(byte, int) and 0 <= byte < 256 for byte in part):
            texts.append(bytes(part).decode(errors="replace"))  # journald's form of a message with colours
        elif isinstance(part, list) and any(isinstance(inner, dict | list) for inner in part):
            for inner in part:
                yield from _unpacked(inner)
        elif isinstance(part, list):
            parts += reversed(part)
        elif isinstance(part, str) and part.startswith('{"') and (inner := _decoded(part)) is not None:
            parts.append(inner)  # an entry that a collector has wrapped
        elif isinstance(part, str | int):
            texts.append(str(part))
    yield list(dict.fromkeys(texts))  # some services keep a message twice
