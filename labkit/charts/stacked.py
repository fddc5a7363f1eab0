"""Wholes and their parts: one bar for each whole, cut into the same kinds of parts."""

from collections.abc import Mapping
from typing import Any

from labkit.charts.theme import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, SKY, VERMILLION, WIDTH, finish
from labkit.errors import UsageError
from labkit.teaching.words import amount

STEP = 46
COLOURS = (BLUE, ORANGE, VERMILLION, SKY, GREEN, PURPLE)
LABEL_FROM = 0.075  # of the longest bar: a shorter part has no room for its value


def stacked_bars(
    rows: Mapping[str, Mapping[str, float]], *, title: str, unit: str, rest: str = "", caption: str | None = None
) -> Any:
    """A bar for each row, a part for each name, in the order given; the part called `rest` is drawn pale.

    UsageError without rows or with a part below zero.
    """
    if not rows or any(value < 0 for parts in rows.values() for value in parts.values()):
        raise UsageError(f"the chart {title!r} has no rows, or a part below zero", remedy="pass parts from zero up")
    import altair as alt

    kinds = list(dict.fromkeys(kind for parts in rows.values() for kind in parts))
    coloured = [kind for kind in kinds if kind != rest]
    colours = {kind: COLOURS[n % len(COLOURS)] for n, kind in enumerate(coloured)} | {rest: FAINT}
    top = max(sum(parts.values()) for parts in rows.values())
    values = [
        {"row": row, "kind": kind, "start": start, "end": start + parts[kind], "text": _text(parts[kind], unit, top)}
        for row, parts in rows.items()
        for kind, start in _starts(parts).items()
    ]
    base = alt.Chart(alt.Data(values=values)).encode(
        y=alt.Y("row:N", title=None, sort=None, axis=alt.Axis(labelLimit=280, domain=False, ticks=False)),
        x=alt.X("start:Q", title=unit, scale=alt.Scale(domain=[0, top], nice=False), axis=alt.Axis(tickCount=6)),
    )
    scale = alt.Scale(domain=kinds, range=[colours[kind] for kind in kinds])
    colour = alt.Color("kind:N", title=None, sort=kinds, scale=scale, legend=alt.Legend(columns=3, symbolType="square"))
    bars = base.mark_bar(height=26, stroke="white", strokeWidth=1).encode(x2="end:Q", color=colour)
    labels = (
        base.transform_calculate(middle="(datum.start + datum.end) / 2")
        .mark_text(fontSize=12, fontWeight="bold")
        .encode(
            x="middle:Q",
            text="text:N",
            color=alt.condition(f"datum.kind == '{rest}'", alt.value(INK), alt.value("white")),
        )
    )
    drawn = alt.layer(bars, labels).properties(width=WIDTH, height=STEP * len(rows))
    text = "; ".join(
        f"{row}: " + ", ".join(f"{kind} {amount(value, unit)}" for kind, value in parts.items())
        for row, parts in rows.items()
    )
    return finish(drawn, title=title, description=f"Bars, {title}: {text}.", caption=caption)


def _starts(parts: Mapping[str, float]) -> dict[str, float]:
    """Where each part begins: at the sum of those before."""
    found, reached = {}, 0.0
    for kind, value in parts.items():
        found[kind] = reached
        reached += value
    return found


def _text(value: float, unit: str, top: float) -> str:
    return amount(value, unit if unit == "%" else "") if value > LABEL_FROM * top else ""
