"""Runs a workload against a server: closed loop (a number of requests under way) or open loop (a rate of arrivals)."""

import asyncio
import contextlib
import resource
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from threading import Event, Thread
from time import perf_counter, process_time
from typing import Any, Literal, ParamSpec, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from labkit import errors
from labkit.errors import LoadError, UsageError
from labkit.load.results import LoadResult, Outcome, RequestRecord, find_doubts
from labkit.load.workloads import Request, Workload, constant_arrivals_s, poisson_arrivals_s

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


# --- one request and its answer ---


_NO_USAGE = Usage()


@dataclass(slots=True)
class Exchange:
    """A request under way. Times are on the clock `time.perf_counter`; `record` moves them to the load's start."""

    index: int
    warmup: bool = False
    group: str = ""
    scheduled: float | None = None  # None: no schedule, it is due when it starts
    started: float = 0.0
    finished: float = 0.0
    chunk_times: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    usage: Usage = _NO_USAGE
    ended: bool = False  # the server said that the answer is complete
    outcome: Outcome = Outcome.OK
    status: int | None = None
    error: str = ""

    def end(self, outcome: Outcome, error: str) -> None:
        self.outcome, self.error = outcome, error

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


async def carry_out(
    exchange: Exchange, session: aiohttp.ClientSession, *, url: str, body: bytes, stream: bool, timeout_s: float
) -> None:
    """Sends `body` and fills `exchange`. Whatever happens becomes its outcome; only a cancellation goes on, once
    noted."""
    exchange.started = perf_counter()
    try:
        async with (
            asyncio.timeout(timeout_s),
            session.post(url, data=body, allow_redirects=False) as response,
        ):
            exchange.status = response.status
            if response.status != 200:
                exchange.end(Outcome.HTTP_ERROR, f"{response.status}: {error_text(await response.read())}")
            elif stream:
                await _read_stream(exchange, response)
            else:
                _take(exchange, decode_chunk(await response.read()))
                _check_whole_answer(exchange)
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
            chunk = decode_chunk(payload)
            # vLLM's rule: content is what has choices, even with an empty text; the usage chunk has none.
            if chunk.choices:
                exchange.chunk_times.append(now)
            _take(exchange, chunk)
    _check_stream(exchange, response)


def _take(exchange: Exchange, chunk: Chunk) -> None:
    if chunk.choices:
        choice = chunk.choices[0]
        exchange.texts.append(choice_text(choice))
        if choice.finish_reason is not None:
            exchange.ended = True
    if chunk.response is not None:
        exchange.texts.append(chunk.response)
    if chunk.usage is not None:
        exchange.usage = chunk.usage
    if chunk.error is not None:
        exchange.end(
            Outcome.HTTP_ERROR, f"the server reported in its answer: {error_text(msgspec.json.encode(chunk.error))}"
        )


def _check_stream(exchange: Exchange, response: aiohttp.ClientResponse) -> None:
    """A stream that ended without an error of its own: did it hold an answer, and all of it?"""
    if exchange.outcome is not Outcome.OK:
        return
    if not exchange.chunk_times:
        exchange.end(Outcome.MALFORMED, f"no content chunk in an answer of type {response.content_type}")
    elif not exchange.ended:
        exchange.end(Outcome.MALFORMED, f"the stream ended after {len(exchange.chunk_times)} chunks without [DONE]")


def _check_whole_answer(exchange: Exchange) -> None:
    if exchange.outcome is Outcome.OK and not exchange.texts:
        exchange.end(Outcome.MALFORMED, "the answer has no choices")


# --- what a load is to do, checked before anything is sent ---


ARRIVALS = ("poisson", "constant")


@dataclass(frozen=True)
class Plan:
    """The arguments of a load run; see `labkit.load.run`."""

    model: str
    workload: Workload
    concurrency: int | None
    rate: float | None
    arrival: str
    api: Api
    stream: bool
    warmup: int
    timeout_s: float
    stop_after_s: float | None
    arrival_seed: int | None

    def check(self) -> None:
        """UsageError with the value and the remedy on the first argument that is wrong."""
        if not self.workload.requests:
            raise UsageError(f"workload {self.workload.name!r} has 0 requests", remedy="build it with n=1 or more")
        self._check_loop()
        errors.whole("warmup", self.warmup, at_least=0)
        errors.above_zero("timeout_s", self.timeout_s, unit="seconds")
        if self.stop_after_s is not None:
            errors.above_zero("stop_after_s", self.stop_after_s, unit="seconds")
        self._check_api()

    def _check_loop(self) -> None:
        if (self.concurrency is None) == (self.rate is None):
            raise UsageError(
                f"concurrency is {self.concurrency} and rate is {self.rate}; exactly one of them drives a load",
                remedy="pass concurrency=N (closed loop) or rate=R in requests per second (open loop)",
            )
        if self.concurrency is not None:
            errors.whole("concurrency", self.concurrency, at_least=1)
        if self.rate is not None:
            errors.above_zero("rate", self.rate, unit="requests per second")
        if self.arrival not in ARRIVALS:
            raise UsageError(f"arrival is {self.arrival!r}", remedy=f"choose one of {', '.join(ARRIVALS)}")

    def _check_api(self) -> None:
        if self.api not in PATHS:
            raise UsageError(f"api is {self.api!r}", remedy=f"choose one of {', '.join(PATHS)}")
        if self.api == "plain" and self.stream:
            raise UsageError("a plain answer comes whole", remedy="pass stream=False")
        if self.api != "chat" and any(request.messages for request in self.workload.requests):
            raise UsageError(f"the workload holds chat messages; {self.api} takes none", remedy='pass api="chat"')

    @property
    def seed(self) -> int | None:
        """The seed of the arrival times: as given, else the workload's."""
        return self.workload.parameters.get("seed") if self.arrival_seed is None else self.arrival_seed

    def arrivals_s(self) -> tuple[float, ...]:
        """When each request of an open loop is due, in seconds since the start."""
        n = len(self.workload.requests)
        if self.rate is None:
            return ()
        if self.arrival == "constant":
            return constant_arrivals_s(n, rate=self.rate)
        return poisson_arrivals_s(n, rate=self.rate, seed=self.seed or 0)

    def body(self, request: Request) -> bytes:
        """The JSON of `request`."""
        return body(request, model=self.model, api=self.api, stream=self.stream)

    def warmup_requests(self) -> list[Request]:
        """The first requests with their words in reverse: as long as what is measured, but sharing no prefix with it,
        or a prefix cache would answer the measured ones."""
        requests = self.workload.requests
        return [_reversed(requests[index % len(requests)]) for index in range(self.warmup)]


def _reversed(request: Request) -> Request:
    messages = request.messages and tuple(_reversed_message(message) for message in request.messages)
    return replace(request, prompt=_reversed_words(request.prompt), messages=messages)


def _reversed_message(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return {**message, "content": _reversed_words(content)} if isinstance(content, str) else message


def _reversed_words(text: str) -> str:
    return " ".join(reversed(text.split(" ")))


# --- before a load starts: does anything listen, is the model known, is the key accepted? ---


_PATIENCE_S = 10.0
TORCHSERVE_REFUSAL = b"Token Authorization failed"  # said with a 400


async def check_server(session: aiohttp.ClientSession, root: str, model: str) -> None:
    """One GET of `root`/models. LoadError if nothing answers or the key is refused, UsageError if `model` is
    unknown."""
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
    names = _model_names(raw, url)
    if model not in names:
        raise UsageError(
            f"the server has no model {model!r}", remedy=f"choose one of: {', '.join(names) or 'none served'}"
        )


async def _get(session: aiohttp.ClientSession, url: str) -> tuple[int, bytes]:
    try:
        async with asyncio.timeout(_PATIENCE_S), session.get(url) as response:
            return response.status, await response.read()
    except TimeoutError as error:
        raise LoadError(
            f"{url} gave no answer within {_PATIENCE_S:g} s", remedy="look into the server's log: is it still starting?"
        ) from error
    except aiohttp.ClientConnectorError as error:
        raise LoadError(f"nothing listens at {url} ({error})", remedy="start the server, or correct the URL") from error
    except (aiohttp.ClientError, OSError) as error:
        raise LoadError(
            f"{url} cannot be read ({error or type(error).__name__})", remedy="is an OpenAI-compatible server there?"
        ) from error


def _model_names(raw: bytes, url: str) -> list[str]:
    try:
        listing: Any = msgspec.json.decode(raw)
        return [str(entry["id"]) for entry in listing["data"]]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise LoadError(
            f"{url} lists no models: {raw[:80]!r}", remedy="is an OpenAI-compatible server there?"
        ) from error


# --- runner ---


Progress = Callable[[int, int], None]
"""Called with (measured requests finished, measured requests in all), in the thread that runs the load."""

_KEEP_ALIVE_S = 4.0
"""Idle connections are given up before the server does it (uvicorn, and so vLLM, after 5 s): a request sent into a
connection that is just being closed fails without the server ever having seen it."""

_TIMER_S = 0.001
"""What the event loop's timers resolve: a request is sent up to so much late, never early."""


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
    progress: Progress | None = None,
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
    plan = Plan(
        model, workload, concurrency, rate, arrival, api, stream, warmup, timeout_s, stop_after_s, arrival_seed=seed
    )
    plan.check()
    root = api_root(base_url)
    _allow_many_connections()
    async with _session(api_key) as session:
        if preflight and api != "plain":
            await check_server(session, root, model)
        return await _Run(plan, session, root + PATHS[api], progress).result()


def _allow_many_connections() -> None:
    """Raises this process's limit on open files to what it may have: an open loop may have thousands under way."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _session(api_key: str | None) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
        headers=headers(api_key),
        timeout=aiohttp.ClientTimeout(total=None),  # each request has a time-out of its own
        cookie_jar=aiohttp.DummyCookieJar(),
    )


@dataclass(frozen=True)
class _Item:
    """A request that is ready to go."""

    exchange: Exchange
    body: bytes


class _Run:
    """One run of a plan over one session."""

    def __init__(self, plan: Plan, session: aiohttp.ClientSession, url: str, progress: Progress | None) -> None:
        self._plan = plan
        self._session = session
        self._url = url
        self._progress = progress
        self._finished = 0
        # Bodies are encoded here, so that it costs nothing while measuring.
        self._items = self._prepare(plan.workload.requests)
        self._warmup_items = self._prepare(plan.warmup_requests(), warmup=True)

    def _prepare(self, requests: Sequence[Request], *, warmup: bool = False) -> list[_Item]:
        return [
            _Item(Exchange(index, warmup=warmup, group=request.group), self._plan.body(request))
            for index, request in enumerate(requests)
        ]

    async def result(self) -> LoadResult:
        """Warms up, measures, and gathers the records."""
        await self._closed_loop(self._warmup_items, self._plan.concurrency or self._plan.warmup)
        zero, cpu_before_s = perf_counter(), process_time()
        await self._measure(zero)
        duration_s, cpu_s = perf_counter() - zero, process_time() - cpu_before_s
        result = self._gather(zero, duration_s, cpu_s)
        return replace(result, warnings=find_doubts(result, asked=len(self._items)))

    async def _measure(self, zero: float) -> None:
        """The measured requests. An error in the progress callback, the only one that can come up, ends it all."""
        try:
            async with asyncio.timeout(self._plan.stop_after_s) as limit:
                if self._plan.concurrency is not None:
                    await self._closed_loop(self._items, self._plan.concurrency)
                else:
                    await self._open_loop(zero)
        except TimeoutError:
            if not limit.expired():
                raise
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _closed_loop(self, items: Sequence[_Item], concurrency: int) -> None:
        queue = iter(items)

        async def worker() -> None:
            for item in queue:
                await self._send(item)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(concurrency, len(items))):
                tasks.create_task(worker())

    async def _open_loop(self, zero: float) -> None:
        async with asyncio.TaskGroup() as tasks:
            for item, due_s in zip(self._items, self._plan.arrivals_s(), strict=True):
                item.exchange.scheduled = due = zero + due_s
                while (wait_s := due - perf_counter()) > 0:
                    await asyncio.sleep(max(wait_s, _TIMER_S))
                tasks.create_task(self._send(item))

    async def _send(self, item: _Item) -> None:
        plan = self._plan
        await carry_out(
            item.exchange, self._session, url=self._url, body=item.body, stream=plan.stream, timeout_s=plan.timeout_s
        )
        if self._progress is not None and not item.exchange.warmup:
            self._finished += 1
            self._progress(self._finished, len(self._items))

    def _gather(self, zero: float, duration_s: float, cpu_s: float) -> LoadResult:
        plan = self._plan
        return LoadResult(
            records=tuple(item.exchange.record(zero) for item in self._items if item.exchange.started),
            duration_s=duration_s,
            client_cpu_s=cpu_s,
            concurrency=plan.concurrency,
            rate=plan.rate,
            workload=plan.workload.name,
            seed=plan.seed,
            warmup_records=tuple(item.exchange.record(zero) for item in self._warmup_items),
            model=plan.model,
            api=plan.api,
            stream=plan.stream,
            arrival=plan.arrival if plan.rate is not None else None,
        )


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
