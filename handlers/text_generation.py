"""Text generation for TorchServe 0.12, on its `BaseHandler`: one file to copy, for those who run TorchServe already.

TorchServe is archived (last release 2024-09, no security fixes). For anything new use vLLM: `vllm serve` has these
routes and none of the limits below.

    POST /predictions/NAME                          one of the next two: chat where the body has `messages`
    POST /predictions/NAME/1.0/v1/completions       OpenAI's completions: the prompt, unchanged
    POST /predictions/NAME/1.0/v1/chat/completions  OpenAI's chat completions: messages through the chat template
    GET  /predictions/NAME/1.0/v1/models            what is served (the version is required in these paths)

- Batches are static: one runs until its longest answer is complete, and requests that arrive meanwhile wait.
- TorchServe does not report a client that hangs up: its answer is generated to the end. `max_new_tokens` bounds that.
- `temperature` is 0 unless sent (OpenAI: 1). Without `max_tokens` a completion gets 16 tokens, a chat `max_new_tokens`.
- A field that `Body` below does not have (`n`, `tools`, `logprobs`, images, ...) is refused with 422 and its name.
- `generate` waits for the GPU once per token (`StopCheck` in transformers 5.19); the tokens are read at the same point.
"""

import http
import json
import logging
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import jinja2
import torch
import transformers
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.metrics.metric_type_enum import MetricTypes
from ts.torch_handler.base_handler import BaseHandler

# Unsupported fields with the values that change nothing: some clients always send them.
NEUTRAL = {"n": 1, "best_of": 1, "echo": False, "presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1}
GREEDY_BELOW = 1e-5  # a smaller temperature counts as 0, as in vLLM


class Settings(BaseModel, extra="forbid"):
    """The section `handler` of model-config.yaml. `dtype` "auto": the model's own on a GPU, float32 on a CPU."""

    model_path: str  # a Hugging Face folder, absolute or inside the archive
    dtype: str = "auto"
    threads: int = 1  # of torch, on a CPU
    max_prompt_tokens: int = 1024
    max_new_tokens: int = 256


class RequestError(Exception):
    """A request that is refused, with the status and the answer that its client gets."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.phrase = code, http.HTTPStatus(code).phrase
        self.answer = {"error": {"message": reason, "type": self.phrase, "param": None, "code": code}}


class Object(BaseModel, extra="forbid", strict=True):
    """A JSON object. null and neutral values count as not sent; any other unknown field is an error."""

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, sent: Any) -> Any:
        if not isinstance(sent, dict):
            return sent
        return {name: value for name, value in sent.items() if value is not None and value != NEUTRAL.get(name)}


class Part(Object):
    type: Literal["text"]
    text: str


class Message(Object):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[Part], BeforeValidator(lambda sent: [{"type": "text", "text": sent}] if isinstance(sent, str) else sent)
    ]


Text = Annotated[str, Field(min_length=1)]
Tokens = Annotated[int, Field(ge=1)]


class Body(Object):
    """What both APIs share. `ignore_eos` is vLLM's extension: the answer goes on to `max_tokens`."""

    model: str | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None  # its newer name
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63, default_factory=lambda: secrets.randbits(63))]
    stop: Annotated[list[Text], BeforeValidator(lambda sent: [sent] if isinstance(sent, str) else sent)] = []
    stream: bool = False
    stream_options: dict[Literal["include_usage"], bool] = {}
    ignore_eos: bool = False


class Completion(Body):
    prompt: Text


class Chat(Body):
    messages: Annotated[list[Message], Field(min_length=1)]


def parse(raw: Any, route: str) -> Completion | Chat:
    """Parse a body. TorchServe decodes application/json if it can; all else arrives as bytes or text."""
    try:
        sent = json.loads(raw or b"") if isinstance(raw, str | bytes | bytearray | None) else raw
        plain = Chat if isinstance(sent, dict) and "messages" in sent else Completion
        routes = {"": plain, "v1/completions": Completion, "v1/chat/completions": Chat}
        if route not in routes:
            raise RequestError(404, f"there is no route {route!r}; use v1/completions or v1/chat/completions")
        return routes[route].model_validate(sent)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        reason = "; ".join(f"{'.'.join(map(str, found['loc'])) or 'body'}: {found['msg']}" for found in problems)
        reason = reason.replace("Extra inputs are not permitted", "not supported, or not with this value")
        raise RequestError(422, reason[:1000]) from None
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON in UTF-8: {error}") from None


@dataclass(kw_only=True)
class Row:
    """A request in a batch, and its answer so far."""

    body: Completion | Chat
    prompt_ids: list[int]
    max_tokens: int
    head: dict[str, Any]  # what its answer, and each chunk of its stream, begins with
    index: int  # in the batch
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    window: tuple[int, int] = (0, 0)  # the tokens before the new ones that are decoded again: from, to
    sent: int = -1  # characters that its stream has sent; -1 before the first chunk

    def take(self, token: int, tokenizer: Any, ends: frozenset[int]) -> None:
        """Add a token, unless the answer is complete: the batch runs until its longest answer is."""
        if self.finish_reason:
            return
        self.ids.append(token)
        if token in ends and not self.body.ignore_eos:
            self.finish_reason = "stop"
        elif len(self.ids) == self.max_tokens:
            self.finish_reason = "length"
        start, known = self.window
        before = tokenizer.decode(self.ids[start:known], skip_special_tokens=True)
        now = tokenizer.decode(self.ids[start:], skip_special_tokens=True)
        # U+FFFD at the end is a part of a character: the rest comes with the next tokens, or never.
        if len(now) > len(before) and (self.finish_reason or not now.endswith("\ufffd")):
            self.window, old = (known, len(self.ids)), len(self.text)
            self.text += now[len(before) :]
            found = [self.text.find(stop, max(0, old - len(stop) + 1)) for stop in self.body.stop]
            if found := [place for place in found if place >= 0]:
                self.text, self.finish_reason = self.text[: min(found)], "stop"

    @property
    def usage(self) -> dict[str, int]:
        prompt, written = len(self.prompt_ids), len(self.ids)
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    def answer(self) -> dict[str, Any]:
        """Return the complete answer."""
        message = {"message": {"role": "assistant", "content": self.text}}
        choice = {"index": 0, **(message if isinstance(self.body, Chat) else {"text": self.text})}
        return {**self.head, "choices": [{**choice, "finish_reason": self.finish_reason}], "usage": self.usage}

    def events(self) -> str:
        """Return what its stream has not sent yet, as server-sent events. The start of a stop string is held back."""
        chat, done = isinstance(self.body, Chat), self.finish_reason is not None
        deltas = [{"role": "assistant", "content": ""}] if chat and self.sent < 0 else []
        self.sent = max(self.sent, 0)
        held = 0 if done else max(map(len, self.body.stop), default=1) - 1
        if new := self.text[self.sent : max(self.sent, len(self.text) - held)]:
            self.sent += len(new)
            deltas.append({"content": new})
        chunks: list[dict[str, Any]] = []
        for delta in [*deltas, {}] if done else deltas:  # the empty one carries the finish_reason
            choice = {"index": 0, **({"delta": delta} if chat else {"text": delta.get("content", "")})}
            chunks.append({"choices": [{**choice, "finish_reason": None if delta else self.finish_reason}]})
        if done and self.body.stream_options.get("include_usage"):
            chunks.append({"choices": [], "usage": self.usage})
        return "".join(f"data: {json.dumps(self.head | chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n" * done


class TextGenerationHandler(BaseHandler):  # type: ignore[misc]
    """A causal language model of Hugging Face that answers a batch with one call of `generate`."""

    def initialize(self, context: Any) -> None:
        """Load the model once, on the GPU that TorchServe chose for this worker."""
        self.name, self.settings = context.model_name, Settings(**context.model_yaml_config["handler"])
        gpu = context.system_properties.get("gpu_id") if torch.cuda.is_available() else None
        self.device = torch.device("cpu" if gpu is None else f"cuda:{gpu}")
        dtype = "float32" if self.settings.dtype == "auto" and gpu is None else self.settings.dtype
        torch.set_num_threads(self.settings.threads)
        path = os.path.join(context.system_properties["model_dir"], self.settings.model_path)
        model = transformers.AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype=dtype)
        self.model = model.to(self.device).eval()
        needed = self.settings.max_prompt_tokens + self.settings.max_new_tokens
        if needed > (has := getattr(model.config, "max_position_embeddings", needed)):
            raise ValueError(f"max_prompt_tokens and max_new_tokens need {needed} positions; the model has {has}")
        options = {"padding_side": "left", "clean_up_tokenization_spaces": False}
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, **options)
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.token_characters = max(map(len, self.tokenizer.get_vocab()))  # of the longest token
        ends = self.model.generation_config.eos_token_id
        self.ends = frozenset([ends] if isinstance(ends, int) else ends or [])
        # Each row has its own ends, length and temperature: the model's defaults would apply to all rows.
        self.model.generation_config = transformers.GenerationConfig(pad_token_id=self.tokenizer.pad_token_id)
        self.initialized = True

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[str]:
        """`BaseHandler.handle` would explain or describe the whole batch if its first request had such a header."""
        self.context = context
        rows = self.inference(self.preprocess(data))
        context.metrics.add_metric("BatchRows", len(rows), "count", metric_type=MetricTypes.HISTOGRAM)
        return self.postprocess(rows)

    def preprocess(self, data: list[dict[str, Any]]) -> list[Row | str]:
        """Return a row for each request, or its answer if nothing is generated: an error, or the list of models."""
        return [self.row_or_answer(sent.get("body", sent.get("data")), index) for index, sent in enumerate(data)]

    def inference(self, rows: list[Row | str]) -> list[Row | str]:
        """Generate all answers at once, and send the streams as they grow."""
        writing = [row for row in rows if isinstance(row, Row)]
        streams = [row for row in writing if row.body.stream]
        for row in streams:
            self.context.set_response_content_type(row.index, "text/event-stream")

        def send() -> None:
            events = {row.index: events for row in streams if (events := row.events())}
            streams[:] = [row for row in streams if not row.finish_reason]
            if events:
                ids = {index: self.context.request_ids[index] for index in events}
                send_intermediate_predict_response(events, ids, "Intermediate Prediction success", 200, self.context)

        if writing:
            self.write(writing, send)
        return rows

    def postprocess(self, rows: list[Row | str]) -> list[str]:
        """Return one answer per row, in order. A stream has been sent; an empty line ends it."""
        for row in rows:
            if isinstance(row, Row):
                self.context.metrics.add_counter("PromptTokens", len(row.prompt_ids))
                self.context.metrics.add_counter("GeneratedTokens", len(row.ids))
        return [row if isinstance(row, str) else "\n" if row.body.stream else json.dumps(row.answer()) for row in rows]

    def row_or_answer(self, raw: Any, index: int) -> Row | str:
        """Return the row, or its error, which does not affect the other rows."""
        self.context.set_response_content_type(index, "application/json")
        route = (self.context.get_request_header(index, "url_path") or "").strip("/")
        if route == "v1/models":
            served = {"id": self.name, "object": "model", "owned_by": "torchserve"}
            return json.dumps({"object": "list", "data": [served]})
        try:
            return self.read(raw, route, index)
        except Exception as error:
            if not isinstance(error, RequestError):
                logging.exception("a request failed")
                error = RequestError(500, "the request could not be processed")
            self.context.metrics.add_counter("FailedRequests", 1)
            self.context.set_response_status(code=error.code, phrase=error.phrase, idx=index)
            return json.dumps(error.answer)

    # `read` and `write` know nothing of TorchServe.

    def read(self, raw: Any, route: str, index: int = 0) -> Row:
        """Return the request in a body, ready for generation. RequestError says what is wrong with it."""
        body, most, limit = parse(raw, route), self.settings.max_new_tokens, self.settings.max_prompt_tokens
        if body.model not in (None, self.name):
            raise RequestError(404, f"model: {body.model!r} is not served here; {self.name!r} is")
        chat = isinstance(body, Chat)
        max_tokens = body.max_completion_tokens or body.max_tokens or (most if chat else min(16, most))
        if max_tokens > most:
            raise RequestError(422, f"max_tokens: {max_tokens} is more than {most}, the limit of this server")
        text = self.rendered(body) if isinstance(body, Chat) else body.prompt
        if len(text) > limit * self.token_characters:  # certainly too long: not worth tokenizing
            raise RequestError(400, f"the prompt has {len(text)} characters, too many for {limit} tokens")
        ids = self.tokenizer(text, add_special_tokens=not chat)["input_ids"]
        if not 0 < len(ids) <= limit:
            raise RequestError(400, f"the prompt has {len(ids)} tokens; send 1 to {limit}")
        kind = "chat.completion" + ".chunk" * body.stream if chat else "text_completion"
        head = {"id": f"{'chat' * chat}cmpl-{secrets.token_hex(16)}", "object": kind, "created": int(time.time())}
        return Row(body=body, prompt_ids=ids, max_tokens=max_tokens, head={**head, "model": self.name}, index=index)

    def rendered(self, chat: Chat) -> str:
        """Return the messages in the chat template. A template without the role `developer` gets a system message."""
        known = "developer" if "developer" in str(self.tokenizer.chat_template) else "system"
        turns = []
        for message in chat.messages:
            role = known if message.role == "developer" else message.role
            turns.append({"role": role, "content": "\n".join(part.text for part in message.content)})  # as in vLLM
        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except (jinja2.TemplateError, ValueError) as error:  # another order of roles, or no template
            raise RequestError(422, f"messages: the model's chat template does not take these: {error}") from None

    def write(self, rows: list[Row], after_step: Callable[[], None] = lambda: None) -> None:
        """Generate all answers, one token of each per step, and call `after_step` after each step."""
        warm = [(place, row.body) for place, row in enumerate(rows) if row.body.temperature > GREEDY_BELOW]
        random = {place: torch.Generator(self.device).manual_seed(body.seed) for place, body in warm}

        def sampled(_ids: Any, scores: Any) -> Any:
            for place, body in warm:  # each by its own values and its own seed, whatever else is in the batch
                tempered = scores[place : place + 1] / body.temperature
                chances = transformers.TopPLogitsWarper(body.top_p)(None, tempered)[0].softmax(-1)
                # The greatest p / e, e exponential, is a sample of p (Gumbel-max); `generate` takes the greatest.
                scores[place] = chances / torch.empty_like(chances).exponential_(generator=random[place])
            return scores

        def ended(ids: Any, _scores: Any) -> Any:
            for row, token in zip(rows, ids[:, -1].tolist(), strict=True):
                row.take(token, self.tokenizer, self.ends)
            after_step()
            return torch.tensor([row.finish_reason is not None for row in rows], device=self.device)

        batch = self.tokenizer.pad({"input_ids": [row.prompt_ids for row in rows]}, return_tensors="pt").to(self.device)
        steps = max(row.max_tokens for row in rows)
        with torch.inference_mode():
            self.model.generate(**batch, max_new_tokens=steps, logits_processor=[sampled], stopping_criteria=[ended])


_handler = TextGenerationHandler()


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[str] | None:
    """TorchServe's entry point (a file of several classes needs one): without data at the start, then with batches."""
    if not _handler.initialized:
        _handler.initialize(context)
    return None if data is None else _handler.handle(data, context)
