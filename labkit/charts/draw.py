"""Building blocks of all charts: channels, marks, layers, panels, labelled rules.

Charts are plain Vega-Lite 5 specifications. A layer inherits its panel's data and channels and names only what differs
(`{"x": "low"}` is the panel's x axis with another field), so each axis is described once.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labkit.vega import BLACK, Spec
from labkit.words import amount

Rows = Iterable[Mapping[str, Any]]

PALE, ARTICLE = "#c9c9c9", "#8a2f6b"
MEASURED = "measured"  # the name of the layer with measurements: a recorded run is drawn beside it


def quantity(
    field: str,
    title: str | Sequence[str] | None = None,
    domain: tuple[float, float] | None = None,
    *,
    log: bool = False,
    **axis: Any,
) -> Spec:
    """A numeric channel. Without `domain` Vega chooses it; `axis`: Vega-Lite's axis properties."""
    scale = {} if domain is None else {"domain": list(domain), "nice": False}
    channel = {"field": field, "type": "quantitative", "title": title, "axis": axis}
    return {**channel, "scale": {**scale, "type": "log"} if log else scale}


def labels(
    field: str, *, title: str | None = None, sort: Sequence[object] | None = None, framed: bool = False, **axis: Any
) -> Spec:
    """A channel of names down the left side, in the order of `sort` (default: order of the data)."""
    axis = {"domain": framed, "ticks": framed, **axis}
    return {"field": field, "type": "ordinal" if title else "nominal", "title": title, "sort": sort, "axis": axis}


def series(field: str, names: Iterable[str], look: Iterable[Any] | None = None, **legend: Any) -> Spec:
    """A channel that distinguishes series by the palette's colours or by `look`; `legend`: its properties."""
    scale: Spec = {"domain": list(names)} | ({"range": list(look)} if look is not None else {})
    return {"field": field, "type": "nominal", "title": None, "scale": scale, "legend": legend}


def mark(kind: str, encoding: Mapping[str, Any] | None = None, rows: Rows | Spec | None = None, /, **look: Any) -> Spec:
    """One layer. A channel given as text names a field; `rows`: the layer's data; `look`: the mark's properties."""
    return {"mark": {"type": kind, **look}} | _inside(encoding, rows)


def layers(
    marks: Iterable[Spec], encoding: Mapping[str, Any] | None = None, rows: Rows | Spec | None = None, /, **panel: Any
) -> Spec:
    """Stacked layers that share data and channels; `panel`: width, height, title."""
    return {"layer": list(marks), **panel} | _inside(encoding, rows)


def heading(text: str) -> Spec:
    """The title of one of several panels."""
    return {"text": text, "fontSize": 14, "fontWeight": "normal", "offset": 6}


def words(encoding: Mapping[str, Any], rows: Rows | None = None, /, **look: Any) -> Spec:
    """Text with a white halo, legible where it crosses a line."""
    halo = mark("text", aria=False, stroke="white", strokeWidth=7, strokeJoin="round", **look)
    return layers([halo, mark("text", **look)], {"text": "text", **encoding}, rows)


def column(parts: Sequence[Spec], *, spacing: int, **resolve: str) -> Spec:
    """Panels below each other; `resolve`: "shared" or "independent" scale for each channel."""
    return {"vconcat": list(parts), "spacing": spacing, "resolve": {"scale": resolve}}


def table(rows: Iterable[Sequence[object]], **columns: str) -> Spec:
    """Data as CSV, with each column's type: hundreds of rows as JSON objects would fill half a notebook."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return {"values": text.getvalue(), "format": {"type": "csv", "parse": columns}}


def _inside(encoding: Mapping[str, Any] | None, rows: Rows | Spec | None) -> Spec:
    spec: Spec = {"encoding": {name: _channel(name, given) for name, given in encoding.items()}} if encoding else {}
    if rows is not None:
        spec["data"] = rows if isinstance(rows, dict) else {"values": list(rows)}
    return spec


def _channel(name: str, given: Any) -> Any:
    kind = {"type": "quantitative"} if name in ("x", "y") else {}
    return {"field": given, **kind} if isinstance(given, str) else given


ROW = 18
# Dark, so that no rule is mistaken for a series; dashes distinguish them as well as colour.
STYLES: dict[str, tuple[str, list[int]]] = {
    "your guess": (BLACK, [7, 4]),
    "the article": (ARTICLE, [2, 3]),
    "the model": ("#00573f", [14, 3]),
    "SLO": ("#595959", [4, 2]),
}


@dataclass(frozen=True)
class ReferenceLine:
    """A labelled line across a chart: `kind` is a key of STYLES, `value` in the axis's unit."""

    kind: str
    value: float
    unit: str
    name: str = ""

    @property
    def row(self) -> Spec:
        """Its position and its label."""
        return {"at": self.value, "text": f"{self.name or self.kind}: {amount(self.value, self.unit)}"}

    @property
    def look(self) -> Spec:
        """The line's colour and dashes."""
        colour, dash = STYLES[self.kind]
        return {"color": colour, "strokeDash": dash, "strokeWidth": 2.5}


def rules(
    unit: str,
    *,
    guess: float | None = None,
    article: float | None = None,
    slo: float | None = None,
) -> list[ReferenceLine]:
    """Return a line for each given reference, smallest value first."""
    values = {"your guess": guess, "the article": article, "SLO": slo}
    given = [ReferenceLine(kind, float(value), unit) for kind, value in values.items() if value is not None]
    return sorted(given, key=lambda rule: rule.value)


def upright(references: Sequence[ReferenceLine], domain: tuple[float, float]) -> list[Spec]:
    """Draw rules on a horizontal value axis. Each label has its own row above the plot."""
    drawn = []
    for row, rule in enumerate(references):
        top = -ROW * (len(references) - row)
        right = (rule.value - domain[0]) / (domain[1] - domain[0]) > 0.5
        side = {"align": "right", "dx": -6} if right else {"align": "left", "dx": 6}
        line = mark("rule", y=top, y2={"expr": "height"}, **rule.look)
        label = mark("text", {"text": "text"}, y=top + ROW / 2, baseline="middle", **side)
        drawn.append(layers([line, label], {"x": "at"}, [rule.row]))
    return drawn
