"""A support desk on Ray Serve, to copy: the intent of a message, a reply, a summary for the ticket.

    message --> Desk --+--> IntentClassifier   MiniLM, batched, its forward pass in a thread
                       +--> Writer             a chat model: LLMServer of ray.serve.llm, with vLLM in its replica

Deploy it with `serve.run(build(settings))`, `labkit serve ray`, or `applications/serve_config.yaml`. To copy it, take
this file and `labkit/serving/gate.py`, which imports nothing else from labkit.

Limits: one model; no queue limit until a config file sets `max_queued_requests`; the key is read when a replica starts.
OpenAI requests are answered as by vLLM's own server; fields that vLLM does not know are refused here with 422, because
vLLM would ignore them.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.llm import LLMConfig, build_llm_deployment
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest
from vllm.exceptions import VLLMClientError

from labkit.serving import gate

EXAMPLES = {
    "refund": ("I want my money back", "please refund my order", "you charged me twice"),
    "shipping": ("where is my package", "when will it be delivered", "the parcel has not arrived"),
    "account": ("I cannot log in", "how do I reset my password", "please change my e-mail address"),
    "technical": ("the app crashes when I open it", "the screen stays black", "an error shows up"),
}
REPLY = "You answer customers of a shop, in two friendly sentences."
SUMMARY = "Summarise the customer's message in one short sentence for a colleague."


@serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=64)
class IntentClassifier:
    """The intent whose examples are nearest to the message, by the cosine of mean-pooled embeddings."""

    def __init__(self, model: str) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        torch.set_num_threads(1)
        self._tokenizer, self._model = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
        centres = torch.stack([self._embed(list(texts)).mean(0) for texts in EXAMPLES.values()])
        self._centres = torch.nn.functional.normalize(centres, dim=-1)

    def reconfigure(self, batching: dict[str, float]) -> None:
        """Take `user_config`: at most `batch_size` texts, collected for at most `batch_wait_s`. It needs no restart."""
        self.classify.set_max_batch_size(int(batching["batch_size"]))
        self.classify.set_batch_wait_timeout_s(batching["batch_wait_s"])

    async def check_health(self) -> None:
        """Serve calls this every ten seconds and replaces the replica if the model no longer computes."""
        await asyncio.to_thread(self._intents, ["ping"])

    @serve.batch  # type: ignore[untyped-decorator]
    async def classify(self, texts: list[str]) -> list[str]:
        """Called with one text, run with a batch of them. In a thread: the event loop keeps taking requests."""
        return await asyncio.to_thread(self._intents, texts)

    def _intents(self, texts: list[str]) -> list[str]:
        nearest = (self._embed(texts) @ self._centres.T).argmax(1).tolist()
        return [list(EXAMPLES)[index] for index in nearest]

    def _embed(self, texts: list[str]) -> Any:
        import torch

        with torch.inference_mode():
            batch = self._tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
            hidden, mask = self._model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
            return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


class Message(BaseModel, extra="forbid"):
    """What a customer sends; `max_tokens` is the longest reply."""

    text: Annotated[str, Field(min_length=1, max_length=4000)]
    max_tokens: Annotated[int, Field(ge=1, le=512)] = 16


class Ticket(BaseModel):
    """The desk's answer to a message."""

    intent: str
    reply: str
    summary: str


api = FastAPI(title="Support desk")
api.add_middleware(gate.Gate)


@api.exception_handler(RequestValidationError)
async def refuse(_request: Request, error: RequestValidationError) -> JSONResponse:
    """Answer 422 in OpenAI's form. FastAPI's own answer repeats the input, which JSON may not be able to represent."""
    problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
    return _refusal("; ".join(problems), 422)


@api.exception_handler(VLLMClientError)
async def refuse_for_vllm(_request: Request, error: VLLMClientError) -> JSONResponse:
    """Answer 400 to what vLLM's own request classes refuse."""
    return _refusal(str(error), 400)


def _refusal(message: str, status: int) -> JSONResponse:
    printable = message.encode("utf-8", "backslashreplace").decode()[:1000]
    return JSONResponse({"error": {"message": printable, "type": "invalid_request_error", "code": status}}, status)


# What the routes use is defined above the class: `serve.ingress` copies it at that moment.
async def unsupported(body: Any, request: Request) -> list[dict[str, Any]]:
    """Return errors for fields that vLLM would ignore, and for half of a surrogate pair, which no tokenizer accepts."""
    try:
        json.dumps(await request.json(), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return [{"loc": ("body",), "msg": "it contains half of a surrogate pair"}]
    return [{"loc": ("body", name), "msg": "is not known"} for name in body.model_extra or {}]


async def events(first: list[str], rest: AsyncIterator[list[str]]) -> AsyncIterator[str]:
    """Yield the server-sent events of a stream whose first part has already been read."""
    yield "".join(first)
    async for more in rest:
        yield "".join(more)


@serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=100)
@serve.ingress(api)
class Desk:
    """The HTTP side. FastAPI checks the types (422), the gate the key (401) and the body's size (413)."""

    def __init__(
        self,
        classifier: DeploymentHandle,
        writer: DeploymentHandle,
        model: str,
        *,
        api_key_file: str,
        body_limit_bytes: int = gate.DEFAULT_LIMIT_BYTES,
    ) -> None:
        # The gate reads these at its start. In ray_actor_options a config file could replace them unnoticed.
        os.environ.update(gate.environment(api_key_file=api_key_file, body_limit_bytes=body_limit_bytes))
        gate.read_key()  # without its key the Desk does not start
        self.classifier, self.model = classifier, model
        self.writer = writer.options(stream=True)  # LLMServer's methods are generators, for a whole answer too

    @api.post("/chain")
    async def chain(self, message: Message) -> Ticket:
        """One stage after the other."""
        intent = await self.classifier.classify.remote(message.text)
        reply = await self.ask(REPLY, message)
        return Ticket(intent=intent, reply=reply, summary=await self.ask(SUMMARY, message))

    @api.post("/parallel")
    async def parallel(self, message: Message) -> Ticket:
        """All at once: none of the three needs another's result."""
        intent, reply, summary = await asyncio.gather(
            self.classifier.classify.remote(message.text), self.ask(REPLY, message), self.ask(SUMMARY, message)
        )
        return Ticket(intent=intent, reply=reply, summary=summary)

    @api.post("/classify")
    async def classify(self, message: Message) -> dict[str, str]:
        """The intent alone."""
        return {"intent": await self.classifier.classify.remote(message.text)}

    @api.post("/write")
    async def write(self, message: Message) -> dict[str, str]:
        """The reply alone."""
        return {"reply": await self.ask(REPLY, message)}

    async def ask(self, instruction: str, message: Message) -> str:
        """Return the model's answer to a message, under an instruction."""
        messages = [{"role": "system", "content": instruction}, {"role": "user", "content": message.text}]
        request = ChatCompletionRequest(
            model=self.model, messages=messages, max_tokens=message.max_tokens, temperature=0
        )
        answer = await anext(aiter(self.writer.chat.remote(request)))
        if error := getattr(answer, "error", None):
            raise HTTPException(error.code, error.message)
        text: str = answer.choices[0].message.content
        return text.strip()

    @api.get("/v1/models")
    async def models(self) -> dict[str, Any]:
        """List the model."""
        return {"object": "list", "data": [{"id": self.model, "object": "model", "owned_by": "support-desk"}]}

    @api.post("/v1/chat/completions")
    async def chat(self, body: ChatCompletionRequest, request: Request) -> Response:
        """OpenAI's chat completions, as vLLM's server answers them."""
        body.messages = (await request.json())["messages"]  # pydantic's lazy lists of parts cannot be pickled
        return await self._forward("chat", body, request)

    @api.post("/v1/completions")
    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        """OpenAI's completions."""
        return await self._forward("completions", body, request)

    async def _forward(self, method: str, body: Any, request: Request) -> Response:
        if problems := await unsupported(body, request):
            raise RequestValidationError(problems)
        answers = aiter(getattr(self.writer, method).remote(body))
        first = await anext(answers)
        start = first[0] if isinstance(first, list) else first  # a stream comes in lists of events
        if error := getattr(start, "error", None):  # of a class that Ray does not export
            return JSONResponse(start.model_dump(), error.code)
        if isinstance(start, str):
            return StreamingResponse(events(first, answers), media_type="text/event-stream")
        return JSONResponse(start.model_dump())


class DeskSettings(BaseModel, extra="forbid"):
    """Arguments of `build`, also in a Serve config file."""

    llm: dict[str, Any]  # the fields of ray.serve.llm's LLMConfig
    api_key_file: Annotated[
        str, Field(min_length=1)
    ]  # on every node that may run the Desk; not readable by other users
    embedding_model: str = "sentence-transformers/all-MiniLM-L6-v2"
    batch_size: Annotated[int, Field(ge=1)] = 8
    batch_wait_s: Annotated[float, Field(ge=0)] = 0.02
    body_limit_bytes: Annotated[int, Field(ge=1)] = gate.DEFAULT_LIMIT_BYTES


def build(settings: DeskSettings) -> serve.Application:
    """Return the application. Its deployments are Desk, IntentClassifier and Writer."""
    llm = LLMConfig(**settings.llm)
    writer = build_llm_deployment(llm, override_serve_options={"name": "Writer"})
    batching = {"batch_size": settings.batch_size, "batch_wait_s": settings.batch_wait_s}
    classifier = IntentClassifier.options(user_config=batching).bind(settings.embedding_model)  # type: ignore[attr-defined]
    return Desk.bind(  # type: ignore[attr-defined]
        classifier,
        writer,
        llm.model_id,
        api_key_file=settings.api_key_file,
        body_limit_bytes=settings.body_limit_bytes,
    )
