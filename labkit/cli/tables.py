"""Print results as tables on a terminal."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.display import table
from labkit.experiments import few_samples
from labkit.records import Comparison
from labkit.records.ledger import Row
from labkit.words import number, share

if TYPE_CHECKING:
    from rich.table import Table

    from labkit.load.metrics import Quantity, Summary
    from labkit.load.sweep import Sweep
    from labkit.modelled.simulate import Simulation
    from labkit.teaching import Calibration
    from labkit.workshop.doctor import Check, Doctor
    from labkit.workshop.learners import Hurdle, Learner
    from labkit.workshop.room import MachineState, Room, RoomCheck

COLOURS = {
    "green": ("supported", "done", "ok", "yes"),
    "yellow": ("depends", "running", "note", "small"),
    "bold red": ("refuted", "failed", "problem", "no"),
}
STYLES = {word: colour for colour, words in COLOURS.items() for word in words}
MOST_HURDLES = 12
LATENCIES = ("ttft_s", "tpot_s", "itl_s", "e2e_s")


def put(content: Any) -> None:
    """Print a table or text on stdout; brackets are not markup."""
    from rich.console import Console

    # Without a terminal, rich assumes 80 columns, which would fold every sentence.
    Console(width=None if sys.stdout.isatty() else 120, markup=False).print(content)


def styled(word: str) -> Any:
    """Return a status, state or verdict in its colour."""
    from rich.text import Text

    return Text(word, style=STYLES.get(word, "dim"))


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """Return a progress callback (done, total) that draws a line if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress

    console = Console(stderr=True)
    columns = (f"{{task.completed:.0f}} of {{task.total:.0f}} {what}", BarColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=0)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def show_run(run_dir: Path) -> None:
    """Print each lab of a run with its status, time and key figures."""
    from labkit.report.data import load
    from labkit.report.view import lab_views

    rows = table("lab", "status", "time", "key figures")
    for lab in lab_views(load(run_dir)):
        figures = (
            f"{figure['name']}: {figure['value']}" + (f" ({figure['interval']})" if figure["interval"] else "")
            for figure in lab["figures"]
        )
        rows.add_row(lab["title"], styled(lab["status"]), lab["duration"], "\n".join(figures))
    put(rows)


def show_comparison(comparison: Comparison) -> None:
    """Print where two runs agree and differ."""
    rows = table("ratio", "a", "b", "tolerance", "agrees")
    for pair in comparison.ratios:
        values = ["absent" if value is None else number(value) for value in (pair.a, pair.b)]
        rows.add_row(pair.name, *values, share(pair.tolerance), "yes" if pair.within else styled("no"))
    if comparison.ratios:
        put(rows)
    kinds = (("exact", comparison.exact_differences), ("parameter", comparison.parameter_differences))
    for kind, differences in kinds:
        for change in differences:
            put(f"{kind} difference: {change.lab} {change.path}: {change.a!r} in a, {change.b!r} in b")
    for run, labs in (("a", comparison.only_in_a), ("b", comparison.only_in_b)):
        for lab in labs:
            put(f"only in {run}: {lab}")
    for line in (*(f"not finished: {lab}" for lab in comparison.unfinished), *comparison.notes):
        put(line)
    identical, agree = ("yes" if good else "no" for good in (comparison.identical, comparison.agrees))
    put(f"identical where they must be: {identical}; agree: {agree}")


def show_claims(ledger: Sequence[Row]) -> None:
    """Print the ledger, measured claims first."""
    rows = table("claim", "the article says", "sources say", "verdict here", "because")
    for row in sorted(ledger, key=lambda row: not row.measured):
        rows.add_row(row.id, row.short, row.literature, styled(row.verdict), " ".join([row.because, *row.notes]))
    put(rows)


def show_load(summary: "Summary") -> None:
    """Print a load's figures."""
    tokens_in, tokens_out = (
        "unknown" if n is None else f"{n:,}" for n in (summary.input_tokens, summary.output_tokens)
    )
    put(
        f"{summary.completed} completed, {summary.failed} failed in {number(summary.duration_s)} s; "
        f"{tokens_in} tokens in, {tokens_out} out\n"
        f"{number(summary.request_throughput)} requests/s, {_known(summary.output_throughput)} output tokens/s; "
        f"this client used {share(summary.client_cpu_share)} of a core ({_known(summary.requests_per_core_s)} "
        "requests per second and core)"
    )
    names = list(LATENCIES)
    if summary.first_answer_token_s != summary.ttft_s:
        names.insert(1, "first_answer_token_s")
    if summary.e2e_from_send_s != summary.e2e_s:  # an open loop
        names += ["ttft_from_send_s", "e2e_from_send_s"]
    rows = table("seconds", "mean", "p50", "p90", "p99")
    for name in names:
        quantity: Quantity = getattr(summary, name)
        values = (quantity.mean, quantity.p50, quantity.p90, quantity.p99)
        title = name.removesuffix("_s").replace("_", " ").replace("ttft", "TTFT").replace("e2e", "E2E")
        rows.add_row(title.upper() if name in LATENCIES else title, *map(_known, values))
    put(rows)
    if summary.e2e_from_send_s != summary.e2e_s:
        put("TTFT and E2E count from the scheduled time of a request.")
    for warning in filter(None, (few_samples(summary.completed, percentile=99), *summary.warnings)):
        put(f"warning: {warning}")


def _known(value: float) -> str:
    return "-" if math.isnan(value) else number(value)


def show_sweep(sweep: "Sweep") -> None:
    """Print the steps of a sweep and its knee."""
    rows = table(sweep.kind, "requests/s", "output tokens/s", "TTFT p50", "E2E p50", "E2E p99", "in the SLO", "failed")
    for step in sweep.steps:
        summary = step.summary
        values = (summary.output_throughput, summary.ttft_s.p50, summary.e2e_s.p50, summary.e2e_s.p99)
        kept = "-" if step.good_share is None else share(step.good_share)
        rows.add_row(number(step.level), number(step.throughput), *map(_known, values), kept, str(summary.failed))
    put(rows)
    put(f"knee: {'not found' if sweep.knee is None else f'{sweep.kind} {number(sweep.knee)}'}; {sweep.why}")
    put(f"rule: {sweep.rule}")
    fewest = min(step.summary.completed for step in sweep.steps)
    warnings = (few_samples(fewest, percentile=99), *(text for step in sweep.steps for text in step.summary.warnings))
    for warning in dict.fromkeys(filter(None, warnings)):
        put(f"warning: {warning}")


def show_simulation(answer: "Simulation") -> None:
    """Print a load on a modelled GPU: figures, their origin and their error."""
    summary = answer.summary
    put(
        f"{answer.gpu.label}\n"
        f"{summary.completed} completed, {summary.failed} failed in {number(summary.duration_s)} modelled s; "
        f"{summary.input_tokens or 0:,} tokens in, {summary.output_tokens or 0:,} out\n"
        f"{number(summary.request_throughput)} requests/s, {number(summary.output_throughput)} output tokens/s: "
        f"{share(answer.load_share)} of a capacity of {number(answer.capacity_per_s)} requests/s "
        f"({answer.promise.region})\n"
        f"{answer.driven.preemptions} preemptions; prefix hits {share(answer.driven.prefix_hit_rate)}; KV cache at "
        f"most {share(max(usage for _, usage in answer.kv_usage()))} in use\n"
        f"error: {answer.promise.text()}"
    )
    rows = table("seconds", "mean", "p50", "p90", "p99")
    for name in LATENCIES:
        quantity = answer.quantity(name)
        cells = [number(value) for value in (quantity.mean, quantity.p50, quantity.p90)] if quantity else []
        rows.add_row(name.removesuffix("_s").upper(), *(cells or ["not reported"] * 3), "not reported")
    put(rows)
    put("TTFT and E2E are the engine's: an HTTP server and a network add to them.")
    for warning in answer.warnings:
        put(f"warning: {warning}")


def show_keys(values: str, keys: Sequence[tuple[str, str, str, str]]) -> None:
    """Print the keys of --set: name, meaning, `values` (their unit or choices) and default."""
    rows = table("key", "meaning", values, "default")
    for row in keys:
        rows.add_row(*row)
    put(rows)


def show_doctor(doctor: "Doctor") -> None:
    """Print what this machine has, and which labs run on it. States are words; the colours repeat them."""
    labs = table("lab", "runs here", "why", "what to do", title="The labs")
    for name, ready in doctor.labs.items():
        labs.add_row(name, styled(ready.runs), ready.reason, ready.fix)
    put(_checks(doctor.checks, title="This machine"))
    put(labs)
    verdict = "Everything runs here." if doctor.ok else 'Something is missing: see the column "what to do".'
    put(f"{verdict} (examined in {doctor.took_s:.2f} s)")


def _checks(checks: "Iterable[Check]", *, title: str = "") -> "Table":
    rows = table("what", "state", "found", "what to do", title=title)
    for check in checks:
        rows.add_row(check.topic, styled(check.state), check.found, check.fix)
    return rows


# --- for instructors ---


def show_check(check: "RoomCheck") -> None:
    """Print every check of a machine, problems first."""
    order = ("problem", "note", "ok")
    put(_checks(sorted(check.checks, key=lambda item: order.index(item.state))))
    count = len(check.problems)
    verdict = "ready for the workshop" if check.ok else f"not ready: {count} problem{'s' if count > 1 else ''}"
    put(f"{check.machine}: {verdict}")


def show_room(room: "Room") -> None:
    """Print a row for each machine: problems and their fixes, then software that differs from the others."""
    rows = table("machine", "state", "found", "what to do")
    for machine in sorted(room.machines, key=lambda machine: machine.ok):
        name, mark = machine.name, styled("ok" if machine.ok else "problem")
        for found, fix in _machine_rows(machine):
            rows.add_row(name, mark, found, fix)
            name, mark = "", ""
    put(rows)
    for line in room.broken:
        put(line)
    ready = sum(machine.ok for machine in room.machines)
    put(f"{ready} of {len(room.machines) + len(room.broken)} machines are ready")


def _machine_rows(machine: "MachineState") -> list[tuple[str, str]]:
    rows = [(f"{check.topic}: {check.found}", check.fix) for check in machine.check.problems]
    rows += [(line, "git pull and make there, or in the rest of the room") for line in machine.differs]
    return rows or [(f"ready: {machine.check.machine}", "")]


def show_learners(learners: "Sequence[Learner]", hurdles: "Sequence[Hurdle]", calibration: "Calibration") -> None:
    """Print a row for each learner, the room's calibration, and exercises that are open or showed a misconception."""
    if learners:
        rows = table("learner", "done", "open", "failed", "predictions", "sure / right", "exercises", "last (UTC)")
        for learner in learners:
            rows.add_row(learner.name, *_learner_cells(learner))
        put(rows)
    if buckets := calibration.buckets:
        rows = table("how sure", "predictions", "right")
        for bucket in buckets:
            rows.add_row(*bucket.cells())
        put(rows)
    if shown_hurdles := [hurdle for hurdle in hurdles if hurdle.passed < hurdle.tried or hurdle.misconceptions]:
        rows = table("exercise", "passed", "misconceptions (learners)")
        for hurdle in shown_hurdles[:MOST_HURDLES]:
            shown = "; ".join(f"{name} ({count})" for name, count in hurdle.misconceptions.items())
            rows.add_row(hurdle.exercise, f"{hurdle.passed} of {hurdle.tried}", shown)
        put(rows)
    for learner in learners:
        for line in learner.broken:
            put(f"{learner.name}: {line}")


def _learner_cells(learner: "Learner") -> Iterator[str]:
    for status in ("done", "running", "failed"):
        yield " ".join(lab.partition("_")[0] for lab in learner.labs_that_are(status))
    calibration = learner.calibration
    yield f"{learner.hits} of {calibration.n} close" if calibration.n else "none made"
    sure, right = calibration.mean_confidence, calibration.hit_share
    yield "" if sure is None or right is None else f"{share(sure)} / {share(right)}"
    passed, tried = sum(attempts.passed for attempts in learner.exercises.values()), len(learner.exercises)
    yield f"{passed} of {tried} tried" if tried else "none tried"
    yield f"{learner.last:%d %b %H:%M}" if learner.last else "no record"
