"""A stub server that answers faster than any client asks: what limits a load against it is the client.

It speaks just enough HTTP/1.1 for the two clients: keep-alive, a body with Content-Length, completions streamed in HTTP
chunks of one event each. Answers are built once for each length. As a process (serves until standard input ends):
`python -m benchmarks.fast_stub` prints its root address.
"""

import asyncio
import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

MODEL = "stub"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_TOKENS = re.compile(rb'"max_tokens": *(\d+)')
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


def _http_chunk(payload: str) -> bytes:
    data = f"data: {payload}\n\n".encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


@functools.cache
def _answer(tokens: int) -> bytes:
    common = {"id": "cmpl-0", "object": "text_completion", "created": 0, "model": MODEL}
    choice = {"index": 0, "text": " word", "logprobs": None, "finish_reason": None, "stop_reason": None}
    last = choice | {"finish_reason": "length"}
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    events = [common | {"choices": [choice]}] * (tokens - 1) + [common | {"choices": [last]}]
    payloads = [json.dumps(event) for event in [*events, common | {"choices": [], "usage": usage}]]
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(map(_http_chunk, [*payloads, "[DONE]"])) + b"0\r\n\r\n"


@functools.cache
def _models() -> bytes:
    body = json.dumps({"object": "list", "data": [{"id": MODEL, "root": MODEL}]}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but ancestry

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(self._received, 0, end)
            after = end + 4 + (int(found[1]) if found else 0)
            if len(self._received) < after:
                return
            self._transport.write(_reply(self._received[:end], self._received[end + 4 : after]))
            self._received = self._received[after:]


def _reply(head: bytes, body: bytes) -> bytes:
    if head.startswith(b"GET /v1/models "):
        return _models()
    tokens = _TOKENS.search(body)
    return _answer(int(tokens[1])) if head.startswith(b"POST /v1/completions ") and tokens else _NOT_FOUND


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Connection, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


@contextmanager
def running() -> Iterator[str]:
    """The root address of a stub in a process of its own, which ends with the block (or with this process)."""
    command = [sys.executable, "-m", "benchmarks.fast_stub"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(10)


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve())
