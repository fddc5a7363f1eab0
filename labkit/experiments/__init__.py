"""Repeats, pairs, intervals, and the ways in which a benchmark deceives its owner.

Comparisons are *interleaved* (all arms meet the same weather: in rounds, or step by step in turns) and *paired* (round
k of one arm against round k of the other); what is reported is a ratio with its interval. This room knows nothing of
servers, models or records: it is given functions and numbers and says what they are worth.
"""

from labkit.experiments.cautions import (
    Caution,
    client_bound,
    closed_loop,
    cold_cache,
    mixed_machines,
    no_warmup,
    samples_needed,
    too_few_pairs,
    too_few_samples,
    warm_cache,
    warnings_for,
)
from labkit.experiments.intervals import Interval, Ratio, Statistic, interval, paired_ratio
from labkit.experiments.rounds import Progress, Steps, Turns, in_turns, interleaved
from labkit.experiments.stopwatch import Stopwatch

__all__ = [
    "Caution",
    "Interval",
    "Progress",
    "Ratio",
    "Statistic",
    "Steps",
    "Stopwatch",
    "Turns",
    "client_bound",
    "closed_loop",
    "cold_cache",
    "in_turns",
    "interleaved",
    "interval",
    "mixed_machines",
    "no_warmup",
    "paired_ratio",
    "samples_needed",
    "too_few_pairs",
    "too_few_samples",
    "warm_cache",
    "warnings_for",
]
