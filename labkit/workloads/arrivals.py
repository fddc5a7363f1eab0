"""When requests arrive in an open loop."""

from itertools import accumulate
from random import Random

from labkit.workloads import checks


def poisson_arrivals_s(n: int, *, rate: float, seed: int) -> tuple[float, ...]:
    """`n` arrival times in seconds since the start, of a Poisson process of `rate` requests per second: independent
    exponential gaps of mean 1/rate. They are not stretched to end at n/rate, as those of `vllm bench serve` are."""
    _check(n, rate)
    rng = Random(f"poisson/{seed}")
    return tuple(accumulate(rng.expovariate(rate) for _ in range(n)))


def constant_arrivals_s(n: int, *, rate: float) -> tuple[float, ...]:
    """`n` arrival times in seconds since the start, 1/rate apart, the first at 0."""
    _check(n, rate)
    return tuple(index / rate for index in range(n))


def _check(n: int, rate: float) -> None:
    checks.whole("n", n, at_least=0)
    checks.above_zero("rate", rate, unit="requests per second")
