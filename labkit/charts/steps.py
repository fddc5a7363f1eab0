"""Quantities of an engine step by step, one panel below the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labkit.charts.theme import WIDTH, finish
from labkit.errors import UsageError

PANEL = 92


@dataclass(frozen=True)
class StepPanel:
    """One panel: its axis' title and a curve for each series, one value a step. `top`: the axis' end."""

    title: str
    series: Mapping[str, Sequence[float]]
    top: float | None = None


def step_panels(panels: Sequence[StepPanel], *, title: str, caption: str | None = None) -> Any:
    """Panels over the same steps. A series has the same colour and dash in each. UsageError without values."""
    if not panels or not all(panel.series and all(panel.series.values()) for panel in panels):
        raise UsageError(f"the chart {title!r} has no values", remedy="pass a value a step for each series")
    import altair as alt

    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    steps = max(len(values) for panel in panels for values in panel.series.values())
    drawn = [_panel(panel, names, steps, last=panel is panels[-1]) for panel in panels]
    whole = alt.vconcat(*drawn, spacing=12).resolve_scale(color="shared", strokeDash="shared")
    text = "; ".join(
        f"{panel.title}, {name}: from {values[0]:g} to {values[-1]:g}, at most {max(values):g}"
        for panel in panels
        for name, values in panel.series.items()
    )
    return finish(whole, title=title, description=f"Curves over {steps} steps. {text}.", caption=caption)


def _panel(panel: StepPanel, names: list[str], steps: int, *, last: bool) -> Any:
    import altair as alt

    rows = [
        {"step": step, "value": value, "series": name}
        for name, values in panel.series.items()
        for step, value in _changes(values)
    ]
    highest = max(max(values) for values in panel.series.values())
    top = panel.top if panel.top is not None else max(1.0, highest * 1.08)
    x = alt.X(
        "step:Q",
        title="steps of the engine" if last else None,
        scale=alt.Scale(domain=[0, steps + 1], nice=False),
        axis=alt.Axis(tickCount=8, labels=last, ticks=last),
    )
    y = alt.Y(
        "value:Q",
        title=panel.title,
        scale=alt.Scale(domain=[0, top], nice=False),
        axis=alt.Axis(tickCount=4, tickMinStep=1),
    )
    dashes = [[1, 0], [7, 4], [2, 2], [10, 3, 2, 3]]
    legend = alt.Legend(title=None, symbolSize=700) if len(names) > 1 else None
    colour = alt.Color("series:N", sort=names, scale=alt.Scale(domain=names), legend=legend)
    dash = alt.StrokeDash(
        "series:N",
        sort=names,
        scale=alt.Scale(domain=names, range=[dashes[n % len(dashes)] for n in range(len(names))]),
        legend=legend,
    )
    base = alt.Chart(alt.Data(values=rows)).mark_line(interpolate="step-after", strokeWidth=2.5)
    return base.encode(x=x, y=y, color=colour, strokeDash=dash).properties(width=WIDTH, height=PANEL)


def _changes(values: Sequence[float]) -> list[tuple[int, float]]:
    """(step, value) where a curve of steps changes, and its end: all that is needed to draw it."""
    last = len(values)
    return [
        (step, value) for step, value in enumerate(values, start=1) if step in (1, last) or value != values[step - 2]
    ]
