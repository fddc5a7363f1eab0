"""ASGI middleware that requires an API key and limits the size of request bodies.

Ray Serve's proxy has neither; vLLM's own key leaves many routes open (in 0.32 /invocations, /tokenize, /load, /docs and
others). Use it by `vllm serve --middleware labkit.serving.gate.Gate`, or `api.add_middleware(Gate)` in an ingress. Too
large a body is refused while it arrives. Settings are environment variables of the server (see `environment`). A key in
a file does not show in the environment; the file is read when the server starts.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

KEY, KEY_FILE = "GATE_API_KEY", "GATE_API_KEY_FILE"
OPEN, LIMIT = "GATE_OPEN_PATHS", "GATE_BODY_LIMIT_BYTES"
DEFAULT_LIMIT_BYTES = 1 << 20
MOST_DIGITS = 20  # of a Content-Length; Python refuses to convert thousands
POLICY_VIOLATION = 1008  # RFC 6455; before the handshake servers answer 403
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def environment(
    *,
    api_key: str = "",
    api_key_file: str = "",
    open_paths: Sequence[str] = (),
    body_limit_bytes: int = DEFAULT_LIMIT_BYTES,
) -> dict[str, str]:
    """Return the server's environment variables for this key (or key file), these open paths and this limit.

    Without a key and a file, requests need no key.
    """
    limits = {OPEN: " ".join(open_paths), LIMIT: str(body_limit_bytes)}
    return {KEY_FILE: api_key_file, **limits} if api_key_file else {KEY: api_key, **limits}


def write_key(path: Path, key: str) -> Path:
    """Write the key to a file that only its owner can read; an existing file is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(key)
    return path


def read_key() -> str:
    """Return the server's key, "" if none is set. A server that cannot read its key must not start without it:
    PermissionError if other users can read the file, OSError if it is missing, ValueError if it is empty."""
    if not (path := os.environ.get(KEY_FILE)):
        return os.environ.get(KEY, "")
    if Path(path).stat().st_mode & 0o007:
        raise PermissionError(f"every user of this machine can read the key in {path}: chmod 600 {path}")
    if not (key := Path(path).read_text(encoding="utf-8").strip()):
        raise ValueError(f"{path} contains no key")
    return key


class TooLargeError(Exception):
    """The body exceeds the limit."""


class Gate:
    """Answer 401 without the key, for all methods (403 to a WebSocket), and 413 to a body above the limit.

    A malformed Content-Length gets 400.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._key = read_key()
        self._open = frozenset(os.environ.get(OPEN, "").split())
        self._limit_bytes = int(os.environ.get(LIMIT, DEFAULT_LIMIT_BYTES))

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request or WebSocket connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self._key and scope["path"] not in self._open and not self._accepts(headers.get(b"authorization", b"")):
            await _refuse(scope, send, 401, "the key is missing or wrong: send Authorization: Bearer KEY")
            return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            await _refuse(scope, send, 400, "Content-Length is not a number of bytes")
            return
        if len(length) > MOST_DIGITS or int(length) > self._limit_bytes:
            await _refuse(scope, send, 413, f"the body is larger than {self._limit_bytes} bytes")
            return
        await self._forward(scope, receive, send)

    def _accepts(self, authorization: bytes) -> bool:
        scheme, _, key = authorization.partition(b" ")
        return secrets.compare_digest(key, self._key.encode()) and scheme.lower() == b"bearer"

    async def _forward(self, scope: Message, receive: Receive, send: Send) -> None:
        received, answered = 0, False

        async def counted_receive() -> Message:  # Content-Length is optional
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit_bytes:
                raise TooLargeError
            return message

        async def limited_send(message: Message) -> None:
            nonlocal answered
            if received <= self._limit_bytes:  # drop the 400 that the framework makes of TooLargeError
                answered = True
                await send(message)

        with contextlib.suppress(TooLargeError):
            await self._app(scope, counted_receive, limited_send)
        if received > self._limit_bytes and not answered:
            await _refuse(scope, send, 413, f"the body is larger than {self._limit_bytes} bytes")


async def _refuse(scope: Message, send: Send, status: int, message: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": POLICY_VIOLATION})
        return
    body = json.dumps({"error": {"message": message, "code": status}}).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
