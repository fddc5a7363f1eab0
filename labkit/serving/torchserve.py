"""TorchServe as a server: `torchserve --start --foreground` in a private folder, reachable from this machine only.

TorchServe is archived upstream (last release 0.12.0, 2024-09; no security patches). An archive can run any code: serve
only your own archives, and keep token authorisation on.
"""

import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import AliasPath, BaseModel, Field, ValidationError

from labkit import machine
from labkit.errors import ServerError, UsageError, require
from labkit.files import root
from labkit.serving.process import (
    DIRECT,
    LOOPBACK,
    Say,
    ServerProcess,
    Stoppable,
    free_ports,
    poll,
    require_free_port,
)
from labkit.serving.vllm import executable

POLL_S = 0.1
KEY_FILE = "key_file.json"
CONFIG = "model-config.yaml"
PORTS = ("inference", "management", "metrics", "grpc_inference", "grpc_management")
REQUEST_LIMIT_BYTES = 2**20
KEYS_LAST_MIN = 60 * 24 * 365  # with TorchServe's default of 60, keys would expire during a longer session
FAILED_LOADS = 2  # TorchServe restarts a failing worker forever while predictions wait; give up after this many
KNOWN_FAILURES = (
    (
        r"[Aa]ddress already in use",
        "another process took one of its ports in the meantime",
        "start it again; it will choose other free ports",
    ),
    (
        r"MODEL_LOG - (?!.*(?:warn|Warning))([\w.]*(?:Error|Exception)\b.*)",
        "a worker cannot load its model: {0}",
        "fix the handler or its model-config.yaml, and archive it again",
    ),
    (
        r"java not found|Unable to locate a Java Runtime",
        "Java cannot be started",
        "run `make setup`, which installs Java, or set JAVA_HOME",
    ),
)


class Keys(BaseModel):
    """TorchServe's three keys: for its management API, for predictions, and for regenerating the other two (`api`)."""

    management: str = Field(validation_alias=AliasPath("management", "key"))
    inference: str = Field(validation_alias=AliasPath("inference", "key"))
    api: str = Field(validation_alias=AliasPath("API", "key"))


NO_KEYS = Keys.model_construct(management="", inference="", api="")


def read_keys(folder: Path) -> Keys:
    """Read the keys that TorchServe wrote into its working folder. ServerError if there are none."""
    try:
        return Keys.model_validate_json((folder / KEY_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise ServerError(
            f"TorchServe wrote no keys into {folder / KEY_FILE}: {error!r}",
            remedy="start it again; with disable_token_authorization=true there are none",
        ) from error


# --- the management API ---


class Reply(NamedTuple):
    """A response's status and body: decoded JSON, or else text."""

    status: int
    body: Any

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    def __str__(self) -> str:
        message = self.body.get("message", self.body) if isinstance(self.body, dict) else self.body
        return f"{self.status} {message}"


class Control:
    """A client of the management API at `url`; `key` returns its key ("" if authorisation is off)."""

    def __init__(self, url: str, key: Callable[[], str], *, check: Callable[[], None] = lambda: None) -> None:
        self.url = url
        self._key = key
        self._check = check  # raises if the server has died

    def call(self, method: str, path: str, *, timeout_s: float = 120.0, **query: Any) -> Reply:
        """Send a request: `call("POST", "/models", url="sleep-2.0.mar", initial_workers=1, synchronous="true")`.

        Returns the reply whatever its status. ServerError without a reply.
        """
        url = f"{self.url}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        headers = {"Authorization": f"Bearer {key}"} if (key := self._key()) else {}
        request = urllib.request.Request(url, headers=headers, method=method)
        try:
            with DIRECT.open(request, timeout=timeout_s) as response:
                return Reply(response.status, _decoded(response.read()))
        except urllib.error.HTTPError as error:
            return Reply(error.code, _decoded(error.read()))
        except (OSError, http.client.HTTPException) as error:
            self._check()
            raise ServerError(f"{method} {url} got no response: {error!r}", remedy="read the server's log") from error

    def describe(self, model: str, version: str | None = None) -> dict[str, Any]:
        """Return TorchServe's description of a model: batchSize, workers, jobQueueStatus, ...

        `version` None: the default version. UsageError, with TorchServe's message, if it has no such model.
        """
        reply = self.call("GET", _path(model, version))
        require(reply.ok, f"{_path(model, version)} cannot be described: {reply}", fix="list the models by GET /models")
        described: dict[str, Any] = reply.body[0]
        return described

    def wait_ready(
        self,
        model: str,
        version: str | None = None,
        *,
        timeout_s: float = 180.0,
        progress: Say = lambda _: None,
    ) -> None:
        """Wait until a model's minWorkers workers are ready.

        /ping does not report this: it says Healthy while a worker loads, or crashes repeatedly.
        """
        ready = 0
        for waited_s in poll(POLL_S, timeout_s=timeout_s):
            self._check()
            described = self.describe(model, version)
            ready = sum(worker["status"] == "READY" for worker in described["workers"])
            if ready >= described["minWorkers"]:
                return
            progress(f"{model}: {ready} of {described['minWorkers']} workers ready, {waited_s:.0f} s")
        what = f"{ready} workers of {model} were ready after {timeout_s:.0f} s"
        raise ServerError(what, remedy="read in the server's log why the others are not")

    def drain(self, model: str, version: str, *, quiet_s: float = 1.0, timeout_s: float = 300.0) -> None:
        """Wait until the version's queue has been empty for `quiet_s`. Stop sending requests to it first.

        TorchServe reports queued requests, not running ones: choose `quiet_s` longer than a batch takes. Requests
        without a version go to the default one: make another version the default first.
        """
        waiting, quiet_since = 0, 0.0
        for _ in poll(POLL_S, timeout_s=timeout_s):
            # An empty queue counts from one poll to a later one: a single poll says nothing about a duration.
            waiting, now = self.describe(model, version)["jobQueueStatus"]["pendingRequests"], time.monotonic()
            quiet_since = 0.0 if waiting else quiet_since or now
            if quiet_since and now - quiet_since >= quiet_s:
                return
        what = f"{waiting} requests still waited for {model} {version} after {timeout_s:.0f} s"
        raise ServerError(what, remedy="stop sending requests to it, and drain again")


def _path(model: str, version: str | None) -> str:
    return "/".join(["/models", *(urllib.parse.quote(part, safe="") for part in (model, version) if part)])


def _decoded(raw: bytes) -> Any:
    with contextlib.suppress(ValueError):
        return json.loads(raw)
    return raw.decode("utf-8", "replace")


# --- archives ---


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An archive file, its model name and version, and the archiver's command, with shortened paths."""

    path: Path
    model_name: str
    version: str
    command: str = ""


def handlers_path() -> Path:
    """Return the folder of the course's handlers. UsageError if it is missing."""
    folder = root() / "handlers"
    fix = "run labkit from a clone of the repository, or set LABKIT_ROOT to one"
    require(folder.is_dir(), f"the handlers are missing: {folder}", fix=fix)
    return folder


def archive(
    handler: str | Path,
    *,
    folder: Path,
    model_name: str,
    version: str = "1.0",
    settings: Mapping[str, Any] | None = None,
    handler_settings: Mapping[str, Any] | None = None,
) -> Archive:
    """Archive a handler into `folder` as NAME-VERSION.mar.

    `handler`: a name in handlers/ ("text_generation"), or a .py file with its configuration in a .yaml file of the
    same name. `settings` override the configuration (batchSize, maxBatchDelay, ...), `handler_settings` its section
    `handler`. UsageError for an unknown handler or setting, or if the archiver fails.
    """
    code = handlers_path() / f"{handler}.py" if isinstance(handler, str) else handler
    config = _configuration(code, settings or {}, handler_settings or {})
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{model_name}-{version}.mar"
    with tempfile.TemporaryDirectory(prefix="labkit-archive-") as work:
        config_file = Path(work) / CONFIG
        config_file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        archiver = ["torch-model-archiver", "--model-name", model_name, "--version", version]
        options = ["--handler", str(code), "--config-file", str(config_file), "--export-path", work, "--force"]
        program = str(executable(archiver[0]))
        done = subprocess.run([program, *archiver[1:], *options], capture_output=True, text=True, check=False)
        last_line = "".join((done.stderr or done.stdout).strip().splitlines()[-1:])
        require(done.returncode == 0, f"{archiver[0]} failed: {last_line}", fix="see `torch-model-archiver --help`")
        shutil.move(Path(work) / f"{model_name}.mar", target)
    shown = [*archiver, "--handler", code.name, "--config-file", CONFIG, "--export-path", folder.name]
    return Archive(path=target, model_name=model_name, version=version, command=shlex.join(shown))


def _configuration(code: Path, settings: Mapping[str, Any], handler_settings: Mapping[str, Any]) -> dict[str, Any]:
    """The handler's configuration with the changes. UsageError for unknown settings, which would have no effect."""
    config_file = code.with_suffix(".yaml")
    if missing := [file for file in (code, config_file) if not file.is_file()]:
        names = ", ".join(sorted(path.stem for path in handlers_path().glob("*.yaml")))
        raise UsageError(f"{missing[0]} does not exist", remedy=f"choose a handler of the course: {names}")
    config: dict[str, Any] = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    handler_config = config.get("handler", {})
    for known, changes in ((config, settings), (handler_config, handler_settings)):
        for unknown in changes.keys() - known.keys():
            raise UsageError(f"{code.name} has no setting {unknown!r}", remedy=f"it has: {', '.join(known)}")
    return {**config, **settings, "handler": {**handler_config, **handler_settings}}


# --- the server ---


class TorchServe(Stoppable):
    """A running TorchServe. Use it in a `with` block, or call `stop`.

    `url`: the root for predictions; `metrics_url`: the Prometheus page; `control`: a client of the management API.
    Predictions need `keys.inference`, the management API `keys.management`, unless `disable_token_authorization=true`.
    `config`: the text of its config.properties; `command`: the full command.
    """

    def __init__(self, process: ServerProcess, *, config: str, ports: Mapping[str, int], token: bool) -> None:
        self.process = process
        self.config = config
        self.command = shlex.join(["torchserve", *process.command[1:]])
        self.url = f"http://{LOOPBACK}:{ports['inference']}"
        self.metrics_url = f"http://{LOOPBACK}:{ports['metrics']}/metrics"
        self._token = token
        management = f"http://{LOOPBACK}:{ports['management']}"
        self.control = Control(management, lambda: self.keys.management, check=process.check)

    @property
    def keys(self) -> Keys:
        """The current keys, read from their file: `GET /token` changes them."""
        return read_keys(self.process.folder) if self._token else NO_KEYS

    @property
    def model_store(self) -> Path:
        """The folder from which archives are registered by file name."""
        return self.process.folder / "model_store"

    def base_url(self, model: str, version: str = "1.0") -> str:
        """Return the root of a text_generation handler's OpenAI routes; it must contain the version."""
        return f"{self.url}/predictions/{model}/{version}/v1"

    def stop(self) -> None:
        """End Java and the workers and wait until they have ended. Safe to call again."""
        self.process.stop()


def properties(
    *,
    ports: Mapping[str, int],
    model_store: Path,
    archives: Sequence[Archive] = (),
    changes: Mapping[str, str],
    gpus: bool = False,
) -> dict[str, str]:
    """Return config.properties: loopback addresses, tokens on, the model API off; then `changes`.

    A change to "" removes the line, which restores TorchServe's default. With `gpus`, system metrics are off: they
    need an unmaintained package (nvgpu) and fail at every interval without it (pytorch/serve #1516).
    """
    apis = ("inference", "management")
    lines = {
        **{f"{name}_address": f"http://{LOOPBACK}:{ports[name]}" for name in (*apis, "metrics")},
        **{f"grpc_{name}_address": LOOPBACK for name in apis},
        **{f"grpc_{name}_port": str(ports[f"grpc_{name}"]) for name in apis},
        "model_store": str(model_store),
        "load_models": ",".join(f"{archive.model_name}={archive.path.name}" for archive in archives),
        "metrics_mode": "prometheus",  # by default metrics go to a log, and the page stays empty
        "model_metrics_auto_detect": "true",
        "max_request_size": str(REQUEST_LIMIT_BYTES),
        "number_of_netty_threads": "4",
        "netty_client_threads": "4",
        "token_expiration_min": str(KEYS_LAST_MIN),
        "disable_system_metrics": "true" if gpus else "",
        **changes,
    }
    return {name: value for name, value in lines.items() if value}


def start(
    archives: Sequence[Archive] = (),
    *,
    folder: Path,
    model_api: bool = False,
    port: int | None = None,
    changes: Mapping[str, str] | None = None,
    start_timeout_s: float = 300.0,
    progress: Say = lambda _: None,
) -> TorchServe:
    """Start TorchServe with these archives and wait until all models' workers are ready.

    `folder`: for its log, keys and model store. `model_api`: allow registering and unregistering models. `port`: for
    predictions; the other ports are free ones. `changes`: to config.properties. UsageError for invalid settings;
    ServerError, with the reason and the end of the log and nothing left running, if it does not start.
    """
    java, reason = machine.java()
    if java is None:
        raise UsageError(f"TorchServe needs Java: {reason}", remedy="run `make setup`, or set JAVA_HOME")
    program = executable("torchserve")
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    if port is not None:
        ports["inference"] = require_free_port(port)
    folder = folder.absolute()
    lines = properties(
        ports=ports,
        model_store=folder / "model_store",
        archives=archives,
        changes={**({"enable_model_api": "true"} if model_api else {}), **(changes or {})},
        gpus=bool(machine.inspect().gpus),
    )
    config = "".join(f"{name}={value}\n" for name, value in lines.items())
    _lay_out(folder, config, archives)
    process = ServerProcess(
        [str(program), "--start", "--foreground", "--ncs", "--ts-config", str(folder / "config.properties")],
        name="torchserve",
        folder=folder,
        health_url=f"http://{LOOPBACK}:{ports['metrics']}/metrics",  # /ping needs the token
        env=environment(folder, java),
        start_timeout_s=start_timeout_s,
        failures=KNOWN_FAILURES,
    )
    token = lines.get("disable_token_authorization", "false").lower() != "true"
    server = TorchServe(process, config=config, ports=ports, token=token)
    try:
        process.start(progress=progress)
        for archive in archives:
            _wait_for(server, archive, start_timeout_s, progress)
    except BaseException:
        server.stop()
        raise
    return server


def environment(folder: Path, java: Path) -> dict[str, str]:
    """Return the environment that gives this TorchServe its own configuration and logs; its process's temporary folder
    holds the pid file, sockets and unpacked archives."""
    return {
        "JAVA_HOME": str(java.parent.parent),
        "TS_CONFIG_FILE": str(folder / "config.properties"),  # takes precedence over --ts-config
        "LOG_LOCATION": str(folder / "logs"),
        "METRICS_LOCATION": str(folder / "logs"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),  # spinning threads are slow on few busy cores
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def _wait_for(server: TorchServe, archive: Archive, timeout_s: float, progress: Say) -> None:
    """Wait for the archive's workers. ServerError if they fail to load it, which TorchServe would retry forever."""

    def watch(text: str) -> None:
        failed = re.findall(rf"Load model failed: {re.escape(archive.model_name)},", server.process.log_text())
        if len(failed) >= FAILED_LOADS:
            raise server.process.error(f"{archive.model_name} cannot be loaded")
        progress(text)

    try:
        server.control.wait_ready(archive.model_name, archive.version, timeout_s=timeout_s, progress=watch)
    except UsageError as error:  # the model is not registered
        raise server.process.error(error.what) from error


def _lay_out(folder: Path, config: str, archives: Sequence[Archive]) -> None:
    """Fill the folder with config.properties and the model store; only its owner can read it."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # the keys are in it
    (folder / KEY_FILE).unlink(missing_ok=True)  # of an earlier run
    (folder / "model_store").mkdir(exist_ok=True)
    for archive in archives:
        stored = folder / "model_store" / archive.path.name
        if not (stored.exists() and stored.samefile(archive.path)):
            shutil.copyfile(archive.path, stored)
    (folder / "config.properties").write_text(config, encoding="utf-8")
