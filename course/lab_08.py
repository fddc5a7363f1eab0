"""Lab 08: exercises on readiness, workers and canaries; what became of requests, and what a canary's failures say."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import zip_longest
from typing import Any

from labkit.errors import require
from labkit.experiments import Interval
from labkit.serving.ray_watch import NO_ANSWER, Answer
from labkit.teaching import solution


def one_worker(clients: int, batch_size: int, delay_s: float, fixed_s: float, per_row_s: float) -> float:
    rows = min(batch_size, clients)
    waits_s = 0.0 if rows == batch_size else delay_s
    return rows / (waits_s + fixed_s + per_row_s * rows)


def requests_per_s(
    clients: int, workers: int, batch_size: int, delay_s: float, fixed_s: float, per_row_s: float
) -> float:
    rows = min(batch_size, clients / workers)
    waits_s = 0.0 if rows == batch_size else delay_s
    return workers * rows / (waits_s + fixed_s + per_row_s * rows)


solution(
    "08.workers",
    requests_per_s,
    unit="requests/s",
    worked=one_worker,
    cases=(
        (8, 2, 8, 0.02, 0.05, 0.0025),
        (16, 2, 8, 0.02, 0.05, 0.0025),
        (40, 3, 8, 0.02, 0.05, 0.0025),
        (12, 4, 16, 0.1, 0.2, 0.01),
    ),
    wrong={
        "every worker counts in full": lambda c, w, b, d, f, p: w * requests_per_s(c, 1, b, d, f, p),
        "all batches taken for full": lambda _c, w, b, _d, f, p: w * b / (f + p * b),
        "the delay forgotten": lambda c, w, b, _d, f, p: requests_per_s(c, w, b, 0.0, f, p),
        "the delay always paid": lambda c, w, b, d, f, p: requests_per_s(c, w, b, 0.0, d + f, p),
        "one worker's share taken for all": lambda c, w, b, d, f, p: requests_per_s(c, w, b, d, f, p) / w,
    },
)


def _model(least: int, *statuses: str, pending: int = 0) -> tuple[dict[str, Any]]:
    workers = [{"pid": 70 + n, "status": status} for n, status in enumerate(statuses)]
    return ({"minWorkers": least, "workers": workers, "jobQueueStatus": {"pendingRequests": pending}},)


def _up(model: dict[str, Any]) -> list[bool]:
    return [worker["status"] == "READY" for worker in model["workers"]]


def ready(model: dict[str, Any]) -> bool:
    up = sum(worker["status"] == "READY" for worker in model["workers"])
    return bool(up >= max(1, model["minWorkers"]))


solution(
    "08.ready",
    ready,
    exact=True,
    cases=[
        _model(1, "UNLOADING", pending=3),
        _model(1, "READY"),
        _model(2, "READY", "UNLOADING"),
        _model(2, "READY", "READY", pending=40),
        _model(0),
        _model(1),
        _model(1, "UNLOADING", "READY"),
    ],
    wrong={
        "the frontend's health taken for the model's": lambda _model: True,
        "a worker that exists taken for one that answers": [
            lambda model: len(model["workers"]) >= max(1, model["minWorkers"]),
            lambda model: len(model["workers"]) > 0,
        ],
        "one worker enough for all": lambda model: any(_up(model)),
        "nobody is enough": lambda model: sum(_up(model)) >= model["minWorkers"],
        "busy taken for not ready": lambda model: ready(model) and not model["jobQueueStatus"]["pendingRequests"],
        "all of them have to be ready": [
            lambda model: ready(model) and all(_up(model)),
            lambda model: bool(model["workers"]) and all(_up(model)),
        ],
    },
)


def half_width_of_one(failed: int, n: int) -> float:
    share = failed / n
    return float(1.96 * (share * (1 - share) / n) ** 0.5)


def half_width(failed: int, n: int, failed_before: int, n_before: int) -> float:
    share, before = failed / n, failed_before / n_before
    return float(1.96 * (share * (1 - share) / n + before * (1 - before) / n_before) ** 0.5)


solution(
    "08.interval",
    half_width,
    worked=half_width_of_one,
    cases=((4, 20, 11, 380), (30, 300, 9, 300), (120, 1000, 60, 2000)),
    wrong={
        "widths added up": lambda f, n, g, m: half_width_of_one(f, n) + half_width_of_one(g, m),
        "the version before taken for certain": lambda f, n, _g, _m: half_width_of_one(f, n),
        "both groups thrown together": lambda f, n, g, m: half_width_of_one(f + g, n + m),
        "variances subtracted": lambda f, n, g, m: (
            abs(half_width_of_one(f, n) ** 2 - half_width_of_one(g, m) ** 2) ** 0.5
        ),
        "the root forgotten": lambda f, n, g, m: half_width(f, n, g, m) ** 2 / 1.96,
    },
)


def largest_share(n: int) -> float:
    return float(1 - 0.05 ** (1 / n))


solution(
    "08.none",
    largest_share,
    tolerance=1e-4,
    cases=((20,), (300,), (3000,)),
    wrong={
        "none seen taken for none": lambda _n: 0.0,
        "one in n": [lambda n: 1 / n, lambda n: 1 / (n + 1)],
        "the chance divided by n": lambda n: 0.05 / n,
        "the chance of success taken": lambda n: 0.05 ** (1 / n),
        "95 percent for 5": lambda n: 1 - 0.95 ** (1 / n),
    },
)


# --- lifecycle ---

NOBODY = "no answer"
FAILED = " failed"
MOST_OF_CAPACITY = 0.9
FEWEST_IN_CANARY = 10


def fate(answer: Answer) -> str:
    """What became of a request: "2.0" (answered by it), "2.0 failed" (its own error), "404", "no answer"."""
    if answer.status == NO_ANSWER:
        return NOBODY
    version = signature(answer)
    if not version:
        return str(answer.status)
    return version if answer.ok else f"{version}{FAILED}"


def signature(answer: Answer) -> str:
    """The version that signed an answer; "" where none did."""
    try:
        body = json.loads(answer.text)
    except ValueError:
        return ""
    return str(body.get("version", "")) if isinstance(body, dict) else ""


def books(answers: Sequence[Answer]) -> dict[str, int]:
    """How many requests met which fate, the most frequent first. The numbers add up to all requests."""
    return dict(Counter(map(fate, answers)).most_common())


def lost(answers: Sequence[Answer]) -> list[Answer]:
    """Those that no version signed: no model has seen them to the end."""
    return [answer for answer in answers if not signature(answer)]


def failure_difference(failed: int, n: int, failed_before: int, n_before: int, *, confidence: float = 0.95) -> Interval:
    """How much more often the first fails than the second, as a difference of shares, with its interval.

    The interval is R. G. Newcombe's, made of two Wilson intervals ("Interval estimation for the difference between
    independent proportions", Statistics in Medicine 17 (1998), method 10): it holds for few and for no failures, too.
    UsageError without requests on a side.
    """
    for name, total in (("the canary", n), ("the version before", n_before)):
        require(total > 0, f"{name} got {total} requests", fix="send some to each before you compare")
    share, before = failed / n, failed_before / n_before
    low, high = _wilson(failed, n, confidence)
    low_before, high_before = _wilson(failed_before, n_before, confidence)
    below, above = math.hypot(share - low, high_before - before), math.hypot(high - share, before - low_before)
    value = share - before
    return Interval(value=value, low=value - below, high=value + above, n=n + n_before, confidence=confidence)


@cache  # of two sides only one changes with an answer
def _wilson(failed: int, n: int, confidence: float) -> tuple[float, float]:
    from scipy.stats import binomtest

    low, high = binomtest(failed, n).proportion_ci(confidence, method="wilson")
    return low, high


def as_it_went(answers: Sequence[Answer], *, canary: str, before: str) -> list[tuple[int, Interval]]:
    """(answers so far, difference of failures) after each answer, once both versions have given one."""
    seen = {canary: [0, 0], before: [0, 0]}  # failures and answers
    differences = []
    for place, answer in enumerate(sorted(answers, key=lambda answer: answer.finished_s), start=1):
        if (version := signature(answer)) in seen:
            seen[version][0] += not answer.ok
            seen[version][1] += 1
        if all(total for _, total in seen.values()):
            differences.append((place, failure_difference(*seen[canary], *seen[before])))
    return differences


def conclusion(difference: Interval) -> str:
    """What an interval of a difference of failures allows to say: "worse", "better" or "cannot tell"."""
    if difference.low > 0:
        return "worse"
    return "better" if difference.high < 0 else "cannot tell"


def first_difference(left: Sequence[str], right: Sequence[str]) -> int | None:
    """The place of the first element that is not the same in both; None where they are equal, lengths too."""
    pairs = enumerate(zip_longest(left, right))
    return next((place for place, (one, other) in pairs if one != other), None)


def check_load(rate: float, *, batch_size: int, fixed_s: float, per_row_s: float) -> None:
    """UsageError for a load that one worker cannot carry: its queue would grow until it is full."""
    capacity = batch_size / (fixed_s + per_row_s * batch_size)
    require(
        rate <= MOST_OF_CAPACITY * capacity,
        f"{rate:g} requests/s are too many for one worker, which answers {capacity:.0f} in batches of {batch_size}",
        fix=f"lower rate to {math.floor(MOST_OF_CAPACITY * capacity)} or less, or fixed_s and per_row_s",
    )


def check_canary(requests: int, share: float) -> None:
    """UsageError for a canary that gets too few requests to say anything."""
    fewest = requests * min(share, 1 - share)
    require(
        fewest >= FEWEST_IN_CANARY,
        f"of {requests} requests a share of {share:g} leaves one side {fewest:.0f}",
        fix=f"raise canary_requests, so that each side gets {FEWEST_IN_CANARY} at least",
    )
