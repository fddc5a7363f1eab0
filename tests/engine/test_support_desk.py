"""The support desk as `labkit serve ray` runs it, asked over HTTP.

One start serves all the tests. The last of them kills the engine; Ctrl-C ends the rest, and nothing may be left.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import requests

from labkit import load, models
from labkit.load import Outcome, metrics, workloads
from labkit.serving.gate import DEFAULT_LIMIT_BYTES
from labkit.serving.process import free_port
from tests.engine.openai_contract import OpenAIContract, Served
from tests.unit.standin import survivors

pytestmark = pytest.mark.engine

KEY = "a-key-for-the-test"
START_TIMEOUT_S, STOP_TIMEOUT_S, REPLACED_WITHIN_S = 400, 90, 240
PARCEL = {"text": "My parcel has not arrived yet. Where is it?", "max_tokens": 12}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The address and process of a running desk. Afterwards Ctrl-C must end it, and leave no process and no file."""
    log = tmp_path_factory.mktemp("desk") / "log"
    with tempfile.TemporaryDirectory(prefix="desk-") as temporary:  # a short path, for sockets
        yield from serve(log, Path(temporary))


def serve(log: Path, temporary: Path) -> Iterator[tuple[str, int]]:
    """The desk with a folder of its own for temporary files; see `running`."""
    server, url = start(log, temporary)
    processes = tree(server.pid)
    yield url, server.pid
    processes += tree(server.pid)
    server.send_signal(signal.SIGINT)
    assert server.wait(STOP_TIMEOUT_S) == 0, log.read_text()
    assert len(processes) > 5, "Ray's processes were not seen at all"
    assert not survivors(processes, within_s=5)
    assert [one for one in temporary.rglob("*") if one.name.startswith("vllm_dist_") or one.is_socket()] == []


@pytest.fixture(scope="module")
def desk(running: tuple[str, int]) -> str:
    """Its address."""
    return running[0]


def tree(pid: int) -> list[psutil.Process]:
    """A process and everything below it."""
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def start(log: Path, temporary: Path) -> tuple["subprocess.Popen[bytes]", str]:
    """Starts `labkit serve ray` and waits until it is ready."""
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "labkit", "serve", "ray", "--port", str(free_port())],
            stdout=out,
            stderr=out,
            env={**os.environ, "LABKIT_API_KEY": KEY, "TMPDIR": str(temporary)},
            start_new_session=True,
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while server.poll() is None and time.monotonic() < deadline:
        if found := re.search(r"^ready: (\S+)/v1", log.read_text(), re.MULTILINE):
            return server, found[1]
        time.sleep(0.5)
    server.send_signal(signal.SIGINT)
    server.wait(STOP_TIMEOUT_S)
    raise AssertionError(f"the desk did not start: {log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def client() -> Iterator[requests.Session]:
    """HTTP with the key, without the environment's proxies."""
    with requests.Session() as session:
        session.trust_env = False
        session.headers["Authorization"] = f"Bearer {KEY}"
        yield session


def ask(client: requests.Session, url: str, path: str, **body: Any) -> requests.Response:
    """POSTs a JSON body."""
    return client.post(f"{url}{path}", json=body, timeout=120)


def test_a_ticket_is_its_stages_asked_one_by_one(desk: str, client: requests.Session) -> None:
    """A ticket holds what classifier and model answer when each is asked alone, also when all are asked at once."""
    ticket = ask(client, desk, "/chain", **PARCEL).json()
    assert ticket["intent"] == ask(client, desk, "/classify", **PARCEL).json()["intent"] == "shipping"
    assert ticket["reply"] == ask(client, desk, "/write", **PARCEL).json()["reply"] != ticket["summary"]
    assert ask(client, desk, "/parallel", **PARCEL).json()["intent"] == "shipping"


def test_classifier_batches_what_comes_together(desk: str, client: requests.Session) -> None:
    """Many at once are classified as each alone would be."""
    texts = ["please refund my order", "when will it be delivered", "how do I reset my password", "the app crashes"] * 4
    with ThreadPoolExecutor(16) as pool:
        together = [r.json()["intent"] for r in pool.map(lambda text: ask(client, desk, "/classify", text=text), texts)]
    assert together == ["refund", "shipping", "account", "technical"] * 4


def test_load_client_drives_the_desk(desk: str) -> None:
    """`labkit load` streams from the desk as from any OpenAI server, in both APIs, and gets the tokens asked for."""
    workload = workloads.chat(8, seed=5, max_tokens=16, max_tokens_low=4)
    for api in ("completions", "chat"):
        result = load.run_blocking(desk, models.CHAT, workload, concurrency=4, api=api, api_key=KEY)
        assert {record.outcome for record in result.records} == {Outcome.OK}
        assert [record.output_tokens for record in result.records] == [ask.max_tokens for ask in workload.requests]
        assert metrics.summarise(result).ttft_s.mean > 0


class TestOpenAI(OpenAIContract):
    """What vLLM's server does, the desk does; what it would ignore, the desk refuses."""

    refuses: ClassVar = {"tools": "tool", "image": "multimodal", "frobnicate": "frobnicate"}

    @pytest.fixture(scope="class")
    @classmethod
    def served(cls, desk: str) -> Served:
        """The desk."""
        return Served(base_url=f"{desk}/v1", api_key=KEY, model=models.CHAT)


def test_bad_messages_get_their_own_status(desk: str, client: requests.Session) -> None:
    """A client's mistake is answered as one, with the reason."""
    mistakes = [
        ("/chain", b'{"text": "half', 422, "JSON"),
        ("/chain", b'{"text": "hi", "max_tokens": -1}', 422, "greater than or equal to 1"),
        ("/chain", b" " * (DEFAULT_LIMIT_BYTES + 1), 413, str(DEFAULT_LIMIT_BYTES)),
        ("/v1/completions", b'{"model": "smollm2-135m", "prompt": "half \\ud800"}', 422, "surrogate"),
        ("/nowhere", b"{}", 404, "Not Found"),
    ]
    for path, body, status, says in mistakes:
        answer = client.post(f"{desk}{path}", data=body, headers={"Content-Type": "application/json"}, timeout=60)
        assert (answer.status_code, says in answer.text) == (status, True), answer.text[:300]


def test_a_body_of_unknown_length_is_limited_too(desk: str, client: requests.Session) -> None:
    """A chunked body, which tells no length, is refused as soon as it is too large."""
    endless = (b" " * 65536 for _ in range(10 * DEFAULT_LIMIT_BYTES // 65536))
    try:
        status = client.post(f"{desk}/chain", data=endless, headers={"Content-Type": "application/json"}, timeout=60)
    except requests.ConnectionError:
        return  # the proxy closed the connection before all of it was sent
    assert status.status_code == 413


def test_the_proxy_listens_on_loopback_only(desk: str) -> None:
    """Ray Serve's port is bound to 127.0.0.1 and to nothing else."""
    port = int(desk.rsplit(":", 1)[1])
    local = [found.laddr for found in psutil.net_connections("tcp") if found.status == psutil.CONN_LISTEN]
    assert {address.ip for address in local if address and address.port == port} == {"127.0.0.1"}


def test_a_dead_engine_is_noticed_and_replaced(running: tuple[str, int], client: requests.Session) -> None:
    """vLLM's engine process dies while its replica lives: the health check sees it, and Serve replaces the replica."""
    desk, pid = running
    (engine,) = [process for process in tree(pid) if "EngineCore" in " ".join(process.cmdline())]
    engine.kill()
    began = time.monotonic()
    assert ask(client, desk, "/write", **PARCEL).status_code >= 500
    while ask(client, desk, "/write", **PARCEL).status_code != 200:
        assert time.monotonic() - began < REPLACED_WITHIN_S
        time.sleep(1)
