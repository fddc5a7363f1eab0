"""The guess meets the measurement: what was off, by how much, and over many questions how well calibrated one is."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from labkit.errors import UsageError
from labkit.teaching import show
from labkit.teaching.predictions import Prediction
from labkit.teaching.words import amount, factor_between, off_by, share, span

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
    show.show(_bundle(result))
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
        "text/html": show.card(result.question, body, colour=colour),
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
