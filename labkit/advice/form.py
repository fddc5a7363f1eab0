"""One form for the tools that advise: a question in fields, its answer beside them, and the question as text.

Every change is answered at once. What cannot be answered is explained, and the last good answer stays.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from html import escape
from typing import Any, Generic, Self, TypeVar

from labkit import display
from labkit.errors import UsageError

Answer = TypeVar("Answer")

WRONG = (
    "line-height:1.35;white-space:normal;padding:4px 8px;border-left:5px solid #D55E00;background:#fff3ea;color:#262626"
)


class Form(ABC, Generic[Answer]):
    """A form and its last good answer. `refused` introduces the message about a question that has none."""

    refused = "Not taken"
    exported: Any
    """The text field with the state, which `build` makes."""

    def __init__(self, answer: Answer) -> None:
        import ipywidgets as widgets

        self.answer = answer
        self.message = widgets.HTML()
        self.box = self.build()
        self.exported.observe(self._pasted, names="value")
        self._filling = False
        self._show(fill=True)

    @property
    @abstractmethod
    def state(self) -> str:
        """The question as text: for another form, for the command line, for a lab's parameter."""

    @abstractmethod
    def answer_to(self, text: str) -> Answer:
        """The answer to a pasted question. UsageError where it cannot be read."""

    @abstractmethod
    def build(self) -> Any:
        """Make and arrange all widgets, `message` and `exported` among them."""

    @abstractmethod
    def fill(self) -> None:
        """Give every field its value in the answered question."""

    @abstractmethod
    def draw(self) -> None:
        """Show the answer."""

    def notes(self) -> str:
        """HTML below the answer, in the place of an error."""
        return ""

    @abstractmethod
    def plain(self) -> str:
        """The answer as text, for a terminal."""

    @abstractmethod
    def html(self) -> str:
        """The answer as HTML, for a page that draws no widgets."""

    def ask(self, new: Callable[[], Answer], *, fill: bool = True) -> None:
        """Show the new answer, with every field filled anew unless `fill` is false. A UsageError is shown instead."""
        if self._filling:  # the form itself has changed a field
            return
        try:
            self.answer = new()
        except UsageError as error:
            reason = ". ".join(filter(None, (error.what, error.remedy)))
            self.message.value = f"<div role='alert' style='{WRONG}'><b>{self.refused}:</b> {escape(reason)}.</div>"
        else:
            self._show(fill=fill)

    def show(self) -> Self:
        """Display the form; outside a notebook print the answer."""
        display.show(self._repr_mimebundle_())
        return self

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The form, and the answer for pages that draw no widgets."""
        found = dict(self.box._repr_mimebundle_(**options))
        return {**found, "text/plain": self.plain(), "text/html": self.html()}

    def _show(self, *, fill: bool) -> None:
        self._filling = True
        try:
            if fill:
                self.fill()
            self.draw()
            self.exported.value = self.state
            self.message.value = self.notes()  # last: an error goes away when the new answer is there
        finally:
            self._filling = False

    def _pasted(self, change: dict[str, Any]) -> None:
        if change["new"].strip() != self.state.strip():
            self.ask(lambda: self.answer_to(change["new"]))


def made(kind: Any, label: str, tip: str, **options: Any) -> Any:
    """A labelled widget with a tooltip."""
    # ipywidgets 8 shows a field's own tooltip only where there is no label, so it goes into the label. No dollar sign
    # in it: two of them would be set as a formula.
    tip = tip.replace("$", "USD")
    named = f'<span title="{escape(tip, quote=True)}">{escape(label)}</span>'
    return kind(description=named, description_allow_html=True, tooltip=tip, **options)
