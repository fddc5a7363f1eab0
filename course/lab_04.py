"""Exercises of lab 04: who waits when a long prompt arrives, and which budget of tokens keeps a promise."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median

from labkit.teaching import solution
from labkit.theory.steps import chunk_sizes


@dataclass(frozen=True)
class Point:
    """What was measured with one budget; `stalls_s` has the longest gap of each round."""

    budget: int
    gap_p50_s: float
    stalls_s: tuple[float, ...]
    ttft_s: float


def steps_alone(prompt_tokens: int, budget: int) -> int:
    return math.ceil(prompt_tokens / budget)  # nobody is decoding: the prompt may fill every step


solution(
    "04.chunks",
    chunk_sizes,
    unit="tokens",
    worked=steps_alone,
    cases=((3000, 512, 12, 0), (3000, 2048, 12, 300), (700, 128, 8, 256), (1000, 254, 4, 0), (900, 2048, 6, 0)),
    wrong={
        "the streams' tokens forgotten": [
            lambda tokens, budget, _decoding, threshold: chunk_sizes(tokens, budget, 0, threshold),
            lambda tokens, budget, _decoding, _threshold: chunk_sizes(tokens, budget, 0),
        ],
        "the threshold left out": lambda tokens, budget, decoding, _threshold: chunk_sizes(tokens, budget, decoding),
        "the threshold for the budget": lambda tokens, budget, decoding, threshold: chunk_sizes(
            tokens, threshold or budget - decoding, 0
        ),
        "the streams charged to the threshold": lambda tokens, budget, decoding, threshold: chunk_sizes(
            tokens, min(budget, threshold or budget), decoding
        ),
        "the rest dropped": lambda tokens, budget, decoding, threshold: chunk_sizes(
            tokens - tokens % min(budget - decoding, threshold or budget), budget, decoding, threshold
        ),
        "the last part padded": lambda tokens, budget, decoding, threshold: (
            [min(budget - decoding, threshold or budget)] * len(chunk_sizes(tokens, budget, decoding, threshold))
        ),
    },
)


def _largest(keeps: Callable[[Point, float], bool]) -> Callable[..., int]:
    """Chooses the largest budget whose point keeps the promise, by this rule."""
    return lambda points, slo_s: max((point.budget for point in points if keeps(point, slo_s)), default=0)


MEASURED = [
    Point(256, 0.021, (0.11, 0.12, 0.11), 1.35),
    Point(4096, 0.024, (1.05, 1.07, 1.31), 1.12),
    Point(1024, 0.022, (0.32, 0.30, 0.33), 1.21),
    Point(2048, 0.023, (0.58, 0.45, 0.60), 1.16),
    Point(512, 0.021, (0.18, 0.25, 0.17), 1.27),
]


def largest_budget(points: list[Point], slo_s: float) -> int:
    keeping = [point.budget for point in points if max(point.stalls_s) <= slo_s]
    return max(keeping, default=0)


solution(
    "04.largest_budget",
    largest_budget,
    unit="tokens",
    cases=[(MEASURED, slo_s) for slo_s in (0.5, 0.25, 1.2, 0.0225)],
    wrong={
        "the median gap judged": _largest(lambda point, slo_s: point.gap_p50_s <= slo_s),
        "the largest of all": _largest(lambda _point, _slo_s: True),
        "the smallest that keeps it": lambda points, slo_s: min(
            (point.budget for point in points if max(point.stalls_s) <= slo_s), default=0
        ),
        "the average round judged": [
            _largest(lambda point, slo_s: fmean(point.stalls_s) <= slo_s),
            _largest(lambda point, slo_s: median(point.stalls_s) <= slo_s),
        ],
        "the best round judged": _largest(lambda point, slo_s: min(point.stalls_s) <= slo_s),
        "the long prompt's wait judged": _largest(lambda point, slo_s: point.ttft_s <= slo_s),
        "at most taken for below": _largest(lambda point, slo_s: max(point.stalls_s) < slo_s),
    },
)
