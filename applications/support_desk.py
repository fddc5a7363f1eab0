"""A support desk: what a message wants, a reply, and a line for the ticket.

    message --> Desk --+--> IntentClassifier   MiniLM, batched
                       +--> Writer             a chat model on vLLM
                       +--> Summariser ------> Writer

Only the model takes a GPU; everything between deployments is plain data. Deploy it with `serve.run(build(...))`, by
`labkit serve ray`, or from a Serve config file (cluster/serve_config.yaml).
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from ray import serve
from ray.serve.handle import DeploymentHandle

from applications.openai_api import ChatBody, CompletionBody, Piece, Question, answer, events, question, refused
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
    """The intent whose examples lie nearest to the message (cosine of mean-pooled embeddings)."""

    def __init__(self, model: str, *, batch_size: int = 8, batch_wait_s: float = 0.02) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        from labkit import models

        torch.set_num_threads(1)
        folder = models.resolve(model)
        self.tokenizer, self.model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
        centres = torch.stack([self.embed(list(texts)).mean(0) for texts in EXAMPLES.values()])
        self.centres = torch.nn.functional.normalize(centres, dim=-1)
        self.sizes: list[int] = []
        self.set_batching(batch_size, batch_wait_s)

    def embed(self, texts: list[str]) -> Any:
        """Unit vectors, one a text."""
        import torch

        with torch.inference_mode():
            batch = self.tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
            hidden, mask = self.model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
            return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def classify_all(self, texts: list[str]) -> list[str]:
        """One intent a text."""
        best = (self.embed(texts) @ self.centres.T).argmax(1).tolist()
        return [list(EXAMPLES)[index] for index in best]

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.02)  # type: ignore[untyped-decorator]
    async def classify(self, texts: list[str]) -> list[str]:
        """Called with one text, run with those that came together: a list in, a list of the same length out."""
        self.sizes.append(len(texts))
        return self.classify_all(texts)

    async def classify_one(self, text: str) -> str:
        """The same without a batch."""
        return self.classify_all([text])[0]

    def set_batching(self, batch_size: int, wait_s: float) -> None:
        """At most `batch_size` texts, collected for at most `wait_s`."""
        self.classify.set_max_batch_size(batch_size)
        self.classify.set_batch_wait_timeout_s(wait_s)

    def pop_batch_sizes(self) -> list[int]:
        """How large the batches since the last call were."""
        sizes, self.sizes = self.sizes, []
        return sizes


@serve.deployment(ray_actor_options={"num_cpus": 1}, max_ongoing_requests=64, health_check_timeout_s=60)
class Writer:
    """A chat model on vLLM, inside a replica: Ray Serve calls it, vLLM batches what is under way."""

    def __init__(self, model: str, *, gpu_memory_share: float = 0.9, **engine: Any) -> None:
        from labkit import models
        from labkit.machine import inspect
        from labkit.serving import vllm

        hardware = vllm.settings(inspect(), gpu_memory_share=gpu_memory_share)
        hardware.apply()  # before vllm is imported
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = {"max_model_len": 1024, "max_num_seqs": 16, **hardware.llm, **engine}
        args = AsyncEngineArgs(model=str(models.resolve(model)), disable_log_stats=True, **arguments)
        self.engine = AsyncLLM.from_engine_args(args)

    async def stream(self, asked: Question) -> AsyncIterator[Piece]:
        """The answer piece by piece. ValueError where it cannot be asked, such as a prompt that is too long."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        prompt, written = await self._prompt(asked), 0
        sampling = SamplingParams(
            max_tokens=asked.max_tokens,
            temperature=asked.temperature,
            seed=asked.seed,
            ignore_eos=asked.ignore_eos,
            output_kind=RequestOutputKind.DELTA,
        )
        async for output in self.engine.generate(prompt, sampling, request_id=uuid.uuid4().hex):
            one = output.outputs[0]
            written += len(one.token_ids)
            yield Piece(
                text=one.text,
                prompt_tokens=len(output.prompt_token_ids),
                completion_tokens=written,
                finish_reason=one.finish_reason,
            )

    async def _prompt(self, asked: Question) -> Any:
        tokenizer = self.engine.get_tokenizer()
        if asked.messages:
            chat = [{"role": role, "content": content} for role, content in asked.messages]
            tokens = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        else:
            tokens = tokenizer.encode(asked.prompt)
        longest = self.engine.model_config.max_model_len
        if len(tokens) + asked.max_tokens > longest:
            raise ValueError(
                f"{len(tokens)} prompt tokens and {asked.max_tokens} to write exceed the {longest} that fit"
            )
        return {"prompt_token_ids": tokens}

    async def write(self, asked: Question) -> Piece:
        """The whole answer at once."""
        began = time.perf_counter()
        pieces = [piece async for piece in self.stream(asked)]
        seconds = time.perf_counter() - began
        whole = "".join(piece.text for piece in pieces)
        last = pieces[-1]
        return Piece(
            text=whole,
            prompt_tokens=last.prompt_tokens,
            completion_tokens=last.completion_tokens,
            finish_reason=last.finish_reason,
            seconds=seconds,
        )

    async def noop(self) -> None:
        """What a call costs by itself."""

    async def cache(self) -> dict[str, int]:
        """The engine's KV cache, as vLLM set it up in this replica."""
        config = self.engine.vllm_config
        blocks, size = config.cache_config.num_gpu_blocks, config.cache_config.block_size
        return {"blocks": blocks, "block_size": size, "max_model_len": config.model_config.max_model_len}

    def __del__(self) -> None:
        if engine := getattr(self, "engine", None):
            engine.shutdown()


@serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=64)
class Summariser:
    """A line for the ticket. It has no model: it asks the Writer, so it needs no GPU."""

    def __init__(self, writer: DeploymentHandle) -> None:
        self.writer = writer

    async def summarise(self, text: str, max_tokens: int) -> str:
        """One sentence on `text`."""
        asked = Question(messages=(("system", SUMMARY), ("user", text)), max_tokens=max_tokens)
        whole: Piece = await self.writer.write.remote(asked)
        return whole.text.strip()


class Message(BaseModel, extra="forbid"):
    """What a customer sends; `max_tokens` is the longest reply."""

    text: Annotated[str, Field(min_length=1, max_length=4000)]
    max_tokens: Annotated[int, Field(ge=1, le=512)] = 16


class Ticket(BaseModel):
    """What the desk makes of a message."""

    intent: str
    reply: str
    summary: str


# What the routes use stands above the class: `serve.ingress` copies them as they are at that moment.
async def _from(first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    yield first
    async for piece in rest:
        yield piece


api = FastAPI(title="Support desk")
api.add_middleware(gate.Gate)
api.add_exception_handler(RequestValidationError, refused)


@serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=100)
@serve.ingress(api)
class Desk:
    """The HTTP side: FastAPI checks the types (422), the gate the key (401) and the size (413)."""

    def __init__(
        self, classifier: DeploymentHandle, writer: DeploymentHandle, summariser: DeploymentHandle, model_name: str
    ) -> None:
        self.classifier, self.writer, self.summariser = classifier, writer, summariser
        self.model_name = model_name

    @api.post("/chain")
    async def chain(self, message: Message) -> Ticket:
        """One stage after the other."""
        intent = await self.classifier.classify.remote(message.text)
        reply = await self._reply(message)
        summary = await self.summariser.summarise.remote(message.text, message.max_tokens)
        return Ticket(intent=intent, reply=reply, summary=summary)

    @api.post("/parallel")
    async def parallel(self, message: Message) -> Ticket:
        """All at once: none of the three needs another's result."""
        intent, reply, summary = await asyncio.gather(
            self.classifier.classify.remote(message.text),
            self._reply(message),
            self.summariser.summarise.remote(message.text, message.max_tokens),
        )
        return Ticket(intent=intent, reply=reply, summary=summary)

    async def _reply(self, message: Message) -> str:
        asked = Question(messages=(("system", REPLY), ("user", message.text)), max_tokens=message.max_tokens)
        whole: Piece = await self.writer.write.remote(asked)
        return whole.text.strip()

    @api.post("/classify")
    async def classify(self, message: Message) -> dict[str, str]:
        """The intent alone."""
        return {"intent": await self.classifier.classify.remote(message.text)}

    @api.post("/write")
    async def write(self, message: Message) -> dict[str, str]:
        """The reply alone."""
        return {"reply": await self._reply(message)}

    @api.post("/noop")
    async def noop(self) -> None:
        """What HTTP costs by itself."""

    @api.post("/noop_behind_handle")
    async def noop_behind_handle(self) -> None:
        """What HTTP and one call between deployments cost."""
        await self.writer.noop.remote()

    @api.get("/v1/models")
    async def models(self) -> dict[str, Any]:
        """What is served."""
        return {"object": "list", "data": [{"id": self.model_name, "object": "model", "owned_by": "support-desk"}]}

    @api.post("/v1/completions")
    async def completions(self, body: CompletionBody) -> Any:
        """OpenAI's completions."""
        return await self._answer(body)

    @api.post("/v1/chat/completions")
    async def chat(self, body: ChatBody) -> Any:
        """OpenAI's chat completions."""
        return await self._answer(body)

    async def _answer(self, body: CompletionBody | ChatBody) -> Any:
        if body.model != self.model_name:
            raise HTTPException(404, f"there is no model {body.model!r} here; {self.model_name!r} is")
        try:
            if not body.stream:
                whole: Piece = await self.writer.write.remote(question(body))
                timing = {"Server-Timing": f"engine;dur={whole.seconds * 1000:.2f}"}  # in milliseconds, by the standard
                return JSONResponse(answer(body, whole), headers=timing)
            pieces = aiter(self.writer.options(stream=True).stream.remote(question(body)))
            first = await anext(pieces)  # a question that cannot be asked still gets its own status
        except ValueError as error:
            raise HTTPException(400, str(error).strip().splitlines()[-1]) from None
        return StreamingResponse(events(body, _from(first, pieces)), media_type="text/event-stream")


class DeskSettings(BaseModel):
    """Arguments of `build`, also in a Serve config file. `engine` goes to vLLM's AsyncEngineArgs."""

    model: str = "smollm2-135m"
    model_name: str = ""  # what requests call it; empty: `model`
    embedding_model: str = "minilm"
    batch_size: Annotated[int, Field(ge=1)] = 8
    batch_wait_s: Annotated[float, Field(ge=0)] = 0.02
    writer_gpus: Annotated[float, Field(ge=0)] = 0.0
    gpu_memory_share: Annotated[float, Field(gt=0, le=1)] = 0.9
    engine: dict[str, Any] = {}
    api_key: str = ""
    body_limit_bytes: Annotated[int, Field(ge=1)] = gate.DEFAULT_LIMIT_BYTES


def build(settings: DeskSettings) -> serve.Application:
    """The whole application. On a GPU give the Writer its share twice: `writer_gpus` tells Ray, the other vLLM."""
    actor = {"num_cpus": 1, "num_gpus": settings.writer_gpus}
    writer = Writer.options(ray_actor_options=actor).bind(  # type: ignore[attr-defined]
        settings.model, gpu_memory_share=settings.gpu_memory_share, **settings.engine
    )
    classifier = IntentClassifier.bind(  # type: ignore[attr-defined]
        settings.embedding_model, batch_size=settings.batch_size, batch_wait_s=settings.batch_wait_s
    )
    env = gate.environment(api_key=settings.api_key, body_limit_bytes=settings.body_limit_bytes)
    desk = Desk.options(ray_actor_options={"num_cpus": 0.1, "runtime_env": {"env_vars": env}})  # type: ignore[attr-defined]
    summariser = Summariser.bind(writer)  # type: ignore[attr-defined]
    return desk.bind(classifier, writer, summariser, settings.model_name or settings.model)
