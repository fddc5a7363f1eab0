"""Requests on a time axis: many below each other, and one taken apart into the metrics of serving."""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from labkit.charts.theme import BLUE, GREEN, GREY, INK, ORANGE, SKY, VERMILLION, WIDTH, finish, labelled
from labkit.errors import UsageError
from labkit.teaching.words import amount, number

if TYPE_CHECKING:
    from labkit.load import RequestRecord

PHASES = {
    "waits to be sent": "#c9c9c9",
    "until the first token (TTFT)": ORANGE,
    "tokens arrive": SKY,
    "whole answer, not streamed": BLUE,
    "failed": VERMILLION,
}
WAITS, TTFT, TOKENS, WHOLE, FAILED = PHASES


def request_timeline(
    records: Sequence["RequestRecord"],
    *,
    title: str = "Requests over time",
    limit: int = 32,
    caption: str | None = None,
) -> Any:
    """A bar for each request, the first `limit` of them, in the order in which they were due; a tick for each chunk.

    Raises UsageError without records.
    """
    if not records:
        raise UsageError(f"the chart {title!r} has no requests", remedy="pass the records of a load")
    import altair as alt

    shown = sorted(records, key=lambda one: (one.scheduled_s, one.index))[:limit]
    rows = [row for one in shown for row in phases(one)]
    present = [name for name in PHASES if any(row["phase"] == name for row in rows)]
    step = max(12, min(24, 420 // len(shown)))
    part = f" (the first {len(shown)} of {len(records)})" if len(records) > len(shown) else ""
    y = alt.Y(
        "request:O",
        title=f"request{part}",
        sort=[one.index for one in shown],
        axis=alt.Axis(labelOverlap=True, grid=False),
    )
    colour = alt.Color(
        "phase:N", title=None, scale=alt.Scale(domain=present, range=[PHASES[name] for name in present]), sort=present
    )
    x = alt.X("start:Q", title="seconds since the load began", axis=alt.Axis(tickCount=8, format="~f"))
    bars = alt.Chart(alt.Data(values=rows)).mark_bar(height=step * 0.72).encode(x=x, x2="end:Q", y=y, color=colour)
    ticks = [{"request": one.index, "at": round(at, 4)} for one in shown if one.ok for at in one.chunk_times_s]
    marks = alt.Chart(alt.Data(values=ticks)).mark_tick(color=BLUE, thickness=1, size=step * 0.72).encode(x="at:Q", y=y)
    layers = [bars, marks, _failures(shown, y)] if any(not one.ok for one in shown) else [bars, marks]
    drawn = alt.layer(*layers).properties(width=WIDTH, height=alt.Step(step))
    return finish(drawn, title=title, description=_timeline_description(records, shown), caption=caption)


def phases(one: "RequestRecord") -> list[dict[str, Any]]:
    """The phases of a request that took time, in order."""
    parts: list[tuple[str, float, float]] = [(WAITS, one.scheduled_s, one.started_s)]
    if not one.ok:
        parts.append((FAILED, one.started_s, one.finished_s))
    elif not one.chunk_times_s:
        parts.append((WHOLE, one.started_s, one.finished_s))
    else:
        first, last = one.chunk_times_s[0], one.chunk_times_s[-1]
        parts += [(TTFT, one.started_s, first), (TOKENS, first, last)]
    # A millisecond of waiting is the client's own doing and would only add a colour to the legend.
    return [
        {"request": one.index, "phase": phase, "start": round(start, 4), "end": round(end, 4)}
        for phase, start, end in parts
        if end - start > (1e-3 if phase == WAITS else 0)
    ]


def _failures(shown: Sequence["RequestRecord"], y: Any) -> Any:
    import altair as alt

    rows = [{"request": one.index, "at": one.finished_s, "text": str(one.outcome)} for one in shown if not one.ok]
    base = alt.Chart(alt.Data(values=rows)).encode(x="at:Q", y=y, text="text:N")
    return base.mark_text(align="left", dx=5)


def _timeline_description(records: Sequence["RequestRecord"], shown: Sequence["RequestRecord"]) -> str:
    ttft = [one.ttft_s for one in shown if one.ttft_s is not None]
    failed = sum(not one.ok for one in shown)
    median = f", median TTFT {amount(statistics.median(ttft), 's')}" if ttft else ""
    rest = f" of {len(records)}" if len(records) > len(shown) else ""
    end = max(one.finished_s for one in shown)
    return f"Timeline of {len(shown)}{rest} requests, the last one done at {amount(end, 's')}{median}, {failed} failed."


def anatomy(record: "RequestRecord", *, title: str = "One request, taken apart", caption: str | None = None) -> Any:
    """One streamed request: what arrived when, and E2E, TTFT, ITL and TPOT drawn to scale, in vLLM's definitions.

    Raises UsageError for a request that failed or brought fewer than two chunks.
    """
    if not record.ok or len(record.chunk_times_s) < 2:
        raise UsageError(
            f"request {record.index} brought {len(record.chunk_times_s)} chunks ({record.outcome})",
            remedy="draw a completed request that was streamed",
        )
    import altair as alt

    lanes = _lanes(record)
    bars = [{**bar, "lane": n} for n, lane in enumerate(lanes) for bar in lane["bars"]]
    texts = [{"lane": n, "text": lane["text"]} for n, lane in enumerate(lanes)]
    end = record.chunk_times_s[-1] - record.started_s
    x = alt.X(
        "start:Q",
        title="seconds since the request was sent",
        scale=alt.Scale(domain=[0, end * 1.01], nice=False),
        axis=alt.Axis(grid=False, tickCount=6, format="~f"),
    )
    scale = alt.Scale(domain=[len(lanes), 0], nice=False)
    base = alt.Chart(alt.Data(values=bars)).transform_calculate(top="datum.lane + 0.46", bottom="datum.lane + 0.88")
    box = base.mark_rect(stroke="white", strokeWidth=0.7).encode(
        x=x,
        x2="end:Q",
        y=alt.Y("top:Q", axis=None, scale=scale),
        y2="bottom:Q",
        color=alt.Color("colour:N", scale=None),
    )
    label = alt.Chart(alt.Data(values=texts)).transform_calculate(at="datum.lane + 0.24")
    placed = label.encode(y=alt.Y("at:Q", axis=None, scale=scale), text="text:N")
    words = labelled(placed, x=4, align="left", baseline="middle", fontSize=14)
    moments = [{"start": 0.0}, {"start": record.chunk_times_s[0] - record.started_s}, {"start": end}]
    rules = alt.Chart(alt.Data(values=moments)).mark_rule(color=GREY, strokeDash=[3, 3]).encode(x=x)
    drawn = alt.layer(rules, box, words).properties(width=WIDTH, height=62 * len(lanes))
    return finish(drawn, title=title, description=". ".join(lane["text"] for lane in lanes) + ".", caption=caption)


def _lanes(record: "RequestRecord") -> list[dict[str, Any]]:
    """The rows of `anatomy`, top to bottom: the text above each, and its boxes in seconds since the start."""
    times = [at - record.started_s for at in record.chunk_times_s]
    first, last, thin = times[0], times[-1], (times[-1]) / 400
    gaps = record.itl_s
    longest = max(range(len(gaps)), key=gaps.__getitem__)
    chunks = [_box(at - thin / 2, at + thin / 2, INK) for at in times]
    between = [
        _box(times[n], times[n + 1], VERMILLION if n == longest else (SKY, BLUE)[n % 2]) for n in range(len(gaps))
    ]
    median, most = amount(statistics.median(gaps), "s"), amount(max(gaps), "s")
    itl = f"ITL: {len(gaps)} gaps between chunks, median {median}, longest {most}"
    tokens = "" if record.output_tokens is None else f", {number(record.output_tokens)} tokens by the server's count"
    lanes = [
        {"text": f"What arrives: {len(times)} chunks{tokens}", "bars": chunks},
        {"text": f"E2E {amount(last, 's')}: until the last token", "bars": [_box(0, last, GREY)]},
        {
            "text": f"TTFT {amount(first, 's')}: until the first token (queue and prefill)",
            "bars": [_box(0, first, ORANGE)],
        },
        {"text": itl, "bars": between},
    ]
    if record.tpot_s is not None and record.output_tokens is not None:
        lanes.append(_tpot_lane(record.tpot_s, first, record.output_tokens))
    return lanes


def _tpot_lane(tpot_s: float, first_s: float, tokens: int) -> dict[str, Any]:
    starts = [first_s + tpot_s * n for n in range(tokens - 1)]
    text = f"TPOT {amount(tpot_s, 's')} = (E2E - TTFT) / ({number(tokens)} - 1): the same time, shared out evenly"
    return {"text": text, "bars": [_box(start, start + tpot_s, GREEN) for start in starts]}


def _box(start: float, end: float, colour: str) -> dict[str, Any]:
    return {"start": round(start, 5), "end": round(end, 5), "colour": colour}
