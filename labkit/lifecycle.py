"""A model's versions under load: what became of every request, and what a canary's failures prove.

Knows no server: it is given answers and numbers. Each version signs its answers with `"version"` in the JSON, its own
errors too; what has no signature was answered by TorchServe itself, or by nobody.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist

from labkit.errors import UsageError
from labkit.experiments import Interval
from labkit.serving.observing import NO_ANSWER, Answer

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
    """The version that signed it; "" where none did."""
    try:
        found = json.loads(answer.text)
    except ValueError:
        return ""
    return str(found.get("version", "")) if isinstance(found, dict) else ""


def books(answers: Sequence[Answer]) -> dict[str, int]:
    """How many requests met which fate, the most frequent first. The numbers add up to all requests."""
    return dict(Counter(map(fate, answers)).most_common())


def lost(answers: Sequence[Answer]) -> list[Answer]:
    """Those that no version signed: whatever they were told, no model has seen them to the end."""
    return [one for one in answers if not signature(one)]


def failure_difference(failed: int, n: int, failed_before: int, n_before: int, *, confidence: float = 0.95) -> Interval:
    """How much more often the first fails than the second, as a difference of shares, with its interval.

    The interval is R. G. Newcombe's, made of two Wilson intervals ("Interval estimation for the difference between
    independent proportions", Statistics in Medicine 17 (1998), method 10): it holds for few and for no failures, too.
    UsageError without requests on a side.
    """
    for name, total in (("the canary", n), ("the version before", n_before)):
        if total < 1:
            raise UsageError(f"{name} got {total} requests", remedy="send some to each before you compare")
    share, before = failed / n, failed_before / n_before
    low, high = wilson(failed, n, confidence=confidence)
    low_before, high_before = wilson(failed_before, n_before, confidence=confidence)
    below, above = math.hypot(share - low, high_before - before), math.hypot(high - share, before - low_before)
    value = share - before
    return Interval(value=value, low=value - below, high=value + above, n=n + n_before, confidence=confidence)


def wilson(failed: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a share of `failed` among `n` (E. B. Wilson, 1927): also of none, and of all."""
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), failed / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def as_it_went(answers: Sequence[Answer], *, canary: str, before: str) -> list[tuple[int, Interval]]:
    """(answers so far, difference of failures) after each answer, once both versions have given one."""
    seen = {canary: [0, 0], before: [0, 0]}
    found = []
    for place, one in enumerate(sorted(answers, key=lambda one: one.finished_s), start=1):
        if (version := signature(one)) in seen:
            seen[version][0] += not one.ok
            seen[version][1] += 1
        if all(total for _, total in seen.values()):
            found.append((place, failure_difference(*seen[canary], *seen[before])))
    return found


def verdict(difference: Interval) -> str:
    """What an interval of a difference of failures allows to say: "worse", "better" or "cannot tell"."""
    if difference.low > 0:
        return "worse"
    return "better" if difference.high < 0 else "cannot tell"


def first_difference(left: Sequence[str], right: Sequence[str]) -> int | None:
    """The place of the first element that is not the same in both; None where they are equal, lengths too."""
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return None if len(left) == len(right) else min(len(left), len(right))


def capacity(*, batch_size: int, fixed_s: float, per_row_s: float) -> float:
    """Requests a second that one worker answers with full batches."""
    return batch_size / (fixed_s + per_row_s * batch_size)


def check_load(rate: float, *, batch_size: int, fixed_s: float, per_row_s: float) -> None:
    """UsageError for a load that one worker cannot carry: the queue would grow, and fill up, whatever one does."""
    most = capacity(batch_size=batch_size, fixed_s=fixed_s, per_row_s=per_row_s)
    if rate > MOST_OF_CAPACITY * most:
        raise UsageError(
            f"{rate:g} requests/s are too many for one worker, which answers {most:.0f} in batches of {batch_size}",
            remedy=f"lower rate to {math.floor(MOST_OF_CAPACITY * most)} or less, or fixed_s and per_row_s",
        )


def check_canary(requests: int, share: float) -> None:
    """UsageError for a canary that gets too few requests to say anything."""
    if requests * min(share, 1 - share) < FEWEST_IN_CANARY:
        raise UsageError(
            f"of {requests} requests a share of {share:g} leaves one side {requests * min(share, 1 - share):.0f}",
            remedy=f"raise canary_requests, so that each side gets {FEWEST_IN_CANARY} at least",
        )
