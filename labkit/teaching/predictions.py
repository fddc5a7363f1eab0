"""What a learner commits to before a measurement: a number or a choice, with a confidence.

The form in a notebook is a skin over `Prediction.commit`; with nobody there the lab's parameter is the guess. This
module knows nothing of measurements: those meet the guess in `reveals`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from html import escape
from typing import Any

from labkit import display
from labkit.display import LEAVE_ARROWS
from labkit.errors import UsageError
from labkit.words import amount, factor_between, off_by, share, span


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
    if display.in_notebook():
        show_form(asked)
    else:
        display.show({"text/plain": f"{question}\n  {asked.in_words()}"})
    return asked


# --- the form in which a learner commits to a prediction ---


WIDE = {"description_width": "initial"}  # otherwise ipywidgets cuts a label after 80 pixels


def show_form(prediction: Prediction) -> None:
    """Displays the form; where widgets cannot be drawn the question and the parameter's guess stand in its place."""
    bundle = dict(build(prediction)._repr_mimebundle_())
    bundle["text/plain"] = f"{prediction.question}\n  {prediction.in_words()}"
    bundle["text/html"] = display.inline(prediction.question) + display.inline(prediction.in_words())
    display.show(bundle)


def build(prediction: Prediction) -> Any:
    """The ipywidgets form: question, answer, confidence, a Commit button and a line that says what counts."""
    import ipywidgets as widgets

    question = widgets.HTML(
        f"<div style='line-height:1.4;max-width:60em'><b>{escape(prediction.question, quote=False)}</b></div>"
        + LEAVE_ARROWS
    )
    answer = _choices(prediction) if prediction.options else _number(prediction)
    sure = round(100 * prediction.confidence) if prediction.confidence is not None else 50
    confidence = widgets.IntSlider(
        value=sure, min=0, max=100, step=5, description="How sure are you? (%)", style=WIDE, layout={"width": "420px"}
    )
    button = widgets.Button(description="Commit", button_style="primary", tooltip="Commit to this prediction")
    status = widgets.HTML(_status(_before(prediction)))
    fields = (answer, confidence, button)
    button.on_click(lambda _: _commit(prediction, fields, status))
    return widgets.VBox([question, *fields, status])


def _choices(prediction: Prediction) -> Any:
    import ipywidgets as widgets

    return widgets.RadioButtons(
        options=list(prediction.options),
        value=prediction.value,
        description="Your answer",
        style=WIDE,
        layout={"width": "max-content"},
    )


def _number(prediction: Prediction) -> Any:
    import ipywidgets as widgets

    # A text field and not FloatText: that one starts at 0, which would be committed by accident. It starts at the
    # parameter's exact number, not the rounded one: committing what stands there must not change it.
    given = prediction.value
    return widgets.Text(
        value=f"{given:,}".removesuffix(".0") if isinstance(given, float) else "",
        placeholder="a number",
        description=f"Your guess ({prediction.unit})",
        style=WIDE,
        layout={"width": "420px"},
    )


def _commit(prediction: Prediction, fields: tuple[Any, Any, Any], status: Any) -> None:
    answer, confidence, button = fields
    try:
        prediction.commit(answer.value, confidence.value / 100)
    except UsageError as error:
        status.value = _status(f"Not committed: {error.what}; {error.remedy}.")
        return
    button.description = "Committed"
    for widget in fields:
        widget.disabled = True
    status.value = _status(f"Committed: {prediction.in_words()}. Now run the cells below.")


def _before(prediction: Prediction) -> str:
    if prediction.answer is None:
        return "Nothing committed yet. The lab also runs without a prediction."
    return f"Nothing committed yet: the lab's parameter counts, {prediction.in_words()}."


def _status(text: str) -> str:
    return f'<span role="status">{escape(text, quote=False)}</span>'


# --- reveals ---


TOLERANCE = 0.25
LEFT = "style='text-align:left'"


@dataclass(frozen=True)
class Reveal:
    """A prediction beside its measurement. `hit` is None when nobody predicted."""

    id: str
    question: str
    unit: str | None
    guess: float | str | None
    confidence: float | None
    source: str
    measured: float | str
    low: float | None
    high: float | None
    article: float | str | None
    model: float | str | None
    hit: bool | None
    recorded: float | str | None = None
    recorded_from: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For the record; what was recorded elsewhere is no part of it."""
        return {name: value for name, value in asdict(self).items() if not name.startswith("recorded")}

    def rows(self) -> list[tuple[str, str, str]]:
        """What the card shows, row by row: whose figure, the figure, how it compares with the measurement."""
        rows = [("Your guess", self._guess_words(), self._compared(self.guess))]
        rows.append(("Measured here", self._words(self.measured), self._interval_words()))
        rows.append(("Recorded", self._words(self.recorded), self.recorded_from))
        rows.append(("The article", self._words(self.article), self._compared(self.article)))
        rows.append(("The model", self._words(self.model), self._compared(self.model)))
        return [row for row in rows if row[1]]

    def sentence(self) -> str:
        """The outcome in one sentence."""
        if self.hit is None:
            return "No prediction was made."
        if isinstance(self.guess, str):
            return "Your prediction was right." if self.hit else "Your prediction was another one."
        inside = "Your prediction was close enough to count as a hit"
        return f"{inside}." if self.hit else f"Your prediction was {self._compared(self.guess)}."

    def _guess_words(self) -> str:
        if self.guess is None:
            return "no prediction made"
        sure = "" if self.confidence is None else f", {share(self.confidence)} sure"
        given = " (the lab's parameter)" if self.source == "parameter" else ""
        return f"{self._words(self.guess)}{sure}{given}"

    def _words(self, value: float | str | None) -> str:
        if value is None or isinstance(value, str):
            return value or ""
        return amount(value, self.unit)

    def _compared(self, value: float | str | None) -> str:
        if value is None:
            return ""
        if isinstance(value, str) or isinstance(self.measured, str):
            return "the same" if value == self.measured else ""
        return off_by(value, self.measured, self.unit)

    def _interval_words(self) -> str:
        return "" if self.low is None or self.high is None else f"interval {span(self.low, self.high, self.unit)}"

    def _ipython_display_(self) -> None:
        """`reveal` has shown the card: as a cell's last value there is nothing to add."""


def reveal(
    prediction: Prediction,
    measured: float | str,
    low: float | None = None,
    high: float | None = None,
    *,
    article: float | str | None = None,
    model: float | str | None = None,
    unit: str | None = None,
    recorded: float | str | None = None,
    recorded_from: str = "",
    tolerance: float = TOLERANCE,
) -> Reveal:
    """Shows guess, measurement with interval, the article's and a model's figure; returns them for the record.

    `recorded` is what came out on another machine and another day, which `recorded_from` names.

    A number is a hit inside the interval or within a factor of 1 + `tolerance` of the measurement, a choice when it is
    the right one. Raises UsageError when `measured` is no option of a choice, or no number where a number was asked.
    """
    if prediction.options and measured not in prediction.options:
        raise UsageError(f"{measured!r} is no option of prediction {prediction.id}", remedy="reveal one of its options")
    if not prediction.options and isinstance(measured, str):
        raise UsageError(f"prediction {prediction.id} asks for a number, not {measured!r}", remedy="reveal a number")
    result = Reveal(
        id=prediction.id,
        question=prediction.question,
        unit=unit or prediction.unit,
        guess=prediction.value,
        confidence=prediction.confidence,
        source=str(prediction.source),
        measured=measured,
        low=low,
        high=high,
        article=article,
        model=model,
        hit=is_hit(prediction.value, measured, low, high, tolerance=tolerance),
        recorded=recorded,
        recorded_from=recorded_from,
    )
    display.show(_bundle(result))
    return result


def is_hit(
    guess: float | str | None,
    measured: float | str,
    low: float | None,
    high: float | None,
    *,
    tolerance: float = TOLERANCE,
) -> bool | None:
    """Whether a guess counts as right: inside [low, high], within a factor of 1 + tolerance, or the same choice."""
    if guess is None:
        return None
    if isinstance(guess, str) or isinstance(measured, str):
        return guess == measured
    if low is not None and high is not None and low <= guess <= high:
        return True
    factor = factor_between(guess, measured)
    return guess == measured if factor is None else factor <= 1 + tolerance


def _bundle(result: Reveal) -> dict[str, str]:
    rows = result.rows()
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{name:<{width}}  {value}" + (f"  [{note}]" if note else "") for name, value, note in rows]
    cells = "".join(
        f"<tr><th scope='row' {LEFT}>{escape(name)}</th><td {LEFT}><b>{escape(value)}</b></td>"
        f"<td {LEFT}>{escape(note)}</td></tr>"
        for name, value, note in rows
    )
    body = f"<table style='margin:.4em 0'><tbody>{cells}</tbody></table><div>{escape(result.sentence())}</div>"
    colour = {True: "#009E73", False: "#D55E00", None: "#8c8c8c"}[result.hit]
    return {
        "text/html": display.card(result.question, body, colour=colour),
        "text/plain": "\n".join([result.question, *lines, result.sentence()]),
    }


@dataclass(frozen=True)
class Calibration:
    """How good a learner's predictions are. Shares are 0 to 1; None where there is nothing to average.

    `brier` is the mean of (confidence - hit)^2 (Brier 1950): 0 is perfect, 0.25 is what "50% sure" of everything gets.
    """

    asked: int
    n: int
    hit_share: float | None
    mean_confidence: float | None
    brier: float | None

    def sentence(self) -> str:
        """The summary in one or two sentences, for the report."""
        if self.hit_share is None:
            return f"No prediction was made for {self.asked} questions."
        text = (
            f"{self.n} of {self.asked} questions were predicted; {share(self.hit_share)} of the predictions were hits."
        )
        if self.mean_confidence is None or self.brier is None:
            return text
        return f"{text} Mean confidence {share(self.mean_confidence)}, Brier score {self.brier:.2f} (0 is best)."


def calibration(reveals: Iterable[Mapping[str, Any]]) -> Calibration:
    """Summarises reveals as `Reveal.to_dict` gives them; without a guess a question only counts as asked."""
    asked = list(reveals)
    made = [one for one in asked if one.get("hit") is not None]
    sure = [(float(one["confidence"]), bool(one["hit"])) for one in made if one.get("confidence") is not None]
    return Calibration(
        asked=len(asked),
        n=len(made),
        hit_share=_mean([float(bool(one["hit"])) for one in made]),
        mean_confidence=_mean([confidence for confidence, _ in sure]),
        brier=_mean([(confidence - hit) ** 2 for confidence, hit in sure]),
    )


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
