"""Repeats, pairs, intervals, and cautions about misleading results.

Comparisons are *interleaved* (all arms run under the same machine load: in rounds, or step by step in turns) and
*paired* (round k of one arm against round k of the other). The result is a ratio with its interval. Nothing here
depends on servers, models or records.
"""

from labkit.experiments.cautions import (
    REQUESTS_PER_CLIENT,
    client_bound,
    few_requests,
    few_samples,
    mixed_machines,
    samples_needed,
)
from labkit.experiments.intervals import CONFIDENCE, Interval, Ratio, interval, paired_ratio
from labkit.experiments.rounds import Steps, in_turns, interleaved
from labkit.experiments.stopwatch import Stopwatch

__all__ = [
    "CONFIDENCE",
    "REQUESTS_PER_CLIENT",
    "Interval",
    "Ratio",
    "Steps",
    "Stopwatch",
    "client_bound",
    "few_requests",
    "few_samples",
    "in_turns",
    "interleaved",
    "interval",
    "mixed_machines",
    "paired_ratio",
    "samples_needed",
]
