"""Run a workload against a server: closed loop (requests in flight) or open loop (arrival rate)."""

import asyncio
import resource
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from time import perf_counter, process_time
from typing import Any

import aiohttp
import msgspec

from labkit import errors
from labkit.errors import require
from labkit.experiments import few_requests
from labkit.load.address import PATHS, Address, Api, parse
from labkit.load.answers import Answer, error_text
from labkit.load.blocking import blocking
from labkit.load.preflight import check_server
from labkit.load.results import LoadResult, Outcome, RequestRecord
from labkit.load.workloads import Request, Turn, Workload, arrivals_s

ARRIVALS = ("poisson", "constant")
LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")
KEEP_ALIVE_S = 4.0
"""Close idle connections before the server does (uvicorn, and so vLLM, after 5 s): a request sent into a closing
connection fails although the server never received it."""
TIMER_S = 0.001
"""Resolution of the event loop's timers: requests are sent up to this much late, never early."""
READ_BUFFER_BYTES = 2**20
"""aiohttp's read-ahead: with its default of 64 KiB, one long event pauses reading many times."""
AFTER_DONE_S = 1.0
"""Close a connection that stays open this long after [DONE]."""
OnFinished = Callable[[int, int], None]
"""Called with (measured requests finished, all measured requests), in the thread that runs the load."""


def _encode(
    request: Request, *, model: str, api: Api, stream: bool, limit_field: str | None, more: Mapping[str, Any]
) -> bytes:
    fields: dict[str, Any] = {"model": model, "temperature": request.temperature}
    if api == "chat":
        fields |= {"messages": request.chat_messages, limit_field or "max_completion_tokens": request.max_tokens}
    else:
        fields |= {"prompt": request.prompt, limit_field or "max_tokens": request.max_tokens}
    if request.seed is not None:
        fields["seed"] = request.seed
    if request.ignore_eos:  # a vLLM extension: not sent where it changes nothing
        fields["ignore_eos"] = True
    if stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    fields |= more
    return msgspec.json.encode({name: value for name, value in fields.items() if value is not None})


# --- one request and its answer ---


@dataclass(slots=True)
class Exchange:
    """A request in flight. Times are `time.perf_counter`'s; `record` makes them relative to the load's start."""

    index: int
    request: Request
    body: bytes = b""  # encoded before the load starts, outside the measurement
    warmup: bool = False
    scheduled: float | None = None  # None: due when it starts
    started: float = 0.0
    finished: float = 0.0
    status: int | None = None
    answer: Answer = field(default_factory=Answer)

    def record(self, zero: float, address: Address) -> RequestRecord:
        """Return the finished record, with times relative to `zero`."""
        answer = self.answer
        return RequestRecord(
            index=self.index,
            scheduled_s=(self.started if self.scheduled is None else self.scheduled) - zero,
            started_s=self.started - zero,
            chunk_times_s=tuple(time - zero for time in answer.chunk_times),
            finished_s=self.finished - zero,
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
            outcome=answer.outcome,
            status=self.status,
            error=address.hide(answer.error),
            text=answer.text,
            warmup=self.warmup,
            group=self.request.group,
            answer_token_s=None if answer.answer_time is None else answer.answer_time - zero,
            limit_tokens=self.request.max_tokens,
            notes=tuple(map(address.hide, answer.notes)),
        )


async def _carry_out(
    exchange: Exchange, session: aiohttp.ClientSession, *, url: str, stream: bool, timeout_s: float
) -> None:
    """Send the request; every error becomes its outcome, and only a cancellation is raised again."""
    exchange.started = perf_counter()
    answer = exchange.answer
    content_type = ""
    try:
        async with (
            asyncio.timeout(timeout_s) as limit,
            session.post(url, data=exchange.body, allow_redirects=False) as response,
        ):
            exchange.status = response.status
            content_type = response.content_type
            if not 200 <= response.status < 300:
                answer.fail(Outcome.HTTP_ERROR, await _refusal(response))
            elif stream:
                async for received in response.content.iter_any():
                    answer.feed(received, perf_counter())
                    if answer.done:  # some servers leave the connection open
                        limit.reschedule(asyncio.get_running_loop().time() + AFTER_DONE_S)
                answer.finish(content_type, perf_counter())
            else:
                answer.take_whole(await response.read(), perf_counter())
    except asyncio.CancelledError:
        answer.fail(Outcome.CANCELLED, "the load was stopped")
        raise
    except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
        if answer.done:
            answer.finish(content_type, perf_counter())
        else:
            answer.fail(*_failure(error, timeout_s))
    finally:
        exchange.finished = perf_counter()


def _failure(error: Exception, timeout_s: float) -> tuple[Outcome, str]:
    if isinstance(error, TimeoutError):
        return Outcome.TIMEOUT, f"no complete answer within {timeout_s:g} s"
    if isinstance(error, ValueError | aiohttp.ClientResponseError):
        return Outcome.MALFORMED, f"the answer cannot be read: {error}"
    return Outcome.CONNECTION, str(error) or type(error).__name__


async def _refusal(response: aiohttp.ClientResponse) -> str:
    wait = response.headers.get("Retry-After")
    after = f" (Retry-After: {wait})" if wait else ""
    return f"{response.status}{after}: {error_text(await response.read())}"


# --- before a load starts ---


def _check_loop(concurrency: int | None, rate: float | None, arrival: str, ramp_from: float | None, own: bool) -> None:
    """`own`: the workload defines its arrival times."""
    fix = "leave the rate out (a trace has `speed`), or choose another workload"
    require(rate is None or not own, f"rate is {rate}; this workload has arrival times of its own", fix=fix)
    what = f"concurrency is {concurrency} and rate is {rate}; exactly one of them drives a load"
    fix = "pass concurrency=N (closed loop) or rate=R in requests per second (open loop)"
    require(own or (concurrency is None) != (rate is None), what, fix=fix)  # a trace may also run at a concurrency
    if concurrency is not None:
        errors.whole("concurrency", concurrency, at_least=1)
    if rate is not None:
        errors.above_zero("rate", rate, unit="requests per second")
    if ramp_from is not None:
        errors.above_zero("ramp_from", ramp_from, unit="the unit of rate or concurrency")
        top = rate if concurrency is None else concurrency
        low_enough = top is not None and ramp_from < top
        require(low_enough, f"ramp_from is {ramp_from:g}, but the load rises to {top}", fix="start below that")
        if concurrency is not None:
            errors.whole("ramp_from", ramp_from, at_least=1)
    require(arrival in ARRIVALS, f"arrival is {arrival!r}", fix=f"choose one of {', '.join(ARRIVALS)}")


def _check_requests(workload: Workload, api: Api, limit_field: str | None) -> None:
    require(bool(workload.requests), f"workload {workload.name!r} has 0 requests", fix="build it with n=1 or more")
    require(api in PATHS, f"api is {api!r}", fix="choose one of completions, chat")
    chats = any(request.messages or isinstance(request, Turn) for request in workload.requests)
    takes_them = api == "chat" or not chats
    what = f"the workload contains chat messages, which the {api} API does not accept"
    require(takes_them, what, fix='pass api="chat" (--api chat)')
    is_field = limit_field in (None, *LIMIT_FIELDS)
    require(is_field, f"limit_field is {limit_field!r}", fix=f"choose one of {', '.join(LIMIT_FIELDS)}")


def _reversed(request: Request) -> Request:
    """Reverse the words, or a single word's characters: about the same length without a shared prefix, so a prefix
    cache does not serve the original."""

    def backwards(text: Any) -> Any:
        if isinstance(text, list):  # content in parts
            return [
                {**part, "text": backwards(part["text"])} if isinstance(part, dict) and "text" in part else part
                for part in text
            ]
        if not isinstance(text, str):
            return text
        turned = " ".join(reversed(text.split(" ")))
        return text[::-1] if turned == text else turned

    messages = request.messages and tuple(
        {**part, "content": backwards(part.get("content"))} for part in request.messages
    )
    return replace(request, prompt=backwards(request.prompt), messages=messages)


# --- the load ---


async def run(
    base_url: str,
    model: str,
    workload: Workload,
    *,
    concurrency: int | None = None,
    rate: float | None = None,
    ramp_from: float | None = None,
    arrival: str = "poisson",
    api: Api = "completions",
    stream: bool = True,
    warmup: int = 0,
    timeout_s: float = 600.0,
    stop_after_s: float | None = None,
    seed: int | None = None,
    api_key: str | None = None,
    preflight: bool = True,
    limit_field: str | None = None,
    body: Mapping[str, Any] | None = None,
    progress: OnFinished | None = None,
    on_cancel: Callable[[LoadResult], None] | None = None,
) -> LoadResult:
    """Send `workload` to the OpenAI-compatible server at `base_url` (root, versioned path or endpoint) and record
    every answer.

    Pass either `concurrency` (closed loop) or `rate` in requests per second (open loop: each request is sent when due,
    whatever is in flight), or neither for a workload with arrival times. `ramp_from` starts lower and rises linearly.
    `arrival` is "poisson" (seeded by `seed`, default the workload's) or "constant". Turns of a conversation are sent in
    order; concurrency and rate then count conversations. `warmup` requests with the words in reverse order are sent
    first and recorded separately. Requests longer than `timeout_s` end as TIMEOUT; after `stop_after_s` no more are
    sent and those in flight end as CANCELLED. Cancelling this coroutine closes its connections and passes the partial
    result to `on_cancel`.

    `limit_field` names the field that limits output tokens (default: max_tokens; for chat max_completion_tokens);
    `body` adds fields to each request, or removes those set to None, as {"stream_options": None}.

    With `preflight`, UsageError (unknown model) or LoadError (no server, key refused) before anything is sent. A failed
    request is an outcome, not an error."""
    _check_requests(workload, api, limit_field)
    _check_loop(concurrency, rate, arrival, ramp_from, own=bool(workload.due_s))
    errors.whole("warmup", warmup, at_least=0)
    errors.above_zero("timeout_s", timeout_s, unit="seconds")
    if stop_after_s is not None:
        errors.above_zero("stop_after_s", stop_after_s, unit="seconds")
    address = parse(base_url, api_key=api_key)
    encode = partial(_encode, model=model, api=api, stream=stream, limit_field=limit_field, more=body or {})
    seed = workload.parameters.get("seed") if seed is None else seed
    warmers = [_reversed(request) for request in workload.requests if not isinstance(request, Turn)]
    before = [Exchange(k, warmers[k % len(warmers)], warmup=True) for k in range(warmup)]
    measured = [Exchange(k, request) for k, request in enumerate(workload.requests)]
    for exchange in (*before, *measured):
        exchange.body = encode(exchange.request)
    chains = _chains(measured)
    due_s = workload.due_s
    if rate is not None:
        due_s = arrivals_s(len(chains), rate=rate, ramp_from=ramp_from, arrival=arrival, seed=seed or 0)
    # An open loop may need thousands of connections: raise the limit of open files.
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    async with _session(address) as session:
        if preflight:
            await check_server(session, address, model)
        finished = 0

        async def send(exchange: Exchange) -> None:
            nonlocal finished
            await _carry_out(exchange, session, url=address.url(PATHS[api]), stream=stream, timeout_s=timeout_s)
            if progress is not None and not exchange.warmup:
                finished += 1
                progress(finished, len(measured))

        async def converse(chain: Sequence[Exchange]) -> None:
            await send(chain[0])
            for earlier, exchange in pairwise(chain):
                if earlier.answer.outcome is not Outcome.OK:
                    return
                if isinstance(exchange.request, Turn):
                    await _think(exchange, exchange.request, earlier)
                exchange.body = encode(exchange.request)
                await send(exchange)

        await _closed_loop([[exchange] for exchange in before], converse, concurrency or warmup)
        zero, cpu_before_s = perf_counter(), process_time()

        def result() -> LoadResult:
            return LoadResult(
                records=tuple(exchange.record(zero, address) for exchange in measured if exchange.started),
                duration_s=perf_counter() - zero,
                client_cpu_s=process_time() - cpu_before_s,
                concurrency=concurrency,
                rate=rate,
                workload=workload.name,
                seed=seed,
                warnings=tuple(filter(None, [few_requests(workload.chains, concurrency=concurrency)])),
                warmup_records=tuple(exchange.record(zero, address) for exchange in before),
                model=model,
                api=api,
                stream=stream,
                arrival=arrival if rate is not None else None,
            ).with_warnings(planned=len(measured), ramp_from=ramp_from)

        try:
            async with asyncio.timeout(stop_after_s) as limit:
                if concurrency is not None:
                    await _closed_loop(chains, converse, concurrency, start=int(ramp_from or concurrency))
                else:
                    await _open_loop(chains, converse, due_s, zero)
        except TimeoutError:
            if not limit.expired():
                raise
        except asyncio.CancelledError:
            if on_cancel is not None:
                on_cancel(result())
            raise
        except BaseExceptionGroup as group:  # only the progress callback can raise
            raise group.exceptions[0] from None
        return result()


def _chains(exchanges: Sequence[Exchange]) -> list[list[Exchange]]:
    """Group the turns of each conversation, in order; other requests are chains of length 1."""
    chain_of: dict[int, list[Exchange]] = {}
    chains: list[list[Exchange]] = []
    for exchange in exchanges:
        if isinstance(exchange.request, Turn):
            chain = chain_of[exchange.request.follows]
        else:
            chains.append(chain := [])
        chain.append(exchange)
        chain_of[exchange.index] = chain
    return chains


async def _think(exchange: Exchange, turn: Turn, earlier: Exchange) -> None:
    """Wait for the think time after the `earlier` answer, then put the conversation so far before the request."""
    exchange.scheduled = earlier.finished + turn.think_s
    await _until(exchange.scheduled)
    answer = {"role": "assistant", "content": earlier.answer.text}
    exchange.request = replace(turn, prompt="", messages=(*earlier.request.chat_messages, answer, *turn.chat_messages))


def _session(address: Address) -> aiohttp.ClientSession:
    key = {"Authorization": address.authorization} if address.authorization else {}
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
        # No compression: a compressor would hold chunks back.
        headers={"Content-Type": "application/json", "Accept-Encoding": "identity", **key},
        timeout=aiohttp.ClientTimeout(total=None),  # _carry_out sets the time-out
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=READ_BUFFER_BYTES,
    )


Converse = Callable[[Sequence[Exchange]], Coroutine[Any, Any, None]]


async def _closed_loop(
    chains: Sequence[Sequence[Exchange]], converse: Converse, concurrency: int, *, start: int | None = None
) -> None:
    """Keep `concurrency` chains in flight; with `start`, rise from there until three quarters have begun."""
    queue = iter(enumerate(chains, start=1))
    low, workers = concurrency if start is None else start, 0

    async def worker() -> None:
        for begun, chain in queue:
            add(min(concurrency, low + (concurrency - low) * begun * 4 // (3 * len(chains))))
            await converse(chain)

    async with asyncio.TaskGroup() as tasks:

        def add(wanted: int) -> None:
            nonlocal workers
            while workers < min(wanted, len(chains)):
                workers += 1
                tasks.create_task(worker())

        add(low)


async def _open_loop(
    chains: Sequence[Sequence[Exchange]], converse: Converse, due_s: Sequence[float], zero: float
) -> None:
    async with asyncio.TaskGroup() as tasks:
        for chain, after_s in zip(chains, due_s, strict=True):
            chain[0].scheduled = zero + after_s
            await _until(zero + after_s)
            tasks.create_task(converse(chain))


async def _until(due: float) -> None:
    while (wait_s := due - perf_counter()) > 0:
        await asyncio.sleep(max(wait_s, TIMER_S))


run_blocking = blocking(run)
