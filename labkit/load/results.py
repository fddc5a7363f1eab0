"""What a load run gives: one record for every request, however it ended, and the run around them.

Times are seconds on one clock (`time.perf_counter`) since the load began; warm-up requests have times below 0.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

from labkit.experiments.cautions import client_bound

LATE_S = 0.1
"""A request of an open loop that is sent this long after it was due was held up by the client."""


OPEN_S = 0.5
"""An answer that ends this long after its last token held its place in a closed loop for nothing."""
FEW_TOKENS = 8
FASTEST_TOKEN_S = 1e-4
"""No engine generates one answer faster than 10,000 tokens/s."""


class Outcome(StrEnum):
    OK = "ok"
    HTTP_ERROR = "http_error"
    """The server answered with an error: a status other than 200, or an error object inside the stream."""
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    """Refused, reset, or closed before the answer was complete."""
    MALFORMED = "malformed"
    """An answer that is not what the protocol says: no JSON, no content, no end."""
    CANCELLED = "cancelled"
    """Given up by this client: the load was stopped while the request was under way."""


@dataclass(frozen=True)
class RequestRecord:
    """One request. The derived times follow vLLM's definitions (vllm/benchmarks/lib/endpoint_request_func.py); they
    are None where they are not defined: for a request that did not end OK, or (TTFT, TPOT) whose answer was not
    streamed."""

    index: int
    scheduled_s: float
    started_s: float
    chunk_times_s: tuple[float, ...]
    """Arrival of each content chunk: one that has `choices`, from the first with a token on (a chunk is not a token).
    Empty if the answer was not streamed, or had no token that shows."""
    finished_s: float
    input_tokens: int | None
    output_tokens: int | None
    """Tokens by the server's usage; None if it sent none that can be right."""
    outcome: Outcome
    status: int | None = None
    error: str = ""
    text: str = ""
    warmup: bool = False
    group: str = ""
    answer_token_s: float | None = None
    """Arrival of the first token of the answer itself, after any reasoning."""
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
        """First token of the answer itself - start; the same as TTFT where there is no reasoning."""
        return self.answer_token_s - self.started_s if self.ok and self.answer_token_s is not None else None

    @property
    def e2e_s(self) -> float | None:
        """End to end: last content chunk (or the whole answer) - start. vLLM ends there, too, not with the usage chunk
        or [DONE] that follow."""
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
        """The same, started when it was due: what a user who came then waited. Counting from a late start would hide
        the wait (coordinated omission)."""
        return replace(self, started_s=self.scheduled_s)


@dataclass(frozen=True)
class LoadResult:
    """A load run. `records` are the measured requests in the order in which they were asked, `warmup_records` those
    before them. `duration_s` runs from the load's start to the end of its last request."""

    records: tuple[RequestRecord, ...]
    duration_s: float
    client_cpu_s: float
    """CPU time of this process in `duration_s`; NaN where it is not known (a result read from a file)."""
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

    def doubted(self, *, asked: int, ramp_from: float | None = None) -> "LoadResult":
        return replace(self, warnings=tuple(find_doubts(self, asked=asked, ramp_from=ramp_from)))

    @property
    def client_cpu_share(self) -> float:
        """CPU time of this process / duration: 1.0 is one core, which is all that a client of one thread can use."""
        return self.client_cpu_s / self.duration_s if self.duration_s > 0 else 0.0


Doubt = tuple[Callable[[RequestRecord], bool], str]


def _came_whole(record: RequestRecord) -> bool:
    """Several tokens in one chunk, or faster one after the other than any server generates them."""
    times, tokens = record.chunk_times_s, record.output_tokens or 0
    if len(times) == 1:
        return tokens > 1
    return len(times) > 1 and tokens >= FEW_TOKENS and times[-1] - times[0] < (tokens - 1) * FASTEST_TOKEN_S


TOKEN_DOUBTS: tuple[Doubt, ...] = (
    (
        lambda record: record.output_tokens is None,
        "came without usage, or with one that cannot be right: their tokens are unknown, and chunks are not tokens",
    ),
    (
        lambda record: len(record.chunk_times_s) > 2 * (record.output_tokens or math.inf) + 2,
        "have fewer tokens by their usage than half their chunks: is it their sum?",
    ),
)
STREAM_DOUBTS: tuple[Doubt, ...] = (
    (
        _came_whole,
        "arrived all at once: the server, or something before it, does not stream; ITL and TPOT say nothing, and TTFT "
        "is the time of the whole answer",
    ),
    (lambda record: not record.chunk_times_s, "hold no token that shows: they have no TTFT"),
    (
        lambda record: bool(record.chunk_times_s) and record.answer_token_s is None,
        "ended inside their reasoning: no token of the answer itself came",
    ),
)


def find_doubts(result: LoadResult, *, asked: int, ramp_from: float | None = None) -> Iterator[str]:
    """One sentence for each doubt about `result`, of a run that was to send `asked` requests."""
    yield from _failures(result.records, "requests")
    yield from _failures(result.warmup_records, "warm-up requests")
    if missing := asked - len(result.records):
        why = f"the load was stopped after {result.duration_s:.1f} s, or the turn before them failed"
        yield f"{missing} of {asked} requests were not sent: {why}"
    done = [record for record in result.records if record.ok]
    for holds, said in TOKEN_DOUBTS + (STREAM_DOUBTS if result.stream else ()):
        if count := sum(map(holds, done)):
            yield f"{count} of {len(done)} answers {said}"
    yield from _extremes(done)
    if busy := client_bound(result.client_cpu_share):
        yield busy.what
    if (latest_s := max((record.waited_s for record in result.records), default=0.0)) > LATE_S:
        yield f"the client fell behind: a request was sent {latest_s:.2f} s after it was due"
    if ramp_from is not None:
        yield f"the load rose from {ramp_from:g}: these figures are over the whole ramp, not of one level"


def _failures(records: Sequence[RequestRecord], what: str) -> Iterator[str]:
    if failed := [record for record in records if not record.ok]:
        outcomes = Counter(record.outcome.value for record in failed)
        kinds = ", ".join(f"{outcome} {count}" for outcome, count in outcomes.most_common())
        yield f"{len(failed)} of {len(records)} {what} failed ({kinds}); the first: {failed[0].error}"


def _extremes(done: Sequence[RequestRecord]) -> Iterator[str]:
    over = [record for record in done if record.limit_tokens is not None and _tokens(record) > record.limit_tokens]
    if over:
        worst = max(over, key=_tokens)
        yield (
            f"{len(over)} of {len(done)} answers are longer than asked (up to {_tokens(worst):,} tokens where "
            f"{worst.limit_tokens:,} were the limit): the server ignores the limit, or its count of tokens is wrong"
        )
    if noted := [record.notes[0] for record in done if record.notes]:
        yield f"{len(noted)} of {len(done)} answers were read with a doubt; the first: {noted[0]}"
    lasted_s = [record.finished_s - record.chunk_times_s[-1] for record in done if record.chunk_times_s]
    if kept := [seconds for seconds in lasted_s if seconds > OPEN_S]:
        yield (
            f"{len(kept)} of {len(done)} answers ended up to {max(kept):.1f} s after their last token: in a closed "
            "loop, that lowers the throughput"
        )


def _tokens(record: RequestRecord) -> int:
    """Output tokens, or where they are unknown the chunks, less the two that may hold none."""
    return len(record.chunk_times_s) - 2 if record.output_tokens is None else record.output_tokens
