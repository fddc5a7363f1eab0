"""Which lab runs on which node, and what happens when a node is lost. Knows nothing of Ray: `Grid` stands for it."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from labkit.batch import NotebookEnd, Stop
from labkit.plan import Job
from labkit.progress import Progress, now_and_then
from labkit.remote.nodes import Demand, Node
from labkit.remote.room import Order, Outcome
from labkit.runner import Step

TRIES = 3  # a lab whose node is lost starts again on another, so often in all
POLL_S = 0.25
TELL_EVERY_S = 30.0
STOP_PATIENCE_S, URGENT_PATIENCE_S = 60.0, 15.0  # a node that does not answer by then is left alone


class LostError(Exception):
    """The node, or the worker on it, is gone."""


class Tenancy(Protocol):
    """A lab on its node."""

    def outcome(self) -> Outcome | None:
        """None while it runs. LostError: the node or the worker is gone."""

    def cell(self) -> tuple[int, int] | None:
        """(the cell that runs, how many there are); None before the node has answered."""

    def stop(self) -> None:
        """Asks the lab to stop; the second time, at once."""

    def leave(self) -> None:
        """Gives the node back; a lab that still runs there ends."""


class Grid(Protocol):
    """A cluster."""

    def nodes(self) -> Sequence[Node]:
        """The nodes that are alive."""

    def open(self, node: Node, demand: Demand, order: Order) -> Tenancy:
        """Starts a lab on the node as soon as what it demands is free there; returns at once."""


@dataclass
class Attempt:
    """A lab that has been given to a node. `lost_on`: the nodes that earlier attempts were lost with."""

    job: Job
    node: Node
    demand: Demand
    tenancy: Tenancy
    lost_on: tuple[str, ...]
    asked: list[float] = field(default_factory=list)


@dataclass
class Dispatcher:
    """Runs `jobs` on the grid. `fits(job, node)`: what the lab takes there, None where it cannot run."""

    grid: Grid
    jobs: Sequence[Job]
    fits: Callable[[Job, Node], Demand | None]
    out_dir: Path
    stop: Stop
    shown: Progress
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        self.running: list[Attempt] = []
        self.waiting: list[tuple[Job, tuple[str, ...]]] = [(job, ()) for job in self.jobs]
        self._told = now_and_then(self.shown.note, every_s=TELL_EVERY_S, now=self.now)

    def steps(self) -> Iterator[Step]:
        """(job, None) when a lab starts and (job, its end) when its files are in `out_dir`."""
        try:
            while self.waiting or self.running:
                if self.stop.asked.is_set():
                    yield from self._give_up_waiting()
                    self._ask_to_stop()
                elif self.waiting:
                    yield from self._start_what_fits(self.grid.nodes())
                yield from self._ends()
                self.shown.tick()
                self.sleep(POLL_S)
        finally:
            for attempt in self.running:
                attempt.tenancy.leave()

    def _start_what_fits(self, nodes: Sequence[Node]) -> Iterator[Step]:
        for job, lost_on in list(self.waiting):
            able = {node.id: (node, asked) for node in nodes if (asked := self.fits(job, node)) is not None}
            if not able:
                self.waiting.remove((job, lost_on))
                if not lost_on:
                    yield job, None
                yield job, failed(f"no node that is left can run it{_after(lost_on)}")
            elif chosen := self._choose(able, lost_on):
                self.waiting.remove((job, lost_on))
                self._open(job, *chosen, lost_on)
                if not lost_on:
                    yield job, None
        if self.waiting and not self.running:
            self._told(f"{self.waiting[0][0].lab.name} waits: others hold the cluster's CPUs or GPUs")

    def _choose(self, able: Mapping[str, tuple[Node, Demand]], lost_on: Sequence[str]) -> tuple[Node, Demand] | None:
        """The fullest node with room for the lab, so that whole nodes stay free for engines; one that was lost last."""
        if any(attempt.demand.alone for attempt in self.running):
            return None
        others = [pair for id, pair in able.items() if id not in lost_on] or list(able.values())
        with_room = [pair for pair in others if self._has_room(*pair)]
        return min(with_room, key=lambda pair: pair[0].free_cpus, default=None)

    def _has_room(self, node: Node, asked: Demand) -> bool:
        ours = [attempt.demand for attempt in self.running if attempt.node.id == node.id]
        if asked.alone:
            return not self.running
        if not ours and (node.free_cpus < asked.cpus or node.free_gpus < asked.gpus):
            return False
        cpus, gpus = node.cpus - sum(each.cpus for each in ours), node.gpus - sum(each.gpus for each in ours)
        return asked.cpus <= cpus and asked.gpus <= gpus

    def _open(self, job: Job, node: Node, asked: Demand, lost_on: tuple[str, ...]) -> None:
        order = Order(
            lab=job.lab.name,
            notebook=job.lab.notebook,
            content=job.notebook.read_bytes(),
            parameters=dict(job.given),
        )
        self.shown.note(f"{job.lab.name}: on node {node.name}{f', try {len(lost_on) + 1}' if lost_on else ''}")
        self.running.append(Attempt(job, node, asked, self.grid.open(node, asked, order), lost_on))

    def _ends(self) -> Iterator[Step]:
        for attempt in list(self.running):
            if (cell := attempt.tenancy.cell()) and cell[1]:
                self.shown.cell_started(*cell, lab=attempt.job.lab.name)
            try:
                outcome = attempt.tenancy.outcome()
            except LostError as error:
                self._leave(attempt)
                yield from self._lost(attempt, str(error))
                continue
            if outcome is not None:
                self._leave(attempt)
                _unpack(outcome.files, self.out_dir)
                yield attempt.job, outcome.end
            elif self._unanswered(attempt):
                self._leave(attempt)
                yield attempt.job, _stopped(f"its node {attempt.node.name} did not answer")

    def _leave(self, attempt: Attempt) -> None:
        self.running.remove(attempt)
        attempt.tenancy.leave()

    def _lost(self, attempt: Attempt, why: str) -> Iterator[Step]:
        lost_on, name = (*attempt.lost_on, attempt.node.id), attempt.job.lab.name
        if self.stop.asked.is_set():
            yield attempt.job, _stopped(f"its node {attempt.node.name} was lost")
        elif len(lost_on) == TRIES:
            yield attempt.job, failed(f"its node was lost {TRIES} times, at last {attempt.node.name}: {why}")
        else:
            self.shown.note(f"{name}: node {attempt.node.name} was lost ({why}); the lab starts again")
            self.waiting.insert(0, (attempt.job, lost_on))

    def _give_up_waiting(self) -> Iterator[Step]:
        """A lab that has been lost and waits for another node was running for those who watch: it needs an end."""
        for job, lost_on in self.waiting:
            if lost_on:
                yield job, _stopped("its node was lost")
        self.waiting = []

    def _ask_to_stop(self) -> None:
        times = 2 if self.stop.urgent.is_set() else 1
        for attempt in self.running:
            while len(attempt.asked) < times:
                attempt.asked.append(self.now())
                attempt.tenancy.stop()

    def _unanswered(self, attempt: Attempt) -> bool:
        """Whether it was asked to stop and nothing more can be expected: it was not placed yet, or time is up."""
        if not attempt.asked:
            return False
        patience_s = URGENT_PATIENCE_S if len(attempt.asked) > 1 else STOP_PATIENCE_S
        return attempt.tenancy.cell() is None or self.now() - attempt.asked[-1] > patience_s


def _unpack(files: Mapping[str, bytes], out_dir: Path) -> None:
    for name, content in files.items():
        path = out_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def failed(why: str) -> NotebookEnd:
    """The end of a lab that has no notebook to tell of it."""
    return NotebookEnd(status="failed", seconds=0.0, error=why)


def _stopped(why: str) -> NotebookEnd:
    return NotebookEnd(status="interrupted", seconds=0.0, error=f"stopped by the user; {why}")


def _after(lost_on: Sequence[str]) -> str:
    return f", after its node was lost {len(lost_on)} times" if lost_on else ""
