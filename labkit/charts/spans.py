"""Rows of boxes from a start to an end: requests, batches, token streams, prompts in blocks, memory over time."""

import heapq
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from labkit.charts import draw
from labkit.charts.draw import PALE
from labkit.charts.render import Chart, finish
from labkit.errors import require
from labkit.theory.prefix_cache import block_hashes
from labkit.vega import BLUE, GREEN, GREY, INK, ORANGE, PALETTE, SKY, VERMILLION, WIDTH, Spec
from labkit.words import amount, number

if TYPE_CHECKING:
    from labkit.load import RequestRecord
    from labkit.theory.kv_allocation import Extent, MemorySnapshot

WHITE: Spec = {"stroke": "white", "strokeWidth": 1}
WIDE: Spec = {"stroke": "white", "strokeWidth": 1.5}


@dataclass(frozen=True)
class Span:
    """A box in a row, from `start` to `end` on the chart's axis, coloured by its kind."""

    row: str | int
    start: float
    end: float
    kind: str
    text: str = ""


def _boxes(spans: Iterable[Span], kinds: Mapping[str, str], *, digits: int = 4, **look: Any) -> Spec:
    """Bars for `spans`; `kinds`: the colour of each kind, in the legend's order."""
    colour = draw.series("kind", kinds, kinds.values(), symbolType="square")
    return draw.mark("bar", {"x2": "end", "color": colour}, _rows(spans, digits), **look)


def _rows(spans: Iterable[Span], digits: int) -> list[Spec]:
    return [
        {"row": span.row, "start": round(span.start, digits), "end": round(span.end, digits), "kind": span.kind}
        for span in spans
    ]


def anatomy(record: "RequestRecord") -> Chart:
    """Draw one streamed request to scale: arrivals, E2E, TTFT, ITL and TPOT by vLLM's definitions.

    UsageError for a request that failed or returned fewer than two chunks.
    """
    chunks = len(record.chunk_times_s)
    what = f"request {record.index} returned {chunks} chunks ({record.outcome})"
    require(record.ok and chunks > 1, what, fix="draw a completed request that was streamed")
    lanes = _lanes(record)
    rows = _rows((replace(span, row=n) for n, spans in enumerate(lanes.values()) for span in spans), digits=5)
    rows = [{**row, "top": row["row"] + 0.46, "bottom": row["row"] + 0.88} for row in rows]
    first, end = (at - record.started_s for at in (record.chunk_times_s[0], record.chunk_times_s[-1]))
    x_title = "seconds since the request was sent"
    x = draw.quantity("start", x_title, (0, end * 1.01), grid=False, tickCount=6, format="~f")
    y = {**draw.quantity("top", domain=(len(lanes), 0)), "axis": None}
    boxes = {"x": x, "x2": "end", "y": y, "y2": "bottom", "color": {"field": "kind", "type": "nominal", "scale": None}}
    texts = [{"at": n + 0.24, "text": text} for n, text in enumerate(lanes)]
    drawn = [
        draw.mark("rule", {"x": "start"}, [{"start": at} for at in (0.0, first, end)], color=GREY, strokeDash=[3, 3]),
        draw.mark("rect", boxes, rows, stroke="white", strokeWidth=0.7),
        draw.words({"y": {**y, "field": "at"}}, texts, x=4, align="left", baseline="middle", fontSize=14),
    ]
    panel = draw.layers(drawn, width=WIDTH, height=62 * len(lanes))
    return finish(panel, title="The parts of one request", description=". ".join(lanes) + ".")


def _lanes(record: "RequestRecord") -> dict[str, list[Span]]:
    """The rows of `anatomy`, top to bottom: the text above each, and its boxes in seconds since the start."""
    times = [at - record.started_s for at in record.chunk_times_s]
    first, last, half = times[0], times[-1], times[-1] / 800
    gaps, tokens = record.itl_s, record.output_tokens
    longest = max(range(len(gaps)), key=gaps.__getitem__)
    shades = [VERMILLION if n == longest else (SKY, BLUE)[n % 2] for n in range(len(gaps))]
    median, most = amount(statistics.median(gaps), "s"), amount(max(gaps), "s")
    count = "" if tokens is None else f", {number(tokens)} tokens by the server's count"

    def boxes(ends: Iterable[tuple[float, float]], *colours: str) -> list[Span]:
        return [Span(0, start, end, colours[n % len(colours)]) for n, (start, end) in enumerate(ends)]

    lanes = {
        f"What arrives: {len(times)} chunks{count}": boxes([(at - half, at + half) for at in times], INK),
        f"E2E {amount(last, 's')}: until the last token": boxes([(0, last)], GREY),
        f"TTFT {amount(first, 's')}: until the first token (queue and prefill)": boxes([(0, first)], ORANGE),
        f"ITL: {len(gaps)} gaps between chunks, median {median}, longest {most}": boxes(pairwise(times), *shades),
    }
    if (tpot := record.tpot_s) is not None and tokens is not None:
        text = f"TPOT {amount(tpot, 's')} = (E2E - TTFT) / ({number(tokens)} - 1): the same time, divided evenly"
        lanes[text] = boxes([(first + tpot * n, first + tpot * (n + 1)) for n in range(tokens - 1)], GREEN)
    return lanes


ANSWER, PADDING = "a token of an answer", "padding"


def static_spans(lengths: Sequence[int], *, batch: int) -> Iterator[Span]:
    """Batches of `batch` rows, each as long as its longest answer (in tokens); the next starts when all are done."""
    start = 0
    for first in range(0, len(lengths), batch):
        answers = lengths[first : first + batch]
        end = start + max(answers)
        for slot, length in enumerate(answers, start=1):
            yield Span(slot, start, start + length, ANSWER)
            if start + length < end:
                yield Span(slot, start + length, end, PADDING)
        start = end


def continuous_spans(lengths: Sequence[int], *, batch: int) -> Iterator[Span]:
    """Give each free slot to the next request at once (first come, first served)."""
    free = [(0, slot) for slot in range(1, batch + 1)]
    for length in lengths:
        start, slot = heapq.heappop(free)
        yield Span(slot, start, start + length, ANSWER)
        heapq.heappush(free, (start + length, slot))


def batch_grid(lengths: Sequence[int], *, batch: int, title: str) -> Chart:
    """Draw both policies for answers of `lengths` tokens on `batch` slots, one step per token. UsageError if empty.

    A simulation, not a measurement: all steps are equally long, and prefill is left out.
    """
    is_possible = bool(lengths) and min(lengths) >= 1 and batch >= 1
    fix = "pass at least one answer of one token or more, and one slot"
    require(is_possible, f"{len(lengths)} answers on {batch} slots cannot be drawn", fix=fix)
    static, continuous = (list(spans(lengths, batch=batch)) for spans in (static_spans, continuous_spans))
    static_steps, steps = (max(int(span.end) for span in spans) for spans in (static, continuous))
    axes = {
        "x": draw.quantity("start", "decode steps", (0, max(static_steps, steps)), tickCount=8),
        "y": draw.labels("row", title="slot", grid=False),
    }
    parts = []
    for policy, spans in ((f"static batches: done after {static_steps} steps", static),
                          (f"continuous batching: done after {steps} steps", continuous)):  # fmt: skip
        boxes = _boxes(spans, {ANSWER: BLUE, PADDING: ORANGE}, height=15, **WIDE)
        parts.append(draw.layers([boxes], axes, title=draw.heading(policy), width=WIDTH, height={"step": 19}))
    wasted = sum(int(span.end - span.start) for span in static if span.kind == PADDING)
    text = (
        f"{len(lengths)} answers on {batch} slots. Static batches take {static_steps} steps and compute {wasted} "
        f"tokens of padding; continuous batching takes {steps} steps and computes none."
    )
    return finish(draw.column(parts, spacing=22, color="shared"), title=title, description=text)


FOUND, NEW = "found in the cache", "computed now, then cached"
PARTIAL = "partial block (its tokens)"
HASH_DIGITS = 4


def pieces(prompts: Mapping[str, Sequence[int]], *, block_size: int) -> Iterator[Span]:
    """The blocks of prompts that arrive in this order at a large, initially empty cache."""
    known: set[bytes] = set()
    for name, tokens in prompts.items():
        hashes = block_hashes(tokens, block_size=block_size)
        for start, block in zip(range(0, len(tokens), block_size), hashes, strict=False):
            kind = FOUND if block in known else NEW
            yield Span(name, start, start + block_size, kind, block.hex()[:HASH_DIGITS])
        known.update(hashes)
        full = len(hashes) * block_size
        if full < len(tokens):
            yield Span(name, full, len(tokens), PARTIAL, str(len(tokens) - full))


def prefix_blocks(prompts: Mapping[str, Sequence[int]], *, block_size: int, title: str) -> Chart:
    """Draw a row for each prompt (token ids by name), a box for each block.

    Computed by prefix_cache.block_hashes, not measured.
    """
    has_tokens = bool(prompts) and all(map(len, prompts.values()))
    require(has_tokens, f"the chart {title!r} has no prompts", fix="pass at least one, with tokens")
    blocks = list(pieces(prompts, block_size=block_size))
    longest = max(map(len, prompts.values()))
    width = min(560, 110 * longest / block_size)
    edges = list(range(0, longest + 1, block_size))
    axes = {
        "x": draw.quantity("start", "tokens of the prompt", (0, longest), values=edges, tickCount=width // 40 + 1),
        "y": draw.labels("row", labelLimit=300),
    }
    boxes = _boxes(blocks, {FOUND: GREEN, NEW: SKY, PARTIAL: "#f2f2f2"}, height=24, stroke=GREY, strokeWidth=1)
    boxes["encoding"]["color"]["legend"]["symbolStrokeWidth"] = 1
    names = [{"row": block.row, "middle": (block.start + block.end) / 2, "text": block.text} for block in blocks]
    text = draw.mark("text", {"x": "middle", "text": "text"}, names, color=INK, fontSize=13)
    drawn = draw.layers([boxes, text], axes, width=width, height=34 * len(prompts))
    counts = "; ".join(
        f"{name}: {kinds.count(FOUND)} blocks found, {kinds.count(NEW)} new, {kinds.count(PARTIAL)} not full"
        for name in prompts
        for kinds in [[block.kind for block in blocks if block.row == name]]
    )
    return finish(drawn, title=title, description=f"{title}. {counts}.")


TOKEN, GAP, PART, QUEUED = "a token", "the longest gap", "a chunk of a prompt", "waiting"
STREAM = {TOKEN: BLUE, GAP: VERMILLION, PART: ORANGE, QUEUED: PALE}
LANE = 30


@dataclass(frozen=True)
class Lane:
    """One request: its arrival, its token times, and the parts in which its prompt was computed.

    `parts`: begin, end and tokens of each. Seconds on one clock. `marked`: its longest gap is drawn.
    """

    name: str
    token_times_s: tuple[float, ...]
    arrived_s: float = 0.0
    parts: tuple[tuple[float, float, int], ...] = ()
    marked: bool = True

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """Begin and end of each gap between two tokens; empty unless `marked`."""
        return list(pairwise(self.token_times_s)) if self.marked else []

    @property
    def spans(self) -> Iterator[Span]:
        """The parts of its prompt, its wait for the first, and its longest gap."""
        yield from (Span(self.name, begin, end, PART) for begin, end, _ in self.parts)
        if self.parts and self.parts[0][0] > self.arrived_s:
            yield Span(self.name, self.arrived_s, self.parts[0][0], QUEUED)
        if self.gaps:
            yield Span(self.name, *max(self.gaps, key=_length), GAP)


def token_streams(panels: Mapping[str, Sequence[Lane]], *, title: str, x_title: str) -> Chart:
    """Draw a panel for each entry on the same time axis: a row for each request, a tick for each token.

    UsageError without a panel, or for a request without tokens.
    """
    all_lanes = [lane for lanes in panels.values() for lane in lanes]
    is_answered = bool(all_lanes) and all(lane.token_times_s for lane in all_lanes)
    fix = "pass requests that were answered"
    require(is_answered, f"the chart {title!r} has a request without tokens", fix=fix)
    domain = (0, max(lane.token_times_s[-1] for lane in all_lanes) * 1.02)
    parts, says = [], []
    for name, lanes in panels.items():
        gaps = [_length(gap) for lane in lanes for gap in lane.gaps]
        heading = f"{name}: longest gap {amount(max(gaps), 's')}" if gaps else name
        split = "; ".join(f"chunks of {lane.name}: {len(lane.parts)}" for lane in lanes if lane.parts)
        says.append(", ".join(filter(None, [heading, f"{len(lanes)} requests", split])))
        x = draw.quantity("start", x_title if len(says) == len(panels) else None, domain, tickCount=8, format="~g")
        y = draw.labels("row", sort=[lane.name for lane in lanes], framed=True, grid=False, labelLimit=200)
        bars = _boxes((span for lane in lanes for span in lane.spans), STREAM, height=LANE * 0.5, **WHITE)
        rows = [{"row": lane.name, "start": round(at, 4), "kind": TOKEN} for lane in lanes for at in lane.token_times_s]
        ticks = draw.mark("tick", {"color": bars["encoding"]["color"]}, rows, thickness=2, size=LANE * 0.7)
        about = {"title": draw.heading(heading), "width": WIDTH, "height": {"step": LANE}}
        parts.append(draw.layers([bars, ticks], {"x": x, "y": y}, **about))
    text = f"Token streams over time. {'. '.join(says)}."
    return finish(draw.column(parts, spacing=18, color="shared"), title=title, description=text)


def _length(ends: tuple[float, float]) -> float:
    return ends[1] - ends[0]


STORED, EMPTY = "stored", "allocated, but empty"
MOST_NAMED = 12  # with more sequences, colours repeat too often for a legend


@dataclass(frozen=True)
class Patch:
    """A part of memory that is unchanged for some steps: `low` to `high` in tokens, `start` to `end` in steps."""

    owner: str
    kind: str
    low: int
    high: int
    start: int
    end: int


def memory_map(
    panels: Mapping[str, Sequence["MemorySnapshot"]],
    *,
    title: str,
    block_size: int | None = None,
    every: int = 1,
    height: int = 210,
) -> Chart:
    """Draw a panel for each allocation: memory upwards, steps to the right, a colour for each sequence, pale if empty.

    `block_size`: draw a line at each block's edge. `every`: draw every n-th step only, for a smaller chart.
    """
    has_steps = bool(panels) and all(panels.values())
    require(has_steps, f"the chart {title!r} has no steps", fix="pass at least one snapshot for each panel")
    steps = max(snapshots[-1].step for snapshots in panels.values()) + 1
    owners = {owner for snapshots in panels.values() for snapshot in snapshots for owner in snapshot.holdings}
    names = [str(owner + 1) for owner in sorted(owners)]
    squares = {"symbolType": "square", "symbolSize": 150}
    colour = draw.series("owner", names, [PALETTE[n % len(PALETTE)] for n in range(len(names))])
    legend = {"title": "sequence", "columns": len(names), **squares} if len(names) <= MOST_NAMED else None
    opacity = draw.series("kind", [STORED, EMPTY], [1, 0.25], **squares, symbolFillColor=GREY, symbolStrokeWidth=0)
    # Ordinal: Vega-Lite warns of opacity for a nominal field.
    looks = {"color": {**colour, "title": "sequence", "legend": legend}, "opacity": {**opacity, "type": "ordinal"}}
    columns = {"owner": "string", "kind": "string"} | dict.fromkeys(("low", "high", "start", "end"), "number")
    parts, says = [], []
    for name, snapshots in panels.items():
        says.append(
            f"{name}: {len(snapshots)} steps, at most {max(snapshot.running for snapshot in snapshots)} at once"
        )
        # Draw allocated memory below the tokens stored in it.
        drawn = sorted(patches(snapshots, every=every), key=lambda patch: patch.kind == STORED)
        top = snapshots[0].capacity_tokens
        x_title = "steps of the engine" if len(says) == len(panels) else None
        x = draw.quantity("start", x_title, (0, steps), tickCount=8, grid=False)
        y = draw.quantity("low", "memory (tokens)", (0, top), tickCount=5, grid=False)
        tooltip = [{"field": column} for column in columns]
        encoding = {"x": x, "x2": "end", "y": y, "y2": "high", **looks, "tooltip": tooltip}
        marks = [draw.mark("rect", encoding, draw.table(map(astuple, drawn), **columns))]
        if block_size:
            edges = [{"edge": edge} for edge in range(0, top + 1, block_size)]
            marks.append(draw.mark("rule", {"y": "edge"}, edges, color="white", strokeWidth=1))
        marks.append(draw.mark("rule", {"y": "top"}, [{"top": top}], color=GREY))
        parts.append(draw.layers(marks, width=WIDTH, height=height, title=draw.heading(says[-1])))
    text = f"Memory over time, {title}. {'; '.join(says)}."
    return finish(draw.column(parts, spacing=26, color="shared"), title=title, description=text)


def patches(snapshots: Sequence["MemorySnapshot"], *, every: int = 1) -> Iterator[Patch]:
    """The parts of memory in use: allocated extents, and over them the tokens stored from some step on.

    A stored part begins at its extent's start; the next, larger one is drawn over it, so that no seam shows.
    """
    grown: dict[tuple[int, Extent], list[Patch]] = {}
    sampled = snapshots[::every]
    for snapshot in sampled:
        now, filled = snapshot.step, _filled(snapshot)
        for key in [key for key in grown if _filled_until(grown[key]) > key[1].start + filled.get(key, -1)]:
            yield from (replace(patch, end=now) for patch in grown.pop(key))
        for (owner, extent), stored in filled.items():
            allocated = Patch(str(owner + 1), EMPTY, extent.start, extent.start + extent.tokens, now, now)
            held = grown.setdefault((owner, extent), [allocated])
            if extent.start + stored > _filled_until(held):
                held.append(replace(allocated, kind=STORED, high=extent.start + stored))
    end = sampled[-1].step + every if sampled else 0
    yield from (replace(patch, end=end) for held in grown.values() for patch in held)


def _filled_until(held: Sequence[Patch]) -> int:
    return held[-1].high if held[-1].kind == STORED else held[-1].low


def _filled(snapshot: "MemorySnapshot") -> dict[tuple[int, "Extent"], int]:
    """Tokens stored in each extent of each sequence."""
    filled = {}
    for owner, holding in snapshot.holdings.items():
        left = holding.stored_tokens
        for extent in holding.extents:
            filled[owner, extent] = min(left, extent.tokens)
            left -= filled[owner, extent]
    return filled
