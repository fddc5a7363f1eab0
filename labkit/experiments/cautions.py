"""The benchmark lie detector: what a measurement's conditions do to the number that comes out of it.

A caution is not an error: a lab may mean to measure a warm cache. It must then say so, and this says it.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from labkit.errors import require

HIT_RATE_SLACK = 0.05  # a hit rate this far from the share that the workload itself repeats needs a cause
CLIENT_LIMIT_SHARE = 0.8
"""Share of one core above which a client, being one thread, probably shaped the result."""
PERCENTILE = 99.0
# By code: what happened, with its figures, and what to change.
TEXTS = {
    "warm-cache": (
        "Warm cache: {why}.",
        "take another seed, reset the prefix cache or start the server anew; or say that a warm cache is meant.",
    ),
    "cold-cache": (
        "Cold cache: the workload repeats {shared:.0%} of its prompt tokens, the cache gave {hit:.0%}{before}.",
        "warm up with the same prefixes, or check the cache (off? prefix shorter than a block? evicted?).",
    ),
    "no-warmup": (
        "No warm-up: 0 requests came before the measurement; the first pay for what happens only once{among}.",
        "send a few requests first and leave them out (warmup=...).",
    ),
    "too-few-samples": (
        "Too few samples: the {name} of {requests} requests is little else than the slowest of them.",
        "measure at least {needed} requests for a {name} ({missing} more), or report the maximum.",
    ),
    "client-bound": (
        "Client-bound: the load generator kept one core {share:.0%} busy (limit {limit:.0%}), so its own queue is in "
        "these latencies.",
        "ask less of one client process: a lower rate or concurrency, no streaming, or several clients.",
    ),
    "closed-loop": (
        "Closed loop: at most {concurrency} requests were ever in flight, as each client waits for its answer; "
        "a server that falls behind is asked less, and the queue that users would stand in does not show.",
        "read throughput here; measure latency in an open loop (rate=...), counted from the scheduled time.",
    ),
    "too-few-pairs": (
        "Too few repeats: the ratio rests on {pairs}.",
        "repeat at least 3 times; 5 or more make the interval useful.",
    ),
    "mixed-machines": (
        "Mixed machines: {count} are compared ({machines}).",
        "compare ratios measured within one machine, or run both on the same one.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Caution:
    """One way in which a number may mislead. `code` is stable, `what` holds the figure, `remedy` what to change."""

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
    """All cautions that these conditions call for, in a fixed order; what is None is unknown and not checked.

    Args:
        requests: measured requests, warm-up not among them.
        warmup: requests sent before the measured ones and left out.
        concurrency: clients of a closed loop (each waits for its answer); None for an open loop.
        rate: arrivals per second of an open loop; None for a closed loop.
        client_cpu_share: CPU-seconds of the client over wall seconds: 1.0 is one core busy all the time.
        seed, seeds_before: this workload's seed, and the seeds whose prompts this same server has already answered.
        hit_rate: prefix-cache hits over queries, in tokens, during the measured requests, 0 to 1.
        shared_share: share of the prompt tokens that the workload itself repeats: the hit rate to expect, 0 to 1.
        pairs: pairs that a ratio rests on.
        machines: machine line by record or arm, where several are compared.
    """
    for name, share in (("hit_rate", hit_rate), ("shared_share", shared_share)):
        in_range = share is None or 0 <= share <= 1
        require(in_range, f"{name} is {share}; a share lies between 0 and 1", fix="divide hits by queries, in tokens")
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
        return None  # a replay whose hit rate is known to be as expected did no harm
    hits = f"{hit_rate:.0%} of the prompt tokens came out of its prefix cache"
    return _caution("warm-cache", why=f"{why}; {hits}, where the workload by itself repeats {shared_share:.0%}")


def _cold_cache(hit_rate: float | None, shared_share: float, warmup: int | None) -> Caution | None:
    """The measured requests were the ones that filled the cache."""
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
    """How many samples a percentile needs so that at least one lies beyond it on average: 100 for the p99."""
    in_range = 0 < percentile < 100
    require(in_range, f"percentile is {percentile}; it must lie between 0 and 100", fix="pass 99 for the p99")
    return math.ceil(round(100 / min(percentile, 100 - percentile), 6))


def _too_few_samples(requests: int | None) -> Caution | None:
    """A percentile of fewer samples than it needs is another word for their maximum."""
    needed, name = samples_needed(PERCENTILE), f"p{PERCENTILE:g}"
    if requests is None or requests >= needed:
        return None
    return _caution("too-few-samples", name=name, requests=requests, needed=needed, missing=needed - requests)


def client_bound(client_cpu_share: float | None) -> Caution | None:
    """A busy client reads answers late: its own queue is then in every latency."""
    if client_cpu_share is None or client_cpu_share <= CLIENT_LIMIT_SHARE:
        return None
    return _caution("client-bound", share=client_cpu_share, limit=CLIENT_LIMIT_SHARE)


def closed_loop(*, concurrency: int | None, rate: float | None) -> Caution | None:
    """Clients that wait send less when the server slows down: users do not ("coordinated omission")."""
    return None if concurrency is None or rate is not None else _caution("closed-loop", concurrency=concurrency)


def _too_few_pairs(pairs: int | None) -> Caution | None:
    """One pair has no spread, two have hardly any."""
    if pairs is None or pairs > 2:
        return None
    return _caution("too-few-pairs", pairs="1 pair" if pairs == 1 else f"{pairs} pairs")


def mixed_machines(machines: Mapping[str, str]) -> Caution | None:
    """Records of different machines differ by the machines too. `machines`: machine line by record or arm."""
    names: dict[str, list[str]] = {}
    for name, line in sorted(machines.items()):
        names.setdefault(line, []).append(name)
    lines = "; ".join(f"{', '.join(names[line])}: {line}" for line in sorted(names))
    return _caution("mixed-machines", count=len(names), machines=lines) if len(names) > 1 else None
