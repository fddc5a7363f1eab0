"""Runs a learner's class for an exercise: deployed in the Serve of the notebook, or called as Serve would call it."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

Call = Callable[..., Awaitable[Any]]
APPLICATION = "exercise"


class _Method:
    """One method of a replica without Serve: `remote` starts it, as a handle's does."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def remote(self, *arguments: Any) -> Awaitable[Any]:
        if not inspect.iscoroutinefunction(self._function):  # Ray Serve runs it in a thread, too
            return asyncio.ensure_future(asyncio.to_thread(self._function, *arguments))
        started: Awaitable[Any] = asyncio.ensure_future(self._function(*arguments))
        return started


class _Handle:
    """A replica without Serve, called as through a handle."""

    def __init__(self, replica: Any) -> None:
        self._replica = replica

    def __getattr__(self, name: str) -> _Method:
        return _Method(getattr(self._replica, name))


def called_here(answer: type, *parts: type) -> Call:
    """Return `call(method, *arguments)` for an object of the class in this process; `parts` as for `running`."""
    local = _Handle(answer(*(_Handle(part()) for part in parts)))
    return lambda method, *arguments: getattr(local, method).remote(*arguments)


@contextmanager
def running(answer: type, *parts: type) -> Iterator[Call]:
    """Deploy a notebook's class in the Serve that runs; yield `call(method, *arguments)`.

    `parts` are classes that it gets handles to. The course's own classes, and all where no Ray runs, are called without
    Serve.
    """
    import ray

    if answer.__module__ != "__main__" or not ray.is_initialized():
        yield called_here(answer, *parts)
        return
    from ray import serve

    def bound(deployed: type, *handles: Any) -> Any:
        deployment: Any = serve.deployment(deployed)
        return deployment.options(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=20).bind(*handles)

    try:
        handle = serve.run(bound(answer, *map(bound, parts)), name=APPLICATION, route_prefix=None)
        yield lambda method, *arguments: getattr(handle, method).remote(*arguments)
    finally:
        serve.delete(APPLICATION)


async def outcome(call: Awaitable[Any], expected: type[Exception]) -> Any:
    """What a caller gets: the answer, or the name of the exception, which a remote one also inherits from."""
    try:
        return await call
    except expected:
        return expected.__name__
    except Exception as error:
        return type(error).__name__
