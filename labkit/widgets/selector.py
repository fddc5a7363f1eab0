"""The selector's form: fourteen questions on the left, the answer on the right. It decides nothing: `select` does.

form = selector.show()          # or show(state), with what a form exported
form.answers, form.selection    # what stands there now
form.state                      # one line of JSON: a colleague's form, `labkit select --answers`, a lab's parameter
"""

from collections.abc import Mapping
from html import escape
from typing import Any

from labkit.errors import UsageError
from labkit.selector import Catalogue, ConfigFile, Selection, catalogue, configure, read_state, select, write_state
from labkit.selector.words import to_text
from labkit.teaching import show as shown
from labkit.teaching.keys import LEAVE_ARROWS
from labkit.widgets import selector_html as views

HEIGHT = "500px"
QUESTIONS_WIDTH = "318px"
CONFIGURATION = "Configuration"
TIPS = {
    "Why": "The reasons for the first place, and what each rests on",
    "Why not": "Why the others are not first, or not ranked at all",
    "What if": "Which single other answer would change the first place",
    "Warnings": "What to mind with this choice",
    CONFIGURATION: "Commands and files, ready to use, each setting explained",
    "Article": "What the article says of the same situation",
}


class SelectorForm:
    """The form and what stands in it. `verdicts`: of this machine's runs, by claim, shown beside the reasons."""

    def __init__(
        self, state: str | Mapping[str, Any] | None = None, *, verdicts: Mapping[str, str] | None = None
    ) -> None:
        self.known: Catalogue = catalogue()
        self.verdicts = dict(verdicts or {})
        answers, self.model = read_state(state)
        self.selection: Selection = select(answers)
        self.view = "Why"
        self._build()
        self._draw()

    @property
    def answers(self) -> dict[str, str]:
        """The answers that stand in the form."""
        return dict(self.selection.answers)

    @property
    def state(self) -> str:
        """The answers and the model as one line of JSON."""
        return write_state(self.answers, self.model)

    @property
    def config(self) -> tuple[ConfigFile, ...]:
        """The configuration for what comes first."""
        return configure(self.selection.winner.name, self.selection.answers, model=self.model)

    # --- drawing

    def _build(self) -> None:
        import ipywidgets as widgets

        self._fields = {name: self._dropdown(name) for name in self.known.questions}
        self._summary, self._detail, self._message = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self._buttons = {name: self._button(name) for name in TIPS}
        self._model = self._text("Model", "What is served: a hub id or a folder; empty: what suits", "330px")
        self._state = self._text("State", "The answers as JSON: copy it, or paste another and press Enter", "100%")
        for field in self._fields.values():
            field.observe(lambda _: self._answered(), names="value")
        self._model.observe(lambda change: self._pasted(self._model_given, change["new"]), names="value")
        self._state.observe(lambda change: self._pasted(self._state_given, change["new"]), names="value")
        self.widget = self._arranged()

    def _arranged(self) -> Any:
        import ipywidgets as widgets

        asked = {"article": "The article's questions", "ours": "What it leaves out"}
        left: list[Any] = []
        for by, heading in asked.items():
            left.append(
                widgets.HTML(
                    f"<b style='{views.TEXT}'>{heading}</b>{LEAVE_ARROWS}",
                    layout={"margin": "0", "height": "22px"},
                )
            )
            left += [self._fields[name] for name, one in self.known.questions.items() if one.asked_by == by]
        detail = widgets.Box([self._detail], layout={"overflow": "auto", "flex": "1 1 0", "min_height": "0"})
        buttons = widgets.HBox(list(self._buttons.values()), layout={"flex": "0 0 auto", "flex_flow": "row wrap"})
        right = widgets.VBox(
            [self._summary, buttons, detail], layout={"flex": "1 1 0", "min_width": "0", "margin": "0 0 0 14px"}
        )
        body = widgets.HBox(
            [widgets.VBox(left, layout={"flex": f"0 0 {QUESTIONS_WIDTH}", "overflow": "hidden"}), right],
            layout={"height": HEIGHT},
        )
        below = widgets.HBox([self._model, self._state], layout={"overflow": "hidden"})
        return widgets.VBox([body, below, self._message], layout={"max_width": "1180px"})

    def _dropdown(self, name: str) -> Any:
        import ipywidgets as widgets

        one = self.known.questions[name]
        return widgets.Dropdown(
            options=[(label, value) for value, label in one.options.items()],
            value=self.selection.answers[name],
            description=_labelled(one.label, f"{one.question} {one.help}"),
            description_allow_html=True,
            tooltip=f"{one.question} {one.help}",
            style={"description_width": "126px"},
            layout={"width": QUESTIONS_WIDTH, "height": "27px", "margin": "2px 0 1px 0"},
        )

    def _button(self, name: str) -> Any:
        import ipywidgets as widgets

        button = widgets.Button(description=name, tooltip=TIPS[name], layout={"width": "auto", "height": "26px"})
        button.on_click(lambda _: self._show(name))
        return button

    def _text(self, label: str, tip: str, width: str) -> Any:
        import ipywidgets as widgets

        layout = {"width": width, "margin": "2px 8px 2px 0"}
        return widgets.Text(
            description=_labelled(label, tip),
            description_allow_html=True,
            tooltip=tip,
            continuous_update=False,
            style={"description_width": "initial"},
            layout=layout,
        )

    def _draw(self) -> None:
        """Everything on the right, from what `select` said."""
        self._summary.value = views.summary(self.selection)
        self._buttons["Warnings"].description = f"Warnings ({len(self.selection.warnings)})"
        self._busy = True  # what is written here is no new answer
        self._state.value, self._model.value = self.state, self.model or ""
        self._busy = False
        self._draw_view()

    def _draw_view(self) -> None:
        drawn = views.configuration(self.config) if self.view == CONFIGURATION else ""
        drawn = drawn or views.VIEWS[self.view](self.selection, self.verdicts)
        self._detail.value = f"<div style='{views.TEXT}'>{drawn}</div>"
        for name, button in self._buttons.items():
            button.button_style = "primary" if name == self.view else ""

    # --- what the learner does

    def _show(self, view: str) -> None:
        self.view = view
        self._draw_view()

    def _answered(self) -> None:
        if self._busy:
            return
        self.selection = select({name: field.value for name, field in self._fields.items()})
        self._say("")
        self._draw()

    def _pasted(self, take: Any, text: str) -> None:
        """Takes what was typed; what cannot be read is told in words, and the form stays as it was."""
        if self._busy:
            return
        try:
            take(text)
        except UsageError as error:
            self._say(f"Not taken: {error.what}. {error.remedy}.")
            return
        self._say("")
        self._draw()

    def _model_given(self, text: str) -> None:
        _, self.model = read_state({"model": text.strip()})

    def _state_given(self, text: str) -> None:
        answers, self.model = read_state(text)
        self.selection = select(answers)
        self._busy = True
        for name, field in self._fields.items():
            field.value = answers[name]
        self._busy = False

    def _say(self, text: str) -> None:
        self._message.value = f"<div role='alert' style='{views.TEXT}'>{escape(text)}</div>" if text else ""

    # --- showing

    def bundle(self) -> dict[str, Any]:
        """The form by mime type; where no form can be drawn, the result as it stands."""
        found = dict(self.widget._repr_mimebundle_())
        found["text/plain"] = to_text(self.selection, self.config, verdicts=self.verdicts, model=self.model)
        found["text/html"] = views.static(self.selection, self.known)
        return found

    def _ipython_display_(self) -> None:
        """`show` has shown the form: as a cell's last value there is nothing to add."""


def _labelled(label: str, tip: str) -> str:
    """A label with its tooltip: ipywidgets 8 shows a field's own one only where there is no label."""
    return f'<span title="{escape(tip, quote=True)}">{escape(label)}</span>'


def show(state: str | Mapping[str, Any] | None = None, *, verdicts: Mapping[str, str] | None = None) -> SelectorForm:
    """Shows the form with the answers of `state` (default: the article's own and ours) and returns it, live.

    Outside a notebook the result is printed. UsageError for a state that cannot be read.
    """
    form = SelectorForm(state, verdicts=verdicts)
    shown.show(form.bundle())
    return form
