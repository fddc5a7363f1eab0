"""What the OpenAI Python SDK expects of each server of `labkit serve`. A test module subclasses `OpenAIContract`.

    class TestOpenAI(OpenAIContract):
        refuses = {"n": "n", "tools": "tool"}  # field of UNUSUAL -> a word that the refusal's message contains

        @pytest.fixture(scope="class")
        @classmethod
        def served(cls, ...) -> Served:
            return Served(base_url=".../v1", api_key="...", model="...")

A server does what a request says or refuses it with a 4xx that names the field. It never ignores a field silently; an
exception must be named in `ignores`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import openai
import pytest

QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "Name three colours of the rainbow."}]
CLEAR = [{"role": "user", "content": "Say the days of the week in order."}]
"""An answer in which each token is at least 1 nat likelier than any other: of equally likely ones (16-bit logits have
such), greedy decoding and sampling choose different ones."""
PROMPT = "The three primary colours are"
TOKENS = 24
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]}]
BOOLEAN = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "boolean"}}}


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running server: `base_url` ends in /v1."""

    base_url: str
    api_key: str
    model: str


# Chat requests of which servers support only some: arguments, and the check of an answer that supports them.
UNUSUAL: dict[str, tuple[dict[str, Any], Callable[[Any], bool]]] = {
    "n": ({"n": 2, "temperature": 1.0}, lambda answer: len(answer.choices) == 2),
    "logprobs": (
        {"logprobs": True, "top_logprobs": 2},
        lambda answer: len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens,
    ),
    "response_format": (
        {"response_format": BOOLEAN},
        lambda answer: answer.choices[0].message.content.strip() in {"true", "false"},
    ),
    "logit_bias": (
        {"logit_bias": {"1234": 100}},
        lambda answer: len(set(answer.choices[0].message.content.split())) <= 2,
    ),
    "tools": ({"tools": [TOOL]}, lambda answer: answer.choices[0].message.tool_calls is not None),
    "image": ({"messages": IMAGE}, lambda answer: bool(answer.choices[0].message.content)),
    "frobnicate": ({"extra_body": {"frobnicate": 1}}, lambda _answer: False),
}


class OpenAIContract:
    """One conversation of a foreign client with a server."""

    refuses: ClassVar[dict[str, str]] = {}
    ignores: ClassVar[frozenset[str]] = frozenset()

    @pytest.fixture(scope="class")
    @classmethod
    def served(cls) -> Served:
        """The server under test."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def sdk(cls, served: Served) -> Iterator[openai.OpenAI]:
        """The SDK as a user makes it, without retries, which would hide a failure."""
        with openai.OpenAI(base_url=served.base_url, api_key=served.api_key, max_retries=0, timeout=120) as client:
            yield client

    @pytest.fixture
    def chat(self, sdk: openai.OpenAI, served: Served) -> Callable[..., Any]:
        """Ask the model; greedily and for at most `TOKENS` tokens unless an argument changes that."""

        def ask(messages: list[dict[str, Any]] = QUESTION, **options: Any) -> Any:
            arguments = {"model": served.model, "messages": messages, "max_tokens": TOKENS, "temperature": 0}
            return sdk.chat.completions.create(**{**arguments, **options})

        return ask

    @pytest.fixture
    def complete(self, sdk: openai.OpenAI, served: Served) -> Callable[..., Any]:
        """Continue a text, in the same way."""

        def ask(prompt: str = PROMPT, **options: Any) -> Any:
            arguments = {"model": served.model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
            return sdk.completions.create(**{**arguments, **options})

        return ask

    def test_models(self, sdk: openai.OpenAI, served: Served) -> None:
        """The list names the model that requests may name."""
        assert [model.id for model in sdk.models.list()] == [served.model]

    def test_chat(self, chat: Callable[..., Any], served: Served) -> None:
        """A whole answer: its identity, its text, why it ended, and its counts."""
        answer = chat(max_tokens=4)
        (choice,) = answer.choices
        assert (answer.object, answer.model, answer.id[:9]) == ("chat.completion", served.model, "chatcmpl-")
        assert (choice.index, choice.message.role, choice.finish_reason) == (0, "assistant", "length")
        assert choice.message.content
        assert answer.usage.completion_tokens == 4
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + 4 > 4
        assert chat(max_tokens=None, max_completion_tokens=4).choices[0].message.content == choice.message.content

    def test_completion(self, complete: Callable[..., Any], served: Served) -> None:
        """The same of a completion."""
        answer = complete(max_tokens=4)
        (choice,) = answer.choices
        assert (answer.object, answer.model, answer.id[:5]) == ("text_completion", served.model, "cmpl-")
        assert (choice.index, choice.finish_reason, answer.usage.completion_tokens) == (0, "length", 4)
        assert choice.text

    def test_streamed_chat(self, chat: Callable[..., Any]) -> None:
        """The role comes first, the reason last, the counts when asked for, and the text is that of a whole answer."""
        whole = chat()
        chunks = list(chat(stream=True, stream_options={"include_usage": True}))
        *texts, counts = chunks
        assert {chunk.id for chunk in chunks} == {chunks[0].id}
        assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
        assert texts[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in texts) == whole.choices[0].message.content
        assert [chunk.choices[0].finish_reason for chunk in texts[:-1]] == [None] * (len(texts) - 1)
        assert texts[-1].choices[0].finish_reason == whole.choices[0].finish_reason
        assert len(texts) > TOKENS // 2
        assert (counts.choices, counts.usage.total_tokens) == ([], whole.usage.total_tokens)
        assert all(chunk.usage is None for chunk in chat(stream=True))

    def test_streamed_completion(self, complete: Callable[..., Any]) -> None:
        """The text of a whole answer, in pieces; counts when asked for."""
        whole = complete()
        *texts, counts = complete(stream=True, stream_options={"include_usage": True})
        assert "".join(chunk.choices[0].text for chunk in texts) == whole.choices[0].text
        assert texts[-1].choices[0].finish_reason == whole.choices[0].finish_reason
        assert (counts.choices, counts.usage.total_tokens) == ([], whole.usage.total_tokens)

    def test_text_parts(self, chat: Callable[..., Any]) -> None:
        """A message in parts is the message; clients send either form."""
        whole, parts = chat(), chat([{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}])
        assert parts.choices[0].message.content == whole.choices[0].message.content
        assert parts.usage == whole.usage

    def test_stop(self, chat: Callable[..., Any], complete: Callable[..., Any]) -> None:
        """The answer ends before the stop string, streamed or not; a list of strings works as well as one."""
        text, continued = chat().choices[0].message.content, complete().choices[0].text
        word = text.split()[-2]
        cut = text[: text.index(word)]
        answer = chat(stop=word).choices[0]
        assert (answer.message.content, answer.finish_reason) == (cut, "stop")
        chunks = list(chat(stop=["never said", word], stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == cut
        assert chunks[-1].choices[0].finish_reason == "stop"
        word = continued.split()[-2]
        assert complete(stop=word).choices[0].text == continued[: continued.index(word)]

    def test_sampling(self, chat: Callable[..., Any]) -> None:
        """A tiny `top_p` leaves the likeliest token, so it equals greedy decoding; a seed repeats an answer."""
        greedy, likeliest = (
            chat(CLEAR, max_tokens=12, **options).choices[0].message.content
            for options in ({}, {"temperature": 1.0, "top_p": 1e-4, "seed": 1})
        )
        assert likeliest == greedy
        first, again, other = (
            chat(temperature=1.0, top_p=0.95, seed=seed).choices[0].message.content for seed in (5, 5, 6)
        )
        assert first == again != other

    def test_developer_role(self, chat: Callable[..., Any]) -> None:
        """The role that replaced `system` reaches the model: its tokens count."""
        short, long = (
            chat([{"role": "developer", "content": "Answer in French." * repeats}, *QUESTION]) for repeats in (1, 2)
        )
        assert short.choices[0].message.content
        assert long.usage.prompt_tokens >= short.usage.prompt_tokens + 3

    @pytest.mark.parametrize("field", UNUSUAL)
    def test_done_or_refused(self, chat: Callable[..., Any], field: str) -> None:
        """A request that not every server supports is carried out, or refused in words that name it."""
        arguments, carried_out = UNUSUAL[field]
        if field in self.refuses:
            with pytest.raises(openai.APIStatusError) as refused:
                chat(**arguments)
            assert 400 <= refused.value.status_code < 500
            assert self.refuses[field] in refused.value.message, refused.value.message
        else:
            assert carried_out(chat(**arguments)) is (field not in self.ignores)

    def test_unknown_model(self, chat: Callable[..., Any], complete: Callable[..., Any]) -> None:
        """404, with the name."""
        for ask in (chat, complete):
            with pytest.raises(openai.NotFoundError, match="another-model"):
                ask(model="another-model")

    def test_too_long(self, chat: Callable[..., Any]) -> None:
        """A prompt beyond the model's length is the client's mistake, streamed or not."""
        for stream in (False, True):
            with pytest.raises(openai.APIStatusError) as refused:
                chat([{"role": "user", "content": "word " * 10_000}], stream=stream)
            assert 400 <= refused.value.status_code < 500

    def test_wrong_key(self, sdk: openai.OpenAI, served: Served) -> None:
        """401 on every route that the SDK uses."""
        stranger = sdk.with_options(api_key="wrong")
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        with pytest.raises(openai.AuthenticationError):
            stranger.chat.completions.create(model=served.model, messages=[{"role": "user", "content": "Hi"}])
