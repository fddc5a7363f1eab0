"""Step times on a GPU: from measured kernels, from a formula, or fitted on this machine."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from labkit.errors import UsageError
from labkit.modelled.cards import Card
from labkit.modelled.shapes import BYTES_16_BIT, Shape


@dataclass(slots=True)
class Step:
    """The work of one engine step, summed over its requests.

    A request decodes (one token after its prompt) or prefills (a chunk of its prompt, after `prefix` computed or cached
    tokens). `attention_pairs`: pairs of a prefilled token and a token it attends to.
    """

    tokens: int = 0
    sequences: int = 0
    sampled: int = 0
    decodes: int = 0
    decode_context: int = 0
    prefill_tokens: int = 0
    prefill_squared: int = 0
    prefill_times_prefix: int = 0
    context: int = 0
    attention_pairs: float = 0.0

    def add(self, tokens: int, *, prefix: int, decode: bool, sampled: bool) -> None:
        """Add `tokens` of one request, after `prefix` computed ones."""
        end = prefix + tokens
        self.tokens += tokens
        self.sequences += 1
        self.context += end
        self.sampled += sampled
        if decode:
            self.decodes += 1
            self.decode_context += end
        else:
            self.prefill_tokens += tokens
            self.prefill_squared += tokens * tokens
            self.prefill_times_prefix += tokens * prefix
            self.attention_pairs += tokens * (end - tokens / 2)


class StepTime(Protocol):
    """Seconds of a step, without engine and host time."""

    def seconds(self, step: Step) -> float: ...


ATTENTION_EFFICIENCY = 0.46
"""Share of the sheet's FLOP/s in prefill attention. Median of the four cards in data/gpu_points.csv whose prefill of
28,650 tokens was measured with vLLM 0.7.3 (A100 40 and 80, H100, H200: 0.34 to 0.55)."""

ALL_REDUCE_S = 10e-6
"""Latency of an all-reduce of a few KB between the GPUs of one machine over NVLink. Assumed (the usual 8 to 15 µs)."""

LINK_EFFICIENCY = 0.8
"""Share of NVLink's bytes/s in an all-reduce. Assumed; it matters only for long prefills."""


@dataclass(frozen=True, kw_only=True)
class Formula:
    """A roofline with efficiencies and added terms, which can be computed by hand.

    t = ((2 P tokens + 2 P_head sampled) / (FLOP/s mfu) + 4 layers heads head_dim pairs / (FLOP/s 0.46)
         + (weights + KV read) / (bytes/s mbu)) / GPUs + 2 layers all-reduces

    The sum fits serving measurements better than the maximum (docs/modelled-gpu.md has the errors). An all-reduce, with
    tensor parallelism only, takes a latency and the time of its bytes over the links (a ring).
    """

    shape: Shape
    flops: float
    attention_flops: float
    bytes_per_s: float
    tensor_parallel: int = 1
    link_bytes_per_s: float = 0.0

    @classmethod
    def of(cls, card: Card, shape: Shape, *, tensor_parallel: int = 1) -> "Formula":
        """Build the formula for a model on `tensor_parallel` cards. UsageError for a card without efficiencies."""
        if card.efficiency is None or card.flops is None:
            raise UsageError(
                f"{card.title} has neither measured kernels nor efficiencies: a step time would be a guess",
                remedy="choose a card with evidence; docs/modelled-gpu.md lists them",
            )
        card.require_links(tensor_parallel)
        return cls(
            shape=shape,
            flops=card.flops * card.efficiency.mfu,
            attention_flops=card.flops * ATTENTION_EFFICIENCY,
            bytes_per_s=card.bytes_per_s * card.efficiency.mbu,
            tensor_parallel=tensor_parallel,
            link_bytes_per_s=(card.nvlink_gb_per_s or 0.0) / 2 * 1e9 * LINK_EFFICIENCY,
        )

    def seconds(self, step: Step) -> float:
        shape = self.shape
        linear = 2 * shape.active_parameters * step.tokens + 2 * shape.head_parameters * step.sampled
        attention = 4 * shape.layers * shape.attention_heads * shape.head_dim * step.attention_pairs
        read = shape.read_bytes + step.context * shape.kv_bytes_per_token
        alone_s = linear / self.flops + attention / self.attention_flops + read / self.bytes_per_s
        return alone_s / self.tensor_parallel + self._all_reduce_s(step.tokens)

    def _all_reduce_s(self, tokens: int) -> float:
        gpus, shape = self.tensor_parallel, self.shape
        if gpus == 1:
            return 0.0
        message_bytes = tokens * shape.hidden_size * BYTES_16_BIT
        moved_s = 2 * (gpus - 1) / gpus * message_bytes / self.link_bytes_per_s
        return 2 * shape.layers * (ALL_REDUCE_S + moved_s)


class Kernels:
    """Kernel times measured on the card, interpolated by aiconfigurator-core (NVIDIA, Apache-2.0).

    Covers tensor parallelism and mixtures of experts.
    """

    def __init__(self, card: Card, folder: Path, *, tensor_parallel: int = 1) -> None:
        """UsageError if the package has no data for this model on this card."""
        assert card.kernels is not None
        card.require_links(tensor_parallel)
        self._engine = _compiled(str(folder), card.kernels.system, card.kernels.version, tensor_parallel)

    def seconds(self, step: Step) -> float:
        if not step.prefill_tokens:
            return float(self._engine.decode_step_latency(step.decodes, step.decode_context // step.decodes, 2)) / 1e3
        linear_ms = self._parts_ms(step.prefill_tokens, step.decodes, step.prefill_tokens)[1]
        return (linear_ms + self._prefill_attention_ms(step) + self._decode_attention_ms(step)) / 1e3

    def _parts_ms(self, prefill_tokens: int, decodes: int, context: int) -> tuple[float, float, float, float]:
        """Return the total of a mixed step without prefix, its shared part, and the attention of prefill and decode."""
        parts: tuple[float, float, float, float] = self._engine.mixed_step_breakdown(
            prefill_tokens, decodes, max(1, context), 2
        )
        return parts

    def _prefill_attention_ms(self, step: Step) -> float:
        """Approximate the attention of all chunks by chunks of their mean length after their mean prefix."""
        chunk = max(1, round(step.prefill_squared / step.prefill_tokens))
        prefix = round(step.prefill_times_prefix / step.prefill_tokens)
        alone_ms = self._engine.predict_prefill_latency(1, chunk + prefix, prefix)
        attention_ms = alone_ms - self._parts_ms(chunk, 0, chunk)[1]
        return float(step.prefill_tokens / chunk * max(0.0, attention_ms))

    def _decode_attention_ms(self, step: Step) -> float:
        return self._parts_ms(1, step.decodes, step.decode_context // step.decodes)[3] if step.decodes else 0.0


@lru_cache(maxsize=16)
def _compiled(folder: str, system: str, version: str, tensor_parallel: int) -> Any:
    from aiconfigurator_core.sdk.engine import EngineHandle

    logging.getLogger("aiconfigurator_core").setLevel(logging.ERROR)  # notes about unused tables
    try:
        handle = EngineHandle.compile(
            folder,
            system,
            "vllm",
            backend_version=version,
            tp_size=tensor_parallel,
            moe_tp_size=tensor_parallel,
            moe_ep_size=1,
        )
        handle.decode_step_latency(1, 128, 2)
        handle.mixed_step_latency(128, 1, 128, 2)
    except Exception as error:  # the package raises many kinds of errors
        raise UsageError(
            f"there are no measured kernel times of this model on {system} (vLLM {version}): {error}",
            remedy="choose another card or model, or the formula, whose error for this model is unknown",
        ) from error
    return handle._engine  # without the wrapper, whose conversions take longer than the query


TERMS = ("constant", "prefilling", "tokens", "sequences", "context", "attention_pairs")


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Step times of an engine on this machine: TERMS weighted by coefficients from `calibrate`, in seconds."""

    coefficients: Mapping[str, float]

    def seconds(self, step: Step) -> float:
        values = terms(step)
        return sum(self.coefficients[name] * value for name, value in zip(TERMS, values, strict=True))


def terms(step: Step) -> tuple[float, ...]:
    """Return a step's values of TERMS, in order."""
    prefilling = float(step.prefill_tokens > 0)
    return (1.0, prefilling, step.tokens, step.sequences, step.context, step.attention_pairs)
