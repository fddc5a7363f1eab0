"""What a client sees of a Ray Serve application while something happens to it, beside what Ray Serve says itself.

For requests that are not OpenAI's (`labkit.load` sends those). Times are seconds since the observation began.
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
    """What came back; `status` is 0 where nothing did (refused, reset, timed out by this client)."""

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
    """A clock, what was asked since it began, and how many replicas were running meanwhile."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.answers: list[Answer] = []
        self.replicas: list[tuple[float, int]] = []

    def now_s(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._began

    async def ask_all(self, asks: Sequence[Ask], *, timeout_s: float = 60.0) -> list[Answer]:
        """Sends each request when it is due, whatever is still under way; returns when all have been answered."""
        async with session(timeout_s) as client:
            answers = await asyncio.gather(*(self._ask(client, ask) for ask in asks))
        self.answers += answers
        return list(answers)

    async def ask_until(
        self, ask: Ask, done: Callable[[], bool], *, rate: float, at_most_s: float, timeout_s: float = 60.0
    ) -> None:
        """Sends `ask` at `rate` a second until `done` (looked at before each) or for `at_most_s`; waits for answers."""
        began, number = self.now_s(), 0
        async with session(timeout_s) as client, asyncio.TaskGroup() as tasks:
            while not done() and self.now_s() - began < at_most_s:
                tasks.create_task(self._noted(client, ask))
                number += 1
                await asyncio.sleep(max(0.0, began + number / rate - self.now_s()))

    async def _noted(self, client: aiohttp.ClientSession, ask: Ask) -> None:
        self.answers.append(await self._ask(client, ask))

    async def _ask(self, client: aiohttp.ClientSession, ask: Ask) -> Answer:
        if (wait_s := ask.at_s - self.now_s()) > 0:
            await asyncio.sleep(wait_s)
        sent_s = self.now_s()
        status, text = await fetch(client, ask)
        return Answer(sent_s, self.now_s(), status, text)

    @contextlib.asynccontextmanager
    async def watching(self, application: str, deployment: str) -> AsyncIterator[None]:
        """Notes the running replicas, as `serve.status()` tells them, every so often inside the block."""
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

    def under_way(self) -> list[tuple[float, int]]:
        """How many requests were sent and not answered yet, after each change."""
        sent = [(answer.sent_s, 1) for answer in self.answers]
        changes = sorted(sent + [(answer.finished_s, -1) for answer in self.answers])
        return list(zip((at for at, _ in changes), accumulate(change for _, change in changes), strict=True))


def running(application: str, deployment: str) -> int:
    """The running replicas of a deployment, by `serve.status()`; 0 while Serve does not know it."""
    from ray import serve

    app = serve.status().applications.get(application)
    status = app.deployments.get(deployment) if app else None
    return int(status.replica_states.get("RUNNING", 0)) if status else 0


@contextlib.asynccontextmanager
async def session(timeout_s: float = 60.0) -> AsyncIterator[aiohttp.ClientSession]:
    """Connections without limit; cookies and the environment's proxies stay out of it."""
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=timeout_s)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as one:
        yield one


async def fetch(client: aiohttp.ClientSession, ask: Ask) -> tuple[int, str]:
    """Status and text of the answer; status 0 and the error's name without one."""
    try:
        async with client.request("GET" if ask.body is None else "POST", ask.url, **_content(ask)) as response:
            return response.status, await response.text()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return NO_ANSWER, type(error).__name__


def _content(ask: Ask) -> dict[str, Any]:
    """JSON of a value; text and bytes go as they are, so that bad JSON can be sent, too."""
    if isinstance(ask.body, str | bytes):
        return {"data": ask.body, "headers": {"Content-Type": "application/json", **ask.headers}}
    return {"headers": ask.headers} if ask.body is None else {"json": ask.body, "headers": ask.headers}


async def calls_per_second(call: Callable[[int], Awaitable[Any]], *, clients: int, calls: int) -> float:
    """`clients` call again as soon as they are answered, until `calls` calls were made: a closed loop's throughput."""
    numbers = iter(range(calls))

    async def client() -> None:
        for number in numbers:
            await call(number)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return calls / (time.perf_counter() - began)


async def seconds_of(call: Callable[[], Awaitable[Any]]) -> float:
    """How long one call takes, by the wall's clock."""
    began = time.perf_counter()
    await call()
    return time.perf_counter() - began
