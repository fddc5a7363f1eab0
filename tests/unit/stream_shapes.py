"""Streams as servers and gateways send them, each with what a client must make of it.

The answer is "Hello world", asked for with a limit of 8 tokens, unless the shape is about something else."""

import json
from dataclasses import dataclass
from typing import Any

Piece = bytes | float
UNKNOWN = -1  # tokens that the client must not state


def event(data: Any, end: str = "\n\n", prefix: str = "data: ") -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"{prefix}{text}{end}".encode()


def delta(content: Any = None, reason: Any = None, **fields: Any) -> dict[str, Any]:
    """A chunk of a chat."""
    said = fields if content is None else {"content": content, **fields}
    return {"id": "c", "choices": [{"index": 0, "delta": said, "finish_reason": reason}]}


def usage(output: Any = 2, prompt: Any = 5, **more: Any) -> dict[str, Any]:
    """The last chunk, with the usage."""
    return {"id": "c", "choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": output, **more}}


HELLO, WORLD, STOP = delta("Hello"), delta(" world"), delta(reason="stop")
DONE = event("[DONE]")
CUT = -1.0  # the connection is cut
GAP_S = 0.005
FIRST_S = 0.06


def stream(*chunks: Any) -> tuple[Piece, ...]:
    """Events with pauses between them, the usage and [DONE] at the end."""
    return (*(piece for chunk in chunks for piece in (GAP_S, event(chunk))), event(usage()), DONE)


@dataclass(frozen=True)
class Shape:
    """A stream and what is right for it: outcome, tokens (UNKNOWN: none may be stated), text, a part of the error, a
    part of a warning, and bounds of TTFT in seconds."""

    source: str
    pieces: tuple[Piece, ...]
    outcome: str = "ok"
    tokens: int = 2
    text: str = "Hello world"
    error: str = ""
    warning: str = ""
    ttft_from_s: float = 0.0
    content_type: str = "text/event-stream"


WHOLE = {"choices": [{"message": {"content": "Hello world"}, "finish_reason": "stop"}], "usage": usage()["usage"]}
HI = (event(HELLO), GAP_S, event(WORLD))
ENDED = (event(STOP), event(usage()), DONE)
EMOJI = event(delta("h\u00e9llo \U0001f600"))
OLD_ERROR = {"object": "error", "message": "engine died", "code": 50002}
PARTS = [{"type": "text", "text": "Hello"}, {"type": "text", "text": " world"}]
THOUGHT = delta([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}])

SHAPES: dict[str, Shape] = {
    # read
    "normal": Shape("S01", (*HI, *ENDED)),
    "usage in each chunk": Shape("S03 ogx#5122, sglang#12241", stream({**HELLO, "usage": usage(1)["usage"]}, WORLD)),
    "azure's empty choices": Shape(
        "S06", (event({"choices": [], "prompt_filter_results": []}), FIRST_S, *HI, *ENDED), ttft_from_s=FIRST_S
    ),
    "no blank, CRLF": Shape(
        "S07 openai-python#498", tuple(event(c, "\r\n\r\n", "data:") for c in (HELLO, WORLD, STOP, usage(), "[DONE]"))
    ),
    "comments": Shape(
        "S08 dive#206", (b": OPENROUTER PROCESSING\n\n", FIRST_S, *HI, b":\n\n", *ENDED), ttft_from_s=FIRST_S
    ),
    "empty data keep-alive": Shape(
        "S09 llm-gateway#2053, opencode#50871", (b"data:\n\n", b"data: \n\n", FIRST_S, *HI, *ENDED), ttft_from_s=FIRST_S
    ),
    "objects as keep-alive": Shape(
        "S09", (event({}), event({"type": "ping"}), event("null"), FIRST_S, *HI, *ENDED), ttft_from_s=FIRST_S
    ),
    "a word as keep-alive": Shape("S09", (event("ping"), *HI, *ENDED), warning="no chunk was skipped"),
    "role alone first": Shape(
        "S12 OmniRoute#7136", (event(delta(role="assistant")), FIRST_S, *HI, *ENDED), ttft_from_s=FIRST_S
    ),
    "empty finish reasons": Shape(
        "empty reasons", (event(delta("Hello", "")), GAP_S, event(delta(" world", "")), *ENDED)
    ),
    "tool calls": Shape(
        "S19",
        stream(delta(tool_calls=[{"index": 0, "function": {"arguments": "{"}}]), delta(reason="tool_calls")),
        text="",
    ),
    "a null choice and delta": Shape(
        "S23", stream(HELLO, {"choices": [None]}, {"choices": [{"delta": None}]}, {"choices": None}, WORLD, STOP)
    ),
    "content parts": Shape("S24 hermes-agent#4748", stream(delta(PARTS[:1]), delta(PARTS[1:]), STOP)),
    "thinking parts": Shape("llm-mistral#39", stream(THOUGHT, HELLO, WORLD, STOP)),
    "float usage": Shape("float usage", (*HI, event(STOP), event(usage(2.0, 5.0)), DONE)),
    "usage, then null": Shape(
        "usage null last", (*HI, event(STOP), event(usage()), event({"choices": [], "usage": None}), DONE)
    ),
    "a split character": Shape(
        "cut UTF-8",
        (EMOJI[:-12], GAP_S, EMOJI[-12:-8], GAP_S, EMOJI[-8:], event(WORLD), *ENDED),
        text="h\u00e9llo \U0001f600 world",
    ),
    "no blank lines between": Shape(
        "single line ends", (*(event(c, "\n") for c in (HELLO, WORLD, STOP, usage(), "[DONE]")),)
    ),
    "a line of 3 MB": Shape("long lines", (event({**HELLO, "prompt": "x" * 3_000_000}), event(WORLD), *ENDED)),
    "ends in a reason, no [DONE]": Shape("no [DONE]", (*HI, event(STOP), event(usage()))),
    "a byte order mark": Shape("BOM", (b"\xef\xbb\xbf" + HI[0], *HI[1:], *ENDED)),
    "a cut after [DONE]": Shape("closed hard", (*HI, *ENDED, CUT)),
    # doubted
    "open after [DONE]": Shape("never closed", (*HI, *ENDED, 5.0), warning="after their last token"),
    "reasoning left out of usage": Shape(
        "xAI, Gemini", (*HI, event(STOP), event(usage(2, total_tokens=99)), DONE), warning="reasoning are left out"
    ),
    "no usage": Shape("S02 vllm#5708", (*HI, event(STOP), DONE), tokens=UNKNOWN, warning="usage"),
    "usage of zero": Shape("usage zero", (*HI, event(STOP), event(usage(0, 0)), DONE), tokens=UNKNOWN, warning="usage"),
    "ignores the limit": Shape(
        "S21 llama-cpp-python#1907",
        (*HI, event(STOP), event(usage(5000)), DONE),
        tokens=5000,
        warning="5,000 tokens where 8 were the limit",
    ),
    "ignores the limit, no usage": Shape(
        "S21", (*HI * 20, event(STOP), DONE), tokens=UNKNOWN, text="Hello world" * 20, warning="8 were the limit"
    ),
    "all in one chunk": Shape(
        "one chunk", (FIRST_S, event(delta("Hello world", "stop")), event(usage(2)), DONE), warning="all at once"
    ),
    "a burst": Shape(
        "fake stream",
        (FIRST_S, b"".join(event(delta(str(k))) for k in range(8)), event(STOP), event(usage(8)), DONE),
        tokens=8,
        text="01234567",
        warning="all at once",
    ),
    "usage of one chunk": Shape(
        "usage is no sum",
        (*HI * 4, event(STOP), event(usage(1)), DONE),
        tokens=1,
        text="Hello world" * 4,
        warning="fewer tokens",
    ),
    "no text": Shape(
        "empty answer",
        (event(delta("")), event(STOP), event(usage(1)), DONE),
        tokens=1,
        text="",
        warning="no token that shows",
    ),
    "reasoning alone": Shape(
        "S04 guidellm#737",
        stream(delta(reasoning_content="hm"), delta(reasoning="so"), delta(reason="length")),
        text="",
        warning="inside their reasoning",
    ),
    # refused by name
    "an error, then [DONE]": Shape(
        "S13 guidellm#743", (*HI, event({"error": {"message": "engine died"}}), DONE), "http_error", error="engine died"
    ),
    "an error in the middle": Shape(
        "S14 vllm#40986", (event(HELLO), event({"error": "engine died"})), "http_error", error="engine died"
    ),
    "an error event": Shape(
        "S15", (event(HELLO), b'event: error\ndata: "engine died"\n\n'), "http_error", error="engine died"
    ),
    "an error field": Shape(
        "llama.cpp#14566",
        (event(HELLO), b'error: {"code": 500, "message": "engine died"}\n\n', DONE),
        "http_error",
        error="engine died",
    ),
    "an error object": Shape(
        "FastChat, vLLM before 0.10", (event(HELLO), event(OLD_ERROR), DONE), "http_error", error="engine died"
    ),
    "an error code": Shape(
        "TorchServe",
        (event(HELLO), event({"code": 500, "type": "InternalServerException", "message": "engine died"}), DONE),
        "http_error",
        error="engine died",
    ),
    "an error detail": Shape("FastAPI", (event({"detail": "engine died"}), DONE), "http_error", error="engine died"),
    "an error in words": Shape(
        "plain text", (event(HELLO), event("Error: engine died"), DONE), "http_error", error="engine died"
    ),
    "a bare error": Shape(
        "gateways", (event(HELLO), b'{"error": {"message": "engine died"}}\n', DONE), "http_error", error="engine died"
    ),
    "an error as the whole": Shape(
        "200 with an error",
        (b'{"error": {"message": "engine died"}}',),
        "http_error",
        error="engine died",
        content_type="application/json",
    ),
    "an error reason": Shape(
        "vllm#40986", (event(HELLO), event(delta("", "error")), DONE), "http_error", error="'error'"
    ),
    "an aborted answer": Shape(
        "SGLang", (event(HELLO), event(delta("", "abort")), event(usage()), DONE), "http_error", error="'abort'"
    ),
    "an error in the choice": Shape(
        "OpenRouter",
        (
            event(HELLO),
            event({"choices": [{"delta": {}, "finish_reason": "error", "error": {"message": "engine died"}}]}),
            DONE,
        ),
        "http_error",
        error="engine died",
    ),
    "[DONE] alone": Shape("S16 vllm#40978", (DONE,), "malformed", error="no content chunk"),
    "keep-alives alone": Shape("S16", (event({}), DONE), "malformed", error="no content chunk"),
    "cut short": Shape("S17 litellm#39748", HI, "malformed", error="without [DONE]"),
    "half a chunk": Shape("S17", (event(HELLO), b'data: {"choices": [{"del'), "malformed", error="cannot be read"),
    "a whole answer": Shape(
        "S30 LiteLLM", (event(WHOLE)[6:],), "malformed", error="application/json", content_type="application/json"
    ),
    "a page": Shape(
        "a proxy", (b"<html><body>Sign in</body></html>",), "malformed", error="text/html", content_type="text/html"
    ),
    "what JSON forbids": Shape(
        "NaN, half a character",
        (event('{"choices": [{"delta": {"content": "Hello"}, "logprobs": NaN}]}'), *HI[1:], *ENDED),
        "malformed",
        error="cannot be read",
    ),
    "half a character in bytes": Shape(
        "bytes",
        (b'data: {"choices": [{"delta": {"content": "a\xf0\x9f"}}]}\n\n', *HI, *ENDED),
        "malformed",
        error="cannot be read",
    ),
    "choices of another kind": Shape(
        "other protocols", (event({"choices": "Hello"}), DONE), "malformed", error="cannot be read"
    ),
}
