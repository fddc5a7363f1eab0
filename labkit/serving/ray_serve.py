"""Ray and Ray Serve on this machine, or a cluster that the user has: started with a real retry, stopped for good.

What is deployed stays Ray Serve's own business: `serve.run`, `@serve.deployment`, `serve.status` stand in the cells.
"""

import contextlib
import io
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from labkit.errors import ServerError, UsageError
from labkit.process_tree import end_processes
from labkit.serving import watch
from labkit.serving.process import LOOPBACK, Progress, free_port, require_free_port

TRIES = 5
BUSY_PERCENT = 80.0  # of all cores: above it another try at once would meet what the last one met
CALM_WAIT_S = 20.0  # and this much longer after each failed try
STOP_WAIT_S = 3.0  # for their own end; then they are ended
OBJECT_STORE_BYTES = 200 * 2**20
# A node's agent has about 15 s to write its port, whatever one sets; on a busy machine it may miss that.
TRANSIENT = ("timed out during startup", "Failed to start", "failed to start", "The current node has not been updated")
TOKEN_FILE = Path("~/.ray/auth_token")
# Read when ray is imported. The two warnings tell after seconds, not half a minute, why a replica does not start.
ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_SLOW_STARTUP_WARNING_S": "5",
    "RAY_SERVE_SLOW_STARTUP_WARNING_PERIOD_S": "3",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # Ray's own is 15: beside anything busy its replicas would be measured as slow
}


class RayServe:
    """A running Ray with Ray Serve's HTTP proxy on the loopback interface. Use it in a `with` block, or call `stop`.

    `url` is the proxy's root. On a cluster that ran before, `stop` takes away what was deployed since and leaves the
    rest.
    """

    def __init__(self, *, port: int, processes: list[psutil.Process], others: frozenset[str] | None) -> None:
        self.url = f"http://{LOOPBACK}:{port}"
        self._processes = processes
        self._watcher = watch.start([process.pid for process in processes]) if processes else None
        self._others = others  # applications that ran before; None: Serve is ours altogether
        self._stopped = False

    @property
    def pids(self) -> tuple[int, ...]:
        """Ray's processes that this one started, and theirs; empty on somebody else's cluster."""
        return tuple(process.pid for process in _with_children(self._processes))

    def check(self) -> None:
        """Raises `ServerError` when Ray, where it is ours, has died."""
        if not self._stopped and not all(map(_runs, self._processes)):
            raise ServerError("Ray has died", remedy="free memory if it ran short, and start it again")

    def stop(self) -> None:
        """Ends the applications and, where it is ours, Ray with all its processes. Safe to call again."""
        if self._stopped:
            return
        import ray

        self._stopped = True
        left = _with_children(self._processes)
        with contextlib.redirect_stdout(io.StringIO()):  # Ray tells of its controller's end as of a failure
            try:
                if ray.is_initialized():
                    _end_applications(self._others)
            finally:
                ray.shutdown()
                _end(left)
                self._end_watcher()

    def _end_watcher(self) -> None:
        if self._watcher is not None:
            self._watcher.communicate()  # closes its pipe, upon which it ends

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start(
    *,
    num_cpus: int = 8,
    num_gpus: int = 0,
    address: str | None = None,
    port: int | None = None,
    request_timeout_s: float | None = None,
    tries: int = TRIES,
    progress: Progress = lambda _: None,
    **options: Any,
) -> RayServe:
    """`ray.init` and `serve.start`, with the retry that a busy machine needs.

    `num_cpus` and `num_gpus` are logical: Ray counts them and looks at no hardware, so any number works on any
    machine. `address`: a cluster that runs already ("auto", or HOST:PORT of its head), of which this machine is a
    node; it has its own resources. A request that takes longer than
    `request_timeout_s` gets a 408. `options` go to `ray.init`. Raises `UsageError` for what cannot work and
    `ServerError` when Ray does not come up in `tries` tries; nothing is left running then.
    """
    chosen = free_port() if port is None else require_free_port(port)
    prepare_environment(address)
    import ray

    _reread_environment()
    if ray.is_initialized():
        raise UsageError("Ray runs in this process already", remedy="stop it first: .stop(), or ray.shutdown()")
    processes = connect(address, tries) if address else _init(num_cpus, num_gpus, tries, progress, options)
    try:
        others = _applications()
        return RayServe(port=_start_serve(chosen, request_timeout_s), processes=processes, others=others)
    except BaseException:
        RayServe(port=chosen, processes=processes, others=None if address is None else frozenset()).stop()
        raise


def prepare_environment(address: str | None = None) -> None:
    """Puts Ray's settings into the environment, before ray is imported; what the user set already stays.

    A cluster that is named by its address is asked with the user's token, if there is one (~/.ray/auth_token).
    """
    for name, value in ENV.items():
        os.environ.setdefault(name, value)
    if address and (os.environ.get("RAY_AUTH_TOKEN") or TOKEN_FILE.expanduser().is_file()):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _reread_environment() -> None:
    """Ray keeps what it read at its import, while the nodes that it starts read the environment as it is now.

    A driver in one mode of authentication and a node in another do not speak; so does Ray itself when it sets a mode.
    """
    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")


def connect(address: str, tries: int = TRIES) -> list[psutil.Process]:
    """Joins a cluster that runs already as a driver; starts no process, so returns no process."""
    import ray

    try:
        _retried(lambda: ray.init(address, log_to_driver=False, logging_level=logging.ERROR), tries, lambda _: None)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"no Ray cluster answers at {address!r}: {error}",
            remedy="name a cluster of which this machine is a node (see `ray status` there), or leave it out",
        ) from error
    return []


def deploy(application: Any, *, name: str, route_prefix: str = "/") -> None:
    """`serve.run`, whose failure becomes a `ServerError` with what the deployments say."""
    from ray import serve

    try:
        serve.run(application, name=name, route_prefix=route_prefix)
    except RuntimeError as error:
        found = serve.status().applications.get(name)
        told = [deployment.message for deployment in found.deployments.values() if deployment.message] if found else []
        remedy = "the last line of the replica's message names the cause"
        raise ServerError(f"{name} was not deployed: {error}", remedy=remedy, log_tail="\n".join(told)) from error


def wait_for(condition: Callable[[], bool], *, timeout_s: float, what: str, poll_s: float = 0.1) -> float:
    """Waits until `condition` holds; returns the seconds it took. ServerError, naming `what`, after `timeout_s`."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout_s:
            raise ServerError(f"{what} did not happen within {timeout_s:.0f} s", remedy="look at serve.status()")
        time.sleep(poll_s)
    return time.monotonic() - began


def _init(
    num_cpus: int, num_gpus: int, tries: int, progress: Progress, options: dict[str, Any]
) -> list[psutil.Process]:
    import ray

    settings: dict[str, Any] = {
        "address": "local",  # also where RAY_ADDRESS or a node of a cluster on this machine would be joined
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "object_store_memory": OBJECT_STORE_BYTES,
    }
    before = set(psutil.Process().children())
    _retried(lambda: ray.init(**(settings | options)), tries, progress)
    return [process for process in psutil.Process().children() if process not in before]


def _retried(init: Callable[[], Any], tries: int, progress: Progress) -> None:
    """A failed try leaves children behind: they are ended, and only they, before the next one."""
    import ray

    for attempt in range(1, tries + 1):
        before = set(psutil.Process().children())
        try:
            init()
            return
        except BaseException as error:
            ray.shutdown()
            _end(_with_children([process for process in psutil.Process().children() if process not in before]))
            if not any(words in str(error) for words in TRANSIENT):
                raise
            if attempt == tries:
                remedy = "wait until the machine is less busy and start again"
                raise ServerError(f"Ray did not start in {tries} tries: {error}", remedy=remedy) from error
            progress(f"Ray: try {attempt} of {tries} failed on a busy machine ({error}); once more")
            _wait_for_calm(CALM_WAIT_S * attempt)


def _wait_for_calm(at_most_s: float) -> None:
    began = time.monotonic()
    while psutil.cpu_percent(interval=1.0) > BUSY_PERCENT and time.monotonic() - began < at_most_s:
        pass


def _start_serve(port: int, request_timeout_s: float | None) -> int:
    """Starts Serve, unless it runs in the cluster already; returns the port of its proxy."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        http_options={"host": LOOPBACK, "port": port, "request_timeout_s": request_timeout_s},
        logging_config={"enable_access_log": False, "log_level": "ERROR"},
    )
    client = _client()
    return int(client.http_config.port) if client else port


def _client() -> Any:
    """Serve's own client, which knows the proxy's options; None while Serve does not run."""
    from ray.serve.context import _get_global_client

    return _get_global_client(raise_if_no_controller_running=False)


def _applications() -> frozenset[str] | None:
    """What is deployed; None while Serve does not run."""
    from ray import serve

    return frozenset(serve.status().applications) if _client() else None


def _end_applications(others: frozenset[str] | None) -> None:
    from ray import serve

    if others is None:
        serve.shutdown()
        return
    for name in (_applications() or frozenset()) - others:
        serve.delete(name)


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _with_children(processes: list[psutil.Process]) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [process, *process.children(recursive=True)]
    return found


def _end(processes: list[psutil.Process]) -> None:
    """Waits for their own end, then ends what is left."""
    _, left = psutil.wait_procs(processes, timeout=STOP_WAIT_S)
    end_processes(left)
