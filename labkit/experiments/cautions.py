"""Cautions: conditions of a measurement that make its result misleading. Each function returns a sentence, or None."""

import math
from collections.abc import Mapping

from labkit.errors import require

CLIENT_LIMIT_SHARE = 0.8
"""Share of one core above which a single-threaded client probably limited the result."""

REQUESTS_PER_CLIENT = 4
"""Enough for a closed loop to be at its full concurrency most of the time."""


def samples_needed(percentile: float) -> int:
    """Return how many samples a percentile needs so that on average one is beyond it: 100 for the p99."""
    in_range = 0 < percentile < 100
    require(in_range, f"percentile is {percentile}; it must be between 0 and 100", fix="pass 99 for the p99")
    return math.ceil(round(100 / min(percentile, 100 - percentile), 6))


def few_samples(samples: int, *, percentile: float) -> str | None:
    """A high percentile of too few samples is their maximum."""
    needed = samples_needed(percentile)
    if not 0 < samples < needed:
        return None
    return (
        f"Too few samples: the p{percentile:g} of {samples} requests is little more than their maximum. To fix it: "
        f"measure at least {needed} requests, or report the maximum."
    )


def client_bound(client_cpu_share: float) -> str | None:
    """A busy client reads answers late, which adds to every latency. The share is CPU-seconds of the client over wall
    seconds: 1.0 is one core busy all the time; NaN if unknown."""
    if not client_cpu_share > CLIENT_LIMIT_SHARE:
        return None
    return (
        f"Client-bound: the load generator kept one core {client_cpu_share:.0%} busy (limit {CLIENT_LIMIT_SHARE:.0%}), "
        "so these latencies include its own queue. To fix it: use a lower rate or concurrency, or several processes."
    )


def few_requests(requests: int, *, concurrency: int | None) -> str | None:
    """A closed loop with fewer requests (or conversations) than clients has idle clients from the start."""
    if concurrency is None or requests >= concurrency:
        return None
    return (
        f"Too few requests: concurrency is {concurrency}, but {requests} requests (or conversations) keep at most "
        f"{requests} in flight. To fix it: send {REQUESTS_PER_CLIENT * concurrency} or more, or lower the concurrency."
    )


def mixed_machines(machines: Mapping[str, str]) -> str | None:
    """Records of different machines are compared. `machines`: machine line by record."""
    names: dict[str, list[str]] = {}
    for name, line in sorted(machines.items()):
        names.setdefault(line, []).append(name)
    if len(names) < 2:
        return None
    lines = "; ".join(f"{', '.join(names[line])}: {line}" for line in sorted(names))
    return (
        f"Mixed machines: {len(names)} are compared ({lines}). To fix it: compare ratios measured within one machine, "
        "or run both on the same one."
    )
