"""Runs labs one after the other with nobody at the keyboard, and keeps what they found whatever happens.

`plan` has checked everything before; `batch` runs a notebook. Here: run.json, the records' last word, and the estimate.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from labkit.errors import RecordError
from labkit.files import root, runs_path
from labkit.machine import to_json
from labkit.records import LabRun, Recorder, RunInfo, read, read_run, set_status
from labkit.runs import minutes
from labkit.runs.minutes import Estimate
from labkit.runs.notebook import NotebookEnd, Stop, execute, stop_on_signals
from labkit.runs.plan import OUT_DIR, Job, Plan
from labkit.words import clock


def now_and_then(
    say: Callable[[str], None], *, every_s: float = 10.0, now: Callable[[], float] = time.monotonic
) -> Callable[[str], None]:
    """`say` for a wait that is told of many times a second: the first text, then one every `every_s` seconds."""
    due_s = now()

    def tell(text: str) -> None:
        nonlocal due_s
        if now() >= due_s:
            due_s = now() + every_s
            say(text)

    return tell


@dataclass
class _Shown:
    """A lab that runs. `cell` from 1; `cells` is 0 before the first."""

    started_s: float
    cell: int = 0
    cells: int = 0

    @property
    def where(self) -> str:
        return f", cell {self.cell} of {self.cells}" if self.cells else ""


class Progress:
    """Lab k of n, its cell, the time so far, and about how long the rest takes (`estimates_s` by lab)."""

    def __init__(
        self,
        labs: Sequence[str],
        estimates_s: Mapping[str, float],
        *,
        stream: TextIO | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._labs, self._estimates_s = list(labs), dict(estimates_s)
        self._stream, self._now = stream or sys.stderr, now
        self._live = self._stream.isatty()
        self._waiting, self._running = dict.fromkeys(labs), dict[str, _Shown]()
        self._drawn_s = 0.0

    def lab_started(self, lab: str) -> None:
        """A lab begins; others may be running."""
        self._waiting.pop(lab, None)
        self._running[lab] = _Shown(started_s=self._now())
        if not self._live:
            rest = f"about {clock(self._estimates_s[lab])}, all about {clock(self.left_s())}"
            self._print(f"{self._position(lab)}: {rest}")

    def cell_started(self, index: int, total: int, *, lab: str = "") -> None:
        """A cell of the lab (default: the one that runs) begins (`index` from 0)."""
        for name in [lab] if lab else self._running:
            if shown := self._running.get(name):
                shown.cell, shown.cells = index + 1, total

    def tick(self) -> None:
        """Redraws the live line, at most once a second."""
        if self._live and self._running and self._now() - self._drawn_s >= 1:
            self._drawn_s = self._now()
            labs = " + ".join(f"{self._position(lab)}{shown.where}" for lab, shown in self._running.items())
            elapsed = clock(self._now() - min(shown.started_s for shown in self._running.values()))
            line = f"{labs}, {elapsed}, about {clock(self.left_s())} left"
            self._stream.write(f"\r\x1b[2K{line[: shutil.get_terminal_size().columns - 1]}")
            self._stream.flush()

    def note(self, text: str) -> None:
        """One line that stays, whatever runs."""
        if self._live:
            self._stream.write("\r\x1b[2K")
        self._print(text)

    def lab_ended(self, lab: str, status: str, seconds: float, detail: str = "") -> None:
        """A lab is over: its line stays."""
        self._running.pop(lab, None)
        self.note(f"{self._position(lab)}: {status} in {clock(seconds)}{f' - {detail}' if detail else ''}")

    def left_s(self) -> float:
        """The rest in seconds: what the running labs have left of their estimates, and those that wait.

        Labs that run at the same time share what waits; the longest of them is the least that it can take.
        """
        now = self._now()
        running = [max(0.0, self._estimates_s[lab] - (now - it.started_s)) for lab, it in self._running.items()]
        waiting = sum(self._estimates_s[lab] for lab in self._waiting)
        return max(max(running, default=0.0), (sum(running) + waiting) / max(1, len(running)))

    def _position(self, lab: str) -> str:
        return f"[{self._labs.index(lab) + 1}/{len(self._labs)}] {lab}"

    def _print(self, line: str) -> None:
        self._stream.write(f"{line}\n")
        self._stream.flush()


# --- runner ---


NO_RECORD = "the notebook wrote no record: it must call session.start(...)"
UNFINISHED = "the notebook ended without lab.finish()"
SELF_FAILED = "the lab itself recorded that it failed"


# (job, None) when a lab starts, (job, its end) when its record, notebook and log are in the run's folder
Step = tuple[Job, NotebookEnd | None]
Executor = Callable[[Sequence[Job], Plan, Stop, Progress], Iterator[Step]]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended. `interrupted`: somebody stopped it."""

    out_dir: Path
    labs: tuple[LabRun, ...]
    interrupted: bool

    @property
    def failed(self) -> tuple[LabRun, ...]:
        """The labs that failed."""
        return tuple(lab for lab in self.labs if lab.status == "failed")


def one_by_one(jobs: Sequence[Job], plan: Plan, stop: Stop, shown: Progress) -> Iterator[Step]:
    """Runs the labs on this machine, one after the other."""
    for job in jobs:
        if stop.asked.is_set():
            return
        yield job, None
        yield (
            job,
            execute(
                job.notebook,
                plan.out_dir / job.lab.notebook,
                {**job.given, OUT_DIR: str(plan.out_dir)},
                log_path=log_path(plan.out_dir, job.lab.name),
                stop=stop,
                on_cell=shown.cell_started,
                on_tick=shown.tick,
            ),
        )


def run_labs(
    plan: Plan,
    *,
    executor: Executor = one_by_one,
    progress: Callable[[list[str], Mapping[str, float]], Progress] = Progress,
) -> RunResult:
    """Runs the plan's labs into its folder. One lab's failure leaves the others running; Ctrl-C ends all of it.

    `executor`: where and in which order. run.json is rewritten whenever a lab starts or ends. A record says "failed"
    whenever its notebook did not end well.
    """
    expected_s = {name: one.seconds for name, one in estimates(plan).items()}
    shown = progress(list(expected_s), expected_s)
    info = _keep(plan, _opening(plan))
    with stop_on_signals() as stop:
        for job, end in executor(plan.running, plan, stop, shown):
            lab = _started(job, plan) if end is None else _ended(job, plan, end)
            info = _keep(plan, info.with_lab(lab))
            if end is None:
                shown.lab_started(lab.name)
            else:
                shown.lab_ended(lab.name, lab.status, lab.seconds or 0.0, lab.error)
    info = _keep(plan, info.model_copy(update={"ended": datetime.now(UTC)}))
    return RunResult(out_dir=plan.out_dir, labs=info.labs, interrupted=stop.asked.is_set())


def _started(job: Job, plan: Plan) -> LabRun:
    # what an earlier attempt left must not pass for this one's
    (plan.out_dir / f"{job.lab.name}.json").unlink(missing_ok=True)
    return LabRun(name=job.lab.name, status="running")


def _ended(job: Job, plan: Plan, end: NotebookEnd) -> LabRun:
    error = _settle(job, plan, plan.out_dir / f"{job.lab.name}.json", end)
    return LabRun(name=job.lab.name, status="failed" if error else "done", seconds=round(end.seconds, 3), error=error)


def log_path(out_dir: Path, lab: str) -> Path:
    """Where everything that a lab printed stands."""
    return out_dir / "logs" / f"{lab}.log"


def opening_lines(plan: Plan) -> list[str]:
    """What a run says before it starts: its profile, and with a GPU the minutes that each lab is expected to take."""
    gpus = plan.machine.gpus
    return [plan.line, *(minutes.lines(estimates(plan), gpus[0]) if gpus else ())]


def estimates(plan: Plan) -> dict[str, Estimate]:
    """By lab that is to run: the newest run with this profile in which it ended well, or else `minutes.estimate`."""
    gpu = plan.machine.gpus[0] if plan.machine.gpus else None
    found = {job.lab.name: minutes.estimate(job.lab, job.parameters, gpu) for job in plan.running}
    for run_file in sorted(runs_path().glob("*/run.json"), key=lambda file: file.stat().st_mtime):
        try:
            earlier = read_run(run_file.parent)
        except RecordError:  # a broken file is no estimate; whoever reports or resumes that run is told
            continue
        for lab in earlier.labs:
            if lab.name in found and lab.status == "done" and lab.seconds and earlier.profile == plan.profile.name:
                found[lab.name] = Estimate(seconds=lab.seconds, basis="measured in an earlier run with this profile")
    return found


def git_commit() -> str | None:
    """The commit of the course, "+" added when files were changed since; None outside of a clone."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
            cwd=root(),
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _opening(plan: Plan) -> RunInfo:
    commit = git_commit()
    return RunInfo(
        machine=to_json(plan.machine),
        versions=dict(plan.versions),
        seed=plan.seed,
        started=datetime.now(UTC),
        profile=plan.profile.name,
        git_commit=commit,
        earlier_commits=_earlier_commits(plan, commit),
        labs=tuple(_waiting(job, plan) for job in plan.jobs),
    )


def _earlier_commits(plan: Plan, commit: str | None) -> tuple[str, ...]:
    """Under which commits the labs were measured that a resumed run keeps, other than its own."""
    if not any(job.done for job in plan.jobs):
        return ()
    try:
        earlier = read_run(plan.out_dir)
    except RecordError:  # no run.json: records without a word on where they came from
        return ()
    known = (earlier.git_commit, *earlier.earlier_commits)
    return tuple(dict.fromkeys(one for one in known if one and one != commit))


def _waiting(job: Job, plan: Plan) -> LabRun:
    if job.done:
        return LabRun(name=job.lab.name, status="done", seconds=_earlier_seconds(job, plan))
    return LabRun(name=job.lab.name, status="skipped" if job.refused else "waiting", error=job.refused)


def _earlier_seconds(job: Job, plan: Plan) -> float | None:
    record = read(plan.out_dir / f"{job.lab.name}.json")
    return round((record.ended - record.started).total_seconds(), 3) if record.ended else None


def _keep(plan: Plan, info: RunInfo) -> RunInfo:
    info.write(plan.out_dir)
    return info


def _settle(job: Job, plan: Plan, record_file: Path, end: NotebookEnd) -> str:
    """Makes the record agree with the notebook's end; returns the error in one line, "" when all went well."""
    error = end.error if end.status == "interrupted" or not end.cell else f"{end.error} (in {end.cell})"
    if not record_file.exists():
        recorder = Recorder(
            job.lab.name, plan.out_dir, job.parameters, machine=plan.machine, versions=plan.versions, seed=plan.seed
        )
        recorder.save("failed")
        return error or NO_RECORD
    status = read(record_file).status
    if status != "done" or error:
        set_status(record_file, "failed", at=datetime.now(UTC))
    return error or {"running": UNFINISHED, "failed": SELF_FAILED}.get(status, "")
