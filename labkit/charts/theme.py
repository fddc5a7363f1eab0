"""What every chart made with Altair has: title, caption, description, labels, reference lines."""

from dataclasses import dataclass
from typing import Any

from labkit.errors import UsageError
from labkit.vega import BLACK, WIDTH, config
from labkit.words import amount

_caption = {"text": ""}


def set_caption(text: str) -> None:
    """The line under every title from now on: the machine on which the numbers were measured."""
    _caption["text"] = text


def finish(chart: Any, *, title: str, description: str, caption: str | None = None) -> Any:
    """Gives an Altair chart title, caption, look and description (which becomes the drawing's aria-label).

    Without `caption` the one that `enable` was given is used. Raises UsageError without a description: whoever cannot
    see the chart has nothing else.
    """
    if not description.strip():
        raise UsageError(f"the chart {title!r} has no description", remedy="say in a sentence what it shows")
    import altair as alt

    below = _caption["text"] if caption is None else caption
    heading = alt.TitleParams(title, subtitle=below) if below else alt.TitleParams(title)
    return chart.properties(title=heading, description=description).configure(**config())


def labelled(chart: Any, **text: Any) -> Any:
    """Text with a white halo, so that it can be read where it crosses a line. Takes what `mark_text` takes."""
    halo = chart.mark_text(aria=False, stroke="white", strokeWidth=7, strokeJoin="round", **text)
    return halo + chart.mark_text(**text)


# --- references ---


ROW = 18
NEAR = 0.1  # of an axis about 210 pixels high: a label's height
# Dark, so that none is taken for a series, and told apart by their dashes as well as by colour.
STYLES: dict[str, tuple[str, list[int]]] = {
    "your guess": (BLACK, [7, 4]),
    "the article": ("#8a2f6b", [2, 3]),
    "the model": ("#00573f", [14, 3]),
    "SLO": ("#595959", [4, 2]),
}


@dataclass(frozen=True)
class Reference:
    """One rule: `kind` is a key of STYLES, `value` in the axis's unit."""

    kind: str
    value: float
    unit: str

    @property
    def text(self) -> str:
        """The rule's label."""
        return f"{self.kind}: {amount(self.value, self.unit)}"


def references(
    unit: str,
    *,
    guess: float | None = None,
    article: float | None = None,
    model: float | None = None,
    slo: float | None = None,
) -> list[Reference]:
    """Those references that there are, smallest first."""
    values = {"your guess": guess, "the article": article, "the model": model, "SLO": slo}
    given = [Reference(kind, float(value), unit) for kind, value in values.items() if value is not None]
    return sorted(given, key=lambda one: one.value)


def vertical(found: list[Reference], *, domain: tuple[float, float], scale: Any) -> list[Any]:
    """Rules on a horizontal value axis. Each label has a row of its own above the plot, so that none overlaps."""
    import altair as alt

    layers = []
    for row, one in enumerate(found):
        colour, dash = STYLES[one.kind]
        right = (one.value - domain[0]) / (domain[1] - domain[0]) > 0.5
        base = alt.Chart(alt.Data(values=[{"at": one.value, "text": one.text}])).encode(x=alt.X("at:Q", scale=scale))
        top = -ROW * (len(found) - row)
        layers.append(base.mark_rule(color=colour, strokeDash=dash, strokeWidth=2.5, y=top, y2=alt.expr("height")))
        place = {"align": "right", "dx": -6} if right else {"align": "left", "dx": 6}
        layers.append(base.mark_text(y=top + ROW / 2, baseline="middle", **place).encode(text="text:N"))
    return layers


def horizontal(found: list[Reference], *, domain: tuple[float, float], scale: Any) -> list[Any]:
    """Rules on a vertical value axis, smallest first. A label stands above its rule, or below if the next is near."""
    import altair as alt

    rules, labels = [], []
    for n, one in enumerate(found):
        colour, dash = STYLES[one.kind]
        base = alt.Chart(alt.Data(values=[{"at": one.value, "text": one.text}])).encode(y=alt.Y("at:Q", scale=scale))
        rules.append(base.mark_rule(color=colour, strokeDash=dash, strokeWidth=2.5, x=0, x2=WIDTH))
        next_is_near = n + 1 < len(found) and (found[n + 1].value - one.value) / (domain[1] - domain[0]) < NEAR
        side = {"baseline": "top", "dy": 6} if next_is_near else {"baseline": "bottom", "dy": -4}
        # Of three near ones the middle one has no free side: it moves to the other end.
        place = {"x": WIDTH - 8, "align": "right"} if n == 1 and len(found) == 3 else {"x": 8, "align": "left"}
        labels.append(labelled(base.encode(text="text:N"), **side, **place))
    return rules + labels
