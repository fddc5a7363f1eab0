"""The OpenAI routes of the Ray applications: what cannot be done is refused in words, and never a 500."""

import json
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient

from applications.openai_api import ChatBody, CompletionBody, question, refused

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
COMPLETION = {"model": "m", "prompt": "hi"}
CONVERSATION = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def client() -> TestClient:
    """The bodies behind FastAPI, as an ingress has them, without Ray and without a model."""
    api = FastAPI()
    api.add_exception_handler(RequestValidationError, refused)

    @api.post(COMPLETIONS)
    async def completions(body: CompletionBody) -> dict[str, Any]:
        return {"tokens": question(body).max_tokens}

    @api.post(CHAT)
    async def chat(body: ChatBody) -> dict[str, Any]:
        return {"tokens": question(body).max_tokens}

    return TestClient(api)  # which raises what would be a 500


def send(client: TestClient, path: str, changes: dict[str, Any]) -> tuple[int, str]:
    """The status and the error's message."""
    body = json.dumps({**(CONVERSATION if path == CHAT else COMPLETION), **changes})
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    return answer.status_code, answer.json().get("error", {}).get("message", "")


REFUSED = [
    *({"temperature": value} for value in (float("nan"), float("inf"), -float("inf"), 2.1, -1, "hot", 10**400, [1])),
    *({"max_tokens": value} for value in (float("nan"), float("inf"), 0, -1, 1.5, 10**400)),
    *({"seed": value} for value in (float("nan"), 1.5, "x", 2**63, 10**400)),
    *({name: 3} for name in ("n", "best_of", "top_p", "logprobs", "top_logprobs", "presence_penalty", "logit_bias")),
    {"stop": "x"},
    {"stop": ["x"]},
    {"tools": []},
    {"response_format": {"type": "json_object"}},
    {"min_p": 0.1},
    {"logprobs": True},
    {"stream_options": {"continuous_usage_stats": True}},
    {"frobnicate": float("nan")},
    {"model": "\ud800"},
]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("changes", REFUSED, ids=str)
def test_what_cannot_be_done_is_refused(client: TestClient, path: str, changes: dict[str, Any]) -> None:
    """NaN, infinity, numbers out of range, half a surrogate pair, and every field that would have been ignored."""
    status, message = send(client, path, changes)
    assert status == 422
    name = next(iter(changes))
    assert name.encode("utf-8", "backslashreplace").decode() in message


def test_half_a_character_in_the_text_is_refused(client: TestClient) -> None:
    """JSON can write half of a surrogate pair, which no tokenizer takes."""
    for changes in ({"prompt": "a \ud800 b"}, {"\ud800": 1}):
        assert send(client, COMPLETIONS, changes)[0] == 422
    for message in ({"role": "user", "content": "\udfff"}, {"role": "\udfff", "content": "hi"}):
        assert send(client, CHAT, {"messages": [message]})[0] == 422


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_values_that_change_nothing_are_taken(client: TestClient, path: str) -> None:
    """Clients send defaults and nulls; an emoji is a whole character."""
    neutral = {"n": 1, "top_p": 1.0, "presence_penalty": 0.0, "repetition_penalty": 1.0, "stop": None, "logprobs": None}
    text = {"messages": [{"role": "user", "content": "\U0001f600"}]} if path == CHAT else {"prompt": "\U0001f600"}
    for changes in (neutral, text, {"temperature": 2, "seed": 7, "stream_options": {"include_usage": True}}):
        assert send(client, path, changes) == (200, "")
