"""Seeded streams of sequences for the allocation model."""

import math
import random

from labkit.errors import UsageError
from labkit.kvcache.arithmetic import require_positive
from labkit.kvcache.memory import Sequence


def stream(
    n: int,
    *,
    seed: int,
    mean_prompt_tokens: float = 160,
    mean_output_tokens: float = 340,
    spread: float = 1.0,
    per_step: float = 0.1,
    max_model_len: int = 2048,
) -> tuple[Sequence, ...]:
    """`n` sequences with log-normal lengths and Poisson arrivals: the same for the same arguments.

    `spread`: standard deviation of the lengths' logarithm, 0 for equal lengths; `per_step`: arrivals a step. The means
    hold before a length is cut to 1 at least and, prompt and output each, to half of `max_model_len` at most. Default
    means: the ShareGPT lengths of figure 11 in the PagedAttention paper, rounded. UsageError: a number out of range.
    """
    require_positive("n", n)
    require_positive("max_model_len", max_model_len)
    if max_model_len < 2 or spread < 0 or per_step <= 0 or min(mean_prompt_tokens, mean_output_tokens) < 1:
        raise UsageError(
            f"max_model_len {max_model_len}, spread {spread}, per_step {per_step}, mean_prompt_tokens "
            f"{mean_prompt_tokens}, mean_output_tokens {mean_output_tokens}: no such stream",
            remedy="max_model_len from 2, spread from 0, per_step above 0, means from 1",
        )
    chance = random.Random(seed)
    longest = max_model_len // 2
    arrival = 0.0
    sequences = []
    for _ in range(n):
        arrival += chance.expovariate(per_step)
        prompt = _length(chance, mean_prompt_tokens, spread, longest)
        output = _length(chance, mean_output_tokens, spread, longest)
        sequences.append(Sequence(arrival=int(arrival), prompt_tokens=prompt, output_tokens=output))
    return tuple(sequences)


def _length(chance: random.Random, mean: float, spread: float, longest: int) -> int:
    # The mean of a log-normal is exp(mu + sigma^2 / 2).
    drawn = chance.lognormvariate(math.log(mean) - spread**2 / 2, spread)
    return max(1, min(longest, round(drawn)))
