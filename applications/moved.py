"""handlers/text_generation.py without TorchServe: the same checks, the same model, the same answers, on Ray Serve.

What `Service` does there with TorchServe's context is done here by Ray Serve's own means: `@serve.batch` gathers the
batch, FastAPI sends the statuses, the gate asks for the key. Streams have not been moved.
"""

import asyncio
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from ray import serve

from handlers.text_generation import (
    RequestError,
    Row,
    Settings,
    Writer,
    answer_head,
    error_answer,
    read_request,
    whole_answer,
)
from labkit.serving import gate

api = FastAPI(title="A handler that moved")
api.add_middleware(gate.Gate)


@serve.deployment(ray_actor_options={"num_cpus": 1}, max_ongoing_requests=64)
@serve.ingress(api)
class Moved:
    """The handler's `Writer` in a replica, behind the same routes."""

    def __init__(self, name: str, settings: dict[str, Any], batch_size: int = 16, batch_wait_s: float = 0.02) -> None:
        self.name, self.settings = name, Settings(**settings)
        self.writer = Writer(self.settings, model_dir="", gpu_id=0)  # Ray shows a replica its own GPUs only
        self.write.set_max_batch_size(batch_size)
        self.write.set_batch_wait_timeout_s(batch_wait_s)

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.02)  # type: ignore[untyped-decorator]
    async def write(self, rows: list[Row]) -> list[dict[str, Any]]:
        """One answer a row, in their order."""
        await asyncio.to_thread(self.writer.write, rows, lambda: None)
        return [whole_answer(row, self.writer.text(row)) for row in rows]

    @api.get("/v1/models")
    async def models(self) -> dict[str, Any]:
        """What is served."""
        return {"object": "list", "data": [{"id": self.name, "object": "model", "owned_by": "moved"}]}

    @api.post("/{route:path}")
    async def answer(self, route: str, request: Request) -> JSONResponse:
        """The handler's routes: "", v1/completions and v1/chat/completions."""
        try:
            row = self.row(await request.body(), route)
        except RequestError as error:
            return JSONResponse(error_answer(error.status, str(error)), status_code=error.status)
        return JSONResponse(await self.write(row))

    def row(self, body: bytes, route: str) -> Row:
        """The request, ready to be written. RequestError says what is wrong with it."""
        asked = read_request({"body": body}, route, model=self.name, settings=self.settings)
        if asked.stream:
            raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, "streams have not been moved")
        ids = self.writer.tokens(asked, self.settings.max_prompt_tokens)
        return Row(index=0, asked=asked, prompt_ids=ids, head=answer_head(asked, self.name))


def build(
    name: str,
    settings: dict[str, Any],
    *,
    api_key: str = "",
    batch_size: int = 16,
    batch_wait_s: float = 0.02,
    gpus: float = 0,
) -> serve.Application:
    """The application. `settings` are the section `handler` of a model-config.yaml, with an absolute `model_path`."""
    actor = {"num_cpus": 1, "num_gpus": gpus, "runtime_env": {"env_vars": gate.environment(api_key=api_key)}}
    moved = Moved.options(ray_actor_options=actor)  # type: ignore[attr-defined]
    return moved.bind(name, settings, batch_size, batch_wait_s)
