"""The selector as a widget around `select`: questions on the left, the answer on the right.

form = selector.show()          # or show(state), with the state that another form exported
form.answers, form.selection    # the answers in the form, and the result
form.state                      # one line of JSON, for another form, `labkit select --answers` or a lab's parameter
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from labkit.advice.form import Form, labelled
from labkit.advice.selector import (
    Comparison,
    ConfigFile,
    Selection,
    catalogue,
    compare_patterns,
    configure,
    read_state,
    select,
    write_state,
)
from labkit.advice.selector.configs import proof
from labkit.advice.selector.fit import in_words
from labkit.advice.selector.words import by_winner, grounds, to_text
from labkit.display import LEAVE_ARROWS
from labkit.files import data_path

INK = "color:var(--jp-ui-font-color1,#212121)"
TEXT = f"{INK};font-size:13px;line-height:1.4"
PROS = 6  # reasons shown


@cache
def _macros() -> Any:
    """Return the macros of data/selector/form.html.j2, which draw the views and escape all values."""
    loader = FileSystemLoader(data_path("selector"))
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.filters["linked"] = _linked
    environment.globals |= {"ink": INK, "text": TEXT, "pros": PROS, "known": catalogue(), "fit": in_words}
    environment.globals |= {"by_winner": by_winner, "grounds": grounds}
    environment.globals |= {"neighbour_rows": _neighbour_rows, "pattern_rows": _pattern_rows}
    return environment.get_template("form.html.j2").module


def _draw(macro: str, *values: object) -> str:
    return str(getattr(_macros(), macro)(*values))


def summary(selection: Selection) -> str:
    """Return the recommendation, the ranking as bars, the article's answer, and the winner without opinions."""
    return _draw("summary", selection)


def configuration(files: Sequence[ConfigFile]) -> str:
    """Return the files, each setting explained."""
    return _draw("configuration", files)


def table(rows: Iterable[Mapping[str, object]]) -> str:
    """Return rows with the same keys as an HTML table, aligned to the left."""
    return _draw("table", list(rows))


def patterns(comparisons: Iterable[Comparison]) -> str:
    """Return the article's six patterns as a table: its framework, and the stack that comes first here."""
    return table(_pattern_rows(comparisons))


def _pattern_rows(
    comparisons: Iterable[Comparison] | None = None, *, differences: bool = True
) -> list[Mapping[str, object]]:
    return [
        {
            "In this situation": row.pattern.situation,
            "the article says": row.pattern.framework,
            "first here": row.stack.title,
            **({"why": row.pattern.difference} if differences else {}),
        }
        for row in comparisons or compare_patterns()
    ]


def _neighbour_rows(selection: Selection) -> list[Mapping[str, object]]:
    return [
        {"name": project.name, "why": why, "what": project.line, "source": f"{project.source}, {project.checked}"}
        for project, why in selection.neighbours
    ]


def _linked(text: str, lab: str | None) -> Markup:
    """Escape the text and link its "lab NN" to the lab's notebook."""
    if lab is None:
        return escape(text)
    name = f"lab {lab.partition('_')[0]}"
    link = Markup("<a href='{}.ipynb' style='color:inherit;text-decoration:underline'>{}</a>").format(lab, name)
    return escape(text).replace(name, link)


HEIGHT = "500px"
QUESTIONS_WIDTH = "318px"
COLUMN_WIDTH = "336px"  # of the questions, with their scroll bar
CONFIGURATION = "Configuration"
TIPS = {
    "Why": "The reasons for the first place, with their evidence",
    "Why not": "Why the others are not first, or not ranked at all",
    "What if": "The single answers that would change the first place",
    "Neighbours": "Unranked projects that are worth a look for these answers",
    "Warnings": "The risks of this choice",
    CONFIGURATION: "Commands and files, ready to use, each setting explained",
    "Article": "The article's answer for the same situation",
}


VIEWS: Mapping[str, Callable[[Selection, Mapping[str, str]], str]] = {
    name: partial(_draw, name.lower().replace(" ", "_")) for name in TIPS if name != CONFIGURATION
}


class Chosen(NamedTuple):
    """The result for the answers, and the model to serve (None: a suitable one)."""

    selection: Selection
    model: str | None


class SelectorForm(Form[Chosen]):
    """The form. `verdicts`: of this machine's runs, by claim, shown beside the reasons."""

    def __init__(
        self, state: str | Mapping[str, Any] | None = None, *, verdicts: Mapping[str, str] | None = None
    ) -> None:
        self.verdicts = dict(verdicts or {})
        self.view = "Why"
        super().__init__(self.answer_to(state))

    @property
    def selection(self) -> Selection:
        return self.answer.selection

    @property
    def answers(self) -> dict[str, str]:
        return dict(self.selection.answers)

    @property
    def model(self) -> str | None:
        return self.answer.model

    @property
    def state(self) -> str:
        return write_state(self.answers, self.model)

    @property
    def config(self) -> tuple[ConfigFile, ...]:
        return configure(self.selection.winner.name, self.selection.answers, model=self.model)

    def answer_to(self, text: str | Mapping[str, Any] | None) -> Chosen:
        answers, model = read_state(text)
        return Chosen(select(answers), model)

    def build(self) -> Any:
        import ipywidgets as widgets

        self.fields = {name: _dropdown(name) for name in catalogue().questions}
        self.summary, self.detail = widgets.HTML(), widgets.HTML()
        self.buttons = {name: self._button(name) for name in TIPS}
        self.served = _text("Model", "The model to serve: a hub id or a folder; empty: a suitable one", "330px")
        self.exported = _text("State", "The answers as JSON: copy it, or paste another and press Enter", "100%")
        for field in self.fields.values():
            field.observe(lambda _: self.ask(self._from_fields), names="value")
        self.served.observe(lambda _: self.ask(self._with_model), names="value")
        detail = widgets.Box([self.detail], layout={"overflow": "auto", "flex": "1 1 0", "min_height": "0"})
        buttons = widgets.HBox(list(self.buttons.values()), layout={"flex": "0 0 auto", "flex_flow": "row wrap"})
        right = widgets.VBox(
            [self.summary, buttons, detail], layout={"flex": "1 1 0", "min_width": "0", "margin": "0 0 0 14px"}
        )
        left = widgets.VBox(self._questions(), layout={"flex": f"0 0 {COLUMN_WIDTH}", "overflow": "hidden auto"})
        body = widgets.HBox([left, right], layout={"height": HEIGHT})
        below = widgets.HBox([self.served, self.exported], layout={"overflow": "hidden"})
        return widgets.VBox([body, below, self.message], layout={"max_width": "1180px"})

    def _questions(self) -> list[Any]:
        import ipywidgets as widgets

        column: list[Any] = []
        for by, heading in (("article", "The article's questions"), ("ours", "What it leaves out")):
            html = f"<b style='{TEXT}'>{heading}</b>{LEAVE_ARROWS}"
            column.append(widgets.HTML(html, layout={"margin": "0", "height": "22px"}))
            column += [self.fields[name] for name, question in catalogue().questions.items() if question.asked_by == by]
        return column

    def _button(self, name: str) -> Any:
        import ipywidgets as widgets

        button = widgets.Button(description=name, tooltip=TIPS[name], layout={"width": "auto", "height": "26px"})
        button.on_click(lambda _: self._choose_view(name))
        return button

    def _choose_view(self, view: str) -> None:
        self.view = view
        self._draw_view()

    def _from_fields(self) -> Chosen:
        return Chosen(select({name: field.value for name, field in self.fields.items()}), self.model)

    def _with_model(self) -> Chosen:
        return Chosen(self.selection, read_state({"model": self.served.value.strip()})[1])

    def fill(self) -> None:
        for name, field in self.fields.items():
            field.value = self.selection.answers[name]
        self.served.value = self.model or ""

    def draw(self) -> None:
        self.summary.value = summary(self.selection)
        self.buttons["Warnings"].description = f"Warnings ({len(self.selection.warnings)})"
        self._draw_view()

    def _draw_view(self) -> None:
        if self.view == CONFIGURATION:
            html = f"<div><b>{escape(proof(self.selection.winner.name))}</b></div>{configuration(self.config)}"
        else:
            html = VIEWS[self.view](self.selection, self.verdicts)
        self.detail.value = f"<div style='{TEXT}'>{html}</div>"
        for name, button in self.buttons.items():
            button.button_style = "primary" if name == self.view else ""

    def plain(self) -> str:
        return to_text(self.selection, self.config, verdicts=self.verdicts, model=self.model)

    def html(self) -> str:
        return _draw("page", self.selection)

    def _ipython_display_(self) -> None:
        """Display nothing: as the last value of the cell that shows the form, it would be shown twice."""


def _dropdown(name: str) -> Any:
    import ipywidgets as widgets

    question = catalogue().questions[name]
    return labelled(
        widgets.Dropdown,
        question.label,
        f"{question.question} {question.help}",
        options=[(label, value) for value, label in question.options.items()],
        style={"description_width": "126px"},
        layout={"width": QUESTIONS_WIDTH, "height": "27px", "margin": "2px 0 1px 0"},
    )


def _text(label: str, tip: str, width: str) -> Any:
    import ipywidgets as widgets

    layout = {"width": width, "margin": "2px 8px 2px 0"}
    style = {"description_width": "initial"}
    return labelled(widgets.Text, label, tip, continuous_update=False, style=style, layout=layout)


def show(state: str | Mapping[str, Any] | None = None, *, verdicts: Mapping[str, str] | None = None) -> SelectorForm:
    """Show the form with the answers of `state` and return it; outside a notebook print the result.

    UsageError: a state that cannot be read.
    """
    return SelectorForm(state, verdicts=verdicts).show()
