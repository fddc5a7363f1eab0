"""What a batch takes, from two numbers: seconds for each engine step, and seconds for each token computed in it.

A step reads all weights once, whatever it computes: `step_s`. Every token in it, of a prompt or of an answer, costs
arithmetic: `token_s`. A prefix cache takes tokens out of the sum and no step. Left out: attention over a long context,
scheduling, and that a processor is faster at many tokens than at few. The residual shows what that amounts to.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from labkit.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Batch:
    """`requests` prompts that arrive together; `cached_tokens` counts the hits of all of them, the rest is for each."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0

    def __post_init__(self) -> None:
        """UsageError for a batch that cannot be: every prompt has a token to compute, every answer has one."""
        if min(self.requests, self.prompt_tokens, self.output_tokens) < 1:
            raise UsageError(f"{self} has a count below 1", remedy="give at least 1 of each")
        most = self.requests * (self.prompt_tokens - 1)
        if not 0 <= self.cached_tokens <= most:
            raise UsageError(
                f"{self.cached_tokens} cached tokens in a batch of {self.requests} x {self.prompt_tokens}",
                remedy=f"give 0 to {most}: the last token of a prompt is always computed",
            )

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens that have to be computed."""
        return self.requests * self.prompt_tokens - self.cached_tokens

    @property
    def computed_tokens(self) -> int:
        """All tokens that go through the model. An answer's last token is produced, but never put in again."""
        return self.prefill_tokens + self.requests * (self.output_tokens - 1)

    def steps(self, budget_tokens: int | None = None) -> int:
        """Engine steps: the prefill, in pieces of `budget_tokens` (max_num_batched_tokens), and one a later token."""
        prefill = 1 if budget_tokens is None else math.ceil(self.prefill_tokens / budget_tokens)
        return prefill + self.output_tokens - 1

    def without_cache(self) -> "Batch":
        """The same batch with nothing found."""
        return replace(self, cached_tokens=0)


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Seconds for each step and for each token computed; `budget_tokens` is the largest step's size, if it is known."""

    step_s: float
    token_s: float
    budget_tokens: int | None = None

    def seconds(self, batch: Batch) -> float:
        """How long the batch takes, from its arrival to the last token of the last answer."""
        return batch.steps(self.budget_tokens) * self.step_s + batch.computed_tokens * self.token_s

    def speedup(self, batch: Batch) -> float:
        """How many times longer the same batch takes without its cached tokens."""
        return self.seconds(batch.without_cache()) / self.seconds(batch)

    def output_tokens_for(self, speedup: float, batch: Batch) -> float:
        """The answers' length at which this batch's hits give `speedup`; below 1 where no answer is short enough.

        It solves `seconds(without cache) x (1 - 1/speedup) = cached_tokens x token_s`, prefill in one step. UsageError
        for a speed-up that is none.
        """
        if speedup <= 1:
            raise UsageError(f"a speed-up of {speedup}", remedy="give a number above 1")
        total_s = batch.cached_tokens * self.token_s / (1 - 1 / speedup)
        first_step_s = self.step_s + batch.requests * batch.prompt_tokens * self.token_s
        return 1 + (total_s - first_step_s) / (self.step_s + batch.requests * self.token_s)


def fit(runs: Sequence[tuple[Batch, float]], *, budget_tokens: int | None = None) -> StepCost:
    """The two costs from timed batches (seconds each): least squares of the relative error, no cost below zero.

    UsageError where the batches cannot tell the two apart (all of the same tokens a step) or a time is not above 0.
    """
    import numpy as np
    from scipy.optimize import nnls

    if any(not seconds > 0 for _, seconds in runs):
        raise UsageError("a timed batch took 0 seconds or less", remedy="time it again")
    shape = [(batch.steps(budget_tokens), batch.computed_tokens) for batch, _ in runs]
    if len({tokens / steps for steps, tokens in shape}) < 2:
        raise UsageError(
            f"{len(runs)} batches with the same number of tokens a step: two costs cannot be told from them",
            remedy="time a long prompt with one output token, and a short one with many",
        )
    rows = np.array([(steps / s, tokens / s) for (steps, tokens), (_, s) in zip(shape, runs, strict=True)])
    (step_s, token_s), _ = nnls(rows, np.ones(len(runs)))
    return StepCost(step_s=float(step_s), token_s=float(token_s), budget_tokens=budget_tokens)
