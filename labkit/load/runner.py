"""Runs a workload against a server: closed loop (a number of requests under way) or open loop (a rate of arrivals)."""

import asyncio
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter, process_time

import aiohttp

from labkit.load.doubts import find_doubts
from labkit.load.exchange import Exchange, carry_out
from labkit.load.plan import Plan
from labkit.load.preflight import check_server
from labkit.load.results import LoadResult
from labkit.load.wire import PATHS, Api, api_root, headers
from labkit.workloads import Request, Workload

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
