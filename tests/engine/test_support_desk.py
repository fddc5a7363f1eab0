"""The support desk as its user meets it: `labkit serve ray` in the foreground, asked over HTTP.

One start serves all the tests, and Ctrl-C ends it; then nothing of it may be left.
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
from typing import Any

import psutil
import pytest
import requests

from applications.support_desk import SUMMARY
from labkit import load, models
from labkit.load import Outcome, metrics, workloads
from labkit.serving.gate import DEFAULT_LIMIT_BYTES
from labkit.serving.process import free_port
from tests.unit.standin import survivors

pytestmark = pytest.mark.engine

KEY = "a-key-for-the-test"
STARTS, START_TIMEOUT_S, STOP_TIMEOUT_S = 3, 400, 90
PARCEL = {"text": "My parcel has not arrived yet. Where is it?", "max_tokens": 12}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running desk. Afterwards Ctrl-C must end it and all its processes, with no loose file left."""
    before = loose_files()
    log = tmp_path_factory.mktemp("desk") / "log"
    server, url = start(log)
    processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    yield url
    server.send_signal(signal.SIGINT)
    assert server.wait(STOP_TIMEOUT_S) == 0, log.read_text()
    assert len(processes) > 5, "Ray's processes were not seen at all"
    assert not survivors(processes, within_s=5)
    assert loose_files() <= before


def loose_files() -> set[Path]:
    """What an engine leaves among everybody's temporary files if nobody takes care: vLLM's files, and sockets."""
    here = Path(tempfile.gettempdir()).iterdir()
    return {one for one in here if one.name.startswith("vllm_dist_") or one.is_socket()}


def start(log: Path) -> tuple["subprocess.Popen[bytes]", str]:
    """Starts `labkit serve ray`, again where a busy machine did not let it come up."""
    for _ in range(STARTS):
        port = free_port()
        with log.open("wb") as out:
            server = subprocess.Popen(
                [sys.executable, "-m", "labkit", "serve", "ray", "--port", str(port)],
                stdout=out,
                stderr=out,
                env={**os.environ, "LABKIT_API_KEY": KEY},
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while server.poll() is None and time.monotonic() < deadline:
            if found := re.search(r"^ready: (\S+)/v1", log.read_text(), re.MULTILINE):
                return server, found[1]
            time.sleep(0.5)
        server.send_signal(signal.SIGINT)
        server.wait(STOP_TIMEOUT_S)
    raise AssertionError(f"the desk did not start in {STARTS} tries: {log.read_text()[-3000:]}")


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


def test_a_chain_is_its_stages_asked_one_by_one(desk: str, client: requests.Session) -> None:
    """A ticket of the chain holds what classifier and model answer when each is asked alone."""
    ticket = ask(client, desk, "/chain", **PARCEL).json()
    assert ticket["intent"] == ask(client, desk, "/classify", **PARCEL).json()["intent"] == "shipping"
    assert ticket["reply"] == ask(client, desk, "/write", **PARCEL).json()["reply"] != ""
    assert ticket["summary"] == summary_alone(client, desk) != ""


def summary_alone(client: requests.Session, desk: str) -> str:
    """What the model itself answers to the summariser's question, over OpenAI's route."""
    asked = [{"role": "system", "content": SUMMARY}, {"role": "user", "content": PARCEL["text"]}]
    body = {"model": models.CHAT, "messages": asked, "max_tokens": PARCEL["max_tokens"], "temperature": 0}
    text: str = ask(client, desk, "/v1/chat/completions", **body).json()["choices"][0]["message"]["content"]
    return text.strip()


def test_classifier_batches_what_comes_together(desk: str, client: requests.Session) -> None:
    """Many at once are classified as each alone would be."""
    texts = ["please refund my order", "when will it be delivered", "how do I reset my password", "the app crashes"] * 4
    with ThreadPoolExecutor(16) as pool:
        together = [r.json()["intent"] for r in pool.map(lambda text: ask(client, desk, "/classify", text=text), texts)]
    alone = [ask(client, desk, "/classify", text=text).json()["intent"] for text in texts[:4]]
    assert together == alone * 4
    assert alone == ["refund", "shipping", "account", "technical"]


def test_load_client_drives_the_desk(desk: str) -> None:
    """`labkit load` streams from the desk as from any OpenAI server, in both APIs, and gets the tokens asked for."""
    workload = workloads.chat(8, seed=5, max_tokens=16, max_tokens_low=4)
    for api in ("completions", "chat"):
        result = load.run_blocking(desk, models.CHAT, workload, concurrency=4, api=api, api_key=KEY)
        assert {record.outcome for record in result.records} == {Outcome.OK}
        assert [record.output_tokens for record in result.records] == [one.max_tokens for one in workload.requests]
        assert metrics.summarise(result).ttft_s.mean > 0


def test_stream_and_whole_answer_agree(desk: str) -> None:
    """Streamed or at once, at temperature 0 and one request at a time the text and its counts are the same."""
    workload = workloads.chat(3, seed=9, max_tokens=12)
    streamed, whole = (
        load.run_blocking(desk, models.CHAT, workload, concurrency=1, stream=stream, api_key=KEY).records
        for stream in (True, False)
    )
    assert [record.text for record in streamed] == [record.text for record in whole]
    assert [record.input_tokens for record in streamed] == [record.input_tokens for record in whole]


def test_an_answer_tells_what_the_engine_took(desk: str, client: requests.Session) -> None:
    """The Server-Timing header has the engine's milliseconds, which are a part of what the client waited."""
    response = ask(client, desk, "/v1/completions", model=models.CHAT, prompt="The parcel", max_tokens=8)
    found = re.fullmatch(r"engine;dur=([\d.]+)", response.headers["Server-Timing"])
    assert found
    assert 0 < float(found[1]) / 1000 < response.elapsed.total_seconds()


MISTAKES = [
    ("/chain", b'{"text": "half', 422, "JSON"),
    ("/chain", b'{"text": 7}', 422, "string"),
    ("/chain", b'{"text": "hi", "max_tokens": -1}', 422, "greater than or equal to 1"),
    ("/v1/completions", b'{"model": "smollm2-135m"}', 422, "prompt"),
    ("/v1/completions", b'{"model": "another", "prompt": "hi"}', 404, "smollm2-135m"),
    ("/v1/completions", b'{"model": "smollm2-135m", "stream": true, "prompt": "%s"}' % (b"a " * 3000), 400, "1024"),
    ("/v1/chat/completions", b'{"model": "smollm2-135m", "messages": []}', 422, "at least 1"),
    ("/chain", b" " * (DEFAULT_LIMIT_BYTES + 1), 413, str(DEFAULT_LIMIT_BYTES)),
    ("/nowhere", b"{}", 404, "Not Found"),
]


def test_bad_requests_get_their_own_status(desk: str, client: requests.Session) -> None:
    """What a client does wrong is answered as the client's mistake, with the reason."""
    for path, body, status, says in MISTAKES:
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


def test_without_the_key_nothing_is_answered(desk: str) -> None:
    """No key, a wrong one, or the right one in the wrong form: 401 on every route."""
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
        for path in ("/chain", "/v1/completions"):
            assert requests.post(f"{desk}{path}", json=PARCEL, headers=headers, timeout=60).status_code == 401
        assert requests.get(f"{desk}/v1/models", headers=headers, timeout=60).status_code == 401


def test_the_proxy_listens_on_loopback_only(desk: str) -> None:
    """Ray Serve's port is bound to 127.0.0.1 and to nothing else."""
    port = int(desk.rsplit(":", 1)[1])
    local = [found.laddr for found in psutil.net_connections("tcp") if found.status == psutil.CONN_LISTEN]
    assert {address.ip for address in local if address and address.port == port} == {"127.0.0.1"}
