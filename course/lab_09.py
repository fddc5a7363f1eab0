"""Lab 09: exercises on tables, useful tokens, goodput and cost; and the comparison of the four servers, by slices."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import psutil

from labkit import load
from labkit.errors import require
from labkit.load import LoadResult, RequestRecord, metrics
from labkit.load.workloads import Workload
from labkit.machine import Sampler, UseSummary
from labkit.teaching import solution

Answers = list[tuple[float, float, bool]]


def requests_per_s(clients: int, mean_e2e_s: float) -> float:
    return clients / mean_e2e_s


solution(
    "09.little",
    requests_per_s,
    unit="requests/s",
    cases=((6, 1.5), (1, 0.4), (64, 8.0)),
    wrong={
        "one client's throughput taken for all": lambda _clients, mean_e2e_s: 1 / mean_e2e_s,
        "times multiplied": lambda clients, mean_e2e_s: clients * mean_e2e_s,
        "seconds a request": lambda clients, mean_e2e_s: mean_e2e_s / clients,
        "the asker left out": lambda clients, mean_e2e_s: (clients - 1) / mean_e2e_s,
    },
)


def tokens_written(written: list[int], asked: list[int]) -> int:
    return sum(one for one, _wanted in zip(written, asked, strict=True))


def tokens_asked_for(written: list[int], asked: list[int]) -> int:
    return sum(min(one, wanted) for one, wanted in zip(written, asked, strict=True))


solution(
    "09.useful",
    tokens_asked_for,
    unit="tokens",
    worked=tokens_written,
    cases=(([12, 12, 12], [4, 12, 8]), ([12, 5, 12], [9, 9, 12]), ([3], [12])),
    wrong={
        "all that was written": lambda written, _asked: sum(written),
        "all that was asked for": lambda _written, asked: sum(asked),
        "only answers of the right length": lambda written, asked: sum(
            w for w, a in zip(written, asked, strict=True) if w == a
        ),
        "the larger of the two": lambda written, asked: sum(max(w, a) for w, a in zip(written, asked, strict=True)),
        "a mean for a sum": lambda written, asked: tokens_asked_for(written, asked) / len(asked),
    },
)


def _in_time(answers: Answers, slo_s: float) -> int:
    return sum(first_s - due_s <= slo_s for due_s, first_s, _ in answers)


def _answered(answers: Answers) -> Answers:
    return [answer for answer in answers if answer[2]]


def kept(answers: Answers, ttft_slo_s: float) -> float:
    good = sum(first_s - due_s <= ttft_slo_s and ok for due_s, first_s, ok in answers)
    return good / len(answers)


solution(
    "09.kept",
    kept,
    cases=[
        ([(0.0, 0.4, True), (1.0, 1.9, True), (2.0, 3.2, True), (3.0, 3.1, False)], 1.0),
        ([(0.0, 0.9, True), (0.5, 2.9, True), (1.0, 1.2, True), (1.5, 9.0, False), (2.0, 2.9, True)], 0.9),
    ],
    wrong={
        "failures not counted among the users": lambda answers, slo_s: kept(_answered(answers), slo_s),
        "a fast failure taken for good": lambda answers, slo_s: _in_time(answers, slo_s) / len(answers),
        "the mean held to the objective": lambda answers, slo_s: float(
            fmean(first_s - due_s for due_s, first_s, _ in _answered(answers)) <= slo_s
        ),
        "every answer in time": lambda answers, _slo_s: len(_answered(answers)) / len(answers),
        "a moment taken for a wait": lambda answers, slo_s: (
            sum(first_s <= slo_s for _, first_s, _ in _answered(answers)) / len(answers)
        ),
        "a count for a share": lambda answers, slo_s: kept(answers, slo_s) * len(answers),
    },
)


def usd_per_million(usd_per_hour: float, tokens_per_s: float, busy_share: float) -> float:
    return usd_per_hour / (tokens_per_s * busy_share * 3600) * 1_000_000


solution(
    "09.cost",
    usd_per_million,
    unit="dollars",
    cases=((0.1, 50.0, 1.0), (2.0, 1000.0, 0.25), (21.96, 5556.0, 0.0375)),
    wrong={
        "idle hours for nothing": lambda usd, rate, _busy: usd / (rate * 3600) * 1e6,
        "idleness that makes it cheaper": lambda usd, rate, busy: usd * busy / (rate * 3600) * 1e6,
        "seconds taken for hours": lambda usd, rate, busy: usd / (rate * busy) * 1e6,
        "a minute for an hour": lambda usd, rate, busy: usd / (rate * busy * 60) * 1e6,
        "one token's price": lambda usd, rate, busy: usd / (rate * busy * 3600),
        "tokens for a dollar": lambda usd, rate, busy: rate * busy * 3600 / usd / 1e6,
    },
)


# --- head to head ---

SAMPLE_S = 0.5
SHORTEST_BATCH = 2
MOST_OF_A_GPU = 0.8


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A server that is compared. `pids`: its processes' roots. `api` "plain": a handler without OpenAI's protocol."""

    name: str
    base_url: str
    api_key: str
    pids: tuple[int, ...]
    api: load.Api = "completions"


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One slice: what the client saw, and what the server's processes used meanwhile."""

    result: LoadResult
    use: UseSummary

    @property
    def tokens(self) -> int:
        """Tokens that somebody asked for."""
        return sum(record.output_tokens or 0 for record in self.result.records if record.ok)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.result.duration_s

    @property
    def tokens_per_cpu_s(self) -> float:
        """Tokens per CPU-second of the server's processes."""
        return self.tokens / self.use.processes_cpu_s if self.use.processes_cpu_s else float("nan")

    @property
    def memory_gib(self) -> float:
        """The largest resident memory of its processes; pages that several share count once for each."""
        return self.use.processes_rss_bytes.max / 2**30 if self.use.processes_rss_bytes else float("nan")


def part(workload: Workload, start: int, n: int) -> Workload:
    """`n` requests of a workload, from number `start` on. UsageError if there are too few."""
    require(
        start >= 0 and n >= 1 and start + n <= len(workload.requests),
        f"requests {start} to {start + n - 1} of {len(workload.requests)} are asked for",
        fix="write a longer workload file",
    )
    requests = workload.requests[start : start + n]
    return replace(workload, requests=requests, parameters={**workload.parameters, "start": start, "n": n})


def ask(
    contender: Contender,
    requests: Workload,
    *,
    count_tokens: Callable[[str], int],
    clients: int | None = None,
    timeout_s: float = 120.0,
    **how: Any,
) -> Slice:
    """Sends the requests to one server, in a closed loop (`clients`) or an open one (`rate`), and watches it.

    `how` goes to `load.run_blocking` as it is: `model`, `rate`, `warmup`, `seed`.
    """
    plain = contender.api == "plain"
    how |= {"workload": requests, "concurrency": clients, "timeout_s": timeout_s, "stream": not plain}
    with Sampler(pids=roots(contender.pids), interval_s=SAMPLE_S) as use:
        result = load.run_blocking(contender.base_url, api=contender.api, api_key=contender.api_key, **how)
    return Slice(result=useful(result, requests, count_tokens) if plain else result, use=use.summary())


def roots(pids: Sequence[int]) -> tuple[int, ...]:
    """Those of the processes that are nobody's child among them: a sampler finds the others below them."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if not {parent.pid for parent in psutil.Process(pid).parents()} & set(pids):
                found.append(pid)
    return tuple(found)


def useful(result: LoadResult, requests: Workload, count_tokens: Callable[[str], int]) -> LoadResult:
    """Counts of plain answers only the tokens that a client asked for: the prompt and what exceeds its limit are cut.

    A user sees nothing before the whole answer is there, so its first token comes with its last.
    """

    def worth(record: RequestRecord) -> RequestRecord:
        if not record.ok:
            return record
        request = requests.requests[record.index]
        text = record.text.removeprefix(request.prompt)
        tokens = min(count_tokens(text), request.max_tokens)
        return replace(record, text=text, output_tokens=tokens, chunk_times_s=(record.finished_s,))

    return replace(result, records=tuple(map(worth, result.records)))


def pooled(slices: Sequence[Slice]) -> metrics.Summary:
    """All slices of one server as one load: their requests together, over the sum of their times."""
    return metrics.summarise_records(
        _records(slices),
        duration_s=sum(part.result.duration_s for part in slices),
        client_cpu_share=max(part.result.client_cpu_share for part in slices),
    )


def cores(slices: Sequence[Slice]) -> float:
    """How many cores the server's processes kept busy, over all slices."""
    return sum(part.use.processes_cpu_s for part in slices) / sum(part.use.duration_s for part in slices)


def goodputs(slices: Sequence[Slice], slo: metrics.Slo) -> tuple[float, float]:
    """(share of the requests that kept the objective, how many did so per second), over all slices together.

    In an open loop the time to the first token counts from the moment at which a request was due.
    """
    records = _records(slices)
    good = sum(slo.holds(replace(record, started_s=record.scheduled_s)) for record in records)
    return good / len(records), good / sum(part.result.duration_s for part in slices)


def _records(slices: Sequence[Slice]) -> list[RequestRecord]:
    return [record for part in slices for record in part.result.records]


def usd_per_million_tokens(usd_per_hour: float, tokens_per_s: float, *, busy_share: float = 1.0) -> float:
    """Dollars for a million tokens on a machine that is paid by the hour and writes for `busy_share` of it."""
    require(
        usd_per_hour >= 0 and tokens_per_s > 0 and 0 < busy_share <= 1,
        f"${usd_per_hour} an hour, {tokens_per_s} tokens/s, busy for {busy_share} of it",
        fix="a price of 0 or more, tokens above 0, a share between 0 and 1",
    )
    return usd_per_million(usd_per_hour, tokens_per_s, busy_share)


def check_lengths(low: int, high: int, *, requests: int, clients: int) -> None:
    """UsageError before anything starts: lengths the wrong way round, or a slice that is over in one batch."""
    require(low <= high, f"answers of {low} to {high} tokens", fix="tokens_low may be tokens_high at most")
    require(
        requests >= clients + SHORTEST_BATCH,
        f"{requests} requests for {clients} clients: no client would ask a second time",
        fix=f"pass requests={clients + SHORTEST_BATCH} or more, or fewer clients",
    )


def check_shares(gpu_memory_share: float, *, gpus: int) -> None:
    """UsageError on a GPU that cannot hold two engines and two handlers with this share for each engine."""
    require(
        not gpus or 2 * gpu_memory_share <= MOST_OF_A_GPU,
        f"two engines with a share of {gpu_memory_share} each leave nothing of the GPU to the two handlers",
        fix=f"pass gpu_memory_share={MOST_OF_A_GPU / 2:g} or less",
    )
