"""handlers/text_generation.py on Ray Serve instead of TorchServe: the same checks, the same model, the same answers.

`@serve.batch` collects the batches, FastAPI sends the statuses, the gate checks the key. The handler's file is imported
as it is, with its base class, so the package torchserve must be installed. Streams are refused.
"""

import asyncio
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from ray import serve

from handlers.text_generation import RequestError, Row, TextGenerationHandler
from labkit.serving import gate

api = FastAPI(title="A handler that moved")
api.add_middleware(gate.Gate)


@serve.deployment(ray_actor_options={"num_cpus": 1}, max_ongoing_requests=64)
@serve.ingress(api)
class Moved:
    """The handler's model in a replica, behind the same routes."""

    def __init__(self, name: str, settings: dict[str, Any], batch_size: int = 16, batch_wait_s: float = 0.02) -> None:
        self.model = TextGenerationHandler()
        properties = {"model_dir": "", "gpu_id": 0}  # Ray shows a replica its own GPUs only
        config = {"handler": settings}
        self.model.initialize(SimpleNamespace(model_name=name, system_properties=properties, model_yaml_config=config))
        self.write.set_max_batch_size(batch_size)
        self.write.set_batch_wait_timeout_s(batch_wait_s)

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.02)  # type: ignore[untyped-decorator]
    async def write(self, rows: list[Row]) -> list[dict[str, Any]]:
        """One answer per row, in order. In a thread: the event loop keeps taking requests."""
        await asyncio.to_thread(self.model.write, rows)
        return [row.answer() for row in rows]

    @api.get("/v1/models")
    async def models(self) -> dict[str, Any]:
        """What is served."""
        return {"object": "list", "data": [{"id": self.model.name, "object": "model", "owned_by": "moved"}]}

    @api.post("/{route:path}")
    async def answer(self, route: str, request: Request) -> JSONResponse:
        """The handler's routes: "", v1/completions and v1/chat/completions."""
        try:
            row = self.model.read(await request.body(), route)
            if row.body.stream:
                raise RequestError(422, "stream: streams have not been moved")
        except RequestError as error:
            return JSONResponse(error.answer, status_code=error.code)
        return JSONResponse(await self.write(row))


def build(
    name: str,
    settings: dict[str, Any],
    *,
    api_key_file: str = "",
    batch_size: int = 16,
    batch_wait_s: float = 0.02,
    gpus: float = 0,
) -> serve.Application:
    """Return the application. `settings`: the section `handler` of a model-config.yaml, with an absolute `model_path`.

    Clients need the key in `api_key_file` (`gate.write_key` makes one); without a file they need none.
    """
    actor = {"num_cpus": 1, "num_gpus": gpus, "runtime_env": {"env_vars": gate.environment(api_key_file=api_key_file)}}
    moved = Moved.options(ray_actor_options=actor)  # type: ignore[attr-defined]
    return moved.bind(name, settings, batch_size, batch_wait_s)
