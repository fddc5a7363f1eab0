"""TorchServe's configuration, archives and management API, without a TorchServe: a stub answers in its place."""

import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from labkit.errors import ServerError, UsageError
from labkit.serving import torchserve
from labkit.serving.process import explain
from labkit.serving.torchserve import Control
from tests.unit.refusals import not_refused

NAMES = ("inference", "management", "metrics", "grpc_inference", "grpc_management")
PORTS = {name: 7000 + place for place, name in enumerate(NAMES)}


def test_an_archive_holds_code_and_configuration(tmp_path: Path) -> None:
    """The archive has the handler's file byte by byte, the configuration with the changes, name and version."""
    made = torchserve.archive(
        "sleep", folder=tmp_path / "store", model_name="nap", version="2.0",
        settings={"batchSize": 3}, handler_settings={"per_row_s": 0.5},
    )  # fmt: skip
    assert made.path == tmp_path / "store" / "nap-2.0.mar"
    with zipfile.ZipFile(made.path) as packed:
        manifest = json.loads(packed.read("MAR-INF/MANIFEST.json"))["model"]
        config = yaml.safe_load(packed.read(manifest["configFile"]))
        code = packed.read(manifest["handler"])
    ours = torchserve.handlers_path() / "sleep.py"
    assert code == ours.read_bytes()
    assert (manifest["modelName"], manifest["modelVersion"]) == ("nap", "2.0")
    usual = yaml.safe_load(ours.with_suffix(".yaml").read_text())
    assert config == {**usual, "batchSize": 3, "handler": {**usual["handler"], "per_row_s": 0.5}}


def test_what_cannot_be_archived_is_a_usage_error(tmp_path: Path) -> None:
    """An unknown handler or setting, or a name that TorchServe does not take, is refused, and nothing is left."""
    bad: list[tuple[dict[str, Any], str]] = [
        ({"handler": "snooze"}, "choose a handler of the course: embedding, naive, sleep, text_generation"),
        ({"settings": {"batch_size": 3}}, "no setting 'batch_size'"),
        ({"handler_settings": {"model_path": "x"}}, "no setting 'model_path'"),
        ({"model_name": "a/b"}, "regular expression filter for model name"),
    ]
    usual: dict[str, Any] = {"handler": "sleep", "model_name": "m", "folder": tmp_path}
    assert not_refused(lambda changes: torchserve.archive(**{**usual, **changes}), bad) == []
    assert list(tmp_path.iterdir()) == []


def test_everything_is_on_loopback_and_closed_by_default(tmp_path: Path) -> None:
    """No address but 127.0.0.1, authorisation not disabled, no model API; changes come last, and "" leaves a line out.
    With a GPU TorchServe's system metrics, which import a package that is not there, are off."""
    usual = torchserve.properties(ports=PORTS, model_store=tmp_path, changes={})
    addresses = [value for name, value in usual.items() if name.endswith("_address")]
    assert len(addresses) == 5
    assert all(address.removeprefix("http://").startswith("127.0.0.1") for address in addresses)
    closed = {"disable_token_authorization", "enable_model_api", "load_models", "disable_system_metrics"}
    assert not closed & usual.keys()
    changed = torchserve.properties(
        ports=PORTS, model_store=tmp_path, changes={"metrics_mode": "log", "netty_client_threads": ""}, gpus=True
    )
    expected = {**usual, "metrics_mode": "log", "disable_system_metrics": "true"}
    expected.pop("netty_client_threads")
    assert changed == expected


def test_a_failed_start_is_explained() -> None:
    """The log of a failed start gives its reason; a log without a known one gives none."""
    logs = {
        "[INFO ] W-9000-m_1.0-stdout MODEL_LOG - FileNotFoundError: no model at /x\n": "no model at /x",
        "[ERROR] java.net.BindException: Address already in use\n": "took one of its ports",
        "java not found, please make sure JAVA_HOME is set properly.\n": "Java cannot be started",
    }
    for log, says in logs.items():
        explained = explain(f"[INFO ] something\n{log}", torchserve.KNOWN_FAILURES)
        assert explained is not None
        assert says in explained[0]
    assert explain("[INFO ] W-9000-m_1.0-stdout MODEL_LOG - loaded\n", torchserve.KNOWN_FAILURES) is None


class Stub:
    """A management API whose answers are set by the test; it notes what it was asked, and with which key."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.keys: set[str | None] = set()
        self.pending: list[int] = []
        self.ready: list[int] = []

    def reply(self, request: BaseHTTPRequestHandler) -> tuple[int, Any]:
        self.asked.append((request.command, request.path))
        self.keys.add(request.headers["Authorization"])
        if not request.path.startswith("/models/m"):
            return 404, {"code": 404, "message": "Model not found"}
        ready = self.ready.pop(0) if self.ready else 2
        workers = [{"status": "READY" if place < ready else "LOADING", "pid": 10 + place} for place in range(2)]
        waiting = self.pending.pop(0) if self.pending else 0
        return 200, [{"minWorkers": 2, "workers": workers, "jobQueueStatus": {"pendingRequests": waiting}}]


@pytest.fixture
def stub() -> Iterator[tuple[Stub, Control]]:
    """A stub that runs, and the control that asks it."""
    management = Stub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = management.reply(self)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield management, Control(f"http://127.0.0.1:{server.server_address[1]}", lambda: "the-key")
        server.shutdown()
        thread.join()


def test_ready_means_all_workers(stub: tuple[Stub, Control]) -> None:
    """Waiting ends when as many workers are ready as the model has at least, and every call carries the key; after the
    time-out the error says how many were ready."""
    management, control = stub
    management.ready = [0, 1, 1, 2]
    said: list[str] = []
    control.wait_ready("m", progress=said.append)
    assert [text.split(",")[0] for text in said] == [f"m: {ready} of 2 workers ready" for ready in (0, 1, 1)]
    assert management.keys == {"Bearer the-key"}
    management.ready = [1] * 100
    with pytest.raises(ServerError, match="1 workers of m were ready after"):
        control.wait_ready("m", timeout_s=0.3)


def test_a_version_is_drained(stub: tuple[Stub, Control]) -> None:
    """Draining ends after the queue has been empty for a while without a break; with requests still coming in the
    error says how many wait."""
    management, control = stub
    management.pending = [3, 0, 2, 0, 1]
    control.drain("m", "1.0", quiet_s=0.3)
    assert set(management.asked) == {("GET", "/models/m/1.0")}
    assert len(management.asked) > 6
    assert management.pending == []
    management.pending = [4] * 100
    with pytest.raises(ServerError, match=r"4 requests still waited for m 1\.0"):
        control.drain("m", "1.0", timeout_s=0.3)


def test_what_the_management_api_refuses(stub: tuple[Stub, Control]) -> None:
    """Its status and its words are in the error; where nothing answers, its address."""
    _, control = stub
    with pytest.raises(UsageError, match="404 Model not found"):
        control.describe("x")
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:9/models"):
        Control("http://127.0.0.1:9", lambda: "").call("GET", "/models")


def test_a_server_without_its_keys_is_an_error(tmp_path: Path) -> None:
    """It names the file in which TorchServe would have left them."""
    with pytest.raises(ServerError, match="key_file"):
        torchserve.read_keys(tmp_path)
