"""Results as tables on a terminal. Values come ready; here they only get rows."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.load.metrics import Quantity, Summary
from labkit.records import Comparison
from labkit.records.ledger import Row
from labkit.words import number, share

if TYPE_CHECKING:
    from rich.table import Table

    from labkit.modelled.simulate import Simulation
from datetime import datetime

from labkit.workshop.doctor import Check
from labkit.workshop.learners import Hurdle, Learner
from labkit.workshop.room import MachineState, Room, RoomCheck

VERDICTS = {"supported": "green", "refuted": "bold red", "depends": "yellow"}
STYLES = {"good": "green", "bad": "bold red", "mid": "yellow", "none": "dim"}


def show_run(run_dir: Path) -> None:
    """Each lab of a run: its status, its time and its key figures, as the report has them."""
    from labkit.report.data import load
    from labkit.report.view import lab_views

    table = new_table("lab", "status", "time", "key figures")
    for lab in lab_views(load(run_dir)):
        figures = [f"{figure['name']}: {figure['value']}{_bounds(figure['interval'])}" for figure in lab["figures"]]
        style = STYLES[lab["mark"]]
        table.add_row(
            as_text(lab["title"]), f"[{style}]{lab['status']}[/]", lab["duration"], as_text("\n".join(figures))
        )
    put(table)


def show_comparison(found: Comparison) -> None:
    """What two runs agree on and what not."""
    ratios = new_table("ratio", "a", "b", "tolerance", "agrees")
    for pair in found.ratios:
        values = ["absent" if value is None else number(value) for value in (pair.a, pair.b)]
        ratios.add_row(as_text(pair.name), *values, share(pair.tolerance), "yes" if pair.within else "[bold red]no[/]")
    if found.ratios:
        put(ratios)
    for title, differences in (("exact", found.exact_differences), ("parameter", found.parameter_differences)):
        for each in differences:
            put(as_text(f"{title} difference: {each.lab} {each.path}: {each.a!r} in a, {each.b!r} in b"))
    for run, labs in (("a", found.only_in_a), ("b", found.only_in_b)):
        for lab in labs:
            put(as_text(f"only in {run}: {lab}"))
    for line in (*(f"not finished: {each}" for each in found.unfinished), *found.notes):
        put(as_text(line))
    put(f"identical where they must be: {'yes' if found.identical else 'no'}; agree: {'yes' if found.agrees else 'no'}")


def show_claims(rows: Sequence[Row]) -> None:
    """The ledger: first what was measured, then the rest."""
    table = new_table("claim", "the article says", "sources say", "verdict here", "because")
    for row in sorted(rows, key=lambda each: not each.measured):
        style = VERDICTS.get(row.verdict, "dim")
        because = as_text(" ".join([row.because, *row.notes]))
        table.add_row(row.id, as_text(row.short), row.literature, f"[{style}]{row.verdict}[/]", because)
    put(table)


def show_load(found: Summary) -> None:
    """A load in figures."""
    put(
        f"{found.completed} completed, {found.failed} failed in {number(found.duration_s)} s; "
        f"{found.input_tokens:,} tokens in, {found.output_tokens:,} out\n"
        f"{number(found.request_throughput)} requests/s, {number(found.output_throughput)} output tokens/s; "
        f"this client used {share(found.client_cpu_share)} of a core"
    )
    table = new_table("seconds", "mean", "p50", "p90", "p99")
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
        quantity: Quantity = getattr(found, name)
        values = (quantity.mean, quantity.p50, quantity.p90, quantity.p99)
        table.add_row(name.removesuffix("_s").upper(), *(number(value) if quantity.count else "-" for value in values))
    put(table)
    for warning in found.warnings:
        put(as_text(f"warning: {warning}"))


def show_simulation(found: "Simulation") -> None:
    """A load on a modelled GPU: figures, where they come from, and their error."""
    summary = found.summary
    put(
        as_text(
            f"{found.gpu.label}\n"
            f"{summary.completed} completed, {summary.failed} failed in {number(summary.duration_s)} modelled s; "
            f"{summary.input_tokens:,} tokens in, {summary.output_tokens:,} out\n"
            f"{number(summary.request_throughput)} requests/s, {number(summary.output_throughput)} output tokens/s: "
            f"{share(found.load_share)} of a capacity of {number(found.capacity_per_s)} requests/s "
            f"({found.promise.region})\n"
            f"{found.driven.preemptions} preemptions; prefix hits {share(found.driven.prefix_hit_rate)}; KV cache at "
            f"most {share(max(usage for _, usage in found.kv_usage()))} in use\n"
            f"error: {found.promise.text()}"
        )
    )
    table = new_table("seconds", "mean", "p50", "p90", "p99")
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
        quantity = found.quantity(name)
        values = (quantity.mean, quantity.p50, quantity.p90) if quantity else ()
        cells = [number(value) for value in values] or ["not told"] * 3
        table.add_row(name.removesuffix("_s").upper(), *cells, "not told")
    put(table)
    put(as_text("TTFT and E2E are the engine's own: an HTTP server and a network add to them."))
    for warning in found.warnings:
        put(as_text(f"warning: {warning}"))


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress callback (done, total) that draws one line on a terminal's stderr, and nothing elsewhere."""
    live = sys.stderr.isatty()

    def show(done: int, total: int) -> None:
        if live:
            sys.stderr.write(f"\r\x1b[2K{done} of {total} {what}")
            sys.stderr.flush()

    try:
        yield show
    finally:
        if live:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()


def _bounds(interval: str) -> str:
    return f" ({interval})" if interval else ""


def new_table(*columns: str) -> "Table":
    """An empty table with these columns, in the style of all tables."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def as_text(words: str) -> str:
    """Words that came from elsewhere: brackets in them are brackets, not rich's markup."""
    from rich.markup import escape

    return escape(words)


def put(what: Any) -> None:
    """Prints a table or marked-up words on stdout."""
    from rich.console import Console

    # 80 columns, rich's guess where there is no terminal, would fold every sentence.
    Console(width=None if sys.stdout.isatty() else 120).print(what)


# --- the instructor's tables on a terminal ---


SHOWN_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}
MOST_HURDLES = 12


def show_check(found: RoomCheck) -> None:
    """Every check of one machine, problems first."""
    table = new_table("what", "state", "found", "what to do")
    order = list(reversed(SHOWN_STYLES))
    for one in sorted(found.checks, key=lambda check: order.index(check.state)):
        table.add_row(as_text(one.topic), _state(one.state), as_text(one.found), as_text(one.fix))
    put(table)
    count = len(found.problems)
    verdict = "ready for the workshop" if found.ok else f"not ready: {count} problem{'s' if count > 1 else ''}"
    put(as_text(f"{found.machine_line}: {verdict}"))


def show_room(room: Room) -> None:
    """A row for each machine; problems and their cures, then what differs from the others."""
    table = new_table("machine", "state", "found", "what to do")
    for one in sorted(room.machines, key=lambda machine: machine.ok):
        rows = _machine_rows(one)
        for n, (found, fix) in enumerate(rows or [(f"ready: {one.machine_line}", "")]):
            first = n == 0
            table.add_row(
                as_text(one.name) if first else "", _state("ok" if one.ok else "problem") if first else "",
                as_text(found), as_text(fix),
            )  # fmt: skip
    put(table)
    for line in room.broken:
        put(as_text(line))
    put(f"{sum(one.ok for one in room.machines)} of {len(room.machines) + len(room.broken)} machines are ready")


def show_learners(learners: Sequence[Learner], hurdles: Sequence[Hurdle]) -> None:
    """A row for each learner, then the exercises that the room has not passed yet."""
    table = new_table("learner", "done", "open", "failed", "predictions", "sure / right", "exercises", "last (UTC)")
    for one in learners:
        table.add_row(as_text(one.name), *map(as_text, _learner_cells(one)))
    put(table)
    _show_hurdles([one for one in hurdles if one.passed < one.tried])
    for one in learners:
        for line in one.broken:
            put(as_text(f"{one.name}: {line}"))


def _show_hurdles(hurdles: Sequence[Hurdle]) -> None:
    if not hurdles:
        return
    table = new_table("exercise", "passed", "what the answers showed (learners)")
    for one in hurdles[:MOST_HURDLES]:
        shown = "; ".join(f"{name} ({count})" for name, count in one.misconceptions.items())
        table.add_row(as_text(one.exercise), f"{one.passed} of {one.tried}", as_text(shown))
    put(table)


def _machine_rows(one: MachineState) -> list[tuple[str, str]]:
    problems = [(f"{check.topic}: {check.found}", check.fix) for check in one.problems]
    return problems + [(line, "git pull and make there, or in the rest of the room") for line in one.differs]


def _learner_cells(one: Learner) -> tuple[str, ...]:
    calibration, tried = one.calibration, one.exercises
    made = f"{one.hits} of {calibration.n} close" if calibration.n else "none made"
    passed = sum(each.passed for each in tried.values())
    return (
        *(" ".join(lab[:2] for lab in one.labs_that_are(status)) for status in ("done", "running", "failed")),
        made,
        _sure(calibration.mean_confidence, calibration.hit_share),
        f"{passed} of {len(tried)} tried" if tried else "none tried",
        _when(one.last),
    )


def _sure(confidence: float | None, hits: float | None) -> str:
    return f"{share(confidence)} / {share(hits)}" if confidence is not None and hits is not None else ""


def _when(moment: datetime | None) -> str:
    return f"{moment:%d %b %H:%M}" if moment else "no record"


def _state(word: Check | str) -> str:
    return f"[{SHOWN_STYLES[str(word)]}]{word}[/]"
