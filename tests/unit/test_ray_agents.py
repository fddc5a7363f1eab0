"""A Ray node is told its agents' ports, with Ray's own functions for the node's folder and a stand-in for the node."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from labkit.serving import ray_agents

NODE = "0" * 56


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the node was started with, start by start."""
    from ray._private import services

    calls: list[dict[str, Any]] = []

    def start_raylet(
        node_id: str,
        session_dir: str,
        metrics_agent_port: int | None = None,
        metrics_export_port: int | None = None,
        runtime_env_agent_port: int | None = None,
        dashboard_agent_listen_port: int | None = None,
    ) -> None:
        assert (node_id, session_dir) != ("", "")
        given = (metrics_agent_port, metrics_export_port, runtime_env_agent_port, dashboard_agent_listen_port)
        calls.append(dict(zip(ray_agents.PORTS, given, strict=True)))

    monkeypatch.setattr(services, "start_raylet", start_raylet)
    return calls


def test_a_node_knows_the_ports_of_its_agents_before_they_run(started: list[dict[str, Any]], tmp_path: Path) -> None:
    """Each port that Ray leaves open is a number, and the one that it cannot be told stands in its file."""
    from ray._private import services
    from ray._raylet import wait_for_persisted_port  # type: ignore[attr-defined]

    with ray_agents.ports_chosen():
        services.start_raylet(NODE, str(tmp_path), metrics_agent_port=0)
    (given,) = started
    ports = [given[name] for name in ray_agents.PORTS]
    assert len(set(ports)) == len(ports)
    assert all(1024 <= port <= 65535 for port in ports)
    found = wait_for_persisted_port(str(tmp_path), NODE, ray_agents.LISTEN_PORT, timeout_ms=0)
    assert found == given[ray_agents.LISTEN_PORT]


def test_a_port_that_was_asked_for_stays(started: list[dict[str, Any]], tmp_path: Path) -> None:
    """`ray.init(_metrics_export_port=...)` means what it says."""
    from ray._private import services

    with ray_agents.ports_chosen():
        services.start_raylet(NODE, str(tmp_path), metrics_export_port=45678)
    assert started[0]["metrics_export_port"] == 45678


def test_outside_the_block_ray_is_as_it_was(started: list[dict[str, Any]]) -> None:
    """Nothing of Ray stays changed, also when a start fails."""
    from ray._private import services

    before = services.start_raylet
    with pytest.raises(RuntimeError, match="no start"), ray_agents.ports_chosen():
        raise RuntimeError("no start")
    assert services.start_raylet is before
    assert not started


def test_ray_still_takes_the_ports_under_these_names() -> None:
    """Ray's own function has each of the parameters that are set for it."""
    from ray._private import services

    assert {"node_id", "session_dir", *ray_agents.PORTS} <= set(inspect.signature(services.start_raylet).parameters)


def test_a_process_of_ray_builds_no_grammar_at_its_import() -> None:
    """The package that costs each process of Ray some seconds of CPU at its import is not there."""
    code = "import sys, ray; print('rfc3987_syntax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
