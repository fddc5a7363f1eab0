"""A small server that speaks as much of the OpenAI API as the load client uses, and misbehaves on request.

In a test: `with serving(token_delay_s=0.01) as stub: ... stub.base_url ...`.
"""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

MODEL = "stub"
METRICS = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="stub"}} {in_flight}
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{{engine="0",model_name="stub"}} {prompt_tokens}
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{{engine="0",model_name="stub"}} {tokens}
"""


@dataclass(frozen=True)
class Behaviour:
    """How the stub answers. Counts of chunks and tokens are of content only."""

    first_token_delay_s: float = 0.0
    token_delay_s: float = 0.0
    tokens_per_chunk: int = 1
    error_status: int | None = None
    error_every: int = 1  # answer with error_status every so many requests
    hang: bool = False  # accept the request and never answer
    cut_after_chunks: int | None = None  # close the connection in the middle of the stream
    api_key: str | None = None
    models: tuple[str, ...] = (MODEL,)
    models_status: int = 200
    models_error: str = "no models here"
    models_body: str | None = None  # the list of models, as it is
    prefix: str = "/v1"  # the path before the routes
    raw: tuple[bytes | float, ...] | None = None  # the answer's body; a number is a pause in seconds, -1 a cut
    content_type: str = "text/event-stream"
    refuses: str | None = None  # a field of the request that is answered with a 400
    slots: int | None = None  # requests that are answered at a time; others queue
    headers: dict[str, str] = field(default_factory=dict)  # of an error


@dataclass
class Stub:
    """A running stub, and what it has seen."""

    behaviour: Behaviour
    base_url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    credentials: list[str] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    hung_up: int = 0  # requests whose client went away before the answer was complete
    in_flight: int = 0
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.behaviour.slots or 1_000_000)

    @property
    def root(self) -> str:
        """The server's root: `base_url` without /v1."""
        return self.base_url.removesuffix("/v1")

    def app(self) -> web.Application:
        """The stub as an aiohttp application."""
        app = web.Application()
        prefix = self.behaviour.prefix
        app.router.add_get(f"{prefix}/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post(f"{prefix}/completions", self._answer)
        app.router.add_post(f"{prefix}/chat/completions", self._answer)
        return app

    async def _models(self, request: web.Request) -> web.Response:
        if not self._allowed(request):
            return _error(401, "Unauthorized")
        if self.behaviour.models_status != 200:
            return _error(self.behaviour.models_status, self.behaviour.models_error)
        if self.behaviour.models_body is not None:
            return web.Response(text=self.behaviour.models_body, content_type="application/json")
        data = [{"id": name, "object": "model", "root": name} for name in self.behaviour.models]
        return web.json_response({"object": "list", "data": data})

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(text=METRICS.format(**vars(self)))

    def _allowed(self, request: web.Request) -> bool:
        key = self.behaviour.api_key
        return key is None or request.headers.get("Authorization") == f"Bearer {key}"

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.urls.append(str(request.rel_url))
        self.credentials.append(request.headers.get("Authorization", ""))
        self.bodies.append(body)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            async with self.slots:
                return await self._reply(request, body)
        except (asyncio.CancelledError, ConnectionError):
            self.hung_up += 1
            raise
        finally:
            self.in_flight -= 1

    async def _reply(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        behaviour = self.behaviour
        if not self._allowed(request):
            return _error(401, "Unauthorized")
        if body["model"] not in behaviour.models:
            return _error(404, f"The model `{body['model']}` does not exist.")
        if behaviour.error_status is not None and len(self.bodies) % behaviour.error_every == 0:
            return _error(behaviour.error_status, f"the stub answers {behaviour.error_status}", behaviour.headers)
        if behaviour.refuses in body:
            return _error(400, f"Unrecognized request argument supplied: {behaviour.refuses}")
        if behaviour.hang:
            await asyncio.Event().wait()
        chat = request.path.endswith("/chat/completions")
        prompt = " ".join(message["content"] for message in body["messages"]) if chat else body["prompt"]
        if behaviour.raw is not None:
            return await self._send(request, behaviour.raw)
        limits = (body[name] for name in ("max_completion_tokens", "max_tokens") if name in body)
        tokens, words = next(limits), len(prompt.split())
        usage = {"prompt_tokens": words, "completion_tokens": tokens, "total_tokens": words + tokens}
        self.tokens += tokens
        self.prompt_tokens += words
        if body.get("stream"):
            return await self._stream(request, chat, tokens, usage)
        await asyncio.sleep(behaviour.first_token_delay_s + behaviour.token_delay_s * tokens)
        said = {"message": {"role": "assistant", "content": _text(0, tokens)}} if chat else {"text": _text(0, tokens)}
        choices = [{"index": 0, "finish_reason": "length", **said}]
        return web.json_response({"choices": choices, "usage": usage})

    async def _send(self, request: web.Request, pieces: tuple[bytes | float, ...]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": self.behaviour.content_type})
        await response.prepare(request)
        for piece in pieces:
            if isinstance(piece, bytes):
                await response.write(piece)
            elif piece >= 0:
                await asyncio.sleep(piece)
            elif request.transport is not None:
                request.transport.abort()
                return response
        await response.write_eof()
        return response

    async def _stream(self, request: web.Request, chat: bool, tokens: int, usage: dict[str, int]) -> web.StreamResponse:
        behaviour = self.behaviour
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for count, begin in enumerate(range(0, tokens, behaviour.tokens_per_chunk)):
            delay_s = behaviour.token_delay_s if count else behaviour.first_token_delay_s
            if delay_s:
                await asyncio.sleep(delay_s)
            if count == behaviour.cut_after_chunks and request.transport is not None:
                request.transport.abort()
                return response
            await response.write(self._chunk(chat, begin, tokens))
        await response.write(_event({"choices": [], "usage": usage}))
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def _chunk(self, chat: bool, begin: int, tokens: int) -> bytes:
        end = min(begin + self.behaviour.tokens_per_chunk, tokens)
        said = {"delta": {"content": _text(begin, end)}} if chat else {"text": _text(begin, end)}
        reason = "length" if end == tokens else None
        choices = [{"index": 0, "logprobs": None, "finish_reason": reason, **said}]
        return _event({"id": "stub-1", "object": "chunk", "model": MODEL, "choices": choices})


def _text(begin: int, end: int) -> str:
    return "".join(f" w{index}" for index in range(begin, end))


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": {"message": message, "code": status}}, status=status, headers=headers)


async def _started(stub: Stub) -> web.AppRunner:
    # handler_cancellation: a client that goes away is noticed at once, as by vLLM.
    runner = web.AppRunner(stub.app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    stub.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}{stub.behaviour.prefix}"
    return runner


@contextmanager
def serving(**behaviour: Any) -> Iterator[Stub]:
    """A stub in a thread of its own, until the block ends. `behaviour`: fields of Behaviour."""
    stub = Stub(Behaviour(**behaviour))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(_started(stub), loop).result(10)
    try:
        yield stub
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
