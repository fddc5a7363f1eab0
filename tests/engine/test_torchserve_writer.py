"""`labkit serve torchserve` as its user meets it: the text_generation handler on a real TorchServe, asked over HTTP.

One start serves all the tests, and Ctrl-C ends it; then neither Java nor a worker may be left.
"""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from labkit import load, models
from labkit.load import Outcome, counters, metrics, workloads
from labkit.serving.process import free_port
from labkit.serving.torchserve import REQUEST_LIMIT_BYTES
from tests.unit.standin import survivors

pytestmark = pytest.mark.engine

STARTS, START_TIMEOUT_S, STOP_TIMEOUT_S = 3, 400, 90
JSON = {"Content-Type": "application/json"}
HELLO = "What is the capital of France?"


@dataclass(frozen=True)
class Served:
    """A running server: the address that `labkit load` takes, its key, its metrics, and its processes."""

    url: str
    key: str
    metrics_url: str
    process: "subprocess.Popen[bytes]"

    @property
    def worker(self) -> int:
        """The pid of the Python process that holds the model."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        (worker,) = [one.pid for one in found if any("model_service_worker" in part for part in one.cmdline())]
        return worker


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A running `labkit serve torchserve`. Afterwards Ctrl-C must end it, Java and worker included."""
    log = tmp_path_factory.mktemp("writer") / "log"
    found = start(log)
    processes = [psutil.Process(found.process.pid), *psutil.Process(found.process.pid).children(recursive=True)]
    names = {process.name() for process in processes}
    yield found
    found.process.send_signal(signal.SIGINT)
    assert found.process.wait(STOP_TIMEOUT_S) == 0, log.read_text()
    assert "java" in names, "Java was not seen at all"
    assert not survivors(processes, within_s=5)


def start(log: Path) -> Served:
    """Starts it, again where a busy machine did not let it come up."""
    for _ in range(STARTS):
        with log.open("wb") as out:
            server = subprocess.Popen(
                [sys.executable, "-m", "labkit", "serve", "torchserve", "--port", str(free_port())],
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while server.poll() is None and time.monotonic() < deadline:
            said = log.read_text()
            if key := re.search(r"LABKIT_API_KEY=(\S+) labkit load (\S+)", said):
                page = re.search(r"^metrics: (\S+)", said, re.MULTILINE)
                assert page is not None
                return Served(url=key[2], key=key[1], metrics_url=page[1], process=server)
            time.sleep(0.5)
        server.send_signal(signal.SIGINT)
        server.wait(STOP_TIMEOUT_S)
    raise AssertionError(f"TorchServe did not start in {STARTS} tries: {log.read_text()[-3000:]}")


def send(served: Served, path: str, data: bytes, **headers: str) -> requests.Response:
    """POSTs a body with the key, without the environment's proxies."""
    with requests.Session() as session:
        session.trust_env = False
        with_key = {"Authorization": f"Bearer {served.key}", **JSON, **headers}
        return session.post(f"{served.url}{path}", data=data, headers=with_key, timeout=300)


def ask(served: Served, path: str = "", /, **body: Any) -> requests.Response:
    """POSTs a JSON body."""
    return send(served, path, json.dumps(body).encode())


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_load_client_drives_it(served: Served, api: load.Api) -> None:
    """`labkit load` streams from TorchServe as from any OpenAI server, many at once, and gets the tokens asked for."""
    workload = workloads.chat(12, seed=5, max_tokens=16, max_tokens_low=4)
    result = load.run_blocking(served.url, models.CHAT, workload, concurrency=6, api=api, api_key=served.key)
    assert {(record.outcome, record.error) for record in result.records} == {(Outcome.OK, "")}
    assert [record.output_tokens for record in result.records] == [one.max_tokens for one in workload.requests]
    assert all(record.text for record in result.records)
    assert metrics.summarise(result).ttft_s.mean > 0


def test_a_stream_comes_in_pieces(served: Served) -> None:
    """Tokens arrive while others are still being written, also in a batch."""
    workload = workloads.chat(4, seed=6, max_tokens=24)
    result = load.run_blocking(served.url, models.CHAT, workload, concurrency=4, api_key=served.key)
    for record in result.records:
        assert len(record.chunk_times_s) > 12
        assert record.chunk_times_s[0] < record.chunk_times_s[-1]


def test_stream_and_whole_answer_agree(served: Served) -> None:
    """Streamed or at once, alone or together with others: at temperature 0 text and counts are the same."""
    workload = workloads.chat(6, seed=9, max_tokens=12, max_tokens_low=6)
    whole, streamed, together = (
        load.run_blocking(
            served.url, models.CHAT, workload, concurrency=concurrency, stream=stream, api_key=served.key
        ).records
        for concurrency, stream in ((1, False), (1, True), (6, True))
    )
    assert [record.text for record in whole] == [record.text for record in streamed]
    assert [record.text for record in whole] == [record.text for record in together]
    assert [record.input_tokens for record in whole] == [record.input_tokens for record in together]


def test_chat_template_and_answer_alone(served: Served) -> None:
    """On the plain route a prompt is a user's message: it is answered, and it is no part of the answer."""
    plain = ask(served, prompt=HELLO, max_tokens=24).json()
    message = [{"role": "user", "content": HELLO}]
    chat = ask(served, "/v1/chat/completions", model=models.CHAT, messages=message, max_completion_tokens=24).json()
    assert "Paris" in plain["text"]
    assert HELLO not in plain["text"]
    assert chat["choices"][0]["message"]["content"] == plain["text"]
    assert chat["usage"] == plain["usage"]


def test_each_row_of_a_batch_has_its_own_limits(served: Served) -> None:
    """Limits, temperatures and seeds are each request's own: together they give what each gives alone."""
    asked: list[dict[str, Any]] = [
        {"prompt": "Tell me a story.", "max_tokens": 5, "ignore_eos": True},
        {"prompt": "Tell me a story.", "max_tokens": 11, "ignore_eos": True},
        {"prompt": "Tell me a story.", "max_tokens": 11, "ignore_eos": True, "temperature": 1.5, "seed": 1},
        {"prompt": "Tell me a story.", "max_tokens": 11, "ignore_eos": True, "temperature": 1.5, "seed": 2},
    ]
    alone = [ask(served, **one).json() for one in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        together = [answer.json() for answer in pool.map(lambda one: ask(served, **one), asked)]
    assert [answer["text"] for answer in together] == [answer["text"] for answer in alone]
    assert [answer["usage"]["completion_tokens"] for answer in alone] == [5, 11, 11, 11]
    assert {answer["finish_reason"] for answer in alone} == {"length"}
    assert alone[1]["text"].startswith(alone[0]["text"])
    assert len({answer["text"] for answer in alone[1:]}) == 3


def test_an_answer_ends_where_the_model_ends_it(served: Served) -> None:
    """Without `ignore_eos` the model's own end ends the answer before the limit."""
    answer = ask(served, prompt="Reply with the single word yes.", max_tokens=200).json()
    assert answer["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < 200


# One of each kind; tests/unit/test_handlers.py has every mistake that the handler knows.
MISTAKES = [
    ("", b'{"prompt": "half', 400, "not JSON"),
    ("", b"", 400, "empty"),
    ("", b'{"prompt": "\xff"}', 400, "UTF-8"),
    ("", b'{"prompt": 7}', 422, "a number"),
    ("", b'{"prompt": "%s"}' % (b"word " * 5000), 400, "can be read"),
    ("/v1/completions", b'{"model": "another", "prompt": "hi"}', 404, "smollm2-135m"),
    ("/v1/completions", b'{"prompt": "%s", "stream": true}' % (b"a " * 5000), 400, "can be read"),
    ("/v1/chat/completions", b'{"messages": []}', 422, "at least 1"),
    ("/v1/embeddings", b'{"input": "hi"}', 404, "v1/chat/completions"),
]


def test_bad_requests_get_their_own_status(served: Served) -> None:
    """What a client does wrong is answered as the client's mistake, with the reason, in OpenAI's form."""
    for path, body, status, says in MISTAKES:
        answer = send(served, path, body)
        assert (answer.status_code, says in answer.text) == (status, True), answer.text[:300]
        assert answer.json()["error"]["code"] == status
        assert answer.headers["Content-Type"] == "application/json"


def test_json_under_another_name_is_read(served: Served) -> None:
    """JSON counts, whatever its content type says; a web form is the client's mistake."""
    for kind in ("text/plain", "application/octet-stream", "application/json; charset=utf-8"):
        answer = send(served, "", b'{"prompt": "Hello", "max_tokens": 2}', **{"Content-Type": kind})
        assert answer.status_code == 200, answer.text
    form = send(served, "", b"prompt=hello", **{"Content-Type": "application/x-www-form-urlencoded"})
    assert (form.status_code, "empty" in form.text) == (400, True)


def test_a_huge_body_is_refused(served: Served) -> None:
    """A body over the server's limit is refused, or its connection closed, and the server goes on."""
    with contextlib.suppress(requests.ConnectionError):  # TorchServe may not read it to its end
        assert send(served, "", b" " * (REQUEST_LIMIT_BYTES + 1000)).status_code == 413
    assert ask(served, prompt="Hello", max_tokens=1).status_code == 200


def test_one_bad_row_fails_alone(served: Served) -> None:
    """In one batch with good requests, streamed and whole, the bad ones fail, each in its own way, and only they."""
    good: dict[str, Any] = {"prompt": HELLO, "max_tokens": 12}
    bodies: list[dict[str, Any]] = [
        good,
        {"prompt": 7},
        {**good, "stream": True},
        {"prompt": "word " * 5000},
        good,
        {"prompt": "hi", "model": "another"},
        {**good, "stream": True},
    ]
    alone = ask(served, **good).json()["text"]
    before = counters.scrape(served.metrics_url)
    with ThreadPoolExecutor(len(bodies) + 1) as pool:
        # While one long answer is written the others gather in the queue, and become one batch.
        pool.submit(ask, served, prompt="Tell me a long story.", max_tokens=60, ignore_eos=True)
        time.sleep(1)
        answers = list(pool.map(lambda body: ask(served, **body), bodies))
    batches = counters.difference(before, counters.scrape(served.metrics_url)).histogram("BatchRows")
    assert batches.count < len(bodies), "nothing was batched"
    assert [answer.status_code for answer in answers] == [200, 422, 200, 400, 200, 404, 200]
    assert [answers[place].json()["text"] for place in (0, 4)] == [alone, alone]
    assert [streamed_text(answers[place]) for place in (2, 6)] == [alone, alone]


def streamed_text(answer: requests.Response) -> str:
    """The text of a stream on the plain route."""
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.strip()]
    assert lines[-1] == "[DONE]"
    return "".join(piece["text"] for piece in map(json.loads, lines[:-1]) if "text" in piece)


def test_a_client_that_hangs_up(served: Served) -> None:
    """Clients that leave, one in the middle of its stream and one before its answer, do no harm to the others."""
    worker = served.worker
    for stream in (True, False):
        hang_up(served, stream=stream)
    answers = [ask(served, prompt=HELLO, max_tokens=8) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert served.worker == worker


def hang_up(served: Served, *, stream: bool) -> None:
    """Asks for a long answer, waits for its first bytes if it is a stream, and leaves."""
    host, port = served.url.removeprefix("http://").split("/")[0].split(":")
    body = json.dumps({"prompt": "Tell me a story.", "max_tokens": 100, "ignore_eos": True, "stream": stream}).encode()
    path = served.url.removeprefix(f"http://{host}:{port}")
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {served.key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=120) as connection:
        connection.sendall(head.encode() + body)
        if stream:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("key", [None, "Bearer wrong"])
def test_without_the_key_nothing_is_answered(served: Served, key: str | None) -> None:
    """No key or a wrong one: TorchServe answers 400 InvalidKeyException on every route; its metrics need none."""
    headers = {"Authorization": key} if key else {}
    for path in ("", "/v1/completions"):
        answer = requests.post(f"{served.url}{path}", json={"prompt": "hi"}, headers=headers, timeout=60)
        assert (answer.status_code, answer.json()["type"]) == (400, "InvalidKeyException")
    assert requests.get(served.metrics_url, timeout=60).status_code == 200


def test_the_handlers_own_metrics(served: Served) -> None:
    """Tokens, batches and failures are counted on TorchServe's Prometheus page, and move by what the usage says."""
    before = counters.scrape(served.metrics_url)
    usage = ask(served, prompt=HELLO, max_tokens=5).json()["usage"]
    ask(served, prompt=7)
    deadline = time.monotonic() + 60  # they travel through the worker's log
    while True:
        moved = counters.difference(before, counters.scrape(served.metrics_url))
        if moved.value("FailedRequests") >= 1 or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert moved.value("GeneratedTokens") == usage["completion_tokens"]
    assert moved.value("PromptTokens") == usage["prompt_tokens"]
    assert moved.value("FailedRequests") == 1


def test_loopback_only(served: Served) -> None:
    """Whatever its processes listen on is reachable from this machine only."""
    processes = psutil.Process(served.process.pid).children(recursive=True)
    listening = {
        connection.laddr
        for process in processes
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert len(listening) >= 5
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
