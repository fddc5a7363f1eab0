"""TorchServe as a server: `torchserve --start --foreground` in a private folder, reachable from this machine only.

TorchServe is archived upstream (last release 0.12.0, 2024-09; no security patches). An archive runs any code that is in
it: serve only your own, and leave the token authorisation on.
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
KEYS_LAST_MIN = 60 * 24 * 365  # TorchServe's own 60 would end a longer session in refusals
# TorchServe starts a worker that dies again and again, and predictions wait: this often is once and for all.
FAILED_LOADS = 2
KNOWN_FAILURES = (
    (
        r"[Aa]ddress already in use",
        "another process took one of its ports in the meantime",
        "start it again: other free ports are chosen",
    ),
    (
        r"MODEL_LOG - (?!.*(?:warn|Warning))([\w.]*(?:Error|Exception)\b.*)",
        "a worker cannot load its model: {0}",
        "mend the handler or its model-config.yaml, and archive it again",
    ),
    (
        r"java not found|Unable to locate a Java Runtime",
        "Java cannot be started",
        "`make setup` installs one; or set JAVA_HOME",
    ),
)


class Keys(BaseModel):
    """The three keys of a TorchServe: for its management API, for predictions, and for making new keys of the two."""

    management: str = Field(validation_alias=AliasPath("management", "key"))
    inference: str = Field(validation_alias=AliasPath("inference", "key"))
    api: str = Field(validation_alias=AliasPath("API", "key"))


NO_KEYS = Keys.model_construct(management="", inference="", api="")


def read_keys(folder: Path) -> Keys:
    """The keys that TorchServe wrote into the folder in which it runs. ServerError while there are none."""
    try:
        return Keys.model_validate_json((folder / KEY_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise ServerError(
            f"TorchServe wrote no keys into {folder / KEY_FILE}: {error!r}",
            remedy="start it again; with disable_token_authorization=true there are none",
        ) from error


# --- the management API ---


class Reply(NamedTuple):
    """A status, and the body: decoded where it is JSON, text otherwise."""

    status: int
    body: Any

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    def __str__(self) -> str:
        said = self.body.get("message", self.body) if isinstance(self.body, dict) else self.body
        return f"{self.status} {said}"


class Control:
    """The management API at `url`, asked with the key that `key` gives ("" where authorisation is off)."""

    def __init__(self, url: str, key: Callable[[], str], *, check: Callable[[], None] = lambda: None) -> None:
        self.url = url
        self._key = key
        self._check = check  # raises when the server has died: no use to wait any longer

    def call(self, method: str, path: str, *, timeout_s: float = 120.0, **query: Any) -> Reply:
        """One call, such as `call("POST", "/models", url="sleep-2.0.mar", initial_workers=1, synchronous="true")`.

        Returns every status that TorchServe gives. ServerError when it gives none.
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
            raise ServerError(
                f"{method} {url} got no answer: {error!r}", remedy="look into the server's log"
            ) from error

    def describe(self, model: str, version: str | None = None) -> dict[str, Any]:
        """What TorchServe says of a model (`version` None: the default one): batchSize, workers, jobQueueStatus, ...

        UsageError, with TorchServe's words, where it has no such model.
        """
        reply = self.call("GET", _path(model, version))
        require(reply.ok, f"{_path(model, version)} cannot be described: {reply}", fix="GET /models")
        described: dict[str, Any] = reply.body[0]
        return described

    def worker_pids(self, model: str, version: str | None = None) -> tuple[int, ...]:
        """The processes of the workers that are ready."""
        workers = self.describe(model, version)["workers"]
        return tuple(int(worker["pid"]) for worker in workers if worker["status"] == "READY")

    def wait_ready(
        self,
        model: str,
        version: str | None = None,
        *,
        workers: int | None = None,
        timeout_s: float = 180.0,
        progress: Say = lambda _: None,
    ) -> None:
        """Waits until `workers` of a model (default: its minWorkers) are ready to answer.

        /ping does not say so: it reports Healthy while a worker loads, and while one crashes again and again.
        """
        ready = 0
        for waited_s in poll(POLL_S, timeout_s=timeout_s):
            self._check()
            described = self.describe(model, version)
            ready = sum(worker["status"] == "READY" for worker in described["workers"])
            if ready >= (described["minWorkers"] if workers is None else workers):
                return
            progress(f"{model}: {ready} of {described['minWorkers']} workers ready, {waited_s:.0f} s")
        what = f"{ready} workers of {model} were ready after {timeout_s:.0f} s"
        raise ServerError(what, remedy="the server's log says what the others met")

    def drain(self, model: str, version: str, *, quiet_s: float = 1.0, timeout_s: float = 300.0) -> None:
        """Waits until nothing has been queued for the version for `quiet_s`. Send it no more requests before that.

        TorchServe reports what waits, not what is being computed: choose `quiet_s` longer than a batch takes. Its
        default version gets the requests that name none: make another one the default first.
        """
        waiting, quiet_since = 0, 0.0
        for _ in poll(POLL_S, timeout_s=timeout_s):
            # Two looks bound the quiet: one alone says nothing about a pause between them.
            waiting, now = self.describe(model, version)["jobQueueStatus"]["pendingRequests"], time.monotonic()
            quiet_since = 0.0 if waiting else quiet_since or now
            if quiet_since and now - quiet_since >= quiet_s:
                return
        what = f"{waiting} requests still waited for {model} {version} after {timeout_s:.0f} s"
        raise ServerError(what, remedy="stop sending to it, and drain again")


def _path(model: str, version: str | None) -> str:
    return "/".join(["/models", *(urllib.parse.quote(part, safe="") for part in (model, version) if part)])


def _decoded(raw: bytes) -> Any:
    with contextlib.suppress(ValueError):
        return json.loads(raw)
    return raw.decode("utf-8", "replace")


# --- archives ---


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An archive file, the model name and version in it, and the archiver's command that makes it, with short paths."""

    path: Path
    model_name: str
    version: str
    command: str = ""


def handlers_path() -> Path:
    """The folder of the course's own handlers."""
    folder = root() / "handlers"
    fix = "run labkit from a clone of the repository, or set LABKIT_ROOT to the folder that holds them"
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
    """Archives a handler into `folder` as NAME-VERSION.mar.

    `handler`: the name of one of ours ("text_generation"), or a .py file with its configuration beside it as .yaml.
    `settings` replace what the configuration says (batchSize, maxBatchDelay, ...), `handler_settings` what its section
    `handler` says. UsageError for an unknown handler, a setting that it does not have, or an archiver that fails.
    """
    code = handlers_path() / f"{handler}.py" if isinstance(handler, str) else handler
    config = _configuration(code, settings or {}, handler_settings or {})
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"{model_name}-{version}.mar"
    with tempfile.TemporaryDirectory(prefix="labkit-archive-") as work:
        config_file = Path(work) / CONFIG
        config_file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        named = ["torch-model-archiver", "--model-name", model_name, "--version", version]
        options = ["--handler", str(code), "--config-file", str(config_file), "--export-path", work, "--force"]
        program = str(executable(named[0]))
        ended = subprocess.run([program, *named[1:], *options], capture_output=True, text=True, check=False)
        last = "".join((ended.stderr or ended.stdout).strip().splitlines()[-1:])
        require(ended.returncode == 0, f"{named[0]} failed: {last}", fix="see `torch-model-archiver --help`")
        shutil.move(Path(work) / f"{model_name}.mar", made)
    shown = [*named, "--handler", code.name, "--config-file", CONFIG, "--export-path", folder.name]
    return Archive(path=made, model_name=model_name, version=version, command=shlex.join(shown))


def _configuration(code: Path, settings: Mapping[str, Any], handler_settings: Mapping[str, Any]) -> dict[str, Any]:
    """The handler's configuration with the changes; one that it does not know would change nothing, silently."""
    beside = code.with_suffix(".yaml")
    if not code.is_file() or not beside.is_file():
        ours = ", ".join(sorted(path.stem for path in handlers_path().glob("*.yaml")))
        raise UsageError(f"{code} and {beside.name} beside it are not both there", remedy=f"ours are: {ours}")
    config: dict[str, Any] = yaml.safe_load(beside.read_text(encoding="utf-8"))
    inner = config.get("handler", {})
    for known, changes in ((config, settings), (inner, handler_settings)):
        for unknown in changes.keys() - known.keys():
            raise UsageError(f"{code.name} has no setting {unknown!r}", remedy=f"it has: {', '.join(known)}")
    return {**config, **settings, "handler": {**inner, **handler_settings}}


# --- the server ---


class TorchServe(Stoppable):
    """A running TorchServe. Use it in a `with` block, or call `stop`.

    `url` is the root for predictions, `metrics_url` the Prometheus page; `control` asks the management API. Predictions
    need `keys.inference`, the management API `keys.management`, unless `disable_token_authorization=true` was set.
    `config` is the text of its config.properties, `command` what was started.
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
        """The keys at this moment: `GET /token` changes them, and the file that they are read from."""
        return read_keys(self.process.folder) if self._token else NO_KEYS

    @property
    def model_store(self) -> Path:
        """The only folder from which archives can be registered by their names."""
        return self.process.folder / "model_store"

    def base_url(self, model: str, version: str = "1.0") -> str:
        """Where the OpenAI routes of a text_generation handler are; the version is needed in it."""
        return f"{self.url}/predictions/{model}/{version}/v1"

    def stop(self) -> None:
        """Ends Java and the workers and waits until they are gone. Safe to call again."""
        self.process.stop()


def properties(
    *,
    ports: Mapping[str, int],
    model_store: Path,
    archives: Sequence[Archive] = (),
    changes: Mapping[str, str],
    gpus: bool = False,
) -> dict[str, str]:
    """config.properties: everything on the loopback interface, tokens on, the model API off; `changes` come last.

    A change to "" leaves the line out, so that TorchServe's own default holds. With `gpus` its system metrics are off:
    they import a package that is not maintained (nvgpu), and fail without it at every interval (pytorch/serve #1516).
    """
    apis = ("inference", "management")
    lines = {
        **{f"{name}_address": f"http://{LOOPBACK}:{ports[name]}" for name in (*apis, "metrics")},
        **{f"grpc_{name}_address": LOOPBACK for name in apis},
        **{f"grpc_{name}_port": str(ports[f"grpc_{name}"]) for name in apis},
        "model_store": str(model_store),
        "load_models": ",".join(f"{made.model_name}={made.path.name}" for made in archives),
        "metrics_mode": "prometheus",  # its own default writes them to a log, and the page stays empty
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
    """Starts TorchServe with these archives and waits until the workers of every model are ready.

    It runs in `folder`, where its log, its keys and its model store are. `model_api`: models can be registered and
    unregistered. `port`: for predictions; the others are free ones. `changes`: to config.properties. Raises
    `UsageError` for what cannot work and `ServerError`, with the reason and the end of the log, when it does not come
    up; nothing is left running then.
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
        health_url=f"http://{LOOPBACK}:{ports['metrics']}/metrics",  # /ping wants the token
        env=environment(folder, java),
        start_timeout_s=start_timeout_s,
        failures=KNOWN_FAILURES,
    )
    token = lines.get("disable_token_authorization", "false").lower() != "true"
    server = TorchServe(process, config=config, ports=ports, token=token)
    try:
        process.start(progress=progress)
        for made in archives:
            _wait_for(server, made, start_timeout_s, progress)
    except BaseException:
        server.stop()
        raise
    return server


def environment(folder: Path, java: Path) -> dict[str, str]:
    """What keeps this TorchServe apart from every other, beside its process's own folder for the pid file, sockets and
    unpacked archives: its configuration and its logs."""
    return {
        "JAVA_HOME": str(java.parent.parent),
        "TS_CONFIG_FILE": str(folder / "config.properties"),  # it would go before --ts-config
        "LOG_LOCATION": str(folder / "logs"),
        "METRICS_LOCATION": str(folder / "logs"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),  # spinning threads on few busy cores cost many times
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def _wait_for(server: TorchServe, made: Archive, timeout_s: float, progress: Say) -> None:
    """Waits for the archive's workers, unless they fail to load it, which TorchServe would try for ever."""

    def watch(text: str) -> None:
        failed = re.findall(rf"Load model failed: {re.escape(made.model_name)},", server.process.log_text())
        if len(failed) >= FAILED_LOADS:
            raise server.process.error(f"{made.model_name} cannot be loaded")
        progress(text)

    try:
        server.control.wait_ready(made.model_name, made.version, timeout_s=timeout_s, progress=watch)
    except UsageError as error:  # it is not even registered
        raise server.process.error(error.what) from error


def _lay_out(folder: Path, config: str, archives: Sequence[Archive]) -> None:
    """The private folder with its config.properties and its model store."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # the keys are in it
    (folder / KEY_FILE).unlink(missing_ok=True)  # an earlier run's
    (folder / "model_store").mkdir(exist_ok=True)
    for made in archives:
        kept = folder / "model_store" / made.path.name
        if not (kept.exists() and kept.samefile(made.path)):
            shutil.copyfile(made.path, kept)
    (folder / "config.properties").write_text(config, encoding="utf-8")
