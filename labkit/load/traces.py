"""Request traces in the Mooncake format: lengths, times and shared prefixes, without text.

The format is JSONL, one request per line (github.com/kvcache-ai/Mooncake, FAST25-release/README.md):

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 48, ..., 2353, 2354]}

`timestamp` is in milliseconds. Each of `hash_ids` identifies a block of 512 tokens and everything before it: equal ids
are a shared prefix. The last block may be partial, so a request has input_length / 512 ids, rounded up, as has every
line of Mooncake's conversation and synthetic traces (12,031 and 3,993 lines). NVIDIA's aiperf also refuses others."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from labkit import errors
from labkit.errors import UsageError, require

T = TypeVar("T")
MOST_FILE_BYTES = 2**30
MOST_BLOCKS = 40_000**2
"""Upper bound of ids: a modelled prompt encodes one as two of 40,000 token ids."""


class Line(msgspec.Struct):
    timestamp: Annotated[float, msgspec.Meta(ge=0)]
    input_length: Annotated[int, msgspec.Meta(ge=1)]
    output_length: Annotated[int, msgspec.Meta(ge=0)]
    hash_ids: list[Annotated[int, msgspec.Meta(ge=0, lt=MOST_BLOCKS)]]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Lines in order of time, their due times in seconds, and notes on changed or omitted lines."""

    lines: Sequence[Line]
    due_s: tuple[float, ...]
    notes: tuple[str, ...]


def read(path: str | Path, *, n: int | None, speed: float, block_tokens: int, longest: int | None) -> Recorded:
    """Read the first `n` requests of a trace in order of time, or all.

    The first request is due at 0 and times are divided by `speed`: 2.0 doubles the rate. Requests of more than
    `longest` tokens (prompt and output) are left out.

    UsageError with file and line: bad JSON, a missing key, a negative number, an empty prompt, or a number of
    `hash_ids` that contradicts `input_length`. UsageError also for fewer than `n` requests."""
    errors.whole("n", 1 if n is None else n, at_least=1)
    errors.whole("block_tokens", block_tokens, at_least=2)
    errors.whole("longest", 2 if longest is None else longest, at_least=2)
    errors.above_zero("speed", speed, unit="multiples of the recorded rate")
    lines = list(_lines(path, block_tokens))
    kept = [line for line in lines if longest is None or line.input_length + max(line.output_length, 1) <= longest]
    what = f"{len(kept)} requests{f' of at most {longest} tokens' if longest else ''}; {n or 1} are needed"
    fix = "ask for fewer, or raise `longest`" if longest else "add lines to it or ask for fewer"
    require(len(kept) >= (n or 1), f"{path} holds {what}", fix=fix)
    ordered = sorted(kept, key=lambda line: line.timestamp)[:n]
    start = ordered[0].timestamp
    return Recorded(
        lines=ordered,
        due_s=tuple((line.timestamp - start) / 1000 / speed for line in ordered),
        notes=counted(
            (len(lines) - len(kept), f"of {len(lines)} requests have more than {longest} tokens: left out"),
            (sum(b.timestamp < a.timestamp for a, b in pairwise(kept)), "steps back in time: sorted"),
            (sum(not line.output_length for line in ordered), "requests without output: 1 token each"),
        ),
    )


def counted(*notes: tuple[int, str]) -> tuple[str, ...]:
    """Return a note for each number above 0."""
    return tuple(f"{number} {text}" for number, text in notes if number)


def _lines(path: str | Path, block_tokens: int) -> Iterator[Line]:
    for where, line in read_lines(path, Line):
        blocks, ids = math.ceil(line.input_length / block_tokens), len(line.hash_ids)
        what = f"{ids} hash_ids; an input_length of {line.input_length} makes {blocks} blocks of {block_tokens} tokens"
        fix = "pass the block_tokens that the trace was recorded with, or correct that line"
        require(ids == blocks, f"{where}: {what}", fix=fix)
        yield line


def read_lines(path: str | Path, kind: type[T]) -> Iterator[tuple[str, T]]:
    """Yield the non-empty lines of a JSONL file as `kind`, with their location. UsageError for a missing, endless
    (/dev/zero) or too large file, bytes that are not UTF-8, and a line that is not a `kind`."""
    # Not splitlines(): U+2028 and the like do not end a line in JSONL.
    for number, text in enumerate(_text(path).split("\n"), start=1):
        if text.strip():
            where = f"{path}, line {number}"
            try:
                yield where, msgspec.json.decode(text, type=kind)
            except msgspec.DecodeError as error:
                raise UsageError(f"{where}: {error}", remedy="correct or remove that line") from error


def _text(path: str | Path) -> str:
    file = Path(str(path))
    try:
        regular = not file.exists() or file.is_file()
        require(regular, f"{path} is not a regular file", fix="save the requests in a regular file")
        length = file.stat().st_size
        require(length <= MOST_FILE_BYTES, f"{path} has {length:,} bytes, more than 1 GiB", fix="use a part of it")
        raw = file.read_bytes()
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}, line {line}: not UTF-8 text", remedy="save the file as UTF-8") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be read: {reason}", remedy="check the path of the requests file") from error
