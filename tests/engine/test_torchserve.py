"""TorchServe for real: `labkit.serving.torchserve`, the handlers behind HTTP, and `labkit serve torchserve`.

One start serves the tests that only ask it something; how a server ends by force, and how it fails, take their own.
What a handler does with its rows is tested in tests/unit/test_handlers.py.
"""

import contextlib
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import openai
import psutil
import pytest
import requests

from labkit import load, models
from labkit.errors import ServerError
from labkit.load import Outcome, counters, workloads
from labkit.models import EMBEDDING, resolve
from labkit.serving import torchserve
from labkit.serving.process import free_port, poll
from labkit.serving.torchserve import REQUEST_LIMIT_BYTES, TorchServe
from tests.engine.openai_contract import OpenAIContract, Served
from tests.unit.standin import survivors, wait_for

pytestmark = pytest.mark.engine

START_TIMEOUT_S, STOP_TIMEOUT_S = 400, 90
HELLO = "What is the capital of France?"
CHAT = "chat/1.0/v1/chat/completions"


@pytest.fixture(scope="module")
def server(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """A TorchServe with four models. When it is stopped, neither Java nor a worker may be left."""
    folder = tmp_path_factory.mktemp("torchserve")
    chat = {"model_path": str(chat_model)}
    handlers: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
        ("text_generation", "chat", {"batchSize": 8, "maxBatchDelay": 20}, chat),
        ("embedding", "intents", {}, {"model_path": str(resolve(EMBEDDING))}),
        ("sleep", "nap", {"batchSize": 4, "maxBatchDelay": 3000}, {}),
        ("naive", "naive", {"batchSize": 2, "maxBatchDelay": 5000}, {**chat, "max_new_tokens": 4}),
    ]
    archives = [
        torchserve.archive(handler, folder=folder, model_name=name, settings=settings, handler_settings=inner)
        for handler, name, settings, inner in handlers
    ]
    found = torchserve.start(archives, folder=folder, model_api=True, start_timeout_s=START_TIMEOUT_S)
    processes = [psutil.Process(pid) for pid in found.process.pids]
    names = [process.name() for process in processes]
    yield found
    found.stop()
    assert "java" in names, "Java was not seen at all"
    assert len(processes) >= 6, "its workers were not seen at all"
    assert not survivors(processes, within_s=0)


def post(server: TorchServe, path: str, data: Any, *, key: str | None = None, **headers: str) -> requests.Response:
    """POSTs bytes as they are, anything else as JSON, without the environment's proxies."""
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    with requests.Session() as session:
        session.trust_env = False
        with_key = {"Authorization": f"Bearer {key or server.keys.inference}", "Content-Type": "application/json"}
        return session.post(f"{server.url}/predictions/{path}", data=raw, headers={**with_key, **headers}, timeout=300)


def together(server: TorchServe, path: str, bodies: list[Any]) -> list[requests.Response]:
    """All at once."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: post(server, path, body), bodies))


class TestOpenAI(OpenAIContract):
    """The OpenAI SDK drives text_generation.py; what the handler does not support it refuses by name."""

    refuses: ClassVar[dict[str, str]] = {
        "n": "n: not supported",
        "logprobs": "top_logprobs: not supported",
        "response_format": "response_format: not supported",
        "logit_bias": "logit_bias: not supported",
        "tools": "tools: not supported",
        "image": "image_url: not supported",
        "frobnicate": "frobnicate: not supported",
    }

    @pytest.fixture(scope="class")
    @classmethod
    def served(cls, server: TorchServe) -> Served:
        """The routes below the model's version."""
        return Served(base_url=server.base_url("chat"), api_key=server.keys.inference, model="chat")

    def test_wrong_key(self, sdk: openai.OpenAI, served: Served) -> None:
        """TorchServe itself checks keys, and answers 400 where OpenAI has 401."""
        stranger = sdk.with_options(api_key="wrong")
        for ask in (stranger.models.list, lambda: stranger.completions.create(model=served.model, prompt="Hi")):
            with pytest.raises(openai.BadRequestError, match="Token Authorization failed"):
                ask()


def chat(text: str = HELLO, **options: Any) -> dict[str, Any]:
    """The body of a chat."""
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 12, **options}


def said(answer: requests.Response) -> str:
    """The text of a chat, whole or streamed."""
    if "event-stream" not in answer.headers["Content-Type"]:
        return str(answer.json()["choices"][0]["message"]["content"])
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.strip()]
    assert lines[-1] == "[DONE]"
    return "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines[:-1])


def test_one_bad_row_fails_alone(server: TorchServe) -> None:
    """In one batch with good requests, streamed and whole, the bad ones fail, each in its own way, and only they; the
    metrics count what happened."""
    alone = said(post(server, CHAT, chat()))
    bodies = [
        chat(),
        {"messages": 7},
        chat(stream=True),
        chat("word " * 5000),
        chat(),
        chat(model="x"),
        chat(stream=True),
    ]
    before = counters.scrape(server.metrics_url)
    with ThreadPoolExecutor(1) as pool:
        # While one long answer is written the others gather in the queue, and become one batch.
        pool.submit(post, server, CHAT, chat("Tell me a long story.", max_tokens=60, ignore_eos=True))
        time.sleep(1)
        answers = together(server, CHAT, bodies)
    assert [answer.status_code for answer in answers] == [200, 422, 200, 400, 200, 404, 200]
    assert [said(answers[place]) for place in (0, 2, 4, 6)] == [alone] * 4
    for _ in poll(0.2, timeout_s=60):  # the counters travel through the worker's log
        moved = counters.difference(before, counters.scrape(server.metrics_url))
        if moved.value("FailedRequests") >= 3:
            break
    assert moved.value("FailedRequests") == 3
    assert moved.value("GeneratedTokens") == 60 + 4 * post(server, CHAT, chat()).json()["usage"]["completion_tokens"]
    assert moved.histogram("BatchRows").count < len(bodies), "nothing was batched"


def test_what_http_brings(server: TorchServe) -> None:
    """JSON counts whatever its content type says; a web form and a body over the limit are the client's mistakes; a
    header that `BaseHandler` would obey changes nothing."""
    for kind in ("text/plain", "application/octet-stream", "application/json; charset=utf-8"):
        assert post(server, CHAT, chat(), **{"Content-Type": kind}).status_code == 200
    assert post(server, CHAT, b"a=b", **{"Content-Type": "application/x-www-form-urlencoded"}).status_code == 400
    for body in (b"[" * 100_000, b'{"prompt": "\xff"}', b""):
        assert post(server, "chat", body).status_code == 400
    with contextlib.suppress(requests.ConnectionError):  # TorchServe may not read it to its end
        assert post(server, CHAT, b" " * (REQUEST_LIMIT_BYTES + 1000)).status_code == 413
    assert post(server, CHAT, chat(), explain="True", describe="True").status_code == 200


def worker_pids(server: TorchServe, model: str) -> list[int]:
    """The process ids of the model's workers that are ready."""
    return [worker["pid"] for worker in server.control.describe(model)["workers"] if worker["status"] == "READY"]


def test_clients_that_hang_up(server: TorchServe) -> None:
    """Clients that leave, one in the middle of its stream and one before its answer, do no harm to the others."""
    before = worker_pids(server, "chat")
    for stream in (True, False):
        hang_up(server, json.dumps(chat("Tell me a story.", max_tokens=100, ignore_eos=True, stream=stream)).encode())
    assert [post(server, CHAT, chat()).status_code for _ in range(3)] == [200] * 3
    assert worker_pids(server, "chat") == before


def hang_up(server: TorchServe, body: bytes) -> None:
    """Asks, waits for the first bytes of a stream, and leaves."""
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /predictions/{CHAT} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {server.keys.inference}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=120) as connection:
        connection.sendall(head.encode() + body)
        if b'"stream": true' in body:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")


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


def test_loopback_only(server: TorchServe) -> None:
    """Whatever its processes listen on is reachable from this machine only."""
    listening = {
        connection.laddr
        for pid in server.process.pids
        for connection in psutil.Process(pid).net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert len(listening) >= 5
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


def test_its_configuration_is_the_archives(server: TorchServe) -> None:
    """Batch size and delay are those of the archive's configuration; a worker's pid is that of a process of ours."""
    described = server.control.describe("nap")
    assert (described["batchSize"], described["maxBatchDelay"]) == (4, 3000)
    assert set(worker_pids(server, "nap")) <= set(server.process.pids)


def test_requests_that_come_together_share_a_batch(server: TorchServe) -> None:
    """Four at once are one batch of four; one alone waits for the delay and is a batch of one."""
    assert [answer.json()["rows"] for answer in together(server, "nap", [{}] * 4)] == [4] * 4
    alone = post(server, "nap", {})
    assert alone.json()["rows"] == 1
    assert alone.elapsed.total_seconds() >= 3


def test_labels_and_embeddings(server: TorchServe) -> None:
    """Texts are labelled by their nearest examples, in one batch with embeddings and with a request that is wrong."""
    texts = ["please refund my order", "when will it come", "I forgot my password", "the app crashes at once"]
    bodies = [
        {"text": texts},
        {"text": texts[0], "embed": True},
        {"text": 7},
        {"text": "word " * 500},
        {"text": texts[3]},
    ]
    labels, vectors, wrong, long, last = together(server, "intents", bodies)
    assert [result["label"] for result in labels.json()["results"]] == ["refund", "shipping", "account", "technical"]
    assert len(vectors.json()["results"][0]) == 384
    assert [answer.status_code for answer in (wrong, long)] == [422, 422]
    assert "'text' must be a string" in wrong.text
    assert "the limit is 256" in long.text
    assert last.json()["results"][0]["label"] == "technical"


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
            control.drain("swap", "1.0", timeout_s=60)
            assert control.call("DELETE", "/models/swap/1.0").ok
            time.sleep(1)
        finally:
            stop.touch()
        answers = [answer for client in clients for answer in client.result()]
    assert {status for status, _ in answers} == {200}
    assert {version for _, version in answers} == {"1.0", "2.0"}
    assert post(server, "swap/1.0", {}).status_code == 404


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
    assert "/no/such/folder" in str(caught.value)
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
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with (tmp_path / "log").open("wb") as log:
        owner = subprocess.Popen(command, stdout=log, stderr=log, env=dict(os.environ), start_new_session=True)
    while owner.poll() is None and not (tmp_path / "pids").exists():
        time.sleep(0.2)
    assert owner.poll() is None, (tmp_path / "log").read_text()
    processes = [psutil.Process(int(pid)) for pid in wait_for(tmp_path / "pids").split()]
    assert "java" in {process.name() for process in processes}
    owner.send_signal(signal.SIGKILL)
    owner.wait(30)
    assert not survivors(processes, within_s=STOP_TIMEOUT_S)
    assert_nothing_left(tmp_path)


def test_labkit_serve_torchserve_and_labkit_load(tmp_path: Path) -> None:
    """`labkit serve torchserve` prints the command with which `labkit load` streams from it, many at once, and gets the
    tokens asked for in pieces; Ctrl-C ends Java and the worker."""
    log = tmp_path / "log"
    command = [sys.executable, "-m", "labkit", "serve", "torchserve", "--port", str(free_port())]
    with log.open("wb") as out:
        served = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    processes = [psutil.Process(served.pid)]
    try:
        for _ in poll(0.5, timeout_s=START_TIMEOUT_S):
            if served.poll() is not None or "labkit load" in log.read_text():
                break
        said = re.search(r"LABKIT_API_KEY=(\S+) labkit load (\S+)", log.read_text())
        assert said, log.read_text()[-3000:]
        processes += processes[0].children(recursive=True)
        assert "java" in {process.name() for process in processes}
        workload = workloads.chat(12, seed=5, max_tokens=16, max_tokens_low=4)
        apis: tuple[load.Api, ...] = ("completions", "chat")
        for api in apis:
            result = load.run_blocking(said[2], models.CHAT, workload, concurrency=6, api=api, api_key=said[1])
            assert {(record.outcome, record.error) for record in result.records} == {(Outcome.OK, "")}
            assert [record.output_tokens for record in result.records] == [one.max_tokens for one in workload.requests]
            for record, request in zip(result.records, workload.requests, strict=True):
                assert len(record.chunk_times_s) > request.max_tokens // 2
    finally:
        served.send_signal(signal.SIGINT)
        ended = served.wait(STOP_TIMEOUT_S)
    assert ended == 0, log.read_text()
    assert not survivors(processes, within_s=5)
