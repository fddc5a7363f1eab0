"""Summarise a load's records in vLLM's definitions.

Names and formulas are those of `vllm bench serve` (vllm/benchmarks/serve.py, `calculate_metrics`), but latencies start
when a request was due (vLLM's are the `..._from_send_s`). Only requests that ended OK count, percentiles are numpy's
linear ones, and throughput is over the whole duration. Other tools use the same names for other quantities. Quantities
without measurements are NaN (None in `to_dict`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import msgspec
import numpy as np

from labkit import errors
from labkit.errors import require
from labkit.load.results import LoadResult, RequestRecord


def percentile(values: Sequence[float], q: float) -> float:
    """Return numpy's linear `q`-th percentile (0 to 100); NaN without values."""
    errors.number("q", q, high=100.0)
    return float(np.percentile(values, q)) if len(values) else math.nan


@dataclass(frozen=True)
class Quantity:
    """Statistics over requests (for ITL, over gaps); `std` is the population's, as in vLLM."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float
    std: float
    count: int


def quantity(values: Iterable[float | None]) -> Quantity:
    """Return the statistics of the values that are not None."""
    data = np.sort([value for value in values if value is not None]).astype(float)  # sorted: sums in one order
    if not data.size:
        return Quantity(*(math.nan,) * 6, count=0)
    p50, p90, p99 = (float(value) for value in np.percentile(data, (50, 90, 99)))
    return Quantity(float(data.mean()), p50, p90, p99, float(data[-1]), float(data.std()), int(data.size))


@dataclass(frozen=True)
class Summary:
    """The metrics of a load. Latencies start when a request was due, which includes the wait if the server or the
    client falls behind an open loop; `..._from_send_s` start when it was sent, as vLLM's do. In a closed loop they are
    equal. Token counts are None, and metrics that need them NaN, if any answer's count is unknown."""

    completed: int
    failed: int
    input_tokens: int | None
    output_tokens: int | None
    duration_s: float
    request_throughput: float
    output_throughput: float
    """Output tokens (by the server's usage) / duration."""
    total_token_throughput: float
    """(Input + output tokens) / duration."""
    ttft_s: Quantity
    first_answer_token_s: Quantity
    """Time to the first token after any reasoning."""
    tpot_s: Quantity
    """Time per output token after the first: (E2E - TTFT) / (output tokens - 1), for answers of two tokens or more."""
    itl_s: Quantity
    """Inter-token latency: the gaps between content chunks of all requests."""
    e2e_s: Quantity
    ttft_from_send_s: Quantity
    e2e_from_send_s: Quantity
    client_cpu_share: float
    requests_per_core_s: float
    """Completed requests per CPU second of this client."""
    warnings: tuple[str, ...]
    concurrency: int | None = None
    """Clients of a closed loop; None for an open one."""
    rate: float | None = None
    """Arrivals per second of an open loop."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, with None for NaN."""
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return plain


def summarise(result: LoadResult) -> Summary:
    summary = summarise_records(result.records, duration_s=result.duration_s, client_cpu_share=result.client_cpu_share)
    return replace(summary, warnings=result.warnings, concurrency=result.concurrency, rate=result.rate)


def summarise_records(
    records: Sequence[RequestRecord], *, duration_s: float, client_cpu_share: float = math.nan
) -> Summary:
    """Return the metrics of `records` measured over `duration_s`."""
    done = [record for record in records if record.ok]
    due = [record.due for record in done]
    inputs = _total(record.input_tokens for record in done)
    outputs = _total(record.output_tokens for record in done)
    return Summary(
        completed=len(done),
        failed=len(records) - len(done),
        input_tokens=inputs,
        output_tokens=outputs,
        duration_s=duration_s,
        request_throughput=_per_second(len(done), duration_s),
        output_throughput=_per_second(outputs, duration_s),
        total_token_throughput=_per_second(_total((inputs, outputs)), duration_s),
        ttft_s=quantity(record.ttft_s for record in due),
        first_answer_token_s=quantity(record.first_answer_token_s for record in due),
        tpot_s=quantity(record.tpot_s for record in done),
        itl_s=quantity(gap for record in done for gap in record.itl_s),
        e2e_s=quantity(record.e2e_s for record in due),
        ttft_from_send_s=quantity(record.ttft_s for record in done),
        e2e_from_send_s=quantity(record.e2e_s for record in done),
        client_cpu_share=client_cpu_share,
        requests_per_core_s=_per_second(len(done), client_cpu_share * duration_s),
        warnings=(),
    )


def _total(counts: Iterable[int | None]) -> int | None:
    """Return the sum, or None if any count is unknown."""
    known = list(counts)
    return None if None in known else sum(cast(list[int], known))


def _per_second(count: int | None, seconds: float) -> float:
    return count / seconds if count is not None and seconds > 0 else math.nan


@dataclass(frozen=True)
class Slo:
    """Service-level objective: upper bounds for each request, in seconds; None sets no bound."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def __post_init__(self) -> None:
        for name, bound in self._bounds.items():
            errors.above_zero(name, bound, unit="seconds")

    @property
    def _bounds(self) -> dict[str, float]:
        return {name: bound for name, bound in asdict(self).items() if bound is not None}

    def holds(self, record: RequestRecord) -> bool:
        """Whether the request ended OK and within every bound. As in vLLM, an answer of one token has a TPOT of 0.

        UsageError if a bounded latency was not measured (no streaming, no usage)."""
        return record.ok and all(_measured(record, name) <= bound for name, bound in self._bounds.items())


def _measured(record: RequestRecord, name: str) -> float:
    value: float | None = getattr(record, name)
    if value is None and name == "tpot_s" and record.ttft_s is not None and record.output_tokens is not None:
        return 0.0
    fix = "stream the answers from a server that sends usage, or leave that bound out"
    require(value is not None, f"the SLO bounds {name}, which request {record.index} does not have", fix=fix)
    return cast(float, value)


def goodput(result: LoadResult, slo: Slo) -> float:
    """Return the requests per second that met every bound of `slo`."""
    return _per_second(sum(slo.holds(record) for record in result.records), result.duration_s)
