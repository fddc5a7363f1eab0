"""Lab 09: four servers in a closed and an open loop, slice by slice; exercises on the laws of their table."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import psutil

from labkit import load, modelled
from labkit.errors import LoadError, require
from labkit.load import LoadResult, RequestRecord, metrics, workloads
from labkit.load.workloads import Workload
from labkit.machine import Sampler, UseSummary
from labkit.modelled.step_time import Step
from labkit.session import LabSession
from labkit.teaching import solution

Answers = list[tuple[float, float, bool]]


def requests_per_s(clients: int, mean_response_s: float) -> float:
    return clients / mean_response_s


solution(
    "09.little",
    requests_per_s,
    unit="requests/s",
    cases=((6, 1.5), (1, 0.4), (64, 8.0)),
    wrong={
        "one client's throughput taken for the total": lambda _clients, mean_response_s: 1 / mean_response_s,
        "multiplied instead of divided": lambda clients, mean_response_s: clients * mean_response_s,
        "seconds per request": lambda clients, mean_response_s: mean_response_s / clients,
        "one client left out": lambda clients, mean_response_s: (clients - 1) / mean_response_s,
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
        "failed requests left out of the total": lambda answers, slo_s: kept(_answered(answers), slo_s),
        "fast failure counted as served": lambda answers, slo_s: _in_time(answers, slo_s) / len(answers),
        "the mean compared with the objective": lambda answers, slo_s: float(
            fmean(first_s - due_s for due_s, first_s, _ in _answered(answers)) <= slo_s
        ),
        "late answers counted": lambda answers, _slo_s: len(_answered(answers)) / len(answers),
        "an arrival time taken for a waiting time": lambda answers, slo_s: (
            sum(first_s <= slo_s for _, first_s, _ in _answered(answers)) / len(answers)
        ),
        "a count in place of a share": lambda answers, slo_s: kept(answers, slo_s) * len(answers),
    },
)


# --- head to head ---


def deploy_desk(llm_config: dict[str, Any], key_file: Path) -> None:
    """Deploy lab 05's desk, without its classifier, from a process of Ray's.

    Building it imports vLLM, which this process may import only later, with the settings for a modelled GPU.
    """
    import ray

    deploy = ray.remote(num_cpus=0)(_deploy_desk)
    ray.get(deploy.remote(llm_config, str(key_file)))


def _deploy_desk(llm_config: dict[str, Any], key_file: str) -> None:
    from ray import serve
    from ray.serve.llm import LLMConfig, build_llm_deployment

    from applications.support_desk import Desk

    writer = build_llm_deployment(LLMConfig(**llm_config))
    name = llm_config["model_loading_config"]["model_id"]
    desk = Desk.bind(None, writer, name, api_key_file=key_file)  # type: ignore[attr-defined]
    serve.run(desk, name="desk", route_prefix="/desk")


SAMPLE_S = 0.5
BESIDE_WEIGHTS_GIB = 1.0
"""What a handler on a GPU takes beside the weights: its context and the cache of a few short requests. Assumed."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A server that is compared, and the roots of its processes."""

    base_url: str
    api_key: str
    pids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Window:
    """The part of a closed loop in which every client had a request in flight, and the requests that ended in it."""

    seconds: float
    records: tuple[RequestRecord, ...]
    in_flight: float
    """Requests in flight, on average over the window."""

    @property
    def tokens_per_s(self) -> float:
        return sum(record.output_tokens or 0 for record in self.records) / self.seconds


def window(records: Sequence[RequestRecord], clients: int) -> Window:
    """Drop the ramp-up (until each client has its first answer) and the drain (after the last request was sent).

    UsageError if nothing is left."""
    begin_s = max(record.finished_s for record in records[:clients])
    end_s = max(record.started_s for record in records)
    inside = tuple(record for record in records if record.ok and begin_s < record.finished_s <= end_s)
    require(
        bool(inside),
        f"none of {len(records)} requests ended in the steady part of a slice with {clients} clients",
        fix="give each client more requests, or read the servers' logs",
    )
    overlaps = (min(record.finished_s, end_s) - max(record.started_s, begin_s) for record in records)
    in_flight = sum(max(0.0, overlap) for overlap in overlaps) / (end_s - begin_s)
    return Window(seconds=end_s - begin_s, records=inside, in_flight=in_flight)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One slice: what the client saw, and what the server's processes used meanwhile."""

    result: LoadResult
    use: UseSummary
    window: Window | None = None

    @property
    def failed(self) -> int:
        """Requests that failed, without those that the end of the test cut off."""
        return sum(not record.ok and record.outcome is not load.Outcome.CANCELLED for record in self.result.records)


def part(workload: Workload, start: int, n: int) -> Workload:
    """`n` requests of a workload, from number `start` on. UsageError if there are too few."""
    require(
        start >= 0 and n >= 1 and start + n <= len(workload.requests),
        f"requests {start} to {start + n - 1} of {len(workload.requests)} are asked for",
        fix="write a longer workload file",
    )
    requests = workload.requests[start : start + n]
    return replace(workload, requests=requests, parameters={**workload.parameters, "start": start, "n": n})


def closed_loop(contender: Contender, lines: Workload, *, clients: int) -> Slice:
    """Send all lines from `clients` clients, each of which sends the next one when its response has ended."""
    found = _watched(contender, lines, concurrency=clients)
    return replace(found, window=window(found.result.records, clients))


def warm_up(contender: Contender, lines: Workload) -> None:
    """Send all lines at once and wait for the answers. LoadError if one fails."""
    found = load.run_blocking(
        contender.base_url, "chat", lines, concurrency=len(lines.requests), api_key=contender.api_key
    )
    for record in found.records:
        if not record.ok:
            raise LoadError(f"{contender.base_url} does not answer: {record.error}", remedy="read the server's log")


def open_loop(contender: Contender, lines: Workload, *, rate: float, slo: metrics.Slo, seed: int) -> Slice:
    """Send requests at a rate until every unfinished one has missed the objective; then wait for the server."""
    longest = max(request.max_tokens for request in lines.requests)
    last_s = workloads.poisson_arrivals_s(len(lines.requests), rate=rate, seed=seed)[-1]
    patience_s = (slo.ttft_s or 0.0) + longest * (slo.tpot_s or 0.0)
    found = _watched(contender, lines, rate=rate, seed=seed, stop_after_s=last_s + patience_s)
    if not all(record.ok for record in found.result.records):  # a handler goes on computing what was cut off
        warm_up(contender, part(lines, 0, 1))
    return found


def _watched(contender: Contender, lines: Workload, **how: Any) -> Slice:
    with Sampler(pids=roots(contender.pids), interval_s=SAMPLE_S) as use:
        result = load.run_blocking(contender.base_url, "chat", lines, api_key=contender.api_key, **how)
    return Slice(result=result, use=use.summary())


def roots(pids: Sequence[int]) -> tuple[int, ...]:
    """Return the processes whose parents are not among `pids`: a sampler finds the others below them."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if not {parent.pid for parent in psutil.Process(pid).parents()} & set(pids):
                found.append(pid)
    return tuple(found)


def law(windows: Sequence[Window]) -> dict[str, float]:
    """Return N requests in flight, X requests/s and R seconds from sending to the end of a response (all windows)."""
    seconds = sum(span.seconds for span in windows)
    records = [record for span in windows for record in span.records]
    return {
        "N": sum(span.in_flight * span.seconds for span in windows) / seconds,
        "X": len(records) / seconds,
        "R": fmean(record.finished_s - record.started_s for record in records),
    }


def line(slices: Sequence[Slice]) -> dict[str, float]:
    """One server's line in the table."""
    windows = [one.window for one in slices if one.window]
    records = [record for one in windows for record in one.records]
    figures = metrics.summarise_records(records, duration_s=sum(one.seconds for one in windows))
    return {
        "tokens/s": figures.output_throughput,
        "TTFT p50, s": figures.ttft_s.p50,
        "TPOT p50, s": figures.tpot_s.p50,
        "E2E mean, s": figures.e2e_s.mean,
        **law(windows),
        "cores": sum(one.use.processes_cpu_s for one in slices) / sum(one.use.duration_s for one in slices),
        "GiB": (max(one.use.most_rss_bytes for one in slices) or float("nan")) / 2**30,  # 0: no reading
    }


def kept_share(one: Slice, slo: metrics.Slo) -> float:
    """Return the share of requests that met the objective; TTFT counts from when a request was due."""
    records = one.result.records
    return sum(slo.holds(replace(record, started_s=record.scheduled_s)) for record in records) / len(records)


def first_tokens(one: Slice) -> tuple[list[float], list[float]]:
    """(seconds from due to first token, seconds that those without one had waited when the test ended)."""
    records = one.result.records
    came = [record.chunk_times_s[0] - record.scheduled_s for record in records if record.chunk_times_s]
    return came, [record.finished_s - record.scheduled_s for record in records if not record.chunk_times_s]


def record_slices(lab: LabSession, rounds: Mapping[str, Sequence[Slice]]) -> None:
    """Record each server's tokens/s, slice by slice, its memory, and how close its numbers are to Little's law."""
    for name, slices in rounds.items():
        key, figures = name.lower().replace(" ", "_"), line(slices)
        lab.measure(f"{key}_throughput", "tokens/s", [one.window.tokens_per_s for one in slices if one.window])
        lab.measure(f"{key}_memory", "GiB", figures["GiB"])
        lab.measure(f"{key}_littles_law", "N / (X R)", figures["N"] / (figures["X"] * figures["R"]))


def check_fits(gpu_memory_share: float, *, weights_gib: float, gpu_gib: float | None) -> None:
    """Raise a UsageError for a GPU that cannot hold two engines with this share each, and two handlers."""
    handlers_gib = 2 * (weights_gib + BESIDE_WEIGHTS_GIB)
    room = 0.0 if gpu_gib is None else (gpu_gib - handlers_gib) / 2 / gpu_gib
    require(
        gpu_gib is None or gpu_memory_share <= room,
        f"two engines with {gpu_memory_share} of the GPU each leave no room for two handlers ({handlers_gib:.1f} GiB)",
        fix=f"pass gpu_memory_share={room:.2f} or less, or a smaller model" if room > 0 else "pass a smaller model",
    )


# --- at scale ---


def chats(n: int, *, seed: int) -> modelled.Traffic:
    """Requests of 200 tokens whose answers have 20 to 200."""
    asked = modelled.traffic.fixed(n, input_tokens=200, output_tokens=1, seed=seed)
    lengths = Random(f"lab 09/{seed}")
    return [replace(request, output_tokens=lengths.randint(20, 200)) for request in asked]


def static_batches(gpu: modelled.ModelledGpu, requests: modelled.Traffic, size: int) -> float:
    """Tokens/s of static batches with the card's step times: each batch prefills, then decodes to its longest answer.

    Nothing is added for TorchServe or transformers: the rule alone."""
    times, seconds = gpu.step_time(), 0.0
    for first in range(0, len(requests), size):
        batch = requests[first : first + size]
        for token in range(max(request.output_tokens for request in batch)):
            step = Step()
            for request in batch:
                prompt = len(request.token_ids)
                new, prefix = (1, prompt + token - 1) if token else (prompt, 0)
                step.add(new, prefix=prefix, decode=token > 0, sampled=True)
            seconds += times.seconds(step) + gpu.overhead_ms / 1e3
    return sum(request.output_tokens for request in requests) / seconds
