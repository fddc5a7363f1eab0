"""The form in which a learner commits to a prediction. It decides nothing: `Prediction.commit` does."""

from html import escape
from typing import Any

from labkit.errors import UsageError
from labkit.teaching import show
from labkit.teaching.keys import LEAVE_ARROWS
from labkit.teaching.predictions import Prediction

WIDE = {"description_width": "initial"}  # otherwise ipywidgets cuts a label after 80 pixels


def show_form(prediction: Prediction) -> None:
    """Displays the form; where widgets cannot be drawn the question and the parameter's guess stand in its place."""
    bundle = dict(build(prediction)._repr_mimebundle_())
    bundle["text/plain"] = f"{prediction.question}\n  {prediction.in_words()}"
    bundle["text/html"] = show.inline(prediction.question) + show.inline(prediction.in_words())
    show.show(bundle)


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
    for field in fields:
        field.disabled = True
    status.value = _status(f"Committed: {prediction.in_words()}. Now run the cells below.")


def _before(prediction: Prediction) -> str:
    if prediction.answer is None:
        return "Nothing committed yet. The lab also runs without a prediction."
    return f"Nothing committed yet: the lab's parameter counts, {prediction.in_words()}."


def _status(text: str) -> str:
    return f'<span role="status">{escape(text, quote=False)}</span>'
