"""Ray and Ray Serve on this machine, or a cluster that the user has: started with a real retry, stopped for good.

What is deployed stays Ray Serve's own business: `serve.run`, `@serve.deployment`, `serve.status` stand in the cells.
"""

import contextlib
import io
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil

from labkit.errors import ServerError, UsageError
from labkit.machine.facts import vllm_version
from labkit.machine.processes import end_processes, has_ended, wait_for_end
from labkit.serving import watch
from labkit.serving.process import LOOPBACK, Progress, free_port, require_free_port

BUSY_PERCENT = 80.0  # of all cores: above it another try at once would meet what the last one met
CALM_WAIT_S = 20.0  # and this much longer after each failed try
LOOK_S = 0.25  # at the processes, while Ray Serve starts
STOP_WAIT_S = 3.0  # for their own end; then they are ended
NODE_DIED, SERVE_START = "Ray's node died while Ray Serve started", "the start of Ray Serve"
TRANSIENT = (
    "timed out during startup",
    "Failed to start",
    "failed to start",
    "The current node has not been updated",
    NODE_DIED,
    SERVE_START,
)
T = TypeVar("T")


def retried(start_once: Callable[[], T], tries: int, progress: Progress) -> T:
    """What `start_once` returns. A failed try leaves children behind: they are ended, and only they, before the next.

    Raises `ServerError` after `tries` tries, and at once whatever another try cannot help.
    """
    import ray

    for attempt in range(1, tries + 1):
        before = children()
        try:
            return start_once()
        except BaseException as error:
            ray.shutdown()
            end(with_children(children() - before))
            if not any(words in str(error) for words in TRANSIENT):
                raise
            if attempt == tries:
                remedy = "wait until the machine is less busy and start again"
                raise ServerError(f"Ray did not start in {tries} tries: {error}", remedy=remedy) from error
            reason = str(error).partition("\n")[0]  # what to do about it is being done
            progress(f"Ray: try {attempt} of {tries} failed on a busy machine ({reason}); once more")
            _wait_for_calm(CALM_WAIT_S * attempt)
    raise UsageError(f"{tries} tries are none", remedy="let tries be 1 or more")


def _wait_for_calm(at_most_s: float) -> None:
    began = time.monotonic()
    while psutil.cpu_percent(interval=1.0) > BUSY_PERCENT and time.monotonic() - began < at_most_s:
        pass


def beside(work: Callable[[], T], processes: list[psutil.Process], *, timeout_s: float) -> T:
    """What `work` returns, which needs `processes` and does not notice their end; it runs in a thread of its own.

    Raises `ServerError` when one of them dies, or after `timeout_s`; the thread is then left to itself, and what the
    processes had started is ended.
    """
    outcome, seen = _in_background(work), set(processes)
    began = time.monotonic()
    try:
        while not outcome.done():
            seen.update(with_children(processes))  # a dead one does not tell any more what it had started
            if died(processes):
                raise ServerError(NODE_DIED, remedy="free memory if it ran short, and start it again")
            if time.monotonic() - began > timeout_s:
                raise ServerError(f"{SERVE_START} took more than {timeout_s:.0f} s", remedy="start it again")
            time.sleep(LOOK_S)
        return outcome.result()
    except BaseException:
        end(seen)
        raise


def _in_background(work: Callable[[], T]) -> "Future[T]":
    """Runs `work` in a thread that nobody has to wait for, not even Python at its end."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome


def children() -> set[psutil.Process]:
    """This process's own children."""
    return set(psutil.Process().children())


def with_children(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those of `processes` that run, each with everything below it."""
    found: list[psutil.Process] = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [process, *process.children(recursive=True)]
    return found


def died(processes: list[psutil.Process]) -> bool:
    """True when one of them has ended, waited for or not."""
    return any(map(has_ended, processes))


def end(processes: Iterable[psutil.Process]) -> None:
    """Waits for their own end, then ends what is left."""
    end_processes(wait_for_end(processes, timeout_s=STOP_WAIT_S))


# --- ray serve ---


TRIES = 5
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
SERVE_TIMEOUT_S = 180.0  # 10 to 22 s are usual on two cores
OBJECT_STORE_BYTES = 200 * 2**20
TOKEN_FILE = Path("~/.ray/auth_token")
TEMPORARY = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
RAYS_FOLDER = str(Path(TEMPORARY) / "ray")
# Read when ray is imported. The two warnings tell after seconds, not half a minute, why a replica does not start.
ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_SLOW_STARTUP_WARNING_S": "5",
    "RAY_SERVE_SLOW_STARTUP_WARNING_PERIOD_S": "3",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # Ray's own is 15: beside anything busy its replicas would be measured as slow
}
# For a Ray of our own, whose folder then exists. An engine in a replica leaves sockets and a file behind: not loose
# among everybody's files, but in that folder, which stays where it is.
OWN_ENV = {"VLLM_RPC_BASE_PATH": RAYS_FOLDER, "TMPDIR": RAYS_FOLDER, "RAY_TMPDIR": TEMPORARY}


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
        return tuple(process.pid for process in with_children(self._processes))

    def check(self) -> None:
        """Raises `ServerError` when Ray, where it is ours, has died."""
        if not self._stopped and died(self._processes):
            raise ServerError("Ray has died", remedy="free memory if it ran short, and start it again")

    def stop(self) -> None:
        """Ends the applications and, where it is ours, Ray with all its processes. Safe to call again."""
        if self._stopped:
            return
        import ray

        self._stopped = True
        left = with_children(self._processes)
        with contextlib.redirect_stdout(io.StringIO()):  # Ray tells of its controller's end as of a failure
            try:
                if ray.is_initialized():
                    _end_applications(self._others)
            finally:
                ray.shutdown()
                end(left)
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
    own_numbers: bool = False,
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
    node; it has its own resources. With `own_numbers`, and with vLLM's CPU build, a Ray of our own does not read
    CUDA_VISIBLE_DEVICES, which would bound `num_gpus`, and numbers its GPUs from 0; `real_device` says which one a
    number is here. A request that takes longer than `request_timeout_s` gets a 408. `options` go to `ray.init`. Raises
    `UsageError` for what cannot work and `ServerError` when Ray does not come up in `tries` tries; nothing is left
    running then.
    """
    chosen = free_port() if port is None else require_free_port(port)
    prepare_environment(address)
    import ray

    _reread_environment()
    if ray.is_initialized():
        raise UsageError("Ray runs in this process already", remedy="stop it first: .stop(), or ray.shutdown()")
    if address is None:
        settings = _settings(num_cpus, num_gpus) | options
        unbound = own_numbers or vllm_version().endswith("+cpu")  # which uses no GPU, shown or hidden
        with _without(VISIBLE_GPUS) if unbound else contextlib.nullcontext():
            return retried(lambda: _own(settings, chosen, request_timeout_s), tries, progress)
    connect(address, tries)
    try:
        others = _applications()
        return RayServe(port=_start_serve(chosen, request_timeout_s, []), processes=[], others=others)
    except BaseException:
        ray.shutdown()  # nothing has been deployed yet: what runs on that cluster is not ours
        raise


def real_device(number: str, *, gpus: int) -> str:
    """What CUDA_VISIBLE_DEVICES says of the GPU that a Ray with its own numbers calls `number`, on a machine that shows
    `gpus` of them. Empty: Ray believes in it, and this machine has no such GPU."""
    shown = [name.strip() for name in os.environ.get(VISIBLE_GPUS, "").split(",") if name.strip()]
    names = (shown or [str(index) for index in range(gpus)])[:gpus]
    return names[int(number)] if int(number) < len(names) else ""


@contextlib.contextmanager
def _without(name: str) -> Iterator[None]:
    """The environment without this variable, which comes back afterwards."""
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


def prepare_environment(address: str | None = None) -> None:
    """Puts Ray's settings into the environment, before ray is imported; what the user set already stays.

    A cluster that is named by its address is asked with the user's token, if there is one (~/.ray/auth_token).
    """
    for name, value in (ENV if address else ENV | OWN_ENV).items():
        os.environ.setdefault(name, value)
    if address and (os.environ.get("RAY_AUTH_TOKEN") or TOKEN_FILE.expanduser().is_file()):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _reread_environment() -> None:
    """Ray keeps what it read at its import, while the nodes that it starts read the environment as it is now.

    A driver in one mode of authentication and a node in another do not speak; so does Ray itself when it sets a mode.
    """
    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")


def connect(address: str, tries: int = TRIES) -> None:
    """Joins a cluster that runs already as a driver; starts no process."""
    import ray

    try:
        retried(lambda: ray.init(address, log_to_driver=False, logging_level=logging.ERROR), tries, lambda _: None)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"no Ray cluster answers at {address!r}: {error}",
            remedy="name a cluster of which this machine is a node (see `ray status` there), or leave it out",
        ) from error


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


def _settings(num_cpus: int, num_gpus: int) -> dict[str, Any]:
    return {
        "address": "local",  # also where RAY_ADDRESS or a node of a cluster on this machine would be joined
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "object_store_memory": OBJECT_STORE_BYTES,
    }


def _own(settings: dict[str, Any], port: int, request_timeout_s: float | None) -> RayServe:
    import ray

    before = children()
    ray.init(**settings)
    processes = list(children() - before)
    return RayServe(port=_start_serve(port, request_timeout_s, processes), processes=processes, others=None)


def _start_serve(port: int, request_timeout_s: float | None, processes: list[psutil.Process]) -> int:
    """Starts Serve, unless it runs in the cluster already; returns the port of its proxy.

    Ray waits without a limit for a controller whose node has died; so we look at the node meanwhile.
    """
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    http_options = {"host": LOOPBACK, "port": port, "request_timeout_s": request_timeout_s}
    logging_config = {"enable_access_log": False, "log_level": "ERROR"}
    beside(
        lambda: serve.start(http_options=http_options, logging_config=logging_config),
        processes,
        timeout_s=SERVE_TIMEOUT_S,
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
