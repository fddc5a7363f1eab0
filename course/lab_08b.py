"""Lab 08b: which users get a canary, what its failures allow you to conclude, and how many requests that takes."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from course.lab_08 import NAP, signature
from labkit import charts
from labkit.charts import draw
from labkit.errors import require
from labkit.experiments import CONFIDENCE, Interval
from labkit.load.blocking import blocking
from labkit.serving import torchserve
from labkit.serving.ray_watch import Answer, Ask, Observation
from labkit.serving.torchserve import Archive, TorchServe
from labkit.session import LabSession
from labkit.teaching import solution
from labkit.vega import BLUE, GREY, VERMILLION

# --- exercises ---


def gets_canary(user: str, share: float, test: str) -> bool:
    import hashlib

    digest = hashlib.sha256(f"{test}/{user}".encode()).hexdigest()
    return int(digest[:8], 16) < share * 16**8


def _hashed(text: str) -> float:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 16**8


solution(
    "08b.gets_canary",
    gets_canary,
    exact=True,
    cases=[(f"user-{n}", share, test) for n in range(20) for share, test in ((0.5, "nap 3.0"), (0.1, "new prompt"))],
    wrong={
        "same users in every test": lambda user, share, _test: _hashed(user) < share,
        "hash that changes with the process": lambda user, share, test: hash(f"{test}/{user}") % 2**32 < share * 2**32,
        "split by sign-up order": lambda user, share, _test: int(user.split("-")[-1]) % 10 < share * 10,
        "canary and rest swapped": lambda user, share, test: _hashed(f"{test}/{user}") >= share,
    },
)


def half_width_of_one(failed: int, n: int) -> float:
    share = failed / n
    return float(1.96 * (share * (1 - share) / n) ** 0.5)


def half_width(failed: int, n: int, failed_before: int, n_before: int) -> float:
    share, before = failed / n, failed_before / n_before
    return float(1.96 * (share * (1 - share) / n + before * (1 - before) / n_before) ** 0.5)


solution(
    "08b.interval",
    half_width,
    worked=half_width_of_one,
    cases=((4, 20, 11, 380), (30, 300, 9, 300), (120, 1000, 60, 2000)),
    wrong={
        "half-widths added up": lambda f, n, g, m: half_width_of_one(f, n) + half_width_of_one(g, m),
        "the previous version's share taken as exact": lambda f, n, _g, _m: half_width_of_one(f, n),
        "groups pooled": lambda f, n, g, m: half_width_of_one(f + g, n + m),
        "variances subtracted": lambda f, n, g, m: (
            abs(half_width_of_one(f, n) ** 2 - half_width_of_one(g, m) ** 2) ** 0.5
        ),
        "square root missing": lambda f, n, g, m: half_width(f, n, g, m) ** 2 / 1.96,
    },
)


def largest_share(n: int) -> float:
    return float(1 - 0.05 ** (1 / n))


solution(
    "08b.none",
    largest_share,
    tolerance=1e-4,
    cases=((20,), (300,), (3000,)),
    wrong={
        "no failure seen taken for a rate of zero": lambda _n: 0.0,
        "one failure in n requests": [lambda n: 1 / n, lambda n: 1 / (n + 1)],
        "probability divided by n": lambda n: 0.05 / n,
        "the probability of success returned": lambda n: 0.05 ** (1 / n),
        "95% in place of 5%": lambda n: 1 - 0.95 ** (1 / n),
    },
)


# --- a canary on TorchServe ---

FEWEST_IN_CANARY = 10
Group = tuple[int, int]
"""Failures and answers."""


def nap(version: str, fail_share: float, folder: Path) -> Archive:
    """Archive the sleeping handler as a version that fails in `fail_share` of its answers, by chance."""
    settings: dict[str, Any] = {**NAP["handler_settings"], "fail_share": fail_share}
    return torchserve.archive(
        "sleep", folder=folder, model_name="nap", version=version, settings=NAP["settings"], handler_settings=settings
    )


def send(server: TorchServe, versions: Sequence[str], *, rate: float) -> list[Answer]:
    """Send a request to each of these versions in turn, `rate` per second, and return the answers in order of time."""
    key = {"Authorization": f"Bearer {server.keys.inference}"}
    asks = [
        Ask(f"{server.url}/predictions/nap/{version}", at_s=n / rate, body={}, headers=key)
        for n, version in enumerate(versions)
    ]
    return sorted(blocking(Observation().ask_all)(asks), key=lambda answer: answer.finished_s)


def group(answers: Sequence[Answer], version: str) -> Group:
    """Failures and answers of a version."""
    signed = [answer for answer in answers if signature(answer) == version]
    return sum(not answer.ok for answer in signed), len(signed)


def failure_difference(failed: int, n: int, failed_before: int, n_before: int) -> Interval:
    """How much more often the first fails than the second, as a difference of shares, with its interval.

    The interval is R. G. Newcombe's, made of two Wilson intervals ("Interval estimation for the difference between
    independent proportions", Statistics in Medicine 17 (1998), method 10): it also holds for few or no failures.
    UsageError if a version got no requests.
    """
    for name, total in (("the canary", n), ("the version before", n_before)):
        require(total > 0, f"{name} got {total} requests", fix="send some to each before you compare")
    share, before = failed / n, failed_before / n_before
    low, high = _wilson(failed, n)
    low_before, high_before = _wilson(failed_before, n_before)
    below, above = math.hypot(share - low, high_before - before), math.hypot(high - share, before - low_before)
    value = share - before
    return Interval(value=value, low=value - below, high=value + above, n=n + n_before)


@cache  # of two sides only one changes with an answer
def _wilson(failed: int, n: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    low, high = binomtest(failed, n).proportion_ci(CONFIDENCE, method="wilson")
    return low, high


def path(answers: Sequence[Answer], *, canary: str, before: str) -> list[tuple[int, Interval]]:
    """(answers so far, difference of failures) after each answer, once both versions have given one."""
    seen = {canary: [0, 0], before: [0, 0]}  # failures and answers
    differences = []
    for place, answer in enumerate(answers, start=1):
        if (version := signature(answer)) in seen:
            seen[version][0] += not answer.ok
            seen[version][1] += 1
        if all(total for _, total in seen.values()):
            differences.append((place, failure_difference(*seen[canary], *seen[before])))
    return differences


def conclusion(difference: Interval) -> str:
    """Return the conclusion from an interval of a difference of failures: "worse", "better" or "cannot tell"."""
    if difference.low > 0:
        return "worse"
    return "better" if difference.high < 0 else "cannot tell"


def check(lab: LabSession) -> None:
    """Raise a UsageError for versions that do not differ, or a canary that gets too few requests for any conclusion."""
    old, new, requests, share = (
        lab.parameters[name] for name in ("fail_share", "canary_fail_share", "canary_requests", "canary_share")
    )
    require(old != new, f"both versions fail in {old:.0%} of their answers", fix="change canary_fail_share")
    require(
        requests * share >= FEWEST_IN_CANARY,
        f"of {requests} requests a share of {share:g} leaves the canary {requests * share:.0f}",
        fix=f"raise canary_requests, so that it gets {FEWEST_IN_CANARY} at least",
    )


# --- how many requests it takes (computed) ---


def requests_needed(share: float, share_before: float, *, power: float = 0.8) -> int:
    """Return the requests per group for a canary that fails in `share` instead of `share_before` to be called worse.

    `power`: the probability of that. Normal approximation for two groups of the same size.
    """
    from scipy.stats import norm

    z = norm.ppf((1 + CONFIDENCE) / 2) + norm.ppf(power)
    variance = share * (1 - share) + share_before * (1 - share_before)
    return math.ceil(z**2 * variance / (share - share_before) ** 2)


def detected(share: float, share_before: float, n: int, *, tests: int = 1000, seed: int = 0) -> float:
    """Return the share of simulated tests, with n requests in each group, in which the interval says "worse"."""
    import numpy

    rng = numpy.random.default_rng(seed)
    pairs = zip(rng.binomial(n, share, tests), rng.binomial(n, share_before, tests), strict=True)
    return sum(failure_difference(int(a), n, int(b), n).low > 0 for a, b in pairs) / tests


def false_alarms(share: float, n: int, *, looks: int, tests: int = 2000, seed: int = 0) -> float:
    """Return the share of simulated tests of two equal versions in which some look sees a difference (z-test, 95%).

    Each group gets n requests; the looks are evenly spaced, the last one at the end.
    """
    import numpy

    rng = numpy.random.default_rng(seed)
    step = n // looks
    failed = rng.binomial(step, share, (2, tests, looks)).cumsum(axis=2)
    so_far = step * numpy.arange(1, looks + 1)
    pooled = failed.sum(axis=0) / (2 * so_far)
    error = numpy.sqrt(numpy.maximum(pooled * (1 - pooled) * 2 / so_far, 1e-12))
    return float((abs(failed[0] - failed[1]) / so_far > 1.96 * error).any(axis=1).mean())


# --- the chart ---

POINTS = "percentage points"
FOREST_PX, PATH_PX, ROW_PX = 320, 200, 60


def forest_chart(paths: Mapping[str, Sequence[tuple[int, Interval]]], *, title: str) -> charts.Chart:
    """Draw a row for each canary with its final interval and, small beside it, how the interval narrowed."""
    ends = {name: steps[-1][1] for name, steps in paths.items()}
    rows: list[dict[str, Any]] = [
        {"name": name, **_in_points(end), "text": conclusion(end)} for name, end in ends.items()
    ]
    colour = {**draw.series("name", paths, [VERMILLION, BLUE]), "legend": None}  # the rows have the names
    left, right = min(0.0, *(row["low"] for row in rows)), max(0.0, *(row["high"] for row in rows))
    across = (left - 0.05 * (right - left), right + 0.2 * (right - left))
    axes = {
        "x": draw.quantity("value", f"3.0 fails more often by ({POINTS})", across, tickCount=6),
        "y": draw.labels("name", sort=list(paths), labelLimit=200),
        "color": colour,
    }
    marks = [
        draw.mark("rule", {"x": "low", "x2": "high"}, strokeWidth=3),
        draw.mark("point", filled=True, size=110, opacity=1),
        draw.words({"x": "high"}, align="left", dx=6, dy=-12),
    ]
    zero = {"color": GREY, "strokeDash": [8, 4], "strokeWidth": 2}
    none_x = draw.mark("rule", {"x": "at"}, [{"at": 0}], **zero)
    forest = draw.layers([none_x, draw.layers(marks, axes, rows)], width=FOREST_PX, height=ROW_PX * len(rows))
    steps: list[dict[str, Any]] = [
        {"name": name, "n": n, **_in_points(interval)}
        for name, whole in paths.items()
        for n, interval in [*whole[:: max(1, len(whole) // 60)], whole[-1]]
    ]
    lows, highs = ([step[end] for step in steps] for end in ("low", "high"))
    way = {
        "x": draw.quantity("n", "answers so far", tickCount=4),
        "y": draw.quantity("value", POINTS, (min(lows), max(highs)), tickCount=4),
        "color": colour,
    }
    band, line = draw.mark("area", {"y": "low", "y2": "high"}, opacity=0.2), draw.mark("line", strokeWidth=2)
    none_y = draw.mark("rule", {"y": "at"}, [{"at": 0}], **zero)
    inset = draw.layers([none_y, draw.layers([band, line], way, steps)], width=PATH_PX, height=ROW_PX * len(rows))
    words = "; ".join(f"{row['name']}: {row['value']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f})" for row in rows)
    text = f"Intervals of a difference in {POINTS}: {words}. Beside them, how each narrowed as answers arrived."
    return charts.finish({"hconcat": [forest, inset], "spacing": 24}, title=title, description=text)


def _in_points(interval: Interval) -> dict[str, float]:
    ends = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {name: round(100 * value, 2) for name, value in ends.items()}
