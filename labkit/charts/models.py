"""A model's curve with what was measured drawn over it, and below it how far the two are apart."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from labkit.charts.curves import LinePoint
from labkit.charts.references import horizontal, references
from labkit.charts.theme import GREY, WIDTH, finish, labelled
from labkit.errors import UsageError
from labkit.teaching.words import amount, number

MARGIN = 0.06  # of the x axis, left and right: points at the ends stay whole
DODGE = 9  # pixels between the series' points at the same x, so that no interval hides another
MOST_TICKS = 12
PLAIN = "format(datum.value, ',')"  # a format on the axis would round its labels to the axis's own step
ARTICLE_COLOUR = "#8a2f6b"


def model_and_measured(
    model: Sequence[LinePoint],
    measured: Sequence[LinePoint],
    *,
    title: str,
    x_title: str,
    y_title: str,
    unit: str = "",
    guess: float | None = None,
    guesses: Sequence[LinePoint] = (),
    article: tuple[float, float] | None = None,
    steps: bool = False,
    residual: bool = False,
    caption: str | None = None,
) -> Any:
    """Dashed lines for the model, points with intervals for what was measured; equal series have equal colours.

    `guess` becomes a labelled rule, `guesses` diamonds (where a guess is for one point of a series), `article` a band
    from one figure to the other. With `steps` the model keeps its value until its next point. `residual` adds a panel
    with measured / model - 1 for the measured points at whose x their series has a point of the model. UsageError
    without points of either.
    """
    if not model or not measured:
        raise UsageError(
            f"the chart {title!r} has {len(model)} points of a model and {len(measured)} measured ones",
            remedy="pass some of both",
        )
    import altair as alt

    x = _x(model, measured, "" if residual else x_title)
    found = references(unit, guess=guess)
    scale = _y_scale([*model, *measured, *guesses], [*(one.value for one in found), *(article or ())])
    y = alt.Y("y:Q", title=y_title, scale=scale, axis=alt.Axis(tickCount=6, labelExpr=PLAIN))
    colour = _colour([*model, *measured])
    line = alt.Chart(_rows(model, unit)).mark_line(
        strokeWidth=2, strokeDash=[8, 4], interpolate="step-after" if steps else "linear"
    )
    layers = [_band(article, scale, unit)] if article else []
    layers += [line.encode(x=x, y=y, color=colour), *_diamonds(guesses, x, y, colour, unit)]
    layers += _points(measured, x, y, colour, scale, unit)
    layers += horizontal(found, domain=(0, scale.domain[1]), scale=scale)
    drawn = alt.layer(*layers).properties(width=WIDTH, height=280)
    if residual:
        below = _residual_panel(residuals(model, measured), _x(model, measured, x_title), [*model, *measured])
        drawn = alt.vconcat(drawn, below, spacing=20).resolve_scale(color="shared")
    text = _description(model, measured, (x_title, y_title, unit))
    return finish(drawn, title=title, description=text, caption=caption)


def residuals(model: Sequence[LinePoint], measured: Sequence[LinePoint]) -> list[LinePoint]:
    """Measured over model, less 1, with the interval's ends, where the model has a point at the same x and series."""
    at = {(point.series, point.x): point.y for point in model}
    found = [(point, at[point.series, point.x]) for point in measured if at.get((point.series, point.x))]
    return [
        LinePoint(
            p.x,
            p.y / y - 1,
            p.series,
            None if p.low is None else p.low / y - 1,
            None if p.high is None else p.high / y - 1,
        )
        for p, y in found
    ]


def _y_scale(points: Sequence[LinePoint], others: Sequence[float]) -> Any:
    import altair as alt

    heights = [point.high if point.high is not None else point.y for point in points]
    return alt.Scale(domain=[0, max([*heights, *others]) * 1.1 or 1.0], nice=False)


def _diamonds(guesses: Sequence[LinePoint], x: Any, y: Any, colour: Any, unit: str) -> list[Any]:
    import altair as alt

    if not guesses:
        return []
    rows = [{**asdict(guess), "text": f"your guess: {amount(guess.y, unit)}"} for guess in guesses]
    base = alt.Chart(alt.Data(values=rows)).encode(x=x, y=y)
    mark = base.mark_point(shape="diamond", size=170, strokeWidth=2.5, opacity=1, filled=False, xOffset=-2 * DODGE)
    text = labelled(base.encode(text="text:N"), align="right", baseline="middle", dx=-3.4 * DODGE)
    return [mark.encode(color=colour), text]


def _points(rows: Sequence[LinePoint], x: Any, y: Any, colour: Any, scale: Any, unit: str) -> list[Any]:
    import altair as alt

    layers = []
    names = list(dict.fromkeys(row.series for row in rows))
    for turn, name in enumerate(names):
        aside = DODGE * (turn - (len(names) - 1) / 2)
        base = alt.Chart(_rows([row for row in rows if row.series == name], unit)).encode(x=x, color=colour)
        bars = base.transform_filter("datum.low != null").mark_rule(strokeWidth=2.5, xOffset=aside)
        dots = base.mark_point(filled=True, size=100, opacity=1, xOffset=aside)
        layers += [bars.encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")]
        layers += [dots.encode(y=y, tooltip=["series:N", "x:Q", "text:N"])]
    return layers


def _band(article: tuple[float, float], scale: Any, unit: str) -> Any:
    import altair as alt

    low, high = article
    words = f"the article: {number(low)} to {amount(high, unit)}"
    base = alt.Chart(alt.Data(values=[{"low": low, "high": high, "text": words}]))
    y = alt.Y("low:Q", scale=scale)
    area = base.mark_rect(color=ARTICLE_COLOUR, opacity=0.16, x=0, x2=WIDTH).encode(y=y, y2="high:Q")
    text = labelled(base.encode(y=alt.Y("high:Q", scale=scale), text="text:N"), x=8, align="left", dy=-8)
    return area + text


def _residual_panel(rows: Sequence[LinePoint], x: Any, every: Sequence[LinePoint]) -> Any:
    import altair as alt

    most = max([abs(v) for row in rows for v in (row.y, row.low, row.high) if v is not None] + [0.1]) * 1.15
    scale = alt.Scale(domain=[-most, most], nice=False)
    axis = alt.Axis(format="+.0%", tickCount=5)
    y = alt.Y("y:Q", title="residual", scale=scale, axis=axis)
    zero = alt.Chart(alt.Data(values=[{"at": 0}])).mark_rule(color=GREY, strokeDash=[8, 4], strokeWidth=2)
    layers = [zero.encode(y=alt.Y("at:Q", scale=scale)), *_points(rows, x, y, _colour(every), scale, "")]
    return alt.layer(*layers).properties(width=WIDTH, height=120)


def _rows(points: Sequence[LinePoint], unit: str) -> Any:
    import altair as alt

    return alt.Data(values=[{**asdict(point), "text": amount(point.y, unit)} for point in points])


def _x(model: Sequence[LinePoint], measured: Sequence[LinePoint], title: str) -> Any:
    import altair as alt

    every = [point.x for point in (*model, *measured)]
    edge = (max(every) - min(every)) * MARGIN or 1.0
    scale = alt.Scale(domain=[min(every) - edge, max(every) + edge], nice=False)
    # Where the model has too many points to label, those that were measured are labelled.
    steps = sorted({point.x for point in (*model, *measured)})
    ticks = steps if len(steps) <= MOST_TICKS else sorted({point.x for point in measured})
    axis = alt.Axis(values=ticks, labelExpr=PLAIN)
    return alt.X("x:Q", title=title or None, scale=scale, axis=axis)


def _colour(rows: Sequence[LinePoint]) -> Any:
    import altair as alt

    names = list(dict.fromkeys(row.series for row in rows))
    legend = alt.Legend(title=None, symbolType="circle") if len(names) > 1 else None
    return alt.Color("series:N", title=None, scale=alt.Scale(domain=names), legend=legend)


def _description(model: Sequence[LinePoint], measured: Sequence[LinePoint], words: tuple[str, str, str]) -> str:
    x_title, y_title, unit = words
    parts = [f"{p.series} at {number(p.x)}: {amount(p.y, unit)}" for p in measured]
    off = residuals(model, measured)
    far = f" The model is off by {max(abs(p.y) for p in off):.0%} at most." if off else ""
    return f"{y_title} against {x_title}, points over a model's dashed lines. Measured: {'; '.join(parts)}.{far}"
