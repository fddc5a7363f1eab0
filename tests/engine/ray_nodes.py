"""A Ray cluster of several nodes on this machine, each a `ray start --block` that is ours to end."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from labkit.serving.process import free_port

STARTS = 6  # a busy machine may miss Ray's 15 s, and that is not what is tested
START_TIMEOUT_S, STOP_TIMEOUT_S = 120.0, 60.0
UP = "Ray runtime started"
# A node that was killed is noticed after a second or two instead of half a minute.
HASTE = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
    "RAY_prestart_worker_first_driver": "0",  # idle workers that nobody asked for, on two cores
}


class RayNodes:
    """A head without CPUs and `workers` nodes of two. `env` is what Ray is started with, the token included."""

    def __init__(self, workers: int, env: Mapping[str, str]) -> None:
        self.token = secrets.token_hex(32)
        self.env = {
            **os.environ,
            **env,
            **HASTE,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.env.pop("RAY_ADDRESS", None)
        # Short, for the paths of sockets; of our own, so that nobody's `ray.init()` on this machine finds this cluster.
        self.folder = Path(tempfile.mkdtemp(prefix="lab", dir="/tmp"))
        self.names = [f"w{number}" for number in range(workers)]
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.address = ""

    def __enter__(self) -> Self:
        try:
            self._start_all()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def kill(self, name: str) -> None:
        """SIGKILL to the node's raylet, as if the machine had lost its power."""
        for child in psutil.Process(self.nodes[name].pid).children():
            if child.name() == "raylet":
                child.kill()

    def has_raylet(self, name: str) -> bool:
        """Whether the node was not killed."""
        return any(process.name() == "raylet" for process in _tree(self.nodes[name]))

    def stop(self) -> None:
        """SIGTERM to each `ray start`, workers first, which ends its node; SIGKILL to the tree of one that hangs."""
        trees = {name: _tree(node) for name, node in self.nodes.items()}
        for node in reversed(list(self.nodes.values())):
            node.terminate()
        for name, node in self.nodes.items():
            try:
                node.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                node.kill()
            _, left = psutil.wait_procs(trees[name], timeout=5)
            for process in left:
                process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start_all(self) -> None:
        """One after the other: each has 15 s for its agent, which two that start together may miss."""
        port = self._start(
            "head", lambda port: ["--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
        )
        self.address = f"127.0.0.1:{port}"
        for name in self.names:
            self._start(name, lambda _: [f"--address={self.address}", "--num-cpus=2"])

    def _start(self, name: str, arguments: Callable[[int], list[str]]) -> int:
        for _ in range(STARTS):
            port = free_port()
            self._launch(name, arguments(port))
            if self._is_up(name):
                return port
        raise AssertionError(f"node {name} did not start: {self._log(name)}")

    def _launch(self, name: str, arguments: list[str]) -> None:
        ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
        with (self.folder / f"{name}.log").open("w") as log:
            self.nodes[name] = subprocess.Popen(
                [*ray, f"--object-store-memory={80 * 2**20}", *arguments, *self._session(name)],
                env={**self.env, "LABKIT_TEST_NODE": name},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _session(self, name: str) -> list[str]:
        return [f"--temp-dir={self.folder}"] if name == "head" else []

    def _is_up(self, name: str) -> bool:
        node, end = self.nodes[name], time.monotonic() + START_TIMEOUT_S
        while node.poll() is None and UP not in self._log(name) and time.monotonic() < end:
            time.sleep(0.2)
        if node.poll() is None and UP in self._log(name):
            return True
        left = _tree(self.nodes.pop(name))
        for process in left:
            process.kill()
        node.wait()
        return False

    def _log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")


def _tree(node: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    try:
        process = psutil.Process(node.pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
