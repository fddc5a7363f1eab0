"""Simulate a load on modelled cards with vLLM options: results with their errors, or a refusal."""

import argparse
import contextlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from labkit.errors import UsageError, require
from labkit.load.metrics import Quantity, Summary, summarise
from labkit.modelled.driver import Drive, drive
from labkit.modelled.engine import ModelledGpu
from labkit.modelled.evidence import Promise, promise
from labkit.modelled.replica import close
from labkit.modelled.routers import Router
from labkit.modelled.step_time import Step, StepTime
from labkit.modelled.traffic import Traffic

KV_POINTS = 60
RESERVED = {"model", "tensor_parallel_size", "additional_config", "distributed_executor_backend"}


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A load on modelled cards. `capacity_per_s`: maximum requests per second of all replicas."""

    gpu: ModelledGpu
    driven: Drive
    summary: Summary
    promise: Promise
    replicas: int
    capacity_per_s: float
    load_share: float

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each limitation."""
        notes = [*self.driven.result.warnings]
        tpot = self.promise.of("tpot_ms")
        if tpot is not None and self.gpu.card.name not in tpot.cards:
            notes.append(
                f"no served load on {self.gpu.card.title} is among those compared here: errors come from other cards"
            )
        if self.promise.direction_only:
            notes.append(f"direction only: {self.promise.direction_only}")
        if self.promise.region == "overload":
            notes.append(
                f"overload: at {self.load_share:.0%} of capacity the queue grows for as long as the load lasts, so "
                "a TTFT would only show how long the load lasted"
            )
        elif self.promise.region == "90-100%":
            notes.append(
                f"near the knee: at {self.load_share:.0%} of capacity queues determine the TTFT, and step times cannot "
                "predict it"
            )
        elif not self.promise.shows_ttft:
            notes.append("no TTFT: none was compared with a real one for this kind of model")
        elif (self.driven.result.concurrency or 0) > 1:
            notes.append("closed loop: all clients begin at once, and the TTFT of that first wave is in the figures")
        return tuple(notes)

    def to_json(self) -> dict[str, Any]:
        """Return plain data. Unsupported figures are None: every p99, and TTFT and E2E near capacity."""
        summary = self.summary.to_dict()
        keys = ("completed", "failed", "input_tokens", "output_tokens", "duration_s", "request_throughput")
        return {
            **{key: summary[key] for key in (*keys, "output_throughput")},
            **{name: self._quantity(name) for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s")},
            "warnings": list(self.warnings),
            "gpu": self.gpu.card.name,
            "model": self.gpu.folder.name,
            "tensor_parallel": self.gpu.tensor_parallel,
            "replicas": self.replicas,
            "source": self.gpu.label,
            "error": {"text": self.promise.text(), "region": self.promise.region, **self._errors()},
            "capacity_per_s": self.capacity_per_s,
            "load_share": self.load_share,
            "preemptions": self.driven.preemptions,
            "prefix_hit_rate": None if math.isnan(self.driven.prefix_hit_rate) else self.driven.prefix_hit_rate,
            "kv_usage": self.kv_usage(),
        }

    def _errors(self) -> dict[str, Any]:
        names = {"tpot": "tpot_ms", "capacity": "output_per_s"}
        names |= {"ttft": "ttft_ms"} if self.promise.shows_ttft else {}
        return {
            name: {"mean": errors.mean, "worst": errors.worst, "points": errors.points}
            for name, quantity in names.items()
            if (errors := self.promise.of(quantity)) is not None
        }

    def quantity(self, name: str) -> Quantity | None:
        """Return a latency of the summary, or None if it is unsupported."""
        waits = name in ("ttft_s", "e2e_s")
        latency: Quantity = getattr(self.summary, name)
        return None if (waits and not self.promise.shows_ttft) or not latency.count else latency

    def _quantity(self, name: str) -> dict[str, float | None]:
        latency = self.quantity(name)
        return {**{key: getattr(latency, key, None) for key in ("mean", "p50", "p90")}, "p99": None}

    def kv_usage(self) -> list[list[float]]:
        """Return KV_POINTS pairs: seconds, and the share of KV blocks in use on the fullest replica."""
        duration_s = self.summary.duration_s
        slots = [0.0] * KV_POINTS
        for moments in self.driven.moments:
            for moment in moments:
                slot = min(KV_POINTS - 1, int(KV_POINTS * moment.end_s / duration_s)) if duration_s else 0
                slots[slot] = max(slots[slot], moment.kv_usage)
        return [[duration_s * (slot + 1) / KV_POINTS, usage] for slot, usage in enumerate(slots)]


def simulate(
    gpu: ModelledGpu,
    traffic: Traffic,
    *,
    concurrency: int | None = None,
    replicas: int = 1,
    router: Router | None = None,
    options: Mapping[str, Any] | None = None,
    direction_only: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Simulation:
    """Run `traffic` through vLLM on `replicas` of the modelled card; `options` are more arguments of `LLM(...)`.

    `progress` is called with (finished requests, all requests). UsageError for an option that vLLM or the modelled card
    refuses, a model that does not fit, and, unless `direction_only`, a card or model that was not compared.
    """
    refusal = promise(gpu.card, gpu.folder, tensor_parallel=gpu.tensor_parallel, load_share=0.0).direction_only
    fix = "pass --direction-only for numbers that show a direction, not a size"
    require(not refusal or direction_only, refusal, fix=fix)
    reserved = sorted(RESERVED & set(options or {}))
    what = f"vLLM's {', '.join(reserved)} cannot be passed: the modelled card sets it"
    require(not reserved, what, fix="use --model, --tensor-parallel and --gpu")
    arguments = {**gpu.served_llm, **(options or {})}
    engines: list[Any] = []
    try:
        engines.extend(_start(gpu, arguments) for _ in range(replicas))
        driven = drive(engines, traffic, concurrency=concurrency, router=router, progress=progress)
        config = engines[0].llm_engine.vllm_config
        capacity = replicas * capacity_per_s(engines[0].llm_engine.model_executor, config, driven)
    finally:
        for engine in engines:
            close(engine)
    summary = summarise(driven.result)
    load_share = offered_rate(traffic, driven, concurrency) / capacity
    return Simulation(
        gpu=gpu,
        driven=driven,
        summary=replace(summary, warnings=driven.result.warnings),
        promise=promise(gpu.card, gpu.folder, tensor_parallel=gpu.tensor_parallel, load_share=load_share),
        replicas=replicas,
        capacity_per_s=capacity,
        load_share=load_share,
    )


def _start(gpu: ModelledGpu, arguments: Mapping[str, Any]) -> Any:
    from vllm import LLM

    try:
        return LLM(gpu.model, **arguments)
    except (ValueError, TypeError) as error:
        reasons = [str(error)]
        if isinstance(error, ValidationError):
            reasons = [": ".join([*map(str, problem["loc"]), problem["msg"]]) for problem in error.errors()]
        raise UsageError(f"vLLM refuses: {'; '.join(reasons)}", remedy="change the option that it names") from error


def offered_rate(traffic: Traffic, driven: Drive, concurrency: int | None) -> float:
    """Return the arrivals per second of an open loop, or the completions per second of a closed one."""
    records = driven.result.records
    last_due_s = max(record.scheduled_s for record in records)
    if concurrency is None and last_due_s > 0:
        return (len(traffic) - 1) / last_due_s if len(traffic) > 1 else 1 / last_due_s
    return len(records) / driven.result.duration_s


def capacity_per_s(executor: Any, config: Any, driven: Drive) -> float:
    """Return the requests per second of one full replica, from the time of a step with the most running requests.

    In steady state each step generates a token for each running request and prefills replacements for those that end;
    the token budget, max_num_seqs or the KV cache limits how many run.
    """
    records = driven.result.records
    inputs = sum(record.input_tokens or 0 for record in records) / len(records)
    outputs = sum(record.output_tokens or 0 for record in records) / len(records)
    computed = max(1.0, inputs - driven.cached_tokens / len(records))
    kv_tokens = config.cache_config.num_gpu_blocks * config.cache_config.block_size
    scheduler = config.scheduler_config
    running = min(
        scheduler.max_num_seqs,
        kv_tokens / sum(min(inputs + outputs, window) for window in executor.windows),
        scheduler.max_num_batched_tokens / (1 + computed / outputs),
    )
    step_s = _full_step_s(executor.step_time, running, inputs, outputs, computed) + executor.settings.overhead_s
    return float(running / (outputs * step_s))


def _full_step_s(step_time: StepTime, running: float, inputs: float, outputs: float, computed: float) -> float:
    step = Step()
    decodes = max(1, round(running))
    for _ in range(decodes):
        step.add(1, prefix=round(inputs + outputs / 2), decode=True, sampled=True)
    prefilled = running * computed / outputs
    prompts, rest = divmod(round(prefilled), round(computed))
    for tokens in [round(computed)] * prompts + ([rest] if rest else []):
        step.add(tokens, prefix=round(inputs - computed), decode=False, sampled=True)
    return step_time.seconds(step)


def vllm_options(flags: Sequence[str]) -> dict[str, Any]:
    """Parse flags of `vllm serve` with vLLM's own parser into arguments of `LLM(...)`, without defaults.

    UsageError for an unknown flag or a refused value."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(add_help=False))
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return dict(vars(parser.parse_args(list(flags))))
    except SystemExit as error:
        reason = printed.getvalue().strip().splitlines()[-1:] or ["unknown reason"]
        raise UsageError(f"vLLM's options: {reason[0]}", remedy="see `vllm serve --help`") from error
