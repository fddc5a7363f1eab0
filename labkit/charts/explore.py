"""A slider over one setting: each move runs an experiment and redraws its chart in place.

Explorer([512, 2048, 8192], run=drive_with_budget, draw=picture, name="max_num_batched_tokens")
"""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any, Generic, TypeVar

from labkit.charts.render import bundle, spec
from labkit.display import LEAVE_ARROWS
from labkit.errors import require
from labkit.vega import captioned, live_bundle

Value = TypeVar("Value")
Result = TypeVar("Result")
STYLE = "<style>.labkit-running .jp-OutputArea {opacity: 0.35}</style>"


class Explorer(Generic[Value, Result]):
    """A slider over `values` that shows `draw(value, run(value))`: a chart and a line of text.

    `start`: the value of the first run, at construction (default: the first). `caption`: the line below every title,
    such as the modelled card. `value` and `result`: the setting shown and its run's result. UsageError without values,
    or for a `start` that is not one of them.

    During a run the front end keeps only the slider's newest position, so holding an arrow key costs two runs, not one
    for each repeat.
    """

    def __init__(
        self,
        values: Sequence[Value],
        run: Callable[[Value], Result],
        draw: Callable[[Value, Result], tuple[Any, str]],
        *,
        name: str,
        start: Value | None = None,
        caption: str = "",
    ) -> None:
        import ipywidgets as widgets

        require(len(values) > 0, f"the slider {name} has no values", fix="pass at least one")
        first = values[0] if start is None else start
        known = ", ".join(map(_words, values))
        require(first in values, f"{name} cannot start at {first}", fix=f"choose one of {known}")
        self._run, self._draw, self._name = run, draw, name
        self._below = [caption] if caption else []
        self.slider = widgets.SelectionSlider(
            options=[(_words(value), value) for value in values],
            value=first,
            description=name,
            continuous_update=False,
            style={"description_width": "initial"},
            layout={"width": "640px"},
        )
        self.line = widgets.HTML()
        self.picture = widgets.Output()
        self.box = widgets.VBox([widgets.HTML(LEAVE_ARROWS + STYLE), self.slider, self.line, self.picture])
        self._show(first)
        self.slider.observe(self._moved, names="value")

    def _moved(self, change: dict[str, Any]) -> None:
        self.line.value = _status(f"Running {self._name} = {_words(change['new'])} ...")
        self.picture.add_class("labkit-running")
        try:
            self._show(change["new"])
        except Exception as error:  # an error raised in a callback would reach only the log console
            self.line.value = _status(f"{type(error).__name__}: {error}", role="alert")
        finally:
            self.picture.remove_class("labkit-running")

    def _show(self, value: Value) -> None:
        result = self._run(value)
        chart, self.text = self._draw(value, result)
        self.chart = captioned(spec(chart), *self._below)
        self.value, self.result = value, result
        data, metadata = live_bundle(self.chart)
        # Assign instead of clear and display: outputs cannot pile up, and the chart does not flicker.
        self.picture.outputs = ({"output_type": "display_data", "data": data, "metadata": metadata},)
        self.line.value = _status(self.text)

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget; for pages without widgets the chart as a PNG and the line of text."""
        data, metadata = bundle(self.chart)
        shown = dict(self.box._repr_mimebundle_(**options))
        shown |= {"image/png": data["image/png"], "text/plain": f"{data['text/plain']}\n{self.text}"}
        return shown, {"image/png": metadata["image/png"]}


def _words(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _status(text: str, *, role: str = "status") -> str:
    return f'<span role="{role}">{escape(text)}</span>'
