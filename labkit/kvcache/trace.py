"""What a simulation leaves behind: one state a step, and who had which piece of memory from when to when."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from labkit.kvcache.memory import Policy, Sequence


class StepState(NamedTuple):
    """Memory and queue during one step. The five kinds of tokens add up to the capacity.

    used: stored; reserved: empty, its sequence will fill it; internal: given to a sequence that will never fill it;
    external: free, enough for the first in the queue, but in pieces too small for it; free: the rest.
    `admitted`, `finished` (before this step) and `preemptions` count from the beginning; a sequence is admitted once.
    """

    step: int
    running: int
    waiting: int
    admitted: int
    finished: int
    preemptions: int
    used_tokens: int
    reserved_tokens: int
    internal_tokens: int
    external_tokens: int
    free_tokens: int


class Tenure(NamedTuple):
    """`owner` had `tokens` of memory from `start_token` on, in the steps from `since` up to, not with, `until`."""

    owner: int
    start_token: int
    tokens: int
    since: int
    until: int


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A whole simulation. Sequences are numbered by arrival; steps in which nothing was there are left out.

    `recomputed_tokens`: what preempted sequences had to store again.
    """

    policy: Policy
    capacity_tokens: int
    sequences: tuple[Sequence, ...]
    steps: tuple[StepState, ...]
    tenures: tuple[Tenure, ...]
    admitted_step: tuple[int, ...]
    finished_step: tuple[int, ...]
    recomputed_tokens: int

    @property
    def preemptions(self) -> int:
        """How often a running sequence had to give its blocks up."""
        return self.steps[-1].preemptions if self.steps else 0

    @property
    def mean_running(self) -> float:
        """Sequences in a batch, averaged over the steps."""
        return self._mean("running")

    @property
    def most_running(self) -> int:
        """The largest batch."""
        return max((state.running for state in self.steps), default=0)

    @property
    def makespan_steps(self) -> int:
        """Steps from the first arrival to the end of the last sequence."""
        return self.steps[-1].step + 1 - self.sequences[0].arrival if self.steps else 0

    def shares(self) -> dict[str, float]:
        """Mean share of memory by kind, from 0 to 1, over the steps; they add up to 1."""
        kinds = ("used", "reserved", "internal", "external", "free")
        return {kind: self._mean(f"{kind}_tokens") / self.capacity_tokens for kind in kinds}

    def waste_of_given(self) -> float:
        """Of the memory that sequences had, the share in which nothing was stored (0 to 1)."""
        used = sum(state.used_tokens for state in self.steps)
        empty = sum(state.reserved_tokens + state.internal_tokens for state in self.steps)
        return empty / (used + empty) if used else 0.0

    def owners_at(self, step: int) -> list[Tenure]:
        """Who has what during a step, by place in memory."""
        held = [tenure for tenure in self.tenures if tenure.since <= step < tenure.until]
        return sorted(held, key=lambda tenure: tenure.start_token)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row a step, for tables and charts, with the policy's name."""
        return ({"policy": self.policy.value, **state._asdict()} for state in self.steps)

    def summary(self) -> dict[str, Any]:
        """The numbers to compare policies by."""
        return {
            "policy": self.policy.value,
            "sequences": len(self.sequences),
            "capacity_tokens": self.capacity_tokens,
            "makespan_steps": self.makespan_steps,
            "mean_running": self.mean_running,
            "most_running": self.most_running,
            "preemptions": self.preemptions,
            "recomputed_tokens": self.recomputed_tokens,
            "waste_of_given": self.waste_of_given(),
            **{f"{kind}_share": share for kind, share in self.shares().items()},
        }

    def _mean(self, name: str) -> float:
        return sum(getattr(state, name) for state in self.steps) / len(self.steps) if self.steps else 0.0
