"""Requests on a time axis: many below each other, and one taken apart into the metrics of serving."""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from labkit.charts.theme import BLUE, GREEN, GREY, INK, ORANGE, SKY, VERMILLION, WIDTH, finish, labelled
from labkit.errors import UsageError
from labkit.words import amount, number

if TYPE_CHECKING:
    from labkit.load import RequestRecord
import csv
import heapq
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise

from labkit.charts.panels import Moment
from labkit.charts.theme import (
    BLACK,
    PURPLE,
    palette,
)
from labkit.theory.kv_allocation import Extent, MemorySnapshot
from labkit.theory.placement import Model, Placement
from labkit.theory.prefix_cache import block_hashes
from labkit.words import share, span

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


# --- batches ---


ANSWER, PADDING = "a token of an answer", "padding: computed for nobody"
STATIC, CONTINUOUS = "static batches", "continuous batching"


@dataclass(frozen=True)
class Span:
    """A stretch of steps on one place of the batch, spent on one request's answer or on padding."""

    policy: str
    place: int
    request: int
    start: int
    end: int
    kind: str = ANSWER


def static_spans(lengths: Sequence[int], *, batch: int) -> Iterator[Span]:
    """Batches of `batch` rows, each as long as its longest answer (in tokens); the next starts when one is done."""
    start = 0
    for first in range(0, len(lengths), batch):
        rows = lengths[first : first + batch]
        end = start + max(rows)
        for place, length in enumerate(rows, start=1):
            yield Span(STATIC, place, first + place, start, start + length)
            if start + length < end:
                yield Span(STATIC, place, first + place, start + length, end, PADDING)
        start = end


def continuous_spans(lengths: Sequence[int], *, batch: int) -> Iterator[Span]:
    """A place that becomes free goes to the next request at once (first come, first served)."""
    free = [(0, place) for place in range(1, batch + 1)]
    for request, length in enumerate(lengths, start=1):
        start, place = heapq.heappop(free)
        yield Span(CONTINUOUS, place, request, start, start + length)
        heapq.heappush(free, (start + length, place))


def batch_grid(lengths: Sequence[int], *, batch: int, title: str, caption: str | None = None) -> Any:
    """Both policies for answers of `lengths` tokens on `batch` places, one step for each token. UsageError if empty.

    A model, not a measurement: every step is drawn equally long and the prompts' prefill is left out.
    """
    if not lengths or min(lengths) < 1 or batch < 1:
        raise UsageError(
            f"{len(lengths)} answers on {batch} places",
            remedy="give at least one answer of one token or more, one place",
        )
    import altair as alt

    policies = {
        STATIC: list(static_spans(lengths, batch=batch)),
        CONTINUOUS: list(continuous_spans(lengths, batch=batch)),
    }
    steps = {name: max(span.end for span in spans) for name, spans in policies.items()}
    scale = alt.Scale(domain=[0, max(steps.values())], nice=False)
    panels = [_panel(name, spans, steps[name], scale) for name, spans in policies.items()]
    drawn = alt.vconcat(*panels, spacing=22).resolve_scale(color="shared")
    wasted = sum(span.end - span.start for span in policies[STATIC] if span.kind == PADDING)
    text = (
        f"{len(lengths)} answers on {batch} places. Static batches take {steps[STATIC]} steps and compute {wasted} "
        f"tokens of padding; continuous batching takes {steps[CONTINUOUS]} steps and computes none."
    )
    return finish(drawn, title=title, description=text, caption=caption)


def _panel(name: str, spans: Sequence[Span], steps: int, scale: Any) -> Any:
    import altair as alt

    colour = alt.Color("kind:N", title=None, scale=alt.Scale(domain=[ANSWER, PADDING], range=[BLUE, ORANGE]))
    x = alt.X("start:Q", title="decode steps", scale=scale, axis=alt.Axis(tickCount=8))
    y = alt.Y("place:O", title="place", axis=alt.Axis(grid=False, domain=False, ticks=False))
    base = alt.Chart(alt.Data(values=[asdict(span) for span in spans])).encode(x=x, x2="end:Q", y=y)
    heading = alt.TitleParams(f"{name}: done after {steps} steps", fontSize=14, fontWeight="normal", offset=6)
    bars = base.mark_bar(height=15, stroke="white", strokeWidth=1.5).encode(color=colour)
    return bars.properties(width=WIDTH, height=alt.Step(19), title=heading)


# --- prefixes ---


FOUND, NEW, PARTIAL = (
    "found: computed before",
    "new: computed now, then findable",
    "not full (its tokens): never findable",
)
HASH_DIGITS = 4
BLOCK_WIDTH, ROW_HEIGHT = 110, 34


@dataclass(frozen=True)
class Piece:
    """One block of a prompt; `start` and `end` in tokens."""

    prompt: str
    start: int
    end: int
    kind: str
    text: str


def pieces(prompts: Mapping[str, Sequence[int]], *, block_size: int) -> Iterator[Piece]:
    """The blocks of the prompts, which are answered in this order by a cache that was empty and is large enough."""
    known: set[bytes] = set()
    for name, tokens in prompts.items():
        hashes = block_hashes(tokens, block_size=block_size)
        for index, each in enumerate(hashes):
            kind = FOUND if each in known else NEW
            yield Piece(name, index * block_size, (index + 1) * block_size, kind, each.hex()[:HASH_DIGITS])
        known.update(hashes)
        full = len(hashes) * block_size
        if full < len(tokens):
            yield Piece(name, full, len(tokens), PARTIAL, str(len(tokens) - full))


def prefix_blocks(
    prompts: Mapping[str, Sequence[int]], *, block_size: int, title: str, caption: str | None = None
) -> Any:
    """A row for each prompt (token numbers, by name), a box for each block. UsageError without prompts.

    A model of the cache (kvcache.block_hashes), not a measurement.
    """
    if not prompts or not all(prompts.values()):
        raise UsageError(f"the chart {title!r} has no prompts", remedy="pass at least one, with tokens")
    import altair as alt

    found = list(pieces(prompts, block_size=block_size))
    longest = max(piece.end for piece in found)
    scale = alt.Scale(domain=[0, longest], nice=False)
    kinds = alt.Scale(domain=[FOUND, NEW, PARTIAL], range=[GREEN, SKY, "#f2f2f2"])
    data = alt.Data(values=[{**asdict(piece), "middle": (piece.start + piece.end) / 2} for piece in found])
    ticks = list(range(0, longest + 1, block_size))
    x = alt.X("start:Q", title="tokens of the prompt", scale=scale, axis=alt.Axis(values=ticks))
    y = alt.Y("prompt:N", title=None, sort=None, axis=alt.Axis(labelLimit=300, domain=False, ticks=False))
    base = alt.Chart(data).encode(y=y)
    colour = alt.Color("kind:N", title=None, scale=kinds, legend=alt.Legend(symbolType="square", symbolStrokeWidth=1))
    boxes = base.mark_bar(height=24, stroke=GREY, strokeWidth=1).encode(x=x, x2="end:Q", color=colour)
    words = base.mark_text(color=INK, fontSize=13).encode(x=alt.X("middle:Q", scale=scale), text="text:N")
    width = min(560, BLOCK_WIDTH * longest / block_size)
    drawn = alt.layer(boxes, words).properties(width=width, height=ROW_HEIGHT * len(prompts))
    return finish(drawn, title=title, description=_description(found, title), caption=caption)


def _description(found: Sequence[Piece], title: str) -> str:
    rows = []
    for name in dict.fromkeys(piece.prompt for piece in found):
        kinds = [piece.kind for piece in found if piece.prompt == name]
        rows.append(
            f"{name}: {kinds.count(FOUND)} blocks found, {kinds.count(NEW)} new, {kinds.count(PARTIAL)} not full"
        )
    return f"{title}. {'; '.join(rows)}."


# --- streams ---


ROW = 30
KINDS = {"a token": BLUE, "the longest gap": VERMILLION, "a part of a prompt": ORANGE, "waits for its turn": "#c9c9c9"}
TOKEN, GAP, PART, STREAM_WAITS = KINDS


@dataclass(frozen=True)
class Lane:
    """One request: when its tokens came, when it came itself, and from when to when the parts of its prompt took.

    `parts`: begin, end and tokens of each. Seconds on one clock. `marked`: its longest gap is drawn.
    """

    name: str
    token_times_s: tuple[float, ...]
    arrived_s: float = 0.0
    parts: tuple[tuple[float, float, int], ...] = ()
    marked: bool = True


def token_streams(panels: Mapping[str, Sequence[Lane]], *, title: str, x_title: str, caption: str | None = None) -> Any:
    """A panel for each entry, one below the other on the same time axis; a row for each request, a tick for each token.

    Raises UsageError without a panel, or with a request that got no token.
    """
    lanes = [lane for lanes in panels.values() for lane in lanes]
    if not lanes or any(not lane.token_times_s for lane in lanes):
        raise UsageError(f"the chart {title!r} has a request without tokens", remedy="pass requests that were answered")
    import altair as alt

    end = max(lane.token_times_s[-1] for lane in lanes)
    scale = alt.Scale(domain=[0, end * 1.02], nice=False)
    drawn = [_streams_panel(name, rows, scale, x_title, last=name == list(panels)[-1]) for name, rows in panels.items()]
    stacked = alt.vconcat(*drawn, spacing=18).resolve_scale(color="shared")
    return finish(stacked, title=title, description=_streams_description(panels), caption=caption)


def _streams_panel(name: str, lanes: Sequence[Lane], scale: Any, x_title: str, *, last: bool) -> Any:
    import altair as alt

    boxes = [box for lane in lanes for box in _boxes(lane)]
    colour = alt.Color(
        "kind:N",
        title=None,
        scale=alt.Scale(domain=list(KINDS), range=list(KINDS.values())),
        legend=alt.Legend(symbolType="square"),
    )
    x = alt.X("start:Q", scale=scale, title=x_title if last else None, axis=alt.Axis(tickCount=8, format="~g"))
    y = alt.Y("lane:N", title=None, sort=[lane.name for lane in lanes], axis=alt.Axis(grid=False, labelLimit=200))
    base = alt.Chart(alt.Data(values=boxes))
    bars = base.mark_bar(height=ROW * 0.5, stroke="white", strokeWidth=1).encode(x=x, x2="end:Q", y=y, color=colour)
    ticks = [{"lane": lane.name, "start": round(at, 4), "kind": TOKEN} for lane in lanes for at in lane.token_times_s]
    marks = alt.Chart(alt.Data(values=ticks)).mark_tick(thickness=2, size=ROW * 0.7).encode(x=x, y=y, color=colour)
    heading = alt.TitleParams(
        _heading(name, lanes), fontSize=14, fontWeight="normal", color=INK, anchor="start", offset=6
    )
    return alt.layer(bars, marks).properties(width=WIDTH, height=alt.Step(ROW), title=heading)


def _boxes(lane: Lane) -> list[dict[str, Any]]:
    rows = [_streams_box(lane, begin, end, PART) for begin, end, _ in lane.parts]
    if lane.parts and lane.parts[0][0] > lane.arrived_s:
        rows.append(_streams_box(lane, lane.arrived_s, lane.parts[0][0], STREAM_WAITS))
    if lane.marked and len(lane.token_times_s) > 1:
        rows.append(_streams_box(lane, *_longest_gap(lane), GAP))
    return rows


def _streams_box(lane: Lane, start: float, end: float, kind: str) -> dict[str, Any]:
    return {"lane": lane.name, "start": round(start, 4), "end": round(end, 4), "kind": kind}


def _longest_gap(lane: Lane) -> tuple[float, float]:
    return max(pairwise(lane.token_times_s), key=lambda pair: pair[1] - pair[0])


def _heading(name: str, lanes: Sequence[Lane]) -> str:
    gaps = [end - begin for lane in lanes if lane.marked for begin, end in pairwise(lane.token_times_s)]
    return f"{name}: longest gap {amount(max(gaps), 's')}" if gaps else name


def _streams_description(panels: Mapping[str, Sequence[Lane]]) -> str:
    parts = []
    for name, lanes in panels.items():
        split = "; ".join(f"{lane.name} computed in {len(lane.parts)} parts" for lane in lanes if lane.parts)
        parts.append(f"{_heading(name, lanes)}, {len(lanes)} requests{f', {split}' if split else ''}")
    return "Token streams over time. " + ". ".join(parts) + "."


# --- packing ---


GPU_ROW, GPU_GAP = 30, 40
PANEL = (WIDTH - GPU_GAP) // 2
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
    plans: Mapping[str, Placement],
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
        _packing_panel(rows, order, names, key=key, words=words, rules=rules, first=key == "memory")
        for key, words, rules in (
            ("memory", "memory (share of a GPU)", {"full": 1.0}),
            ("load", "load (share of a GPU's compute)", {"full": 1.0, "planned": most_load}),
        )
    ]
    drawn = alt.hconcat(*panels, spacing=GPU_GAP).resolve_scale(color="shared", y="shared")
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


def _rows(name: str, plan: Placement, models: Sequence[Model], gpu_gib: float) -> list[dict[str, Any]]:
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


def _packing_panel(
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
    return alt.layer(*layers).properties(width=PANEL, height=GPU_ROW * len(order))


def _in_words(plan: Placement) -> str:
    gpus = sorted(set(plan.values()))
    return ", ".join(f"GPU {gpu} with {' and '.join(name for name, at in plan.items() if at == gpu)}" for gpu in gpus)


def _own(row: Beside) -> str:
    if row.own_low is None or row.own_high is None:
        return amount(row.own, "%")
    return f"{amount(row.own, '%')} ({span(row.own_low, row.own_high, '%')})"


# --- memory ---


STORED, EMPTY = "stored", "given, but empty"
PALE = 0.25
MOST_NAMED = 12  # beyond this many sequences colours repeat too often for a legend


@dataclass(frozen=True)
class Patch:
    """A part of memory that looks the same for some steps: `low` to `high` in tokens, `start` to `end` in steps."""

    owner: str
    kind: str
    low: int
    high: int
    start: int
    end: int


def memory_map(
    panels: Mapping[str, Sequence[MemorySnapshot]],
    *,
    title: str,
    block_size: int | None = None,
    every: int = 1,
    height: int = 210,
    crop: bool = False,
    caption: str | None = None,
) -> Any:
    """A panel for each allocation: memory upwards, steps to the right, a colour for each sequence, pale where empty.

    `block_size`: draws a line at each block's edge of every panel. `every`: only each so many-th step is looked at (a
    smaller drawing). `crop`: each axis ends at the highest place in use. UsageError without snapshots.
    """
    if not panels or not all(panels.values()):
        raise UsageError(f"the chart {title!r} has no steps", remedy="pass at least one snapshot for each panel")
    import altair as alt

    steps = max(snapshots[-1].step for snapshots in panels.values()) + 1
    names = sorted({str(owner + 1) for found in panels.values() for one in found for owner in one.holdings}, key=int)
    drawn = [
        _memory_panel(
            name,
            snapshots,
            names,
            x=_x(steps, last=name == [*panels][-1]),
            block_size=block_size,
            every=every,
            height=height,
            crop=crop,
        )
        for name, snapshots in panels.items()
    ]
    text = "; ".join(f"{name}: {_words(snapshots)}" for name, snapshots in panels.items())
    whole = alt.vconcat(*drawn, spacing=26).resolve_scale(color="shared")
    return finish(whole, title=title, description=f"Memory over time, {title}. {text}.", caption=caption)


def _memory_panel(
    name: str,
    snapshots: Sequence[MemorySnapshot],
    names: list[str],
    *,
    x: Any,
    block_size: int | None,
    every: int,
    height: int,
    crop: bool,
) -> Any:
    import altair as alt

    # what is given lies below what is stored in it
    rows = sorted((asdict(patch) for patch in patches(snapshots, every=every)), key=lambda row: row["kind"] == STORED)
    capacity = max((row["high"] for row in rows), default=1) if crop else snapshots[0].capacity_tokens
    scale = alt.Scale(domain=[0, capacity], nice=False)
    squares = {"symbolType": "square", "symbolSize": 150}
    colour = alt.Color(
        "owner:N",
        title="sequence",
        sort=names,
        scale=alt.Scale(domain=names, range=[palette()[n % len(palette())] for n in range(len(names))]),
        legend=alt.Legend(columns=len(names), **squares) if len(names) <= MOST_NAMED else None,
    )
    opacity = alt.Opacity(
        "kind:N",
        title=None,
        scale=alt.Scale(domain=[STORED, EMPTY], range=[1, PALE]),
        legend=alt.Legend(**squares, symbolFillColor=GREY, symbolStrokeWidth=0),
    )
    boxes = (
        alt.Chart(alt.Data(values=_csv(rows), format=alt.CsvDataFormat(type="csv")))
        .mark_rect()
        .encode(
            x=x,
            x2="end:Q",
            y=alt.Y("low:Q", title="memory (tokens)", scale=scale, axis=alt.Axis(tickCount=5, grid=False)),
            y2="high:Q",
            color=colour,
            opacity=opacity,
            tooltip=["owner:N", "kind:N", "low:Q", "high:Q", "start:Q", "end:Q"],
        )
    )
    frame = alt.Chart(alt.Data(values=[{"top": capacity}])).mark_rule(color=GREY).encode(y=alt.Y("top:Q", scale=scale))
    edges = [{"edge": edge} for edge in range(0, capacity + 1, block_size)] if block_size else []
    lines = (
        alt.Chart(alt.Data(values=edges)).mark_rule(color="white", strokeWidth=1).encode(y=alt.Y("edge:Q", scale=scale))
    )
    heading = alt.TitleParams(f"{name}: {_words(snapshots)}", fontSize=14, fontWeight="normal", offset=6)
    layers = [boxes, lines, frame] if edges else [boxes, frame]
    return alt.layer(*layers).properties(width=WIDTH, height=height, title=heading)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as one text: as a list of objects they would fill half a notebook."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Patch)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _x(steps: int, *, last: bool) -> Any:
    """The axis of steps, with its title below the last panel only."""
    import altair as alt

    scale = alt.Scale(domain=[0, steps], nice=False)
    axis = alt.Axis(tickCount=8, grid=False)
    return alt.X("start:Q", title="steps of the engine" if last else None, scale=scale, axis=axis)


def patches(snapshots: Sequence[MemorySnapshot], *, every: int = 1) -> Iterator[Patch]:
    """The parts of memory in use: what is given, and on top of it what is stored from some step on.

    A stored part reaches from its extent's beginning to what is filled then; the next one, larger, lies over it. So no
    seam shows between them.
    """
    grown: dict[tuple[int, Extent], list[Patch]] = {}
    looked_at = snapshots[::every]
    for snapshot in looked_at:
        filled = _filled(snapshot)
        for key in [key for key in grown if _filled_until(grown[key]) > key[1].start + filled.get(key, -1)]:
            yield from (replace(patch, end=snapshot.step) for patch in grown.pop(key))
        for (owner, extent), stored in filled.items():
            name, low, now = str(owner + 1), extent.start, snapshot.step
            given = Patch(name, EMPTY, low, low + extent.tokens, now, now)
            held = grown.setdefault((owner, extent), [given])
            if low + stored > _filled_until(held):
                held.append(Patch(name, STORED, low, low + stored, now, now))
    end = looked_at[-1].step + every if looked_at else 0
    yield from (replace(patch, end=end) for held in grown.values() for patch in held)


def _filled_until(held: Sequence[Patch]) -> int:
    return held[-1].high if held[-1].kind == STORED else held[-1].low


def _filled(snapshot: MemorySnapshot) -> dict[tuple[int, Extent], int]:
    """How many tokens are stored in each extent of each sequence."""
    found = {}
    for owner, holding in snapshot.holdings.items():
        left = holding.stored_tokens
        for extent in holding.extents:
            found[owner, extent] = min(left, extent.tokens)
            left -= found[owner, extent]
    return found


def _words(snapshots: Sequence[MemorySnapshot]) -> str:
    most = max(one.running for one in snapshots)
    return f"{len(snapshots)} steps, at most {most} at once"


# --- lifecycle ---


ANSWERED = (BLUE, GREEN, PURPLE)
NOT_ANSWERED = (VERMILLION, ORANGE, BLACK)
FATE_FAILED = " failed"  # how the name of a version's own error ends
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
    return [kinds[fate.endswith(FATE_FAILED)] if fate in answered else "cross" for fate in fates]


def _colours(fates: Sequence[str], answered: Sequence[str]) -> list[str]:
    """A colour for each version that answered, and others for what none did, in order."""
    versions = list(dict.fromkeys(fate.removesuffix(FATE_FAILED) for fate in fates if fate in answered))
    rest = [fate for fate in fates if fate not in answered]
    found = {version: ANSWERED[place % len(ANSWERED)] for place, version in enumerate(versions)}
    found |= {fate: NOT_ANSWERED[place % len(NOT_ANSWERED)] for place, fate in enumerate(rest)}
    return [found[fate.removesuffix(FATE_FAILED) if fate in answered else fate] for fate in fates]


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
