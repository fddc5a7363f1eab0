"""What two clients measured on the same servers: every slice a point, one panel a quantity."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from labkit.charts.theme import BLUE, FAINT, VERMILLION, WIDTH, finish
from labkit.errors import UsageError
from labkit.teaching.words import amount

COLOURS, SHAPES = (BLUE, VERMILLION), ("circle", "diamond")
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
    if not readings or len(clients) > len(COLOURS):
        raise UsageError(f"{len(readings)} readings of {len(clients)} clients", remedy="pass readings of two clients")
    import altair as alt

    quantities = list(dict.fromkeys(one.quantity for one in readings))
    panels = [_panel([one for one in readings if one.quantity == name], clients) for name in quantities]
    drawn = alt.vconcat(*panels, spacing=18).resolve_scale(x="independent", color="shared", shape="shared")
    return finish(drawn, title=title, description=_description(readings), caption=caption)


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
            color=alt.Color("client:N", scale=alt.Scale(domain=clients, range=list(COLOURS)), legend=legend),
            shape=alt.Shape("client:N", scale=alt.Scale(domain=clients, range=list(SHAPES)), legend=legend),
            tooltip=["server:N", "client:N", "text:N"],
        )
        .properties(width=WIDTH - 60, height=ROW * len(servers))
    )


def _description(readings: Sequence[Reading]) -> str:
    said = "; ".join(
        f"{one.quantity}, {one.server}, {one.client}: mean {amount(one.mean, one.unit)}" for one in readings
    )
    return f"Points, two clients on the same servers. {said}."
