"""Start and stop Ray and Ray Serve on this machine, with retries, or connect to a running cluster.

Applications are not wrapped: cells call `serve.run`, `@serve.deployment` and `serve.status` themselves.
"""

import contextlib
import io
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import psutil

from labkit.errors import ServerError, UsageError, require
from labkit.machine.facts import vllm_version
from labkit.machine.processes import end_processes, has_ended, wait_for_end
from labkit.serving import guard
from labkit.serving.process import (
    LOOPBACK,
    Say,
    Stoppable,
    free_port,
    poll,
    require_free_port,
    temporary_folder,
)

BUSY_PERCENT = 80.0  # CPU use over all cores above which another try would fail in the same way
CALM_WAIT_S = 20.0  # longest wait for less load after the first failed try; it grows with each try
POLL_S = 0.1
CHECK_S = 0.25  # between checks of Ray's processes while Ray Serve starts
STOP_WAIT_S = 3.0  # until processes end on their own; then they are killed
TRIES = 5
SERVE_TIMEOUT_S = 180.0  # 10 to 22 s are usual on two cores
OBJECT_STORE_BYTES = 200 * 2**20
NODE_DIED, SERVE_START = "Ray's node died while Ray Serve started", "the start of Ray Serve"
TRANSIENT = (
    "timed out during startup",
    "Failed to start",
    "failed to start",
    "The current node has not been updated",
    NODE_DIED,
    SERVE_START,
)
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
TOKEN_FILE = Path("~/.ray/auth_token")
SOCKET_NAME_BYTES = len("/session_2026-11-30_05-09-03_123456_1234567/sockets/plasma_store.1")
# Read when ray is imported. The two warnings report after seconds, not half a minute, why a replica does not start.
ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_SLOW_STARTUP_WARNING_S": "5",
    "RAY_SERVE_SLOW_STARTUP_WARNING_PERIOD_S": "3",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # Ray's default of 15 would slow its replicas down on a busy machine
}
T = TypeVar("T")


class RayServe(Stoppable):
    """A running Ray with Ray Serve's HTTP proxy on the loopback interface. Use it in a `with` block, or call `stop`.

    `url`: the proxy's root. On a cluster that was already running, `stop` deletes only applications deployed since.
    `folder`: sessions, logs and temporary files of a Ray that this process started; `stop` removes it.
    """

    def __init__(
        self, *, port: int, processes: list[psutil.Process], others: frozenset[str] | None, folder: Path | None = None
    ) -> None:
        self.url = f"http://{LOOPBACK}:{port}"
        self._processes, self._folder = processes, folder
        self._watch = guard.start_watch(str(folder), [process.pid for process in processes]) if processes else None
        self._others = others  # applications that ran before; None: this process started Serve
        self._stopped = False

    @property
    def pids(self) -> tuple[int, ...]:
        """Ray's processes that this process started, and their children; empty on an existing cluster."""
        return tuple(process.pid for process in _with_children(self._processes))

    def check(self) -> None:
        """Raise ServerError if a Ray that this process started has died."""
        if not self._stopped and any(map(has_ended, self._processes)):
            raise ServerError("Ray has died", remedy="free memory if it ran short, and start it again")

    def stop(self) -> None:
        """Delete the applications; end Ray with all its processes if this process started it. Safe to call again."""
        if self._stopped:
            return
        import ray

        self._stopped = True
        left = _with_children(self._processes)
        with contextlib.redirect_stdout(io.StringIO()):  # Ray reports the end of its controller as a failure
            try:
                if ray.is_initialized():
                    _end_applications(self._others)
            finally:
                ray.shutdown()
                _end(left)
                if self._watch is not None:
                    self._watch.communicate()  # closes the watch's pipe, which ends it
                if self._folder is not None:
                    shutil.rmtree(self._folder, ignore_errors=True)


def start(
    *,
    num_cpus: int = 8,
    num_gpus: int = 0,
    own_numbers: bool = False,
    address: str | None = None,
    port: int | None = None,
    progress: Say = lambda _: None,
) -> RayServe:
    """Call `ray.init` and `serve.start`, with the retries that a busy machine needs.

    `num_cpus` and `num_gpus` are logical: Ray does not check the hardware, so any number works on any machine.
    `address`: a running cluster ("auto", or HOST:PORT of its head) of which this machine is a node; its own resources
    apply. With `own_numbers`, or with vLLM's CPU build, a new Ray ignores CUDA_VISIBLE_DEVICES, which would limit
    `num_gpus`, and numbers GPUs from 0. UsageError for invalid settings; ServerError, with nothing left running, if
    Ray does not start in several tries.
    """
    chosen = free_port() if port is None else require_free_port(port)
    prepare_environment(address)
    import ray

    _reread_environment()
    running = ray.is_initialized()
    require(not running, "Ray already runs in this process", fix="stop it first: .stop(), or ray.shutdown()")
    if address is None:
        folder = temporary_folder(sockets_bytes=SOCKET_NAME_BYTES, inside=os.environ.get("RAY_TMPDIR"))
        settings = {
            "address": "local",  # do not join a cluster, even if RAY_ADDRESS is set or a node runs on this machine
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_temp_dir": str(folder),
        }
        # An engine in a replica leaves sockets and a file, which go with the folder.
        environment: dict[str, str | None] = {"TMPDIR": str(folder), "VLLM_RPC_BASE_PATH": str(folder)}
        if own_numbers or vllm_version().endswith("+cpu"):  # the CPU build uses no GPU
            environment[VISIBLE_GPUS] = None
        try:
            with _environment(environment):
                return _retried(lambda: _own(settings, chosen, folder), progress)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    connect(address)
    try:
        others = _applications()
        return RayServe(port=_start_serve(chosen, []), processes=[], others=others)
    except BaseException:
        ray.shutdown()  # nothing was deployed yet, so nothing on the cluster needs deleting
        raise


def connect(address: str) -> None:
    """Join a running cluster as a driver; starts no process. UsageError if none answers."""
    import ray

    try:
        _retried(lambda: ray.init(address, log_to_driver=False, logging_level=logging.ERROR), lambda _: None)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"no Ray cluster answers at {address!r}: {error}",
            remedy="pass a cluster of which this machine is a node (see `ray status` there), or no address",
        ) from error


def prepare_environment(address: str | None = None) -> None:
    """Add Ray's settings to the environment; variables that are set stay. Call it before ray is imported.

    With `address`, the user's token authenticates to that cluster, if there is one (~/.ray/auth_token).
    """
    for name, value in ENV.items():
        os.environ.setdefault(name, value)
    if address and (os.environ.get("RAY_AUTH_TOKEN") or TOKEN_FILE.expanduser().is_file()):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def deploy(application: Any, *, name: str, route_prefix: str = "/") -> None:
    """Call `serve.run`; a failure becomes a ServerError with the deployments' messages."""
    from ray import serve

    try:
        serve.run(application, name=name, route_prefix=route_prefix)
    except RuntimeError as error:
        status = serve.status().applications.get(name)
        messages = [deployment.message for deployment in status.deployments.values()] if status else []
        remedy = "the last line of the replica's message names the cause"
        log_tail = "\n".join(filter(None, messages))
        raise ServerError(f"{name} was not deployed: {error}", remedy=remedy, log_tail=log_tail) from error


def wait_for(condition: Callable[[], bool], *, timeout_s: float, what: str) -> float:
    """Wait until `condition` is true; return the seconds it took. ServerError, naming `what`, after `timeout_s`."""
    began = time.monotonic()
    for _ in poll(POLL_S, timeout_s=timeout_s):
        if condition():
            return time.monotonic() - began
    raise ServerError(f"{what} did not happen within {timeout_s:.0f} s", remedy="look at serve.status()")


# --- starting, with retries ---


def _retried(start_once: Callable[[], T], progress: Say) -> T:
    """Call `start_once` up to `TRIES` times; child processes that a failed try left are ended before the next.

    ServerError after `TRIES` tries; errors that a retry cannot help are raised at once.
    """
    import ray

    attempt = 0
    while True:
        attempt, before = attempt + 1, _children()
        try:
            return start_once()
        except BaseException as error:
            ray.shutdown()
            _end(_with_children(_children() - before))
            if not any(words in str(error) for words in TRANSIENT):
                raise
            if attempt == TRIES:
                remedy = "wait until the machine is less busy and start again"
                raise ServerError(f"Ray did not start in {TRIES} tries: {error}", remedy=remedy) from error
            reason = str(error).partition("\n")[0]
            progress(f"Ray: try {attempt} of {TRIES} failed on a busy machine ({reason}); trying again")
            began = time.monotonic()
            while psutil.cpu_percent(1.0) > BUSY_PERCENT and time.monotonic() - began < CALM_WAIT_S * attempt:
                pass


def _own(settings: dict[str, Any], port: int, folder: Path) -> RayServe:
    import ray

    before = _children()
    ray.init(**settings)
    processes = list(_children() - before)
    return RayServe(port=_start_serve(port, processes), processes=processes, others=None, folder=folder)


def _start_serve(port: int, processes: list[psutil.Process]) -> int:
    """Start Serve, unless the cluster already runs it; return its proxy's port."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    http_options = {"host": LOOPBACK, "port": port}
    logging_config = {"enable_access_log": False, "log_level": "ERROR"}
    _with_live(
        lambda: serve.start(http_options=http_options, logging_config=logging_config),
        processes,
        timeout_s=SERVE_TIMEOUT_S,
    )
    client = _client()
    return int(client.http_config.port) if client else port


def _with_live(work: Callable[[], T], processes: list[psutil.Process], *, timeout_s: float) -> T:
    """Return the result of `work`, which needs `processes` and would wait forever for one that has died.

    ServerError if one of them dies, or after `timeout_s`; then all their descendants are ended.
    """
    future, seen = _in_background(work), set(processes)
    try:
        for _ in poll(CHECK_S, timeout_s=timeout_s):
            if future.done():
                return future.result()
            seen.update(_with_children(processes))  # the children of a dead process cannot be listed any more
            if any(map(has_ended, processes)):
                raise ServerError(NODE_DIED, remedy="free memory if it ran short, and start it again")
        raise ServerError(f"{SERVE_START} took more than {timeout_s:.0f} s", remedy="start it again")
    except BaseException:
        _end(seen)
        raise


def _in_background(work: Callable[[], T]) -> "Future[T]":
    """Run `work` in a daemon thread: unlike an executor's thread, it does not delay Python's exit."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


@contextlib.contextmanager
def _environment(changes: dict[str, str | None]) -> Iterator[None]:
    """Set these environment variables, or unset those that are None; restore them afterwards."""
    before = {name: os.environ.pop(name, None) for name in changes}
    os.environ.update({name: value for name, value in changes.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _reread_environment() -> None:
    """Make Ray read its settings from the environment again, as Ray itself does when it sets an authentication mode.

    Ray reads them at import, and the nodes that it starts read the current environment. A driver and a node with
    different authentication modes cannot talk to each other.
    """
    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children())


def _with_children(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """The running processes of `processes`, each with its descendants."""
    tree: list[psutil.Process] = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            tree += [process, *process.children(recursive=True)]
    return tree


def _end(processes: Iterable[psutil.Process]) -> None:
    end_processes(wait_for_end(processes, timeout_s=STOP_WAIT_S))


def _client() -> Any:
    """Serve's client, which has the proxy's options; None while Serve does not run."""
    from ray.serve.context import _get_global_client

    return _get_global_client(raise_if_no_controller_running=False)


def _applications() -> frozenset[str] | None:
    """Names of deployed applications; None while Serve does not run."""
    from ray import serve

    return frozenset(serve.status().applications) if _client() else None


def _end_applications(others: frozenset[str] | None) -> None:
    from ray import serve

    if others is None:
        serve.shutdown()
        return
    for name in (_applications() or frozenset()) - others:
        serve.delete(name)
