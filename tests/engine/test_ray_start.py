"""A start of Ray and Ray Serve whose node dies on the way, in a process of its own: Ray may take its driver along."""

import os
import subprocess
import sys

import pytest

from labkit.files import root

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

SCENE = """
import socket, threading, time
import psutil
from labkit.serving import ray_serve
from labkit.serving.process import LOOPBACK
from tests.unit.standin import survivors

first, told, start_serve = [], [], ray_serve._start_serve


def kill_soon(processes):
    (raylet,) = (process for process in processes if "raylet" in process.name())
    while not raylet.children():
        time.sleep(0.05)
    time.sleep(1)
    first.extend(raylet.children(recursive=True))
    raylet.kill()


def with_a_death(port, processes):
    if not first:
        first.extend(processes)
        threading.Thread(target=kill_soon, args=(processes,)).start()
    return start_serve(port, processes)


ray_serve._start_serve = with_a_death
with ray_serve.start(progress=told.append) as ray:
    assert any(ray_serve.NODE_DIED in text for text in told), told
    assert not set(ray.pids) & {process.pid for process in first}
    assert not survivors(first, within_s=10)
    with socket.create_connection((LOOPBACK, int(ray.url.rpartition(":")[2])), timeout=10):
        pass  # without an application there is nothing to answer
print("another node serves")
"""


def test_a_node_that_dies_while_serve_starts_costs_a_try() -> None:
    """Ray would wait for the dead node for ever; here another one is started, and of the first no process is left."""
    env = {**os.environ, "PYTHONPATH": str(root())}
    done = subprocess.run(
        [sys.executable, "-c", SCENE], env=env, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "another node serves" in done.stdout
