"""Contiguous against paged allocation over a stream of sequences: who waits, who runs, and what memory is wasted.

A model, not a measurement: a step is one forward pass, in which every running sequence stores one more token and a new
one stores its whole prompt. First come, first served, as in vLLM; when blocks run out, the sequence that came last
gives its blocks up, waits, and later stores its prompt and what it had generated anew (preemption by recompute, vLLM's
v1/core/sched/scheduler.py). The work grows with the blocks given and the steps, not with the tokens.
"""

import bisect
import math
import random
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from labkit.errors import UsageError
from labkit.theory.kv_size import blocks_for_tokens, require_positive
from labkit.theory.prefix_cache import BlockPool


class Policy(StrEnum):
    """How memory is given to a sequence."""

    RESERVE_MAX = "reserve the model's length"
    RESERVE_POWER_OF_TWO = "reserve the next power of two"
    RESERVE_KNOWN = "reserve the known length"
    PAGED = "paged"


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """One request. `arrival`: the step before which it comes; a step is one forward pass of the engine."""

    arrival: int
    prompt_tokens: int
    output_tokens: int

    @property
    def final_tokens(self) -> int:
        """KV entries when it ends: the last generated token is never fed back, so it has none."""
        return self.prompt_tokens + self.output_tokens - 1


@dataclass(frozen=True)
class Extent:
    """A piece of memory, in tokens: where it begins and how much it holds."""

    start: int
    tokens: int


class Memory(Protocol):
    """What the simulation asks of a policy. `admit` and `grow` return what was given, or None and change nothing."""

    capacity_tokens: int

    @property
    def free_tokens(self) -> int:
        """Tokens that no sequence has been given."""

    def admit(self, index: int, sequence: Sequence, tokens: int) -> list[Extent] | None:
        """Memory for a sequence of which `tokens` are stored at once."""

    def grow(self, index: int) -> Extent | None:
        """The next piece for a sequence whose memory is full."""

    def release(self, index: int) -> None:
        """Takes back everything that the sequence has."""

    def needed_tokens(self, sequence: Sequence) -> int:
        """What the sequence takes when it is as long as it gets."""

    def fragmented(self, sequence: Sequence) -> bool:
        """Whether the sequence would fit into all free memory together, but not into one piece of it."""


class PagedMemory:
    """Blocks from a pool, one by one; a sequence's blocks lie anywhere."""

    def __init__(self, memory_tokens: int, *, block_size: int) -> None:
        require_positive("block_size", block_size)
        if memory_tokens < block_size:
            raise UsageError(
                f"memory_tokens is {memory_tokens}, less than one block of {block_size} tokens",
                remedy="give more memory or a smaller block_size",
            )
        self.block_size = block_size
        self._pool = BlockPool(memory_tokens // block_size, block_size=block_size, caching=False)
        self._tables: dict[int, list[int]] = {}
        self.capacity_tokens = len(self._pool.blocks) * block_size

    @property
    def free_tokens(self) -> int:
        """Tokens in free blocks."""
        return self._pool.free_blocks * self.block_size

    def admit(self, index: int, sequence: Sequence, tokens: int) -> list[Extent] | None:  # noqa: ARG002
        """The blocks for the tokens that are there now."""
        numbers = self._pool.take(blocks_for_tokens(tokens, block_size=self.block_size))
        if numbers is None:
            return None
        self._tables[index] = numbers
        return [self._extent(number) for number in numbers]

    def grow(self, index: int) -> Extent | None:
        """One more block."""
        numbers = self._pool.take(1)
        if numbers is None:
            return None
        self._tables[index] += numbers
        return self._extent(numbers[0])

    def release(self, index: int) -> None:
        """Its blocks go back to the pool."""
        self._pool.give_back(reversed(self._tables.pop(index)))

    def needed_tokens(self, sequence: Sequence) -> int:
        """Its final length in whole blocks."""
        return blocks_for_tokens(sequence.final_tokens, block_size=self.block_size) * self.block_size

    def fragmented(self, sequence: Sequence) -> bool:  # noqa: ARG002
        """Never: any free block will do."""
        return False

    def _extent(self, number: int) -> Extent:
        return Extent(number * self.block_size, self.block_size)


class ContiguousMemory:
    """One piece for each sequence, reserved when it starts, in the first hole that is large enough."""

    def __init__(self, memory_tokens: int, *, policy: Policy, max_model_len: int) -> None:
        self.capacity_tokens = require_positive("memory_tokens", memory_tokens)
        self.policy = policy
        self.max_model_len = require_positive("max_model_len", max_model_len)
        self.free_tokens = memory_tokens
        self._holes = [(0, memory_tokens)]  # (start, tokens), by start, never touching
        self._extents: dict[int, Extent] = {}

    def admit(self, index: int, sequence: Sequence, tokens: int) -> list[Extent] | None:  # noqa: ARG002
        """The whole reservation at once."""
        size = self.needed_tokens(sequence)
        place = next((at for at, (_, hole) in enumerate(self._holes) if hole >= size), None)
        if place is None:
            return None
        start, hole = self._holes.pop(place)
        if hole > size:
            self._holes.insert(place, (start + size, hole - size))
        self.free_tokens -= size
        self._extents[index] = Extent(start, size)
        return [self._extents[index]]

    def grow(self, index: int) -> Extent | None:
        """Nothing: a reservation holds all that the sequence can become."""
        raise UsageError(f"sequence {index} outgrew its reservation", remedy="check its lengths against max_model_len")

    def release(self, index: int) -> None:
        """Its piece becomes a hole and melts into the holes beside it."""
        extent = self._extents.pop(index)
        self.free_tokens += extent.tokens
        place = bisect.bisect(self._holes, (extent.start, extent.tokens))
        self._holes.insert(place, (extent.start, extent.tokens))
        for left in (place, place - 1):
            self._melt(left)

    def needed_tokens(self, sequence: Sequence) -> int:
        """The reservation, by the policy."""
        if self.policy is Policy.RESERVE_KNOWN:
            return sequence.final_tokens
        if self.policy is Policy.RESERVE_POWER_OF_TWO:
            output = 1 << (sequence.output_tokens - 1).bit_length()
            return min(self.max_model_len, sequence.prompt_tokens + output)
        return self.max_model_len

    def fragmented(self, sequence: Sequence) -> bool:
        """Whether only the holes' sizes are in the way."""
        size = self.needed_tokens(sequence)
        return self.free_tokens >= size > max((hole for _, hole in self._holes), default=0)

    def _melt(self, left: int) -> None:
        """Joins the hole at `left` with the next one where they touch."""
        if 0 <= left < len(self._holes) - 1:
            (start, tokens), (next_start, next_tokens) = self._holes[left : left + 2]
            if start + tokens == next_start:
                self._holes[left : left + 2] = [(start, tokens + next_tokens)]


def memory_for(policy: Policy, *, memory_tokens: int, block_size: int, max_model_len: int) -> Memory:
    """The memory of a policy. `block_size` matters to `Policy.PAGED` only."""
    if policy is Policy.PAGED:
        return PagedMemory(memory_tokens, block_size=block_size)
    return ContiguousMemory(memory_tokens, policy=policy, max_model_len=max_model_len)


def check_fit(sequences: Iterable[Sequence], memory: Memory, *, max_model_len: int) -> None:
    """UsageError for the first sequence with a length below 1, beyond the model, or that memory can never hold."""
    for index, each in enumerate(sequences):
        require_positive(f"prompt_tokens of sequence {index}", each.prompt_tokens)
        require_positive(f"output_tokens of sequence {index}", each.output_tokens)
        total, needed = each.prompt_tokens + each.output_tokens, memory.needed_tokens(each)
        if total > max_model_len:
            raise UsageError(
                f"sequence {index} has {total:,} tokens, max_model_len is {max_model_len:,}",
                remedy="shorten it or raise max_model_len",
            )
        if needed > memory.capacity_tokens:
            raise UsageError(
                f"sequence {index} needs {needed:,} tokens of memory; there are {memory.capacity_tokens:,}",
                remedy="give more memory, or lower max_model_len where it is reserved",
            )


# --- trace ---


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


# --- allocation ---


@dataclass(slots=True)
class Running:
    """A sequence in memory: `since` its step of admission, `stored` then, and what it has been given."""

    since: int
    stored: int
    last_step: int
    given_tokens: int
    tenures: list[tuple[Extent, int]]


def simulate(
    sequences: Iterable[Sequence],
    *,
    policy: Policy,
    memory_tokens: int,
    max_model_len: int,
    block_size: int = 16,
    max_num_seqs: int | None = None,
    keep_tenures: bool = True,
) -> Trace:
    """The stream through the policy, step by step until all have ended. Deterministic.

    `memory_tokens`: KV entries that fit (of a `KvPlan`: `tokens`). `max_num_seqs`: the most that may run at once.
    `keep_tenures=False` leaves out who had which block when. Sequences that arrive together keep their order.
    UsageError: a sequence that can never run, a size below 1.
    """
    ordered = sorted(sequences, key=lambda each: each.arrival)
    memory = memory_for(policy, memory_tokens=memory_tokens, block_size=block_size, max_model_len=max_model_len)
    check_fit(ordered, memory, max_model_len=max_model_len)
    limit = max(1, len(ordered)) if max_num_seqs is None else require_positive("max_num_seqs", max_num_seqs)
    return _Simulation(ordered, memory, max_running=limit, keep_tenures=keep_tenures).run(policy)


class _Simulation:
    """The state between steps. Sequences are named by their place in the order of arrival."""

    def __init__(self, ordered: Many[Sequence], memory: Memory, *, max_running: int, keep_tenures: bool) -> None:
        self.ordered, self.memory = ordered, memory
        self.max_running, self.keep_tenures = max_running, keep_tenures
        self.arriving = deque(range(len(ordered)))
        self.waiting: deque[int] = deque()
        # Only those before the first waiting one ever run, so this is in the order of arrival, too.
        self.running: dict[int, Running] = {}
        self.generated = [0] * len(ordered)
        self.growing: defaultdict[int, list[int]] = defaultdict(list)
        self.ending: defaultdict[int, list[int]] = defaultdict(list)
        self.admitted_step: list[int | None] = [None] * len(ordered)
        self.finished_step = [0] * len(ordered)
        self.admitted = self.finished = self.preemptions = self.recomputed_tokens = 0
        # At step t the running store sum(stored - since) + t * count tokens: a step costs the same for any count.
        self.offset = self.promised = 0
        self.states: list[StepState] = []
        self.tenures: list[Tenure] = []

    def run(self, policy: Policy) -> Trace:
        step = 0
        while self.arriving or self.waiting or self.running:
            if not (self.waiting or self.running):
                step = max(step, self.ordered[self.arriving[0]].arrival)
            self._arrive(step)
            self._grow_all(step)
            self._admit_all(step)
            self.states.append(self._state(step))
            self._end_all(step)
            step += 1
        return Trace(
            policy=policy,
            capacity_tokens=self.memory.capacity_tokens,
            sequences=tuple(self.ordered),
            steps=tuple(self.states),
            tenures=tuple(self.tenures),
            admitted_step=tuple(step for step in self.admitted_step if step is not None),
            finished_step=tuple(self.finished_step),
            recomputed_tokens=self.recomputed_tokens,
        )

    def _arrive(self, step: int) -> None:
        while self.arriving and self.ordered[self.arriving[0]].arrival <= step:
            self.waiting.append(self.arriving.popleft())

    def _grow_all(self, step: int) -> None:
        """Gives a block to each sequence whose blocks are full, if need be from the one that came last."""
        for index in sorted(self.growing.pop(step, ())):
            while index in self.running and not self._grow(index, step):
                self._preempt(next(reversed(self.running)), step)

    def _grow(self, index: int, step: int) -> bool:
        run = self.running[index]
        if run.stored + step - run.since <= run.given_tokens:
            return True  # a note of a stay in memory that has ended since
        extent = self.memory.grow(index)
        if extent is not None:
            self._give(index, run, extent, step)
            self._note_growth(index, run)
        return extent is not None

    def _admit_all(self, step: int) -> None:
        while self.waiting and len(self.running) < self.max_running and self._admit(self.waiting[0], step):
            self.waiting.popleft()

    def _admit(self, index: int, step: int) -> bool:
        sequence, done = self.ordered[index], self.generated[index]
        stored = sequence.prompt_tokens + done
        extents = self.memory.admit(index, sequence, stored)
        if extents is None:
            return False
        run = Running(step, stored, step + sequence.output_tokens - done - 1, 0, [])
        self.running[index] = run
        self.offset += stored - step
        for extent in extents:
            self._give(index, run, extent, step)
        self._note_growth(index, run)
        self.ending[run.last_step].append(index)
        self._count_admission(index, step, stored)
        return True

    def _count_admission(self, index: int, step: int, stored: int) -> None:
        if self.admitted_step[index] is None:
            self.admitted_step[index] = step
            self.admitted += 1
        else:
            self.recomputed_tokens += stored

    def _give(self, index: int, run: Running, extent: Extent, step: int) -> None:
        final = self.ordered[index].final_tokens
        self.promised -= min(run.given_tokens, final)
        run.given_tokens += extent.tokens
        self.promised += min(run.given_tokens, final)
        run.tenures.append((extent, step))

    def _note_growth(self, index: int, run: Running) -> None:
        """Notes the step in which the sequence will need more than it has, if it lives so long."""
        full = run.since + run.given_tokens - run.stored + 1
        if full <= run.last_step:
            self.growing[full].append(index)

    def _preempt(self, index: int, step: int) -> None:
        self.preemptions += 1
        self.generated[index] += step - self.running[index].since
        self._leave(index, until=step)
        self.waiting.appendleft(index)

    def _end_all(self, step: int) -> None:
        for index in self.ending.pop(step, ()):
            run = self.running.get(index)
            if run is not None and run.last_step == step:  # else a note of a stay that was cut short
                self.finished_step[index] = step
                self.finished += 1
                self._leave(index, until=step + 1)

    def _leave(self, index: int, *, until: int) -> None:
        run = self.running.pop(index)
        self.memory.release(index)
        self.offset -= run.stored - run.since
        self.promised -= min(run.given_tokens, self.ordered[index].final_tokens)
        if self.keep_tenures:
            self.tenures += [Tenure(index, extent.start, extent.tokens, since, until) for extent, since in run.tenures]

    def _state(self, step: int) -> StepState:
        count, free = len(self.running), self.memory.free_tokens
        used = self.offset + step * count
        blocked = bool(self.waiting) and count < self.max_running
        fragmented = blocked and self.memory.fragmented(self.ordered[self.waiting[0]])
        return StepState(
            step=step,
            running=count,
            waiting=len(self.waiting),
            admitted=self.admitted,
            finished=self.finished,
            preemptions=self.preemptions,
            used_tokens=used,
            reserved_tokens=self.promised - used,
            internal_tokens=self.memory.capacity_tokens - free - self.promised,
            external_tokens=free if fragmented else 0,
            free_tokens=0 if fragmented else free,
        )


# --- snapshots ---


@dataclass(frozen=True)
class Holding:
    """What one sequence has: `stored_tokens` fill its `extents` one after the other, in the order of its tokens."""

    stored_tokens: int
    extents: tuple[Extent, ...]

    @property
    def given_tokens(self) -> int:
        """Tokens for which it has memory."""
        return sum(extent.tokens for extent in self.extents)

    @property
    def empty_tokens(self) -> int:
        """Of these, those that nothing is stored in."""
        return self.given_tokens - self.stored_tokens


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state after `step` (counted from 0). `preemptions` count from the beginning; `holdings` go by sequence."""

    step: int
    running: int
    waiting: int
    preemptions: int
    capacity_tokens: int
    holdings: Mapping[int, Holding]

    @property
    def given_tokens(self) -> int:
        """Tokens for which sequences have memory."""
        return sum(each.given_tokens for each in self.holdings.values())

    @property
    def usage(self) -> float:
        """The share of the memory that sequences have, 0 to 1 (vLLM's `kv_cache_usage_perc`)."""
        return self.given_tokens / self.capacity_tokens


def waste_share(snapshots: Iterable[Snapshot]) -> float:
    """Of the memory that sequences had, the share in which nothing was stored, over all steps together (0 to 1)."""
    held = [each for snapshot in snapshots for each in snapshot.holdings.values()]
    given = sum(each.given_tokens for each in held)
    return sum(each.empty_tokens for each in held) / given if given else 0.0


def worst_empty_tokens(snapshots: Iterable[Snapshot]) -> int:
    """The most tokens of memory that any one sequence had for nothing at any moment."""
    return max((each.empty_tokens for snapshot in snapshots for each in snapshot.holdings.values()), default=0)


def snapshots(trace: Trace) -> list[Snapshot]:
    """A simulation (with its tenures) after each of its steps: those that ended in the step have left."""
    by_step = _holdings_by_step(trace)
    return [
        Snapshot(
            step=state.step,
            running=len(by_step[state.step]),
            waiting=state.waiting,
            preemptions=state.preemptions,
            capacity_tokens=trace.capacity_tokens,
            holdings=by_step[state.step],
        )
        for state in trace.steps
    ]


def _holdings_by_step(trace: Trace) -> defaultdict[int, dict[int, Holding]]:
    found: defaultdict[int, dict[int, Holding]] = defaultdict(dict)
    for owner, stays in _stays(trace).items():
        stored = trace.sequences[owner].prompt_tokens
        for tenures in stays:
            since, until = min(one.since for one in tenures), tenures[0].until
            last = until - (trace.finished_step[owner] == until - 1)
            for step in range(since, last):
                extents = tuple(Extent(one.start_token, one.tokens) for one in tenures if one.since <= step)
                found[step][owner] = Holding(stored + step - since, extents)
            stored += until - since  # each step adds a token; a preempted sequence comes back with all of them
    return found


def _stays(trace: Trace) -> dict[int, list[list[Tenure]]]:
    """Each sequence's stays in memory in order: the pieces that it gave back together, in the order of its tokens."""
    grouped: defaultdict[tuple[int, int], list[Tenure]] = defaultdict(list)
    for tenure in trace.tenures:
        grouped[tenure.owner, tenure.until].append(tenure)
    stays: defaultdict[int, list[list[Tenure]]] = defaultdict(list)
    for (owner, _), pieces in sorted(grouped.items()):
        stays[owner].append(pieces)
    return dict(stays)


# --- seeded streams of sequences for the allocation model ---


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
