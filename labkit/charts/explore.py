"""A slider over one setting: each move runs an experiment and redraws its chart in place.

    explore([512, 2048, 8192], run=drive_with_budget, draw=picture, name="max_num_batched_tokens")

`run` takes the setting and returns a result; `draw` takes both and returns a chart and a line of text.
"""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any, Generic, TypeVar

from labkit.charts.render import bundle, spec
from labkit.display import LEAVE_ARROWS
from labkit.errors import UsageError
from labkit.vega import live_bundle

Value = TypeVar("Value")
Result = TypeVar("Result")
STYLE = "<style>.labkit-running .jp-OutputArea {opacity: 0.35}</style>"


class Explorer(Generic[Value, Result]):
    """The slider, its chart and its line of text. `value` and `result`: the setting shown and its run's result.

    The first run happens at construction. During a run the front end keeps only the slider's newest position, so
    holding an arrow key costs two runs, not one for each repeat.
    """

    def __init__(
        self,
        values: Sequence[Value],
        run: Callable[[Value], Result],
        draw: Callable[[Value, Result], tuple[Any, str]],
        *,
        name: str,
        start: Value,
    ) -> None:
        import ipywidgets as widgets

        self._run, self._draw, self._name = run, draw, name
        self.slider = widgets.SelectionSlider(
            options=[(_words(value), value) for value in values],
            value=start,
            description=name,
            continuous_update=False,
            style={"description_width": "initial"},
            layout={"width": "640px"},
        )
        self.line = widgets.HTML()
        self.picture = widgets.Output()
        self.box = widgets.VBox([widgets.HTML(LEAVE_ARROWS + STYLE), self.slider, self.line, self.picture])
        self._show(start)
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
        self.chart, self.text = self._draw(value, result)
        self.value, self.result = value, result
        data, metadata = live_bundle(spec(self.chart))
        # Assign instead of clear and display: outputs cannot pile up, and the chart does not flicker.
        self.picture.outputs = ({"output_type": "display_data", "data": data, "metadata": metadata},)
        self.line.value = _status(self.text)

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget; for pages without widgets the chart as a PNG and the line of text."""
        data, metadata = bundle(self.chart)
        shown = dict(self.box._repr_mimebundle_(**options))
        shown |= {"image/png": data["image/png"], "text/plain": f"{data['text/plain']}\n{self.text}"}
        return shown, {"image/png": metadata["image/png"]}


def explore(
    values: Sequence[Value],
    run: Callable[[Value], Result],
    draw: Callable[[Value, Result], tuple[Any, str]],
    *,
    name: str,
    start: Value | None = None,
) -> Explorer[Value, Result]:
    """Return a slider over `values` that shows `draw(value, run(value))`: an Altair chart and a line of text.

    `start`: the value of the first run (default: the first). UsageError without values, or for a `start` that is not
    one of them.
    """
    if not values:
        raise UsageError(f"the slider {name} has no values", remedy="pass at least one")
    first = values[0] if start is None else start
    if first not in values:
        raise UsageError(f"{name} cannot start at {first}", remedy=f"choose one of {', '.join(map(_words, values))}")
    return Explorer(values, run, draw, name=name, start=first)


def _words(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _status(text: str, *, role: str = "status") -> str:
    return f'<span role="{role}">{escape(text)}</span>'
