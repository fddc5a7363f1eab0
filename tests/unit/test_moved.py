"""The handler that moved to Ray Serve reads, refuses and answers as the handler does; no server runs here."""

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")

from applications import moved
from tests.unit.torchserve_worker import TEXT, scripted_model


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """What runs in a replica: the class as it is written, inside what `serve.ingress` made of it."""
    deployment: Any = moved.Moved
    written = next(base for base in deployment.func_or_class.__mro__[::-1] if base.__module__ == moved.__name__)
    batch = written.write.__wrapped__  # what `serve.batch` calls

    async def alone(self: Any, row: Any) -> Any:
        """A batch of one."""
        return (await batch(self, [row]))[0]

    alone.set_max_batch_size = alone.set_batch_wait_timeout_s = lambda _: None  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(written, "write", alone)
        folder = scripted_model(tmp_path_factory.mktemp("model"))
        yield written("chat", {"model_path": str(folder), "max_new_tokens": 20})


async def ask(replica: Any, route: str, raw: bytes) -> tuple[int, Any]:
    """One request."""

    async def body() -> bytes:
        return raw

    answer = await replica.answer(route, SimpleNamespace(body=body))
    return answer.status_code, json.loads(answer.body)


async def test_each_route_answers(replica: Any) -> None:
    """The text of the model, in the form of the route."""
    status, completion = await ask(replica, "v1/completions", b'{"model": "chat", "prompt": "Hi", "max_tokens": 20}')
    assert (status, completion["choices"][0]["text"], completion["object"]) == (200, TEXT, "text_completion")
    for route in ("", "v1/chat/completions"):
        status, chat = await ask(replica, route, b'{"messages": [{"role": "user", "content": "Hi"}]}')
        assert (status, chat["choices"][0]["message"]["content"], chat["model"]) == (200, TEXT, "chat")
    assert [model["id"] for model in (await replica.models())["data"]] == ["chat"]


MISTAKES = [
    (b"{", "", 400, "not JSON"),
    (b'{"prompt": 7}', "", 422, "prompt"),
    (b'{"prompt": "a", "max_tokens": -1}', "v1/completions", 422, "max_tokens"),
    (b'{"model": "other", "prompt": "a"}', "v1/completions", 404, "other"),
    (b'{"prompt": "a"}', "v1/embeddings", 404, "no route"),
    (b'{"prompt": "a", "stream": true}', "", 422, "streams have not been moved"),
]


async def test_what_a_client_does_wrong_keeps_its_status(replica: Any) -> None:
    """The statuses are those of the handler on TorchServe, and a stream is refused, not sent whole."""
    for raw, route, status, says in MISTAKES:
        answered, body = await ask(replica, route, raw)
        assert (answered, says in body["error"]["message"]) == (status, True), body
