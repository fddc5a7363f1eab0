"""A recorded run's values as hollow diamonds beside what was measured here, drawn into a finished specification."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from labkit.charts.draw import MEASURED
from labkit.vega import Spec
from labkit.words import number

COLOUR = "#6b4c1e"  # no series has it
ROOM = 1.04
Row = dict[str, Any]


def marks(spec: Mapping[str, Any]) -> Spec | None:
    """What a chart shows as measured, as a small chart of its own, to be kept; None for a chart of another kind."""
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
    """The chart with a diamond for each recorded row that has a counterpart here; unchanged where none has, or where
    all are the same to the last bit: what is computed and not measured.

    `recorded` are the rows that `marks` keeps. `label` says on which machine and when, below the title.
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
    domain[:] = min(domain[0], *values), max(domain[1], max(values) * ROOM)
    shape = {"type": "point", "shape": "diamond", "filled": False, "size": 130, "strokeWidth": 2.2, "opacity": 1}
    mark = {**shape, "color": COLOUR, "aria": False, **({"yOffset": 9} if is_bar else {})}
    encoding = {"x": axes["x"], "y": axes["y"], "tooltip": [{"field": key} for key in rows[0]]}
    panel["layer"].append({"name": "recorded", "data": {"values": rows}, "mark": mark, "encoding": encoding})
    drawn["title"] = _titled(drawn, f"\u25c7 {label}")
    words = "; ".join(f"{_words(row)} {number(_value(row))}" for row in rows)
    drawn["description"] = f"{drawn.get('description', '')} Diamonds, {label}: {words}.".strip()
    return drawn


def _measured(spec: Mapping[str, Any]) -> tuple[Spec, Spec, list[Row]] | None:
    """The chart's first panel, the channels of its layer of measured values, and these values."""
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
    """What two rows must share to be set beside each other."""
    return (row["label"],) if _is_bar(row) else (float(row["x"]), row["series"])


def _value(row: Row) -> float:
    return float(row["value"] if _is_bar(row) else row["y"])


def _words(row: Row) -> str:
    return str(row["label"]) if _is_bar(row) else f"{row['series']} at {number(float(row['x']))}"


def _titled(spec: Spec, line: str) -> Spec:
    title = spec.get("title") or {"text": ""}
    title = dict(title) if isinstance(title, dict) else {"text": title}
    below = title.get("subtitle") or []
    below = list(below) if isinstance(below, list) else [below]
    return {**title, "subtitle": [*below, line]}
