"""The probes and the broken deployments of lab 05, on a real Ray: what they do is what the lab says of them."""

import asyncio
import functools
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from applications import broken, mended, probes
from course.replica_logs import logged_errors
from labkit.serving import ray_serve
from labkit.serving.ray_watch import Ask, Observation, message, running
from tests.unit.standin import survivors

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

SCALING = {
    "min_replicas": 1,
    "max_replicas": 2,
    "target_ongoing_requests": 1,
    "upscale_delay_s": 0.5,
    "downscale_delay_s": 1,
    "metrics_interval_s": 0.2,
    "look_back_period_s": 1,
}


@pytest.fixture(scope="module")
def ray() -> Iterator[ray_serve.RayServe]:
    """One Ray for all of them, with one logical GPU. When it is stopped, no process of it may be left."""
    with ray_serve.start(num_gpus=1) as started:
        processes = [psutil.Process(pid) for pid in started.pids]
        yield started
    assert not survivors(processes, within_s=5)


@pytest.fixture(scope="module")
def url(ray: ray_serve.RayServe) -> str:
    """Where everything is deployed: the faulty application, its cure, and the probe in three variants."""
    from ray import serve

    options: Any = probes.Probe.options  # type: ignore[attr-defined]
    variants = {
        "handlers": options(),
        "elastic": options(autoscaling_config=SCALING, max_ongoing_requests=4),
        "pair": options(num_replicas=2, max_ongoing_requests=2, max_queued_requests=3),
    }
    apps = {"broken": broken.small(), "mended": mended.build(), **{n: one.bind() for n, one in variants.items()}}
    serve.run_many([serve.RunTarget(app, name=name, route_prefix=f"/{name}") for name, app in apps.items()])
    return ray.url


async def ask(url: str, body: object) -> tuple[int, str]:
    """Status and text of one POST."""
    (answer,) = await Observation().ask_all([Ask(url, body=body)])
    return answer.status, answer.text


GOOD = {"text": "where is my parcel"}


def test_a_route_in_the_decorator_is_refused() -> None:
    """Ray Serve has no such argument: the deployment cannot even be declared."""
    with pytest.raises(TypeError, match="route_prefix"):
        broken.route_in_the_decorator()


async def test_each_fault_shows_as_the_lab_says(url: str) -> None:
    """Handing over and a forgotten await end in 500, a hidden error in 200, and the log names the exceptions."""
    assert (await ask(f"{url}/broken/hands_over", GOOD))[0] == 500
    assert (await ask(f"{url}/broken/forgets_await", GOOD))[0] == 500
    assert (await ask(f"{url}/broken/takes_it_out", GOOD)) == (200, '{"words":4}')
    status, text = await ask(f"{url}/broken/hides_errors", "{text")
    assert status == 200
    assert "JSONDecodeError" in text
    lines = await asyncio.to_thread(logged_errors, "broken", "Help")
    assert any(line.startswith("KeyError: 'app'") for line in lines)
    assert any("'coroutine' object has no attribute 'get'" in line for line in lines)


async def test_the_mended_one_answers_or_says_what_is_wrong(url: str) -> None:
    """A text is counted; a body that is no JSON or has another field is the client's fault, 422."""
    assert await ask(f"{url}/mended/", GOOD) == (200, '{"words":4}')
    for body in ("{text", {"txt": "a"}, {"text": ""}, {"text": 1}):
        assert (await ask(f"{url}/mended/", body))[0] == 422


async def test_a_response_may_be_passed_on_and_a_coroutine_not(url: str) -> None:
    """The next deployment gets the value of a response that nobody waited for; a piece of running code cannot go."""
    from ray import serve

    assert url
    splitter, model = (serve.get_deployment_handle(name, "mended") for name in ("Splitter", "Model"))
    assert await model.answer.remote(splitter.split.remote("where is it")) == 3
    promise = asyncio.sleep(0)
    with pytest.raises(TypeError, match="coroutine"):
        await model.answer.remote(promise)
    promise.close()


def test_an_application_that_asks_for_too_much_waits(url: str) -> None:
    """Five GPUs where there is one: it is deployed for ever, and Ray Serve says what is missing; others go on."""
    from ray import serve

    target = serve.RunTarget(broken.greedy(), name="greedy", route_prefix="/greedy")
    serve.run_many([target], wait_for_applications_running=False, wait_for_ingress_deployment_creation=False)

    def told() -> bool:
        return "Resources required" in message("greedy", "Pretender")

    ray_serve.wait_for(told, timeout_s=120, what="a word on what is missing")
    assert '"GPU": 1' in message("greedy", "Pretender")
    assert serve.status().applications["greedy"].status == "DEPLOYING"
    assert serve.status().applications["mended"].status == "RUNNING"
    serve.delete("greedy")
    assert url


@pytest.mark.parametrize(("method", "stops"), [("sync", False), ("blocking_async", True), ("asynchronous", False)])
async def test_only_the_blocking_async_handler_stops_the_others(url: str, method: str, stops: bool) -> None:
    """A second call, made while the first one waits, overtakes it, unless the first blocks the replica's loop."""
    from ray import serve

    assert url
    handle, order = serve.get_app_handle("handlers"), []

    async def call(name: str, way: str, wait_s: float) -> None:
        await getattr(handle, way).remote(wait_s)
        order.append(name)

    first = asyncio.create_task(call("first", method, 6.0))
    await asyncio.sleep(2)  # on a busy machine, too, the first call is in the replica then
    await asyncio.gather(first, call("second", "asynchronous", 0.0))
    assert order == (["first", "second"] if stops else ["second", "first"])


async def test_a_full_queue_is_told_at_once(url: str) -> None:
    """Of a burst, what has no room in replicas and queue gets 503; the rest is answered by both replicas."""
    seen = Observation()
    await seen.ask_all([Ask(f"{url}/pair?s=1") for _ in range(40)])
    statuses = {one.status for one in seen.answers}
    assert statuses == {200, 503}
    served = [one for one in seen.answers if one.ok]
    assert len({one.text for one in served}) == 2
    # Not four in the replicas and three that wait: Ray counts a request as waiting until it has a replica, so of
    # requests that come at the same moment it may turn away all but the three that the queue holds.
    assert 3 <= len(served) < 40


async def test_a_request_may_say_how_long_it_waits(url: str) -> None:
    """A time-out in the request's header ends it with 408."""
    header = {"x-request-timeout-seconds": "0.3"}
    (answer,) = await Observation().ask_all([Ask(f"{url}/handlers?s=30", headers=header)])
    assert answer.status == 408


async def test_replicas_follow_the_requests_under_way(url: str) -> None:
    """A second replica comes while requests pile up, answers some of them, and goes when they are over."""
    seen = Observation()

    def shared() -> bool:
        return len({one.text for one in seen.answers}) > 1

    async with seen.watching("elastic", "Probe"):
        await seen.ask_until(Ask(f"{url}/elastic?s=1"), shared, rate=5, at_most_s=120)
    assert shared()
    assert seen.replicas[0][1] == 1
    alone = functools.partial(running, "elastic", "Probe")
    await asyncio.to_thread(ray_serve.wait_for, lambda: alone() == 1, timeout_s=120, what="one replica again")


async def test_a_dead_replica_is_replaced_under_load(url: str) -> None:
    """The replica that is killed answers no more; the other goes on, and a new one takes its place."""
    from ray import serve

    seen, deaths = Observation(), list[tuple[str, float]]()

    async def kill() -> None:
        await asyncio.sleep(1)
        pid = await serve.get_app_handle("pair").die.remote()
        deaths.append((pid, seen.now_s()))

    def replaced() -> bool:
        known = {one.text for one in seen.answers if one.ok and deaths and one.finished_s < deaths[0][1]}
        return bool(deaths) and any(one.ok and one.text not in known | {deaths[0][0]} for one in seen.answers)

    load = seen.ask_until(Ask(f"{url}/pair?s=0.1"), replaced, rate=10, at_most_s=120)
    await asyncio.gather(kill(), load)
    assert replaced()
    pid, died_s = deaths[0]
    late = [one for one in seen.answers if one.sent_s > died_s + 1]
    assert all(one.text != pid for one in late)
    assert any(one.ok for one in late)
