"""A small deployment to look at Ray Serve itself: it loads no model, and what it does takes a known time."""

import asyncio
import os
import signal
import time

from ray import serve
from starlette.requests import Request


@serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=100)
class Probe:
    """Waits. How many requests at a time, how many replicas and who decides that is for the options."""

    async def __call__(self, request: Request) -> str:
        """Answers after `?s=` seconds, with the process id of the replica."""
        await asyncio.sleep(float(request.query_params.get("s", 0)))
        return str(os.getpid())

    def sync(self, wait_s: float) -> None:
        """A plain function: Ray Serve runs it in a thread of its own."""
        time.sleep(wait_s)

    async def blocking_async(self, wait_s: float) -> None:
        """Looks asynchronous and is not: while it sleeps, this replica's event loop does nothing else."""
        time.sleep(wait_s)

    async def asynchronous(self, wait_s: float) -> None:
        """Gives the event loop back while it waits."""
        await asyncio.sleep(wait_s)

    async def die(self) -> str:
        """Answers with its process id, and is gone: as after the kernel's out-of-memory killer, without a goodbye."""
        asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGKILL)
        return str(os.getpid())
