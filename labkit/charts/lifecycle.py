"""A model's versions under load: every request with its fate, and a canary's interval as it narrows."""

from collections.abc import Sequence
from typing import Any

from labkit.charts.scaling import Moment
from labkit.charts.theme import BLACK, BLUE, GREEN, GREY, INK, ORANGE, PURPLE, VERMILLION, WIDTH, finish, labelled
from labkit.errors import UsageError

ANSWERED = (BLUE, GREEN, PURPLE)
NOT_ANSWERED = (VERMILLION, ORANGE, BLACK)
FAILED = " failed"  # how the name of a version's own error ends
MOST_LABELS = 3
FROM_THE_RIGHT = 0.55  # labels beyond this part of the axis stand on the left of their lines
LABEL_PX = 17
Fate = tuple[float, float, str]
"""When a request was sent (s), what it waited (s), what became of it."""


def request_fates(
    rows: Sequence[Fate],
    *,
    answered: Sequence[str],
    moments: Sequence[Moment] = (),
    title: str,
    caption: str | None = None,
) -> Any:
    """Each request as a mark at the moment at which it was sent, and at the height of what it waited.

    Those whose fate is among `answered` are dots, or triangles of the same colour for a version's own errors ("2.0
    failed"); all others are crosses. Raises UsageError without rows.
    """
    if not rows:
        raise UsageError(f"the chart {title!r} has no requests", remedy="pass at least one")
    import altair as alt

    fates = sorted({fate for _, _, fate in rows}, key=lambda one: (one not in answered, one))
    end, top = max(at for at, _, _ in rows), max(waited for _, waited, _ in rows)
    x = alt.Scale(domain=[0, end * 1.02], nice=False)
    looks = {"colour": _colours(fates, answered), "shape": _shapes(fates, answered)}
    scales = {name: alt.Scale(domain=fates, range=found) for name, found in looks.items()}
    data = "at,waited,fate\n" + "\n".join(f"{at:.3f},{waited:.4g},{fate}" for at, waited, fate in rows)
    parse = {"at": "number", "waited": "number", "fate": "string"}
    marks = (
        alt.Chart(alt.Data(values=data, format=alt.CsvDataFormat(parse=parse, type="csv")))
        .mark_point(filled=True, size=40, opacity=1)
        .encode(
            x=alt.X("at:Q", scale=x, title="seconds since the load began", axis=alt.Axis(tickCount=8)),
            y=alt.Y("waited:Q", scale=alt.Scale(domain=[0, top * 1.08], nice=False), title="waited (s)"),
            color=alt.Color("fate:N", title=None, scale=scales["colour"], legend=alt.Legend(orient="bottom")),
            shape=alt.Shape("fate:N", title=None, scale=scales["shape"], legend=alt.Legend(orient="bottom")),
        )
    )
    drawn = alt.layer(marks, *_rules(moments, x, end)).properties(width=WIDTH, height=240)
    return finish(drawn, title=title, description=_told(rows, fates, moments), caption=caption)


def _shapes(fates: Sequence[str], answered: Sequence[str]) -> list[str]:
    kinds = {True: "triangle-up", False: "circle"}
    return [kinds[fate.endswith(FAILED)] if fate in answered else "cross" for fate in fates]


def _colours(fates: Sequence[str], answered: Sequence[str]) -> list[str]:
    """A colour for each version that answered, and others for what none did, in order."""
    versions = list(dict.fromkeys(fate.removesuffix(FAILED) for fate in fates if fate in answered))
    rest = [fate for fate in fates if fate not in answered]
    found = {version: ANSWERED[place % len(ANSWERED)] for place, version in enumerate(versions)}
    found |= {fate: NOT_ANSWERED[place % len(NOT_ANSWERED)] for place, fate in enumerate(rest)}
    return [found[fate.removesuffix(FAILED) if fate in answered else fate] for fate in fates]


def _rules(moments: Sequence[Moment], scale: Any, end: float) -> list[Any]:
    """Lines through the panel; their names stand above it, in turn on up to three heights."""
    import altair as alt

    layers = []
    for place, one in enumerate(moments):
        base = alt.Chart(alt.Data(values=[{"at": one.at_s, "text": one.text}])).encode(x=alt.X("at:Q", scale=scale))
        lift = LABEL_PX * (place % MOST_LABELS)
        layers.append(base.mark_rule(strokeDash=[6, 4], color=INK, strokeWidth=1.5, y=-lift, y2=240))
        right = one.at_s > FROM_THE_RIGHT * end
        side = {"align": "right", "dx": -3} if right else {"align": "left", "dx": 3}
        layers.append(labelled(base.encode(text="text:N"), baseline="bottom", y=-lift - 1, **side))
    return layers


def _told(rows: Sequence[Fate], fates: Sequence[str], moments: Sequence[Moment]) -> str:
    counted = ", ".join(f"{sum(one == fate for *_, one in rows)} {fate}" for fate in fates)
    slowest = max(waited for _, waited, _ in rows)
    at = "".join(f"; {one.text} at {one.at_s:.1f} s" for one in moments)
    return (
        f"{len(rows)} requests by the time at which they were sent: {counted}. The longest waited {slowest:.2f} s{at}."
    )


def narrowing(
    rows: Sequence[tuple[str, int, float, float, float]], *, title: str, y_title: str, caption: str | None = None
) -> Any:
    """Intervals (series, answers so far, value, low, high) as bands over the answers so far, and the line of no
    difference. Values are shares, drawn as percentages. Raises UsageError without rows."""
    if not rows:
        raise UsageError(f"the chart {title!r} has no intervals", remedy="pass at least one")
    import altair as alt

    series = list(dict.fromkeys(name for name, *_ in rows))
    data = "series,n,value,low,high\n" + "\n".join(f"{s},{n},{v:.4f},{a:.4f},{b:.4f}" for s, n, v, a, b in rows)
    parse = {"series": "string"} | dict.fromkeys(("n", "value", "low", "high"), "number")
    base = alt.Chart(alt.Data(values=data, format=alt.CsvDataFormat(parse=parse, type="csv")))
    scale = alt.Scale(domain=[min(low for *_, low, _ in rows), max(high for *_, high in rows)], nice=False)
    x = alt.X("n:Q", title="answers so far", axis=alt.Axis(tickCount=8), scale=alt.Scale(nice=False))
    colour = alt.Color("series:N", title=None, scale=alt.Scale(domain=series, range=[VERMILLION, BLUE, GREEN]))
    axis = alt.Axis(format="+.0%", tickCount=6)
    band = base.mark_area(opacity=0.22).encode(
        x=x, y=alt.Y("low:Q", title=y_title, scale=scale, axis=axis), y2="high:Q", color=colour
    )
    line = base.mark_line(strokeWidth=2.5).encode(x=x, y=alt.Y("value:Q", scale=scale), color=colour)
    zero = alt.Chart(alt.Data(values=[{"at": 0}])).mark_rule(color=GREY, strokeDash=[8, 4], strokeWidth=2)
    drawn = alt.layer(band, zero.encode(y=alt.Y("at:Q", scale=scale)), line).properties(width=WIDTH, height=280)
    last = {name: (n, v, low, high) for name, n, v, low, high in rows}
    ends = "; ".join(f"{name}, after {n}: {v:+.1%} ({a:+.1%} to {b:+.1%})" for name, (n, v, a, b) in last.items())
    text = f"Intervals that narrow as answers come in. At their ends: {ends}."
    return finish(drawn, title=title, description=text, caption=caption)
