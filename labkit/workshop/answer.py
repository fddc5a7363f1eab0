"""A first real answer: the whole way from the engine's start to a client's token, once, before the room is full."""

import math
import shlex
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from labkit import models
from labkit.errors import LoadError
from labkit.load import LoadResult, run_blocking
from labkit.machine import Machine, inspect
from labkit.serving import vllm
from labkit.workloads import chat

MOST_WAIT_S = 120
TOKENS = 16
LEAST_SHARE = 0.05


def first_answer(say: Callable[[str], None] = lambda _: None) -> str:
    """Starts `vllm serve` with the embedded chat model, asks it once and stops it; says how long start and answer took.

    About a minute on two cores. UsageError (too little memory), ModelError, ServerError or LoadError: no answer.
    """
    started_s = time.perf_counter()
    machine, model = inspect(), models.resolve(models.CHAT, progress=say)
    weight_bytes = models.architecture(model).weight_bytes
    settings = vllm.settings(machine, gpu_memory_share=small_share(machine), weight_bytes=weight_bytes)
    words = ["vllm", "serve", str(model), "--served-model-name", models.CHAT, "--max-model-len", "512"]
    command = f"{shlex.join(words)} {settings.flags}"
    with (
        tempfile.TemporaryDirectory(prefix="labkit-check-") as folder,
        vllm.start(command, folder=Path(folder), env=settings.env, progress=say) as server,
    ):
        ready_s = time.perf_counter() - started_s
        one = chat(1, max_tokens=TOKENS)
        key = server.api_key
        result = run_blocking(server.base_url, models.CHAT, one, concurrency=1, timeout_s=MOST_WAIT_S, api_key=key)
    return in_words(result, ready_s=ready_s)


def in_words(result: LoadResult, *, ready_s: float) -> str:
    """What came back. LoadError when it was no answer."""
    record = result.records[-1]
    if record.e2e_s is None or not record.output_tokens:
        remedy = "look at `labkit serve vllm` and `labkit load` by hand: they show the server's log"
        raise LoadError(
            f"the engine came up and did not answer: {record.outcome} {record.error}".rstrip(), remedy=remedy
        )
    return f"{record.output_tokens} tokens in {record.e2e_s:.1f} s; the engine was ready after {ready_s:.0f} s"


def small_share(machine: Machine) -> float:
    """Of a GPU's memory: half of what is free, for the embedded model needs little. Without a GPU it has no effect."""
    if not machine.gpus:
        return LEAST_SHARE
    gpu = machine.gpus[0]
    return max(LEAST_SHARE, math.floor(gpu.memory_free_bytes / gpu.memory_total_bytes * 50) / 100)
