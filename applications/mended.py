"""The word counter of `applications/broken.py` as it ought to be: the shape of every pipeline on Ray Serve.

Its route is given to `serve.run`, and so is whether the script waits: serve.run(build(), route_prefix="/help",
blocking=True).
"""

from typing import Annotated

from fastapi import FastAPI
from pydantic import BaseModel, Field
from ray import serve
from ray.serve.handle import DeploymentHandle

SMALL = {"num_cpus": 0.1}


class Query(BaseModel):
    """What a client sends. FastAPI answers 422 to anything else."""

    text: Annotated[str, Field(min_length=1, max_length=4000)]


@serve.deployment(ray_actor_options=SMALL)
class Splitter:
    """Work for a CPU, so it asks for no GPU. It gets a text and returns words: plain data."""

    async def split(self, text: str) -> list[str]:
        return text.split()


@serve.deployment(ray_actor_options=SMALL, max_ongoing_requests=16)
class Model:
    """The only part that would ask for a GPU: {"num_gpus": 1}, or a share."""

    async def answer(self, words: list[str]) -> int:
        return len(words)


api = FastAPI()


@serve.deployment(ray_actor_options=SMALL)
@serve.ingress(api)
class Front:
    """The way in. It catches nothing: an exception becomes a 500, for the client to see and for us to count."""

    def __init__(self, splitter: DeploymentHandle, model: DeploymentHandle) -> None:
        self.splitter, self.model = splitter, model

    @api.post("/")
    async def count(self, query: Query) -> dict[str, int]:
        words = await self.splitter.split.remote(query.text)
        return {"words": await self.model.answer.remote(words)}


def build() -> serve.Application:
    """The whole application."""
    return Front.bind(Splitter.bind(), Model.bind())  # type: ignore[attr-defined]
