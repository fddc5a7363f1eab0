"""One real Ray for what labs deploy on it: lab 05's probes and faults, lab 06's fractions."""

import asyncio
import functools
import json
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from applications import broken, mended, probes
from course import lab_06
from course.replica_logs import logged_errors
from labkit.advice import fractions as auditor
from labkit.serving import ray_serve
from labkit.serving.ray_watch import Ask, Observation, message, running
from labkit.teaching import find
from labkit.theory import placement
from tests.unit.standin import survivors

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

GPUS = 3


@pytest.fixture(scope="module")
def ray() -> Iterator[ray_serve.RayServe]:
    """One Ray for all of them. When it is stopped, no process of it may be left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ray_serve.VISIBLE_GPUS, "GPU-5e3f")
        with ray_serve.start(num_gpus=GPUS, own_numbers=True) as started:
            processes = [psutil.Process(pid) for pid in started.pids]
            assert os.environ[ray_serve.VISIBLE_GPUS] == "GPU-5e3f"
            yield started
    assert not survivors(processes, within_s=10)


# --- lab 05: probes and faults


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
    """Five GPUs where there are three: it is deployed for ever, and Ray Serve says what is missing; others go on."""
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


# --- lab 06: fractions of GPUs


SCENE = [0.5, 0.2, 0.7, 0.6, 0.5]  # the last one finds 1.0 GPUs left in all, and its half on none of them


def deploy(fractions: dict[str, float], *, wait: bool = True) -> None:
    """A replica of each name that reports what Ray told it; without `wait` it returns at once."""
    from ray import get_runtime_context, serve

    @serve.deployment
    class Tenant:
        def gpu(self) -> str:
            return str(get_runtime_context().get_accelerator_ids()["GPU"][0])

        def surroundings(self) -> lab_06.Surroundings:
            names = [name for name in dir(resource) if "RLIMIT" in name]
            limits = {name: resource.getrlimit(getattr(resource, name)) for name in names}
            return dict(os.environ), limits, Path("/proc/self/cgroup").read_text()

    options: Any = Tenant.options  # type: ignore[attr-defined]
    apps = {
        name: options(name=name, ray_actor_options={"num_cpus": 0.1, "num_gpus": part}).bind()
        for name, part in fractions.items()
    }
    targets = [serve.RunTarget(app, name=name, route_prefix=f"/{name}") for name, app in apps.items()]
    serve.run_many(targets, wait_for_applications_running=wait)


def call(name: str, method: str, *arguments: Any) -> Any:
    """One call of a tenant's method."""
    from ray import serve

    return getattr(serve.get_app_handle(name), method).remote(*arguments).result(timeout_s=60)


def status(name: str) -> Any:
    """An application's status as Serve tells it."""
    from ray import serve

    return serve.status().applications[name]


def delete_all() -> None:
    """Takes every application away."""
    from ray import serve

    for name in [*serve.status().applications]:
        serve.delete(name)


@pytest.fixture(scope="module")
def scene(ray: ray_serve.RayServe) -> Iterator[dict[str, float]]:  # noqa: ARG001
    """The replicas of SCENE, one after the other; the last one is not waited for."""
    delete_all()
    names = {f"t{number}": part for number, part in enumerate(SCENE)}
    for name, part in [*names.items()][:-1]:
        deploy({name: part})
    deploy({"t4": SCENE[-1]}, wait=False)
    yield names
    delete_all()


def test_replicas_are_where_the_auditor_says(scene: dict[str, float]) -> None:
    """Every placed replica is on the GPU of the audit, sees it as a whole device, and the last one waits."""
    asked = [{"name": name, "num_gpus": part, "weight_gib": 1} for name, part in scene.items()]
    found = auditor.audit(*auditor.parse({"gpu": {"memory_gib": 80, "count": GPUS}, "deployments": asked}))
    *placed, last = found.replicas
    for each in placed:
        assert [int(call(each.name, "gpu"))] == list(each.gpus), each.name
        assert call(each.name, "surroundings")[0]["CUDA_VISIBLE_DEVICES"] == str(each.gpus[0])
    assert last.gpus == ()
    assert status(last.name).status == "DEPLOYING"


def test_ray_names_what_is_left_in_all_and_that_is_not_room(scene: dict[str, float]) -> None:
    """The message tells the sum, which is larger than what is asked for; the auditor tells each GPU's part."""
    left = placement.left_over([*scene.values()][:-1], GPUS)

    def gpus_told() -> float:
        found = re.search(r"total resources available: (\{.*?\})", status("t4").deployments["t4"].message)
        return float(json.loads(found[1])["GPU"]) if found else -1.0

    # The first message may be older than the last replica's place.
    ray_serve.wait_for(lambda: gpus_told() == pytest.approx(sum(left)), timeout_s=60, what="a message with the sum")
    assert max(left) < SCENE[-1] < sum(left)


def test_nothing_tells_a_small_fraction_from_a_large_one(scene: dict[str, float]) -> None:
    """Of two replicas on one GPU, 0.5 and 0.2, environment, limits and control group are the same. A limit that a
    process sets itself would show."""
    assert call("t0", "gpu") == call("t1", "gpu")
    assert scene["t0"] > scene["t1"]
    large, small = (call(name, "surroundings") for name in ("t0", "t1"))
    assert lab_06.told_apart(large, small) == {"environment variables": [], "limits": []}
    bounded = (small[0], small[1] | {"RLIMIT_AS": (2**30, 2**30)}, "/tenant")
    assert lab_06.told_apart(large, bounded)["limits"] == ["RLIMIT_AS", "control group"]


def test_it_starts_as_soon_as_one_gpu_has_room(scene: dict[str, float]) -> None:  # noqa: ARG001
    """When the replica with 0.6 leaves, the waiting one gets its GPU."""
    from ray import serve

    gpu = call("t3", "gpu")
    serve.delete("t3")
    ray_serve.wait_for(lambda: status("t4").status == "RUNNING", timeout_s=120, what="the start")
    assert call("t4", "gpu") == gpu


def test_one_and_a_half_gpus_are_refused(ray: ray_serve.RayServe) -> None:  # noqa: ARG001
    """Ray fails the deployment, which the auditor calls an error."""
    with pytest.raises(RuntimeError, match="failed"):
        deploy({"odd": 1.5})
    assert status("odd").status == "DEPLOY_FAILED"


def test_ray_places_what_the_auditor_accepts(ray: ray_serve.RayServe) -> None:  # noqa: ARG001
    """Of the exercise's two engines Ray places one, and both once the config is repaired; nothing stays reserved."""
    import ray as ray_core

    delete_all()
    for config, second in ((find("06.fits").starter.split('"""')[1], "waits"), (lab_06.fitting(), "placed")):
        assert lab_06.placed_by_ray(config, gpus=GPUS) == {"chat": "placed", "code": second}
    ray_serve.wait_for(lambda: ray_core.available_resources().get("GPU") == GPUS, timeout_s=30, what="free GPUs")
