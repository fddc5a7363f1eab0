"""Streams as servers and gateways send them, each with what a client must make of it.

The answer is "Hello world", asked for with a limit of 8 tokens, unless the shape is about something else. A name begins
with the report's number or the server that sends it."""

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


def used(*numbers: Any, **more: Any) -> tuple[Piece, ...]:
    """The whole answer with this usage."""
    return (*HI, event(STOP), event(usage(*numbers, **more)), DONE)


@dataclass(frozen=True)
class Shape:
    """A stream and what is right for it: outcome, tokens (UNKNOWN: none may be stated), text, a part of the error, a
    part of a warning, and bounds of TTFT in seconds."""

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
PARTS = [{"type": "text", "text": "Hello"}, {"type": "text", "text": " world"}]
THOUGHT = delta([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}])
TOOL = delta(tool_calls=[{"index": 0, "function": {"arguments": "{"}}])
DIED = {"message": "engine died"}
DIED_CHOICE = {"choices": [{"delta": {}, "finish_reason": "error", "error": DIED}]}

# Read without a warning.
READ: dict[str, tuple[Piece, ...]] = {
    "S01 normal": (*HI, *ENDED),
    "S03 usage in each chunk, ogx#5122, sglang#12241": stream({**HELLO, "usage": usage(1)["usage"]}, WORLD),
    "S07 no blank, CRLF": tuple(event(c, "\r\n\r\n", "data:") for c in (HELLO, WORLD, STOP, usage(), "[DONE]")),
    "S12 empty finish reasons": (event(delta("Hello", "")), GAP_S, event(delta(" world", "")), *ENDED),
    "S23 a null choice, delta and choices": stream(
        HELLO, {"choices": [None]}, {"choices": [{"delta": None}]}, {"choices": None}, WORLD, STOP
    ),
    "S24 content parts, hermes-agent#4748": stream(delta(PARTS[:1]), delta(PARTS[1:]), STOP),
    "S24 thinking parts, llm-mistral#39": stream(THOUGHT, HELLO, WORLD, STOP),
    "float usage": used(2.0, 5.0),
    "usage, then null": (*HI, event(STOP), event(usage()), event({"choices": [], "usage": None}), DONE),
    "no blank lines between": tuple(event(c, "\n") for c in (HELLO, WORLD, STOP, usage(), "[DONE]")),
    "a line of 3 MB": (event({**HELLO, "prompt": "x" * 3_000_000}), event(WORLD), *ENDED),
    "ends in a reason, no [DONE]": (*HI, event(STOP), event(usage())),
    "a byte order mark": (b"\xef\xbb\xbf" + HI[0], *HI[1:], *ENDED),
    "a cut after [DONE]": (*HI, *ENDED, CUT),
}
# What comes before the first token, and is none.
BEFORE: dict[str, tuple[bytes, ...]] = {
    "S06 azure's empty choices": (event({"choices": [], "prompt_filter_results": []}),),
    "S08 comments, dive#206": (b": OPENROUTER PROCESSING\n\n", b":\n\n"),
    "S09 empty data keep-alive, llm-gateway#2053": (b"data:\n\n", b"data: \n\n"),
    "S09 objects as keep-alive": (event({}), event({"type": "ping"}), event("null")),
    "S12 role alone, OmniRoute#7136": (event(delta(role="assistant")),),
    "S12 empty content": (event(delta("", role="assistant")), event(delta("", reasoning_content=""))),
}
# Errors of an engine that died, in every form.
ERRORS: dict[str, tuple[Piece, ...]] = {
    "S13 then [DONE], guidellm#743": (*HI, event({"error": DIED}), DONE),
    "S14 in the middle, vllm#40986": (event(HELLO), event({"error": "engine died"})),
    "S15 an event": (event(HELLO), b'event: error\ndata: "engine died"\n\n'),
    "llama.cpp#14566 a field": (event(HELLO), b'error: {"code": 500, "message": "engine died"}\n\n', DONE),
    "vLLM before 0.10": (event(HELLO), event({"object": "error", "code": 50002, **DIED}), DONE),
    "TorchServe": (event(HELLO), event({"code": 500, "type": "InternalServerException", **DIED}), DONE),
    "FastAPI": (event({"detail": "engine died"}), DONE),
    "FastChat": (event(HELLO), event({"error_code": 50001, **DIED}), DONE),
    "in words": (event(HELLO), event("Error: engine died"), DONE),
    "gateways, a bare object": (event(HELLO), b'{"error": {"message": "engine died"}}\n', DONE),
    "OpenRouter, in the choice": (event(HELLO), event(DIED_CHOICE), DONE),
}
# Not what the protocol says: a part of the error.
MALFORMED: dict[str, tuple[str, tuple[Piece, ...]]] = {
    "S16 [DONE] alone, vllm#40978": ("no content chunk", (DONE,)),
    "S16 keep-alives alone": ("no content chunk", (event({}), DONE)),
    "S17 cut short, litellm#39748": ("without [DONE]", HI),
    "S17 half a chunk": ("cannot be read", (event(HELLO), b'data: {"choices": [{"del')),
    "NaN": ("cannot be read", (event('{"choices": [{"delta": {"content": "a"}, "logprobs": NaN}]}'), *HI, *ENDED)),
    "half a character": ("cannot be read", (b'data: {"choices": [{"text": "a\xf0\x9f"}]}\n\n', *HI, *ENDED)),
    "choices of another kind": ("cannot be read", (event({"choices": "Hello"}), DONE)),
}

SHAPES: dict[str, Shape] = {
    **{name: Shape(pieces) for name, pieces in READ.items()},
    **{name: Shape((*pieces, FIRST_S, *HI, *ENDED), ttft_from_s=FIRST_S) for name, pieces in BEFORE.items()},
    **{name: Shape(pieces, "http_error", error="engine died") for name, pieces in ERRORS.items()},
    **{name: Shape(pieces, "malformed", error=said) for name, (said, pieces) in MALFORMED.items()},
    "S19 tool calls": Shape(stream(TOOL, delta(reason="tool_calls")), text=""),
    "a split character": Shape(
        (EMOJI[:-12], GAP_S, EMOJI[-12:-8], GAP_S, EMOJI[-8:], event(WORLD), *ENDED),
        text="h\u00e9llo \U0001f600 world",
    ),
    # read with a warning
    "S09 a word as keep-alive": Shape((event("ping"), *HI, *ENDED), warning="that is not a chunk"),
    "open after [DONE]": Shape((*HI, *ENDED, 5.0), warning="after their last token"),
    "reasoning left out of usage, xAI, Gemini": Shape(
        used(2, total_tokens=99), warning="reasoning tokens are not counted"
    ),
    "S02 no usage, vllm#5708": Shape((*HI, event(STOP), DONE), tokens=UNKNOWN, warning="usage"),
    "usage of zero": Shape(used(0, 0), tokens=UNKNOWN, warning="usage"),
    "half a token": Shape(used(2.5), tokens=UNKNOWN, warning="usage"),
    "S21 ignores the limit": Shape(used(5000), tokens=5000, warning="5,000 tokens instead of 8"),
    "S21 ignores the limit, no usage": Shape(
        (*HI * 20, event(STOP), DONE), tokens=UNKNOWN, text="Hello world" * 20, warning="instead of 8"
    ),
    "all in one chunk": Shape(
        (FIRST_S, event(delta("Hello world", "stop")), event(usage(8)), DONE), tokens=8, warning="in clumps"
    ),
    "after hidden reasoning": Shape((FIRST_S, event(delta("42", "stop")), event(usage(8)), DONE), tokens=8, text="42"),
    "a short answer in one chunk": Shape((FIRST_S, event(delta("Hello world", "stop")), event(usage(2)), DONE)),
    "a burst": Shape(
        (FIRST_S, b"".join([*(event(delta(str(k))) for k in range(8)), event(STOP), event(usage(8)), DONE])),
        tokens=8,
        text="01234567",
        warning="in clumps",
    ),
    "usage of one chunk": Shape((*HI * 3, *used(1)), tokens=1, text="Hello world" * 4, warning="fewer tokens"),
    "no text": Shape(
        (event(delta("")), event(STOP), event(usage(1)), DONE), tokens=1, text="", warning="no visible token"
    ),
    "S04 reasoning alone, guidellm#737": Shape(
        stream(delta(reasoning_content="hm"), delta(reasoning="so"), delta(reason="length")),
        text="",
        warning="inside their reasoning",
    ),
    "a thought that is cut off, llama.cpp#25292": Shape(
        stream(delta("<think>\n"), delta("so"), delta(reason="length")),
        text="<think>\nso",
        warning="inside their reasoning",
    ),
    # refused by name
    "DeepSeek gives up": Shape(
        (event(HELLO), event(delta("", "insufficient_system_resource")), DONE), "http_error", error="'insufficient"
    ),
    "an error as the whole": Shape(
        (b'{"error": {"message": "engine died"}}',), "http_error", error="died", content_type="application/json"
    ),
    "vllm#40986 an error reason": Shape((event(HELLO), event(delta("", "error")), DONE), "http_error", error="'error'"),
    "SGLang's aborted answer": Shape((event(HELLO), event(delta("", "abort")), DONE), "http_error", error="'abort'"),
    "S30 a whole answer, LiteLLM": Shape(
        (event(WHOLE)[6:],), "malformed", error="application/json", content_type="application/json"
    ),
    "a proxy's page": Shape((b"<html>Sign in</html>",), "malformed", error="text/html", content_type="text/html"),
}
