"""Draw a recorded run's values into a chart, as hollow diamonds beside the values measured here."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from labkit.charts.draw import MEASURED
from labkit.vega import Spec, captioned
from labkit.words import number

COLOUR = "#6b4c1e"  # not the colour of any series
MARGIN = 1.04
Row = dict[str, Any]


def marks(spec: Mapping[str, Any]) -> Spec | None:
    """Return a chart's measured values as a small chart to be stored; None for a chart of another kind."""
    measured = _measured(spec)
    if measured is None:
        return None
    _, axes, rows = measured
    title = spec.get("title") or ""
    about = {
        "description": str(spec.get("description") or "chart"),
        "title": str(title.get("text", "") if isinstance(title, dict) else title),
    }
    encoding = {name: {"field": axes[name]["field"], "type": axes[name]["type"]} for name in ("x", "y")}
    if _is_bar(rows[0]):
        return {**about, "data": {"values": rows}, "mark": "bar", "encoding": encoding}
    return {**about, "data": {"values": rows}, "mark": "point", "encoding": {**encoding, "color": {"field": "series"}}}


def with_recorded(spec: Mapping[str, Any], recorded: Sequence[Row], *, label: str) -> Spec:
    """Return the chart with a diamond for each recorded row (see `marks`) that has a counterpart here.

    The chart stays unchanged without such rows, or if all values are identical, that is, computed and not measured.
    `label` gives machine and date below the title.
    """
    drawn: Spec = deepcopy(dict(spec))
    measured = _measured(drawn)
    if measured is None:
        return drawn
    panel, axes, own = measured
    here = {_place(row): _value(row) for row in own}
    rows = [dict(row) for row in recorded if _place(row) in here]
    if all(_value(row) == here[_place(row)] for row in rows):
        return drawn
    is_bar = _is_bar(own[0])
    domain = axes["x" if is_bar else "y"]["scale"]["domain"]
    values = [_value(row) for row in rows]
    domain[:] = min(domain[0], *values), max(domain[1], max(values) * MARGIN)
    shape = {"type": "point", "shape": "diamond", "filled": False, "size": 130, "strokeWidth": 2.2, "opacity": 1}
    mark = {**shape, "color": COLOUR, "aria": False, **({"yOffset": 9} if is_bar else {})}
    encoding = {"x": axes["x"], "y": axes["y"], "tooltip": [{"field": key} for key in rows[0]]}
    panel["layer"].append({"name": "recorded", "data": {"values": rows}, "mark": mark, "encoding": encoding})
    drawn = captioned(drawn, f"\u25c7 {label}")
    words = "; ".join(f"{_words(row)} {number(_value(row))}" for row in rows)
    drawn["description"] = f"{drawn.get('description', '')} Diamonds, {label}: {words}.".strip()
    return drawn


def _measured(spec: Mapping[str, Any]) -> tuple[Spec, Spec, list[Row]] | None:
    """Return the chart's first panel, the channels of its layer of measured values, and these values."""
    panel: Any = spec["vconcat"][0] if spec.get("vconcat") else spec
    for group in panel.get("layer", ()):
        for layer in group.get("layer", ()):
            if layer.get("name") == MEASURED:
                rows = [row for part in layer.get("layer", [group]) for row in part["data"]["values"]]
                keys = ("label", "value") if _is_bar(rows[0]) else ("x", "y", "series")
                return panel, group["encoding"], [{key: row[key] for key in keys} for row in rows]
    return None


def _is_bar(row: Row) -> bool:
    return "label" in row


def _place(row: Row) -> tuple[object, ...]:
    """Return what identifies a row in both runs."""
    return (row["label"],) if _is_bar(row) else (float(row["x"]), row["series"])


def _value(row: Row) -> float:
    return float(row["value"] if _is_bar(row) else row["y"])


def _words(row: Row) -> str:
    return str(row["label"]) if _is_bar(row) else f"{row['series']} at {number(float(row['x']))}"
