"""Throughput for the calculator: modelled (data/modelled_throughput.json), entered, or measured."""

from collections.abc import Sequence
from datetime import date
from functools import cache
from typing import Literal

from pydantic import Field

from labkit.advice.costs.checked import Checked
from labkit.errors import require
from labkit.files import Frozen, data_path, read_yaml

Counts = Literal["output", "total"]


class Throughput(Checked):
    """Tokens/s of `gpus` GPUs (0: of a whole machine), with an interval if it is known.

    `counts`: output tokens only, or input tokens too ("total"). `label`: its source; `machine`: where it was measured;
    `gpu`: the name of the GPU ("": unknown).
    """

    prefix = "throughput_"

    tokens_per_s: float = Field(gt=0, strict=True, description="tokens/s: measure it (labkit load) or enter it")
    low: float | None = Field(default=None, gt=0, strict=True, description="tokens/s at least")
    high: float | None = Field(default=None, gt=0, strict=True, description="tokens/s at most")
    counts: Counts = Field(default="output", description="which tokens it counts")
    gpus: int = Field(default=0, ge=0, le=1024, strict=True, description="GPUs measured; 0: a whole machine")
    gpu: str = Field(default="", description="the GPU's name, as in the price list")
    label: str = Field(default="entered, not measured", description="where the figure comes from")
    measured: bool = Field(default=False, description="whether it was measured")
    machine: str = Field(default="", description="where it was measured")

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The ends of the interval, which includes the value; None if no interval is known."""
        if self.low is None and self.high is None:
            return None
        ends = [self.tokens_per_s, *(end for end in (self.low, self.high) if end is not None)]
        return min(ends), max(ends)


class Mix(Frozen):
    """A simulated point: requests of one length in a closed loop."""

    input_tokens: int
    output_tokens: int
    requests_per_s: float


class ModelledReplica(Frozen):
    """One replica of a model on `tensor_parallel` modelled cards, and a formula for the time it spends on a request.

    Seconds = prefill x uncached input + output x (decode + context x (input + output / 2)): the longer the contexts,
    the fewer requests share a decode step and the more it reads.
    `error`: worst error of the modelled capacity against real cards; `fit_error`: of this formula against `points`.
    """

    model: str
    card: str
    tensor_parallel: int
    weights_gb: float
    source: str
    warnings: tuple[str, ...]
    error: float
    fit_error: float
    prefill_s: float
    decode_s: float
    context_s: float
    points: tuple[Mix, ...]

    def request_s(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
        """Return the seconds that the replica spends on one request."""
        decode_s = self.decode_s + self.context_s * (input_tokens + output_tokens / 2)
        return self.prefill_s * (input_tokens - cached_tokens) + output_tokens * decode_s


class _Table(Frozen):
    vllm: str
    date: date
    concurrency: int
    requests: int
    max_model_len: int
    rows: tuple[ModelledReplica, ...]


@cache
def _table() -> _Table:
    return read_yaml(data_path("modelled_throughput.json"), _Table, remedy="renew it: make modelled-throughput")


def modelled_models() -> Sequence[str]:
    return list(dict.fromkeys(row.model for row in _table().rows))


@cache
def modelled_replicas(model: str) -> tuple[ModelledReplica, ...]:
    """Return the replicas of a model, the smallest first."""
    return tuple(sorted((row for row in _table().rows if row.model == model), key=lambda row: row.tensor_parallel))


def modelled(replica: ModelledReplica, gpu: str, input_tokens: int, output_tokens: int, cached: int) -> Throughput:
    """Return the replica's throughput for requests of one length, with the model's error as its interval."""
    table, total = _table(), input_tokens + output_tokens
    what = f"a request has {total:,} tokens; the modelled GPU was run with {table.max_model_len:,} at most"
    fix = "measure the throughput, or enter it (throughput_tokens_per_s)"
    require(total <= table.max_model_len, what, fix=fix)
    rate = (output_tokens or total) / replica.request_s(input_tokens, output_tokens, cached)
    error = replica.error + replica.fit_error
    low, high = error_interval(rate, error, f"the modelled throughput of {replica.model} on {replica.card}")
    gpus = f"{replica.tensor_parallel} x {replica.card}" if replica.tensor_parallel > 1 else replica.card
    return Throughput(
        tokens_per_s=rate,
        low=low,
        high=high,
        counts="output" if output_tokens else "total",
        gpus=replica.tensor_parallel,
        gpu=gpu,
        label=f"modelled: {replica.model} on {gpus}, {table.concurrency} requests at a time, vLLM {table.vllm}, "
        f"{table.date}; off by up to {error:.0%}",
    )


def error_interval(value: float, error: float, what: str) -> tuple[float, float]:
    """Return the bounds of a modelled value from its worst error. UsageError: an error of 100% or more bounds nothing.

    `what`: the origin of the value, for the message.
    """
    fix = "measure the throughput, or enter it (throughput_tokens_per_s)"
    require(error < 1, f"{what} gives a direction only: its worst error is {error:.0%}", fix=fix)
    return value / (1 + error), value / (1 - error)


def is_extrapolated(replica: ModelledReplica, input_tokens: int, output_tokens: int) -> bool:
    inputs = [point.input_tokens for point in replica.points]
    outputs = [point.output_tokens for point in replica.points]
    return not (min(inputs) <= input_tokens <= max(inputs) and min(outputs) <= output_tokens <= max(outputs))
