"""Cautions: conditions of a measurement that make its result misleading.

A caution is not an error: a lab may measure a warm cache on purpose.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from labkit.errors import require

HIT_RATE_SLACK = 0.05  # largest unremarkable difference between the hit rate and the workload's shared share
CLIENT_LIMIT_SHARE = 0.8
"""Share of one core above which a single-threaded client probably limited the result."""
PERCENTILE = 99.0
# By code: what happened, with its figures, and what to change.
TEXTS = {
    "warm-cache": (
        "Warm cache: {why}.",
        "use another seed, reset the prefix cache or restart the server; or say that a warm cache is intended.",
    ),
    "cold-cache": (
        "Cold cache: the workload repeats {shared:.0%} of its prompt tokens, but the hit rate was {hit:.0%}{before}.",
        "warm up with the same prefixes, or check the cache (off? prefix shorter than a block? evicted?).",
    ),
    "no-warmup": (
        "No warm-up: 0 requests came before the measurement; the first requests include one-time work{among}.",
        "send a few requests first and exclude them (warmup=...).",
    ),
    "too-few-samples": (
        "Too few samples: the {name} of {requests} requests is little more than their maximum.",
        "measure at least {needed} requests for a {name} ({missing} more), or report the maximum.",
    ),
    "client-bound": (
        "Client-bound: the load generator kept one core {share:.0%} busy (limit {limit:.0%}), so these latencies "
        "include its own queue.",
        "use a lower rate or concurrency, no streaming, or several client processes.",
    ),
    "closed-loop": (
        "Closed loop: at most {concurrency} requests were in flight, since each client waits for its answer; "
        "a slow server gets fewer requests, and the queue of an open loop does not appear.",
        "read throughput here; measure latency in an open loop (rate=...), counted from the scheduled time.",
    ),
    "too-few-pairs": (
        "Too few repeats: the ratio is from {pairs}.",
        "repeat at least 3 times; 5 or more make the interval useful.",
    ),
    "mixed-machines": (
        "Mixed machines: {count} are compared ({machines}).",
        "compare ratios measured within one machine, or run both on the same one.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Caution:
    """A reason why a number may mislead. `code` is stable; `what` has the figures, `remedy` what to change."""

    code: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what} To fix it: {self.remedy}"


def _caution(code: str, /, **figures: object) -> Caution:
    what, remedy = TEXTS[code]
    return Caution(code=code, what=what.format(**figures), remedy=remedy.format(**figures))


def warnings_for(
    *,
    requests: int | None = None,
    warmup: int | None = None,
    concurrency: int | None = None,
    rate: float | None = None,
    client_cpu_share: float | None = None,
    seed: int | None = None,
    seeds_before: Collection[int] = (),
    hit_rate: float | None = None,
    shared_share: float = 0.0,
    pairs: int | None = None,
    machines: Mapping[str, str] | None = None,
) -> list[Caution]:
    """Return all cautions that apply, in a fixed order. None means unknown: it is not checked.

    Args:
        requests: measured requests, without warm-up.
        warmup: requests sent before the measured ones and excluded.
        concurrency: clients of a closed loop (each waits for its answer); None for an open loop.
        rate: arrivals per second of an open loop; None for a closed loop.
        client_cpu_share: CPU-seconds of the client over wall seconds: 1.0 is one core busy all the time.
        seed, seeds_before: this workload's seed, and the seeds whose prompts this server has already answered.
        hit_rate: prefix-cache hits over queries, in tokens, during the measured requests, 0 to 1.
        shared_share: share of the prompt tokens that the workload repeats, 0 to 1: the expected hit rate.
        pairs: number of pairs of a ratio.
        machines: machine line by record or arm, if several are compared.
    """
    for name, share in (("hit_rate", hit_rate), ("shared_share", shared_share)):
        in_range = share is None or 0 <= share <= 1
        require(in_range, f"{name} is {share}; a share is between 0 and 1", fix="divide hits by queries, in tokens")
    cautions = (
        _warm_cache(seed, seeds_before, hit_rate, shared_share),
        _cold_cache(hit_rate, shared_share, warmup),
        _no_warmup(requests, warmup),
        _too_few_samples(requests),
        client_bound(client_cpu_share),
        closed_loop(concurrency=concurrency, rate=rate),
        _too_few_pairs(pairs),
        mixed_machines(machines or {}),
    )
    return [caution for caution in cautions if caution is not None]


def _warm_cache(
    seed: int | None, seeds_before: Collection[int], hit_rate: float | None, shared_share: float
) -> Caution | None:
    replayed = seed is not None and seed in seeds_before
    why = f"this server has already answered the prompts of seed {seed}" if replayed else "the server's cache was warm"
    if hit_rate is None:
        return _caution("warm-cache", why=why) if replayed else None
    if hit_rate <= shared_share + HIT_RATE_SLACK:
        return None  # a replay with the expected hit rate is harmless
    hits = f"{hit_rate:.0%} of the prompt tokens came from its prefix cache"
    return _caution("warm-cache", why=f"{why}; {hits}, but the workload repeats only {shared_share:.0%}")


def _cold_cache(hit_rate: float | None, shared_share: float, warmup: int | None) -> Caution | None:
    """The measured requests filled the cache."""
    if hit_rate is None or hit_rate >= shared_share - HIT_RATE_SLACK:
        return None
    before = "" if warmup is None else f" after {warmup} warm-up requests"
    return _caution("cold-cache", shared=shared_share, hit=hit_rate, before=before)


def _no_warmup(requests: int | None, warmup: int | None) -> Caution | None:
    """The first requests pay for compilation, allocation and connections."""
    if warmup is None or warmup > 0:
        return None
    among = "" if requests is None else f", and they are among the {requests} measured"
    return _caution("no-warmup", among=among)


def samples_needed(percentile: float) -> int:
    """Return how many samples a percentile needs so that on average one is beyond it: 100 for the p99."""
    in_range = 0 < percentile < 100
    require(in_range, f"percentile is {percentile}; it must be between 0 and 100", fix="pass 99 for the p99")
    return math.ceil(round(100 / min(percentile, 100 - percentile), 6))


def _too_few_samples(requests: int | None) -> Caution | None:
    """A high percentile of too few samples is their maximum."""
    needed, name = samples_needed(PERCENTILE), f"p{PERCENTILE:g}"
    if requests is None or requests >= needed:
        return None
    return _caution("too-few-samples", name=name, requests=requests, needed=needed, missing=needed - requests)


def client_bound(client_cpu_share: float | None) -> Caution | None:
    """A busy client reads answers late, which adds to every latency."""
    if client_cpu_share is None or client_cpu_share <= CLIENT_LIMIT_SHARE:
        return None
    return _caution("client-bound", share=client_cpu_share, limit=CLIENT_LIMIT_SHARE)


def closed_loop(*, concurrency: int | None, rate: float | None) -> Caution | None:
    """Clients that wait for answers send less when the server slows down; users do not ("coordinated omission")."""
    return None if concurrency is None or rate is not None else _caution("closed-loop", concurrency=concurrency)


def _too_few_pairs(pairs: int | None) -> Caution | None:
    """One or two pairs do not show the spread."""
    if pairs is None or pairs > 2:
        return None
    return _caution("too-few-pairs", pairs="1 pair" if pairs == 1 else f"{pairs} pairs")


def mixed_machines(machines: Mapping[str, str]) -> Caution | None:
    """Records of different machines are compared. `machines`: machine line by record or arm."""
    names: dict[str, list[str]] = {}
    for name, line in sorted(machines.items()):
        names.setdefault(line, []).append(name)
    lines = "; ".join(f"{', '.join(names[line])}: {line}" for line in sorted(names))
    return _caution("mixed-machines", count=len(names), machines=lines) if len(names) > 1 else None
