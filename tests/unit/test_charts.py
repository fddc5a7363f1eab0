"""Charts: offline, described, with machine and guess, and true to their data."""

import base64
import io
import json
import re
import struct
from collections.abc import Callable
from html import unescape
from itertools import accumulate, pairwise, takewhile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit import charts
from labkit.charts.bars import Bar
from labkit.charts.curves import LETTER, LinePoint, LoadPoint, Tradeoff, label_levels
from labkit.charts.panels import MOST, StepPanel, _thinned
from labkit.charts.spans import EMPTY, FOUND, PARTIAL, STORED, Lane, patches, pieces
from labkit.errors import UsageError
from labkit.load import Outcome, RequestRecord
from labkit.theory.kv_allocation import Extent, Holding, MemorySnapshot, Policy, TokenSequence, allocate
from labkit.vega import INK, MIME, WIDTH, config, live_bundle
from tests.unit.chart_drill import assert_draws_and_says_what_it_is


def record(
    index: int = 0, *, gaps: tuple[float, ...] = (0.4, 0.1, 0.3), outcome: Outcome = Outcome.OK
) -> RequestRecord:
    """A request whose chunks, of two tokens each, come after the given gaps, the first of which is its TTFT."""
    times = tuple(accumulate(gaps))
    return RequestRecord(index, 0.0, 0.0, times, max(times, default=0.0) + 0.001, 8, 2 * len(gaps), outcome)


def memory(policy: Policy = Policy.PAGED, *, block_size: int = 16, tokens: int = 128) -> list[MemorySnapshot]:
    """Three sequences of the given policy, step by step."""
    lengths = [(40, 9), (12, 30), (33, 12)]
    sequences = [TokenSequence(arrival=2 * n, prompt_tokens=p, output_tokens=o) for n, (p, o) in enumerate(lengths)]
    return allocate(sequences, policy=policy, memory_tokens=tokens, max_model_len=64, block_size=block_size)


T: dict[str, Any] = {"title": "T"}
AXES: dict[str, Any] = {**T, "x_title": "x (s)", "y_title": "y (s)"}
LOADS = [LoadPoint(2.0**n, 27 * 1.7**n, 0.5 + n, 0.8 + 2 * n, 25 * 1.7**n, 29 * 1.7**n) for n in range(6)]
STREAM = Lane("A", (0.1, 0.2, 1.7, 1.8))
LATE = Lane("long", (1.7,), arrived_s=0.2, parts=((0.4, 1.0, 90), (1.0, 1.7, 12)), marked=False)
TRADEOFFS = [Tradeoff("128", 0.5, 3.0), Tradeoff("threshold", 0.52, 0.4), Tradeoff("4096", 3, 2)]
COMPUTED = [LinePoint(x, 1 + x / 64 * n, f"series {n}") for n in (1, 2) for x in range(0, 129, 16)]
MEASURED = [
    LinePoint(x, 1 + x / 60 * n, f"series {n}", 1 + x / 70 * n, 1 + x / 50 * n) for n in (1, 2) for x in (0, 64)
]
PROMPTS = {"first": [*range(70)], "second": [*range(64), 900, 901], "other": [5, *range(69)]}
BOTH = {"contiguous": memory(Policy.RESERVE_MAX), "paged": memory()}
STEPS = [
    StepPanel("running", {"engine": [1, 2, 2], "model": [1, 2, 1]}),
    StepPanel("usage (%)", {"engine": [10.0, 90.0, 100.0]}, top=105),
]
PARTS = {"one": [("weights", 14.0), ("free", 26)], "two": [("weights", 14.0), ("weights", 14), ("free", 12)]}
MOMENTS = [charts.Moment(0.4, "2.0 is there"), charts.Moment(0.9, "1.0 is deleted")]
LOAD: dict[str, Any] = {
    "replicas": [(0.0, 1), (5.0, 1), (9.0, 2), (12.0, 3), (20.0, 1)],
    "in_flight": [(0.5, 1), (0.6, 0), (4.0, 7), (15.0, 0)],
    "latencies": [(0.5, 0.1), (4.0, 3.0), (8.0, 1.2)],
}
CHARTS: dict[str, Callable[[], Any]] = {
    "bars": lambda: charts.bars_with_intervals(
        [Bar("one", 3, 2, 4), Bar("two", 5)], unit="tok/s", guess=2, article=4, formula=("by hand", 4.5), **T
    ),
    "stacked": lambda: charts.stacked_bars(PARTS, unit="GiB", rest="free", **T),
    "loads": lambda: charts.throughput_latency(LOADS, **T),
    "lines": lambda: charts.lines([LinePoint(x, x * x, low=x, high=x * x + 1) for x in range(5)], **AXES),
    "computed": lambda: charts.computed_and_measured(COMPUTED, MEASURED, unit="x", **AXES),
    "tradeoff": lambda: charts.tradeoff(TRADEOFFS, slo_s=1.0, **AXES),
    "anatomy": lambda: charts.anatomy(record()),
    "batches": lambda: charts.batch_grid([3, 4, 6, 24], batch=2, **T),
    "streams": lambda: charts.token_streams({"one": [STREAM, LATE], "two": [STREAM]}, x_title="s", **T),
    "blocks": lambda: charts.prefix_blocks(PROMPTS, block_size=32, **T),
    "memory": lambda: charts.memory_map(BOTH, block_size=16, **T),
    "steps": lambda: charts.step_panels(STEPS, **T),
    "scaling": lambda: charts.scaling_timeline(**LOAD, moments=MOMENTS, lost=[2.0, 2.5], unnoticed=(0.4, 0.9), **T),
    "dots": lambda: charts.dots({"A": ([1.0, 2.0], [3.0]), "B": ([], [2.5])}, x_title="x", unit="s", slo=2.0, **T),
}


def rows(part: Any) -> list[dict[str, Any]]:
    """All data of a chart or a part of one."""
    inside = part.items() if isinstance(part, dict) else enumerate(part if isinstance(part, list) else ())
    return [row for key, value in inside for row in (value["values"] if key == "data" else rows(value))]


def test_every_chart_draws_and_says_what_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    """Charts are valid, small, readable and offline; equal data give equal charts."""
    for draw in CHARTS.values():
        chart = draw()
        assert_draws_and_says_what_it_is(chart, capfd)
        assert chart == draw()


LABELS = {"bars": ["your guess: 2 tok/s", "by hand: 4.5 tok/s"]}
DESCRIPTIONS = {
    "streams": ["chunks of long: 2"],
    "computed": ["series 2 at 64: 3.13x", "computed dashed lines"],
    "blocks": ["second: 2 blocks found, 0 new, 1 not full"],
    "batches": ["Static batches take 28 steps and compute 19 tokens of padding; continuous batching takes 28"],
    "scaling": [
        *("1 from 0.0 s, 2 from 9.0 s, 3 from 12.0 s", "At most 7 requests in flight", "2 requests lost"),
        "Latency from 0.10 to 3.00 s; 2.0 is there at 0.4 s",
        "not noticed from 0.4 to 0.9 s",
    ],
    "dots": ["A: 2 dots from 1 to 2 s, 1 hollow", "B: 0 dots, 1 hollow"],
}


def test_labels_and_descriptions_have_the_figures() -> None:
    """Guesses and formulas are labels in the drawing; descriptions state the results."""
    drawn = {name: unescape(charts.svg(CHARTS[name]())) for name in LABELS}
    assert [label for name, labels in LABELS.items() for label in labels if f">{label}<" not in drawn[name]] == []
    described = {name: CHARTS[name]()["description"] for name in DESCRIPTIONS}
    assert [text for name, texts in DESCRIPTIONS.items() for text in texts if text not in described[name]] == []


NOTHING: list[Callable[[], Any]] = [
    lambda: charts.throughput_latency([], **T),
    lambda: charts.lines([], **AXES),
    lambda: charts.bars_with_intervals([], unit="s", **T),
    lambda: charts.dots({"A": ([], [])}, x_title="x", unit="s", **T),
    lambda: charts.token_streams({}, x_title="s", **T),
    lambda: charts.token_streams({"one": [Lane("A", ())]}, x_title="s", **T),
    lambda: charts.tradeoff([], **AXES),
    lambda: charts.memory_map({"a": []}, **T),
    lambda: charts.step_panels([StepPanel("x", {"a": []})], **T),
    lambda: charts.stacked_bars({}, unit="GiB", **T),
    lambda: charts.stacked_bars({"a": [("b", -1.0)]}, unit="GiB", **T),
    lambda: charts.prefix_blocks({}, block_size=32, **T),
    lambda: charts.computed_and_measured([], MEASURED, **AXES),
    lambda: charts.scaling_timeline(**{**LOAD, "replicas": []}, **T),
]


def test_nothing_to_draw_is_a_usage_error() -> None:
    """Empty data raise an error that names the chart, with a remedy; so does a missing description."""
    for draw in NOTHING:
        with pytest.raises(UsageError, match="'T'") as caught:
            draw()
        assert caught.value.remedy
    with pytest.raises(UsageError, match="description"):
        charts.bundle({"mark": "point"}, png=False)
    with pytest.raises(UsageError, match="description"):
        charts.finish({}, title="t", description=" ")


def test_awkward_numbers_are_drawn() -> None:
    """Zero, negative, tiny and huge values give a drawing without NaN."""
    for value in (0.0, -3.0, 1e-9, 1e12):
        bars = charts.bars_with_intervals([Bar("a", value)], unit="s", guess=1, **T)
        line = charts.lines([LinePoint(0, value), LinePoint(1, 1)], **AXES)
        loads = charts.throughput_latency([LoadPoint(1, value, 1, 1)], **T)
        assert "NaN" not in charts.svg(bars) + charts.svg(line) + charts.svg(loads)


def test_the_bundle_is_for_jupyterlabs_vega_lite_5() -> None:
    """Version 5's mime type and schema, SVG renderer, no action menu; a PNG on white with an alternative text."""
    image = pytest.importorskip("PIL.Image")
    data, metadata = CHARTS["anatomy"]()._repr_mimebundle_()
    assert set(data) == {MIME, "image/png", "text/plain"}
    assert data[MIME]["$schema"].endswith("/v5.json")
    assert metadata[MIME]["embed_options"] == {"renderer": "svg", "actions": False}
    assert metadata["image/png"]["alt"] == data[MIME]["description"]
    drawn = image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
    assert drawn.getpixel((0, 0)) == (255, 255, 255)
    assert drawn.width == 2 * metadata["image/png"]["width"]
    assert len(data["image/png"]) < 40_000
    live, metadata = live_bundle(CHARTS["anatomy"]())  # a widget's callback cannot wait for a PNG
    assert struct.unpack(">16xII", base64.b64decode(live["image/png"])[:24]) == (1, 1), "width and height"
    assert metadata["image/png"]["alt"] == live[MIME]["description"]


def test_text_has_contrast() -> None:
    """Text on white reaches the 7:1 that WCAG asks at its highest level (relative luminance as defined there)."""

    def channel(value: int) -> float:
        share = value / 255
        return share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4

    for colour in (INK, config()["title"]["subtitleColor"]):
        red, green, blue = (channel(int(colour[n : n + 2], 16)) for n in (1, 3, 5))
        assert 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05) >= 7


def test_each_name_that_the_package_lists_can_be_imported() -> None:
    assert all(getattr(charts, name) for name in dir(charts))


def test_anatomy_draws_the_metrics_to_scale() -> None:
    """The boxes of TPOT are TPOT wide, those of ITL are the gaps, and together they fill E2E without TTFT. A request
    that failed or came in one piece cannot be taken apart."""
    request = record(gaps=(0.5, 0.1, 0.3, 0.2))
    boxes: dict[int, list[float]] = {}
    for row in rows(charts.anatomy(request)):
        if "kind" in row:
            boxes.setdefault(row["row"], []).append(row["end"] - row["start"])
    assert boxes[1] == pytest.approx([request.e2e_s])
    assert boxes[2] == pytest.approx([request.ttft_s])
    assert boxes[3] == pytest.approx(list(request.itl_s), abs=1e-4)
    assert request.output_tokens is not None
    assert boxes[4] == pytest.approx([request.tpot_s] * (request.output_tokens - 1), abs=1e-4)
    assert sum(boxes[3]) == pytest.approx(sum(boxes[4]), abs=1e-3)
    for failed in (record(gaps=(0.4,)), record(gaps=()), record(outcome=Outcome.TIMEOUT)):
        with pytest.raises(UsageError, match="chunks"):
            charts.anatomy(failed)


def test_token_streams_mark_the_longest_gap_and_the_parts() -> None:
    """Each panel's heading has the longest gap of its marked rows; boxes are the gap, the wait and the parts."""
    first, second = CHARTS["streams"]()["vconcat"]
    assert [part["title"]["text"] for part in (first, second)] == [
        f"{name}: longest gap 1.5 s" for name in ("one", "two")
    ]
    boxes = [(row["kind"], row["start"], row["end"]) for row in rows(first) if "end" in row]
    assert ("waiting", 0.2, 0.4) in boxes
    assert ("the longest gap", 0.2, 1.7) in boxes
    assert boxes.count(("a chunk of a prompt", 1.0, 1.7)) == 1


def test_a_load_chart_has_its_loads_as_ticks_and_a_log_axis_for_latencies_far_apart() -> None:
    """Ticks are where something was measured. From 30 times the smallest latency on a linear axis would hide those."""
    near, far = [LoadPoint(n, n, 1, 2) for n in (1, 3, 12)], LoadPoint(64, 9, 20, 60)
    linear, log = (json.dumps(charts.throughput_latency(loads, **T)) for loads in (near, [*near, far]))
    assert json.dumps([1, 3, 12]) in linear
    assert linear.count('"log"') < log.count('"log"')


def test_labels_of_equal_references_do_not_overlap() -> None:
    """Guess, article and formula at the same value have separate rows."""
    drawn = charts.svg(
        charts.bars_with_intervals([Bar("a", 5)], unit="x", guess=4, article=4, formula=("by hand", 4), **T)
    )
    place = r'transform="translate\([-\d.]+,([-\d.]+)\)"[^>]*>(?:your guess|the article|by hand):'
    lowest, middle, highest = sorted(map(float, re.findall(place, drawn)))
    assert min(middle - lowest, highest - middle) >= 13


@given(st.lists(st.tuples(st.floats(0.01, 3), st.integers(1, 24)), min_size=1, max_size=9))
def test_labels_of_a_tradeoff_never_overlap(points: list[tuple[float, int]]) -> None:
    """Two labels in one row are apart by at least the width of their letters."""
    ordered = [Tradeoff("x" * letters, at, 1.0) for at, letters in sorted(points)]
    levels = label_levels(ordered, right=3.0)
    for level in set(levels):
        row = [point for point, at in zip(ordered, levels, strict=True) if at == level]
        for left, right in pairwise(row):
            apart = (right.x_s - left.x_s) / 3.0 * WIDTH
            assert apart >= (len(left.label) + len(right.label)) / 2 * LETTER


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=40), min_size=1, max_size=6), st.integers(1, 8))
def test_a_prompt_is_drawn_whole_and_found_as_the_cache_finds(prompts: list[list[int]], block_size: int) -> None:
    """Pieces cover each prompt without a gap; the blocks drawn as found are those of an earlier prompt's beginning."""
    named = {str(k): prompt for k, prompt in enumerate(prompts)}
    drawn = list(pieces(named, block_size=block_size))
    for number, (name, prompt) in enumerate(named.items()):
        mine = [piece for piece in drawn if piece.row == name]
        assert [piece.start for piece in mine] + [len(prompt)] == [0, *(piece.end for piece in mine)]
        pairs = (zip(earlier, prompt, strict=False) for earlier in prompts[:number])
        common = (len(list(takewhile(lambda pair: pair[0] == pair[1], each))) for each in pairs)
        assert sum(piece.kind == FOUND for piece in mine) == max(common, default=0) // block_size
        assert sum(piece.kind == PARTIAL for piece in mine) == (len(prompt) % block_size > 0)


@given(st.sampled_from(Policy), st.sampled_from([1, 2, 4, 8, 16, 32]), st.sampled_from([64, 128]), st.integers(1, 4))
def test_the_patches_show_each_step_as_it_was(policy: Policy, block_size: int, tokens: int, every: int) -> None:
    """At every step looked at, what is drawn as given and as stored is what each sequence had and had stored, also
    where 64 tokens of memory are too few and a sequence loses its blocks and gets others."""
    seen = memory(policy, block_size=block_size, tokens=tokens)
    drawn = list(patches(seen, every=every))
    for snapshot in seen[::every]:
        shown = [patch for patch in drawn if patch.start <= snapshot.step < patch.end]
        given_now = sum(patch.high - patch.low for patch in shown if patch.kind == EMPTY)
        assert given_now == snapshot.given_tokens
        tops: dict[tuple[str, int], int] = {}
        for patch in shown:
            if patch.kind == STORED:
                tops[patch.owner, patch.low] = max(tops.get((patch.owner, patch.low), 0), patch.high)
        stored = sum(high - low for (_, low), high in tops.items())
        assert stored == sum(holding.stored_tokens for holding in snapshot.holdings.values())


def test_both_charts_of_a_run_count_its_steps_from_0() -> None:
    """The curves begin where the map of the same snapshots begins, and change at the same step."""
    held = [Holding(8, (Extent(32 * (step // 3), 32),)) for step in range(6)]  # another block from step 3 on
    seen = [
        MemorySnapshot(step=n, running=1, waiting=0, preemptions=0, capacity_tokens=64, holdings={0: holding})
        for n, holding in enumerate(held)
    ]
    moved = [float(snapshot.holdings[0].extents[0].start) for snapshot in seen]
    curve = [row["step"] for row in rows(charts.step_panels([StepPanel("block", {"a": moved})], **T))]
    assert sorted({*curve} - {5}) == sorted({patch.start for patch in patches(seen)}) == [0, 3]


def test_parts_follow_each_other_and_keep_their_colour() -> None:
    """Each part begins where the one before ended, also when a kind comes again; the rest is last in the legend."""
    chart = CHARTS["stacked"]()
    assert [(row["start"], row["end"]) for row in rows(chart) if row["row"] == "two"] == [(0, 14), (14, 28), (28, 40)]
    assert chart["layer"][0]["encoding"]["color"]["scale"]["domain"] == ["weights", "free"]


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=1500), st.integers(0, 20))
def test_a_thinned_curve_keeps_its_top_and_its_end(gaps: list[float], seed: int) -> None:
    """However many points, few are drawn, in order of time; the highest value and the last point are among them."""
    times = list(accumulate(gaps))
    points = [(at, float((n * 7919 + seed) % 101)) for n, at in enumerate(times)]
    drawn = _thinned(points, times[-1])
    assert len(drawn) <= MOST + 2
    assert [at for at, _ in drawn] == sorted(at for at, _ in drawn)
    assert max(value for _, value in drawn) == max(value for _, value in points)
    assert drawn[-1] == points[-1]
    assert set(drawn) <= set(points)


def test_panels_share_an_axis_and_show_every_value() -> None:
    """A load's three panels end together; each value is a dot on an axis from zero, and tells whether it had ended."""
    ends = [str(panel["encoding"]["x"]["scale"]["domain"]) for panel in CHARTS["scaling"]()["vconcat"]]
    assert (len(ends), len(set(ends))) == (3, 1)
    points = CHARTS["dots"]()["layer"][0]
    assert [(row["value"], row["ended"]) for row in rows([points])] == [
        (1.0, True),
        (2.0, True),
        (3.0, False),
        (2.5, False),
    ]
    low, high = points["encoding"]["x"]["scale"]["domain"]
    assert (low, high >= 3.0) == (0, True)
