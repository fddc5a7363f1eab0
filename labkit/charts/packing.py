"""Models on GPUs: what each GPU holds under several plans; and figures that an article gives beside one's own."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labkit.charts.theme import BLUE, GREY, INK, VERMILLION, WIDTH, finish, labelled, palette
from labkit.errors import UsageError
from labkit.packing import Model, Plan
from labkit.teaching.words import amount, share, span

ROW, GAP = 30, 40
PANEL = (WIDTH - GAP) // 2
ARTICLE = "#8a2f6b"


@dataclass(frozen=True)
class Beside:
    """One quantity: what the article says of it (from `low` to `high`), and one's own value with its interval."""

    label: str
    low: float
    high: float
    own: float
    own_low: float | None = None
    own_high: float | None = None


def gpu_packing(
    plans: Mapping[str, Plan],
    models: Sequence[Model],
    *,
    gpu_gib: float,
    title: str,
    most_load: float | None = None,
    caption: str | None = None,
) -> Any:
    """A row for each GPU of each plan: on the left the share of its memory that is taken, on the right its load.

    A rule stands where a GPU is full, another one at `most_load`. UsageError without plans.
    """
    if not plans or not all(plans.values()):
        raise UsageError(f"the chart {title!r} has a plan without GPUs", remedy="pass a GPU for each model")
    import altair as alt

    rows = [row for name, plan in plans.items() for row in _rows(name, plan, models, gpu_gib)]
    order = list(dict.fromkeys(row["row"] for row in rows))
    names = [model.name for model in models]
    panels = [
        _panel(rows, order, names, key=key, words=words, rules=rules, first=key == "memory")
        for key, words, rules in (
            ("memory", "memory (share of a GPU)", {"full": 1.0}),
            ("load", "load (share of a GPU's compute)", {"full": 1.0, "planned": most_load}),
        )
    ]
    drawn = alt.hconcat(*panels, spacing=GAP).resolve_scale(color="shared", y="shared")
    text = "; ".join(f"{name}: {len(set(plan.values()))} GPUs, {_in_words(plan)}" for name, plan in plans.items())
    return finish(drawn, title=title, description=f"Models on GPUs, {title}. {text}.", caption=caption)


def article_beside(rows: Sequence[Beside], *, title: str, axis_title: str, caption: str | None = None) -> Any:
    """A band for the article's figure of each quantity, in percent, and a point for one's own. UsageError without."""
    if not rows:
        raise UsageError(f"the chart {title!r} has no rows", remedy="pass at least one Beside")
    import altair as alt

    values = [
        {
            **vars(row),
            "article": f"the article: {span(row.low, row.high, '%') if row.low < row.high else amount(row.low, '%')}",
            "text": f"here: {_own(row)}",
            "own_low": row.own if row.own_low is None else row.own_low,
            "own_high": row.own if row.own_high is None else row.own_high,
        }
        for row in rows
    ]
    ends = [end for row in values for end in (row["low"], row["high"], row["own_low"], row["own_high"])]
    room = 0.42 * (max(ends) - min(0.0, *ends))  # for the words right of the last mark
    scale = alt.Scale(domain=[min(0.0, *ends) * 1.05, max(ends) + room], nice=False)
    y = alt.Y("label:N", title=None, sort=None, axis=alt.Axis(labelLimit=280, domain=False, ticks=False))
    base = alt.Chart(alt.Data(values=values)).encode(y=y)
    at = {name: alt.X(f"{name}:Q", title=axis_title, scale=scale) for name in ("low", "own", "own_low", "high")}
    zero = alt.Chart(alt.Data(values=[{"at": 0}])).mark_rule(color=GREY).encode(x=alt.X("at:Q", scale=scale))
    band = {"height": 14, "color": ARTICLE, "opacity": 0.35, "yOffset": -12, "stroke": ARTICLE, "strokeWidth": 2}
    layers = [
        zero,
        base.mark_bar(**band).encode(x=at["low"], x2="high:Q"),
        base.transform_filter("datum.low == datum.high")
        .mark_tick(color=ARTICLE, thickness=4, size=14, yOffset=-12)
        .encode(x=at["low"]),
        labelled(base.encode(x=at["high"], text="article:N"), align="left", dx=8, dy=-12, color=ARTICLE),
        base.mark_rule(color=BLUE, strokeWidth=2.5, yOffset=12).encode(x=at["own_low"], x2="own_high:Q"),
        base.mark_point(filled=True, size=110, opacity=1, color=BLUE, yOffset=12).encode(x=at["own"]),
        labelled(
            base.encode(x=alt.X("own_high:Q", scale=scale), text="text:N"), align="left", dx=10, dy=12, color=BLUE
        ),
    ]
    drawn = alt.layer(*layers).properties(width=WIDTH, height=64 * len(rows))
    words = "; ".join(f"{row['label']}: {row['article']}, {row['text']}" for row in values)
    return finish(drawn, title=title, description=f"{title}. {words}.", caption=caption)


def _rows(name: str, plan: Plan, models: Sequence[Model], gpu_gib: float) -> list[dict[str, Any]]:
    """A part for each model, memory and load each stacked from 0 on its GPU."""
    ends: dict[int, tuple[float, float]] = {}
    rows = []
    for model in models:
        gpu = plan[model.name]
        memory, load = ends.get(gpu, (0.0, 0.0))
        ends[gpu] = memory + model.memory_gib / gpu_gib, load + model.load
        rows.append(
            {
                "row": f"{name}, GPU {gpu}",
                "gpu": gpu,
                "model": model.name,
                "memory": memory,
                "memory_end": ends[gpu][0],
                "load": load,
                "load_end": ends[gpu][1],
            }
        )
    return sorted(rows, key=lambda row: row["gpu"])


def _panel(
    rows: list[dict[str, Any]],
    order: list[str],
    names: list[str],
    *,
    key: str,
    words: str,
    rules: Mapping[str, float | None],
    first: bool,
) -> Any:
    import altair as alt

    marks = {name: at for name, at in rules.items() if at is not None and math.isfinite(at)}
    most = max([row[f"{key}_end"] for row in rows] + [*marks.values()]) * 1.08
    scale = alt.Scale(domain=[0, most], nice=False)
    y = alt.Y("row:N", title=None, sort=order, axis=alt.Axis(labelLimit=260, ticks=False, domain=False, labels=first))
    parts = [{"row": row["row"], "model": row["model"], "start": row[key], "end": row[f"{key}_end"]} for row in rows]
    totals = [
        {"row": name, "end": end, "text": share(end)}
        for name in order
        for end in [max(part["end"] for part in parts if part["row"] == name)]
    ]
    base = alt.Chart(alt.Data(values=parts)).encode(y=y)
    x = alt.X("start:Q", title=words, scale=scale, axis=alt.Axis(format="%", tickCount=5))
    colours = alt.Scale(domain=names, range=(palette() * (1 + len(names) // 7))[: len(names)])
    colour = alt.Color("model:N", title=None, scale=colours, legend=alt.Legend(symbolType="square"))
    layers = [base.mark_bar(height=20, stroke="white", strokeWidth=1.5).encode(x=x, x2="end:Q", color=colour)]
    for name, at in marks.items():
        rule = alt.Chart(alt.Data(values=[{"at": at, "text": name}])).encode(x=alt.X("at:Q", scale=scale))
        style = {"color": INK} if name == "full" else {"color": VERMILLION, "strokeDash": [6, 4]}
        layers.append(rule.mark_rule(strokeWidth=2, **style))
        layers.append(rule.mark_text(y=-9, color=style["color"]).encode(text="text:N"))
    ends = alt.Chart(alt.Data(values=totals)).encode(y=y, x=alt.X("end:Q", scale=scale), text="text:N")
    layers.append(labelled(ends, align="left", dx=5))
    return alt.layer(*layers).properties(width=PANEL, height=ROW * len(order))


def _in_words(plan: Plan) -> str:
    gpus = sorted(set(plan.values()))
    return ", ".join(f"GPU {gpu} with {' and '.join(name for name, at in plan.items() if at == gpu)}" for gpu in gpus)


def _own(row: Beside) -> str:
    if row.own_low is None or row.own_high is None:
        return amount(row.own, "%")
    return f"{amount(row.own, '%')} ({span(row.own_low, row.own_high, '%')})"
