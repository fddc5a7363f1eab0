"""What one step of the engine computes, what it costs, and what users notice: chunks of a prompt, gaps, stalls.

The rule by which vLLM 0.32's scheduler fills a step (vllm/v1/core/sched/scheduler.py), a log of an engine's steps, and
a step's time as a straight line over its tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

from labkit.errors import UsageError, require


def chunk_sizes(prompt_tokens: int, budget: int, decoding: int, threshold: int = 0) -> list[int]:
    """The parts in which a prompt is computed while `decoding` streams take one token of each step's budget."""
    most = budget - decoding
    if threshold > 0:
        most = min(most, threshold)
    full, rest = divmod(prompt_tokens, most)
    return [most] * full + ([rest] if rest else [])


@dataclass(frozen=True)
class LoggedStep:
    """One engine step: `planned` tokens and `produced` tokens by request, and the seconds that it took."""

    seconds: float
    planned: Mapping[str, int]
    produced: Mapping[str, int]


@dataclass
class StepLog:
    """The steps of one run, in order. Times are seconds of computing since its first step (waiting does not count).

    `arrived`: before which step a request came (0 for those that are there from the start).
    """

    steps: list[LoggedStep] = field(default_factory=list)
    arrived: dict[str, int] = field(default_factory=dict)
    token_ids: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def arrives(self, *requests: str) -> None:
        """Note requests that come now, before the next step."""
        self.arrived |= dict.fromkeys(requests, len(self.steps))

    def record(self, seconds: float, planned: Mapping[str, int], answers: Mapping[str, Sequence[int]]) -> None:
        """Add a step. `answers`: all tokens so far of each request that got one in this step."""
        new = {name: len(tokens) - len(self.token_ids.get(name, ())) for name, tokens in answers.items()}
        self.token_ids |= {name: tuple(tokens) for name, tokens in answers.items()}
        self.steps.append(LoggedStep(seconds, dict(planned), {name: count for name, count in new.items() if count}))

    @property
    def ends_s(self) -> list[float]:
        """When each step ended."""
        return list(accumulate(step.seconds for step in self.steps))

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

    def chunk_spans_s(self, request: str) -> list[tuple[float, float, int]]:
        """Begin, end and tokens of each part in which a request's prompt was computed."""
        first_token_s = self.token_times_s(request)[0]
        spans = zip([0.0, *self.ends_s], self.ends_s, self.steps, strict=False)
        prefill = [span for span in spans if request in span[2].planned and span[1] <= first_token_s]
        return [(begin, end, step.planned[request]) for begin, end, step in prefill]

    def chunks(self, request: str) -> list[int]:
        """The sizes of these parts, in tokens."""
        return [tokens for _, _, tokens in self.chunk_spans_s(request)]

    @property
    def schedule(self) -> list[dict[str, int]]:
        """What each step computed, in tokens by request: the same in every run, whatever the time."""
        return [dict(step.planned) for step in self.steps]

    @property
    def tokens_per_s(self) -> float:
        """All tokens that were computed, of prompts and answers, over the time."""
        return sum(sum(step.planned.values()) for step in self.steps) / self.ends_s[-1]


def undisturbed(logs: Sequence[StepLog]) -> StepLog:
    """One log of several runs of the same scene: of each step the shortest time in any of them.

    Other load on the machine only ever adds time; `timeit` in Python's library takes the minimum for the same reason.
    UsageError: no log, or two whose steps did not compute the same.
    """
    require(bool(logs), "0 runs have no shortest steps", fix="give at least one")
    for number, other in enumerate(logs, 1):
        require(
            other.schedule == logs[0].schedule,
            f"run {number} of {len(logs)} did not compute the same steps as run 1",
            fix="give it the same requests at the same steps, with the same settings",
        )
    shortest = [min(same, key=lambda step: step.seconds) for same in zip(*(log.steps for log in logs), strict=True)]
    return replace(logs[0], steps=shortest)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """`requests` equal prompts that arrive together; `cached_tokens` counts the prefix hits of all of them.

    `budget_tokens` is the largest step's size (max_num_batched_tokens), where it is known.
    """

    requests: int
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    budget_tokens: int | None = None

    @property
    def computed_tokens(self) -> int:
        """All tokens that go through the model. An answer's last token is produced, but never put in again."""
        return self.requests * (self.prompt_tokens + self.output_tokens - 1) - self.cached_tokens

    @property
    def steps(self) -> int:
        """Engine steps: the prompts, in pieces of the budget, and one for each later token."""
        prefill_tokens = self.requests * self.prompt_tokens - self.cached_tokens
        pieces = 1 if self.budget_tokens is None else -(-prefill_tokens // self.budget_tokens)
        return pieces + self.output_tokens - 1


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """A step's time as a straight line: `fixed_s`, whatever is in it (reading the weights), and `token_s` per token."""

    fixed_s: float
    token_s: float

    @classmethod
    def fit(cls, timed: Sequence[tuple[int, int, float]]) -> "StepCost":
        """The line through runs of (steps, tokens, seconds): least squares of the relative error, no cost below zero.

        UsageError where the runs cannot tell the two costs apart, or a time is not above 0.
        """
        import numpy as np
        from scipy.optimize import nnls

        require(all(seconds > 0 for *_, seconds in timed), "a run took 0 seconds or less", fix="time it again")
        require(
            len({tokens / steps for steps, tokens, _ in timed}) > 1,
            f"{len(timed)} runs with the same number of tokens a step: two costs cannot be told from them",
            fix="time a long prompt with one output token, and a short one with many",
        )
        rows = np.array([(steps / seconds, tokens / seconds) for steps, tokens, seconds in timed])
        (fixed_s, token_s), _ = nnls(rows, np.ones(len(timed)))
        if token_s == 0:
            measured = ", ".join(f"{tokens} tokens in {seconds:.3g} s" for _, tokens, seconds in timed)
            raise UsageError(
                f"{measured} do not make a cost by token",
                remedy="take a step with more tokens that took longer: a longer prompt, or a quieter machine",
            )
        return cls(fixed_s=float(fixed_s), token_s=float(token_s))

    def seconds(self, tokens: int, steps: int = 1) -> float:
        """The time of `steps` steps that compute so many tokens together."""
        return steps * self.fixed_s + tokens * self.token_s

    def batch_s(self, batch: Batch) -> float:
        """How long a batch takes, from its arrival to the last token of the last answer."""
        return self.seconds(batch.computed_tokens, batch.steps)

    def cache_speedup(self, batch: Batch) -> float:
        """How many times longer the same batch takes without its cached tokens."""
        return self.batch_s(replace(batch, cached_tokens=0)) / self.batch_s(batch)

    def output_tokens_for(self, speedup: float, batch: Batch) -> float:
        """The answers' length at which this batch's hits give `speedup` (above 1), prefill in one step; below 1 where
        no answer is short enough.

        It solves `batch_s(without cache) x (1 - 1/speedup) = cached_tokens x token_s`.
        """
        total_s = batch.cached_tokens * self.token_s / (1 - 1 / speedup)
        first_step_s = self.seconds(batch.requests * batch.prompt_tokens)
        return 1 + (total_s - first_step_s) / self.seconds(batch.requests)

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
        return self.seconds(sum(chunks) + decoding * len(chunks), len(chunks))
