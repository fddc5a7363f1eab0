"""What one step of the engine computes, and what the users notice: chunks of a prompt, gaps between tokens, stalls.

Pure: the engine's steps are run in a notebook, where its API is to be seen; here are the rule by which vLLM's scheduler
fills a step (vllm/v1/core/sched/scheduler.py, version 0.32), the trace of such steps, and what a step costs.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

from labkit.errors import UsageError


def chunk_sizes(prompt_tokens: int, budget: int, decoding: int, threshold: int = 0) -> list[int]:
    """The parts in which a prompt is computed while `decoding` streams take one token of each step's budget."""
    most = budget - decoding
    if threshold > 0:
        most = min(most, threshold)
    full, rest = divmod(prompt_tokens, most)
    return [most] * full + ([rest] if rest else [])


@dataclass(frozen=True)
class Step:
    """One engine step: `planned` tokens and `produced` tokens by request, and the seconds that it took."""

    seconds: float
    planned: Mapping[str, int]
    produced: Mapping[str, int]


@dataclass
class Trace:
    """The steps of one run, in order. Times are seconds of computing since its first step (waiting does not count).

    `arrived`: before which step a request came (0 for those that are there from the start).
    """

    steps: list[Step] = field(default_factory=list)
    arrived: dict[str, int] = field(default_factory=dict)
    token_ids: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def arrives(self, *requests: str) -> None:
        """Notes requests that come now, before the next step."""
        self.arrived |= dict.fromkeys(requests, len(self.steps))

    def record(self, seconds: float, planned: Mapping[str, int], answers: Mapping[str, Sequence[int]]) -> None:
        """Adds a step. `answers`: all tokens so far of each request that got one in this step."""
        new = {name: len(tokens) - len(self.token_ids.get(name, ())) for name, tokens in answers.items()}
        self.token_ids |= {name: tuple(tokens) for name, tokens in answers.items()}
        self.steps.append(Step(seconds, dict(planned), {name: count for name, count in new.items() if count}))

    @property
    def ends_s(self) -> list[float]:
        """When each step ended."""
        return list(accumulate(step.seconds for step in self.steps))

    @property
    def duration_s(self) -> float:
        return sum(step.seconds for step in self.steps)

    @property
    def streams(self) -> list[str]:
        """The requests that were there from the start: those whose users can be made to wait."""
        return [name for name, step in self.arrived.items() if step == 0]

    def token_times_s(self, request: str) -> list[float]:
        """When each token of a request came."""
        return [end for end, step in zip(self.ends_s, self.steps, strict=True) if request in step.produced]

    def gaps_s(self, requests: Iterable[str] | None = None) -> list[float]:
        """The gaps between the tokens of `requests` (default: all streams), each request by itself."""
        names = self.streams if requests is None else requests
        return [later - earlier for name in names for earlier, later in pairwise(self.token_times_s(name))]

    @property
    def stall_s(self) -> float:
        """The longest gap in any stream."""
        return max(self.gaps_s())

    def arrived_s(self, request: str) -> float:
        """When a request came."""
        return [0.0, *self.ends_s][self.arrived[request]]

    def ttft_s(self, request: str) -> float:
        """From a request's arrival to its first token."""
        return self.token_times_s(request)[0] - self.arrived_s(request)

    def chunks(self, request: str) -> list[int]:
        """The sizes of the parts in which a request's prompt was computed, in tokens."""
        first = next(n for n, step in enumerate(self.steps) if request in step.produced)
        return [step.planned[request] for step in self.steps[: first + 1] if request in step.planned]

    def chunk_spans_s(self, request: str) -> list[tuple[float, float, int]]:
        """Begin, end and tokens of each of these parts."""
        last = self.token_times_s(request)[0]
        ends = zip([0.0, *self.ends_s], self.ends_s, self.steps, strict=False)
        return [
            (begin, end, step.planned[request]) for begin, end, step in ends if request in step.planned and end <= last
        ]

    @property
    def schedule(self) -> list[dict[str, int]]:
        """What each step computed, in tokens by request: the same in every run, whatever the time."""
        return [dict(step.planned) for step in self.steps]

    @property
    def tokens_per_s(self) -> float:
        """All tokens that were computed, of prompts and answers, over the time."""
        return sum(sum(step.planned.values()) for step in self.steps) / self.duration_s


def undisturbed(traces: Sequence[Trace]) -> Trace:
    """One trace of several runs of the same scene: of each step the shortest time in any of them.

    What else a machine does only ever adds time; `timeit` in Python's library takes the minimum for the same reason.

    Raises:
        UsageError: no trace, or two whose steps did not compute the same.
    """
    if not traces:
        raise UsageError("0 traces have no shortest steps", remedy="give at least one")
    first = traces[0]
    for number, other in enumerate(traces[1:], 2):
        if other.schedule != first.schedule:
            raise UsageError(
                f"run {number} of {len(traces)} did not compute the same steps as run 1",
                remedy="give it the same requests at the same steps, with the same settings",
            )
    shortest = [min(same, key=lambda step: step.seconds) for same in zip(*(one.steps for one in traces), strict=True)]
    return Trace(shortest, dict(first.arrived), dict(first.token_ids))


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """A step's time as a straight line: `fixed_s`, whatever is in it (reading the weights), and `token_s` a token."""

    fixed_s: float
    token_s: float

    @classmethod
    def through(cls, light: tuple[int, float], heavy: tuple[int, float]) -> "StepCost":
        """The line through two steps, (tokens, seconds) each. UsageError unless the heavier one took longer."""
        (few, fast), (many, slow) = light, heavy
        if few >= many or fast >= slow:
            raise UsageError(
                f"{few} tokens in {fast:.3g} s and {many} tokens in {slow:.3g} s do not make a cost by token",
                remedy="take a step with more tokens that took longer: a longer prompt, or a quieter machine",
            )
        token_s = (slow - fast) / (many - few)
        return cls(fixed_s=max(0.0, fast - few * token_s), token_s=token_s)

    def seconds(self, tokens: int) -> float:
        """What a step of so many tokens takes."""
        return self.fixed_s + self.token_s * tokens

    @property
    def knee_tokens(self) -> float:
        """The number of tokens whose computing takes as long as the fixed part: far above it, size gains nothing."""
        return self.fixed_s / self.token_s

    def headroom(self, budget: int) -> float:
        """Prefill throughput with steps of any size, over that with steps of `budget` tokens: 1 + knee / budget."""
        return 1 + self.knee_tokens / budget

    def stall_s(self, chunks: Sequence[int], decoding: int) -> float:
        """The longest gap of streams that share their steps with these chunks."""
        return self.seconds(max(chunks) + decoding)

    def ttft_s(self, chunks: Sequence[int], decoding: int) -> float:
        """The time in which all chunks are computed."""
        return sum(self.seconds(chunk + decoding) for chunk in chunks)


def check_sizes(
    *,
    budgets: Sequence[int],
    threshold: int,
    chunked_prefill: bool,
    max_num_seqs: int,
    max_model_len: int,
    longest_model_len: int,
    long_prompt_tokens: int,
    streams: int,
) -> None:
    """Refuses what the engine would refuse, or what could show nothing, before an engine is started.

    Lengths are in tokens; `longest_model_len` is the model's own limit. Raises UsageError with the two numbers that do
    not go together and what to change.
    """
    least, most = min(budgets, default=0), max(budgets, default=0)
    if len(set(budgets)) < 2:
        raise UsageError(f"budgets is {list(budgets)}: nothing to compare", remedy="give at least two that differ")
    _check_lengths(long_prompt_tokens, max_model_len, longest_model_len)
    if streams + 2 > max_num_seqs:
        raise UsageError(
            f"{streams} streams, the long prompt and a newcomer are {streams + 2} sequences; max_num_seqs is "
            f"{max_num_seqs}",
            remedy=f"pass max_num_seqs={streams + 2} or more",
        )
    if least < max_num_seqs:
        raise UsageError(
            f"the budget {least} is below max_num_seqs, {max_num_seqs}: a step could not hold one token of each",
            remedy=f"pass budgets of at least {max_num_seqs}, or a smaller max_num_seqs",
        )
    if not chunked_prefill and least < max_model_len:
        raise UsageError(
            f"chunked prefill is off and the budget {least} is below max_model_len, {max_model_len}: a longer prompt "
            "could never be computed",
            remedy=f"pass budgets of at least {max_model_len}, a smaller max_model_len, or chunked_prefill=True",
        )
    if not 0 <= threshold < min(most, max_model_len):
        raise UsageError(
            f"the threshold {threshold} does not lie below the largest budget, {most}, and max_model_len, "
            f"{max_model_len}",
            remedy="it limits one prompt's share of a step: pass a smaller one, or 0 for none",
        )


def _check_lengths(long_prompt_tokens: int, max_model_len: int, longest_model_len: int) -> None:
    if max_model_len > longest_model_len:
        raise UsageError(
            f"max_model_len is {max_model_len}; the model was made for {longest_model_len} positions",
            remedy=f"pass max_model_len={longest_model_len} or less",
        )
    if long_prompt_tokens >= max_model_len:  # one token of answer has to fit
        raise UsageError(
            f"a prompt of {long_prompt_tokens} tokens and its answer are longer than max_model_len, {max_model_len}",
            remedy=f"pass long_prompt_tokens={max_model_len - 1} or less, or a larger max_model_len",
        )


# --- costmodel ---


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
class LinearStepCost:
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


def fit(runs: Sequence[tuple[Batch, float]], *, budget_tokens: int | None = None) -> LinearStepCost:
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
    return LinearStepCost(step_s=float(step_s), token_s=float(token_s), budget_tokens=budget_tokens)
