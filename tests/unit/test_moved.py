"""The handler that moved to Ray Serve reads and refuses what the handler does; neither a model nor Ray runs here."""

from typing import Any

import pytest

pytest.importorskip("ray")

from applications import moved
from handlers.text_generation import RequestError, Settings


class Tokens:
    """Stands for the model: one token a prompt."""

    def tokens(self, _asked: Any, _limit: int) -> list[int]:
        """Always the same."""
        return [7]


@pytest.fixture
def replica() -> Any:
    """What runs in a replica, with a stand-in for its model."""
    deployment: Any = moved.Moved
    written = [one for one in deployment.func_or_class.__mro__ if one.__module__ == moved.__name__][-1]
    found: Any = object.__new__(written)  # the class as it is written, inside what `serve.ingress` made of it
    found.name, found.settings, found.writer = "chat", Settings(model_path="."), Tokens()
    return found


def test_a_request_becomes_a_row(replica: Any) -> None:
    """The bytes of a body and the path become the handler's own row, ready to be written in a batch."""
    row = replica.row(b'{"model": "chat", "prompt": "hello", "max_tokens": 3}', "v1/completions")
    assert (row.index, row.prompt_ids, row.asked.max_tokens, row.asked.prompt) == (0, [7], 3, "hello")
    assert row.head["object"] == "text_completion"


MISTAKES = [
    (b"{", "", 400, "not JSON"),
    (b"", "", 400, "empty"),
    (b'{"prompt": 7}', "", 422, "must be a text"),
    (b'{"prompt": "a", "max_tokens": -1}', "v1/completions", 422, "from 1 to"),
    (b'{"model": "other", "prompt": "a"}', "v1/completions", 404, "no model"),
    (b'{"prompt": "a"}', "v1/embeddings", 404, "no route"),
    (b'{"prompt": "a", "stream": true}', "", 422, "streams have not been moved"),
]


def test_what_a_client_does_wrong_keeps_its_status(replica: Any) -> None:
    """The statuses are those of the handler on TorchServe, and a stream is refused, not sent whole."""
    for body, route, status, says in MISTAKES:
        with pytest.raises(RequestError, match=says) as caught:
            replica.row(body, route)
        assert caught.value.status == status
