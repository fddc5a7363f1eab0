"""The load client on real servers' formats and real addresses: each is read, doubted or refused."""

import asyncio
import contextlib
import json
import math
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit import load
from labkit.errors import LabkitError, LoadError, UsageError
from labkit.load import address, metrics, workloads
from labkit.load.answers import Answer
from labkit.load.workloads import Request, Workload, rising_arrivals_s
from tests.unit.refusals import not_refused
from tests.unit.stream_shapes import SHAPES, UNKNOWN, Shape, delta, event, usage
from tests.unit.stub_server import MODEL, Stub, serving

ONE = Workload("one", (Request("say hello", 8),))


def ask(stub: Stub, url: str = "", **options: Any) -> load.LoadResult:
    return load.run_blocking(url or stub.base_url, MODEL, ONE, **{"concurrency": 1, "api": "chat", **options})


def offences(shape: Shape) -> Iterator[str]:
    """Yield each way in which the client's result is wrong."""
    with serving(raw=shape.pieces, content_type=shape.content_type) as stub:
        result = ask(stub)
    (record,) = result.records
    summary = metrics.summarise(result).to_dict()
    if record.outcome.value != shape.outcome or shape.error not in record.error:
        yield f"{record.outcome}: {record.error}"
    if shape.outcome != "ok":
        if summary["completed"] or not any("1 of 1 requests failed" in warning for warning in result.warnings):
            yield f"counted as completed, or no warning: {result.warnings}"
        return
    tokens = None if shape.tokens == UNKNOWN else shape.tokens
    known = (record.output_tokens, summary["output_tokens"], record.text)
    if known != (tokens, tokens, shape.text):
        yield f"tokens and text {known}"
    if tokens is None and (summary["output_throughput"], summary["tpot_s"]["mean"]) != (None, None):
        yield f"a throughput or TPOT of unknown tokens: {summary}"
    if record.ttft_s is not None and record.ttft_s < shape.ttft_from_s:
        yield f"TTFT {record.ttft_s}"
    doubts = [text for text in result.warnings if "Client-bound" not in text]
    if not shape.warning and doubts:
        yield f"doubted: {doubts}"
    if shape.warning and not any(shape.warning in warning for warning in result.warnings):
        yield f"no doubt: {result.warnings}"


def test_every_shape_is_read_doubted_or_refused() -> None:
    """Each shape has the right outcome, tokens, text and TTFT, and a warning if it is doubtful or failed."""
    wrong = {name: problems for name, shape in SHAPES.items() if (problems := list(offences(shape)))}
    assert wrong == {}


FIELDS = ("choices", "delta", "message", "content", "text", "reasoning", "usage", "completion_tokens", "error",
          "detail", "finish_reason", "x_groq", "code", "type", "total_tokens", "prompt_tokens")  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats(allow_infinity=False) | st.text(max_size=3),
    lambda tree: st.lists(tree, max_size=2) | st.dictionaries(st.sampled_from(FIELDS), tree, max_size=4),
    max_leaves=12,
)


@given(st.lists(ANYTHING, max_size=4))
def test_any_json_ends_as_an_outcome(chunks: list[Any]) -> None:
    """Nothing raises; token counts are whole numbers above 0 or unknown; each time belongs to a chunk."""
    answer = Answer()
    for chunk in chunks:
        answer.feed(event(chunk), 1.0)
    answer.finish("text/event-stream", 2.0)
    assert all(
        count is None or (type(count) is int and count > 0) for count in (answer.input_tokens, answer.output_tokens)
    )
    assert len(answer.chunk_times) <= len(chunks)
    assert answer.outcome is load.Outcome.OK or answer.error
    assert answer.text.encode() is not None


def test_the_first_token_and_the_first_of_the_answer() -> None:
    """TTFT ends at the first token, reasoning or not; the first answer token comes after the reasoning, in each of the
    ways in which servers send it."""
    wait_s = 0.4
    answer, end = (wait_s, event(delta("Hi"))), (event(delta(reason="stop")), event(usage(3)), event("[DONE]"))
    part = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]
    for first in (delta(reasoning_content="hm"), delta(reasoning="hm"), delta(part), delta("<think>hm</think>\n")):
        with serving(raw=(event(first), *answer, *end)) as stub:
            (record,) = ask(stub).records
        assert (record.ttft_s or 9) < wait_s <= (record.first_answer_token_s or 0), first
    with serving(raw=(*answer, *end)) as stub:
        (record,) = ask(stub).records
    assert record.first_answer_token_s == record.ttft_s


def test_usage_is_known_for_all_or_for_none() -> None:
    """One answer without usage makes the sum unknown."""
    records = [load.RequestRecord(k, 0.0, 0.0, (1.0, 2.0), 2.0, 5, n, load.Outcome.OK) for k, n in enumerate((8, None))]
    summary = metrics.summarise_records(records, duration_s=2.0)
    assert (summary.output_tokens, summary.input_tokens, math.isnan(summary.output_throughput)) == (None, 10, True)
    known = metrics.summarise_records(records[:1], duration_s=2.0)
    assert (known.output_tokens, known.output_throughput) == (8, 4.0)


# --- addresses, models, keys ---

ROOTS = {
    "http://h:8000": "http://h:8000/v1",
    "http://h:8000/": "http://h:8000/v1",
    "http://h/llm": "http://h/llm/v1",
    " http://h/v1/ ": "http://h/v1",
    "https://h/v1beta/openai/": "https://h/v1beta/openai",
    "https://h/api/v3": "https://h/api/v3",
    "https://h/openai/v1": "https://h/openai/v1",
    "https://h/api/paas/v4": "https://h/api/paas/v4",
    "https://h/v1/chat/completions": "https://h/v1",
    "https://h/v1/completions/": "https://h/v1",
    "https://h/inference/chat/completions": "https://h/inference",
    "https://h/v1/models": "https://h/v1",
    "https://h/openai/deployments/d": "https://h/openai/deployments/d",
    "https://h/openai/deployments/d/chat/completions?api-version=2": "https://h/openai/deployments/d",
    "http://me:secret-word@h:1/v1": "http://h:1/v1",
    "http://[::1]:8000": "http://[::1]:8000/v1",
}
NO_ADDRESSES = (
    "localhost:8000",
    "ftp://h",
    "http://",
    "http://h:99999",
    "http://h:port",
    "http://[::1",
    "",
    "http://h:0",
)


def test_addresses_are_understood() -> None:
    """A root gets /v1; another version, or the path before a pasted endpoint, stays."""
    assert {url: address.parse(url).root for url in ROOTS} == ROOTS
    assert address.parse("http://h/v1/chat/completions").api == "chat"
    assert not_refused(address.parse, [(url, "") for url in NO_ADDRESSES]) == []


def test_requests_use_the_whole_address() -> None:
    """Any prefix, the query in each request, and user and password in the header alone."""
    for prefix in ("/v1beta/openai", "/api/v3", "/openai/deployments/d", "/inference"):
        with serving(prefix=prefix) as stub:
            url = f"{stub.base_url}/chat/completions?api-version=2024-10-21"
            assert ask(stub, url).records[0].ok
            assert stub.urls == [f"{prefix}/chat/completions?api-version=2024-10-21"]
    with serving() as stub:
        assert ask(stub, stub.base_url.replace("//", "//me:secret-word@")).records[0].ok
        assert stub.credentials == ["Basic bWU6c2VjcmV0LXdvcmQ="]


def test_no_secret_is_printed() -> None:
    """Passwords, keys and queries are masked in server messages, errors and addresses."""
    echo = "bad key secret-word"
    behaviours: list[dict[str, Any]] = [
        {"error_status": 401},
        {"models_status": 404},
        {"raw": (event({"error": echo}),)},
    ]
    ways = (("//me:secret-word@", None, ""), ("//", "secret-word", ""), ("//", None, "?key=secret-word"))
    for place, key, query in ways:
        for behaviour in behaviours:
            with serving(**behaviour) as stub:
                try:
                    printed = repr(ask(stub, stub.base_url.replace("//", place) + query, api_key=key))
                except LabkitError as error:
                    printed = str(error)
            assert "secret-word" not in printed
        with pytest.raises(LoadError) as caught:
            ask(stub, stub.base_url.replace("//", place) + query, api_key=key)
        assert "secret-word" not in str(caught.value)
    with pytest.raises(UsageError) as refused:
        address.parse("ftp://me:secret-word@h")
    assert "secret-word" not in str(refused.value)
    for key in ("secret-word\r\nX: y", "secret-word\n", "secret-w\u00f6rd"):
        with pytest.raises(UsageError, match="line break") as refused:
            address.parse("http://h", api_key=key)
        assert "secret-w" not in str(refused.value)
    with pytest.raises(UsageError, match="a user name, and an API key"):
        address.parse("http://me:pw@h", api_key="k")


LISTS: list[Any] = [
    {"data": [{"id": MODEL}]},
    [{"id": MODEL}],
    [MODEL],
    {"data": [MODEL]},
    {"models": [{"name": f"{MODEL}:latest", "model": f"{MODEL}:latest"}]},
    {"models": [MODEL]},
    {"data": [{"id": f"models/{MODEL}"}]},
    {"data": [{"id": "a/b", "name": MODEL}]},
    {"data": [{"id": "*"}]},
]
NO_LISTS: list[Any] = [{}, {"data": None}, 3, MODEL, None]


def test_lists_of_models_in_every_form() -> None:
    """A model is found in the lists of OpenAI, Together, Ollama, Gemini and LiteLLM; an unknown one gets close names;
    anything but a list names --no-preflight."""

    def listed(tree: Any) -> bool:
        with serving(models_body=json.dumps(tree)) as stub:
            return ask(stub).records[0].ok

    assert [tree for tree in LISTS if not listed(tree)] == []
    assert not_refused(listed, [(tree, "--no-preflight") for tree in NO_LISTS], LoadError) == []
    assert not_refused(listed, [({"data": []}, "none served")]) == []
    with pytest.raises(UsageError, match="among its 300") as caught:
        listed([f"{MODEL}-{k}" for k in range(300)])
    assert f"{MODEL}-" in caught.value.remedy
    assert len(caught.value.remedy) < 200


def test_tls_errors(tmp_path: Path) -> None:
    """An untrusted certificate and a server without TLS have different errors."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_self_signed(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server, context.wrap_socket(server, server_side=True) as secure:

        def refuse() -> None:
            with contextlib.suppress(OSError):  # the client hangs up in the handshake
                secure.accept()

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(LoadError, match=r"not trusted(.|\n)*SSL_CERT_FILE"):
            load.run_blocking(f"https://127.0.0.1:{secure.getsockname()[1]}", MODEL, ONE, concurrency=1)
        thread.join()
    with serving() as stub, pytest.raises(LoadError, match="does not speak TLS"):
        ask(stub, stub.base_url.replace("http:", "https:"))


def _self_signed(folder: Path) -> Path:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(1), now + timedelta(1))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "self.pem"
    path.write_bytes(private + builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path


# --- what is sent ---


def test_fields_are_left_out_or_renamed() -> None:
    """A refused field can be removed, and the limit sent under its other name."""
    with serving(refuses="stream_options") as stub:
        assert "stream_options" in ask(stub).records[0].error
        assert ask(stub, body={"stream_options": None, "ignore_eos": None, "top_k": 1}).records[0].ok
        assert {"stream_options", "ignore_eos"}.isdisjoint(stub.bodies[-1])
        assert stub.bodies[-1]["top_k"] == 1
    with serving(refuses="max_completion_tokens") as stub:
        assert ask(stub, limit_field="max_tokens").records[0].ok
        assert stub.bodies[-1]["max_tokens"] == 8
        with pytest.raises(UsageError, match="limit_field is 'length'"):
            ask(stub, limit_field="length")
    with serving(error_status=429, headers={"Retry-After": "7"}) as stub:
        assert "429 (Retry-After: 7)" in ask(stub).records[0].error


def test_turns_follow_each_other() -> None:
    """A turn is sent after the previous answer and holds the whole conversation; conversations run concurrently. After
    a failed turn the rest is not sent, and a warning counts it."""
    talks = workloads.conversations(3, turns=3, user_words=25, max_tokens=2, think_s=0.01)
    with serving(token_delay_s=0.05) as stub:
        result = load.run_blocking(stub.base_url, MODEL, talks, concurrency=3, api="chat", warmup=1)
        assert all(record.ok for record in result.records)
        assert stub.most_in_flight == 3
    for first in (0, 3, 6):
        for earlier, later in pairwise(result.records[first : first + 3]):
            assert earlier.finished_s < later.scheduled_s <= later.started_s
    longest = max(stub.bodies[1:], key=lambda body: len(body["messages"]))["messages"]
    roles = [message["role"] for message in longest]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert longest[2]["content"] == " w0 w1"
    with serving(error_status=500) as stub:
        failed = load.run_blocking(stub.base_url, MODEL, talks, rate=100.0, api="chat")
    assert len(failed.records) == 3
    assert any("6 of 9 requests were not sent" in warning for warning in failed.warnings)
    with pytest.raises(UsageError, match="--api chat"):
        load.run_blocking("http://127.0.0.1:9", MODEL, talks, concurrency=1)


def test_a_trace_is_sent_as_recorded(tmp_path: Path) -> None:
    """Requests come at the trace's times, with a word per recorded token and the recorded prefixes; a rate is
    refused."""
    path = tmp_path / "trace.jsonl"
    lines = [(0, 5, 3, [1, 2]), (100, 8, 2, [1, 3]), (200, 4, 0, [4])]
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    path.write_text("\n".join(json.dumps(dict(zip(names, line, strict=True))) for line in lines))
    trace = workloads.build("mooncake", n=None, path=path, block_tokens=4, speed=2.0)
    with serving() as stub:
        result = load.run_blocking(stub.base_url, MODEL, trace)
        with pytest.raises(UsageError, match="arrival times of its own"):
            load.run_blocking(stub.base_url, MODEL, trace, rate=1.0)
        assert len(load.run_blocking(stub.base_url, MODEL, trace, concurrency=2).records) == 3
    assert [record.scheduled_s for record in result.records] == pytest.approx([0.0, 0.05, 0.1])
    assert [record.input_tokens for record in result.records] == [5, 8, 4]
    assert [record.limit_tokens for record in result.records] == [3, 2, 1]
    first, second, third = (request.prompt.split() for request in trace.requests)
    assert (first[:4] == second[:4], first[4:] == second[4:5], first[:4] == third) == (True, False, False)
    assert trace.notes == ("1 requests without output: 1 token each",)


def test_words_of_a_trace_are_one_token_each() -> None:
    """Each word is one token of the embedded model."""
    from tokenizers import Tokenizer

    from labkit.models import CHAT, resolve

    tokenizer = Tokenizer.from_file(str(Path(resolve(CHAT)) / "tokenizer.json"))
    counts = {word: len(tokenizer.encode(f" {word}")) for word in workloads.ONE_TOKEN_WORDS}
    assert {word: count for word, count in counts.items() if count != 1} == {}


def test_what_would_never_end_is_refused() -> None:
    """A device, a folder and an invalid path before reading; too many words of prompts before they are generated."""
    for path in ("/dev/zero", "/dev/stdin", "/proc/self", 5, "a\0b"):
        with pytest.raises(UsageError, match=r"not a regular file|cannot be read"):
            workloads.from_file(path)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="too many"):
        workloads.build("chat", n=10, prompt_words=10**9)


@given(st.integers(1, 300), st.floats(0.1, 50), st.floats(1.01, 20))
def test_a_ramp_rises_linearly(n: int, low: float, factor: float) -> None:
    """The arrivals up to t are the integral of the rate, and gaps only shrink."""
    high = low * factor
    due_s = rising_arrivals_s(workloads.constant_arrivals_s(n, rate=1.0), low=low, high=high)
    end_s = 2 * n / (low + high)
    assert [low * t + (high - low) * t * t / (2 * end_s) for t in due_s] == pytest.approx(list(range(n)), abs=1e-6)
    gaps = [later - earlier for earlier, later in pairwise(due_s)]
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(gaps))


def test_a_load_can_rise() -> None:
    """A closed loop begins with `ramp_from` in flight and ends with `concurrency`; a warning says so."""
    many = workloads.chat(24, max_tokens=2)
    with serving(first_token_delay_s=0.05) as stub:
        result = load.run_blocking(stub.base_url, MODEL, many, concurrency=6, ramp_from=1)
        assert stub.most_in_flight == 6
    starts = sorted(record.started_s for record in result.records)
    assert starts[5] >= 0.05
    assert any("whole ramp" in warning for warning in result.warnings)
    with serving() as stub:
        rising = load.run_blocking(stub.base_url, MODEL, many, rate=400.0, ramp_from=50.0, arrival="constant")
        dues = [record.scheduled_s for record in rising.records]
        assert dues[1] - dues[0] > 3 * (dues[-1] - dues[-2])
        with pytest.raises(UsageError, match="ramp_from is 9"):
            load.run_blocking(stub.base_url, MODEL, many, concurrency=2, ramp_from=9)


async def test_a_cancelled_load_keeps_its_results() -> None:
    """`on_cancel` gets the finished requests, and those in flight as cancelled."""
    kept: list[load.LoadResult] = []
    chat = workloads.chat(20, max_tokens=2)
    with serving(first_token_delay_s=0.05) as stub:
        task = asyncio.create_task(load.run(stub.base_url, MODEL, chat, concurrency=1, on_cancel=kept.append))
        while len(stub.bodies) < 4 and not task.done():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    outcomes = [record.outcome.value for record in kept[0].records]
    assert outcomes[:2] == ["ok", "ok"]
    assert outcomes[-1] in ("ok", "cancelled")
    assert any(re.search(r"\d+ of 20 requests were not sent", warning) for warning in kept[0].warnings)
