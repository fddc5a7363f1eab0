"""The load client against a stub server: every request becomes a record with exact counts and consistent times."""

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
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labkit import load
from labkit.errors import LoadError, UsageError
from labkit.load import LoadResult, Outcome, workloads
from labkit.load.answers import Answer, error_text
from labkit.load.results import find_warnings
from labkit.load.workloads import Request, Workload
from tests.unit.refusals import not_refused
from tests.unit.standin import wait_until
from tests.unit.stub_server import MODEL, Stub, serving

CHAT = workloads.chat(8, max_tokens=12, max_tokens_low=3)
ASKED = [request.max_tokens for request in CHAT.requests]
ONE = workloads.chat(1, max_tokens=6)


def run(stub: Stub, workload: Workload = CHAT, **options: Any) -> LoadResult:
    if "rate" not in options:
        options.setdefault("concurrency", 3)
    return load.run_blocking(stub.base_url, MODEL, workload, **options)


def only(result: LoadResult) -> load.RequestRecord:
    (record,) = result.records
    return record


def test_tokens_text_and_group_are_kept() -> None:
    """In both APIs, streamed or not, tokens are the usage's, the text is complete and the group the request's; the
    server's root and its /v1 are equivalent."""
    mixed = workloads.interference(8, long_every=4, long_words=30, short_max_tokens=2)
    expected = [
        (Outcome.OK, len(r.prompt.split()), r.max_tokens, "".join(f" w{i}" for i in range(r.max_tokens)), r.group)
        for r in mixed.requests
    ]
    with serving(token_delay_s=0.001) as stub:
        for api, stream in (("completions", True), ("completions", False), ("chat", True), ("chat", False)):
            result = run(stub, mixed, api=api, stream=stream)
            records = [(r.outcome, r.input_tokens, r.output_tokens, r.text, r.group) for r in result.records]
            assert records == expected, (api, stream)
            assert all((len(record.chunk_times_s) > 0) == stream for record in result.records)
            # The stub runs in this process, whose CPU time counts as the client's.
            assert all(warning.startswith("Client-bound") for warning in result.warnings)
        for suffix in ("", "/", "/v1/"):
            assert only(load.run_blocking(stub.root + suffix, MODEL, ONE, concurrency=1)).ok


def test_the_body_follows_the_protocol() -> None:
    """Model, prompt or messages, length, temperature, seed and usage are in the protocol's fields."""
    request = Request("hello there", 5, temperature=0.5, seed=3)
    messages = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"})
    with serving() as stub:
        for api in ("completions", "chat"):
            run(stub, Workload("one", (request,)), api=api)
        run(stub, Workload("one", (Request("", 2, messages=messages),)), api="chat")
    completion, chat, given = stub.bodies
    common = {"model": MODEL, "temperature": 0.5, "seed": 3, "ignore_eos": True, "stream": True}
    common["stream_options"] = {"include_usage": True}
    assert completion == common | {"prompt": "hello there", "max_tokens": 5}
    assert chat == common | {"messages": [{"role": "user", "content": "hello there"}], "max_completion_tokens": 5}
    assert given["messages"] == list(messages)


def test_times_are_in_order() -> None:
    """Due, sent, chunks, finished, end of the load: in this order, and no shorter than the server's delays."""
    with serving(first_token_delay_s=0.02, token_delay_s=0.005) as stub:
        result = run(stub)
    for record, tokens in zip(result.records, ASKED, strict=True):
        times = [record.scheduled_s, record.started_s, *record.chunk_times_s, record.finished_s, result.duration_s]
        assert times == sorted(times)
        assert record.scheduled_s >= 0
        assert (record.ttft_s or 0) >= 0.02
        assert (record.e2e_s or 0) >= 0.02 + 0.005 * (tokens - 1)


def test_closed_loop_keeps_its_concurrency() -> None:
    """The server has `concurrency` requests in flight, or all if they are fewer."""
    for concurrency in (1, 3, 20):
        with serving(first_token_delay_s=0.3) as stub:
            run(stub, concurrency=concurrency)
            assert stub.most_in_flight == min(concurrency, len(ASKED))


def test_open_loop_sends_on_schedule() -> None:
    """Requests start when due, although the server has answered none; the default seed is the workload's."""
    poisson = workloads.poisson_arrivals_s
    schedules: list[tuple[dict[str, Any], tuple[float, ...]]] = [
        ({"seed": 5}, poisson(len(ASKED), rate=100.0, seed=5)),
        ({}, poisson(len(ASKED), rate=100.0, seed=CHAT.parameters["seed"])),
        ({"arrival": "constant"}, workloads.constant_arrivals_s(len(ASKED), rate=100.0)),
    ]
    for options, due_s in schedules:
        with serving(first_token_delay_s=0.5) as stub:
            result = run(stub, rate=100.0, **options)
            assert stub.most_in_flight == len(ASKED)
        assert [record.scheduled_s for record in result.records] == pytest.approx(due_s)
        assert all(record.waited_s >= 0 for record in result.records)
        assert result.seed == options.get("seed", CHAT.parameters["seed"])


def test_open_loop_counts_latency_from_the_schedule() -> None:
    """A blocked client shows in what requests waited, which latencies from the schedule hold, and in a warning."""

    def block(done: int, _total: int) -> None:
        if done == 1:
            time.sleep(0.3)  # blocks the event loop, so later requests start late

    with serving() as stub:
        result = run(stub, rate=50.0, arrival="constant", progress=block)
    assert max(record.waited_s for record in result.records) > 0.15
    assert any("fell behind" in warning for warning in result.warnings)


def test_warmup_is_separate_and_warms_no_prefix() -> None:
    """Warm-up requests end before the load begins and are recorded separately. They have the words of measured prompts
    but other first words, so a prefix cache does not serve the measured ones."""
    with serving() as stub:
        for api in ("completions", "chat"):
            stub.bodies.clear()
            result = run(stub, warmup=3, api=api)
            assert len(result.records) == len(ASKED)
            assert all(record.warmup and record.ok and record.finished_s <= 0 for record in result.warmup_records)
            assert not any(record.warmup for record in result.records)
            prompts = [body["prompt"] if "prompt" in body else body["messages"][0]["content"] for body in stub.bodies]
            assert len(prompts) == len(ASKED) + 3
            assert not {warm.split()[0] for warm in prompts[:3]} & {measured.split()[0] for measured in prompts[3:]}
            measured = sorted(sorted(request.prompt.split()) for request in CHAT.requests[:3])
            assert sorted(sorted(warm.split()) for warm in prompts[:3]) == measured


def test_a_warm_up_of_one_word_or_of_parts_is_not_the_measured_prompt() -> None:
    """What has no words to put in another order is turned by characters, and parts by their texts."""
    parts = [{"type": "text", "text": "one two"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    with serving() as stub:
        for request in (
            Request("你好世界", max_tokens=2),
            Request("", max_tokens=2, messages=({"role": "user", "content": parts},)),
        ):
            stub.bodies.clear()
            run(stub, workload=Workload("own", (request,)), api="chat" if request.messages else "completions", warmup=1)
            warm, measured = (body.get("prompt") or body["messages"] for body in stub.bodies)
            assert warm != measured


def test_progress_counts_to_the_end_and_its_error_ends_the_load() -> None:
    """The callback gets 1 to n of n without the warm-up; its error is raised as it is, not in a group."""
    seen: list[tuple[int, int]] = []
    with serving() as stub:
        run(stub, warmup=2, progress=lambda done, total: seen.append((done, total)))
        with pytest.raises(ZeroDivisionError):
            run(stub, progress=lambda done, _total: done // 0)
    assert seen == [(i + 1, len(ASKED)) for i in range(len(ASKED))]


FAILURES: list[tuple[dict[str, Any], Outcome, str]] = [
    ({"error_status": 500}, Outcome.HTTP_ERROR, "500: the stub answers 500"),
    ({"cut_after_chunks": 0}, Outcome.CONNECTION, ""),
    ({"hang": True}, Outcome.TIMEOUT, "0.3 s"),
    ({"first_token_delay_s": 0.01, "token_delay_s": 0.2}, Outcome.TIMEOUT, "0.3 s"),
]


def test_each_failure_is_an_outcome() -> None:
    """A failed request is a record with its outcome and the reason, no latency, and a warning of the load."""
    for behaviour, outcome, words in FAILURES:
        with serving(**behaviour) as stub:
            result = run(stub, ONE, timeout_s=0.3 if outcome is Outcome.TIMEOUT else 30)
        record = only(result)
        assert (record.outcome, words in record.error, record.error != "") == (outcome, True, True), behaviour
        assert (record.ttft_s, record.tpot_s, record.e2e_s, record.itl_s) == (None, None, None, ())
        assert any("1 of 1 requests failed" in warning and outcome.value in warning for warning in result.warnings)


def test_partial_answers_and_dead_servers() -> None:
    """A cut stream keeps the chunks received; single failures do not affect other requests; a closed port gives
    CONNECTION for each request."""
    with serving(cut_after_chunks=3, token_delay_s=0.01) as stub:
        record = only(run(stub, ONE))
    assert (record.outcome, len(record.chunk_times_s), record.text) == (Outcome.CONNECTION, 3, " w0 w1 w2")
    with serving(error_status=503, error_every=3) as stub:
        result = run(stub, concurrency=1)
    assert [record.ok for record in result.records] == [(i + 1) % 3 != 0 for i in range(len(ASKED))]
    result = run(stub, preflight=False)
    assert [record.outcome for record in result.records] == [Outcome.CONNECTION] * len(ASKED)


REFUSAL = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"  # TorchServe's
PREFLIGHT: list[tuple[dict[str, Any], str]] = [
    ({"models_status": 400, "models_error": REFUSAL}, "refused the API key"),
    ({"models_status": 404}, r"answered 404: not an OpenAI-compatible API(.|\n)*--no-preflight"),
    ({"models_status": 400}, "answered 400"),
    ({"models": ("a", "b")}, r"no model 'stub'(.|\n)*a, b"),
    ({"api_key": "right"}, "refused the API key"),
]


def test_preflight_refuses_unusable_servers() -> None:
    """A refused key, an unknown model, another API and a closed port raise an error before anything is sent."""
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


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"concurrency": None}, "concurrency is None and rate is None"),
    ({"rate": 1.0}, "exactly one"),
    ({"concurrency": 0}, "concurrency is 0"),
    ({"concurrency": 1.5}, "concurrency is 1.5"),
    ({"concurrency": None, "rate": 0.0}, "rate is 0"),
    ({"concurrency": None, "rate": float("inf")}, "rate is inf"),
    ({"arrival": "gamma"}, "poisson, constant"),
    ({"api": "embeddings"}, "completions, chat"),
    ({"warmup": -1}, "warmup is -1"),
    ({"timeout_s": 0}, "timeout_s is 0"),
    ({"stop_after_s": -2}, "stop_after_s is -2"),
    ({"workload": Workload("none", ())}, "0 requests"),
    ({"workload": Workload("one", (Request("", 1, messages=({"role": "user"},)),))}, "chat messages"),
    ({"base_url": "localhost:8000"}, "http://127"),
]


def test_arguments_are_checked_first() -> None:
    """Each wrong argument is refused with its value and a remedy before connecting."""
    right: dict[str, Any] = {"base_url": "http://127.0.0.1:9/v1", "model": MODEL, "workload": CHAT, "concurrency": 1}
    assert not_refused(lambda options: load.run_blocking(**right | options), WRONG) == []


async def test_cancelling_closes_connections_and_leaves_no_task() -> None:
    """After a cancelled load no task is left, and the server has lost every connection."""
    cases: list[tuple[dict[str, Any], int]] = [({"concurrency": 4}, 4), ({"rate": 1000.0}, len(ASKED))]
    for options, most in cases:
        with serving(hang=True) as stub:
            before = asyncio.all_tasks()
            task = asyncio.create_task(load.run(stub.base_url, MODEL, CHAT, **options))
            while stub.in_flight < most:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert asyncio.all_tasks() == before
            while stub.hung_up < most or stub.in_flight:  # at worst until the test's time limit
                await asyncio.sleep(0.01)


def test_stop_after_ends_requests_in_flight() -> None:
    """At the limit, requests in flight end as CANCELLED, others are not sent, and a warning counts them."""
    loops: list[dict[str, Any]] = [{"concurrency": 2}, {"rate": 10.0, "arrival": "constant"}]
    for options in loops:
        with serving(hang=True) as stub:
            result = run(stub, stop_after_s=0.25, **options)
            sent = len(result.records)
            assert len(stub.bodies) <= sent < len(ASKED)
        assert {record.outcome for record in result.records} == {Outcome.CANCELLED}
        assert any(f"{len(ASKED) - sent} of {len(ASKED)} requests were not sent" in line for line in result.warnings)
        assert result.duration_s > 0.2


async def test_run_blocking_works_inside_a_running_loop_and_leaves_no_thread() -> None:
    """The blocking form works inside a running loop; after a load, and after an error, its thread has ended."""
    before = threading.active_count()
    with serving() as stub:
        assert all(record.ok for record in run(stub).records)
        with pytest.raises(UsageError):
            load.run_blocking(stub.base_url, "other", CHAT, concurrency=1)
    assert threading.active_count() == before


INTERRUPTED = f"""
import signal, sys, threading
from labkit import load
from labkit.load import workloads
signal.signal(signal.SIGINT, signal.default_int_handler)  # the parent may ignore it
try:
    load.run_blocking(sys.argv[1], {MODEL!r}, workloads.chat(8), concurrency=4)
except KeyboardInterrupt:
    print("interrupted", threading.active_count(), flush=True)
"""


def test_ctrl_c_stops_a_blocking_load() -> None:
    """An interrupt ends the load as KeyboardInterrupt, and no thread or connection is left."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with serving(hang=True) as stub:
        command = [sys.executable, "-c", INTERRUPTED, stub.base_url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as client:
            try:
                assert wait_until(lambda: stub.in_flight == 4)
                client.send_signal(signal.SIGINT)
                printed, _ = client.communicate(timeout=120)
            finally:
                client.kill()
        assert printed.split() == ["interrupted", "1"]
        assert wait_until(lambda: stub.hung_up == 4)


def test_client_cpu_share() -> None:
    """The share is the client's CPU time over the duration; above 0.8 of a core there is a warning."""

    def burn(_done: int, _total: int) -> None:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    with serving() as stub:
        busy = run(stub, progress=burn)
    assert busy.client_cpu_s >= 0.05 * len(ASKED)
    assert busy.client_cpu_share == busy.client_cpu_s / busy.duration_s
    for share, warned in ((0.79, []), (0.81, [True])):
        warnings = find_warnings(LoadResult((), 10.0, share * 10.0, 1, None, "chat", 0), planned=0)
        assert ["81%" in warning for warning in warnings] == warned


def clumped(records: list[load.RequestRecord], *, client_cpu_s: float = 0.0) -> bool:
    result = LoadResult(tuple(records), 10.0, client_cpu_s, 1, None, "chat", 0)
    return any("1 of 1 long answers" in warning for warning in find_warnings(result, planned=len(records)))


@given(
    tokens=st.integers(1, 300),
    token_s=st.floats(0.002, 0.2),
    first_s=st.floats(0.002, 5.0),
    per_chunk=st.integers(1, 20),
    held=st.integers(1, 200),
    segment_s=st.sampled_from([0.0, 5e-5]),
)
@example(tokens=2, token_s=0.2, first_s=5.0, per_chunk=1, held=200, segment_s=0.0)
@example(tokens=64, token_s=0.02, first_s=0.5, per_chunk=1, held=16, segment_s=5e-5)
@example(tokens=100, token_s=0.02, first_s=0.1, per_chunk=10, held=1, segment_s=0.0)
def test_clumps_are_noticed_and_chunks_of_many_tokens_are_not(
    tokens: int, token_s: float, first_s: float, per_chunk: int, held: int, segment_s: float
) -> None:
    """An engine sends the first token and then chunks of `per_chunk`; a proxy passes `held` chunks on at a time. The
    warning comes where most chunks wait in the proxy with seven others or more, and never without a proxy."""
    sent = [first_s, *(first_s + token_s * k for k in range(per_chunk, tokens + per_chunk - 1, per_chunk))]
    clumps = [sent[at : at + held] for at in range(0, len(sent), held)]
    arrived = [clump[-1] + k * segment_s for clump in clumps for k in range(len(clump))]

    def record(times: list[float]) -> load.RequestRecord:
        return load.RequestRecord(0, 0.0, 0.0, tuple(times), times[-1], 5, tokens, Outcome.OK, text="word " * tokens)

    in_clumps = sum(len(clump) for clump in clumps if len(clump) >= 8) > len(sent) / 2
    whole = len(clumps) == 1 and (len(sent) > 1 or tokens == 1)
    assert clumped([record(arrived)]) == (tokens >= 8 and (in_clumps or whole))
    assert not clumped([record(sent)])
    assert not clumped([record(arrived)], client_cpu_s=9.0)  # a client at its limit reads late
    assert not clumped([record(arrived), record(sent)])  # as after one pause of the client
    at_once = [0.0005 * tokens] * tokens  # by a server that needs no time
    assert not clumped([record(at_once)])


def test_a_buffering_proxy_is_noticed() -> None:
    """Chunks that a proxy collects before it passes them on end in one warning; without it there is none."""
    chunks = [f'data: {{"choices": [{{"text": "{k}"}}]}}\n\n'.encode() for k in range(32)]
    end = b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 32}}\n\ndata: [DONE]\n\n'
    asked = Workload("one", (Request("count", 32),))
    for size, warned in ((16, 1), (1, 0)):
        held = [b"".join(chunks[at : at + size]) for at in range(0, 32, size)]
        with serving(raw=(*(piece for clump in held for piece in (0.004 * size, clump)), end)) as stub:
            result = run(stub, asked, concurrency=1)
        assert sum("in clumps" in warning for warning in result.warnings) == warned
        assert "proxy_buffering off" in " ".join(result.warnings) or not warned


def test_more_clients_than_requests() -> None:
    """The result says how many were in flight at most, and how many requests reach the concurrency."""
    with serving() as stub:
        few, enough = run(stub, concurrency=20), run(stub, concurrency=8)
    assert "concurrency is 20, but 8 requests" in few.warnings[0]
    assert "send 80 or more" in few.warnings[0]
    assert not any("Too few requests" in warning for warning in enough.warnings)


@given(
    st.lists(st.text(min_size=1), max_size=6),
    st.lists(st.integers(1, 40)),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["data: ", "data:"]),
)
def test_answers_survive_any_cut_of_the_stream(texts: list[str], cuts: list[int], newline: str, prefix: str) -> None:
    """Cuts anywhere leave the text unchanged; comments, other fields and keep-alives are skipped."""
    lines = [": ping", "data:", "data: {}", "event: x", "id: 1", "retry: 9"]
    for text in texts:
        chunk = {"choices": [{"delta": {"content": text}}]}
        lines += [prefix + json.dumps(chunk, ensure_ascii=False), ""]
    stream = (newline.join([*lines, f"{prefix}[DONE]"])).encode()
    answer = Answer()
    for cut in cuts:
        answer.feed(stream[:cut], 0.0)
        stream = stream[cut:]
    answer.feed(stream, 0.0)
    answer.finish("text/event-stream", 0.0)
    assert answer.text == "".join(texts)
    assert answer.outcome is (Outcome.OK if texts else Outcome.MALFORMED)


def test_error_messages_are_found() -> None:
    """Error bodies of vLLM, TorchServe and FastAPI give their message; others are returned as text."""
    bodies = {
        b'{"error": {"message": "too long", "code": 400}}': "too long",
        b'{"error": "too long"}': "too long",
        b'{"code": 400, "type": "BadRequest", "message": "too long"}': "too long",
        b'{"detail": [{"loc": ["body"], "msg": "bad"}]}': "bad",
        b"<html>too long</html>": "<html>too long</html>",
        b"{}": "{}",
        b"null": "null",
    }
    assert {raw: words for raw, words in bodies.items() if words not in error_text(raw)} == {}


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 4))
def test_vllms_own_client_reads_the_same(tokens_per_chunk: int, tokens: int, n: int) -> None:
    """vLLM's request function gets the same chunks, tokens and text from the same server, in both APIs."""
    workload = workloads.chat(n, max_tokens=tokens)
    with serving(tokens_per_chunk=tokens_per_chunk) as stub:
        for api in ("completions", "chat"):
            ours = load.run_blocking(stub.base_url, MODEL, workload, concurrency=1, api=api)
            theirs = asyncio.run(_vllm_answers(stub, workload, api))
            for record, answer in zip(ours.records, theirs, strict=True):
                assert (record.ok, len(record.chunk_times_s)) == (answer.success, len(answer.itl) + 1)
                assert (record.input_tokens, record.output_tokens) == (answer.prompt_len, answer.output_tokens)
                assert record.text == answer.generated_text


async def _vllm_answers(stub: Stub, workload: Workload, api: str) -> list[Any]:
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
