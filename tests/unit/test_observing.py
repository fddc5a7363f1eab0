"""Observing an application: answers in order of time, and failures."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from labkit.serving.ray_watch import Answer, Ask, Observation, calls_per_second


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """A server that echoes a POST, counts GETs, fails at /broken, disconnects at /gone, and delays at /silent."""
    counted = []

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/gone":
            assert request.transport is not None
            request.transport.abort()
        if request.path == "/silent":
            await asyncio.sleep(1)
        if request.path == "/broken":
            return web.Response(status=500, text="no")
        counted.append(request.path)
        text = await request.text() if request.method == "POST" else str(len(counted))
        return web.Response(text=text)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


async def test_answers_and_failures_are_kept(url: str) -> None:
    """A value is sent as JSON, a text unchanged, and no body means GET; an error keeps its status; a broken connection
    is status 0 with the error's name."""
    asks = [Ask(url, body={"a": 1}), Ask(url, body="{not json"), Ask(url), Ask(f"{url}/broken"), Ask(f"{url}/gone")]
    *answers, gone = [(await Observation().ask_all([ask]))[0] for ask in asks]
    assert [answer.text for answer in answers] == ['{"a": 1}', "{not json", "3", "no"]
    assert [(answer.status, answer.ok) for answer in answers] == [(200, True)] * 3 + [(500, False)]
    assert (gone.status, "Disconnected" in gone.text) == (0, True)


async def test_requests_are_sent_when_they_are_due(url: str) -> None:
    """No request is early, and the observation keeps all answers."""
    seen = Observation()
    answers = await seen.ask_all([Ask(url, at_s=0.06), Ask(url, at_s=0.0), Ask(url, at_s=0.03)])
    assert all(answer.sent_s >= due - 0.001 for answer, due in zip(answers, (0.06, 0.0, 0.03), strict=True))
    assert seen.answers == answers


async def test_asking_keeps_its_rate_until_it_is_done(url: str) -> None:
    """Asking ends with the condition or after `at_most_s`; request n is not sent before n intervals; all sent requests
    end, at the latest by their time-out."""
    seen = Observation()
    await seen.ask_until(Ask(url), lambda: len(seen.answers) >= 6, rate=50, at_most_s=30)
    assert len(seen.answers) >= 6
    assert all(answer.ok for answer in seen.answers)
    sent = sorted(answer.sent_s for answer in seen.answers)
    assert all(at - sent[0] >= n / 50 - 0.01 for n, at in enumerate(sent))
    mute = Observation()
    await mute.ask_until(Ask(f"{url}/silent"), lambda: False, rate=50, at_most_s=0.1, timeout_s=0.2)
    assert mute.now_s() >= 0.1
    assert len(mute.answers) >= 3
    assert all((answer.status, answer.text) == (0, "TimeoutError") for answer in mute.answers)
    assert all(answer.latency_s >= 0.2 for answer in mute.answers)


async def test_a_closed_loop_makes_exactly_its_calls() -> None:
    """Every call is made once, with at most one in flight per client."""
    in_flight, most, seen = 0, 0, []

    async def call(number: int) -> None:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.01)
        seen.append(number)
        in_flight -= 1

    rate = await calls_per_second(call, clients=4, calls=10)
    assert sorted(seen) == list(range(10))
    assert most == 4
    assert 0 < rate < 400


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.001, 10)), max_size=30))
def test_in_flight_counts_what_was_sent_and_not_answered(spans: list[tuple[float, float]]) -> None:
    """The count ends at 0, is never negative, and at each time equals the requests in flight."""
    seen = Observation()
    seen.answers = [Answer(at, at + length, 200) for at, length in spans]
    counts = seen.in_flight()
    assert [count for _, count in counts[-1:]] == ([0] if spans else [])
    assert all(count >= 0 for _, count in counts)
    for n, (at, count) in enumerate(counts):
        if n + 1 < len(counts) and counts[n + 1][0] > at:
            assert count == sum(answer.sent_s <= at < answer.finished_s for answer in seen.answers)
