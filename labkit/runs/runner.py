"""Run the labs of a plan; keep run.json, records and estimates consistent even if a lab or the run fails."""

import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import rich.progress
from rich.console import Console, RenderableType
from rich.progress import MofNCompleteColumn, Task, TextColumn, TimeElapsedColumn

from labkit.errors import RecordError
from labkit.files import root, runs_path
from labkit.machine import to_json
from labkit.records import RUN_FILE, LabRun, Recorder, RunInfo, read, read_run, set_status
from labkit.runs import minutes
from labkit.runs.minutes import Estimate
from labkit.runs.notebook import NotebookEnd, Stop, execute, stop_on_signals
from labkit.runs.plan import OUT_DIR, Job, Plan
from labkit.words import clock

NO_RECORD = "the notebook wrote no record: it must call session.start(...)"
ENDED_EARLY = {"running": "the notebook ended without lab.finish()", "failed": "the lab itself recorded that it failed"}


def now_and_then(
    say: Callable[[str], None], *, every_s: float = 10.0, now: Callable[[], float] = time.monotonic
) -> Callable[[str], None]:
    """Rate-limit `say`: the first text, then one per `every_s` seconds."""
    due_s = now()

    def limited(text: str) -> None:
        nonlocal due_s
        if now() >= due_s:
            due_s = now() + every_s
            say(text)

    return limited


class Progress(rich.progress.Progress):
    """The run's progress: a bar per lab on a terminal, elsewhere a line when a lab starts and one when it ends.

    Use it in a `with` block. `estimates_s`: seconds by lab, in the run's order.
    """

    def __init__(
        self,
        estimates_s: Mapping[str, float],
        *,
        stream: TextIO | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.labs = list(estimates_s)
        # Replaced, never mutated: rich reads them in its own thread.
        self.estimates_s, self.running = dict(estimates_s), dict[str, Task]()
        stream = stream or sys.stderr
        is_terminal = stream.isatty()
        console = Console(file=stream, force_terminal=is_terminal, force_jupyter=False, emoji=False)
        columns = (TextColumn("{task.description}", markup=False), MofNCompleteColumn(), TimeElapsedColumn())
        super().__init__(*columns, console=console, transient=True, disable=not is_terminal, get_time=now)

    def get_renderables(self) -> Iterator[RenderableType]:
        """What rich draws below the notes."""
        yield from super().get_renderables()
        yield f"about {clock(self.left_s())} left"

    def lab_started(self, lab: str) -> None:
        """Show that a lab starts; others may be running."""
        self.add_task(self._position(lab), total=None)
        self.running = {**self.running, lab: self.tasks[-1]}
        if self.disable:
            self.note(f"{self._position(lab)}: about {clock(self.estimates_s[lab])}, all about {clock(self.left_s())}")

    def cell_started(self, lab: str, index: int, total: int) -> None:
        """Show that a cell of the lab starts (`index` from 0)."""
        if total and (task := self.running.get(lab)):
            self.update(task.id, completed=index + 1, total=total)

    def lab_ended(self, lab: str, status: str, seconds: float, detail: str = "") -> None:
        """Show how a lab ended."""
        if task := self.running.get(lab):
            self.remove_task(task.id)
        self.running = {other: task for other, task in self.running.items() if other != lab}
        self.estimates_s = {**self.estimates_s, lab: 0.0}
        self.note(f"{self._position(lab)}: {status} in {clock(seconds)}{f' - {detail}' if detail else ''}")

    def note(self, text: str) -> None:
        """Print a line above the progress bars."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def left_s(self) -> float:
        """Expected seconds left: work is shared by the running labs, but never less than the longest of them."""
        tasks, estimates_s = self.running, self.estimates_s
        running = [max(0.0, estimates_s[lab] - (task.elapsed or 0.0)) for lab, task in tasks.items()]
        waiting = sum(seconds for lab, seconds in estimates_s.items() if lab not in tasks)
        return max(max(running, default=0.0), (sum(running) + waiting) / max(1, len(running)))

    def _position(self, lab: str) -> str:
        return f"[{self.labs.index(lab) + 1}/{len(self.labs)}] {lab}"


# (job, None) when a lab starts, (job, its end) when its record, notebook and log are in the run's folder
Step = tuple[Job, NotebookEnd | None]
Executor = Callable[[Sequence[Job], Plan, Stop, Progress], Iterator[Step]]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended. `interrupted`: the user stopped it."""

    out_dir: Path
    labs: tuple[LabRun, ...]
    interrupted: bool

    @property
    def failed(self) -> tuple[LabRun, ...]:
        """The labs that failed."""
        return tuple(lab for lab in self.labs if lab.status == "failed")


def one_by_one(jobs: Sequence[Job], plan: Plan, stop: Stop, progress: Progress) -> Iterator[Step]:
    """Run the labs on this machine, one after the other."""
    for job in jobs:
        if stop.asked.is_set():
            return
        yield job, None
        end = execute(
            job.notebook,
            plan.out_dir / job.lab.notebook,
            {**job.given, OUT_DIR: str(plan.out_dir)},
            log_path=log_path(plan.out_dir, job.lab.name),
            stop=stop,
            on_cell=functools.partial(progress.cell_started, job.lab.name),
        )
        yield job, end


def run_labs(plan: Plan, *, executor: Executor = one_by_one, stream: TextIO | None = None) -> RunResult:
    """Run the plan's labs into its folder, with progress on `stream` (default: stderr).

    The others run on if a lab fails; Ctrl-C ends the run. `executor` decides where and in which order labs run.
    run.json is rewritten when a lab starts or ends. A record says "failed" unless its notebook ended well.
    """
    expected_s = {name: estimate.seconds for name, estimate in estimates(plan).items()}
    with Progress(expected_s, stream=stream) as progress, stop_on_signals() as stop:
        info = _initial_info(plan, progress.note)
        info.write(plan.out_dir)
        for job, end in executor(plan.running, plan, stop, progress):
            if end is None:
                plan.record_file(job).unlink(missing_ok=True)  # the previous attempt's
                lab = LabRun(name=job.lab.name, status="running")
                progress.lab_started(lab.name)
            else:
                lab = _ended(job, plan, end)
                progress.lab_ended(lab.name, lab.status, end.seconds, lab.error)
            info = info.with_lab(lab)
            info.write(plan.out_dir)
    info = info.model_copy(update={"ended": datetime.now(UTC)})
    info.write(plan.out_dir)
    return RunResult(out_dir=plan.out_dir, labs=info.labs, interrupted=stop.asked.is_set())


def _ended(job: Job, plan: Plan, end: NotebookEnd) -> LabRun:
    """Make the record agree with the notebook's end."""
    record_file = plan.record_file(job)
    error = end.error if end.status == "interrupted" or not end.cell else f"{end.error} (in {end.cell})"
    if not record_file.exists():
        recorder = Recorder(
            job.lab.name, plan.out_dir, job.parameters, machine=plan.machine, versions=plan.versions, seed=plan.seed
        )
        recorder.save("failed")
        error = error or NO_RECORD
    else:
        status = read(record_file).status
        error = error or ENDED_EARLY.get(status, "")
        if error:
            set_status(record_file, "failed", at=datetime.now(UTC))
    return LabRun(name=job.lab.name, status="failed" if error else "done", seconds=round(end.seconds, 3), error=error)


def log_path(out_dir: Path, lab: str) -> Path:
    """Return the file with a lab's output."""
    return out_dir / "logs" / f"{lab}.log"


def opening_lines(plan: Plan) -> list[str]:
    """Return the run's profile and, with a GPU, the expected minutes of each lab."""
    gpus = plan.machine.gpus
    return [plan.line, *(minutes.lines(estimates(plan), gpus[0]) if gpus else ())]


def estimates(plan: Plan) -> dict[str, Estimate]:
    """Return each lab's time in the newest run with this profile in which it ended well, or else `minutes.estimate`."""
    gpu = plan.machine.gpus[0] if plan.machine.gpus else None
    by_lab = {job.lab.name: minutes.estimate(job.lab, job.parameters, gpu) for job in plan.running}
    for run_file in sorted(runs_path().glob("*/run.json"), key=lambda file: file.stat().st_mtime):
        try:
            earlier = read_run(run_file.parent)
        except RecordError:  # skip it here; reporting or resuming that run reports the error
            continue
        for lab in earlier.labs:
            if lab.name in by_lab and lab.status == "done" and lab.seconds and earlier.profile == plan.profile.name:
                by_lab[lab.name] = Estimate(seconds=lab.seconds, basis="measured in an earlier run with this profile")
    return by_lab


def git_commit() -> str | None:
    """Return the course's commit, with "+" if files have changed since; None outside a clone."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        described = subprocess.run(command, cwd=root(), capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def _initial_info(plan: Plan, note: Callable[[str], None]) -> RunInfo:
    """The run's initial info. A resumed run keeps labs that do not run again, and the commits that measured them."""
    commit, jobs = git_commit(), {job.lab.name: job for job in plan.jobs}
    earlier = _earlier(plan.out_dir, note) if (plan.out_dir / RUN_FILE).exists() else None
    kept = {lab.name: _not_running(lab) for lab in (earlier.labs if earlier else _recorded(plan.out_dir))}
    names = sorted({*kept, *jobs})  # a lab's name begins with its number
    commits: dict[str | None, None] = {}
    measured = [name for name, lab in kept.items() if lab.status in ("done", "failed")]
    if earlier and any(name not in jobs or jobs[name].done for name in measured):
        commits = dict.fromkeys((earlier.git_commit, *earlier.earlier_commits))
    return RunInfo(
        machine=to_json(plan.machine),
        versions=dict(plan.versions),
        seed=plan.seed,
        started=datetime.now(UTC),
        profile=plan.profile.name,
        git_commit=commit,
        earlier_commits=tuple(other for other in commits if other and other != commit),
        labs=tuple(_not_started(jobs[name], plan) if name in jobs else kept[name] for name in names),
    )


def _earlier(folder: Path, note: Callable[[str], None]) -> RunInfo | None:
    """The folder's run.json. An unreadable one is renamed, with a note."""
    try:
        return read_run(folder)
    except RecordError as error:
        aside = folder / f"{RUN_FILE}.unreadable"
        (folder / RUN_FILE).replace(aside)
        note(f"{error.what}. It is kept as {aside.name}; {RUN_FILE} is rebuilt from the records in the folder")
        return None


def _recorded(folder: Path) -> Iterator[LabRun]:
    """The labs whose records are in the folder; the commits that measured them are unknown."""
    for file in folder.glob("[0-9]*.json"):
        try:
            yield LabRun.of(read(file))
        except RecordError as error:
            yield LabRun(name=file.stem, status="failed", error=error.what)


def _not_running(lab: LabRun) -> LabRun:
    """The lab's last state; "running" becomes "failed", since the earlier run was killed."""
    if lab.status != "running":
        return lab
    return lab.model_copy(update={"status": "failed", "error": "the run was killed"})


def _not_started(job: Job, plan: Plan) -> LabRun:
    if not job.done:
        return LabRun(name=job.lab.name, status="skipped" if job.refused else "waiting", error=job.refused)
    return LabRun.of(read(plan.record_file(job)))
