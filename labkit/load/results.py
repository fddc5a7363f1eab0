"""The result of a load: a record of every request, and of the run.

Times are seconds since the load began (`time.perf_counter`); those of warm-up requests are negative.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

from labkit.experiments import client_bound

LATE_S = 0.1
"""Warn if the client sent a request of an open loop this long after it was due."""
OPEN_S = 0.5
"""Warn if an answer ended this long after its last token: in a closed loop its slot was idle."""
FEW_TOKENS = 8
FASTEST_TOKEN_S = 1e-4
"""No engine generates a single answer faster than 10,000 tokens/s."""
FAST_TOKEN_S = 1e-3
"""A client may read an answer that took less than this per token, waiting included, in one piece."""


class Outcome(StrEnum):
    OK = "ok"
    HTTP_ERROR = "http_error"
    """A status other than 2xx, or an error object inside the stream."""
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    """Refused, reset, or closed before the answer was complete."""
    MALFORMED = "malformed"
    """The answer violates the protocol: invalid JSON, no content, or no end."""
    CANCELLED = "cancelled"
    """The load was stopped while the request was in flight."""


@dataclass(frozen=True)
class RequestRecord:
    """One request. Derived times follow vLLM's definitions (vllm/benchmarks/lib/endpoint_request_func.py). They are
    None for a request that did not end OK; TTFT and TPOT also for an answer that was not streamed."""

    index: int
    scheduled_s: float
    started_s: float
    chunk_times_s: tuple[float, ...]
    """Arrivals of chunks with `choices`, starting at the first with a token (a chunk may hold several). Empty if the
    answer was not streamed or had no visible token."""
    finished_s: float
    input_tokens: int | None
    output_tokens: int | None
    """By the server's usage; None if it sent none, or an impossible one."""
    outcome: Outcome
    status: int | None = None
    error: str = ""
    text: str = ""
    warmup: bool = False
    group: str = ""
    answer_token_s: float | None = None
    """Arrival of the first token after any reasoning."""
    limit_tokens: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.outcome is Outcome.OK

    @property
    def ttft_s(self) -> float | None:
        """Time to first token: first content chunk - start."""
        return self.chunk_times_s[0] - self.started_s if self.ok and self.chunk_times_s else None

    @property
    def first_answer_token_s(self) -> float | None:
        """First token after any reasoning - start; equals TTFT without reasoning."""
        return self.answer_token_s - self.started_s if self.ok and self.answer_token_s is not None else None

    @property
    def e2e_s(self) -> float | None:
        """End to end: last content chunk (or the whole answer) - start. As in vLLM, the usage chunk and [DONE] that
        follow do not count."""
        ended_s = self.chunk_times_s[-1] if self.chunk_times_s else self.finished_s
        return ended_s - self.started_s if self.ok else None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first: (E2E - TTFT) / (output_tokens - 1); None for fewer than two tokens."""
        if self.ttft_s is None or self.e2e_s is None or self.output_tokens is None or self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)

    @property
    def itl_s(self) -> tuple[float, ...]:
        """Inter-token latencies: the gaps between content chunks (a chunk may hold several tokens)."""
        times = self.chunk_times_s if self.ok else ()
        return tuple(later - earlier for earlier, later in pairwise(times))

    @property
    def waited_s(self) -> float:
        return self.started_s - self.scheduled_s

    @property
    def e2e_from_schedule_s(self) -> float | None:
        return self.due.e2e_s

    @property
    def due(self) -> "RequestRecord":
        """A copy that starts when the request was due: counting from a late start would hide the wait (coordinated
        omission)."""
        return replace(self, started_s=self.scheduled_s)


@dataclass(frozen=True)
class LoadResult:
    """A load run. `records` are the measured requests in the workload's order; `warmup_records` came before them.
    `duration_s` is from the load's start to the end of its last request."""

    records: tuple[RequestRecord, ...]
    duration_s: float
    client_cpu_s: float
    """CPU time of this process during `duration_s`; NaN if unknown (a result read from a file)."""
    concurrency: int | None
    rate: float | None
    workload: str
    seed: int | None
    warnings: tuple[str, ...] = ()
    warmup_records: tuple[RequestRecord, ...] = ()
    model: str = ""
    api: str = "completions"
    stream: bool = True
    arrival: str | None = None

    def with_warnings(self, *, planned: int, ramp_from: float | None = None) -> "LoadResult":
        """Return a copy that adds the reasons to doubt it to `warnings`."""
        return replace(self, warnings=(*self.warnings, *find_warnings(self, planned=planned, ramp_from=ramp_from)))

    @property
    def client_cpu_share(self) -> float:
        """CPU time of this process / duration: 1.0 is one core, the most that this client of one thread can use."""
        return self.client_cpu_s / self.duration_s if self.duration_s > 0 else 0.0


AnswerCheck = tuple[Callable[[RequestRecord], bool], str]


def _judged(record: RequestRecord) -> bool:
    """Whether the answer is long and slow enough to show whether its tokens arrived one by one.

    Usage may count hidden reasoning: the visible tokens are at most the chunks or the characters."""
    chunks = len(record.chunk_times_s)
    tokens = record.output_tokens or chunks
    long = chunks > 0 and min(tokens, max(chunks, len(record.text))) >= FEW_TOKENS
    return long and (record.e2e_s or 0.0) > tokens * FAST_TOKEN_S


def _in_clumps(record: RequestRecord) -> bool:
    """Whether the answer arrived at once, or most of its chunks with FEW_TOKENS or more at the same instant: faster
    than engines generate them, unless speculatively. A single chunk of many tokens is no clump: engines send several
    per step."""
    clumps: list[list[float]] = []
    for time in record.chunk_times_s:
        if clumps and time - clumps[-1][0] < len(clumps[-1]) * FASTEST_TOKEN_S:
            clumps[-1].append(time)
        else:
            clumps.append([time])
    large = sum(len(clump) for clump in clumps if len(clump) >= FEW_TOKENS)
    return len(clumps) == 1 or large > len(record.chunk_times_s) / 2


TOKEN_CHECKS: tuple[AnswerCheck, ...] = (
    (
        lambda record: record.output_tokens is None,
        "came without a usable usage: their tokens are unknown, and chunks are not tokens",
    ),
    (
        lambda record: len(record.chunk_times_s) > 2 * (record.output_tokens or math.inf) + 2,
        "report fewer tokens in their usage than half their chunks: is it the total?",
    ),
)
STREAM_CHECKS: tuple[AnswerCheck, ...] = (
    (lambda record: not record.chunk_times_s, "have no visible token, and so no TTFT"),
    (
        lambda record: bool(record.chunk_times_s) and record.answer_token_s is None,
        "ended inside their reasoning, before the first token of the answer",
    ),
)


CLUMPED = (
    f"long answers arrived in clumps of {FEW_TOKENS} tokens or more: the server or a proxy holds tokens back (or the "
    "server decodes speculatively), so TTFT is the time of a whole clump (up to the whole answer), ITL is meaningless, "
    "and TPOT is too short. To fix it: turn off response buffering and compression on the way (nginx: proxy_buffering "
    "off, gzip off), or load the server itself"
)


def find_warnings(result: LoadResult, *, planned: int, ramp_from: float | None = None) -> Iterator[str]:
    """Yield a sentence for each reason to doubt `result`, a run of `planned` requests."""
    yield from _failures(result.records, "requests")
    yield from _failures(result.warmup_records, "warm-up requests")
    if missing := planned - len(result.records):
        why = f"the load was stopped after {result.duration_s:.1f} s, or the turn before them failed"
        yield f"{missing} of {planned} requests were not sent: {why}"
    done = [record for record in result.records if record.ok]
    for applies, problem in TOKEN_CHECKS + (STREAM_CHECKS if result.stream else ()):
        if count := sum(map(applies, done)):
            yield f"{count} of {len(done)} answers {problem}"
    judged = [record for record in done if result.stream and _judged(record)]
    clumped = sum(map(_in_clumps, judged))
    busy = client_bound(result.client_cpu_share)
    # A paused client makes clumps of a few answers, a busy one of all.
    if clumped > len(judged) / 2 and not busy:
        yield f"{clumped} of {len(judged)} {CLUMPED}"
    yield from _outliers(done)
    if busy:
        yield busy
    if (latest_s := max((record.waited_s for record in result.records), default=0.0)) > LATE_S:
        yield f"the client fell behind: a request was sent {latest_s:.2f} s after it was due"
    if ramp_from is not None:
        yield f"the load rose from {ramp_from:g}: the metrics are for the whole ramp, not for one level"


def _failures(records: Sequence[RequestRecord], what: str) -> Iterator[str]:
    if failed := [record for record in records if not record.ok]:
        outcomes = Counter(record.outcome.value for record in failed)
        kinds = ", ".join(f"{outcome} {count}" for outcome, count in outcomes.most_common())
        yield f"{len(failed)} of {len(records)} {what} failed ({kinds}); the first: {failed[0].error}"


def _outliers(done: Sequence[RequestRecord]) -> Iterator[str]:
    over = [record for record in done if record.limit_tokens is not None and _tokens(record) > record.limit_tokens]
    if over:
        worst = max(over, key=_tokens)
        yield (
            f"{len(over)} of {len(done)} answers are longer than their limit (up to {_tokens(worst):,} tokens instead "
            f"of {worst.limit_tokens:,}): the server ignores the limit, or miscounts tokens"
        )
    if notes := [record.notes[0] for record in done if record.notes]:
        yield f"{len(notes)} of {len(done)} answers deviate from the protocol; the first: {notes[0]}"
    tails_s = [record.finished_s - record.chunk_times_s[-1] for record in done if record.chunk_times_s]
    if late_s := [seconds for seconds in tails_s if seconds > OPEN_S]:
        yield (
            f"{len(late_s)} of {len(done)} answers ended up to {max(late_s):.1f} s after their last token: in a closed "
            "loop, that lowers the throughput"
        )


def _tokens(record: RequestRecord) -> int:
    """Output tokens, or if unknown the chunks, less two that may be empty."""
    return len(record.chunk_times_s) - 2 if record.output_tokens is None else record.output_tokens
