"""Several servers on one load: one slice of it at a time, with what the server took meanwhile.

A slice is a part of one workload that goes to one server. All servers get the same slices, in rounds.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import psutil

from labkit import load, metrics
from labkit.errors import UsageError
from labkit.load import LoadResult, RequestRecord
from labkit.machine import Sampler, UseSummary
from labkit.workloads import Workload

SAMPLE_S = 0.5
SECONDS_PER_HOUR, MILLION = 3600, 1_000_000
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
    if start < 0 or n < 1 or start + n > len(workload.requests):
        raise UsageError(
            f"requests {start} to {start + n - 1} of {len(workload.requests)} are asked for",
            remedy="write a longer workload file",
        )
    requests = workload.requests[start : start + n]
    return replace(workload, requests=requests, parameters={**workload.parameters, "start": start, "n": n})


def ask(
    contender: Contender,
    requests: Workload,
    *,
    model: str,
    count_tokens: Callable[[str], int],
    clients: int | None = None,
    rate: float | None = None,
    warmup: int = 0,
    timeout_s: float = 120.0,
    seed: int = 0,
) -> Slice:
    """Sends the requests to one server, in a closed loop (`clients`) or an open one (`rate`), and watches it."""
    plain = contender.api == "plain"
    with Sampler(pids=roots(contender.pids), interval_s=SAMPLE_S) as use:
        result = load.run_blocking(
            contender.base_url,
            model,
            requests,
            concurrency=clients,
            rate=rate,
            api=contender.api,
            stream=not plain,
            warmup=warmup,
            timeout_s=timeout_s,
            seed=seed,
            api_key=contender.api_key,
        )
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
    """Plain answers as what they were worth to whoever asked: the prompt cut off, no token more than was asked for.

    A user sees nothing before the whole answer is there, so its first token comes with its last.
    """
    asked = dict(enumerate(requests.requests))

    def worth(record: RequestRecord) -> RequestRecord:
        if not record.ok:
            return record
        request = asked[record.index]
        text = record.text.removeprefix(request.prompt)
        tokens = min(count_tokens(text), request.max_tokens)
        return replace(record, text=text, output_tokens=tokens, chunk_times_s=(record.finished_s,))

    return replace(result, records=tuple(map(worth, result.records)))


def pooled(slices: Iterable[Slice]) -> metrics.Summary:
    """All slices of one server as one load: their requests together, over the sum of their times."""
    found = [one.result for one in slices]
    records = [record for one in found for record in one.records]
    return metrics.summarise_records(
        records,
        duration_s=sum(one.duration_s for one in found),
        client_cpu_share=max(one.client_cpu_share for one in found),
    )


def cores(slices: Sequence[Slice]) -> float:
    """CPU-seconds of the server's processes a second: how many cores it kept busy, over all slices."""
    return sum(one.use.processes_cpu_s for one in slices) / sum(one.use.duration_s for one in slices)


def goodputs(slices: Sequence[Slice], slo: metrics.Slo) -> tuple[float, float]:
    """(share of the requests that kept the objective, how many did so a second), over all slices together.

    In an open loop the time to the first token counts from the moment at which a request was due.
    """
    records = [record for one in slices for record in one.result.records]
    good = sum(slo.holds(_from_schedule(record)) for record in records)
    return good / len(records), good / sum(one.result.duration_s for one in slices)


def _from_schedule(record: RequestRecord) -> RequestRecord:
    return replace(record, started_s=record.scheduled_s)


def usd_per_million(usd_per_hour: float, tokens_per_s: float, *, busy_share: float = 1.0) -> float:
    """Dollars for a million tokens on a machine that is paid by the hour and writes for `busy_share` of it.

    UsageError for what cannot be.
    """
    if usd_per_hour < 0 or tokens_per_s <= 0 or not 0 < busy_share <= 1:
        raise UsageError(
            f"${usd_per_hour} an hour, {tokens_per_s} tokens/s, busy for {busy_share} of it",
            remedy="a price of 0 or more, tokens above 0, a share between 0 and 1",
        )
    return usd_per_hour / (tokens_per_s * busy_share * SECONDS_PER_HOUR) * MILLION


def check_lengths(low: int, high: int, *, requests: int, clients: int) -> None:
    """UsageError before anything starts: lengths the wrong way round, or a slice that is over in one batch."""
    if low > high:
        raise UsageError(f"answers of {low} to {high} tokens", remedy="tokens_low may be tokens_high at most")
    if requests < clients + SHORTEST_BATCH:
        raise UsageError(
            f"{requests} requests for {clients} clients: nobody would ever ask a second time",
            remedy=f"pass requests={clients + SHORTEST_BATCH} or more, or fewer clients",
        )


def check_shares(gpu_memory_share: float, *, gpus: int) -> None:
    """UsageError on a GPU that cannot hold two engines and two handlers with this share for each engine."""
    if gpus and 2 * gpu_memory_share > MOST_OF_A_GPU:
        raise UsageError(
            f"two engines with a share of {gpu_memory_share} each leave nothing of the GPU to the two handlers",
            remedy=f"pass gpu_memory_share={MOST_OF_A_GPU / 2:g} or less",
        )
