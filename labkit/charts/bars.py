"""Measured quantities side by side, each with its interval, beside what was guessed and what others say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from labkit.charts.references import Reference, references, vertical
from labkit.charts.theme import INK, SKY, WIDTH, finish, labelled
from labkit.errors import UsageError
from labkit.teaching.words import amount, span

STEP = 52


@dataclass(frozen=True)
class Bar:
    """One measured quantity; `low` and `high` are the ends of its interval, where it has one."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None


def bars_with_intervals(
    rows: Sequence[Bar],
    *,
    title: str,
    unit: str,
    guess: float | None = None,
    article: float | None = None,
    model: float | None = None,
    axis_title: str | None = None,
    caption: str | None = None,
) -> Any:
    """A bar for each row with its interval and value; guess, article and model as labelled rules.

    Raises UsageError without rows.
    """
    if not rows:
        raise UsageError(f"the chart {title!r} has no rows", remedy="pass at least one Bar")
    import altair as alt

    found = references(unit, guess=guess, article=article, model=model)
    top = max([row.high or row.value for row in rows] + [row.value for row in rows] + [one.value for one in found])
    domain = (min(0.0, *(row.value for row in rows), 0.0), top * 1.02)
    scale = alt.Scale(domain=list(domain), nice=False)
    data = alt.Data(values=[_values(row, unit) for row in rows])
    x = alt.X("value:Q", title=axis_title or unit, scale=scale, axis=alt.Axis(tickCount=6))
    y = alt.Y("label:N", title=None, sort=None, axis=alt.Axis(labelLimit=260, domain=False, ticks=False))
    base = alt.Chart(data).encode(y=y)
    layers = [base.mark_bar(color=SKY, height=20, yOffset=9).encode(x=x), *_intervals(base, scale)]
    layers += vertical(found, domain=domain, scale=scale)
    # Values stand above their bars, where no interval crosses them, and on top of the rules.
    values = base.encode(text="text:N")
    layers.append(labelled(values, align="left", baseline="middle", x=2, dy=-11, fontWeight="bold"))
    drawn = alt.layer(*layers).properties(width=WIDTH, height=STEP * len(rows))
    return finish(drawn, title=title, description=_description(rows, unit, found, title), caption=caption)


def _intervals(base: Any, scale: Any) -> list[Any]:
    import altair as alt

    only = base.transform_filter("datum.low != null").encode(x=alt.X("low:Q", scale=scale))
    ends = [only.encode(x=alt.X(f"{end}:Q", scale=scale)) for end in ("low", "high")]
    caps = [one.mark_tick(color=INK, thickness=2, size=12, yOffset=9) for one in ends]
    return [only.mark_rule(color=INK, strokeWidth=2, yOffset=9).encode(x2="high:Q"), *caps]


def _values(row: Bar, unit: str) -> dict[str, Any]:
    has_interval = row.low is not None and row.high is not None
    return {
        "label": row.label,
        "value": row.value,
        "low": row.low if has_interval else None,
        "high": row.high if has_interval else None,
        "text": _text(row, unit),
    }


def _text(row: Bar, unit: str) -> str:
    text = amount(row.value, unit)
    return text if row.low is None or row.high is None else f"{text}  ({span(row.low, row.high, unit)})"


def _description(rows: Sequence[Bar], unit: str, found: list[Reference], title: str) -> str:
    bars = "; ".join(f"{row.label} {_text(row, unit)}" for row in rows)
    beside = "".join(f"; {one.text}" for one in found)
    return f"Bars, {title}: {bars}{beside}."
