"""`labkit.serving.torchserve` and the small handlers on a real TorchServe: start, tokens, batching, drain, stop.

One start serves the tests that only ask it something; how a server ends by force, and how it fails, take their own.
"""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from labkit.errors import ServerError
from labkit.models import EMBEDDING, resolve
from labkit.serving import torchserve
from labkit.serving.process import poll
from labkit.serving.torchserve import TorchServe
from tests.unit.standin import survivors, wait_for

pytestmark = pytest.mark.engine

STARTS, STOP_TIMEOUT_S = 3, 60


@pytest.fixture(scope="module")
def server(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """A TorchServe with three models. When it is stopped, neither Java nor a worker may be left."""
    folder = tmp_path_factory.mktemp("torchserve")
    store = folder / "archives"
    archives = [
        torchserve.archive(
            "embedding", folder=store, model_name="intents", handler_settings={"model_path": str(resolve(EMBEDDING))}
        ),
        torchserve.archive("sleep", folder=store, model_name="nap", settings={"batchSize": 4, "maxBatchDelay": 3000}),
        torchserve.archive(
            "naive",
            folder=store,
            model_name="naive",
            settings={"batchSize": 2, "maxBatchDelay": 5000},
            handler_settings={"model_path": str(chat_model), "max_new_tokens": 4},
        ),
    ]
    found = start_patiently(archives, folder)
    processes = [psutil.Process(pid) for pid in found.process.pids]
    names = [process.name() for process in processes]
    yield found
    found.stop()
    assert "java" in names, "Java was not seen at all"
    assert len(processes) >= 5, "its workers were not seen at all"
    assert not survivors(processes, within_s=0)


def start_patiently(archives: list[torchserve.Archive], folder: Path) -> TorchServe:
    """Starts it, again if it does not come up: the last failure counts."""
    for attempt in range(1, STARTS + 1):
        try:
            return torchserve.start(archives, folder=folder / str(attempt), model_api=True)
        except ServerError:
            if attempt == STARTS:
                raise
    raise AssertionError("unreachable")


def post(server: TorchServe, path: str, data: Any, *, key: str | None = None, **headers: str) -> requests.Response:
    """POSTs bytes as they are, anything else as JSON, without the environment's proxies."""
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    with requests.Session() as session:
        session.trust_env = False
        with_key = {"Authorization": f"Bearer {key or server.keys.inference}", "Content-Type": "application/json"}
        return session.post(f"{server.url}/predictions/{path}", data=raw, headers={**with_key, **headers}, timeout=120)


def together(server: TorchServe, path: str, bodies: list[Any]) -> list[requests.Response]:
    """All at once."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: post(server, path, body), bodies))


def test_it_works_in_its_own_folder(server: TorchServe) -> None:
    """Logs, keys, sockets and the model store are in its folder, which nobody else can read."""
    folder = server.process.folder
    keys = folder / "key_file.json"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(keys.stat().st_mode) & 0o077 == 0
    assert (folder / "logs" / "ts_log.log").is_file()
    assert (folder / "config.properties").read_text() == server.config
    assert {path.name for path in server.model_store.glob("*.mar")} >= {"nap-1.0.mar", "intents-1.0.mar"}
    assert not Path("key_file.json").exists()


def test_its_configuration_is_the_archives(server: TorchServe) -> None:
    """Batch size and delay are those of the archive's configuration; a worker's pid is that of a process of ours."""
    described = server.control.describe("nap")
    assert (described["batchSize"], described["maxBatchDelay"]) == (4, 3000)
    assert set(server.control.worker_pids("nap")) <= set(server.process.pids)


def test_requests_that_come_together_share_a_batch(server: TorchServe) -> None:
    """Four at once are one batch of four; one alone waits for the delay and is a batch of one."""
    assert [answer.json()["rows"] for answer in together(server, "nap", [{}] * 4)] == [4] * 4
    alone = post(server, "nap", {})
    assert alone.json()["rows"] == 1
    assert alone.elapsed.total_seconds() >= 3


def test_labels_in_a_batch_and_alone(server: TorchServe) -> None:
    """Texts are labelled by their nearest examples, as many as were sent, the same in a batch and alone."""
    texts = ["please refund my order", "when will it come", "I forgot my password", "the app crashes at once"]
    bodies = [{"text": text} for text in texts] + [{"text": texts}]
    *each, all_at_once = (answer.json()["results"] for answer in together(server, "intents", bodies))
    assert [result["label"] for (result,) in each] == ["refund", "shipping", "account", "technical"]
    assert [result["label"] for result in all_at_once] == ["refund", "shipping", "account", "technical"]
    assert post(server, "intents", {"text": texts[0]}).json()["results"] == each[0]


def test_embeddings_are_unit_vectors(server: TorchServe) -> None:
    """With `embed` the answer is one vector of length 1 a text."""
    vectors = post(server, "intents", {"text": ["one", "another text"], "embed": True}).json()["results"]
    assert [len(vector) for vector in vectors] == [384, 384]
    assert [sum(x * x for x in vector) for vector in vectors] == pytest.approx([1, 1], abs=1e-4)


def test_bad_input_to_the_embedding_handler(server: TorchServe) -> None:
    """What a client does wrong is answered as the client's mistake, with the reason."""
    mistakes = [
        (b'{"text": "half', 400, "not JSON"),
        (b"", 400, "empty"),
        (b'{"text": "\xff"}', 400, "UTF-8"),
        (b'{"text": 7}', 422, "must be a text"),
        (b'{"text": []}', 422, "0 texts"),
        (b'{"text": "\\ud83d"}', 422, "half of a character"),
        (b'["a"]', 422, "JSON object"),
        (b'{"text": "a", "top_k": -1}', 422, "top_k"),
        (b'{"text": "%s"}' % (b"word " * 500), 400, "up to 256"),
    ]
    for body, status, says in mistakes:
        answer = post(server, "intents", body)
        assert (answer.status_code, says in answer.text) == (status, True), answer.text[:300]


def test_one_bad_text_fails_alone(server: TorchServe) -> None:
    """In a batch with good requests a bad one fails, and only it."""
    bodies = [{"text": "the screen stays black"}, {"text": 7}, {"text": "word " * 500}, {"text": "refund my order"}]
    answers = together(server, "intents", bodies)
    assert [answer.status_code for answer in answers] == [200, 422, 400, 200]
    assert [answers[place].json()["results"][0]["label"] for place in (0, 3)] == ["technical", "refund"]


def test_the_sleep_handler_takes_anything(server: TorchServe) -> None:
    """It reads nothing, so nothing is wrong."""
    answers = together(server, "nap", [b"", b"{", b"\xff\x00", b"[1]", b'{"text": -1}'])
    assert [answer.status_code for answer in answers] == [200] * 5


def test_what_the_naive_handler_gets_wrong(server: TorchServe) -> None:
    """Alone it gives the prompt back in its answer; a client's mistake is a 503; in a batch of two both fail."""
    good = {"prompt": "The capital of France is"}
    alone = post(server, "naive", good)
    assert alone.json()["response"].startswith(good["prompt"])
    assert [post(server, "naive", body).status_code for body in ({}, {"prompt": 7}, b"{")] == [503] * 3
    assert [answer.status_code for answer in together(server, "naive", [good, good])] == [503, 503]


def test_keys_by_their_purpose(server: TorchServe) -> None:
    """Each key opens its own API and no other; a new one can be made, and then the old one is refused."""
    keys = server.keys
    assert len({keys.management, keys.inference, keys.api}) == 3
    assert post(server, "nap", {}, key=keys.management).status_code == 400
    refused = requests.get(f"{server.control.url}/models", timeout=60)
    assert (refused.status_code, refused.json()["type"]) == (400, "InvalidKeyException")
    assert server.control.call("GET", "/models").status == 200
    api = {"Authorization": f"Bearer {keys.api}"}
    made = requests.get(f"{server.control.url}/token", params={"type": "inference"}, headers=api, timeout=60)
    assert made.status_code == 200
    assert server.keys.inference != keys.inference
    assert post(server, "nap", {}, key=keys.inference).status_code == 400
    assert post(server, "nap", {}).status_code == 200


def test_a_new_version_takes_over_without_a_loss(server: TorchServe, tmp_path: Path) -> None:
    """Register 2.0, make it the default, drain and unregister 1.0, all under load: every request is answered 200."""
    batching = {"batchSize": 4, "maxBatchDelay": 20}
    for version in ("1.0", "2.0"):
        torchserve.archive("sleep", folder=server.model_store, model_name="swap", version=version, settings=batching)
    control = server.control
    assert control.call("POST", "/models", url="swap-1.0.mar", synchronous="true").ok
    control.wait_ready("swap", "1.0")
    with ThreadPoolExecutor(8) as pool:
        stop = tmp_path / "stop"
        clients = [pool.submit(ask_until, server, "swap", stop) for _ in range(8)]
        try:
            assert control.call("POST", "/models", url="swap-2.0.mar", synchronous="true").ok
            control.wait_ready("swap", "2.0")
            assert control.call("PUT", "/models/swap/2.0/set-default").ok
            wait_until_idle(control, "swap", "1.0")
            assert control.call("DELETE", "/models/swap/1.0").ok
            time.sleep(1)
        finally:
            stop.touch()
        answers = [answer for client in clients for answer in client.result()]
    assert {status for status, _ in answers} == {200}
    assert {version for _, version in answers} == {"1.0", "2.0"}
    assert post(server, "swap/1.0", {}).status_code == 404


def wait_until_idle(control: torchserve.Control, model: str, version: str) -> None:
    """Waits until nothing has been queued for the version for a second, longer than a batch takes here."""
    idle_looks = 0
    for _ in poll(0.1, timeout_s=60):
        pending = control.describe(model, version)["jobQueueStatus"]["pendingRequests"]
        idle_looks = 0 if pending else idle_looks + 1
        if idle_looks == 10:
            return
    pytest.fail(f"{pending} requests still waited for {model} {version}")


def ask_until(server: TorchServe, path: str, stop: Path) -> list[tuple[int, str]]:
    """One request after the other until the file is there: (status, version that answered)."""
    key, answers = server.keys.inference, []
    while not stop.exists():
        answer = post(server, path, {}, key=key)
        answers.append((answer.status_code, answer.json().get("version", "")))
    return answers


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    """A worker that dies at its start is an error with the reason from its log, and nothing is left running."""
    broken = torchserve.archive(
        "text_generation", folder=tmp_path, model_name="m", handler_settings={"model_path": "/no/such/folder"}
    )
    with pytest.raises(ServerError, match="m cannot be loaded: a worker cannot load its model") as caught:
        torchserve.start([broken], folder=tmp_path / "run", start_timeout_s=400)
    assert "model_path '/no/such/folder' is no model folder" in str(caught.value)
    assert_nothing_left(tmp_path / "run")


def assert_nothing_left(folder: Path) -> None:
    """No process works in that folder, or below it, any more."""
    left = [process for process in psutil.process_iter(["cwd"]) if (process.info["cwd"] or "").startswith(str(folder))]
    assert not survivors(left, within_s=STOP_TIMEOUT_S)


OWNER = """
import sys, time
from pathlib import Path
from labkit.serving import torchserve

folder = Path(sys.argv[1])
nap = torchserve.archive("sleep", folder=folder, model_name="nap")
server = torchserve.start([nap], folder=folder / "run")
(folder / "pids.new").write_text(" ".join(map(str, server.process.pids)))
(folder / "pids.new").rename(folder / "pids")
time.sleep(600)
"""


def test_no_process_survives_its_owners_death(tmp_path: Path) -> None:
    """When the process that started it is killed, so that it cannot clean up, Java and the worker end too."""
    for attempt in range(STARTS):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        command = [sys.executable, "-c", OWNER, str(folder)]
        with (folder / "log").open("wb") as log:
            owner = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ), start_new_session=True)
        while owner.poll() is None and not (folder / "pids").exists():
            time.sleep(0.2)
        if owner.poll() is None:
            break
    processes = [psutil.Process(int(pid)) for pid in wait_for(folder / "pids").split()]
    assert "java" in {process.name() for process in processes}
    owner.send_signal(signal.SIGKILL)
    owner.wait(30)
    assert not survivors(processes, within_s=STOP_TIMEOUT_S)
    assert_nothing_left(folder)
