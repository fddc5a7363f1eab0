"""The load client against a stub server: every request ends as a record, exact in its counts and honest about its
times."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit import load
from labkit.errors import LoadError, UsageError
from labkit.load import LoadResult, Outcome, workloads
from labkit.load.client import EventLines, error_text
from labkit.load.results import find_doubts
from tests.unit.stub_server import MODEL, Stub, serving

CHAT = workloads.chat(8, max_tokens=12, max_tokens_low=3)
ASKED = [request.max_tokens for request in CHAT.requests]


def run(stub: Stub, workload: workloads.Workload = CHAT, **options: Any) -> LoadResult:
    if "rate" not in options:
        options.setdefault("concurrency", 3)
    return load.run_blocking(stub.base_url, MODEL, workload, **options)


def only(result: LoadResult) -> load.RequestRecord:
    (record,) = result.records
    return record


ONE = workloads.chat(1, max_tokens=6)


# What a healthy answer becomes


@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize("stream", [True, False])
def test_tokens_and_text_are_the_servers(api: str, stream: bool) -> None:
    """In both APIs, streamed or not, tokens are what the server's usage says and the text is whole; the server's root
    and its /v1 lead to the same place."""
    with serving() as stub:
        result = run(stub, api=api, stream=stream)
        for suffix in ("", "/", "/v1/"):
            assert only(load.run_blocking(stub.root + suffix, MODEL, ONE, concurrency=1)).ok
    assert [record.outcome for record in result.records] == [Outcome.OK] * len(ASKED)
    assert [record.output_tokens for record in result.records] == ASKED
    assert [record.input_tokens for record in result.records] == [len(r.prompt.split()) for r in CHAT.requests]
    assert [record.text.split() for record in result.records] == [[f"w{i}" for i in range(n)] for n in ASKED]
    assert all((len(record.chunk_times_s) > 0) == stream for record in result.records)
    # The stub runs in this process, whose CPU time counts as the client's.
    assert all(warning.startswith("Client-bound") for warning in result.warnings)


def test_the_request_says_what_the_workload_says() -> None:
    """Model, prompt or messages, length, temperature, seed and usage are asked for as the protocol wants them."""
    request = workloads.Request("hello there", 5, temperature=0.5, seed=3)
    messages = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"})
    with serving() as stub:
        for api in ("completions", "chat"):
            run(stub, workloads.Workload("one", (request,)), api=api)
        run(stub, workloads.Workload("one", (workloads.Request("", 2, messages=messages),)), api="chat")
    completion, chat, given = stub.bodies
    common = {"model": MODEL, "temperature": 0.5, "seed": 3, "ignore_eos": True, "stream": True}
    common["stream_options"] = {"include_usage": True}
    assert completion == common | {"prompt": "hello there", "max_tokens": 5}
    asked = {"messages": [{"role": "user", "content": "hello there"}], "max_completion_tokens": 5}
    assert chat == common | asked
    assert given["messages"] == list(messages)


def test_chunks_are_not_tokens() -> None:
    """With four tokens a chunk, tokens stay what usage says, and the chunks are a quarter as many."""
    with serving(tokens_per_chunk=4) as stub:
        record = only(run(stub, workloads.chat(1, max_tokens=12)))
    assert record.output_tokens == 12
    assert len(record.chunk_times_s) == 3


def test_missing_usage_is_unknown_not_guessed() -> None:
    """Without usage, tokens are None, and a warning says so."""
    with serving(usage=False) as stub:
        result = run(stub)
    assert all(record.ok and record.output_tokens is None for record in result.records)
    assert any("without usage" in warning for warning in result.warnings)


def test_times_are_in_order() -> None:
    """Due, sent, first chunk ... last chunk, finished, end of the load: in this order, and as long as the server
    took."""
    with serving(first_token_delay_s=0.02, token_delay_s=0.005) as stub:
        result = run(stub)
    for record, tokens in zip(result.records, ASKED, strict=True):
        times = [record.scheduled_s, record.started_s, *record.chunk_times_s, record.finished_s, result.duration_s]
        assert times == sorted(times)
        assert record.scheduled_s >= 0
        assert record.ttft_s is not None
        assert record.ttft_s >= 0.02
        assert record.e2e_s is not None
        assert record.e2e_s >= 0.02 + 0.005 * (tokens - 1)


# Closed and open loop


def test_closed_loop_keeps_so_many_under_way() -> None:
    """The server sees exactly `concurrency` requests at a time (or all, if they are fewer)."""
    for concurrency in (1, 3, 20):
        with serving(first_token_delay_s=0.1) as stub:
            run(stub, concurrency=concurrency)
            assert stub.most_under_way == min(concurrency, len(ASKED))


@pytest.mark.parametrize("arrival", ["poisson", "constant"])
def test_open_loop_sends_on_schedule_whatever_is_outstanding(arrival: str) -> None:
    """Requests start when due, never earlier, though the server has answered none yet."""
    with serving(first_token_delay_s=0.5) as stub:
        result = run(stub, rate=100.0, arrival=arrival, seed=5)
        assert stub.most_under_way == len(ASKED)
    due = {
        "poisson": workloads.poisson_arrivals_s(len(ASKED), rate=100.0, seed=5),
        "constant": workloads.constant_arrivals_s(len(ASKED), rate=100.0),
    }[arrival]
    assert [record.scheduled_s for record in result.records] == pytest.approx(due)
    assert all(record.waited_s >= 0 for record in result.records)


def test_open_loop_counts_latency_from_the_schedule() -> None:
    """A client that is held up shows in latencies from the schedule (coordinated omission) and in a warning."""

    def block(done: int, _total: int) -> None:
        if done == 1:
            time.sleep(0.3)  # the event loop stands still, and later requests start late

    with serving() as stub:
        result = run(stub, rate=50.0, arrival="constant", progress=block)
    for record in result.records:
        assert record.e2e_s is not None
        assert record.e2e_from_schedule_s == pytest.approx(record.e2e_s + record.waited_s)
        assert record.ttft_s is not None
        assert record.ttft_from_schedule_s == pytest.approx(record.ttft_s + record.waited_s)
    assert max(record.waited_s for record in result.records) > 0.15
    assert any("fell behind" in warning for warning in result.warnings)


def test_open_loop_takes_the_workloads_seed() -> None:
    """Without a seed of its own, a load's arrival times follow the workload's seed, so runs repeat."""
    with serving() as stub:
        first, again = (run(stub, rate=500.0) for _ in range(2))
        other = run(stub, rate=500.0, seed=99)
    assert [r.scheduled_s for r in first.records] == pytest.approx([r.scheduled_s for r in again.records])
    assert [r.scheduled_s for r in first.records] != pytest.approx([r.scheduled_s for r in other.records])
    assert (first.seed, other.seed) == (0, 99)


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_warmup_is_apart_and_warms_no_prefix(api: str) -> None:
    """Warm-up requests end before the load begins and are in no measured record. Their prompts have the words of
    measured ones and begin with another: no prefix cache can serve the measured ones."""
    with serving() as stub:
        result = run(stub, warmup=3, api=api)
    assert len(result.records) == len(ASKED)
    assert all(record.warmup and record.ok and record.finished_s <= 0 for record in result.warmup_records)
    assert not any(record.warmup for record in result.records)
    prompts = [body["prompt"] if api == "completions" else body["messages"][0]["content"] for body in stub.bodies]
    assert len(prompts) == len(ASKED) + 3
    assert not {warm.split()[0] for warm in prompts[:3]} & {measured.split()[0] for measured in prompts[3:]}
    measured = sorted(sorted(request.prompt.split()) for request in CHAT.requests[:3])
    assert sorted(sorted(warm.split()) for warm in prompts[:3]) == measured


def test_progress_counts_to_the_end_and_its_error_ends_the_load() -> None:
    """The callback gets 1 to n of n, each once, without the warm-up; its own error comes back, not a group of them."""
    seen: list[tuple[int, int]] = []

    def fail(_done: int, _total: int) -> None:
        raise ZeroDivisionError

    with serving() as stub:
        run(stub, warmup=2, progress=lambda done, total: seen.append((done, total)))
        with pytest.raises(ZeroDivisionError):
            run(stub, progress=fail)
    assert seen == [(i + 1, len(ASKED)) for i in range(len(ASKED))]


def test_groups_reach_the_records() -> None:
    """Each record carries its request's group."""
    mixed = workloads.interference(8, long_every=4, long_words=30, short_max_tokens=2)
    with serving() as stub:
        result = run(stub, mixed)
    assert [record.group for record in result.records] == [request.group for request in mixed.requests]


# What goes wrong


@pytest.mark.parametrize(
    ("behaviour", "outcome", "said"),
    [
        ({"error_status": 400}, Outcome.HTTP_ERROR, "400: the stub answers 400"),
        ({"error_status": 500}, Outcome.HTTP_ERROR, "500: the stub answers 500"),
        ({"cut_after_chunks": 2}, Outcome.CONNECTION, ""),
        ({"cut_after_chunks": 0}, Outcome.CONNECTION, ""),
        ({"malformed_after_chunks": 2}, Outcome.MALFORMED, "cannot be read"),
        ({"error_after_chunks": 2}, Outcome.HTTP_ERROR, "EngineCore died"),
        ({"done": False, "finish_reason": False}, Outcome.MALFORMED, "without [DONE]"),
        ({"hang": True}, Outcome.TIMEOUT, "0.3 s"),
        ({"first_token_delay_s": 0.01, "token_delay_s": 0.2}, Outcome.TIMEOUT, "0.3 s"),
    ],
)
def test_each_failure_is_an_outcome(behaviour: dict[str, Any], outcome: Outcome, said: str) -> None:
    """A failed request is a record with its outcome and the reason, no latency, and a warning of the load."""
    with serving(**behaviour) as stub:
        result = run(stub, ONE, timeout_s=0.3 if outcome is Outcome.TIMEOUT else 30)
    record = only(result)
    assert record.outcome is outcome
    assert said in record.error
    assert record.error
    assert (record.ttft_s, record.tpot_s, record.e2e_s, record.itl_s) == (None, None, None, ())
    assert any("1 of 1 requests failed" in warning and outcome.value in warning for warning in result.warnings)


def test_what_else_is_known_of_a_failure() -> None:
    """What arrived before a stream was cut stays in the record; failures are counted apart from the requests beside
    them; requests to a port where nothing listens any more end as CONNECTION, one record each."""
    with serving(cut_after_chunks=3, token_delay_s=0.01) as stub:
        record = only(run(stub, ONE))
    assert (len(record.chunk_times_s), record.text.split()) == (3, ["w0", "w1", "w2"])
    with serving(error_status=503, error_every=3) as stub:
        result = run(stub, concurrency=1)
    assert [record.ok for record in result.records] == [(i + 1) % 3 != 0 for i in range(len(ASKED))]
    gone = run(stub, preflight=False)
    assert [record.outcome for record in gone.records] == [Outcome.CONNECTION] * len(ASKED)


def test_what_ends_an_answer() -> None:
    """A stream with a reason for its end but no [DONE] is whole; a 200 that holds no choices is no answer."""
    with serving(done=False) as stub:
        assert only(run(stub, ONE)).ok
    with serving() as stub:
        record = only(run(stub, workloads.Workload("none", (workloads.Request("a", 0),))))
    assert record.outcome is Outcome.MALFORMED
    assert "no content chunk" in record.error


# Before anything is sent


REFUSAL = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"  # TorchServe's
PREFLIGHT: list[tuple[dict[str, Any], str]] = [
    ({"models_status": 400, "models_error": REFUSAL}, "refused the API key"),
    ({"models_status": 400}, "no OpenAI-compatible API there"),
    ({"models_status": 404}, r"answered 404(.|\n)*preflight=False"),
    ({"models": ("a", "b")}, r"no model 'stub'(.|\n)*a, b"),
    ({"api_key": "right"}, "refused the API key"),
]


def test_nothing_is_sent_to_a_server_that_will_not_do() -> None:
    """A refused key, an unknown model, no OpenAI API and no server at all: one clear error with the way around it."""
    for behaviour, message in PREFLIGHT:
        with serving(**behaviour) as stub:
            with pytest.raises((LoadError, UsageError), match=message) as caught:
                run(stub, api_key="wrong-key")
            assert "wrong-key" not in str(caught.value)
            assert stub.bodies == []
    with pytest.raises(LoadError, match="nothing listens at"):
        run(stub)
    with serving(models_status=404, api_key="right") as stub:
        assert only(run(stub, ONE, preflight=False, api_key="right")).ok


def test_something_else_listens() -> None:
    """A port where something speaks another protocol gives one clear error."""
    server = subprocess.Popen(
        [sys.executable, "-c", _NOT_HTTP], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        port = server.stdout.readline().strip()
        with pytest.raises(LoadError, match="cannot be read"):
            load.run_blocking(f"http://127.0.0.1:{port}", MODEL, ONE, concurrency=1)
    finally:
        server.kill()
        server.communicate()


_NOT_HTTP = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    peer, _ = server.accept()
    peer.recv(100)
    peer.sendall(b"SSH-2.0-nothing\\r\\n\\r\\n")
    peer.recv(100)
"""


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "concurrency is None and rate is None"),
    ({"concurrency": 2, "rate": 1.0}, "exactly one"),
    ({"concurrency": 0}, "concurrency is 0"),
    ({"concurrency": 1.5}, "concurrency is 1.5"),
    ({"rate": 0.0}, "rate is 0"),
    ({"rate": float("inf")}, "rate is inf"),
    ({"rate": 1.0, "arrival": "gamma"}, "poisson, constant"),
    ({"concurrency": 1, "api": "embeddings"}, "completions, chat"),
    ({"concurrency": 1, "api": "plain"}, "stream=False"),
    ({"concurrency": 1, "warmup": -1}, "warmup is -1"),
    ({"concurrency": 1, "timeout_s": 0}, "timeout_s is 0"),
    ({"concurrency": 1, "stop_after_s": -2}, "stop_after_s is -2"),
    ({"concurrency": 1, "workload": workloads.Workload("none", ())}, "0 requests"),
    (
        {
            "concurrency": 1,
            "workload": workloads.Workload("one", (workloads.Request("", 1, messages=({"role": "user"},)),)),
        },
        "chat messages",
    ),
    ({"concurrency": 1, "base_url": "localhost:8000"}, "http://127"),
    ({"concurrency": 1, "base_url": "ftp://host"}, "http://127"),
    ({"concurrency": 1, "base_url": "http://"}, "http://127"),
]


def test_arguments_are_checked_first() -> None:
    """Each wrong argument is refused with its value and the remedy before any connection is made."""
    for options, said in WRONG:
        given = {"base_url": "http://127.0.0.1:9/v1", "model": MODEL, "workload": CHAT, **options}
        with pytest.raises(UsageError) as caught:
            load.run_blocking(**given)
        assert said in str(caught.value)
        assert caught.value.remedy


# Stopping


@pytest.mark.parametrize(("options", "most"), [({"concurrency": 4}, 4), ({"rate": 1000.0}, len(ASKED))])
async def test_cancelling_closes_connections_and_leaves_no_task(options: dict[str, Any], most: int) -> None:
    """After a cancelled load no task is left here, and the server has seen every client go away."""
    with serving(hang=True) as stub:
        before = asyncio.all_tasks()
        task = asyncio.create_task(load.run(stub.base_url, MODEL, CHAT, **options))
        while stub.under_way < most:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == before
        await _until(lambda: stub.hung_up == most and stub.under_way == 0)


async def _until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("options", [{"concurrency": 2}, {"rate": 10.0, "arrival": "constant"}])
def test_stop_after_ends_what_is_under_way(options: dict[str, Any]) -> None:
    """At the limit, requests under way end as CANCELLED, the others are not sent, and a warning says how many."""
    with serving(hang=True) as stub:
        result = run(stub, stop_after_s=0.25, **options)
        sent = len(result.records)
        assert len(stub.bodies) <= sent < len(ASKED)
    assert {record.outcome for record in result.records} == {Outcome.CANCELLED}
    assert any(f"{len(ASKED) - sent} of {len(ASKED)} requests were not sent" in warning for warning in result.warnings)
    assert result.duration_s >= 0.25


async def test_run_blocking_works_inside_a_running_loop() -> None:
    """In a notebook, where a loop runs already, the blocking form works all the same."""
    with serving() as stub:
        assert all(record.ok for record in run(stub).records)


def test_run_blocking_leaves_no_thread() -> None:
    """After a load, and after an error, the thread of its loop is gone."""
    before = threading.active_count()
    with serving() as stub:
        run(stub)
        with pytest.raises(UsageError):
            load.run_blocking(stub.base_url, "other", CHAT, concurrency=1)
    assert threading.active_count() == before


def test_ctrl_c_stops_a_blocking_load() -> None:
    """An interrupt ends the load as KeyboardInterrupt, within a second, and the server sees the clients go."""
    program = f"""
import signal, sys
from labkit import load
from labkit.load import workloads
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have had it ignored
try:
    load.run_blocking(sys.argv[1], {MODEL!r}, workloads.chat(8), concurrency=4)
except KeyboardInterrupt:
    import threading
    print("interrupted", threading.active_count(), flush=True)
"""
    with serving(hang=True) as stub:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        client = subprocess.Popen(
            [sys.executable, "-c", program, stub.base_url], stdout=subprocess.PIPE, text=True, env=environment
        )
        deadline = time.monotonic() + 120
        while stub.under_way < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        client.send_signal(signal.SIGINT)
        printed, _ = client.communicate(timeout=120)
        assert printed.split() == ["interrupted", "1"]
        deadline = time.monotonic() + 20
        while stub.under_way and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stub.hung_up == 4


def test_the_client_knows_its_own_share() -> None:
    """CPU time that the client spends is in its share of the load's duration."""

    def burn(_done: int, _total: int) -> None:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    with serving() as stub:
        busy = run(stub, progress=burn)
    assert busy.client_cpu_s >= 0.05 * len(ASKED)
    assert busy.client_cpu_share == busy.client_cpu_s / busy.duration_s


def test_a_busy_client_warns() -> None:
    """Above 0.8 of a core the client says that it is the limit, with its share."""

    def doubts(share: float) -> list[str]:
        return list(find_doubts(LoadResult((), 10.0, share * 10.0, 1, None, "chat", 0), asked=0))

    assert doubts(0.79) == []
    assert ["81%" in doubt for doubt in doubts(0.81)] == [True]


# The stream, byte by byte


@given(
    st.lists(st.text(min_size=1), max_size=6),
    st.lists(st.integers(1, 40), max_size=60),
    st.sampled_from(["\n", "\r\n"]),
)
def test_events_survive_any_cut_of_the_stream(texts: list[str], cuts: list[int], newline: str) -> None:
    """However the network cuts the bytes, the same payloads come out, comments and other fields left out."""
    payloads = [json.dumps({"t": text}, ensure_ascii=False).encode() for text in texts]
    end = newline.encode()
    stream = b"".join(b": ping" + end + b"event: x" + end + b"data: " + payload + end + end for payload in payloads)
    lines, found = EventLines(), list[bytes]()
    for cut in cuts:
        found += lines.feed(stream[:cut])
        stream = stream[cut:]
    assert found + lines.feed(stream) == payloads


def test_error_messages_are_found() -> None:
    """The message is found in the error bodies of vLLM, TorchServe and FastAPI, and other bodies are shown."""
    bodies = {
        b'{"error": {"message": "too long", "code": 400}}': "too long",
        b'{"error": "too long"}': "too long",
        b'{"code": 400, "type": "BadRequest", "message": "too long"}': "too long",
        b'{"detail": [{"loc": ["body"], "msg": "bad"}]}': "bad",
        b"<html>too long</html>": "<html>too long</html>",
        b"{}": "{}",
        b"null": "null",
    }
    for raw, said in bodies.items():
        assert said in error_text(raw)


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 4))
def test_vllms_own_client_reads_the_same(tokens_per_chunk: int, tokens: int, n: int) -> None:
    """vLLM's request function, on the same server, finds the same chunks, tokens and text as ours in both APIs."""
    workload = workloads.chat(n, max_tokens=tokens)
    with serving(tokens_per_chunk=tokens_per_chunk) as stub:
        for api in ("completions", "chat"):
            ours = load.run_blocking(stub.base_url, MODEL, workload, concurrency=1, api=api)
            theirs = asyncio.run(_vllm_answers(stub, workload, api))
            for record, answer in zip(ours.records, theirs, strict=True):
                assert record.ok == answer.success
                assert len(record.chunk_times_s) == len(answer.itl) + 1
                assert (record.input_tokens, record.output_tokens) == (answer.prompt_len, answer.output_tokens)
                assert record.text == answer.generated_text


async def _vllm_answers(stub: Stub, workload: workloads.Workload, api: str) -> list[Any]:
    import aiohttp
    from vllm.benchmarks.lib import endpoint_request_func as vllm

    ask, path = {
        "completions": (vllm.async_request_openai_completions, "/completions"),
        "chat": (vllm.async_request_openai_chat_completions, "/chat/completions"),
    }[api]
    async with aiohttp.ClientSession() as session:
        inputs = [
            vllm.RequestFuncInput(
                prompt=request.prompt, api_url=stub.base_url + path, prompt_len=0, output_len=request.max_tokens,
                model=MODEL, chat_messages=[{"role": "user", "content": request.prompt}],
            )
            for request in workload.requests
        ]  # fmt: skip
        return [await ask(item, session) for item in inputs]
