"""Parse the answers of OpenAI-compatible servers: streams of server-sent events, and whole answers.

Servers differ in details: comments, empty and keep-alive data lines, content as parts, separate reasoning, usage as
floats or in every chunk, errors in several forms. Unreadable data becomes an outcome or a note, never a number."""

import codecs
import contextlib
from itertools import accumulate
from typing import Any

import msgspec

from labkit.load.results import Outcome

FAILED_REASONS = (
    "error", "abort", "aborted", "cancelled", "timeout", "network_error", "insufficient_system_resource",
)  # fmt: skip
"""`finish_reason`s of answers that the server gave up."""
NO_REASONS = (None, "", "null")  # some servers send an empty reason, or the word, with each chunk
START_OF_REASONING, END_OF_REASONING = "<think>", "</think>"
"""Around the reasoning where the server does not separate it from the answer."""


# The fields read from a chunk or an answer; decoding skips all others.


class _Delta(msgspec.Struct, gc=False):
    content: Any = None  # a text, or a list of parts
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None
    function_call: Any = None
    refusal: Any = None


class _Choice(msgspec.Struct, gc=False):
    text: Any = None  # of completions
    delta: _Delta | None = None  # of a chat's chunk
    message: _Delta | None = None  # of a chat's whole answer
    finish_reason: Any = None
    error: Any = None  # OpenRouter's


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice | None] | None = None
    usage: Any = None
    error: Any = None
    error_code: Any = None  # FastChat's
    detail: Any = None  # FastAPI's
    message: Any = None  # TorchServe's, and vLLM's before 0.10


_decode = msgspec.json.Decoder(_Chunk).decode


def error_text(raw: bytes) -> str:
    """Return the message of an error body in OpenAI's, FastAPI's or TorchServe's form, else its first 300 bytes."""
    with contextlib.suppress(ValueError):
        message = msgspec.json.decode(raw)
        while isinstance(message, dict):
            message = message.get("error") or message.get("message") or message.get("detail")
        if message:
            return str(message)
    return raw[:300].decode("utf-8", "replace").strip()


def _token_count(value: Any) -> int | None:
    """Return a whole number above 0 (also one sent as a float), or None."""
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and value == int(value)
    return int(value) if whole else None


def _parts(content: Any) -> tuple[str, bool]:
    """Return the text of `content` (a string or a list of parts), and whether it has Mistral's thinking parts."""
    if isinstance(content, list):
        parts = [_parts(part) for part in content]
        return "".join(text for text, _ in parts), any(thinks for _, thinks in parts)
    if isinstance(content, dict):
        return ("", True) if content.get("thinking") else _parts(content.get("text"))
    return (content, False) if isinstance(content, str) else ("", False)


class Answer:
    """The received part of one answer, streamed or whole.

    `chunk_times` are arrivals of chunks with `choices`, starting at the first with a token: content, reasoning or a
    tool call. (vLLM's client starts at the first chunk with `choices`; other servers first send one with only the
    role.) `answer_time` is the arrival of the first token that is not reasoning."""

    def __init__(self) -> None:
        self.chunk_times: list[float] = []
        self.answer_time: float | None = None
        self.texts: list[str] = []
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.outcome = Outcome.OK
        self.error = ""
        self.notes: list[str] = []
        self.done = False  # received [DONE]
        self._ended = False  # received [DONE] or a finish_reason: the answer is complete
        self._text_times: list[float] = []  # arrivals of `texts`
        self._choices = 0  # chunks and answers with choices
        self._total_exceeds_sum = False  # usage: total_tokens > prompt_tokens + completion_tokens
        self._event = b""
        self._rest: list[bytes] = []  # of an incomplete line, which may be megabytes long

    def fail(self, outcome: Outcome, error: str) -> None:
        """Set `outcome`, unless an earlier failure has."""
        if self.outcome is Outcome.OK:
            self.outcome, self.error = outcome, error

    @property
    def text(self) -> str:
        """The answer without reasoning that the server sent separately."""
        return "".join(self.texts)

    # --- a stream ---

    def feed(self, received: bytes, now: float) -> None:
        """Parse the bytes that arrived at `now`, cut anywhere. Line ends are LF or CRLF."""
        self._rest.append(received)
        if b"\n" not in received:
            return
        *lines, rest = b"".join(self._rest).split(b"\n")
        self._rest = [rest] if rest else []
        for line in lines:
            self._line(line, now)

    def finish(self, content_type: str, now: float) -> None:
        """End the stream, and fail if it was not complete."""
        self._line(b"".join(self._rest), now)
        if self.outcome is not Outcome.OK:
            return
        if not self._choices:
            note = "".join(f"; {note}" for note in self.notes[:1])
            self.fail(Outcome.MALFORMED, f"no content chunk in an answer of type {content_type}{note}")
        elif not self._ended:
            self.fail(Outcome.MALFORMED, f"the stream ended after {self._choices} chunks without [DONE]")
        if self._total_exceeds_sum:
            self.notes.append("total_tokens exceeds prompt plus completion tokens: reasoning tokens are not counted")
        if END_OF_REASONING in self.text:
            self.answer_time = self._after_reasoning()
        elif self.text.lstrip().startswith(START_OF_REASONING):  # cut off before its end
            self.answer_time = None

    def _line(self, line: bytes, now: float) -> None:
        if line.startswith(b"data:"):
            if payload := line[5:].strip():
                self._payload(payload, now)
        elif not line or line == b"\r":
            self._event = b""
        elif line.startswith(b"event:"):
            self._event = line[6:].strip()
        elif line.startswith(b"error:"):  # llama.cpp
            self._fail_by_server(line[6:].strip())
        elif line.startswith(codecs.BOM_UTF8):
            self._line(line.removeprefix(codecs.BOM_UTF8), now)
        elif line.startswith(b"{"):  # a bare object, as some gateways send their errors
            with contextlib.suppress(ValueError):
                chunk = _decode(line)
                if not chunk.choices:
                    self._take(chunk, line, now)

    def _payload(self, payload: bytes, now: float) -> None:
        if payload == b"[DONE]":
            self.done = self._ended = True
        elif self._event == b"error":
            self._fail_by_server(payload)
        else:
            try:
                self._take(_decode(payload), payload, now)
            except ValueError as error:
                self._take_undecodable(payload, error)

    def _take_undecodable(self, payload: bytes, error: Exception) -> None:
        """Handle a data line that is not a chunk: malformed JSON, an error in plain text, or a keep-alive."""
        shown = repr(payload[:80].decode("utf-8", "replace"))
        if payload.startswith((b"{", b"[")):
            self.fail(Outcome.MALFORMED, f"the answer cannot be read: {shown}: {error}")
        elif b"error" in payload[:200].lower():
            self._fail_by_server(payload)
        elif payload != b"null":
            self.notes.append(f"skipped a data line that is not a chunk: {shown}")

    def _fail_by_server(self, payload: bytes) -> None:
        self.fail(Outcome.HTTP_ERROR, f"the server reported in its answer: {error_text(payload)}")

    # --- a chunk, or a whole answer ---

    def take_whole(self, raw: bytes, now: float) -> None:
        self._take(_decode(raw), raw, now)
        self.chunk_times, self.answer_time = [], None
        if not self._choices:
            self.fail(Outcome.MALFORMED, "the answer has no choices")

    def _take(self, chunk: _Chunk, payload: bytes, now: float) -> None:
        has_message = bool(chunk.detail) or isinstance(chunk.message, str)
        if chunk.error or chunk.error_code or (has_message and chunk.choices is None):
            self._fail_by_server(payload)
        choice = chunk.choices[0] if chunk.choices else None
        if choice is not None:
            self._take_choice(choice, payload, now)
        if isinstance(chunk.usage, dict):
            self._take_usage(chunk.usage)

    def _take_choice(self, choice: _Choice, payload: bytes, now: float) -> None:
        self._choices += 1
        part = choice.delta or choice.message
        text: Any = choice.text if part is None else part.content
        thinks = False
        if not isinstance(text, str):
            text, thinks = _parts(text)
        answers = bool(text)
        if part is not None and not answers:
            thinks = thinks or bool(part.reasoning_content or part.reasoning)
            answers = bool(part.tool_calls or part.function_call or part.refusal)
        if answers or thinks or self.chunk_times:
            self.chunk_times.append(now)
        if answers and self.answer_time is None:
            self.answer_time = now
        if text:
            self.texts.append(text)
            self._text_times.append(now)
        if choice.finish_reason not in NO_REASONS:
            self._ended = True
            if choice.error:
                self._fail_by_server(payload)
            elif choice.finish_reason in FAILED_REASONS:
                self.fail(Outcome.HTTP_ERROR, f"the answer ended with finish_reason {choice.finish_reason!r}")

    def _take_usage(self, usage: dict[str, Any]) -> None:
        """Keep the last usable numbers: some servers send a usage with each chunk."""
        self.input_tokens = _token_count(usage.get("prompt_tokens")) or self.input_tokens
        self.output_tokens = _token_count(usage.get("completion_tokens")) or self.output_tokens
        total = _token_count(usage.get("total_tokens")) or 0
        both = self.input_tokens is not None and self.output_tokens is not None
        self._total_exceeds_sum = both and total > (self.input_tokens or 0) + (self.output_tokens or 0)

    def _after_reasoning(self) -> float | None:
        """Return the first arrival of text after the reasoning; None without any."""
        text = self.text
        end = text.index(END_OF_REASONING) + len(END_OF_REASONING)
        lengths = accumulate(map(len, self.texts))
        blank = len(text[end:]) - len(text[end:].lstrip())
        return next((time for time, to in zip(self._text_times, lengths, strict=True) if to > end + blank), None)
