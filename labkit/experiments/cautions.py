"""The benchmark lie detector: what a measurement's conditions do to the number that comes out of it.

Every check takes what is known (None: unknown, not checked) and gives a `Caution` with the number and the remedy, or
nothing. A caution is not an error: a lab may mean to measure a warm cache. It must then say so, and this says it.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from labkit.errors import UsageError

HIT_RATE_SLACK = 0.05  # a hit rate this far from the share that the workload itself repeats needs a cause
PERCENTILE = 99.0


@dataclass(frozen=True, kw_only=True)
class Caution:
    """One way in which a number may mislead. `code` is stable, `what` holds the figure, `remedy` what to change."""

    code: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what} To fix it: {self.remedy}"


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
    """All cautions that these conditions call for, in a fixed order.

    Args:
        requests: measured requests, warm-up not among them.
        warmup: requests sent before the measured ones and left out.
        concurrency: clients of a closed loop (each waits for its answer); None for an open loop.
        rate: arrivals a second of an open loop; None for a closed loop.
        client_cpu_share: CPU-seconds of the client over wall seconds: 1.0 is one core busy all the time.
        seed, seeds_before: this workload's seed, and the seeds whose prompts this same server has already answered.
        hit_rate: prefix-cache hits over queries, in tokens, during the measured requests, 0 to 1.
        shared_share: share of the prompt tokens that the workload itself repeats: the hit rate to expect, 0 to 1.
        pairs: pairs that a ratio rests on.
        machines: machine line by record or arm, where several are set side by side.
    """
    _check_share("hit_rate", hit_rate)
    _check_share("shared_share", shared_share)
    found = (
        warm_cache(seed=seed, seeds_before=seeds_before, hit_rate=hit_rate, shared_share=shared_share),
        cold_cache(hit_rate=hit_rate, shared_share=shared_share, warmup=warmup),
        no_warmup(requests=requests, warmup=warmup),
        too_few_samples(requests),
        client_bound(client_cpu_share),
        closed_loop(concurrency=concurrency, rate=rate),
        too_few_pairs(pairs),
        mixed_machines(machines or {}),
    )
    return [caution for caution in found if caution is not None]


def warm_cache(
    *, seed: int | None, seeds_before: Collection[int], hit_rate: float | None, shared_share: float
) -> Caution | None:
    """The benchmark that measures its own cache: the same seed, and so the same prompts, on a warm server."""
    replayed = seed is not None and seed in seeds_before
    above = hit_rate is not None and hit_rate > shared_share + HIT_RATE_SLACK
    if not above and not (replayed and hit_rate is None):
        return None  # a replay whose hit rate is known to be as expected did no harm
    why = f"this server has already answered the prompts of seed {seed}" if replayed else "the server's cache was warm"
    rate = f"; {hit_rate:.0%} of the prompt tokens came out of its prefix cache" if hit_rate is not None else ""
    expected = f", where the workload by itself repeats {shared_share:.0%}" if hit_rate is not None else ""
    remedy = "take another seed, reset the prefix cache or start the server anew; or say that a warm cache is meant."
    return Caution(code="warm-cache", what=f"Warm cache: {why}{rate}{expected}.", remedy=remedy)


def cold_cache(*, hit_rate: float | None, shared_share: float, warmup: int | None) -> Caution | None:
    """Prompts share a prefix, and yet the cache gave little: the measured requests were the ones that filled it."""
    if hit_rate is None or hit_rate >= shared_share - HIT_RATE_SLACK:
        return None
    before = "" if warmup is None else f" after {warmup} warm-up requests"
    return Caution(
        code="cold-cache",
        what=f"Cold cache: the workload repeats {shared_share:.0%} of its prompt tokens, the cache gave {hit_rate:.0%}"
        f"{before}.",
        remedy="warm up with the same prefixes, or check the cache (off? prefix shorter than a block? evicted?).",
    )


def no_warmup(*, requests: int | None, warmup: int | None) -> Caution | None:
    """The first requests pay for compilation, allocation and connections."""
    if warmup is None or warmup > 0:
        return None
    among = "" if requests is None else f", and they are among the {requests} measured"
    return Caution(
        code="no-warmup",
        what=f"No warm-up: 0 requests came before the measurement; the first pay for what happens only once{among}.",
        remedy="send a few requests first and leave them out (warmup=...).",
    )


def samples_needed(percentile: float) -> int:
    """How many samples a percentile needs so that at least one lies beyond it on average: 100 for the p99."""
    if not 0 < percentile < 100:
        raise UsageError(f"percentile is {percentile}; it must lie between 0 and 100", remedy="pass 99 for the p99")
    return math.ceil(round(100 / min(percentile, 100 - percentile), 6))


def too_few_samples(requests: int | None, *, percentile: float = PERCENTILE) -> Caution | None:
    """A percentile of fewer samples than it needs is another word for their maximum."""
    needed = samples_needed(percentile)
    if requests is None or requests >= needed:
        return None
    name = f"p{percentile:g}"
    return Caution(
        code="too-few-samples",
        what=f"Too few samples: the {name} of {requests} requests is little else than the slowest of them.",
        remedy=f"measure at least {needed} requests for a {name} ({needed - requests} more), or report the maximum.",
    )


def client_bound(client_cpu_share: float | None) -> Caution | None:
    """A busy client reads answers late: its own queue is then in every latency."""
    from labkit.load.results import CLIENT_IS_THE_LIMIT_SHARE  # here: a load's client takes a while to import

    if client_cpu_share is None or client_cpu_share <= CLIENT_IS_THE_LIMIT_SHARE:
        return None
    return Caution(
        code="client-bound",
        what=f"Client-bound: the load generator kept one core {client_cpu_share:.0%} busy "
        f"(limit {CLIENT_IS_THE_LIMIT_SHARE:.0%}), so its own queue is in these latencies.",
        remedy="ask less of one client process: a lower rate or concurrency, no streaming, or several clients.",
    )


def closed_loop(*, concurrency: int | None, rate: float | None) -> Caution | None:
    """Clients that wait send less when the server slows down: users do not ("coordinated omission")."""
    if concurrency is None or rate is not None:
        return None
    return Caution(
        code="closed-loop",
        what=f"Closed loop: at most {concurrency} requests were ever in flight, as each client waits for its answer; "
        "a server that falls behind is asked less, and the queue that users would stand in does not show.",
        remedy="read throughput here; measure latency in an open loop (rate=...), counted from the scheduled time.",
    )


def too_few_pairs(pairs: int | None) -> Caution | None:
    """One pair has no spread, two have hardly any."""
    if pairs is None or pairs > 2:
        return None
    return Caution(
        code="too-few-pairs",
        what=f"Too few repeats: the ratio rests on {pairs} pair{'' if pairs == 1 else 's'}.",
        remedy="repeat at least 3 times; 5 or more make the interval useful.",
    )


def mixed_machines(machines: Mapping[str, str]) -> Caution | None:
    """Records of different machines differ by the machines too."""
    if len(set(machines.values())) < 2:
        return None
    return Caution(
        code="mixed-machines",
        what=f"Mixed machines: {len(set(machines.values()))} are compared ({'; '.join(_by_machine(machines))}).",
        remedy="compare ratios measured within one machine, or run both on the same one.",
    )


def _by_machine(machines: Mapping[str, str]) -> Iterator[str]:
    for line in sorted(set(machines.values())):
        yield f"{', '.join(sorted(name for name, other in machines.items() if other == line))}: {line}"


def _check_share(name: str, share: float | None) -> None:
    if share is not None and not 0 <= share <= 1:
        raise UsageError(f"{name} is {share}; a share lies between 0 and 1", remedy="divide hits by queries, in tokens")
