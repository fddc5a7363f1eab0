"""The OpenAI protocol on the wire: addresses, request bodies, and the chunks of an answer.

One API beside it, "plain": a prompt goes in, a text comes out, whole and without usage, as a handler that somebody
wrote for TorchServe has it.
"""

from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from labkit.errors import UsageError
from labkit.workloads import Request

Api = Literal["completions", "chat", "plain"]
PATHS: dict[Api, str] = {"completions": "/completions", "chat": "/chat/completions", "plain": ""}


class Usage(msgspec.Struct, gc=False):
    """Token counts of the server."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Content(msgspec.Struct, gc=False):
    """A chat message, or the piece of one that a chunk brings."""

    content: str | None = None


class Choice(msgspec.Struct, gc=False):
    """One choice of an answer or a chunk: `text` in completions, `delta` or `message` in chat."""

    text: str | None = None
    delta: Content | None = None
    message: Content | None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct, gc=False):
    """What is read of one answer or chunk; other fields are skipped while decoding."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None
    response: str | None = None  # of the plain API


decode_chunk = msgspec.json.Decoder(Chunk).decode


def api_root(base_url: str) -> str:
    """`base_url`, which may be the server's root or its .../v1, as .../v1. UsageError if it is not an http address."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{base_url!r} is not an http address", remedy="pass one such as http://127.0.0.1:8000/v1")
    root = base_url.rstrip("/")
    return root if root.endswith("/v1") else f"{root}/v1"


def headers(api_key: str | None) -> dict[str, str]:
    """Headers of every request."""
    key = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    # Nothing compressed: a compressor would hold chunks back.
    return {"Content-Type": "application/json", "Accept-Encoding": "identity", **key}


def body(request: Request, *, model: str, api: Api, stream: bool) -> bytes:
    """The JSON of a request, made before the load starts so that it costs nothing while measuring."""
    if api == "plain":
        return msgspec.json.encode({"prompt": request.prompt})
    fields: dict[str, Any] = {"model": model, "temperature": request.temperature}
    if api == "chat":
        fields["messages"] = request.messages or [{"role": "user", "content": request.prompt}]
        fields["max_completion_tokens"] = request.max_tokens
    else:
        fields["prompt"] = request.prompt
        fields["max_tokens"] = request.max_tokens
    if request.seed is not None:
        fields["seed"] = request.seed
    if request.ignore_eos:  # an extension of vLLM's: not sent where it changes nothing
        fields["ignore_eos"] = True
    if stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return msgspec.json.encode(fields)


def choice_text(choice: Choice) -> str:
    """The text that a choice brings, in either API."""
    part = choice.delta or choice.message
    return (part.content if part else choice.text) or ""


def error_text(raw: bytes) -> str:
    """The message in an error's body: OpenAI's, FastAPI's or TorchServe's form, else its first 300 characters."""
    try:
        found = msgspec.json.decode(raw)
        while isinstance(found, dict):
            found = found.get("error") or found.get("message") or found.get("detail")
        if found:
            return str(found)
    except msgspec.DecodeError:
        pass
    return raw[:300].decode("utf-8", "replace").strip()


class EventLines:
    """Cuts a stream of server-sent events into the payloads of its `data:` lines, wherever the network cut the bytes.

    OpenAI's events have one data line each, so a line is an event; comments (`: ping`) and other fields are skipped."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, received: bytes) -> list[bytes]:
        """The payloads that `received` completes."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]
