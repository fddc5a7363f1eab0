"""The instructor's tables on a terminal. Everything in them is computed elsewhere."""

from collections.abc import Sequence
from datetime import datetime

from labkit.doctor import Check
from labkit.tables import as_text, new_table, put
from labkit.teaching.words import share
from labkit.workshop.learners import Hurdle, Learner
from labkit.workshop.readiness import RoomCheck
from labkit.workshop.room import MachineState, Room

STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}
MOST_HURDLES = 12


def show_check(found: RoomCheck) -> None:
    """Every check of one machine, problems first."""
    table = new_table("what", "state", "found", "what to do")
    order = list(reversed(STYLES))
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
    return f"[{STYLES[str(word)]}]{word}[/]"
