"""A recorded run's values as hollow diamonds beside what was measured here, drawn into a finished specification."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

from labkit.words import number

COLOUR = "#6b4c1e"  # no series has it
BARS, POINTS = ("label", "value"), ("x", "y", "series")
ROOM = 1.04
Row = dict[str, Any]
Spec = dict[str, Any]


def marks(spec: Mapping[str, Any]) -> Spec | None:
    """The bars or points of a chart as a small chart of its own, to be kept; None for a chart of another kind."""
    found = _find(spec)
    if found is None:
        return None
    panel, keys = found
    rows = [{key: row[key] for key in keys} for unit in _units(panel, keys) for row in _values(unit, panel)]
    x, y = ("value", "label") if keys == BARS else ("x", "y")
    encoding = {"x": {"field": x, "type": "quantitative"}, "y": {"field": y, "type": "nominal"}}
    if keys == POINTS:
        encoding = {**encoding, "y": {"field": y, "type": "quantitative"}, "color": {"field": "series"}}
    mark = "bar" if keys == BARS else "point"
    about = {"description": str(spec.get("description") or "chart"), "title": _title(spec)}
    return {**about, "data": {"values": rows}, "mark": mark, "encoding": encoding}


def with_recorded(spec: Mapping[str, Any], recorded: Sequence[Row], *, label: str, caution: str = "") -> Spec:
    """The chart with a diamond for each recorded row that has a counterpart here; unchanged where none has, or where
    all are the same to the last bit: what is computed and not measured.

    `recorded` are the rows that `marks` keeps. `label` says on which machine and when, below the title, and
    `caution`, on a line of its own, what was not alike: in one they would be wider than the chart.
    """
    drawn: Spec = deepcopy(dict(spec))
    found = _find(drawn)
    if found is None:
        return drawn
    panel, keys = found
    units = list(_units(panel, keys))
    channel, field = ("x", "value") if keys == BARS else ("y", "y")
    here = {_place(row, keys): row[field] for unit in units for row in _values(unit, panel)}
    rows = [dict(row) for row in recorded if set(keys) <= row.keys() and _place(row, keys) in here]
    if all(row[field] == here[_place(row, keys)] for row in rows):
        return drawn
    _make_room(panel, channel, [float(row[field]) for row in rows])
    panel["layer"].append(_diamonds(units[0], rows, keys))
    drawn["title"] = _titled(drawn, f"\u25c7 {label}", *filter(None, [caution]))
    words = "; ".join(f"{_words(row, keys)} {number(float(row[field]))}" for row in rows)
    whose = f"{label} {caution}".rstrip()
    drawn["description"] = f"{drawn.get('description', '')} Diamonds, {whose}: {words}.".strip()
    return drawn


def _find(spec: Mapping[str, Any]) -> tuple[Spec, tuple[str, ...]] | None:
    """The chart's (first) panel, and which of the two kinds its marks are."""
    panel = spec["vconcat"][0] if spec.get("vconcat") else spec
    if not isinstance(panel, dict) or not isinstance(panel.get("layer"), list):
        return None
    return next(((panel, keys) for keys in (BARS, POINTS) if any(_units(panel, keys))), None)


def _units(panel: Spec, keys: tuple[str, ...]) -> Iterator[Spec]:
    """The layers that draw measured rows with these keys: bars, or filled points."""
    for unit in panel["layer"]:
        mark = unit.get("mark") if isinstance(unit, dict) else None
        kind = mark.get("type") if isinstance(mark, dict) else None
        wanted = "bar" if keys == BARS else "point"
        rows = _values(unit, panel) if kind == wanted else []
        is_guess = isinstance(mark, dict) and mark.get("shape") == "diamond"
        fields = {each.get("field") for each in unit.get("encoding", {}).values() if isinstance(each, dict)}
        if rows and not is_guess and set(keys) <= rows[0].keys() and set(keys[:2]) <= fields:
            yield unit


def _values(unit: Spec, panel: Spec) -> list[Row]:
    data = unit.get("data") or panel.get("data") or {}
    values = data.get("values")
    return values if isinstance(values, list) else []


def _place(row: Row, keys: tuple[str, ...]) -> tuple[object, ...]:
    """What two rows must share to be set beside each other."""
    return (row["label"],) if keys == BARS else (float(row["x"]), row["series"])


def _words(row: Row, keys: tuple[str, ...]) -> str:
    return str(row["label"]) if keys == BARS else f"{row['series']} at {number(float(row['x']))}"


def _make_room(panel: Spec, channel: str, values: list[float]) -> None:
    """Widens the panel's axis where a recorded value lies beyond its end."""
    for unit in _every(panel):
        scale = unit.get("encoding", {}).get(channel, {}).get("scale") or {}
        domain = scale.get("domain")
        if isinstance(domain, list) and len(domain) == 2 and all(isinstance(end, int | float) for end in domain):
            scale["domain"] = [min(domain[0], *values), max(domain[1], max(values) * ROOM)]


def _every(panel: Spec) -> Iterator[Spec]:
    for unit in panel.get("layer", []):
        yield unit
        yield from _every(unit)


def _diamonds(unit: Spec, rows: list[Row], keys: tuple[str, ...]) -> Spec:
    encoding = {channel: deepcopy(unit["encoding"][channel]) for channel in ("x", "y")}
    aside = {"yOffset": 9} if keys == BARS else {}
    shape = {"type": "point", "shape": "diamond", "filled": False, "size": 130, "strokeWidth": 2.2, "opacity": 1}
    tooltip = [{"field": key, "title": key} for key in keys]
    mark = {**shape, "color": COLOUR, "aria": False, **aside}
    return {"data": {"values": rows}, "mark": mark, "encoding": {**encoding, "tooltip": tooltip}, "name": "recorded"}


def _title(spec: Mapping[str, Any]) -> str:
    title = spec.get("title") or ""
    return str(title.get("text", "") if isinstance(title, dict) else title)


def _titled(spec: Spec, *lines: str) -> Spec:
    title = spec.get("title") or {"text": ""}
    title = dict(title) if isinstance(title, dict) else {"text": title}
    below = title.get("subtitle") or []
    below = list(below) if isinstance(below, list) else [below]
    return {**title, "subtitle": [*below, *lines]}
