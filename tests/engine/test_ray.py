"""One real Ray for what labs deploy on it: learners' classes of labs 05 and 05b, lab 06's fractions."""

import asyncio
import json
import os
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from course import lab_06, replicas
from labkit.advice import fractions as auditor
from labkit.serving import ray_serve
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


# --- labs 05 and 05b: deployments of learners, and a replica that breaks


@pytest.mark.parametrize("id", ["05.ticket", "05b.lookup", "05b.health"])
def test_an_exercise_is_judged_by_its_deployment(ray: ray_serve.RayServe, id: str) -> None:  # noqa: ARG001
    """A class as a notebook defines it, right or wrong, gets in Serve the judgement that it gets without; then its
    application is gone."""
    from ray import serve

    exercise = find(id)
    answers = [(name, answer) for name, answer in exercise.wrong_answers({})]
    for names, answer in [((), exercise.reference({})), *(((name,), answer) for name, answer in answers)]:
        own = type(answer.__name__, (answer,), {"__module__": "__main__"})
        assert exercise.judge(own).misconceptions == names
        assert not serve.status().applications


class Serving:
    """Answers with its process id, until its engine is lost."""

    engine_runs = True

    async def __call__(self, _request: object) -> str:
        if not self.engine_runs:
            raise RuntimeError("the engine has died")
        await asyncio.sleep(0.1)
        return str(os.getpid())

    async def crash(self) -> None:
        """End the process a moment later."""
        asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGKILL)

    async def lose_engine(self) -> None:
        """Fail every request from now on."""
        self.engine_runs = False

    async def check_health(self) -> None:
        """Raise without an engine."""
        if not self.engine_runs:
            raise RuntimeError("the engine has died")


@pytest.mark.parametrize("fault", ["crash", "lose_engine"])
async def test_a_broken_replica_is_noticed_and_replaced(ray: ray_serve.RayServe, fault: str) -> None:
    """Requests fail, Serve's status loses a replica, and then another one answers; the sick one fails more of them."""
    from ray import serve

    deployment: Any = serve.deployment(Serving).options(num_replicas=2, health_check_period_s=0.5)
    actor = {"num_cpus": 0.1}
    handle = serve.run(deployment.options(ray_actor_options=actor).bind(), name="pair", route_prefix="/pair")
    found = await replicas.outage(
        f"{ray.url}/pair", "pair", "Serving", getattr(handle, fault).remote, rate=20, at_most_s=60
    )
    assert found.noticed_s is not None
    assert found.replaced_s is not None
    assert found.broke_s < found.noticed_s < found.replaced_s
    assert found.failed if fault == "lose_engine" else len(found.failed) < len(found.seen.answers) / 2
    serve.delete("pair")


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
