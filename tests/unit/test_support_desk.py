"""The support desk without Ray and without a model: what its routes send to the model, and what they answer."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from labkit.serving import gate, ray_serve

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
CONFIG = Path(__file__).resolve().parents[2] / "applications" / "serve_config.yaml"
KEY = "the-key"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PARTS = [{"type": "text", "text": "Where is"}, {"type": "text", "text": "my parcel?"}]


@pytest.fixture(scope="module")
def support_desk() -> Any:
    """The module, which imports Ray and vLLM."""
    ray_serve.prepare_environment()
    from applications import support_desk

    return support_desk


class Writer:
    """Stands in for the handle of LLMServer: keeps the requests, and answers with `items`, which must be picklable."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.items: list[Any] = []

    def options(self, *, stream: bool) -> "Writer":
        assert stream
        return self

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda request: self._answer(request))

    async def _answer(self, request: Any) -> AsyncIterator[Any]:
        from ray import cloudpickle

        self.requests.append(cloudpickle.loads(cloudpickle.dumps(request)))
        for item in self.items:
            yield item


@pytest.fixture
def writer() -> Writer:
    """The model."""
    return Writer()


@pytest.fixture
def client(support_desk: Any, writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """A client with the key, before the desk's own routes."""
    key_file = gate.write_key(tmp_path / "key", KEY)
    monkeypatch.setattr(support_desk.os, "environ", dict(os.environ))
    support_desk.api.middleware_stack = None
    bare = support_desk.Desk.func_or_class.__mro__[1]  # Ray Serve's wrapper needs a replica
    desk = bare(None, writer, "m", api_key_file=str(key_file), body_limit_bytes=2000)
    monkeypatch.setattr(support_desk.serve, "get_replica_context", lambda: SimpleNamespace(servable_object=desk))
    headers = {"Authorization": f"Bearer {KEY}"}
    return TestClient(support_desk.api, headers=headers)


def post(client: TestClient, path: str, body: dict[str, Any]) -> Any:
    """POST what only Python's JSON writes, too: NaN and half a surrogate pair."""
    return client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})


def chat(client: TestClient, **fields: Any) -> Any:
    """POST a chat with these fields."""
    return post(client, CHAT, {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields})


def answer(text: str) -> Any:
    """A whole answer, as LLMServer gives it."""
    from ray.serve.llm.openai_api_models import ChatCompletionResponse

    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return ChatCompletionResponse(model="m", choices=[choice], usage=usage)


def refusal(message: str, code: int) -> Any:
    """An error as vLLM's engine in Ray yields it: of the base class of the exported one."""
    from ray.serve.llm.openai_api_models import ErrorResponse

    return ErrorResponse.__mro__[1](error={"message": message, "type": "BadRequestError", "code": code})


def test_a_request_reaches_the_model_as_it_is(client: TestClient, writer: Writer) -> None:
    """Parts, `stop`, `top_p` and the developer role are vLLM's to carry out; the request survives pickling."""
    writer.items = [answer("soon")]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": PARTS}]
    response = chat(client, messages=messages, stop=["."], top_p=0.5, max_completion_tokens=7)
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "soon"
    (request,) = writer.requests
    assert request.messages == messages
    assert (request.stop, request.top_p, request.max_completion_tokens) == (["."], 0.5, 7)
    assert client.post(COMPLETIONS, json={"model": "m", "prompt": "Once", "stop": "."}).status_code == 200
    assert writer.requests[1].prompt == "Once"


def test_a_stream_is_passed_on(client: TestClient, writer: Writer) -> None:
    """LLMServer yields lists of events; the client gets the events."""
    writer.items = [["data: 1\n\n", "data: 2\n\n"], ["data: [DONE]\n\n"]]
    response = chat(client, stream=True)
    assert response.text == "data: 1\n\ndata: 2\n\ndata: [DONE]\n\n"
    assert response.headers["Content-Type"].startswith("text/event-stream")


@pytest.mark.parametrize("stream", [False, True])
def test_the_models_refusal_keeps_its_status(client: TestClient, writer: Writer, stream: bool) -> None:
    """Streamed or not, an error of the model is not a 200."""
    error = refusal("the prompt is too long", 400)
    writer.items = [[error] if stream else error]
    response = chat(client, stream=stream)
    assert (response.status_code, response.json()["error"]["message"]) == (400, "the prompt is too long")


def test_what_cannot_be_done_is_refused(client: TestClient, writer: Writer) -> None:
    """By name, before the model sees it; half a surrogate pair, which JSON can write and no tokenizer takes, too."""
    for fields, status in (
        ({"frobnicate": 1}, 422),
        ({"frobnicate": float("nan")}, 422),
        ({"messages": "hi"}, 422),
        ({"temperature": "hot"}, 422),
        ({"max_tokens": 1.5}, 422),
        ({"stream_options": {"include_usage": True}}, 400),
    ):
        response = chat(client, **fields)
        assert response.status_code == status, fields
        assert next(iter(fields)).partition("_")[0] in response.json()["error"]["message"]
    for path, body in (
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": "half \ud800"}]}),
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "\udfff"}]}]}),
        (COMPLETIONS, {"model": "m", "prompt": "half \ud800"}),
        ("/write", {"text": "half \ud800"}),
    ):
        assert post(client, path, body).status_code == 422, (path, body)
    assert writer.requests == []


def test_a_ticket_asks_the_model_twice(
    client: TestClient, writer: Writer, support_desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other or at once: a reply, and a summary for a colleague."""

    async def classified(text: str) -> str:
        return f"about {text}"

    desk = support_desk.serve.get_replica_context().servable_object
    monkeypatch.setattr(desk, "classifier", SimpleNamespace(classify=SimpleNamespace(remote=classified)))
    writer.items = [answer(" soon ")]
    for path in ("/chain", "/parallel"):
        ticket = client.post(path, json={"text": "a parcel", "max_tokens": 9}).json()
        assert ticket == {"intent": "about a parcel", "reply": "soon", "summary": "soon"}
    asked = {(request.messages[0]["content"], request.max_tokens) for request in writer.requests}
    assert asked == {(support_desk.REPLY, 9), (support_desk.SUMMARY, 9)}
    writer.items = [refusal("too long", 400)]
    assert client.post("/write", json={"text": "a parcel"}).status_code == 400


def test_every_route_asks_for_the_key(client: TestClient, support_desk: Any) -> None:
    """FastAPI's own pages too; a body beyond the limit is refused with the key as well."""
    for route in support_desk.api.routes:
        for path in {getattr(route, "path", "/docs")}:
            response = client.request("POST", path, headers={"Authorization": "Bearer wrong"}, json={"text": "hi"})
            assert response.status_code == 401, path
    assert client.post("/classify", content=b" " * 3000).status_code == 413
    with pytest.raises(FileNotFoundError):
        support_desk.Desk.func_or_class.__mro__[1](None, Writer(), "m", api_key_file="nowhere")


def test_the_classifier_does_not_block_the_loop(support_desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a batch is computed the replica's event loop runs: its health check and new requests are answered."""
    import threading

    began, finish = threading.Event(), threading.Event()

    def intents(texts: list[str]) -> list[str]:
        began.set()
        assert finish.wait(10)
        return texts

    async def classify() -> list[str]:
        classifier = object.__new__(support_desk.IntentClassifier.func_or_class)
        monkeypatch.setattr(classifier, "_intents", intents, raising=False)
        batched = type(classifier).classify.__wrapped__  # a batch's own function, behind @serve.batch
        classified = asyncio.create_task(batched(classifier, ["a"]))
        while not began.is_set():
            await asyncio.sleep(0.01)
        finish.set()  # reached only if the loop runs
        result: list[str] = await classified
        return result

    assert asyncio.run(asyncio.wait_for(classify(), 10)) == ["a"]


def test_the_config_file_has_the_settings(support_desk: Any) -> None:
    """Serve's schema and the desk's settings take applications/serve_config.yaml, which listens on loopback only."""
    from ray.serve.llm import LLMConfig
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    (desk,) = config.applications
    assert config.http_options.host == "127.0.0.1"
    assert desk.import_path == "applications.support_desk:build"
    settings = support_desk.DeskSettings(**desk.args)
    assert LLMConfig(**settings.llm).model_id == "smollm2-135m"
    assert {deployment.name for deployment in desk.deployments} <= {"Desk", "IntentClassifier", "Writer"}
