"""vLLM's executor on a modelled GPU: it computes nothing and advances a clock by the card's step times.

All other parts of vLLM 0.32 are real: configuration, KV-cache sizing and its start-up errors, scheduler, block manager,
prefix cache, preemption, chunked prefill, counters, the API server. On vLLM's command line or in `LLM(...)`:

    distributed_executor_backend="labkit.modelled.executor.ModelledExecutor"
    additional_config={"modelled_gpu": {"card": "h100-sxm"}}

`labkit.modelled.gpu` provides both. This is the only module in labkit that imports vLLM at its top.
"""

import math
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.executor.abstract import Executor
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheSpec, SlidingWindowSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.worker.worker_base import CompilationTimes

from labkit.errors import UsageError
from labkit.modelled.settings import WORKSPACE_BYTES, Settings
from labkit.modelled.shapes import BYTES_16_BIT, Shape, read_config, shape_of
from labkit.modelled.step_time import Step
from labkit.modelled.tracking import Tracked, Tracker
from labkit.models import architecture
from labkit.theory.kv_pool import heads_per_rank

logger = init_logger("vllm.labkit.modelled")  # under vLLM's own logger, so that it goes where vLLM's log goes

ANSWER_TOKENS = 256
"""Length of an answer without max_tokens and ignore_eos, in place of a real model's end token."""

FILLER = "This text is filler from a modelled GPU: no model computed it. "
LATE_SHARE = 0.1
LATE_REPORT_S = 10.0


class ModelledExecutor(Executor):  # type: ignore[misc]
    """One modelled card, or `tensor_parallel_size` of them, with a clock in seconds.

    `steps`: end, duration and Step of each step; on a virtual clock only. `windows`: of each group of layers that takes
    blocks of its own, the tokens that it keeps.
    """

    def _init_executor(self) -> None:
        self.settings = Settings.read(self.vllm_config.additional_config)
        self._refuse_unsupported()
        folder = Path(self.model_config.model)
        self.shape: Shape = shape_of(folder)
        self.step_time = self.settings.step_time(folder, self.parallel_config.tensor_parallel_size)
        if not self.cache_config.user_specified_block_size:
            self.cache_config.block_size = 16  # vLLM's default on a GPU; the CPU build sets another
        self._filler, self._end_token = _filler_tokens(self.vllm_config)
        self.tracker = Tracker()
        self.clock_s = 0.0
        self.steps: list[tuple[float, float, Step]] = []
        self._pace = _Pace() if self.settings.real_time else None

    def _refuse_unsupported(self) -> None:
        model, config = self.model_config, self.vllm_config
        parallel, offload = config.parallel_config, config.offload_config
        refusals = {
            "speculative decoding": config.speculative_config is not None,
            "LoRA adapters": config.lora_config is not None,
            "a KV connector": config.kv_transfer_config is not None,
            "pipeline parallelism": parallel.pipeline_parallel_size > 1,
            "data parallelism inside the engine": parallel.data_parallel_size > 1,
            "expert parallelism": parallel.enable_expert_parallel,
            "multimodal input": model.is_multimodal_model,
            "an encoder-decoder": model.is_encoder_decoder,
            "a model that generates nothing": model.runner_type != "generate",
            "multi-head latent attention (no KV spec and no checked kernel times here)": model.use_mla,
            "layers that keep a state instead of a KV cache (no step times)": model.is_hybrid
            or model.is_attention_free,
            "layers that attend to chunks (chunked_attention: no step times)": (
                "chunked_attention" in (getattr(model.hf_text_config, "layer_types", None) or ())
            ),
            f"a KV cache in {self.cache_config.cache_dtype} (step times are for 16 bits)": (
                self.cache_config.cache_dtype not in ("auto", "bfloat16", "float16")
            ),
            f"{model.dtype} (step times are for 16 bits)": (
                self.settings.card is not None and model.dtype.itemsize != BYTES_16_BIT
            ),
            f"weights in {model.quantization}, which config.json does not have": (
                model.quantization is not None and not read_config(Path(model.model)).get("quantization_config")
            ),
            "weights in host memory": offload.uva.cpu_offload_gb > 0 or offload.prefetch.offload_group_size > 0,
        }
        if refused := [feature for feature, present in refusals.items() if present]:
            raise UsageError(
                f"the modelled GPU does not support {', '.join(refused)}",
                remedy="leave the option out, or choose a model whose layers are plain attention",
            )

    # Calls from the engine to its workers; the result is a list, with one entry per worker.

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,  # noqa: ARG002
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,
    ) -> Any:
        handler = getattr(self, f"_rpc_{method}", None) if isinstance(method, str) else None
        results = [handler(*args, **(kwargs or {})) if handler else None]
        return _done(results) if non_block else results

    def _rpc_get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        model, tensor_parallel = architecture(self.model_config.model), self.parallel_config.tensor_parallel_size
        size = {"block_size": self.cache_config.block_size, "dtype": self.model_config.dtype}
        specs: list[KVCacheSpec] = []
        for layers in model.storing_layers:
            heads = heads_per_rank(layers, model, tensor_parallel)
            shape = {"num_kv_heads": heads, "head_size": layers.key_size, "head_size_v": layers.value_size, **size}
            window = {} if layers.window is None else {"sliding_window": layers.window}
            specs += [(SlidingWindowSpec if window else FullAttentionSpec)(**shape, **window)] * layers.count
        return {f"model.layers.{index}.self_attn.attn": spec for index, spec in enumerate(specs)}

    def _rpc_get_supported_kv_cache_layouts(self) -> list[str]:
        return ["NHD"]

    def _rpc_determine_available_memory(self) -> int:
        # This setting of the CPU platform applies to this machine, modelled, and not to a card.
        if os.environ.get("VLLM_CPU_KVCACHE_SPACE") and self.settings.card:
            self.cache_config.kv_cache_memory_bytes = None
        if self.cache_config.kv_cache_memory_bytes:
            return int(self.cache_config.kv_cache_memory_bytes)
        share = self.cache_config.gpu_memory_utilization
        weights = self.shape.weight_bytes / self.parallel_config.tensor_parallel_size
        memory = self.settings.memory_bytes
        left = int(share * memory - weights - WORKSPACE_BYTES)
        logger.info(
            "%s: %.2f GiB x %.2f - %.2f GiB weights - %.2f GiB workspace (assumed) = %.2f GiB for the KV cache",
            self.settings.title, memory / 2**30, share, weights / 2**30, WORKSPACE_BYTES / 2**30, left / 2**30,
        )  # fmt: skip
        if left <= 0:
            raise ValueError(
                f"No available memory for the cache blocks: {weights / 2**30:.2f} GiB of weights and "
                f"{WORKSPACE_BYTES / 2**30:.0f} GiB of workspace do not fit {share:.2f} x {memory / 2**30:.1f} GiB of "
                f"{self.settings.title}. Try a larger card, `tensor_parallel_size`, or a larger "
                "`gpu_memory_utilization` when initializing the engine."
            )
        return left

    def _rpc_initialize_from_config(self, configs: list[KVCacheConfig]) -> None:
        specs = [group.kv_cache_spec for group in configs[0].kv_cache_groups]
        self.windows = [spec.sliding_window if isinstance(spec, SlidingWindowSpec) else math.inf for spec in specs]
        # --kv-cache-memory-bytes and --num-gpu-blocks-override may ask for more than the card has.
        cache = configs[0].kv_cache_tensors[0].size
        weights = self.shape.weight_bytes / self.parallel_config.tensor_parallel_size
        if self.settings.card and cache + weights > self.settings.memory_bytes:
            raise ValueError(
                f"out of memory: {weights / 2**30:.2f} GiB of weights and {cache / 2**30:.2f} GiB of KV cache do not "
                f"fit {self.settings.title} with {self.settings.memory_bytes / 2**30:.1f} GiB. Ask for a smaller cache."
            )

    def _rpc_compile_or_warm_up_model(self) -> CompilationTimes:
        return CompilationTimes(0.0, 0.0)

    def _rpc_get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def _rpc_get_model_inspection(self) -> str:  # for `repr(llm)`
        return f"no model: {self.settings.title}"

    def check_health(self) -> None:
        """Always healthy."""

    def execute_model(
        self, scheduler_output: SchedulerOutput, non_block: bool = False
    ) -> ModelRunnerOutput | Future[ModelRunnerOutput]:
        """Advance the clock by the step's time, and return the step's tokens."""
        output, step = self._take(scheduler_output)
        if step.tokens:
            self._spend(step)
        return _done(output) if non_block else output

    def _take(self, scheduled: SchedulerOutput) -> tuple[ModelRunnerOutput, Step]:
        step, names, sampled = Step(), [], []
        for name, request, due in self.tracker.follow(scheduled, step):
            names.append(name)
            sampled.append([self._next_token(request)] if due else [])
        indices = {name: index for index, name in enumerate(names)}
        return ModelRunnerOutput(req_ids=names, req_id_to_index=indices, sampled_token_ids=sampled), step

    def _next_token(self, request: Tracked) -> int:
        position = request.written
        request.written += 1
        if position >= ANSWER_TOKENS and self._end_token is not None and not request.sampling_params.ignore_eos:
            return self._end_token
        return self._filler[position % len(self._filler)]

    def _spend(self, step: Step) -> None:
        seconds = self.step_time.seconds(step) + self.settings.overhead_s
        self.clock_s += seconds
        if self._pace is not None:
            self._pace.wait(seconds, continues=step.decodes > 0)
        else:  # not in a server, which runs for days
            self.steps.append((self.clock_s, seconds, step))


class _Pace:
    """Real time: a step ends when it would on the card, or as soon after as this machine can.

    A real engine prepares a step while the card computes the previous one; so consecutive steps are timed from the end
    of the previous step, not from when this machine was ready.
    """

    def __init__(self) -> None:
        self._free_at = 0.0
        self._modelled_s = self._late_s = 0.0
        self._reported = time.monotonic()

    def wait(self, seconds: float, *, continues: bool) -> None:
        now = time.monotonic()
        start = self._free_at if continues and now - self._free_at < max(seconds, 0.05) else now
        self._free_at = start + seconds
        rest = self._free_at - now
        if rest > 0:
            time.sleep(rest)
        else:
            self._late_s -= rest
            self._free_at = now
        self._modelled_s += seconds
        self._report(now)

    def _report(self, now: float) -> None:
        if now - self._reported < LATE_REPORT_S:
            return
        share = self._late_s / self._modelled_s
        if share > LATE_SHARE:
            logger.warning(
                "modelled GPU: this machine is too slow: steps took %.0f%% longer than modelled in the last %.0f s; "
                "lower the load, or read throughput as a lower bound", 100 * share, now - self._reported,
            )  # fmt: skip
        self._reported, self._modelled_s, self._late_s = now, 0.0, 0.0


def _done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


def _filler_tokens(config: Any) -> tuple[list[int], int | None]:
    """Return the tokens that answers repeat (FILLER, with a tokenizer), and the end token."""
    model = config.model_config
    vocabulary = model.get_vocab_size()
    if model.skip_tokenizer_init:
        return [vocabulary // 2 + offset for offset in range(64)], None
    from vllm.tokenizers import cached_tokenizer_from_config

    tokenizer = cached_tokenizer_from_config(model)
    ids = [token for token in tokenizer.encode(FILLER, add_special_tokens=False) if token < vocabulary]
    return ids, tokenizer.eos_token_id
