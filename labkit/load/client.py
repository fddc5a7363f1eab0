"""Runs a workload against a server: closed loop (a number of requests under way) or open loop (a rate of arrivals)."""

import asyncio
import contextlib
import resource
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from threading import Event, Thread
from time import perf_counter, process_time
from typing import Any, Literal, ParamSpec, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from labkit import errors
from labkit.errors import LoadError, require
from labkit.load.results import LoadResult, Outcome, RequestRecord, find_doubts
from labkit.load.workloads import Request, Workload, constant_arrivals_s, poisson_arrivals_s

Api = Literal["completions", "chat", "plain"]
PATHS: dict[Api, str] = {"completions": "/completions", "chat": "/chat/completions", "plain": ""}
ARRIVALS = ("poisson", "constant")
PREFLIGHT_TIMEOUT_S = 10.0
TORCHSERVE_REFUSAL = b"Token Authorization failed"  # said with a 400
KEEP_ALIVE_S = 4.0
"""Idle connections are given up before the server does it (uvicorn, and so vLLM, after 5 s): a request sent into a
connection that is just being closed fails without the server ever having seen it."""
TIMER_S = 0.001
"""Resolution of the event loop's timers: a request is sent up to this much late, never early."""
OnFinished = Callable[[int, int], None]
"""Called with (measured requests finished, measured requests in all), in the thread that runs the load."""


# What is read of an answer or a chunk; other fields are skipped while decoding.


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Content(msgspec.Struct, gc=False):
    content: str | None = None


class _Choice(msgspec.Struct, gc=False):
    text: str | None = None  # of completions
    delta: _Content | None = None  # of a chat's chunk
    message: _Content | None = None  # of a chat's whole answer
    finish_reason: str | None = None

    def content(self) -> str:
        part = self.delta or self.message
        return (part.content if part else self.text) or ""


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    response: str | None = None  # of the plain API


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_NO_USAGE = _Usage()


def api_root(base_url: str) -> str:
    """`base_url`, which may be the server's root or its .../v1, as .../v1. UsageError if it is not an http address."""
    parts = urlsplit(base_url)
    is_http = parts.scheme in ("http", "https") and bool(parts.hostname)
    require(is_http, f"{base_url!r} is not an http address", fix="pass one such as http://127.0.0.1:8000/v1")
    root = base_url.rstrip("/")
    return root if root.endswith("/v1") else f"{root}/v1"


def _body(request: Request, *, model: str, api: Api, stream: bool) -> bytes:
    if api == "plain":
        return msgspec.json.encode({"prompt": request.prompt})
    fields: dict[str, Any] = {"model": model, "temperature": request.temperature}
    if api == "chat":
        fields["messages"] = request.messages or [{"role": "user", "content": request.prompt}]
        fields["max_completion_tokens"] = request.max_tokens
    else:
        fields |= {"prompt": request.prompt, "max_tokens": request.max_tokens}
    if request.seed is not None:
        fields["seed"] = request.seed
    if request.ignore_eos:  # an extension of vLLM's: not sent where it changes nothing
        fields["ignore_eos"] = True
    if stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return msgspec.json.encode(fields)


def error_text(raw: bytes) -> str:
    """The message in an error's body: OpenAI's, FastAPI's or TorchServe's form, else its first 300 characters."""
    with contextlib.suppress(msgspec.DecodeError):
        message = msgspec.json.decode(raw)
        while isinstance(message, dict):
            message = message.get("error") or message.get("message") or message.get("detail")
        if message:
            return str(message)
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


# --- one request and its answer ---


@dataclass(slots=True)
class Exchange:
    """A request under way. Times are on the clock `time.perf_counter`; `record` moves them to the load's start."""

    index: int
    body: bytes = b""  # encoded before the load starts, so that it costs nothing while measuring
    warmup: bool = False
    group: str = ""
    scheduled: float | None = None  # None: no schedule, it is due when it starts
    started: float = 0.0
    finished: float = 0.0
    chunk_times: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    usage: _Usage = _NO_USAGE
    ended: bool = False  # the server said that the answer is complete
    outcome: Outcome = Outcome.OK
    status: int | None = None
    error: str = ""

    def end(self, outcome: Outcome, error: str) -> None:
        self.outcome, self.error = outcome, error

    def take(self, chunk: _Chunk) -> None:
        """Adds what a chunk, or a whole answer, brings."""
        if chunk.choices:
            self.texts.append(chunk.choices[0].content())
            self.ended |= chunk.choices[0].finish_reason is not None
        if chunk.response is not None:
            self.texts.append(chunk.response)
        if chunk.usage is not None:
            self.usage = chunk.usage
        if chunk.error is not None:
            said = error_text(msgspec.json.encode(chunk.error))
            self.end(Outcome.HTTP_ERROR, f"the server reported in its answer: {said}")

    def record(self, zero: float) -> RequestRecord:
        """The finished record, on a clock that is 0 at `zero`."""
        return RequestRecord(
            index=self.index,
            scheduled_s=(self.started if self.scheduled is None else self.scheduled) - zero,
            started_s=self.started - zero,
            chunk_times_s=tuple(time - zero for time in self.chunk_times),
            finished_s=self.finished - zero,
            input_tokens=self.usage.prompt_tokens,
            output_tokens=self.usage.completion_tokens,
            outcome=self.outcome,
            status=self.status,
            error=self.error,
            text="".join(self.texts),
            warmup=self.warmup,
            group=self.group,
        )


async def _carry_out(
    exchange: Exchange, session: aiohttp.ClientSession, *, url: str, stream: bool, timeout_s: float
) -> None:
    """Whatever happens becomes the exchange's outcome; only a cancellation goes on, once noted."""
    exchange.started = perf_counter()
    try:
        async with (
            asyncio.timeout(timeout_s),
            session.post(url, data=exchange.body, allow_redirects=False) as response,
        ):
            exchange.status = response.status
            if response.status != 200:
                exchange.end(Outcome.HTTP_ERROR, f"{response.status}: {error_text(await response.read())}")
            elif stream:
                await _read_stream(exchange, response)
            else:
                exchange.take(_decode_chunk(await response.read()))
                if exchange.outcome is Outcome.OK and not exchange.texts:
                    exchange.end(Outcome.MALFORMED, "the answer has no choices")
    except TimeoutError:
        exchange.end(Outcome.TIMEOUT, f"no complete answer within {timeout_s:g} s")
    except asyncio.CancelledError:
        exchange.end(Outcome.CANCELLED, "the load was stopped")
        raise
    except (msgspec.DecodeError, aiohttp.ClientResponseError) as error:
        exchange.end(Outcome.MALFORMED, f"the answer cannot be read: {error}")
    except (aiohttp.ClientError, OSError) as error:
        exchange.end(Outcome.CONNECTION, str(error) or type(error).__name__)
    finally:
        exchange.finished = perf_counter()


async def _read_stream(exchange: Exchange, response: aiohttp.ClientResponse) -> None:
    lines = EventLines()
    async for received in response.content.iter_any():
        now = perf_counter()
        for payload in lines.feed(received):
            if payload == b"[DONE]":
                exchange.ended = True
                continue
            chunk = _decode_chunk(payload)
            # vLLM's rule: content is what has choices, even with an empty text; the usage chunk has none.
            if chunk.choices:
                exchange.chunk_times.append(now)
            exchange.take(chunk)
    if exchange.outcome is not Outcome.OK:
        return
    if not exchange.chunk_times:
        exchange.end(Outcome.MALFORMED, f"no content chunk in an answer of type {response.content_type}")
    elif not exchange.ended:
        exchange.end(Outcome.MALFORMED, f"the stream ended after {len(exchange.chunk_times)} chunks without [DONE]")


# --- before a load starts ---


def _check_loop(concurrency: int | None, rate: float | None, arrival: str) -> None:
    require(
        (concurrency is None) != (rate is None),
        f"concurrency is {concurrency} and rate is {rate}; exactly one of them drives a load",
        fix="pass concurrency=N (closed loop) or rate=R in requests per second (open loop)",
    )
    if concurrency is not None:
        errors.whole("concurrency", concurrency, at_least=1)
    if rate is not None:
        errors.above_zero("rate", rate, unit="requests per second")
    require(arrival in ARRIVALS, f"arrival is {arrival!r}", fix=f"choose one of {', '.join(ARRIVALS)}")


def _check_requests(workload: Workload, api: Api, stream: bool) -> None:
    require(bool(workload.requests), f"workload {workload.name!r} has 0 requests", fix="build it with n=1 or more")
    require(api in PATHS, f"api is {api!r}", fix=f"choose one of {', '.join(PATHS)}")
    require(api != "plain" or not stream, "a plain answer comes whole", fix="pass stream=False")
    takes_them = api == "chat" or not any(request.messages for request in workload.requests)
    require(takes_them, f"the workload holds chat messages; {api} takes none", fix='pass api="chat"')


async def _check_server(session: aiohttp.ClientSession, root: str, model: str) -> None:
    """One GET of `root`/models: does anything listen, is the key accepted, is the model known?"""
    url = f"{root}/models"
    status, raw = await _get(session, url)
    if status in (401, 403) or (status == 400 and TORCHSERVE_REFUSAL in raw):
        raise LoadError(
            f"the server refused the API key ({status} at {url})", remedy="pass the key that it started with"
        )
    if status != 200:
        raise LoadError(
            f"{url} answered {status}: no OpenAI-compatible API there",
            remedy="pass the server's root or its /v1; for a server that lists no models pass preflight=False",
        )
    try:
        names = [entry.id for entry in msgspec.json.decode(raw, type=_Models).data]
    except msgspec.DecodeError as error:
        raise LoadError(
            f"{url} lists no models: {raw[:80]!r}", remedy="is an OpenAI-compatible server there?"
        ) from error
    known = ", ".join(names) or "none served"
    require(model in names, f"the server has no model {model!r}", fix=f"choose one of: {known}")


async def _get(session: aiohttp.ClientSession, url: str) -> tuple[int, bytes]:
    try:
        async with asyncio.timeout(PREFLIGHT_TIMEOUT_S), session.get(url) as response:
            return response.status, await response.read()
    except TimeoutError as error:
        raise LoadError(
            f"{url} gave no answer within {PREFLIGHT_TIMEOUT_S:g} s",
            remedy="look into the server's log: is it still starting?",
        ) from error
    except aiohttp.ClientConnectorError as error:
        raise LoadError(f"nothing listens at {url} ({error})", remedy="start the server, or correct the URL") from error
    except (aiohttp.ClientError, OSError) as error:
        raise LoadError(
            f"{url} cannot be read ({error or type(error).__name__})", remedy="is an OpenAI-compatible server there?"
        ) from error


def _reversed(request: Request) -> Request:
    """The words in reverse: as long as what is measured, but sharing no prefix with it, or a prefix cache would answer
    the measured one."""

    def turned(text: Any) -> Any:
        return " ".join(reversed(text.split(" "))) if isinstance(text, str) else text

    messages = request.messages and tuple({**said, "content": turned(said.get("content"))} for said in request.messages)
    return replace(request, prompt=turned(request.prompt), messages=messages)


# --- the load ---


async def run(
    base_url: str,
    model: str,
    workload: Workload,
    *,
    concurrency: int | None = None,
    rate: float | None = None,
    arrival: str = "poisson",
    api: Api = "completions",
    stream: bool = True,
    warmup: int = 0,
    timeout_s: float = 600.0,
    stop_after_s: float | None = None,
    seed: int | None = None,
    api_key: str | None = None,
    preflight: bool = True,
    progress: OnFinished | None = None,
) -> LoadResult:
    """Sends `workload` to the OpenAI-compatible server at `base_url` (its root or its .../v1) and records every answer.

    Exactly one of `concurrency` (closed loop) and `rate` in requests per second (open loop, each request sent when due
    whatever is still under way) drives it; `arrival` is "poisson" (seeded by `seed`, else by the workload's seed) or
    "constant". Before that, `warmup` requests of the same words in another order are sent and kept apart. A request
    that takes longer than `timeout_s` ends as TIMEOUT; after `stop_after_s` no more are sent and those under way end as
    CANCELLED. Cancelling this coroutine closes its connections.

    Raises UsageError (an argument, an unknown model) or LoadError (no server, key refused) before anything is sent,
    unless `preflight` is off. A request that fails is an outcome, not an error.

    `api` "plain" ({"prompt": ...} in, {"response": ...} out; no stream, no usage) asks without it."""
    _check_requests(workload, api, stream)
    _check_loop(concurrency, rate, arrival)
    errors.whole("warmup", warmup, at_least=0)
    errors.above_zero("timeout_s", timeout_s, unit="seconds")
    if stop_after_s is not None:
        errors.above_zero("stop_after_s", stop_after_s, unit="seconds")
    root, requests = api_root(base_url), workload.requests
    seed = workload.parameters.get("seed") if seed is None else seed
    due_s: tuple[float, ...] = ()
    if rate is not None and arrival == "constant":
        due_s = constant_arrivals_s(len(requests), rate=rate)
    elif rate is not None:
        due_s = poisson_arrivals_s(len(requests), rate=rate, seed=seed or 0)
    _allow_many_connections()
    async with _session(api_key) as session:
        if preflight and api != "plain":
            await _check_server(session, root, model)
        finished = 0

        async def send(exchange: Exchange) -> None:
            nonlocal finished
            await _carry_out(exchange, session, url=root + PATHS[api], stream=stream, timeout_s=timeout_s)
            if progress is not None and not exchange.warmup:
                finished += 1
                progress(finished, len(measured))

        def prepared(asked: Sequence[Request], *, warmup: bool) -> list[Exchange]:
            bodies = [_body(request, model=model, api=api, stream=stream) for request in asked]
            return [Exchange(k, bodies[k], warmup, request.group) for k, request in enumerate(asked)]

        before = prepared([_reversed(requests[k % len(requests)]) for k in range(warmup)], warmup=True)
        measured = prepared(requests, warmup=False)
        await _closed_loop(before, send, concurrency or warmup)
        zero, cpu_before_s = perf_counter(), process_time()
        if concurrency is not None:
            await _within(stop_after_s, _closed_loop(measured, send, concurrency))
        else:
            await _within(stop_after_s, _open_loop(measured, send, due_s, zero))
        duration_s, cpu_s = perf_counter() - zero, process_time() - cpu_before_s
    result = LoadResult(
        records=tuple(exchange.record(zero) for exchange in measured if exchange.started),
        duration_s=duration_s,
        client_cpu_s=cpu_s,
        concurrency=concurrency,
        rate=rate,
        workload=workload.name,
        seed=seed,
        warmup_records=tuple(exchange.record(zero) for exchange in before),
        model=model,
        api=api,
        stream=stream,
        arrival=arrival if rate is not None else None,
    )
    return replace(result, warnings=tuple(find_doubts(result, asked=len(measured))))


def _allow_many_connections() -> None:
    """Raises this process's limit on open files to what it may have: an open loop may have thousands under way."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _session(api_key: str | None) -> aiohttp.ClientSession:
    key = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
        # Nothing compressed: a compressor would hold chunks back.
        headers={"Content-Type": "application/json", "Accept-Encoding": "identity", **key},
        timeout=aiohttp.ClientTimeout(total=None),  # each request has a time-out of its own
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def _within(stop_after_s: float | None, load: Awaitable[None]) -> None:
    """An error in the progress callback, the only one that can come up, ends it all."""
    try:
        async with asyncio.timeout(stop_after_s) as limit:
            await load
    except TimeoutError:
        if not limit.expired():
            raise
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


Send = Callable[[Exchange], Coroutine[Any, Any, None]]


async def _closed_loop(exchanges: Sequence[Exchange], send: Send, concurrency: int) -> None:
    queue = iter(exchanges)

    async def worker() -> None:
        for exchange in queue:
            await send(exchange)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(concurrency, len(exchanges))):
            tasks.create_task(worker())


async def _open_loop(exchanges: Sequence[Exchange], send: Send, due_s: Sequence[float], zero: float) -> None:
    async with asyncio.TaskGroup() as tasks:
        for exchange, after_s in zip(exchanges, due_s, strict=True):
            exchange.scheduled = due = zero + after_s
            while (wait_s := due - perf_counter()) > 0:
                await asyncio.sleep(max(wait_s, TIMER_S))
            tasks.create_task(send(exchange))


# --- blocking ---


P = ParamSpec("P")
T = TypeVar("T")


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # slower, and just as exact
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def blocking(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """`function` as a call that returns when its coroutine is done, which runs in a thread with an event loop of its
    own: so it works inside a running loop too. Ctrl-C cancels the coroutine, waits for its clean end, and goes on as
    usual."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        loop = _new_loop()
        task = loop.create_task(function(*args, **kwargs))
        done = Event()
        thread = Thread(target=_drive, args=(loop, task, done), name="labkit-load", daemon=True)
        thread.start()
        try:
            done.wait()  # not join(): Python 3.11 takes a thread whose join was interrupted for a finished one
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the loop may just have closed: then there is nothing to cancel
                loop.call_soon_threadsafe(task.cancel)
            done.wait()
            raise
        finally:
            thread.join()
        return task.result()

    return call


def _drive(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], done: Event) -> None:
    try:
        with contextlib.suppress(BaseException):  # it stays in the task, for the caller
            loop.run_until_complete(task)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
        done.set()


run_blocking = blocking(run)
