"""Text generation for TorchServe: batched, with a true status for every request, streaming, and OpenAI's routes.

    POST /predictions/NAME                          {"prompt" or "messages", "max_tokens", "temperature", ...}
    POST /predictions/NAME/1.0/v1/completions       OpenAI's completions: the prompt as it stands
    POST /predictions/NAME/1.0/v1/chat/completions  OpenAI's chat completions
    GET  /predictions/NAME/1.0/v1/models            what is served (the version must stand in the path)

One file, to be copied: it needs TorchServe 0.12, torch and transformers, and reads the section `handler` of its
model-config.yaml (see `Settings`). TorchServe calls `handle` with a batch; what is wrong with one request is answered
to that one alone.
"""

import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

log = logging.getLogger(__name__)

PLAIN, COMPLETIONS, CHAT, MODELS = "", "v1/completions", "v1/chat/completions", "v1/models"
KNOWN = {"model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "seed", "ignore_eos"}
KNOWN |= {"stream", "stream_options"}
# Fields of OpenAI's protocol that are fine as long as they ask for nothing: to drop them in silence would be a lie.
# Values that change nothing, which some clients send always (`vllm bench serve` the repetition penalty).
NEUTRAL = {
    "n": 1,
    "best_of": 1,
    "top_p": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "echo": False,
}
ROLES = ("system", "user", "assistant")
GREEDY_BELOW = 1e-5  # a smaller temperature is none, as in vLLM


class RequestError(Exception):
    """A request that cannot be answered: the status and the reason that its client gets."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The section `handler` of model-config.yaml.

    `model_path`: a Hugging Face folder, absolute or inside the archive. `dtype`: a name of torch's, or "auto": the
    model's own on a GPU, float32 on a CPU. `threads`: torch's, on a CPU. Longer prompts and answers are refused.
    """

    model_path: str
    dtype: str = "auto"
    threads: int = 1
    max_prompt_tokens: int = 1024
    max_new_tokens: int = 256


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request whose every field was checked. `messages` go through the chat template, a `prompt` does not."""

    route: str
    prompt: str = ""
    messages: tuple[Mapping[str, str], ...] = ()
    max_tokens: int
    temperature: float
    seed: int | None
    ignore_eos: bool
    stream: bool
    include_usage: bool


@dataclass(kw_only=True)
class Row:
    """One request in a batch: its place there, its tokens, and what has been written for it so far."""

    index: int
    asked: Asked
    prompt_ids: list[int]
    random: Any = None
    written: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    sent: str = ""  # of a stream: the text that its client has
    ended: bool = False  # of a stream: its client has everything
    head: dict[str, Any] = field(default_factory=dict)

    def take(self, token: int, ends: frozenset[int]) -> None:
        """Adds a token, unless the answer is complete; the batch goes on until its longest answer is."""
        if self.finish_reason is None:
            self.written.append(token)
            if token in ends and not self.asked.ignore_eos:
                self.finish_reason = "stop"
            elif len(self.written) == self.asked.max_tokens:
                self.finish_reason = "length"

    @property
    def usage(self) -> dict[str, int]:
        prompt, written = len(self.prompt_ids), len(self.written)
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


# What a client sends


def read_request(row: Mapping[str, Any], route: str, *, model: str, settings: Settings) -> Asked:
    """The request in a row of TorchServe's batch. `RequestError` names the first thing that is wrong with it."""
    if route not in (PLAIN, COMPLETIONS, CHAT):
        raise RequestError(HTTPStatus.NOT_FOUND, f"there is no route {route!r}; use {COMPLETIONS} or {CHAT}")
    body = json_object(row.get("body", row.get("data")))
    for name, value in body.items():
        if name not in KNOWN and value is not None and not (name in NEUTRAL and NEUTRAL[name] == value):
            raise wrong(f"{shown(name)} is not supported with this value, or not known")
    if body.get("model") not in (None, model):
        raise RequestError(HTTPStatus.NOT_FOUND, f"there is no model {shown(body['model'])} here; {model!r} is")
    options = body.get("stream_options")
    if not isinstance(options, dict | None):
        raise wrong("'stream_options' must be an object")
    return Asked(
        route=route,
        **content(body, route),
        max_tokens=answer_length(body, route, settings.max_new_tokens),
        temperature=float(number(body, "temperature", (int, float), 0, 2, default=0)),
        seed=number(body, "seed", int, 0, 2**63 - 1, default=None),
        ignore_eos=flag(body, "ignore_eos"),
        stream=flag(body, "stream"),
        include_usage=flag(options or {}, "include_usage"),
    )


def json_object(body: Any) -> dict[str, Any]:
    """TorchServe decodes a body of type application/json, if it can; all else comes as text or bytes."""
    if not body and body != {}:
        raise RequestError(HTTPStatus.BAD_REQUEST, "the body is empty; send a JSON object")
    try:
        if isinstance(body, bytes | bytearray):
            body = body.decode()
        found = json.loads(body) if isinstance(body, str) else body
    except (ValueError, RecursionError) as error:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"the body is not JSON in UTF-8: {error}") from None
    if not isinstance(found, dict):
        raise wrong(f"the body must be a JSON object, not {kind(found)}")
    return found


def content(body: Mapping[str, Any], route: str) -> dict[str, Any]:
    """What the model is to read: `prompt` or `messages`; a prompt on the plain route is a user's message."""
    if route == CHAT or (route == PLAIN and "messages" in body):
        return {"messages": chat_messages(body.get("messages"))}
    prompt = text(body.get("prompt"), "'prompt'")
    return {"prompt": prompt} if route == COMPLETIONS else {"messages": ({"role": "user", "content": prompt},)}


def chat_messages(value: Any) -> tuple[Mapping[str, str], ...]:
    """The messages of a chat."""
    if not isinstance(value, list) or not value:
        raise wrong(f"'messages' must be a list of at least 1 message, not {kind(value)}")
    for one in value:
        if not isinstance(one, dict) or one.get("role") not in ROLES:
            raise wrong(f"each of 'messages' must be an object with a 'role' among {', '.join(ROLES)}")
    return tuple({"role": one["role"], "content": text(one.get("content"), "'content'")} for one in value)


def text(value: Any, name: str) -> str:
    """A text with something in it."""
    if not isinstance(value, str):
        raise wrong(f"{name} must be a text, not {kind(value)}")
    if not value.strip():
        raise wrong(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can write half of a surrogate pair, which no tokenizer takes
        raise wrong(f"{name} holds half of a character") from None
    return value


def answer_length(body: Mapping[str, Any], route: str, limit: int) -> int:
    """`max_tokens`, which newer clients call `max_completion_tokens`."""
    name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    return int(number(body, name, int, 1, limit, default=min(limit, 16 if route == COMPLETIONS else 64)))


def number(body: Mapping[str, Any], name: str, kinds: Any, low: float, high: float, *, default: Any) -> Any:
    """A number from `low` to `high`; true and false are none, whatever Python says."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise wrong(f"'{name}' must be a {'whole number' if kinds is int else 'number'}, not {kind(value)}")
    if not low <= value <= high:
        raise wrong(f"'{name}' is {shown(value)}; from {low} to {high} can be asked for")
    return value


def flag(body: Mapping[str, Any], name: str) -> bool:
    """true or false."""
    value = body.get(name)
    if not isinstance(value, bool | None):
        raise wrong(f"'{name}' must be true or false, not {kind(value)}")
    return bool(value)


def wrong(reason: str) -> RequestError:
    """A request that can be read but not answered."""
    return RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, reason)


def kind(value: Any) -> str:
    """What JSON calls a value of this type."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "missing"}
    return names.get(type(value), "a number")


def shown(value: Any) -> str:
    """A client's value, short enough for a message."""
    return repr(value)[:60]


# What a client gets


def answer_head(asked: Asked, model: str) -> dict[str, Any]:
    """What OpenAI's answers, and every chunk of a stream, begin with."""
    chat = "chat.completion.chunk" if asked.stream else "chat.completion"
    named = chat if asked.route == CHAT else "text_completion"
    return {"id": f"cmpl-{uuid.uuid4().hex}", "object": named, "created": int(time.time()), "model": model}


def whole_answer(row: Row, answer: str) -> dict[str, Any]:
    """The answer in the form of its route."""
    if row.asked.route == PLAIN:
        return {"text": answer, "finish_reason": row.finish_reason, "usage": row.usage}
    said = {"message": {"role": "assistant", "content": answer}} if row.asked.route == CHAT else {"text": answer}
    return {**row.head, "choices": [{"index": 0, **said, "finish_reason": row.finish_reason}], "usage": row.usage}


def stream_events(row: Row, answer: str) -> str:
    """What `answer`, the text so far, adds to the stream, as server-sent events; "" while there is nothing to tell."""
    done = row.finish_reason is not None
    if row.ended or (not done and (answer == row.sent or answer.endswith("\ufffd"))):
        return ""  # half of a character waits for its other half
    new, row.sent, row.ended = answer[len(row.sent) :], answer, done
    said = {"delta": {"content": new}} if row.asked.route == CHAT else {"text": new}
    end = {"finish_reason": row.finish_reason}
    plain = row.asked.route == PLAIN
    events = [{**said, **end} if plain else {**row.head, "choices": [{"index": 0, **said, **end}]}]
    if done and row.asked.include_usage:
        events.append({**row.head, "choices": [], "usage": row.usage})
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + ("data: [DONE]\n\n" if done else "")


def error_answer(status: HTTPStatus, reason: str) -> dict[str, Any]:
    """An error in OpenAI's form."""
    return {"error": {"message": reason, "type": status.phrase, "code": int(status)}}


# The model


class Writer:
    """A causal language model of Hugging Face that writes a whole batch at once."""

    def __init__(self, settings: Settings, *, model_dir: str, gpu_id: int | None) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        # The context names the GPU that TorchServe gave to this worker.
        on_gpu = torch.cuda.is_available() and gpu_id is not None
        self.device = torch.device(f"cuda:{gpu_id}" if on_gpu else "cpu")
        torch.set_num_threads(settings.threads)
        dtype = settings.dtype if settings.dtype != "auto" or on_gpu else "float32"
        path = model_folder(model_dir, settings.model_path)
        self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True)
        self.model = model.to(self.device).eval()
        ends = self.model.generation_config.eos_token_id
        self.ends = frozenset([ends] if isinstance(ends, int) else ends or ())
        # Ends, limits and temperatures are each row's own (`Row.take`, `sample`): the model's defaults would interfere.
        self.model.generation_config = GenerationConfig(pad_token_id=0)
        log.info("loaded %s on %s as %s", path, self.device, self.model.dtype)

    def tokens(self, asked: Asked, limit: int) -> list[int]:
        """The prompt's tokens; refuses a prompt that is too long instead of cutting it."""
        ids: list[int] = self._encoded(asked)
        if not 0 < len(ids) <= limit:
            reason = f"the prompt has {len(ids)} tokens; from 1 to {limit} can be read"
            raise RequestError(HTTPStatus.BAD_REQUEST, reason)
        return ids

    def _encoded(self, asked: Asked) -> Any:
        if not asked.messages:
            return self.tokenizer(asked.prompt)["input_ids"]
        from jinja2 import TemplateError

        try:
            messages = list(asked.messages)
            return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        except (TemplateError, ValueError) as error:  # two messages of the user in a row, or a model without a template
            raise wrong(f"the model's chat template does not take these messages: {error}") from None

    def text(self, row: Row) -> str:
        """What has been written for the row."""
        ids = row.written
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def write(self, rows: list[Row], after_step: Callable[[], None]) -> None:
        """Writes the answers of all rows, one token of each in a step; `after_step` is called after every one."""
        import torch

        for row in rows:
            row.random = torch.Generator(self.device)
            if row.asked.seed is None:
                row.random.seed()
            else:
                row.random.manual_seed(row.asked.seed)

        def finished(input_ids: Any, _scores: Any) -> Any:
            for row, token in zip(rows, input_ids[:, -1].tolist(), strict=True):
                row.take(token, self.ends)
            after_step()
            return torch.tensor([row.finish_reason is not None for row in rows], device=self.device)

        ids, mask = left_padded([row.prompt_ids for row in rows], device=self.device)
        with torch.inference_mode():
            self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max(row.asked.max_tokens for row in rows),
                logits_processor=[lambda _ids, scores: sample(rows, scores)],
                stopping_criteria=[finished],
            )


def model_folder(model_dir: str, model_path: str) -> str:
    """The model's folder: an absolute path stays as it is, another is one in the archive."""
    path = os.path.join(model_dir, model_path)
    if not os.path.isfile(os.path.join(path, "config.json")):
        raise FileNotFoundError(f"model_path {model_path!r} is no model folder: it has no config.json")
    return path


def left_padded(prompts: list[list[int]], *, device: Any) -> tuple[Any, Any]:
    """Token ids and attention mask: prompts end side by side, since the next token comes after the last one."""
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(one)) + one for one in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts], device=device)
    return ids, mask


def sample(rows: Iterable[Row], scores: Any) -> Any:
    """Leaves one token to each row that has a temperature, drawn by the row's own seed, whoever shares the batch.

    The token with the greatest p / e, e exponential, is a sample of p (the Gumbel-max trick).
    """
    import torch

    for place, row in enumerate(rows):
        if row.asked.temperature >= GREEDY_BELOW:
            chances = (scores[place] / row.asked.temperature).softmax(-1)
            drawn = (chances / torch.empty_like(chances).exponential_(generator=row.random)).argmax()
            scores[place] = float("-inf")
            scores[place, drawn] = 0.0
    return scores


# What TorchServe calls


class Service:
    """One worker's model, and the answers to its batches."""

    def __init__(self, context: Any) -> None:
        properties = context.system_properties
        self.name = context.model_name
        self.settings = Settings(**(context.model_yaml_config or {}).get("handler", {}))
        self.writer = Writer(self.settings, model_dir=properties["model_dir"], gpu_id=properties.get("gpu_id"))

    def answer(self, data: list[Mapping[str, Any]], context: Any) -> list[str]:
        """One answer a row, in their order."""
        began = time.monotonic()
        answers, rows = [""] * len(data), list[Row]()
        for index, sent in enumerate(data):
            try:
                context.set_response_content_type(index, "application/json")
                route = (context.get_request_header(index, "url_path") or "").strip("/")
                if route == MODELS:
                    answers[index] = json.dumps(self.models())
                else:
                    rows.append(self.row(index, sent, route))
            except Exception as error:
                answers[index] = self.failed(index, error, context)
        if rows:
            self.write(rows, answers, context)
        report(context.metrics, batch=len(data), rows=rows, seconds=time.monotonic() - began)
        return answers

    def row(self, index: int, sent: Mapping[str, Any], route: str) -> Row:
        """The request of one row, ready to be written."""
        asked = read_request(sent, route, model=self.name, settings=self.settings)
        ids = self.writer.tokens(asked, self.settings.max_prompt_tokens)
        return Row(index=index, asked=asked, prompt_ids=ids, head=answer_head(asked, self.name))

    def write(self, rows: list[Row], answers: list[str], context: Any) -> None:
        """Writes all rows: streams to those who want a stream, and puts the others' whole answers into `answers`."""
        streams = [row for row in rows if row.asked.stream]
        for row in streams:
            context.set_response_content_type(row.index, "text/event-stream")
        self.writer.write(rows, lambda: self.send(streams, context))
        for row in rows:
            # A stream has got everything; its last chunk, which ends it, is an empty line.
            answers[row.index] = "\n" if row.asked.stream else json.dumps(whole_answer(row, self.writer.text(row)))

    def send(self, streams: list[Row], context: Any) -> None:
        """Sends what the last step has added to each stream; the other rows of the batch know nothing of it."""
        from ts.handler_utils.utils import send_intermediate_predict_response

        going = [row for row in streams if not row.ended]
        events = {row.index: events for row in going if (events := stream_events(row, self.writer.text(row)))}
        if events:
            ids = {index: context.request_ids[index] for index in events}
            send_intermediate_predict_response(events, ids, "Intermediate Prediction success", 200, context)

    def models(self) -> dict[str, Any]:
        """What is served, as OpenAI's clients ask for it."""
        return {"object": "list", "data": [{"id": self.name, "object": "model", "owned_by": "torchserve"}]}

    def failed(self, index: int, error: Exception, context: Any) -> str:
        """The status and the answer of a row that failed; the rest of the batch goes on."""
        status, reason = HTTPStatus.INTERNAL_SERVER_ERROR, "the request could not be processed"
        if isinstance(error, RequestError):
            status, reason = error.status, str(error)
        else:
            log.error("a request failed", exc_info=error)
        context.metrics.add_counter("FailedRequests", 1)
        context.set_response_status(code=int(status), phrase=status.phrase, idx=index)
        return json.dumps(error_answer(status, reason))


def report(metrics: Any, *, batch: int, rows: list[Row], seconds: float) -> None:
    """Counters and histograms for /metrics (with model_metrics_auto_detect=true in config.properties)."""
    from ts.metrics.metric_type_enum import MetricTypes

    metrics.add_counter("PromptTokens", sum(len(row.prompt_ids) for row in rows))
    metrics.add_counter("GeneratedTokens", sum(len(row.written) for row in rows))
    metrics.add_metric("BatchRows", batch, "count", metric_type=MetricTypes.HISTOGRAM)
    metrics.add_metric("BatchSeconds", seconds, "seconds", metric_type=MetricTypes.HISTOGRAM)


_service: Service | None = None


def handle(data: list[Mapping[str, Any]] | None, context: Any) -> list[str] | None:
    """The entry point: first without data, to load the model, then with a batch. TorchServe takes a function where a
    file has more than one class."""
    global _service
    if _service is None:
        _service = Service(context)
    return None if data is None else _service.answer(data, context)
