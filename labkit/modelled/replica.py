"""Step a vLLM engine in this process: on a modelled card's clock, or a real engine on the wall clock."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from labkit.errors import UsageError


@dataclass(frozen=True, slots=True)
class Moment:
    """An engine after a step: the step's end and duration, requests running and waiting, and the share of KV blocks in
    use. `tokens` (all) and `prefill_tokens` of the step: on a modelled card only."""

    end_s: float
    duration_s: float
    tokens: int | None
    prefill_tokens: int | None
    running: int
    waiting: int
    kv_usage: float


@dataclass(frozen=True, slots=True)
class NewTokens:
    """A step's result for one request: new tokens, whether it finished, and (once) cached prompt tokens."""

    index: int
    token_ids: Sequence[int]
    finished: bool
    cached_tokens: int


def close(llm: Any) -> None:
    """Shut down a modelled engine. vLLM's own shutdown would also end a real engine's process groups."""
    client = llm.llm_engine.engine_core
    client._finalizer.detach()  # would call vLLM's shutdown when the engine is collected
    client.engine_core.model_executor.shutdown()
    client.engine_core.scheduler.shutdown()


def exactly(output_tokens: int) -> Any:
    """Return the `SamplingParams` of a greedy answer of exactly `output_tokens`, streamed as deltas."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0,
        max_tokens=output_tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


class Replica:
    """An in-process `LLM` with numbered requests and a clock.

    UsageError for an engine in another process (set VLLM_ENABLE_V1_MULTIPROCESSING=0 before importing vllm).
    """

    def __init__(self, llm: Any) -> None:
        from labkit.modelled.executor import ModelledExecutor
        from labkit.serving.vllm_steps import scheduler

        self.scheduler = scheduler(llm)
        self._core = llm.llm_engine.engine_core.engine_core
        self.engine = llm.llm_engine
        executor = llm.llm_engine.model_executor
        self.modelled = executor if isinstance(executor, ModelledExecutor) else None
        if self.modelled is not None:
            self.modelled.clock_s = 0.0  # subtracting an offset would round, and separate simultaneous requests
        self._zero_s = self._raw_clock_s()
        self._numbers: dict[str, int] = {}
        self.moments: list[Moment] = []

    def _raw_clock_s(self) -> float:
        return self.modelled.clock_s if self.modelled is not None else time.perf_counter()

    @property
    def clock_s(self) -> float:
        """Seconds since this replica was created, on its engine's clock."""
        return self._raw_clock_s() - self._zero_s

    @property
    def in_flight(self) -> int:
        """Requests that are running or waiting."""
        return len(self._numbers)

    @property
    def running(self) -> int:
        return len(self.scheduler.running)

    @property
    def waiting(self) -> int:
        return self.in_flight - self.running

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks in use."""
        return float(self.scheduler.kv_cache_manager.usage)

    def cached_tokens(self, token_ids: Sequence[int]) -> int:
        """Return how many leading tokens of a prompt are in this replica's prefix cache."""
        if self._core.request_block_hasher is None:
            return 0
        from vllm import SamplingParams
        from vllm.v1.request import Request

        probe = Request(
            request_id="probe",
            prompt_token_ids=list(token_ids),
            sampling_params=SamplingParams(max_tokens=1),
            pooling_params=None,
            block_hasher=self._core.request_block_hasher,
        )
        coordinator = self.scheduler.kv_cache_manager.coordinator
        return int(coordinator.find_longest_cache_hit(probe.block_hashes, len(token_ids) - 1)[1])

    def advance_to(self, time_s: float) -> None:
        """Advance an idle engine's clock; for a real engine, sleep."""
        if self.modelled is not None:
            self.modelled.clock_s = max(self.modelled.clock_s, self._zero_s + time_s)
        else:
            time.sleep(max(0.0, time_s - self.clock_s))

    def submit(self, index: int, token_ids: Sequence[int], output_tokens: int) -> None:
        """Add a request with exactly `output_tokens`. UsageError if vLLM refuses it."""
        from vllm.exceptions import VLLMClientError

        longest = self.engine.model_config.max_model_len
        if len(token_ids) + output_tokens > longest:  # vLLM would silently cut the answer
            raise UsageError(
                f"request {index}: {len(token_ids)} prompt and {output_tokens} output tokens exceed max_model_len "
                f"{longest}",
                remedy="shorten it, or raise max_model_len",
            )
        try:
            self.engine.add_request(str(index), {"prompt_token_ids": token_ids}, exactly(output_tokens))
        except (ValueError, VLLMClientError) as error:
            raise UsageError(f"request {index}: {error}", remedy="shorten it, or raise max_model_len") from error
        self._numbers[str(index)] = index

    def step(self) -> list[NewTokens]:
        before_s = self._raw_clock_s()
        outputs = self.engine.step()
        now_s = self._raw_clock_s()
        progress = [self._progress(output) for output in outputs]
        if now_s > before_s:  # else nothing was scheduled
            self._record(before_s, now_s)
        return progress

    def _record(self, before_s: float, now_s: float) -> None:
        step = self.modelled.steps[-1][2] if self.modelled is not None else None
        self.moments.append(
            Moment(
                end_s=now_s - self._zero_s,
                duration_s=now_s - before_s,
                tokens=step.tokens if step else None,
                prefill_tokens=step.prefill_tokens if step else None,
                running=self.running,
                waiting=self.waiting,
                kv_usage=self.kv_usage,
            )
        )

    def _progress(self, output: Any) -> NewTokens:
        name = output.request_id
        index = self._numbers.pop(name) if output.finished else self._numbers[name]
        return NewTokens(index, output.outputs[0].token_ids, output.finished, output.num_cached_tokens or 0)

    def abort(self) -> None:
        """Abort all requests in flight."""
        self.engine.abort_request(list(self._numbers))
        self._numbers.clear()
