"""Predictions before a measurement, compared with it afterwards: predict, reveal, calibration.

The form in a notebook calls `Prediction.commit`. In a batch run the lab's parameter is the guess.
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
"""The origin of a guess; "widget": committed by the learner, in the form or by `commit`."""

TOLERANCE = 0.25  # a guess within a factor of 1.25 is a hit
BUCKETS = (0.0, 0.5, 0.7, 0.9, 1.0)  # bounds of calibration's confidence intervals
COLOURS = {True: "#009E73", False: "#D55E00", None: "#8c8c8c"}
LEFT, NAME = "style='text-align:left'", "style='text-align:left;white-space:nowrap'"
STYLE = {"description_width": "initial"}  # otherwise ipywidgets cuts a label after 80 pixels
WIDE = {"width": "420px"}


@dataclass
class Prediction:
    """A question and its current guess: the lab's parameter, or the learner's commitment.

    The guess is a number (in `unit`) or one of `options`; `confidence` is the stated probability of being right.
    """

    id: str
    question: str
    unit: str | None = None
    options: tuple[str, ...] = ()
    value: float | str | None = None
    confidence: float | None = None
    source: Source = "none"

    def commit(self, value: object, confidence: float | None = None) -> None:
        """Commit to an answer, once. UsageError: a second answer, or one that does not fit the question."""
        fix = "to answer again, first run the cell that asks the question again"
        require(self.source != "widget", f"prediction {self.id} is committed already: {self.in_words()}", fix=fix)
        self.take(value, confidence, source="widget")

    def take(self, value: object, confidence: float | None, *, source: Source) -> None:
        """Set the current guess. UsageError: it does not fit the question."""
        is_share = confidence is None or 0 <= confidence <= 1
        require(is_share, f"confidence is {confidence}", fix="give a share between 0 and 1")
        self.value = self._choice(value) if self.options else self._number(value)
        self.confidence, self.source = confidence, source

    def in_words(self) -> str:
        """Return the guess with unit and confidence, or "no prediction made"."""
        if self.value is None:
            return "no prediction made"
        text = _words(self.value, self.unit)
        return text if self.confidence is None else f"{text} ({share(self.confidence)} sure)"

    def _choice(self, value: object) -> str:
        fix = f"choose one of: {', '.join(self.options)}"
        require(value in self.options, f"{value!r} is not an option of {self.id}", fix=fix)
        return str(value)

    def _number(self, value: object) -> float:
        try:
            number = float(str(value).replace(",", "").strip())  # 1,200 is 1200
        except ValueError:
            number = math.nan
        fix = f"answer {self.id} with a number, in {self.unit}"
        require(math.isfinite(number), f"{value!r} is not a number", fix=fix)
        return number

    def _ipython_display_(self) -> None:
        """Show nothing: `predict` has already shown the form."""


def predict(
    id: str,
    question: str,
    *,
    unit: str | None = None,
    options: Sequence[str] | None = None,
    guess: float | str | None = None,
    confidence: float | None = None,
) -> Prediction:
    """Ask for a number (`unit`) or a choice (`options`), show a form in a notebook, and return at once.

    The returned prediction changes when the learner commits: read `.value` in a later cell. Until then it has `guess`
    and `confidence` (0 to 1), the lab's parameters. UsageError: a guess that does not fit the question.
    """
    valid = (unit is None) != (not options)
    require(valid, f"prediction {id} needs either a unit or options", fix="pass unit= or options=")
    prediction = Prediction(id, question, unit, tuple(options or ()))
    if guess is not None and guess != "":
        prediction.take(guess, confidence, source="parameter")
    bundle = {"text/plain": f"{question}\n  {prediction.in_words()}"}
    if display.in_notebook():
        # Frontends without widgets show the question and the parameter's guess.
        html = display.inline(question) + display.inline(prediction.in_words())
        bundle = {**form(prediction)._repr_mimebundle_(), **bundle, "text/html": html}
    display.show(bundle)
    return prediction


def form(prediction: Prediction) -> Any:
    """Return the ipywidgets form: question, answer, confidence, a Commit button and a line with the current guess."""
    import ipywidgets as widgets

    title = f"<b>{display.code_spans(escape(prediction.question, quote=False))}</b>"
    question = widgets.HTML(f"<div style='line-height:1.4;max-width:60em'>{title}</div>{LEAVE_ARROWS}")
    answer = _choices(prediction) if prediction.options else _number_field(prediction)
    sure = 50 if prediction.confidence is None else round(100 * prediction.confidence)
    label = "How sure are you? (%)"
    confidence = widgets.IntSlider(value=sure, min=0, max=100, step=5, description=label, style=STYLE, layout=WIDE)
    button = widgets.Button(description="Commit", button_style="primary", tooltip="Commit to this prediction")
    counts = ". The lab also runs without a prediction."
    if prediction.value is not None:
        counts = f": the guess is the lab's parameter, {prediction.in_words()}."
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

    # FloatText would start at 0, which could be committed by accident. The initial value is exact, not rounded, so that
    # committing it does not change the number.
    initial = f"{prediction.value:,}".removesuffix(".0") if isinstance(prediction.value, float) else ""
    label = f"Your guess ({prediction.unit})"
    return widgets.Text(value=initial, placeholder="a number", description=label, style=STYLE, layout=WIDE)


def _status(text: str) -> str:
    return f'<span role="status">{escape(text, quote=False)}</span>'


@dataclass(frozen=True, kw_only=True)
class Reveal:
    """A prediction beside its measurement. `recorded`: the measurement of a recorded run on another machine.

    `modelled`: if nothing was measured, the label of the modelled card, or "Computed: " and the source."""

    prediction: Prediction
    measured: float | str
    low: float | None = None
    high: float | None = None
    article: float | str | None = None
    model: float | str | None = None
    recorded: float | str | None = None
    recorded_from: str = ""
    modelled: str = ""
    exact: bool = False
    """Only the value itself is a hit: a choice among few numbers."""

    @property
    def hit(self) -> bool | None:
        """Whether the guess counts as right; None without one."""
        if self.exact and self.prediction.value is not None:
            return self.prediction.value == self.measured
        return is_hit(self.prediction.value, self.measured, self.low, self.high)

    def to_dict(self) -> dict[str, Any]:
        """Return what is recorded: everything except values recorded elsewhere."""
        prediction = self.prediction
        guess = {"guess": prediction.value, "confidence": prediction.confidence, "source": prediction.source}
        names = ("measured", "low", "high", "article", "model", "hit", "modelled")
        figures = {name: getattr(self, name) for name in names}
        return {"id": prediction.id, "question": prediction.question, "unit": prediction.unit, **guess, **figures}

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the card's rows: source, figure, and how it compares with the measurement."""
        unit = self.prediction.unit
        interval = "" if self.low is None or self.high is None else f"interval {span(self.low, self.high, unit)}"
        rows = [
            ("Your guess", self._guess_in_words(), self._compared(self.prediction.value)),
            (self._kind, _words(self.measured, unit), interval),
            ("Recorded", _words(self.recorded, unit), self.recorded_from),
            ("The article", _words(self.article, unit), self._compared(self.article)),
            ("By formula", _words(self.model, unit), self._compared(self.model)),
            ("", self.modelled.removeprefix(f"{self._kind}: "), ""),
        ]
        return [row for row in rows if row[1]]

    @property
    def _kind(self) -> str:
        if self.modelled.startswith("Computed: "):
            return "Computed"
        return "Modelled" if self.modelled else "Measured here"

    def sentence(self) -> str:
        """Return the outcome in one sentence."""
        guess = self.prediction.value
        if guess is None:
            return "No prediction was made."
        if isinstance(guess, str):
            return "Your prediction was right." if self.hit else "Your prediction was wrong."
        hit = "right" if self.exact else "close enough to count as a hit"
        return f"Your prediction was {hit if self.hit else self._compared(guess)}."

    def _guess_in_words(self) -> str:
        prediction = self.prediction
        if prediction.value is None:
            return "no prediction made"
        sure = "" if prediction.confidence is None else f", {share(prediction.confidence)} sure"
        origin = " (the lab's parameter)" if prediction.source == "parameter" else ""
        return f"{_words(prediction.value, prediction.unit)}{sure}{origin}"

    def _compared(self, value: float | str | None) -> str:
        if value is None:
            return ""
        if isinstance(value, str) or isinstance(self.measured, str):
            return "the same" if value == self.measured else ""
        if self.low is not None and self.high is not None and self.low <= value <= self.high:
            return "inside the interval"
        return off_by(value, self.measured, self.prediction.unit)

    def _ipython_display_(self) -> None:
        """Show nothing: `reveal` has already shown the card."""


def reveal(
    prediction: Prediction, measured: float | str, low: float | None = None, high: float | None = None, **figures: Any
) -> Reveal:
    """Show guess and measurement with interval, and the other `figures` of a `Reveal`; return all for the record.

    A number is a hit inside the interval or within a factor of 1 + TOLERANCE of the measurement; a choice if it is
    right. UsageError: `measured` is not one of the options, or not a number if a number was asked for.
    """
    if prediction.options:
        what = f"{measured!r} is not an option of prediction {prediction.id}"
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
    cells = "".join(_row_html(*map(escape, row)) for row in rows)
    body = f"<table style='margin:.4em 0'><tbody>{cells}</tbody></table><div>{escape(result.sentence())}</div>"
    return {
        "text/html": display.card(question, body, colour=COLOURS[result.hit]),
        "text/plain": "\n".join([question, *lines, result.sentence()]),
    }


def _row_html(name: str, value: str, note: str) -> str:
    head, value = (f"<th scope='row' {NAME}>{name}</th>", f"<b>{value}</b>") if name else ("<td></td>", value)
    cells = f"<td {LEFT}>{value}</td><td {LEFT}>{note}</td>" if note else f"<td colspan='2' {LEFT}>{value}</td>"
    return f"<tr>{head}{cells}</tr>"


def _words(value: float | str | None, unit: str | None) -> str:
    return value or "" if value is None or isinstance(value, str) else amount(value, unit)


@dataclass(frozen=True)
class Bucket:
    """Predictions with a confidence from `low` to below `high` (1.0 included), and the number of hits."""

    low: float
    high: float
    predictions: int
    hits: int

    def cells(self) -> tuple[str, str, str]:
        """Return a table's row: confidence, number of predictions, share of hits."""
        sure = f"{share(self.low)} to {share(self.high)}"
        return sure, str(self.predictions), share(self.hits / self.predictions)


@dataclass(frozen=True)
class Calibration:
    """Statistics of predictions. Shares are 0 to 1; None if there is nothing to average.

    `brier` is the mean of (confidence - hit)^2 (Brier 1950): 0 is perfect; always saying "50% sure" gets 0.25.
    """

    asked: int
    n: int
    hit_share: float | None
    mean_confidence: float | None
    brier: float | None
    buckets: tuple[Bucket, ...] = ()

    def sentence(self) -> str:
        """Return a summary in one or two sentences."""
        if self.hit_share is None:
            return f"No prediction was made for {self.asked} questions."
        hits = f"{share(self.hit_share)} of the predictions were hits"
        text = f"{self.n} of {self.asked} questions were predicted; {hits}."
        if self.mean_confidence is None or self.brier is None:
            return text
        return f"{text} Mean confidence {share(self.mean_confidence)}, Brier score {self.brier:.2f} (0 is best)."


def calibration(reveals: Iterable[Mapping[str, Any]]) -> Calibration:
    """Summarise reveals as `Reveal.to_dict` returns them; a question without a guess only counts as asked."""
    items = list(reveals)
    guessed = [item for item in items if item.get("hit") is not None]
    hits = [item["hit"] for item in guessed]
    sure = [(item["confidence"], item["hit"]) for item in guessed if item.get("confidence") is not None]
    return Calibration(
        asked=len(items),
        n=len(hits),
        hit_share=fmean(hits) if hits else None,
        mean_confidence=fmean(confidence for confidence, _ in sure) if sure else None,
        brier=fmean((confidence - hit) ** 2 for confidence, hit in sure) if sure else None,
        buckets=tuple(_buckets(sure)),
    )


def _buckets(sure: Sequence[tuple[float, bool]]) -> Iterator[Bucket]:
    """Yield the buckets that are not empty; `sure`: each prediction's confidence and whether it was a hit."""
    for low, high in pairwise(BUCKETS):
        hits = [hit for confidence, hit in sure if low <= confidence < high or confidence == high == BUCKETS[-1]]
        if hits:
            yield Bucket(low, high, len(hits), sum(hits))
