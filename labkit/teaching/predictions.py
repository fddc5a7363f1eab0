"""What a learner commits to before a measurement: a number or a choice, with a confidence.

The form in a notebook is a skin over `Prediction.commit`; with nobody there the lab's parameter is the guess. This
module knows nothing of measurements: those meet the guess in `reveals`.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from labkit.errors import UsageError
from labkit.teaching import show
from labkit.teaching.words import amount, share


class Source(StrEnum):
    """Where a guess came from."""

    WIDGET = "widget"  # committed by the learner, in the form or by `commit`
    PARAMETER = "parameter"
    NONE = "none"


@dataclass(frozen=True)
class Answer:
    """A guess; `confidence` is the probability, 0 to 1, that the learner gives to being right, None if not asked."""

    value: float | str
    confidence: float | None = None


@dataclass(frozen=True)
class Prediction:
    """One question and, as soon as there is one, its answer. A committed answer wins over the parameter and stays."""

    id: str
    question: str
    unit: str | None = None
    options: tuple[str, ...] = ()
    parameter: Answer | None = None
    _committed: list[Answer] = field(default_factory=list, repr=False, compare=False)

    @property
    def answer(self) -> Answer | None:
        """What counts now: the committed answer, else the parameter, else None."""
        return self._committed[0] if self._committed else self.parameter

    @property
    def value(self) -> float | str | None:
        """The guess that counts now."""
        return self.answer.value if self.answer else None

    @property
    def guess(self) -> float | str | None:
        """The same as `value`, by the name that records use."""
        return self.value

    @property
    def confidence(self) -> float | None:
        """The confidence, 0 to 1, of the guess that counts now."""
        return self.answer.confidence if self.answer else None

    @property
    def source(self) -> Source:
        """Where the guess that counts now came from."""
        if self._committed:
            return Source.WIDGET
        return Source.PARAMETER if self.parameter else Source.NONE

    def commit(self, value: object, confidence: float | None = None) -> Answer:
        """Commits to an answer, once. Raises UsageError for a second answer, or one that does not fit the question."""
        if self._committed:
            raise UsageError(
                f"prediction {self.id} is committed already: {self.in_words()}",
                remedy="run the cell that asks the question again to start afresh",
            )
        self._committed.append(self.read(value, confidence))
        return self._committed[0]

    def read(self, value: object, confidence: float | None = None) -> Answer:
        """Checks a value against the question and returns it as an Answer. Raises UsageError."""
        if confidence is not None and not 0 <= confidence <= 1:
            raise UsageError(f"confidence is {confidence}", remedy="give a share between 0 and 1")
        return Answer(self._choice(value) if self.options else self._number(value), confidence)

    def in_words(self) -> str:
        """The guess with unit and confidence, or that there is none."""
        if self.answer is None:
            return "no prediction made"
        value = self.answer.value
        text = value if isinstance(value, str) else amount(value, self.unit)
        return text if self.confidence is None else f"{text} ({share(self.confidence)} sure)"

    def to_dict(self) -> dict[str, Any]:
        """For the record."""
        return {
            "id": self.id,
            "question": self.question,
            "unit": self.unit,
            "options": list(self.options),
            "guess": self.value,
            "confidence": self.confidence,
            "source": str(self.source),
        }

    def _choice(self, value: object) -> str:
        if value not in self.options:
            raise UsageError(f"{value!r} is no answer to {self.id}", remedy=f"choose one of: {', '.join(self.options)}")
        return str(value)

    def _number(self, value: object) -> float:
        try:
            # What a spreadsheet or a reader writes, 1,200, is read as the number it means.
            number = float(str(value).replace(",", "").strip())
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UsageError(f"{value!r} is not a number", remedy=f"answer {self.id} with a number, in {self.unit}")
        return number

    def _ipython_display_(self) -> None:
        """`predict` has shown the form: as a cell's last value there is nothing to add."""


def predict(
    id: str,
    question: str,
    *,
    unit: str | None = None,
    options: tuple[str, ...] | list[str] | None = None,
    guess: float | str | None = None,
    confidence: float | None = None,
) -> Prediction:
    """Asks for a number (`unit`) or a choice (`options`), shows a form in a notebook, and returns at once.

    The returned prediction is live: read `.value` in a later cell. `guess` and `confidence` (0 to 1) are the lab's
    parameters: they count until the learner commits. Raises UsageError for a guess that does not fit the question.
    """
    if (unit is None) == (not options):
        raise UsageError(f"prediction {id} needs a unit or options, one of the two", remedy="pass unit= or options=")
    asked = Prediction(id, question, unit, tuple(options or ()))
    if guess is not None and guess != "":
        asked = Prediction(id, question, unit, asked.options, asked.read(guess, confidence))
    if show.in_notebook():
        from labkit.teaching.forms import show_form

        show_form(asked)
    else:
        show.show({"text/plain": f"{question}\n  {asked.in_words()}"})
    return asked
