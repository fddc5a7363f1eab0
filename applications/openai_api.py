"""The part of OpenAI's protocol that a small server needs: request bodies, answers, and streams of chunks.

Reference: the OpenAI API, completions and chat completions; token counts are the server's (`usage`), a chunk may bring
several tokens. What a request asks for and the server cannot do (`top_p`, `n`, `stop`, `logprobs`, ...) is refused with
422, not ignored.
"""

import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Self

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, Field, model_validator


def whole_characters(text: str) -> str:
    """`text`, unless it holds half of a surrogate pair, which JSON can write and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half of a character") from None
    return text


Text = Annotated[str, AfterValidator(whole_characters)]
Tokens = Annotated[int, Field(ge=1, le=4096)]
# Values of other fields that change nothing; some clients send them always (`vllm bench serve` the repetition penalty).
NEUTRAL: dict[str, Any] = {
    "n": 1,
    "best_of": 1,
    "top_p": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "echo": False,
}


async def refused(_request: Request, error: Exception) -> JSONResponse:
    """422 for a body of the wrong form. FastAPI's own answer repeats the input, which JSON may not be able to hold."""
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    message = "; ".join(f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in problems)
    printable = message.encode("utf-8", "backslashreplace").decode()
    return JSONResponse({"error": {"message": printable[:1000], "type": "invalid_request_error", "code": 422}}, 422)


class StreamOptions(BaseModel, extra="forbid"):
    """What a stream brings besides text."""

    include_usage: bool = False


class Sampling(BaseModel, extra="allow"):
    """Fields that both APIs share. `ignore_eos` is an extension of vLLM's."""

    model: Text
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    ignore_eos: bool = False

    @model_validator(mode="after")
    def _asks_for_nothing_else(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if value is not None and not (name in NEUTRAL and value == NEUTRAL[name]):
                raise ValueError(f"{name!r} is not supported with this value, or not known")
        return self


class CompletionBody(Sampling):
    """POST /v1/completions."""

    prompt: Annotated[Text, Field(min_length=1)]
    max_tokens: Tokens = 16


class ChatMessage(BaseModel, extra="forbid"):
    """One message of a chat."""

    role: Text
    content: Text


class ChatBody(Sampling):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Tokens | None = None
    max_tokens: Tokens | None = None


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a model is asked: a text, or messages for its chat template. Plain data, fit to go between deployments."""

    prompt: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    max_tokens: int = 16
    temperature: float = 0.0
    seed: int | None = None
    ignore_eos: bool = False


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What an answer grows by; the counts are those of the whole answer so far."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None = None
    seconds: float = 0.0  # of a whole answer: what it took beside the engine


def question(body: CompletionBody | ChatBody) -> Question:
    """The question that a request's body asks."""
    if isinstance(body, CompletionBody):
        asked = Question(prompt=body.prompt, max_tokens=body.max_tokens)
    else:
        messages = tuple((message.role, message.content) for message in body.messages)
        asked = Question(messages=messages, max_tokens=body.max_completion_tokens or body.max_tokens or 64)
    return replace(asked, temperature=body.temperature, seed=body.seed, ignore_eos=body.ignore_eos)


def answer(body: CompletionBody | ChatBody, whole: Piece) -> dict[str, Any]:
    """A complete answer."""
    chat = isinstance(body, ChatBody)
    text = {"message": {"role": "assistant", "content": whole.text}} if chat else {"text": whole.text}
    choice = {"index": 0, **text, "finish_reason": whole.finish_reason}
    return {**_head(chat, stream=False), "model": body.model, "choices": [choice], "usage": usage(whole)}


async def events(body: CompletionBody | ChatBody, pieces: AsyncIterator[Piece]) -> AsyncIterator[str]:
    """The answer as server-sent events, ended by `data: [DONE]`."""
    chat = isinstance(body, ChatBody)
    head, last = {**_head(chat, stream=True), "model": body.model}, None
    async for last in pieces:
        text = {"delta": {"content": last.text}} if chat else {"text": last.text}
        yield _event({**head, "choices": [{"index": 0, **text, "finish_reason": last.finish_reason}]})
    if last is not None and body.stream_options.include_usage:
        yield _event({**head, "choices": [], "usage": usage(last)})
    yield "data: [DONE]\n\n"


def usage(whole: Piece) -> dict[str, int]:
    """Token counts as OpenAI names them."""
    total = whole.prompt_tokens + whole.completion_tokens
    return {
        "prompt_tokens": whole.prompt_tokens,
        "completion_tokens": whole.completion_tokens,
        "total_tokens": total,
    }


def _head(chat: bool, *, stream: bool) -> dict[str, Any]:
    kind = ("chat.completion" if chat else "text_completion") + (".chunk" if chat and stream else "")
    return {"id": f"cmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time())}


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"
