"""The parts of the TorchServe handlers that need no model and no server."""

import ast
import json
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from handlers import embedding, sleep, text_generation
from handlers.text_generation import CHAT, COMPLETIONS, PLAIN, Asked, RequestError, Row

FOLDER = Path(text_generation.__file__).parent
SETTINGS = text_generation.Settings(model_path=".", max_prompt_tokens=100, max_new_tokens=50)
LABELS = embedding.Settings(model_path=".", examples={"a": ["x"]}, max_texts=3)
ROUTES = st.sampled_from([PLAIN, COMPLETIONS, CHAT])
NAMES = st.sampled_from([*sorted(text_generation.KNOWN), *text_generation.NEUTRAL, "text", "embed", "role", "content"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


def read(body: Any, route: str = PLAIN) -> Asked:
    """A body, as TorchServe hands it over, read with the settings of these tests."""
    return text_generation.read_request({"body": body}, route, model="m", settings=SETTINGS)


def outcome(call: Callable[..., Any]) -> Any:
    """What a call returns, or the refusal that it raises."""
    try:
        return call()
    except (RequestError, embedding.RequestError) as error:
        return error


def test_each_handler_stands_alone() -> None:
    """A handler imports nothing of this repository; TorchServe finds its only class with `handle`, or else the
    function `handle(data, context)`."""
    for name in ("text_generation", "embedding", "sleep", "naive"):
        tree = ast.parse((FOLDER / f"{name}.py").read_text())
        modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        foreign = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names)
        assert foreign <= {"torch", "transformers", "jinja2", "ts"}
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        if "handle" in functions:
            assert [argument.arg for argument in functions["handle"].args.args] == ["data", "context"]
        else:
            (only,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
            assert {"initialize", "handle"} <= {node.name for node in only.body if isinstance(node, ast.FunctionDef)}


def test_the_configuration_fits_the_settings() -> None:
    """Every key of the configuration's section `handler` is a setting, and TorchServe's own keys are spelt its way."""
    for name, handler in (("text_generation", text_generation), ("embedding", embedding)):
        config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
        handler.Settings(**config.pop("handler"))
        known = {"minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout"}
        assert set(config) == known


def refusal(error: Any) -> bool:
    """A 4xx with a reason."""
    return HTTPStatus.BAD_REQUEST <= error.status < HTTPStatus.INTERNAL_SERVER_ERROR and bool(str(error))


@given(body=JSON, route=ROUTES, raw=st.binary(max_size=40))
def test_whatever_is_sent_is_read_or_refused(body: Any, route: str, raw: bytes) -> None:
    """Any JSON value, and any bytes, either are a request within the limits or are refused with a 4xx and a reason,
    never an error."""
    asked = outcome(lambda: read(body, route))
    assert (
        refusal(asked)
        if not isinstance(asked, Asked)
        else (
            1 <= asked.max_tokens <= SETTINGS.max_new_tokens
            and 0 <= asked.temperature <= 2
            and (asked.prompt or asked.messages)
        )
    )
    labelled = outcome(lambda: embedding.read_request({"body": body}, 0, LABELS))
    assert (
        refusal(labelled)
        if not isinstance(labelled, embedding.Asked)
        else (1 <= len(labelled.texts) <= 3 and all(text.strip() for text in labelled.texts))
    )
    for read_body in (text_generation.json_object, embedding.json_object):
        found = outcome(lambda read=read_body: read(bytearray(raw)))
        assert isinstance(found, dict) or refusal(found)


MISTAKES: list[tuple[Any, int, str]] = [
    (b"", 400, "empty"),
    (b"\xff\xfe{}", 400, "UTF-8"),
    ("[" * 100_000, 400, "not JSON"),
    ([{"prompt": "hi"}], 422, "a list"),
    ({}, 422, "'prompt' must be a text, not missing"),
    ({"prompt": ""}, 422, "'prompt' is empty"),
    ({"prompt": 7}, 422, "a number"),
    ({"prompt": "\ud83d"}, 422, "half of a character"),
    ({"prompt": "hi", "max_tokens": 0}, 422, "from 1 to 50"),
    ({"prompt": "hi", "max_tokens": 51}, 422, "51"),
    ({"prompt": "hi", "max_tokens": "9"}, 422, "whole number, not a text"),
    ({"prompt": "hi", "max_tokens": True}, 422, "whole number, not true or false"),
    ({"prompt": "hi", "temperature": -0.1}, 422, "from 0 to 2"),
    ({"prompt": "hi", "temperature": float("nan")}, 422, "nan"),
    ({"prompt": "hi", "seed": -1}, 422, "seed"),
    ({"prompt": "hi", "stream": "yes"}, 422, "true or false"),
    ({"prompt": "hi", "stream_options": []}, 422, "stream_options"),
    ({"prompt": "hi", "model": "another"}, 404, "another"),
    ({"prompt": "hi", "top_p": 0.5}, 422, "top_p"),
    ({"prompt": "hi", "n": 2}, 422, "'n'"),
    ({"messages": []}, 422, "at least 1"),
    ({"messages": [{"role": "robot", "content": "hi"}]}, 422, "role"),
]


def test_each_mistake_has_its_status_and_its_words() -> None:
    """What is wrong is named, with the limit where there is one; a path that no client of OpenAI's uses is a 404 which
    names those that are there."""
    mistakes = [(*mistake, PLAIN) for mistake in MISTAKES]
    for body, status, says, route in [*mistakes, ({"prompt": "hi"}, 404, "v1/chat/completions", "v1/embeddings")]:
        error = outcome(lambda body=body, route=route: read(body, route))
        assert (error.status, says in str(error)) == (status, True), str(error)


def test_each_route_reads_its_own_form() -> None:
    """A completion's prompt stays as it is; on the plain route it becomes a user's message; a chat has messages."""
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    completion, plain = read({"prompt": "Hi"}, COMPLETIONS), read({"prompt": "Hi"})
    assert (completion.prompt, completion.messages, completion.max_tokens) == ("Hi", (), 16)
    assert (plain.prompt, plain.messages) == ("", ({"role": "user", "content": "Hi"},))
    asked = read({"messages": chat, "max_completion_tokens": 7, "max_tokens": 9, "n": 1, "user": None}, CHAT)
    assert (list(asked.messages), asked.max_tokens) == (chat, 7)


def row(*, route: str = PLAIN, **changes: Any) -> Row:
    """A row in a batch, of at most five tokens."""
    sampling = {"temperature": 0.0, "seed": None, "ignore_eos": False, "stream": True, "include_usage": True}
    asked = Asked(route=route, prompt="Hi", **{"max_tokens": 5, **sampling, **changes})
    return Row(index=0, asked=asked, prompt_ids=[1, 2], head={"id": "x"})


@given(tokens=st.lists(st.integers(0, 9), min_size=1, max_size=12), ignore=st.booleans(), limit=st.integers(1, 8))
def test_a_row_ends_by_itself(tokens: list[int], ignore: bool, limit: int) -> None:
    """Each row takes tokens up to the first end (0), unless it ignores it, or to its own limit."""
    one = row(ignore_eos=ignore, max_tokens=limit)
    for token in tokens:
        one.take(token, frozenset({0}))
    expected = tokens[:limit]
    if 0 in expected and not ignore:
        expected = expected[: expected.index(0) + 1]
    ended = len(expected) == limit or (0 in expected and not ignore)
    assert one.written == expected
    assert (one.finish_reason is not None) == ended
    assert one.usage["completion_tokens"] == len(expected)


@given(text=st.text(min_size=1, max_size=20), route=ROUTES, usage=st.booleans())
def test_the_pieces_of_a_stream_make_up_the_answer(text: str, route: str, usage: bool) -> None:
    """Whatever the text, its streamed pieces joined are the text, the end comes once, and the usage if it is wanted."""
    one = row(route=route, include_usage=usage)
    sent = [text_generation.stream_events(one, text[:end]) for end in range(len(text))]
    one.written, one.finish_reason = [7] * 5, "length"
    sent += [text_generation.stream_events(one, text), text_generation.stream_events(one, text)]
    lines = [line.removeprefix("data: ") for line in "".join(sent).split("\n\n") if line]
    events = [json.loads(line) for line in lines[:-1]]
    assert lines[-1] == "[DONE]"
    assert lines.count("[DONE]") == 1
    assert "".join(piece(event) for event in events) == text
    assert [event["usage"]["completion_tokens"] for event in events if "usage" in event] == [5] * usage


def piece(event: dict[str, Any]) -> str:
    """The text that an event of any route brings."""
    (choice,) = event.get("choices", [event]) or [{"text": ""}]
    return str(choice.get("delta", {}).get("content", choice.get("text", "")))


def test_half_of_a_character_waits() -> None:
    """A token that ends within a character adds nothing to the stream until the rest is there."""
    one = row()
    assert text_generation.stream_events(one, "caf\ufffd") == ""
    assert piece(json.loads(text_generation.stream_events(one, "café").removeprefix("data: "))) == "café"


def test_the_sleep_handler_follows_its_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of n sleeps fixed_s + per_row_s * n once, and every row learns n and the version; with a fail_share of 0
    every row is answered, with one of 1 every row gets a 500."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    for share, failed in ((0, 0), (1, 4)):
        context = Context(4)
        context.model_yaml_config["handler"]["fail_share"] = share
        handler = sleep.SleepHandler()
        handler.initialize(context)
        answers = handler.handle([{}] * 4, context)
        assert slept == [3, pytest.approx(0.24)]
        assert len(answers) == 4
        assert context.status == dict.fromkeys(range(failed), 500)
        if not failed:
            assert {(row["rows"], row["version"]) for row in map(json.loads, answers)} == {(4, "2.0")}
            assert len(context.kinds) == 4
        slept.clear()


class Writer:
    """Stands for the model: writes "a", "b", "c", ... to everybody, and breaks on the prompt "boom"."""

    def tokens(self, asked: Asked, _limit: int) -> list[int]:
        if asked.prompt == "boom":
            raise RuntimeError("the tokenizer broke")
        return [1]

    def text(self, row: Row) -> str:
        return "".join(chr(ord("a") + token) for token in row.written)

    def write(self, rows: list[Row], after_step: Callable[[], None]) -> None:
        """A token of each row in a step, until the longest is complete."""
        for token in range(max(row.asked.max_tokens for row in rows)):
            for row in rows:
                row.take(token, frozenset())
            after_step()


class Context:
    """What a handler uses of TorchServe's context, noted."""

    def __init__(self, rows: int) -> None:
        self.model_yaml_config: dict[str, Any] = {"handler": {"fixed_s": 0.2, "per_row_s": 0.01, "load_s": 3}}
        self.manifest = {"model": {"modelVersion": "2.0"}}
        self.request_ids = {index: f"id-{index}" for index in range(rows)}
        self.status: dict[int, int] = {}
        self.kinds: dict[int, str] = {}
        self.metrics = SimpleNamespace(add_counter=lambda *_: None, add_metric=lambda *_, **__: None)
        self.set_response_content_type = self.kinds.__setitem__

    def get_request_header(self, _index: int, _name: str) -> str:
        return "/v1/completions"

    def set_response_status(self, *, code: int, phrase: str, idx: int) -> None:
        assert phrase.isascii()  # it goes into the HTTP head as it is
        self.status[idx] = code


def test_each_row_of_a_batch_gets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams, whole answers, a refusal and a breakdown share a batch: each gets its own, and each stream its pieces
    as they come, no more after its end."""
    sent: list[dict[int, str]] = []

    def send(events: dict[int, str], ids: dict[int, str], *_: Any) -> None:
        assert ids == {index: f"id-{index}" for index in events}
        sent.append(events)

    monkeypatch.setitem(sys.modules, "ts.handler_utils.utils", SimpleNamespace(send_intermediate_predict_response=send))
    enum = SimpleNamespace(MetricTypes=SimpleNamespace(HISTOGRAM=None))
    monkeypatch.setitem(sys.modules, "ts.metrics.metric_type_enum", enum)
    service = object.__new__(text_generation.Service)
    service.name, service.settings, service.writer = "m", SETTINGS, Writer()  # type: ignore[assignment]
    bodies: list[dict[str, Any]] = [
        {"prompt": "x", "max_tokens": 2, "stream": True},
        {"prompt": "x", "max_tokens": 4},
        {"prompt": ""},
        {"prompt": "boom"},
        {"prompt": "x", "max_tokens": 3, "stream": True},
    ]
    context = Context(len(bodies))
    answers = service.answer([{"body": body} for body in bodies], context)
    assert context.status == {2: 422, 3: 500}
    assert "broke" not in answers[3]
    assert json.loads(answers[1])["choices"][0]["text"] == "abcd"
    assert [sorted(events) for events in sent] == [[0, 4], [0, 4], [4]]
    kinds = [context.kinds[index].partition("/")[2] for index in (0, 1, 4)]
    assert kinds == ["event-stream", "json", "event-stream"]
    for index, text in ((0, "ab"), (4, "abc")):
        lines = "".join(events.get(index, "") for events in sent).replace("data: ", "").split("\n\n")
        assert "".join(piece(json.loads(line)) for line in lines[:-2]) == text
        assert lines[-2:] == ["[DONE]", ""]
        assert answers[index] == "\n"
