"""Lab 09 without engines: slices of a load and what they are worth, a handler's plain answers, exercises."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course import lab_09
from labkit import load
from labkit.errors import LoadError, UsageError
from labkit.load import LoadResult, RequestRecord, metrics, workloads
from labkit.load.results import Outcome
from labkit.machine import UseSummary
from labkit.machine.sampler import Span
from tests.unit.refusals import not_refused

pytest.importorskip("numpy")
REQUESTS = workloads.chat(4, seed=1, prompt_words=16, max_tokens=6, max_tokens_low=2)


def words(text: str) -> int:
    """A tokenizer of one token a word."""
    return len(text.split())


class Plain(BaseHTTPRequestHandler):
    """Echoes the prompt and adds five words, as a naive handler with one length for everybody; 503 without a prompt."""

    seen: ClassVar[list[tuple[str, str | None, dict[str, object]]]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, self.headers.get("Authorization"), body))
        found = json.dumps({"response": f"{body['prompt']} a b c d e"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        self.wfile.write(found)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def plain_server() -> Iterator[tuple[str, list[tuple[str, str | None, dict[str, object]]]]]:
    """(address, what was asked)."""

    class Seen(Plain):
        seen: ClassVar[list[tuple[str, str | None, dict[str, object]]]] = []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Seen)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/predictions/naive/1.0/v1", Seen.seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_handlers_plain_answers_are_read() -> None:
    """A prompt alone is sent, with the key, to the address as it is; the text comes back, its tokens untold.

    Before anything is sent streaming is refused."""
    with pytest.raises(UsageError, match="comes whole"):
        load.run_blocking("http://127.0.0.1:9", "naive", REQUESTS, concurrency=1, api="plain")
    with plain_server() as (url, seen):
        found = load.run_blocking(url, "naive", REQUESTS, concurrency=2, api="plain", stream=False, api_key="k")
    assert [record.outcome for record in found.records] == [Outcome.OK] * 4
    assert [record.text for record in found.records] == [f"{one.prompt} a b c d e" for one in REQUESTS.requests]
    assert [record.output_tokens for record in found.records] == [None] * 4
    assert any("without usage" in warning for warning in found.warnings)
    expected = ("/predictions/naive/1.0/v1", "Bearer k", {"prompt"})
    assert [(path, key, set(body)) for path, key, body in seen] == [expected] * 4


def test_a_contender_without_the_protocol_is_worth_what_was_asked_for() -> None:
    """Of five words that everybody gets a request counts those that it asked for; its first token is its last."""
    with plain_server() as (url, _):
        one = lab_09.Contender(name="naive", base_url=url, api_key="", pids=(), api="plain")
        found = lab_09.ask(one, REQUESTS, model="naive", count_tokens=words, clients=2)
    asked = [request.max_tokens for request in REQUESTS.requests]
    assert [record.output_tokens for record in found.result.records] == [min(5, n) for n in asked]
    assert all(record.text == " a b c d e" for record in found.result.records)
    assert all(record.ttft_s == record.e2e_s for record in found.result.records)
    assert found.tokens == sum(min(5, n) for n in asked)
    assert found.tokens_per_s == pytest.approx(found.tokens / found.result.duration_s)


@given(start=st.integers(0, 8), n=st.integers(1, 8))
def test_parts_of_a_workload(start: int, n: int) -> None:
    """A part is those requests and no others; one that reaches beyond the end is refused."""
    workload = workloads.chat(8, seed=2)
    if start + n > 8:
        with pytest.raises(UsageError, match="of 8 are asked for"):
            lab_09.part(workload, start, n)
    else:
        assert lab_09.part(workload, start, n).requests == workload.requests[start : start + n]


def record(scheduled_s: float, started_s: float, first_s: float, last_s: float, *, ok: bool = True) -> RequestRecord:
    """A streamed answer of three tokens."""
    times = (first_s, last_s)
    outcome = Outcome.OK if ok else Outcome.TIMEOUT
    return RequestRecord(0, scheduled_s, started_s, times, last_s, 5, 3, outcome)


def one_slice(*records: RequestRecord, duration_s: float = 10.0, cpu_s: float = 4.0) -> lab_09.Slice:
    """A slice with these records."""
    use = UseSummary(
        samples=2,
        duration_s=8.0,
        machine_cpu_percent=None,
        processes_cpu_percent=None,
        processes_rss_bytes=Span(mean=2**29, max=2**30),
        processes_cpu_s=cpu_s,
        gpu_busy_percent=None,
        gpu_memory_used_bytes=None,
    )
    result = LoadResult(records, duration_s, 0.1, None, 1.0, "chat", 0)
    return lab_09.Slice(result=result, use=use)


def test_goodput_counts_from_the_schedule() -> None:
    """A request that was sent late is late, however fast its answer; one that failed is no good; shares and rates are
    of all slices together."""
    slo = metrics.Slo(ttft_s=1.0, tpot_s=0.5)
    good = record(0.0, 0.0, 0.9, 1.5)
    sent_late = record(0.0, 0.6, 1.1, 1.5)
    slow = record(0.0, 0.0, 0.5, 3.0)
    failed = record(0.0, 0.0, 0.5, 0.6, ok=False)
    share, rate = lab_09.goodputs([one_slice(good, sent_late), one_slice(slow, failed)], slo)
    assert (share, rate) == (1 / 4, 1 / 20)


def test_slices_are_pooled() -> None:
    """Requests and times of all slices are added up; CPU and memory are those of the server's processes."""
    slices = [one_slice(record(0, 0, 1, 2)), one_slice(record(0, 0, 1, 2), record(1, 1, 2, 3), duration_s=5.0)]
    found = lab_09.pooled(slices)
    assert (found.completed, found.output_tokens, found.duration_s) == (3, 9, 15.0)
    assert (slices[1].tokens_per_s, slices[1].tokens_per_cpu_s) == (6 / 5, 6 / 4)
    assert (slices[0].memory_gib, lab_09.cores(slices)) == (1.0, 0.5)


def test_what_tells_nothing_is_refused() -> None:
    """Prices that cannot be, lengths the wrong way round, too few requests for a second round, too large shares."""
    prices = [((usd, rate, busy), f"{rate} tokens/s") for usd, rate, busy in
              ((-1, 5, 1.0), (1, 0, 1.0), (1, 5, 0.0), (1, 5, 1.5))]  # fmt: skip
    assert not_refused(lambda it: lab_09.usd_per_million_tokens(it[0], it[1], busy_share=it[2]), prices) == []
    lengths = [((9, 8, 10, 2), ""), ((2, 8, 5, 4), ""), ((2, 8, 4, 4), "")]
    assert not_refused(lambda it: lab_09.check_lengths(*it[:2], requests=it[2], clients=it[3]), lengths) == []
    shares = [((0.41, 1), "share of 0.41"), ((0.9, 2), "share of 0.9")]
    assert not_refused(lambda it: lab_09.check_shares(it[0], gpus=it[1]), shares) == []
    lab_09.check_lengths(2, 8, requests=6, clients=4)
    lab_09.check_shares(0.9, gpus=0)
    lab_09.check_shares(0.4, gpus=1)


def test_a_sampler_gets_the_roots_only() -> None:
    """Of a process and its child the child is left out, unless it is asked for alone; one that ended is left out."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        me, ended = os.getpid(), child.pid
        assert lab_09.roots((me, child.pid)) == (me,)
        assert lab_09.roots((child.pid,)) == (child.pid,)
        child.communicate(b"\n")
    assert lab_09.roots((ended,)) == ()


# --- the other client, kept loaded


FAKE = """
import json, sys
for line in sys.stdin:
    job = json.loads(line)
    folder = job["arguments"][job["arguments"].index("--result-dir") + 1]
    if "--fail" in job["arguments"]:
        print("it went wrong", file=sys.stderr, flush=True)
        print("SystemExit(2)", flush=True)
        continue
    open(folder + "/bench.json", "w").write(json.dumps({"asked": job["arguments"][0], "key": job["api_key"]}))
    print("done", flush=True)
"""


def test_the_other_client_takes_one_job_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job gives what it saved; one that fails says why, and the next one is carried out; then the process ends."""
    from course import vllm_bench

    (tmp_path / "fake.py").write_text(FAKE)
    real = subprocess.Popen

    def popen(_command: list[str], **options: object) -> object:
        return real([sys.executable, str(tmp_path / "fake.py")], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", popen)
    with vllm_bench.Bench(tmp_path / "logs" / "bench.log") as bench:
        assert bench.run(["--a"], folder=tmp_path, api_key="k") == {"asked": "--a", "key": "k"}
        with pytest.raises(LoadError, match=r"SystemExit\(2\)[\s\S]*it went wrong"):
            bench.run(["--fail"], folder=tmp_path)
        assert bench.run(["--b"], folder=tmp_path) == {"asked": "--b", "key": ""}
    with pytest.raises(LoadError, match="has ended"):
        bench.run(["--c"], folder=tmp_path)


# --- exercises


@given(usd=st.floats(0.01, 100), rate=st.floats(0.1, 1e5), busy=st.floats(0.01, 1), hours=st.integers(1, 99))
def test_a_million_tokens_cost_their_hours(usd: float, rate: float, busy: float, hours: int) -> None:
    """Whatever is paid in some hours, over the tokens written in them, is the lab's price, and the exercise's."""
    price = lab_09.usd_per_million_tokens(usd, rate, busy_share=busy)
    assert price * (rate * 3600 * hours * busy) / 1e6 == pytest.approx(usd * hours)
    assert lab_09.usd_per_million(usd, rate, busy) == pytest.approx(price)


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0, 5), st.booleans()), min_size=1, max_size=20), st.floats(0.01, 5)
)
def test_the_share_asked_for_is_the_labs(answers: list[tuple[float, float, bool]], slo_s: float) -> None:
    """On the same requests the exercise and the lab's goodput count the same users."""
    timed = [(due_s, due_s + wait_s, ok) for due_s, wait_s, ok in answers]
    records = [record(due_s, due_s, first_s, first_s + 0.1, ok=ok) for due_s, first_s, ok in timed]
    share, _ = lab_09.goodputs([one_slice(*records)], metrics.Slo(ttft_s=slo_s))
    assert share == pytest.approx(lab_09.kept(timed, slo_s))


@given(clients=st.integers(1, 20), service_s=st.integers(1, 8))
def test_the_table_obeys_littles_law(clients: int, service_s: int) -> None:
    """Clients that ask again at once, counted answer by answer over whole rounds, give the exercise's throughput."""
    rounds = 5
    ends = [round_ * service_s for round_ in range(1, rounds + 1) for _ in range(clients)]
    assert lab_09.requests_per_s(clients, service_s) == pytest.approx(len(ends) / max(ends))
