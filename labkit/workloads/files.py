"""A workload from a JSONL file, and into one."""

from pathlib import Path
from typing import Annotated, Any

import msgspec

from labkit.errors import UsageError
from labkit.workloads import checks
from labkit.workloads.request import Messages, Request, Workload

_AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """One line; `output_tokens` is what `vllm bench` calls `max_tokens`."""

    prompt: str | None = None
    messages: Messages | None = None
    max_tokens: _AtLeastOne | None = None
    output_tokens: _AtLeastOne | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    seed: int | None = None
    ignore_eos: bool = True
    group: str = ""


def from_file(path: str | Path, *, n: int | None = None, max_tokens: int = 64) -> Workload:
    """Requests from a JSONL file, the first `n` or all.

    A line is an object with `prompt` or `messages`, and if wanted `max_tokens` or `output_tokens` (else the argument),
    `temperature`, `seed`, `ignore_eos`, `group`. Empty lines are skipped. UsageError names the file and the line."""
    checks.whole("max_tokens", max_tokens, at_least=1)
    checks.whole("n", 1 if n is None else n, at_least=1)
    requests: list[Request] = []
    for number, text in enumerate(_read_lines(Path(path)), start=1):
        if text.strip() and len(requests) != n:
            requests.append(_request(text, max_tokens, where=f"{path}, line {number}"))
    if len(requests) < (n or 1):
        raise UsageError(
            f"{path} holds {len(requests)} requests; {n or 1} are needed", remedy="add lines to it or ask for fewer"
        )
    parameters = {"file": Path(path).name, "n": len(requests), "max_tokens": max_tokens}
    return Workload("file", tuple(requests), parameters)


def to_file(workload: Workload, path: str | Path) -> Path:
    """Writes the requests as `from_file` reads them, a line each, and as `vllm bench serve --dataset-name custom` does.

    What is read back asks the same: its digest is the workload's."""
    lines = [_line(request) for request in workload.requests]
    Path(path).write_bytes(msgspec.json.Encoder().encode_lines(lines))
    return Path(path)


def _line(request: Request) -> dict[str, Any]:
    asked = {"messages": request.messages} if request.messages else {"prompt": request.prompt}
    seed = {} if request.seed is None else {"seed": request.seed}
    more = {"temperature": request.temperature, **seed, "ignore_eos": request.ignore_eos, "group": request.group}
    return {**asked, "output_tokens": request.max_tokens, **more}


def _read_lines(path: Path) -> list[str]:
    try:
        # Not splitlines(): a prompt may hold U+2028 and its like, which end no line in JSONL.
        return path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", remedy="check the path of the requests file"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: {error}", remedy="save the requests file as UTF-8") from error


def _request(text: str, default_max_tokens: int, *, where: str) -> Request:
    try:
        line = msgspec.json.decode(text, type=_Line)
    except msgspec.DecodeError as error:
        raise UsageError(f"{where}: {error}", remedy="correct or remove that line") from error
    wrong = _contradiction(line)
    if wrong:
        raise UsageError(f"{where}: {wrong}", remedy="correct or remove that line")
    tokens = line.max_tokens or line.output_tokens or default_max_tokens
    return Request(
        line.prompt or "", tokens, line.temperature, line.seed, line.ignore_eos, line.messages or None, line.group
    )


def _contradiction(line: _Line) -> str:
    if not line.prompt and not line.messages:
        return "neither `prompt` nor `messages` holds anything"
    if line.prompt and line.messages:
        return "both `prompt` and `messages` are given; one of them is needed"
    if line.max_tokens and line.output_tokens:
        return "both `max_tokens` and `output_tokens` are given; they mean the same"
    return ""
