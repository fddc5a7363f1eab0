"""A word counter for a help desk, broken in six ways. Lab 05 runs each of them; `applications/mended.py` is the cure.

Do not copy from here.
"""

from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request

SMALL = {"num_cpus": 0.1}


def route_in_the_decorator() -> Any:
    """Broken: the route is given where the deployment is declared."""

    @serve.deployment(route_prefix="/help")
    class Help:
        async def __call__(self) -> str:
            return "How can we help?"

    return Help


@serve.deployment(ray_actor_options=SMALL)
class Counter:
    """Counts words, of a request or of a text."""

    async def of_request(self, request: Request) -> int:
        return len((await request.json())["text"].split())

    async def of_text(self, text: str) -> int:
        return len(text.split())


@serve.deployment(ray_actor_options=SMALL)
class Help:
    """Counts the words of a message, in another way under each path."""

    def __init__(self, counter: DeploymentHandle) -> None:
        self.counter = counter

    async def __call__(self, request: Request) -> dict[str, Any]:
        ways = {
            one.__name__: one for one in (self.hands_over, self.takes_it_out, self.forgets_await, self.hides_errors)
        }
        return await ways[request.url.path.rsplit("/", 1)[-1]](request)

    async def hands_over(self, request: Request) -> dict[str, Any]:
        """Broken: the request itself goes to the next deployment, which runs in another process."""
        return {"words": await self.counter.of_request.remote(request)}

    async def takes_it_out(self, request: Request) -> dict[str, Any]:
        """Not broken: a text goes there, plain data."""
        return {"words": await self.counter.of_text.remote((await request.json())["text"])}

    async def forgets_await(self, request: Request) -> dict[str, Any]:
        """Broken: `request.json()` is a promise of a body, not a body."""
        body: Any = request.json()
        return {"words": len(body.get("text", "").split())}

    async def hides_errors(self, request: Request) -> dict[str, Any]:
        """Broken: whatever goes wrong, the client is told that all is well."""
        try:
            return {"words": len((await request.json())["text"].split())}
        except Exception as error:
            return {"error": repr(error)}


def small() -> serve.Application:
    """Three faults behind one way in."""
    return Help.bind(Counter.bind())  # type: ignore[attr-defined]


@serve.deployment(num_replicas=2, ray_actor_options={**SMALL, "num_gpus": 0.5})
class Splitter:
    """Broken: half a GPU, twice, to split a text at its blanks."""

    async def split(self, text: str) -> list[str]:
        return text.split()


@serve.deployment(num_replicas=4, ray_actor_options={**SMALL, "num_gpus": 1})
class Pretender:
    """Broken: four GPUs for a model that is not there."""

    async def answer(self, words: list[str]) -> str:
        return f"{len(words)} words, and a model that was never loaded"


@serve.deployment(ray_actor_options=SMALL)
class Front:
    """The way in of an application that no single GPU can hold."""

    def __init__(self, splitter: DeploymentHandle, model: DeploymentHandle) -> None:
        self.splitter, self.model = splitter, model

    async def __call__(self, request: Request) -> str:
        words = await self.splitter.split.remote((await request.json())["text"])
        answer: str = await self.model.answer.remote(words)
        return answer


SCRIPT = """
from ray import serve
from applications.mended import build

if __name__ == "__main__":
    serve.run(build(), route_prefix="/help")
    print("deployed")
"""


def greedy() -> serve.Application:
    """Broken: what it asks for, nobody added up."""
    return Front.bind(Splitter.bind(), Pretender.bind())  # type: ignore[attr-defined]
