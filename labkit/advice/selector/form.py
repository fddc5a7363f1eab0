"""The selector as a widget around `select`: questions on the left, the answer on the right.

form = selector.show()          # or show(state), with the state that another form exported
form.answers, form.selection    # the answers in the form, and the result
form.state                      # one line of JSON, for another form, `labkit select --answers` or a lab's parameter
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from labkit.advice.form import Form, labelled
from labkit.advice.selector import (
    Comparison,
    ConfigFile,
    Ranked,
    Reason,
    Selection,
    catalogue,
    compare_patterns,
    configure,
    read_state,
    select,
    write_state,
)
from labkit.advice.selector.configs import proof
from labkit.advice.selector.fit import in_words as fit_in_words
from labkit.advice.selector.words import by_winner, grounds, to_text
from labkit.display import LEAVE_ARROWS

INK = "color:var(--jp-ui-font-color1,#212121)"
ACCENT = "var(--jp-brand-color1,#0072B2)"
RULE = "1px solid var(--jp-border-color1,#8c8c8c)"
TEXT = f"{INK};font-size:13px;line-height:1.4"
CODE = "font-family:var(--jp-code-font-family,monospace);font-size:12px;line-height:1.35"
PROS = 6


def summary(selection: Selection) -> str:
    """Return the recommendation, the ranking as bars, the article's answer, and the winner without opinions."""
    winner, known = selection.winner, catalogue()
    layers = f"engine: <b>{escape(winner.stack.engine)}</b> · orchestrator: <b>{escape(winner.stack.orchestrator)}</b>"
    contained = "a layer of this" if selection.article.in_stack(winner.stack) else "not part of this"
    article = f"The article's tree says <b>{selection.article.framework}</b>: {contained}."
    second = f"Without opinions: <b>{escape(known.stacks[selection.without_opinions].title)}</b>."
    top = max(1, *(ranked.score or 0 for ranked in selection.ranking))
    rows = "".join(_bar(ranked, top) for ranked in selection.ranking)
    return (
        f"<div style='{TEXT}'><div role='status' style='font-size:20px;line-height:1.2'><b>{escape(winner.title)}</b>"
        f"</div><div>{layers}</div><table style='{TEXT};border-collapse:collapse;width:100%;margin:4px 0'>"
        f"<caption style='display:none'>Ranking with points</caption>{rows}</table>"
        f"<div>{fit_in_words(selection.answers)}</div><div>{article}</div><div>{second}</div></div>"
    )


def _bar(ranked: Ranked, top: int) -> str:
    cell = "padding:1px 8px 1px 0;border:0;text-align:left;background:none"
    points = "not ranked" if ranked.score is None else f"{ranked.score}"
    width = 0 if ranked.score is None else round(100 * max(0, ranked.score) / top)
    bar = f"<div style='background:{ACCENT};height:11px;width:{width}%'></div>"
    return (
        f"<tr style='background:none'><td style='{cell};width:210px;white-space:nowrap'>{escape(ranked.title)}</td>"
        f"<td style='{cell}'>{bar}</td><td style='{cell};width:72px;white-space:nowrap'>{points}</td></tr>"
    )


def why(selection: Selection, verdicts: Mapping[str, str]) -> str:
    winner = selection.winner
    cons = _heading("What speaks against it") + _reasons(winner.cons, verdicts) if winner.cons else ""
    more = len(winner.pros) - PROS
    rest = f"<div>and {more} smaller ones</div>" if more > 0 else ""
    return f"<div>{escape(winner.stack.what)}</div>{_reasons(winner.pros[:PROS], verdicts)}{rest}{cons}"


def why_not(selection: Selection, verdicts: Mapping[str, str]) -> str:
    """Return why each other stack is excluded, or what the winner has over it."""
    return "".join(_heading(ranked.title) + _against(ranked, verdicts) for ranked in selection.ranking[1:])


def _against(ranked: Ranked, verdicts: Mapping[str, str]) -> str:
    if ranked.excluded:
        return _list(f"<b>out</b> · {escape(why.text)} {_small(why, verdicts)}" for why in ranked.excluded)
    behind = [f"<b>{why.points}</b> behind · {escape(why.text)} {_small(why, verdicts)}" for why in ranked.behind]
    return _list(behind or ["equal points, more parts"])


def what_if(selection: Selection, _: Mapping[str, str]) -> str:
    """Return the single answers that would change the first place, by the stack that they would bring there."""
    if not selection.flips:
        return "<div>No single answer changes the first place.</div>"
    known = catalogue()
    parts = ["<div>With one other answer and all else unchanged, this comes first:</div>"]
    for winner, flips in by_winner(selection.flips).items():
        parts.append(_heading(known.stacks[winner].title))
        questions = ((known.questions[flip.question], flip.answer) for flip in flips)
        parts.append(_list(f"{escape(q.label)}: <b>{escape(q.options[answer])}</b>" for q, answer in questions))
    return "".join(parts)


def warnings(selection: Selection, _: Mapping[str, str]) -> str:
    if not selection.warnings:
        return "<div>None for these answers.</div>"
    return _list(f"{escape(warning.text)} {_where(warning.claim, warning.lab)}" for warning in selection.warnings)


def neighbours(selection: Selection, _: Mapping[str, str]) -> str:
    """Return the unranked projects that are worth a look for these answers."""
    if not selection.neighbours:
        return "<div>None for these answers.</div>"
    return table(
        {"name": project.name, "why": why, "what": project.line, "source": f"{project.source}, {project.checked}"}
        for project, why in selection.neighbours
    )


def article(selection: Selection, _: Mapping[str, str]) -> str:
    """Return the article's answer, and its six patterns beside ours."""
    branch = selection.article
    tree = f"Its tree stops at <i>{escape(branch.question)}</i> and says <b>{branch.framework}</b>."
    return f"<div>{tree}</div>{patterns(compare_patterns(), differences=False)}"


VIEWS: Mapping[str, Callable[[Selection, Mapping[str, str]], str]] = {
    "Why": why,
    "Why not": why_not,
    "What if": what_if,
    "Neighbours": neighbours,
    "Warnings": warnings,
    "Article": article,
}


def configuration(files: Sequence[ConfigFile]) -> str:
    box = f"{CODE};{INK};margin:2px 0;padding:4px 6px;border:{RULE};overflow-x:auto;white-space:pre;background:none"
    html = ""
    for file in files:
        settings = (
            f"<code style='{CODE};{INK};background:none'>{escape(f'{setting.name} {setting.value}'.strip())}</code> · "
            f"{escape(setting.why)}"
            for setting in file.settings
        )
        html += f"{_heading(file.name)}<pre style='{box}'>{escape(file.text.strip())}</pre>{_list(settings)}"
    return html


def patterns(comparisons: Iterable[Comparison], *, differences: bool = True) -> str:
    """Return the article's six patterns as a table: its framework, and the stack that comes first here."""
    return table(
        {
            "In this situation": row.pattern.situation,
            "the article says": row.pattern.framework,
            "first here": row.stack.title,
            **({"why": row.pattern.difference} if differences else {}),
        }
        for row in comparisons
    )


def table(rows: Iterable[Mapping[str, object]]) -> str:
    """Return rows with the same keys as a table, aligned to the left."""
    cell, rows = "text-align:left;vertical-align:top;padding:1px 10px 1px 0;background:none", list(rows)
    head = "".join(f"<th style='{cell}'>{escape(name)}</th>" for name in (rows[0] if rows else ()))
    lines = ("".join(_cell(str(text), cell) for text in row.values()) for row in rows)
    body = "".join(f"<tr style='background:none'>{line}</tr>" for line in lines)
    return f"<table style='{TEXT};border-collapse:collapse'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(text: str, style: str) -> str:
    """Short texts, such as dates, do not wrap."""
    return f"<td style='{style}{';white-space:nowrap' if len(text) <= 12 else ''}'>{escape(text)}</td>"


def _reasons(reasons: Iterable[Reason], verdicts: Mapping[str, str]) -> str:
    return _list(f"<b>{reason.points:+d}</b> · {escape(reason.text)} {_small(reason, verdicts)}" for reason in reasons)


def _small(reason: Reason, verdicts: Mapping[str, str]) -> str:
    grounds_text = _linked(grounds(reason, verdicts), reason.lab)
    return f"<span style='white-space:nowrap;font-size:12px'>[{grounds_text}]</span>"


def _where(claim: str | None, lab: str | None) -> str:
    parts = [part for part in (claim, f"lab {lab.partition('_')[0]}" if lab else None) if part]
    return f"<span style='font-size:12px'>[{_linked(', '.join(parts), lab)}]</span>" if parts else ""


def _linked(text: str, lab: str | None) -> str:
    """Return the text with "lab NN" linked to the lab's notebook."""
    safe = escape(text)
    if lab is None:
        return safe
    number = lab.partition("_")[0]
    link = f"<a href='{lab}.ipynb' style='color:inherit;text-decoration:underline'>lab {number}</a>"
    return safe.replace(f"lab {number}", link)


def _heading(text: str) -> str:
    return f"<div style='margin-top:5px'><b>{escape(text)}</b></div>"


def _list(items: Iterable[str]) -> str:
    body = "".join(f"<li style='margin:1px 0'>{item}</li>" for item in items)
    return f"<ul style='margin:1px 0;padding-left:18px'>{body}</ul>"


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
        questions = catalogue().questions
        answers = " · ".join(
            f"{escape(questions[name].label)}: {escape(questions[name].options[option])}"
            for name, option in self.answers.items()
        )
        return f"{summary(self.selection)}<div style='{TEXT}'>{answers}{why(self.selection, {})}</div>"

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
