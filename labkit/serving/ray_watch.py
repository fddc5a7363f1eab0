"""Observe a Ray Serve application from a client's side, with the replica counts that Ray Serve reports.

For requests outside the OpenAI API (`labkit.load` sends those). Times are seconds since the observation began.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import aiohttp

INTERVAL_S = 0.2
NO_ANSWER = 0


@dataclass(frozen=True)
class Ask:
    """A POST of `body` (or a GET without one) to `url`, due `at_s`."""

    url: str
    at_s: float = 0.0
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """A response; `status` is 0 without one (connection refused, reset, or timed out by this client)."""

    sent_s: float
    finished_s: float
    status: int
    text: str = ""

    @property
    def ok(self) -> bool:
        return self.status == 200

    @property
    def latency_s(self) -> float:
        return self.finished_s - self.sent_s


class Observation:
    """A clock, all responses since it began, and the number of running replicas over time."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.answers: list[Answer] = []
        self.replicas: list[tuple[float, int]] = []

    def now_s(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._began

    async def ask_all(self, asks: Sequence[Ask], *, timeout_s: float = 60.0) -> list[Answer]:
        """Send each request when it is due (open loop); return when all have been answered."""
        async with session(timeout_s) as client:
            answers = await asyncio.gather(*(self._ask(client, ask) for ask in asks))
        self.answers += answers
        return list(answers)

    async def ask_until(
        self, ask: Ask, done: Callable[[], bool], *, rate: float, at_most_s: float, timeout_s: float = 60.0
    ) -> None:
        """Send `ask` `rate` times per second until `done` or for `at_most_s`; then wait for the responses."""
        began, number = self.now_s(), 0
        async with session(timeout_s) as client, asyncio.TaskGroup() as tasks:
            while not done() and self.now_s() - began < at_most_s:
                tasks.create_task(self._record(client, ask))
                number += 1
                await asyncio.sleep(max(0.0, began + number / rate - self.now_s()))

    async def _record(self, client: aiohttp.ClientSession, ask: Ask) -> None:
        self.answers.append(await self._ask(client, ask))

    async def _ask(self, client: aiohttp.ClientSession, ask: Ask) -> Answer:
        if (wait_s := ask.at_s - self.now_s()) > 0:
            await asyncio.sleep(wait_s)
        sent_s = self.now_s()
        status, text = await fetch(client, ask)
        return Answer(sent_s, self.now_s(), status, text)

    @contextlib.asynccontextmanager
    async def watching(self, application: str, deployment: str) -> AsyncIterator[None]:
        """Record the running replicas by `serve.status()` every INTERVAL_S inside the block."""
        task = asyncio.create_task(self._watch(application, deployment))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _watch(self, application: str, deployment: str) -> None:
        while True:
            count = await asyncio.to_thread(running, application, deployment)
            self.replicas.append((self.now_s(), count))
            await asyncio.sleep(INTERVAL_S)

    def in_flight(self) -> list[tuple[float, int]]:
        """(time, requests in flight) after each change."""
        sent = [(answer.sent_s, 1) for answer in self.answers]
        changes = sorted(sent + [(answer.finished_s, -1) for answer in self.answers])
        return list(zip((at for at, _ in changes), accumulate(change for _, change in changes), strict=True))


def running(application: str, deployment: str) -> int:
    """Return a deployment's running replicas by `serve.status()`; 0 while Serve does not know it."""
    from ray import serve

    app = serve.status().applications.get(application)
    status = app.deployments.get(deployment) if app else None
    return int(status.replica_states.get("RUNNING", 0)) if status else 0


@contextlib.asynccontextmanager
async def session(timeout_s: float = 60.0) -> AsyncIterator[aiohttp.ClientSession]:
    """A client session without a limit of connections; it ignores cookies and proxy variables."""
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=timeout_s)
    jar = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=jar) as client:
        yield client


async def fetch(client: aiohttp.ClientSession, ask: Ask) -> tuple[int, str]:
    """Return status and text of the response; without one, 0 and the error's name."""
    try:
        async with client.request("GET" if ask.body is None else "POST", ask.url, **_content(ask)) as response:
            return response.status, await response.text()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return NO_ANSWER, type(error).__name__


def _content(ask: Ask) -> dict[str, Any]:
    """Send a value as JSON; text and bytes unchanged, so that malformed JSON can be sent too."""
    if isinstance(ask.body, str | bytes):
        return {"data": ask.body, "headers": {"Content-Type": "application/json", **ask.headers}}
    return {"headers": ask.headers} if ask.body is None else {"json": ask.body, "headers": ask.headers}


async def calls_per_second(call: Callable[[int], Awaitable[Any]], *, clients: int, calls: int) -> float:
    """Return the throughput of a closed loop: each of `clients` calls again on a response, `calls` calls in total."""
    numbers = iter(range(calls))

    async def client() -> None:
        for number in numbers:
            await call(number)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return calls / (time.perf_counter() - began)


async def seconds_of(call: Callable[[], Awaitable[Any]]) -> float:
    """Return the wall-clock seconds of one call."""
    began = time.perf_counter()
    await call()
    return time.perf_counter() - began
