"""Read a learner's progress from a folder of records: labs, predictions, exercises, last activity.

A learner may start a lab several times; each start writes a record. A lab is done if one of its records is. Only the
first guess of a prediction counts, because later ones know the result. An exercise that was passed stays passed.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

from labkit import teaching
from labkit.errors import RecordError, require
from labkit.files import CLONE, root
from labkit.labs import LABS, find_lab
from labkit.records import Attempts, Record, Status, read
from labkit.records.record import completeness, first_predictions, joined_exercises
from labkit.teaching import Calibration, ChoiceExercise, Exercise, exercises

RECORD = re.compile(r"[0-9]{2}[a-z]?_[a-z0-9_]+\.json")


@dataclass(frozen=True, kw_only=True)
class LabProgress:
    """A learner's progress in one lab. `starts`: the number of its records."""

    status: Status
    starts: int
    predictions: tuple[Mapping[str, Any], ...]
    exercises: Mapping[str, Attempts]
    last: datetime


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A learner. `broken`: why files could not be read; `folder`: the folder of the records."""

    name: str
    folder: Path
    labs: Mapping[str, LabProgress]
    broken: tuple[str, ...] = ()

    def labs_that_are(self, status: Status) -> list[str]:
        """Return the labs with this status, in the course's order."""
        return [name for name, lab in self.labs.items() if lab.status == status]

    @property
    def calibration(self) -> Calibration:
        """The learner's predictions, summarised."""
        return teaching.calibration(self.predictions)

    @property
    def predictions(self) -> list[Mapping[str, Any]]:
        """Every prediction of every lab."""
        return [prediction for lab in self.labs.values() for prediction in lab.predictions]

    @property
    def hits(self) -> int:
        """The number of predictions that were hits."""
        return sum(prediction.get("hit") is True for prediction in self.predictions)

    @property
    def exercises(self) -> dict[str, Attempts]:
        """Every exercise that was tried."""
        return {name: attempts for lab in self.labs.values() for name, attempts in lab.exercises.items()}

    @property
    def last(self) -> datetime | None:
        """The last activity; None without a record."""
        return max((lab.last for lab in self.labs.values()), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, for `--json`."""
        exercises = self.exercises
        return {
            "name": self.name,
            "folder": str(self.folder),
            "labs": {name: lab.status for name, lab in self.labs.items()},
            **{status: self.labs_that_are(status) for status in ("done", "running", "failed")},
            "predictions": {**asdict(self.calibration), "hits": self.hits},
            "exercises": {
                "passed": [name for name, attempts in exercises.items() if attempts.passed],
                "not_yet": [name for name, attempts in exercises.items() if not attempts.passed],
            },
            "last_activity": self.last.isoformat() if self.last else None,
            "broken": list(self.broken),
        }


@dataclass(frozen=True, kw_only=True)
class Hurdle:
    """An exercise's results in the whole room. `misconceptions`: how many learners showed each."""

    exercise: str
    tried: int
    passed: int
    misconceptions: Mapping[str, int] = field(default_factory=dict)


def read_learner(folder: Path, *, name: str) -> Learner:
    """Read every record below `folder`, except in hidden folders; broken files become messages.

    RecordError: not a folder.
    """
    if not folder.is_dir():
        raise RecordError(f"{folder} is not a folder", remedy="pass a learner's folder, such as serving-lab/runs")
    records: list[tuple[Record, datetime]] = []
    broken: list[str] = []
    for file in _record_files(folder, broken):
        try:
            record = read(file)
            # A lab that is still open was last active when its file was written.
            records.append((record, record.ended or datetime.fromtimestamp(file.stat().st_mtime, tz=UTC)))
        except (RecordError, OSError) as error:
            broken.append(str(error))
    return Learner(name=name, folder=folder, labs=progress_of(records), broken=tuple(broken))


def progress_of(records: Iterable[tuple[Record, datetime]]) -> dict[str, LabProgress]:
    """Return progress by lab, in the course's order, from records with their times of last activity.

    Of several copies of one start, only the most complete counts.
    """
    starts = {
        (record.started, record.lab): (record, last)
        for record, last in sorted(records, key=lambda copy: completeness(*copy))
    }
    by_lab: dict[str, list[tuple[Record, datetime]]] = {}
    for key in sorted(starts):
        by_lab.setdefault(key[1], []).append(starts[key])
    return {lab: _lab_progress(by_lab[lab]) for lab in sorted(by_lab)}


def hurdles(learners: Iterable[Learner]) -> list[Hurdle]:
    """Return every exercise that was tried, first those that most learners tried without passing."""
    tried: dict[str, list[Attempts]] = {}
    for learner in learners:
        for name, attempts in learner.exercises.items():
            tried.setdefault(name, []).append(attempts)
    hurdles = [_hurdle(name, attempts) for name, attempts in sorted(tried.items())]
    return sorted(hurdles, key=lambda hurdle: hurdle.passed - hurdle.tried)


def names_of(folders: Sequence[Path]) -> list[str]:
    """Return the distinguishing part of each path: ann and ben for /home/ann/runs and /home/ben/runs."""
    if len(folders) < 2:
        return [folder.absolute().name for folder in folders]
    parts = [folder.absolute().parts for folder in folders]
    start = _shared(parts)
    end = _shared([part[start:][::-1] for part in parts])
    names = ["/".join(part[start : len(part) - end]) for part in parts]
    return names if all(names) else [str(folder) for folder in folders]  # nested or repeated folders


def _shared(paths: Sequence[tuple[str, ...]]) -> int:
    """Return the number of leading parts that all paths share."""
    return sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False)))


def _record_files(folder: Path, broken: list[str]) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        broken.append(f"{error.filename} cannot be read: {error.strerror}")

    for where, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where, name) for name in sorted(files) if RECORD.fullmatch(name))


def _lab_progress(starts: Sequence[tuple[Record, datetime]]) -> LabProgress:
    """`starts`: the lab's records, the oldest first."""
    records = [record for record, _ in starts]
    done = any(record.status == "done" for record in records)
    return LabProgress(
        status="done" if done else records[-1].status,
        starts=len(records),
        predictions=tuple(first_predictions(records).values()),
        exercises=joined_exercises(records),
        last=max(last for _, last in starts),
    )


def _hurdle(name: str, tried: Sequence[Attempts]) -> Hurdle:
    shown = Counter(misconception for attempts in tried for misconception in attempts.misconceptions)
    passed = sum(attempts.passed for attempts in tried)
    return Hurdle(exercise=name, tried=len(tried), passed=passed, misconceptions=dict(shown.most_common()))


# --- solutions ---


def solutions(labs: Iterable[str] = ()) -> dict[str, list[Exercise]]:
    """Return the exercises by lab; `labs`: names, numbers or prefixes (default: all). UsageError: an unknown lab, or a
    chosen lab without exercises."""
    require(bool(exercises()), f"the exercises are missing: {root() / 'course'}", fix=CLONE)
    chosen = [find_lab(name) for name in labs]
    by_lab = {
        lab.name: [exercise for key, exercise in exercises().items() if key.startswith(f"{lab.number}.")]
        for lab in chosen or LABS.values()
    }
    for lab in chosen:
        require(bool(by_lab[lab.name]), f"{lab.name} has 0 exercises", fix="leave it out; the default is all labs")
    return {name: items for name, items in by_lab.items() if items}


def to_json(by_lab: dict[str, list[Exercise]]) -> dict[str, Any]:
    """Return plain data, in the course's order."""
    return {"exercises": [_as_data(lab, exercise) for lab, items in by_lab.items() for exercise in items]}


def to_markdown(by_lab: dict[str, list[Exercise]]) -> str:
    """Return one document with each exercise's question, solution and feedback on wrong answers."""
    parts = ["# Solutions", NOTE]
    for lab, items in by_lab.items():
        parts += [f"## {LABS[lab].number} · {LABS[lab].title}", *map(_section, items)]
    return "\n\n".join(parts) + "\n"


NOTE = (
    "For instructors. Questions that use a learner's own measurements are shown with example numbers; their solution "
    "is a function that computes the answer from the learner's numbers."
)


def _as_data(lab: str, exercise: Exercise) -> dict[str, Any]:
    return {
        "id": exercise.id,
        "lab": lab,
        "title": exercise.title,
        "prompt": exercise.asked(exercise.needs),
        "solution": exercise.solution_text(),
        "hints": list(exercise.hints),
        "misconceptions": [{"name": name, "told": text} for name, text in exercise.feedback.items()],
    }


def _section(exercise: Exercise) -> str:
    language = "text" if isinstance(exercise, ChoiceExercise) else "python"
    parts = [
        f"### {exercise.id}: {exercise.title}",
        exercise.asked(exercise.needs),
        f"**Solution**\n\n```{language}\n{exercise.solution_text()}\n```",
        "**Feedback on wrong answers**",
        "\n".join(f"- **{name}**: {' '.join(text.split())}" for name, text in exercise.feedback.items()),
    ]
    return "\n\n".join(part for part in parts if part)
