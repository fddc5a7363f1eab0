"""What stands before an ingress: a key, and a limit on a request's size. Ray Serve's HTTP proxy has neither.

An ASGI middleware, so that a body which is too large is refused while it arrives and not when all of it is in memory.
Its settings are environment variables of the replica (`environment` makes them).
"""

import contextlib
import json
import os
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

KEY, LIMIT = "GATE_API_KEY", "GATE_BODY_LIMIT_BYTES"
DEFAULT_LIMIT_BYTES = 1 << 20
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def environment(*, api_key: str = "", body_limit_bytes: int = DEFAULT_LIMIT_BYTES) -> dict[str, str]:
    """The replica's environment for this key ("" asks for none) and this limit."""
    return {KEY: api_key, LIMIT: str(body_limit_bytes)}


class TooLargeError(Exception):
    """The body grew above the limit."""


class Gate:
    """Answers 401 without the key, and 413 to a body above the limit."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._key = os.environ.get(KEY, "")
        self._limit_bytes = int(os.environ.get(LIMIT, DEFAULT_LIMIT_BYTES))

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self._key and not self._knows(headers.get(b"authorization", b"")):
            await _refuse(send, 401, "the key is missing or wrong: send Authorization: Bearer KEY")
            return
        if int(headers.get(b"content-length", b"0")) > self._limit_bytes:
            await _refuse(send, 413, f"the body is larger than {self._limit_bytes} bytes")
            return
        await self._forward(scope, receive, send)

    def _knows(self, authorization: bytes) -> bool:
        return secrets.compare_digest(authorization, f"Bearer {self._key}".encode())

    async def _forward(self, scope: Message, receive: Receive, send: Send) -> None:
        received, answered = 0, False

        async def counted() -> Message:  # a client may leave the length out
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit_bytes:
                raise TooLargeError
            return message

        async def noted(message: Message) -> None:
            nonlocal answered
            if received <= self._limit_bytes:  # the framework makes a 400 of our error
                answered = True
                await send(message)

        with contextlib.suppress(TooLargeError):
            await self._app(scope, counted, noted)
        if received > self._limit_bytes and not answered:
            await _refuse(send, 413, f"the body is larger than {self._limit_bytes} bytes")


async def _refuse(send: Send, status: int, message: str) -> None:
    body = json.dumps({"error": {"message": message, "code": status}}).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
