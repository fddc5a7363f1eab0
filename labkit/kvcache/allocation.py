"""Contiguous against paged allocation over a stream of sequences: who waits, who runs, and what memory is wasted.

A model, not a measurement: a step is one forward pass, in which every running sequence stores one more token and a new
one stores its whole prompt. First come, first served, as in vLLM; when blocks run out, the sequence that came last
gives its blocks up, waits, and later stores its prompt and what it had generated anew (preemption by recompute, vLLM's
v1/core/sched/scheduler.py). The work grows with the blocks given and the steps, not with the tokens.
"""

from collections import defaultdict, deque
from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass

from labkit.kvcache.arithmetic import require_positive
from labkit.kvcache.memory import Extent, Memory, Policy, Sequence, check_fit, memory_for
from labkit.kvcache.trace import StepState, Tenure, Trace


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
