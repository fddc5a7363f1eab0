"""What a learner commits to before a measurement, and how it meets the measurement: predict, reveal, calibration.

The form in a notebook is a skin over `Prediction.commit`; without a learner the lab's parameter is the guess.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from statistics import fmean
from typing import Any, Literal

from labkit import display
from labkit.display import LEAVE_ARROWS
from labkit.errors import UsageError, require
from labkit.words import amount, factor_between, off_by, share, span

Source = Literal["widget", "parameter", "none"]
"""Where a guess came from; "widget": committed by the learner, in the form or by `commit`."""

TOLERANCE = 0.25  # a guess within a factor of 1.25 is a hit
BUCKETS = (0.0, 0.5, 0.7, 0.9, 1.0)  # bounds of the confidences that calibration counts together
COLOURS = {True: "#009E73", False: "#D55E00", None: "#8c8c8c"}
LEFT = "style='text-align:left'"
STYLE = {"description_width": "initial"}  # otherwise ipywidgets cuts a label after 80 pixels
WIDE = {"width": "420px"}


@dataclass
class Prediction:
    """One question and the guess that counts now: the lab's parameter, or what a learner has committed to.

    A number (in `unit`) or one of `options`. `confidence` is the probability, 0 to 1, given to being right.
    """

    id: str
    question: str
    unit: str | None = None
    options: tuple[str, ...] = ()
    value: float | str | None = None
    confidence: float | None = None
    source: Source = "none"

    def commit(self, value: object, confidence: float | None = None) -> None:
        """Commits to an answer, once. Raises UsageError for a second answer, or one that does not fit the question."""
        fix = "run the cell that asks the question again to start afresh"
        require(self.source != "widget", f"prediction {self.id} is committed already: {self.in_words()}", fix=fix)
        self.take(value, confidence, source="widget")

    def take(self, value: object, confidence: float | None, *, source: Source) -> None:
        """Makes a guess the one that counts. Raises UsageError where it does not fit the question."""
        is_share = confidence is None or 0 <= confidence <= 1
        require(is_share, f"confidence is {confidence}", fix="give a share between 0 and 1")
        self.value = self._choice(value) if self.options else self._number(value)
        self.confidence, self.source = confidence, source

    def in_words(self) -> str:
        """The guess with unit and confidence, or that there is none."""
        if self.value is None:
            return "no prediction made"
        text = _words(self.value, self.unit)
        return text if self.confidence is None else f"{text} ({share(self.confidence)} sure)"

    def _choice(self, value: object) -> str:
        fix = f"choose one of: {', '.join(self.options)}"
        require(value in self.options, f"{value!r} is no answer to {self.id}", fix=fix)
        return str(value)

    def _number(self, value: object) -> float:
        try:
            # What a spreadsheet or a reader writes, 1,200, is read as the number it means.
            number = float(str(value).replace(",", "").strip())
        except ValueError:
            number = math.nan
        fix = f"answer {self.id} with a number, in {self.unit}"
        require(math.isfinite(number), f"{value!r} is not a number", fix=fix)
        return number

    def _ipython_display_(self) -> None:
        """`predict` has shown the form: as a cell's last value there is nothing to add."""


def predict(
    id: str,
    question: str,
    *,
    unit: str | None = None,
    options: Sequence[str] | None = None,
    guess: float | str | None = None,
    confidence: float | None = None,
) -> Prediction:
    """Asks for a number (`unit`) or a choice (`options`), shows a form in a notebook, and returns at once.

    The returned prediction is live: read `.value` in a later cell. `guess` and `confidence` (0 to 1) are the lab's
    parameters: they count until the learner commits. Raises UsageError for a guess that does not fit the question.
    """
    is_one = (unit is None) != (not options)
    require(is_one, f"prediction {id} needs a unit or options, one of the two", fix="pass unit= or options=")
    prediction = Prediction(id, question, unit, tuple(options or ()))
    if guess is not None and guess != "":
        prediction.take(guess, confidence, source="parameter")
    bundle = {"text/plain": f"{question}\n  {prediction.in_words()}"}
    if display.in_notebook():
        # Where widgets cannot be drawn the question and the parameter's guess are shown in the form's place.
        html = display.inline(question) + display.inline(prediction.in_words())
        bundle = {**form(prediction)._repr_mimebundle_(), **bundle, "text/html": html}
    display.show(bundle)
    return prediction


def form(prediction: Prediction) -> Any:
    """The ipywidgets form: question, answer, confidence, a Commit button and a line that says what counts."""
    import ipywidgets as widgets

    title = f"<b>{escape(prediction.question, quote=False)}</b>"
    question = widgets.HTML(f"<div style='line-height:1.4;max-width:60em'>{title}</div>{LEAVE_ARROWS}")
    answer = _choices(prediction) if prediction.options else _number_field(prediction)
    sure = 50 if prediction.confidence is None else round(100 * prediction.confidence)
    label = "How sure are you? (%)"
    confidence = widgets.IntSlider(value=sure, min=0, max=100, step=5, description=label, style=STYLE, layout=WIDE)
    button = widgets.Button(description="Commit", button_style="primary", tooltip="Commit to this prediction")
    counts = ". The lab also runs without a prediction."
    if prediction.value is not None:
        counts = f": the lab's parameter counts, {prediction.in_words()}."
    status = widgets.HTML(_status(f"Nothing committed yet{counts}"))

    def commit(_: object) -> None:
        try:
            prediction.commit(answer.value, confidence.value / 100)
        except UsageError as error:
            status.value = _status(f"Not committed: {error.what}; {error.remedy}.")
            return
        button.description = "Committed"
        for widget in (answer, confidence, button):
            widget.disabled = True
        status.value = _status(f"Committed: {prediction.in_words()}. Now run the cells below.")

    button.on_click(commit)
    return widgets.VBox([question, answer, confidence, button, status])


def _choices(prediction: Prediction) -> Any:
    import ipywidgets as widgets

    options, layout = list(prediction.options), {"width": "max-content"}
    return widgets.RadioButtons(
        options=options, value=prediction.value, description="Your answer", style=STYLE, layout=layout
    )


def _number_field(prediction: Prediction) -> Any:
    import ipywidgets as widgets

    # A text field and not FloatText: that one starts at 0, which would be committed by accident. It starts at the
    # parameter's exact number, not the rounded one: committing it as it is must not change it.
    given = f"{prediction.value:,}".removesuffix(".0") if isinstance(prediction.value, float) else ""
    label = f"Your guess ({prediction.unit})"
    return widgets.Text(value=given, placeholder="a number", description=label, style=STYLE, layout=WIDE)


def _status(text: str) -> str:
    return f'<span role="status">{escape(text, quote=False)}</span>'


@dataclass(frozen=True, kw_only=True)
class Reveal:
    """A prediction, as it was, beside its measurement. `recorded` is what another machine measured on another day.

    `modelled`: where nothing was measured here, the label of the modelled card, or "Computed: " and from what."""

    prediction: Prediction
    measured: float | str
    low: float | None = None
    high: float | None = None
    article: float | str | None = None
    model: float | str | None = None
    recorded: float | str | None = None
    recorded_from: str = ""
    modelled: str = ""

    @property
    def hit(self) -> bool | None:
        """Whether the guess counts as right; None without one."""
        return is_hit(self.prediction.value, self.measured, self.low, self.high)

    def to_dict(self) -> dict[str, Any]:
        """For the record; what was recorded elsewhere is not part of it."""
        asked = self.prediction
        guess = {"guess": asked.value, "confidence": asked.confidence, "source": asked.source}
        names = ("measured", "low", "high", "article", "model", "hit", "modelled")
        figures = {name: getattr(self, name) for name in names}
        return {"id": asked.id, "question": asked.question, "unit": asked.unit, **guess, **figures}

    def rows(self) -> list[tuple[str, str, str]]:
        """What the card shows, row by row: whose figure, the figure, how it compares with the measurement."""
        asked = self.prediction
        interval = "" if self.low is None or self.high is None else f"interval {span(self.low, self.high, asked.unit)}"
        rows = [
            ("Your guess", self._guess_in_words(), self._compared(asked.value)),
            (self._kind, _words(self.measured, asked.unit), interval),
            ("Recorded", _words(self.recorded, asked.unit), self.recorded_from),
            ("The article", _words(self.article, asked.unit), self._compared(self.article)),
            ("By formula", _words(self.model, asked.unit), self._compared(self.model)),
            ("", self.modelled.removeprefix(f"{self._kind}: "), ""),
        ]
        return [row for row in rows if row[1]]

    @property
    def _kind(self) -> str:
        if self.modelled.startswith("Computed: "):
            return "Computed"
        return "Modelled" if self.modelled else "Measured here"

    def sentence(self) -> str:
        """The outcome in one sentence."""
        guess = self.prediction.value
        if guess is None:
            return "No prediction was made."
        if isinstance(guess, str):
            return "Your prediction was right." if self.hit else "Your prediction was another one."
        return f"Your prediction was {'close enough to count as a hit' if self.hit else self._compared(guess)}."

    def _guess_in_words(self) -> str:
        asked = self.prediction
        if asked.value is None:
            return "no prediction made"
        sure = "" if asked.confidence is None else f", {share(asked.confidence)} sure"
        whose = " (the lab's parameter)" if asked.source == "parameter" else ""
        return f"{_words(asked.value, asked.unit)}{sure}{whose}"

    def _compared(self, value: float | str | None) -> str:
        if value is None:
            return ""
        if isinstance(value, str) or isinstance(self.measured, str):
            return "the same" if value == self.measured else ""
        return off_by(value, self.measured, self.prediction.unit)

    def _ipython_display_(self) -> None:
        """`reveal` has shown the card: as a cell's last value there is nothing to add."""


def reveal(
    prediction: Prediction, measured: float | str, low: float | None = None, high: float | None = None, **figures: Any
) -> Reveal:
    """Shows guess and measurement with interval, and the further `figures` of a `Reveal`; returns all for the record.

    A number is a hit inside the interval or within a factor of 1 + TOLERANCE of the measurement, a choice when it is
    the right one. Raises UsageError when `measured` is no option of a choice, or no number where a number was asked.
    """
    if prediction.options:
        what = f"{measured!r} is no option of prediction {prediction.id}"
        require(measured in prediction.options, what, fix="reveal one of its options")
    else:
        what = f"prediction {prediction.id} asks for a number, not {measured!r}"
        require(not isinstance(measured, str), what, fix="reveal a number")
    result = Reveal(prediction=replace(prediction), measured=measured, low=low, high=high, **figures)
    display.show(_bundle(result))
    return result


def is_hit(guess: float | str | None, measured: float | str, low: float | None, high: float | None) -> bool | None:
    """Whether a guess counts as right: inside [low, high], within a factor of 1 + TOLERANCE, or the same choice."""
    if guess is None:
        return None
    if isinstance(guess, str) or isinstance(measured, str):
        return guess == measured
    if low is not None and high is not None and low <= guess <= high:
        return True
    factor = factor_between(guess, measured)
    return guess == measured if factor is None else factor <= 1 + TOLERANCE


def _bundle(result: Reveal) -> dict[str, str]:
    question, rows = result.prediction.question, result.rows()
    lines = [f"{name:13}  {value}" + (f"  [{note}]" if note else "") for name, value, note in rows]
    cells = "".join(
        f"<tr><th scope='row' {LEFT}>{escape(name)}</th><td {LEFT}><b>{escape(value)}</b></td>"
        f"<td {LEFT}>{escape(note)}</td></tr>"
        for name, value, note in rows
    )
    body = f"<table style='margin:.4em 0'><tbody>{cells}</tbody></table><div>{escape(result.sentence())}</div>"
    return {
        "text/html": display.card(question, body, colour=COLOURS[result.hit]),
        "text/plain": "\n".join([question, *lines, result.sentence()]),
    }


def _words(value: float | str | None, unit: str | None) -> str:
    return value or "" if value is None or isinstance(value, str) else amount(value, unit)


@dataclass(frozen=True)
class Bucket:
    """Predictions made with a confidence from `low` to below `high` (1.0 included), and how many were hits."""

    low: float
    high: float
    predictions: int
    hits: int

    def cells(self) -> tuple[str, str, str]:
        """A row of a table: how sure, how many predictions, the share of hits."""
        sure = f"{share(self.low)} to {share(self.high)}"
        return sure, str(self.predictions), share(self.hits / self.predictions)


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
    buckets: tuple[Bucket, ...] = ()

    def sentence(self) -> str:
        """The summary in one or two sentences, for the report."""
        if self.hit_share is None:
            return f"No prediction was made for {self.asked} questions."
        hits = f"{share(self.hit_share)} of the predictions were hits"
        text = f"{self.n} of {self.asked} questions were predicted; {hits}."
        if self.mean_confidence is None or self.brier is None:
            return text
        return f"{text} Mean confidence {share(self.mean_confidence)}, Brier score {self.brier:.2f} (0 is best)."


def calibration(reveals: Iterable[Mapping[str, Any]]) -> Calibration:
    """Summarises reveals as `Reveal.to_dict` gives them; without a guess a question only counts as asked."""
    asked = list(reveals)
    hits = [one["hit"] for one in asked if one.get("hit") is not None]
    sure = [(one["confidence"], one["hit"]) for one in asked if None not in (one.get("confidence"), one.get("hit"))]
    return Calibration(
        asked=len(asked),
        n=len(hits),
        hit_share=fmean(hits) if hits else None,
        mean_confidence=fmean(confidence for confidence, _ in sure) if sure else None,
        brier=fmean((confidence - hit) ** 2 for confidence, hit in sure) if sure else None,
        buckets=tuple(_buckets(sure)),
    )


def _buckets(sure: Sequence[tuple[float, bool]]) -> Iterator[Bucket]:
    """The buckets that hold a prediction; `sure`: each one's confidence and whether it was a hit."""
    for low, high in pairwise(BUCKETS):
        hits = [hit for confidence, hit in sure if low <= confidence < high or confidence == high == BUCKETS[-1]]
        if hits:
            yield Bucket(low, high, len(hits), sum(hits))
