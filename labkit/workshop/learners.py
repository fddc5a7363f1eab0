"""How far a learner is, from the records in a folder of theirs: labs, predictions, exercises, the last sign of life.

A learner starts a lab more than once, and each start writes a record of its own. A lab counts as done when one of them
is; a prediction counts as it was made first, since the second time one knows; an exercise that was passed stays passed.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import takewhile
from operator import itemgetter
from pathlib import Path
from typing import Any

from labkit import teaching
from labkit.errors import RecordError, require
from labkit.labs import LABS, find_lab
from labkit.records import Attempts, Record, Status, read
from labkit.teaching import Calibration, ChoiceExercise, Exercise, exercises

RECORD = re.compile(r"[0-9]{2}[a-z]?_[a-z0-9_]+\.json")


@dataclass(frozen=True, kw_only=True)
class LabProgress:
    """Where a learner is in one lab. `starts`: how often it was started, each time with a record."""

    status: Status
    starts: int
    predictions: tuple[Mapping[str, Any], ...]
    exercises: Mapping[str, Attempts]
    last: datetime


@dataclass(frozen=True, kw_only=True)
class Learner:
    """One learner. `broken`: the message for each file that could not be read. `folder` is where the records were."""

    name: str
    folder: Path
    labs: Mapping[str, LabProgress]
    broken: tuple[str, ...] = ()

    def labs_that_are(self, status: Status) -> list[str]:
        """The labs with this status, in the course's order."""
        return [name for name, lab in self.labs.items() if lab.status == status]

    @property
    def calibration(self) -> Calibration:
        """All predictions of the learner, summarised as in the report."""
        return teaching.calibration(self.predictions)

    @property
    def predictions(self) -> list[Mapping[str, Any]]:
        """Every prediction of every lab."""
        return [prediction for lab in self.labs.values() for prediction in lab.predictions]

    @property
    def hits(self) -> int:
        """Predictions that came true."""
        return sum(prediction.get("hit") is True for prediction in self.predictions)

    @property
    def exercises(self) -> dict[str, Attempts]:
        """Every exercise that was tried."""
        return {name: tried for lab in self.labs.values() for name, tried in lab.exercises.items()}

    @property
    def last(self) -> datetime | None:
        """The last sign of life; None where there is no record."""
        return max((lab.last for lab in self.labs.values()), default=None)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        tried = self.exercises
        return {
            "name": self.name,
            "folder": str(self.folder),
            "labs": {name: lab.status for name, lab in self.labs.items()},
            **{status: self.labs_that_are(status) for status in ("done", "running", "failed")},
            "predictions": {**asdict(self.calibration), "hits": self.hits},
            "exercises": {
                "passed": [name for name, one in tried.items() if one.passed],
                "not_yet": [name for name, one in tried.items() if not one.passed],
            },
            "last_activity": self.last.isoformat() if self.last else None,
            "broken": list(self.broken),
        }


@dataclass(frozen=True, kw_only=True)
class Hurdle:
    """An exercise as the whole room met it. `misconceptions`: how many learners showed each."""

    exercise: str
    tried: int
    passed: int
    misconceptions: Mapping[str, int] = field(default_factory=dict)


def read_learner(folder: Path, *, name: str) -> Learner:
    """Reads every record below `folder`, hidden folders left out. A broken file is kept as its message.

    RecordError when it is no folder.
    """
    if not folder.is_dir():
        raise RecordError(f"{folder} is not a folder", remedy="pass a learner's folder, such as serving-lab/runs")
    found: list[tuple[Record, datetime]] = []
    broken: list[str] = []
    for file in _record_files(folder):
        try:
            record = read(file)
            found.append((record, _last_sign(record, file)))
        except (RecordError, OSError) as error:
            broken.append(str(error))
    return Learner(name=name, folder=folder, labs=progress_of(found), broken=tuple(broken))


def progress_of(records: Iterable[tuple[Record, datetime]]) -> dict[str, LabProgress]:
    """Records, each with its last sign of life, in any order, as progress by lab in the course's order.

    Copies of one start count once, as they were last.
    """
    starts = {(record.started, record.lab): (record, last) for record, last in sorted(records, key=itemgetter(1))}
    by_lab: dict[str, list[tuple[Record, datetime]]] = {}
    for key in sorted(starts):
        by_lab.setdefault(key[1], []).append(starts[key])
    return {lab: _lab_progress(by_lab[lab]) for lab in sorted(by_lab)}


def hurdles(learners: Iterable[Learner]) -> list[Hurdle]:
    """Every exercise that somebody tried: first those that most of who tried have not passed."""
    tried: dict[str, list[Attempts]] = {}
    for learner in learners:
        for name, attempts in learner.exercises.items():
            tried.setdefault(name, []).append(attempts)
    found = [_hurdle(name, attempts) for name, attempts in sorted(tried.items())]
    return sorted(found, key=lambda one: one.passed - one.tried)


def names_of(folders: Sequence[Path]) -> list[str]:
    """A name for each folder: what tells it from the others. Of /home/ann/runs and /home/ben/runs: ann and ben."""
    if len(folders) < 2:
        return [folder.absolute().name for folder in folders]
    parts = [folder.absolute().parts for folder in folders]
    start = _shared(parts)
    end = _shared([part[start:][::-1] for part in parts])
    names = ["/".join(part[start : len(part) - end]) for part in parts]
    return names if all(names) else [str(folder) for folder in folders]  # one is in the other, or it is named twice


def _shared(paths: Sequence[tuple[str, ...]]) -> int:
    """The number of leading parts that are the same in all paths."""
    return sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False)))


def _record_files(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where, name) for name in sorted(files) if RECORD.fullmatch(name))


def _last_sign(record: Record, file: Path) -> datetime:
    """The record's end; while the lab is open, when its file was last written."""
    return record.ended or datetime.fromtimestamp(file.stat().st_mtime, tz=UTC)


def _lab_progress(starts: Sequence[tuple[Record, datetime]]) -> LabProgress:
    """`starts`: the lab's records, the oldest first."""
    records = [record for record, _ in starts]
    done = any(record.status == "done" for record in records)
    return LabProgress(
        status="done" if done else records[-1].status,
        starts=len(records),
        predictions=tuple(_first_predictions(records).values()),
        exercises=_joined_exercises(records),
        last=max(last for _, last in starts),
    )


def _first_predictions(records: Iterable[Record]) -> dict[str, Mapping[str, Any]]:
    """Each question with its first guess, or without one where nobody ever guessed."""
    found: dict[str, Mapping[str, Any]] = {}
    for record in records:
        for one in record.predictions:
            name = str(one.get("id"))
            if name not in found or found[name].get("guess") is None:
                found[name] = one
    return found


def _joined_exercises(records: Iterable[Record]) -> dict[str, Attempts]:
    found: dict[str, Attempts] = {}
    for record in records:
        for name, now in record.exercises.items():
            before = found.get(name)
            found[name] = now if before is None else _joined(before, now)
    return found


def _joined(a: Attempts, b: Attempts) -> Attempts:
    return Attempts(
        passed=a.passed or b.passed,
        tries=a.tries + b.tries,
        misconceptions=tuple(dict.fromkeys((*a.misconceptions, *b.misconceptions))),
    )


def _hurdle(name: str, attempts: Sequence[Attempts]) -> Hurdle:
    shown = Counter(one for each in attempts for one in each.misconceptions)
    passed = sum(each.passed for each in attempts)
    return Hurdle(exercise=name, tried=len(attempts), passed=passed, misconceptions=dict(shown.most_common()))


# --- solutions ---


def solutions(labs: Iterable[str] = ()) -> dict[str, list[Exercise]]:
    """The exercises by lab; `labs`: names, numbers or beginnings (default: all). UsageError for an unknown lab, or for
    one without exercises that was asked for."""
    asked = [find_lab(name) for name in labs]
    found = {
        lab.name: [exercise for key, exercise in exercises().items() if key.startswith(f"{lab.number}.")]
        for lab in asked or LABS.values()
    }
    for lab in asked:
        require(bool(found[lab.name]), f"{lab.name} has 0 exercises", fix="leave it out; without a lab, all are shown")
    return {name: by_lab for name, by_lab in found.items() if by_lab}


def to_json(found: dict[str, list[Exercise]]) -> dict[str, Any]:
    """Plain data, in the course's order."""
    return {"exercises": [_as_data(lab, one) for lab, ones in found.items() for one in ones]}


def to_markdown(found: dict[str, list[Exercise]]) -> str:
    """One document: question, solution, and what a wrong answer tells, for each exercise."""
    parts = ["# Solutions", NOTE]
    for lab, ones in found.items():
        parts += [f"## {LABS[lab].number} · {LABS[lab].title}", *(_section(one) for one in ones)]
    return "\n\n".join(parts) + "\n"


NOTE = (
    "For instructors. Where an exercise uses what was measured on a learner's machine, the question stands here with "
    "an example's numbers; the solution is the function that computes the answer from theirs."
)


def _as_data(lab: str, one: Exercise) -> dict[str, Any]:
    return {
        "id": one.id,
        "lab": lab,
        "title": one.title,
        "prompt": one.asked(one.needs),
        "solution": one.solution_text(),
        "hints": list(one.hints),
        "misconceptions": [{"name": name, "told": told} for name, told in one.told.items()],
    }


def _section(one: Exercise) -> str:
    solved = one.solution_text()
    shown = f"```text\n{solved}\n```" if isinstance(one, ChoiceExercise) else f"```python\n{solved}\n```"
    wrong = "\n".join(f"- **{name}**: {' '.join(told.split())}" for name, told in one.told.items())
    parts = [
        f"### {one.id}: {one.title}",
        one.asked(one.needs),
        "**Solution**",
        shown,
        "**What wrong answers tell**",
        wrong,
    ]
    return "\n\n".join(part for part in parts if part)
