"""What the lab on fractional GPUs deploys: a tenant of a part of a GPU, and a model of the GPUs' compute."""

import asyncio
import os
import resource
import time
from typing import Any

import psutil
import ray
from ray import serve

from labkit.theory.sharing import SharedCompute

MIB = 2**20


@serve.deployment(max_ongoing_requests=1000, graceful_shutdown_wait_loop_s=0.1)
class Tenant:
    """A model that was promised a part of a GPU. It takes the memory that it is told to; its computing costs GPU time
    of the model below, and no CPU time."""

    def __init__(self, gpus: Any = None) -> None:
        self._gpus = gpus
        self._kept: list[Any] = []
        self._gpu = "".join(ray.get_runtime_context().get_accelerator_ids()["GPU"])

    async def where(self) -> dict[str, Any]:
        """The GPU that Ray gave this replica, and the GPUs that it can see."""
        return {"gpu": self._gpu, "visible": os.environ.get("CUDA_VISIBLE_DEVICES"), "pid": os.getpid()}

    async def answer(self, work_s: float) -> None:
        """Takes `work_s` seconds of its GPU's compute."""
        await self._gpus.compute.remote(self._gpu, work_s)

    async def take(self, mib: int, device: str = "") -> int:
        """Takes memory and writes to it; returns how many MiB this replica has now. `device`: the GPU whose memory it
        is, as CUDA_VISIBLE_DEVICES names it; empty: this process's own."""
        if device:
            os.environ["CUDA_VISIBLE_DEVICES"] = device  # Ray's number is one of Ray's own; torch reads this when used
            import torch

            self._kept.append(torch.ones(mib * MIB, dtype=torch.uint8, device="cuda"))
            return int(torch.cuda.memory_allocated() // MIB)
        self._kept.append(bytearray(b"x") * (mib * MIB))
        return int(psutil.Process().memory_info().rss // MIB)

    async def limit(self, mib: int, device: str = "") -> None:
        """From now on the process may take `mib` MiB more: beyond that the operating system (or PyTorch) says no."""
        if device:
            os.environ["CUDA_VISIBLE_DEVICES"] = device
            import torch

            torch.cuda.set_per_process_memory_fraction(mib * MIB / torch.cuda.mem_get_info()[1])
            return
        size = psutil.Process().memory_info().vms + mib * MIB
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))


@ray.remote(num_cpus=0)
class ModelledGpus:
    """A model of the GPUs' compute, not a GPU: requests that are on one GPU at the same time share it equally."""

    def __init__(self) -> None:
        self._gpus: dict[str, SharedCompute] = {}
        self._waiting: dict[tuple[str, int], asyncio.Future[None]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    async def compute(self, gpu: str, work_s: float) -> None:
        """Returns when `work_s` seconds of the GPU's compute are done, which takes longer the more there are."""
        self._advance(gpu)
        number = self._gpus.setdefault(gpu, SharedCompute()).add(time.monotonic(), work_s)
        done = self._waiting[gpu, number] = asyncio.get_running_loop().create_future()
        self._advance(gpu)
        await done

    def _advance(self, gpu: str) -> None:
        now_s, shared = time.monotonic(), self._gpus.get(gpu)
        for number, _ in shared.advance(now_s) if shared else ():
            self._waiting.pop((gpu, number)).set_result(None)
        if gpu in self._timers:
            self._timers.pop(gpu).cancel()
        if shared and (end_s := shared.next_end_s) is not None:
            self._timers[gpu] = asyncio.get_running_loop().call_later(end_s - now_s, self._advance, gpu)
