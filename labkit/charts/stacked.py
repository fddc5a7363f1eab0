"""Wholes and their parts: one bar for each whole, its parts side by side; a kind of part has one colour in all bars."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from labkit.charts.theme import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, SKY, VERMILLION, WIDTH, finish
from labkit.errors import UsageError
from labkit.teaching.words import amount

STEP = 46
COLOURS = (BLUE, ORANGE, VERMILLION, SKY, GREEN, PURPLE)
Part = tuple[str, float]
LABEL_FROM = 0.06  # of the longest bar: a shorter part has no room for its value


def stacked_bars(
    rows: Mapping[str, Sequence[Part]], *, title: str, unit: str, rest: str = "", caption: str | None = None
) -> Any:
    """A bar for each row, its parts in the order given; a kind may come again. The kind called `rest` is drawn pale.

    UsageError without rows or with a part below zero.
    """
    if not rows or any(value < 0 for parts in rows.values() for _, value in parts):
        raise UsageError(f"the chart {title!r} has no rows, or a part below zero", remedy="pass parts from zero up")
    import altair as alt

    coloured = [kind for kind in dict.fromkeys(kind for parts in rows.values() for kind, _ in parts) if kind != rest]
    kinds = [*coloured, rest] if rest else coloured
    colours = {kind: COLOURS[n % len(COLOURS)] for n, kind in enumerate(coloured)} | {rest: FAINT}
    top = max(sum(value for _, value in parts) for parts in rows.values())
    values = [
        {"row": row, "kind": kind, "start": end - value, "end": end, "text": _text(value, unit, top)}
        for row, parts in rows.items()
        for (kind, value), end in zip(parts, accumulate(value for _, value in parts), strict=True)
    ]
    base = alt.Chart(alt.Data(values=values)).encode(
        y=alt.Y("row:N", title=None, sort=None, axis=alt.Axis(labelLimit=280, domain=False, ticks=False)),
        x=alt.X("start:Q", title=unit, scale=alt.Scale(domain=[0, top], nice=False), axis=alt.Axis(tickCount=6)),
    )
    scale = alt.Scale(domain=kinds, range=[colours[kind] for kind in kinds])
    colour = alt.Color("kind:N", title=None, sort=kinds, scale=scale, legend=alt.Legend(columns=4, symbolType="square"))
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
        f"{row}: " + ", ".join(f"{kind} {amount(value, unit)}" for kind, value in parts) for row, parts in rows.items()
    )
    return finish(drawn, title=title, description=f"Bars, {title}: {text}.", caption=caption)


def _text(value: float, unit: str, top: float) -> str:
    return amount(value, unit if unit == "%" else "") if value > LABEL_FROM * top else ""
