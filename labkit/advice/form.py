"""Base class of the advisers' forms: fields for the question, the answer, and the question as text to copy or paste.

Every change updates the answer. An invalid question gets a message, and the last valid answer stays.
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
    """A form and its last valid answer. `refused` introduces the message about an invalid question."""

    refused = "Not accepted"
    exported: Any
    """The text field with the state; `build` creates it."""

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
        """The question as text, for another form, the command line or a lab's parameter."""

    @abstractmethod
    def answer_to(self, text: str) -> Answer:
        """Return the answer to a pasted question. UsageError: text that cannot be read."""

    @abstractmethod
    def build(self) -> Any:
        """Create and arrange all widgets, including `message` and `exported`."""

    @abstractmethod
    def fill(self) -> None:
        """Set every field to its value in the answered question."""

    @abstractmethod
    def draw(self) -> None:
        """Show the answer."""

    def notes(self) -> str:
        """Return HTML to show below the answer if there is no error."""
        return ""

    @abstractmethod
    def plain(self) -> str:
        """Return the answer as text for a terminal."""

    @abstractmethod
    def html(self) -> str:
        """Return the answer as HTML for a page without widgets."""

    def ask(self, answer: Callable[[], Answer], *, fill: bool = True) -> None:
        """Compute and show an answer, or the UsageError that it raises; set all fields if `fill`."""
        if self._filling:  # the form itself has changed a field
            return
        try:
            self.answer = answer()
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
        return {**self.box._repr_mimebundle_(**options), "text/plain": self.plain(), "text/html": self.html()}

    def _show(self, *, fill: bool) -> None:
        self._filling = True
        try:
            if fill:
                self.fill()
            self.draw()
            self.exported.value = self.state
            self.message.value = self.notes()  # last, so that an error disappears with the new answer
        finally:
            self._filling = False

    def _pasted(self, change: dict[str, Any]) -> None:
        if change["new"].strip() != self.state.strip():
            self.ask(lambda: self.answer_to(change["new"]))


def labelled(kind: Any, label: str, tip: str, **options: Any) -> Any:
    """Return a widget of a `kind` with a label and a tooltip."""
    # ipywidgets 8 shows a field's own tooltip only if it has no label, so the label gets it, too. Two dollar signs
    # would be typeset as a formula.
    tip = tip.replace("$", "USD")
    description = f'<span title="{escape(tip, quote=True)}">{escape(label)}</span>'
    return kind(description=description, description_allow_html=True, tooltip=tip, **options)
