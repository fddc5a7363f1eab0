"""The cost calculator as a widget: a skin over `costs.calculate`.

    calculator = show_calculator(state)     # `state`: what another calculator exported, or "" for a first question
    calculator.result, calculator.state     # the answer and the question, in Python

Every change is calculated and drawn at once. What cannot be is told in words, and the last good answer stays.
"""

from collections.abc import Callable
from html import escape
from typing import Any

from labkit import costs
from labkit.charts.costs import break_even_chart, sensitivity_chart, utilisation_chart
from labkit.charts.render import live_bundle
from labkit.costs import CostSettings
from labkit.costs.command import headline, text
from labkit.errors import UsageError
from labkit.teaching import show
from labkit.teaching.keys import LEAVE_ARROWS
from labkit.widgets import cost_fields
from labkit.widgets.cost_answer import LOOK, answer_html, sums_html

VIEWS = ("Break-even", "Busy share", "What matters", "The sums", "Share it")
TOOLTIPS = (
    "From which volume on hosting is cheaper",
    "What idle machines do to the price of a token",
    "Each input, a quarter less and a quarter more of it",
    "Every sum, line by line",
    "This question as text: for a colleague, a batch run, the command line",
)
WIDTH, HEIGHT = 480, 205
PICTURE = "345px"
SHARE = 0.25


class CostCalculator:
    """The widget and what it holds: `settings`, `result`, and `state`, the settings as JSON."""

    def __init__(self, settings: CostSettings) -> None:
        import ipywidgets as widgets

        self.settings, self.result = settings, costs.calculate(settings)
        self._filling = self._wrong = False
        self.fields = cost_fields.build(settings)
        self.message = widgets.HTML()
        self.answer = widgets.HTML()
        self.view = widgets.ToggleButtons(
            options=VIEWS, tooltips=TOOLTIPS, style={"button_width": "110px"}, layout={"margin": "4px 0 2px 0"}
        )
        self.picture = widgets.Output(layout={"height": PICTURE, "overflow": "hidden"})
        self.sums = widgets.HTML(layout={"height": PICTURE, "overflow": "auto"})
        self.exported = widgets.Textarea(
            continuous_update=False,
            layout={"width": "98%", "height": "250px"},
            tooltip="Copy it, or paste another calculator's text and press Tab",
        )
        self.sharing = widgets.VBox([widgets.HTML(SHARING), self.exported], layout={"height": PICTURE})
        self.box = self._arranged(widgets)
        for name, field in self.fields.items():
            field.observe(self._listener(name), names="value")
        self.view.observe(lambda _: self._draw(), names="value")
        self.exported.observe(self._pasted, names="value")
        self._draw()

    @property
    def state(self) -> str:
        """The question as one line of JSON, for the parameter `state`."""
        return self.settings.to_json()

    def _arranged(self, widgets: Any) -> Any:
        left = widgets.VBox(list(self.fields.values()), layout={"width": "338px", "flex": "0 0 auto"})
        shown = [
            widgets.HTML(LOOK + LEAVE_ARROWS, layout={"height": "0", "margin": "0"}),
            self.answer,
            self.view,
            self.picture,
            self.sums,
            self.sharing,
            self.message,
        ]
        right = widgets.VBox(shown, layout={"width": "580px", "flex": "0 0 auto", "margin": "0 0 0 8px"})
        box = widgets.HBox([left, right], layout={"width": "max-content"})
        box.add_class("labkit-costs")
        return box

    def _listener(self, name: str) -> Callable[[dict[str, Any]], None]:
        def changed(change: dict[str, Any]) -> None:
            if not self._filling:
                self._ask(lambda: cost_fields.read(self.settings, self.fields, name, change["new"]))

        return changed

    def _pasted(self, change: dict[str, Any]) -> None:
        if not self._filling and change["new"].strip() != self.state:
            self._ask(lambda: costs.settings_from({"state": change["new"]}, self.settings), refill=True)

    def _ask(self, new: Callable[[], CostSettings], *, refill: bool = False) -> None:
        """Calculates the new question; what cannot be is told, and the last answer stays, marked as the last one."""
        try:
            settings = new()
            result = costs.calculate(settings)
        except UsageError as error:
            self.message.value = _told(f"{error.what}. {error.remedy}." if error.remedy else error.what)
            self._wrong = True
            return
        refill = refill or self._wrong or cost_fields.follows(self.settings, settings)
        self._wrong = False
        self.settings, self.result = settings, result
        if refill:
            self._fill()
        self._draw()

    def _fill(self) -> None:
        self._filling = True
        try:
            cost_fields.fill(self.fields, self.settings)
        finally:
            self._filling = False

    def _draw(self) -> None:
        view, drawn = self.view.value, self._chart()
        if drawn is not None:  # first of all: it takes the browser longest
            data, metadata = live_bundle(drawn)
            # Set at once, instead of clearing and displaying: the picture does not flicker, and one message does it.
            self.picture.outputs = ({"output_type": "display_data", "data": data, "metadata": metadata},)
        self.answer.value = answer_html(self.result)
        self.message.value = "".join(f"<div class='labkit-note'>{escape(one)}</div>" for one in self.result.warnings)
        self.picture.layout.display = "" if drawn is not None else "none"
        self.sums.layout.display = "" if view == "The sums" else "none"
        self.sharing.layout.display = "" if view == "Share it" else "none"
        if view == "The sums":
            self.sums.value = sums_html(self.result)
        if view == "Share it":
            self._filling = True
            self.exported.value = self.state
            self._filling = False

    def _chart(self) -> dict[str, Any] | None:
        if self.view.value == "Break-even":
            return break_even_chart(self.result, title=None, width=WIDTH, height=HEIGHT)
        if self.view.value == "Busy share":
            return utilisation_chart(self.result, title=None, width=WIDTH, height=HEIGHT)
        if self.view.value == "What matters" and self.result.against.usd_per_day:
            swings = costs.sensitivity(self.settings, share=SHARE)
            return sensitivity_chart(self.result, swings, share=SHARE, title=None, width=WIDTH - 60, height=HEIGHT + 30)
        return None

    def _repr_mimebundle_(self, **options: Any) -> Any:
        # A notebook that is read without a kernel, or on a page that draws no widgets, still has the answer.
        found = dict(self.box._repr_mimebundle_(**options))
        found["text/plain"] = text(self.result)
        found["text/html"] = f"<p>{escape(headline(self.result))}</p>{answer_html(self.result)}"
        return found


def show_calculator(state: str | dict[str, Any] = "", *, settings: CostSettings | None = None) -> CostCalculator:
    """Shows the calculator and returns it. `state`: exported by another one, or by `labkit cost --json` (settings).

    UsageError: a state that cannot be read.
    """
    calculator = CostCalculator(
        costs.settings_from({"state": state}, settings) if state else settings or costs.default()
    )
    show.show(calculator._repr_mimebundle_())
    return calculator


def _told(message: str) -> str:
    return f"<div role='alert' class='labkit-wrong'><b>Not calculated:</b> {escape(message)}</div>"


SHARING = (
    "<p style='line-height:1.4;margin:2px 0'>The same question elsewhere: the lab's parameter <code>state</code>, "
    "or <code>labkit cost --set 'state=...'</code>. Or paste another one here.</p>"
)
