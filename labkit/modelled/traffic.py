"""Requests of token ids with due times, for a modelled GPU.

Tokens and times depend only on the arguments and the seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random

from labkit import errors
from labkit.errors import UsageError, require
from labkit.load.workloads import Workload, constant_arrivals_s, poisson_arrivals_s

FIRST_TOKEN, TOKENS = 1000, 40_000
"""Range of token ids in prompts: ordinary words in every modelled vocabulary."""
MOST_TOKENS = 100_000_000
"""Most prompt tokens of a load: all are generated before it starts, 36 bytes each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRequest:
    """One request. `due_s`: seconds since the start. A turn that `follows` another request (by index) is due `due_s`
    after that one's end; its prompt begins with that one's prompt and answer."""

    token_ids: Sequence[int]
    output_tokens: int
    due_s: float = 0.0
    follows: int | None = None
    group: str = ""

    def __post_init__(self) -> None:
        what = f"a request of {len(self.token_ids)} prompt tokens and {self.output_tokens} output tokens"
        require(bool(self.token_ids) and self.output_tokens >= 1, what, fix="pass at least one of each")


Traffic = Sequence[TokenRequest]


def prompt_tokens(count: int, *, key: str) -> list[int]:
    """Return `count` token ids that differ from those of any other `key` within the first few."""
    rng = Random(key)
    return [FIRST_TOKEN + int(TOKENS * rng.random()) for _ in range(count)]


def fixed(
    n: int, *, input_tokens: int, output_tokens: int, shared_tokens: int = 0, seed: int = 0, group: str = ""
) -> Traffic:
    """Return `n` requests of equal lengths, due at 0, whose prompts share the first `shared_tokens`."""
    errors.whole("n", n, at_least=1)
    errors.whole("input_tokens", input_tokens, at_least=1)
    errors.whole("output_tokens", output_tokens, at_least=1)
    errors.whole("shared_tokens", shared_tokens, at_least=0)
    what = f"shared_tokens is {shared_tokens} of {input_tokens} input tokens"
    require(shared_tokens < input_tokens, what, fix="share fewer than all of them")
    _require_few(n * input_tokens)
    shared = prompt_tokens(shared_tokens, key=f"shared/{seed}")
    own = input_tokens - shared_tokens
    return [
        TokenRequest(
            token_ids=shared + prompt_tokens(own, key=f"fixed/{seed}/{index}"),
            output_tokens=output_tokens,
            group=group,
        )
        for index in range(n)
    ]


def conversations(
    n: int,
    *,
    turns: int,
    system_tokens: int,
    user_tokens: int,
    output_tokens: int,
    think_s: float = 5.0,
    rate: float | None = None,
    seed: int = 0,
) -> Traffic:
    """Return `n` conversations of `turns` turns with one system prompt. A turn adds `user_tokens` to the conversation,
    an exponential time of mean `think_s` after the last answer. Conversations start as a Poisson process of `rate` per
    second, or all at 0."""
    for name, value in (("n", n), ("turns", turns), ("user_tokens", user_tokens), ("output_tokens", output_tokens)):
        errors.whole(name, value, at_least=1)
    errors.whole("system_tokens", system_tokens, at_least=0)
    errors.number("think_s", think_s)
    _require_few(n * (system_tokens + turns * user_tokens))
    starts = poisson_arrivals_s(n, rate=rate, seed=seed) if rate is not None else (0.0,) * n
    system = prompt_tokens(system_tokens, key=f"system/{seed}")
    requests: list[TokenRequest] = []
    for conversation, start_s in enumerate(starts):
        rng = Random(f"think/{seed}/{conversation}")
        for turn in range(turns):
            user = prompt_tokens(user_tokens, key=f"user/{seed}/{conversation}/{turn}")
            requests.append(
                TokenRequest(
                    token_ids=user if turn else system + user,
                    output_tokens=output_tokens,
                    due_s=(rng.expovariate(1 / think_s) if think_s else 0.0) if turn else start_s,
                    follows=len(requests) - 1 if turn else None,
                    group=f"turn-{turn + 1}",
                )
            )
    return requests


def _require_few(tokens: int) -> None:
    what = f"the load has {tokens:,} prompt tokens; the maximum is {MOST_TOKENS:,}"
    require(tokens <= MOST_TOKENS, what, fix="pass fewer or shorter requests")


def tokenised(workload: Workload, encode: Callable[[str], Sequence[int]]) -> Traffic:
    """Convert a workload of prompts to token ids, due at 0; `encode` is a tokenizer's."""
    prompts = not any(request.messages for request in workload.requests)
    require(prompts, "chat messages cannot be simulated", fix="use a workload of prompts")
    return [
        TokenRequest(token_ids=[*encode(request.prompt)], output_tokens=request.max_tokens, group=request.group)
        for request in workload.requests
    ]


def arriving(traffic: Traffic, times_s: Sequence[float]) -> Traffic:
    """Return the requests due at `times_s`. UsageError for follow-ups, whose times depend on answers."""
    independent = all(request.follows is None for request in traffic)
    require(independent, "the times of turns depend on answers", fix="pass a rate to `conversations`")
    return [replace(request, due_s=due_s) for request, due_s in zip(traffic, times_s, strict=True)]


def at_rate(
    traffic: Traffic, rate: float, *, arrival: str = "poisson", seed: int = 0, burstiness: float = 4.0
) -> Traffic:
    """Return the requests arriving at `rate` per second: "poisson", "constant", or "bursty".

    Bursty gaps are gamma-distributed with a squared coefficient of variation of `burstiness`: 1 is Poisson, and higher
    values cluster requests."""
    n = len(traffic)
    if arrival == "poisson":
        return arriving(traffic, poisson_arrivals_s(n, rate=rate, seed=seed))
    if arrival == "constant":
        return arriving(traffic, constant_arrivals_s(n, rate=rate))
    if arrival == "bursty":
        return arriving(traffic, bursty_arrivals_s(n, rate=rate, burstiness=burstiness, seed=seed))
    raise UsageError(f"arrival is {arrival!r}", remedy="choose one of poisson, constant, bursty")


def bursty_arrivals_s(n: int, *, rate: float, burstiness: float, seed: int) -> tuple[float, ...]:
    """Return `n` arrival times with gamma-distributed gaps of mean 1/rate and squared coefficient of variation
    `burstiness`: `vllm bench serve --burstiness B` with B = 1 / `burstiness`, the gamma's shape."""
    errors.above_zero("rate", rate, unit="requests per second")
    errors.above_zero("burstiness", burstiness, unit="squared coefficient of variation")
    rng = Random(f"bursty/{seed}")
    shape = 1 / burstiness
    return tuple(accumulate(rng.gammavariate(shape, 1 / (rate * shape)) for _ in range(n)))
