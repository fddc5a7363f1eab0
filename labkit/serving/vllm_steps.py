"""An in-process vLLM engine step by step: its scheduler's state between steps, and its log in a file.

Reads vLLM 0.32's scheduler (v1/core/sched/scheduler.py) without changing it. The engine must run in this process: set
VLLM_ENABLE_V1_MULTIPROCESSING=0 before vllm is imported.
"""

import json
import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import require
from labkit.theory.kv_allocation import Extent, Holding, MemorySnapshot

LOG_FORMAT = "%(levelname)s %(asctime)s [%(fileinfo)s:%(lineno)d] %(message)s"  # vLLM's own, without the process


def log_to(file: Path, *, level: str = "INFO") -> Path:
    """Make vLLM log to `file` only, and return it. Call it before vllm is imported.

    Sets vLLM's VLLM_LOGGING_CONFIG_PATH to a logging configuration, which is written beside the file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    formatter = {"class": "vllm.logging_utils.NewLineFormatter", "datefmt": "%m-%d %H:%M:%S", "format": LOG_FORMAT}
    handler = {"class": "logging.FileHandler", "formatter": "vllm", "level": level, "filename": str(file.absolute())}
    settings = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"vllm": formatter},
        "handlers": {"file": handler},
        "loggers": {"vllm": {"handlers": ["file"], "level": level, "propagate": False}},
    }
    configuration = file.with_suffix(".logging.json")
    configuration.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    os.environ["VLLM_LOGGING_CONFIG_PATH"] = str(configuration.absolute())
    return file


def scheduler(llm: Any) -> Any:
    """Return the scheduler of an in-process `LLM`. UsageError if the engine runs in another process."""
    core = getattr(llm.llm_engine.engine_core, "engine_core", None)
    require(
        core is not None,
        "this engine runs in a separate process, so its scheduler cannot be read",
        fix="set VLLM_ENABLE_V1_MULTIPROCESSING=0 before vllm is imported",
    )
    return core.scheduler  # type: ignore[union-attr]


@dataclass(frozen=True, kw_only=True)
class Generated:
    """One prompt's output. `cached_tokens`: its prompt tokens in the prefix cache; `first_step`: the step (from 0)
    that returned the first token.
    """

    token_ids: tuple[int, ...]
    cached_tokens: int
    first_step: int


def generate(llm: Any, prompts: Sequence[Sequence[int]], wanted: Any) -> Generator[None, None, list[Generated]]:
    """`LLM.generate` that yields after each engine step; returns the outputs in the order of `prompts` (token ids).

    All prompts arrive before the first step; `wanted`: the SamplingParams for all of them. Closing the generator early
    aborts the remaining requests.
    """
    from vllm.sampling_params import RequestOutputKind

    engine, answers, step = llm.llm_engine, dict[int, Generated](), 0
    wanted = wanted.clone()  # `LLM.generate` changes output_kind in its argument, so that only the last step reports
    wanted.output_kind = RequestOutputKind.CUMULATIVE
    names = [engine.add_request(str(n), {"prompt_token_ids": list(ids)}, wanted) for n, ids in enumerate(prompts)]
    try:
        while engine.has_unfinished_requests():
            for output in engine.step():
                number = int(output.request_id.split("-")[0])
                answers[number] = Generated(
                    token_ids=tuple(output.outputs[0].token_ids),
                    cached_tokens=output.num_cached_tokens,
                    first_step=answers[number].first_step if number in answers else step,
                )
            step += 1
            yield
    finally:
        engine.abort_request(names, internal=True)  # finished requests are ignored
    return [answers[number] for number in range(len(names))]


class Watch:
    """Take snapshots of an engine after its steps. Requests are identified by the number at the start of their id."""

    def __init__(self, llm: Any) -> None:
        self._scheduler = scheduler(llm)
        self._seen: dict[str, Any] = {}  # keeps the preemption counts of requests that have left the scheduler
        self.snapshots: list[MemorySnapshot] = []

    def look(self, step: int | None = None) -> MemorySnapshot:
        """Append the current state to `snapshots` and return it. `step`: default the number of snapshots so far."""
        scheduler = self._scheduler
        self._seen |= scheduler.requests
        pool, size = scheduler.kv_cache_manager.block_pool, scheduler.block_size
        holdings = {}
        for request in scheduler.running:
            blocks = scheduler.kv_cache_manager.get_block_ids(request.request_id)[0]
            # Block 0 is vLLM's null block; sequences get blocks from number 1 on.
            extents = tuple(Extent((block - 1) * size, size) for block in blocks)
            holdings[int(request.request_id.split("-")[0])] = Holding(request.num_computed_tokens, extents)
        snapshot = MemorySnapshot(
            step=len(self.snapshots) if step is None else step,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            preemptions=sum(request.num_preemptions for request in self._seen.values()),
            capacity_tokens=(pool.num_gpu_blocks - 1) * size,  # without the null block
            holdings=holdings,
        )
        self.snapshots.append(snapshot)
        return snapshot
