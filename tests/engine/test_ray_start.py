"""A start of Ray and Ray Serve whose node dies on the way."""

import socket
import threading
import time

import psutil
import pytest

from labkit.serving import ray_serve
from labkit.serving.process import LOOPBACK
from tests.unit.standin import survivors

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


def test_a_node_that_dies_while_serve_starts_costs_a_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would wait for the dead node for ever; here another one is started, and of the first no process is left."""
    first: list[psutil.Process] = []
    told: list[str] = []
    start_serve = ray_serve._start_serve

    def with_a_death(port: int, processes: list[psutil.Process]) -> int:
        if not first:
            first.extend(processes)
            threading.Thread(target=kill_soon, args=(processes, first)).start()
        return start_serve(port, processes)

    monkeypatch.setattr(ray_serve, "_start_serve", with_a_death)
    with ray_serve.start(progress=told.append) as ray:
        assert any(ray_serve.NODE_DIED in one for one in told)
        assert not set(ray.pids) & {process.pid for process in first}
        assert not survivors(first, within_s=10)
        with socket.create_connection((LOOPBACK, int(ray.url.rpartition(":")[2])), timeout=10):
            pass  # somebody listens; without an application there is nothing to answer


def kill_soon(processes: list[psutil.Process], seen: list[psutil.Process]) -> None:
    """Ends the node when it has begun to start workers, and notes what it had started."""
    (raylet,) = (process for process in processes if "raylet" in process.name())
    while not raylet.children():
        time.sleep(0.05)
    time.sleep(1)
    seen.extend(raylet.children(recursive=True))
    raylet.kill()
