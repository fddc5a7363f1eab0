"""Measured quantities side by side, each with its interval, beside what was guessed and what others say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from labkit.charts.theme import Reference, finish, labelled, references, vertical
from labkit.errors import UsageError
from labkit.vega import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, SKY, VERMILLION, WIDTH
from labkit.words import amount, span

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


# --- stacked ---


STACKED_STEP = 46
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
        {"row": row, "kind": kind, "start": end - value, "end": end, "text": _stacked_text(value, unit, top)}
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
    drawn = alt.layer(bars, labels).properties(width=WIDTH, height=STACKED_STEP * len(rows))
    text = "; ".join(
        f"{row}: " + ", ".join(f"{kind} {amount(value, unit)}" for kind, value in parts) for row, parts in rows.items()
    )
    return finish(drawn, title=title, description=f"Bars, {title}: {text}.", caption=caption)


def _stacked_text(value: float, unit: str, top: float) -> str:
    return amount(value, unit if unit == "%" else "") if value > LABEL_FROM * top else ""


# --- what two clients measured on the same servers: every slice a point, one panel a quantity ---


CLIENT_COLOURS, SHAPES = (BLUE, VERMILLION), ("circle", "diamond")
ROW = 34


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one client measured of one quantity on one server, slice by slice."""

    server: str
    client: str
    quantity: str
    unit: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)


def two_clients(readings: Sequence[Reading], *, title: str, caption: str | None = None) -> Any:
    """A panel for each quantity, a row for each server, a point for each slice; colour and shape tell the client.

    Raises UsageError without readings, or for more clients than two.
    """
    clients = list(dict.fromkeys(one.client for one in readings))
    if not readings or len(clients) > len(CLIENT_COLOURS):
        raise UsageError(f"{len(readings)} readings of {len(clients)} clients", remedy="pass readings of two clients")
    import altair as alt

    quantities = list(dict.fromkeys(one.quantity for one in readings))
    panels = [_panel([one for one in readings if one.quantity == name], clients) for name in quantities]
    drawn = alt.vconcat(*panels, spacing=18).resolve_scale(x="independent", color="shared", shape="shared")
    return finish(drawn, title=title, description=_clients_description(readings), caption=caption)


def _panel(readings: Sequence[Reading], clients: list[str]) -> Any:
    import altair as alt

    unit, top = readings[0].unit, max(value for one in readings for value in one.values)
    rows = [
        {"server": one.server, "client": one.client, "value": value, "text": amount(value, unit)}
        for one in readings
        for value in one.values
    ]
    servers = list(dict.fromkeys(one.server for one in readings))
    legend = alt.Legend(title=None)
    offset = alt.YOffset("client:N", scale=alt.Scale(domain=clients, paddingOuter=0.4))
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_point(filled=True, size=100, opacity=0.85)
        .encode(
            x=alt.X(
                "value:Q",
                title=f"{readings[0].quantity} ({unit})",
                scale=alt.Scale(domain=[0, top * 1.06], nice=False),
                axis=alt.Axis(tickCount=7, format=".3~r"),
            ),
            y=alt.Y("server:N", title=None, sort=servers, axis=alt.Axis(labelLimit=200, grid=True, gridColor=FAINT)),
            yOffset=offset,
            color=alt.Color("client:N", scale=alt.Scale(domain=clients, range=list(CLIENT_COLOURS)), legend=legend),
            shape=alt.Shape("client:N", scale=alt.Scale(domain=clients, range=list(SHAPES)), legend=legend),
            tooltip=["server:N", "client:N", "text:N"],
        )
        .properties(width=WIDTH - 60, height=ROW * len(servers))
    )


def _clients_description(readings: Sequence[Reading]) -> str:
    said = "; ".join(
        f"{one.quantity}, {one.server}, {one.client}: mean {amount(one.mean, one.unit)}" for one in readings
    )
    return f"Points, two clients on the same servers. {said}."
