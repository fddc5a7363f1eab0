"""The ports of a Ray node's agents, chosen by us: a node on a busy machine then does not die of waiting for them.

A node of Ray 2.60 whose agents choose their own ports waits 15 s for the files in which they write them, then aborts
("The current node timed out during startup"; src/ray/raylet/node_manager.cc, WaitForPersistedPort). Two cores that are
busy need longer than that to import an agent. Where the port is known beforehand there is nothing to wait for; the
node cannot be told one of the four, so its file is written for it.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from labkit.serving.process import free_port

LISTEN_PORT = "dashboard_agent_listen_port"  # the one that Ray does not pass on to the node
PORTS = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", LISTEN_PORT)


@contextlib.contextmanager
def ports_chosen() -> Iterator[None]:
    """A node that `ray.init` starts in this block knows its agents' ports before they run."""
    from ray._private import services

    with mock.patch.object(services, "start_raylet", _with_ports(services.start_raylet)):
        yield


def _with_ports(start_raylet: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(start_raylet)

    def started(*args: Any, **options: Any) -> Any:
        from ray._raylet import persist_port  # type: ignore[attr-defined]

        given = signature.bind(*args, **options).arguments
        for name in PORTS:
            given[name] = given.get(name) or free_port()
        persist_port(given["session_dir"], given["node_id"], LISTEN_PORT, given[LISTEN_PORT])
        return start_raylet(**given)

    return started
