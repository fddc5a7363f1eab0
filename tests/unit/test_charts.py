"""Charts: offline, described, with machine and guess in them, and drawn from the data that they were given."""

import base64
import io
import json
import re
import struct
from collections.abc import Callable, Iterator
from functools import cache
from html import unescape
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit import charts
from labkit.charts import Bar, Lane, LinePoint, LoadPoint, Tradeoff
from labkit.charts.curves import LETTER, label_levels, quantile, steps
from labkit.charts.render import VEGA_LITE, live_bundle
from labkit.charts.spans import phases
from labkit.charts.theme import set_caption
from labkit.errors import UsageError
from labkit.load import Outcome, RequestRecord
from labkit.vega import INK, MIME, WIDTH

CAPTION = "2 CPUs (a model), 24 GiB, no GPU"


def record(
    index: int = 0, *, due: float = 0.0, waits: float = 0.0, gaps: tuple[float, ...] = (0.4, 0.1, 0.3), **other: Any
) -> RequestRecord:
    """A request whose chunks come after the given gaps, the first of which is its TTFT."""
    start = due + waits
    times = tuple(start + sum(gaps[: n + 1]) for n in range(len(gaps)))
    known = {"input_tokens": 8, "output_tokens": 2 * len(gaps), "outcome": Outcome.OK, **other}
    return RequestRecord(
        index=index,
        scheduled_s=due,
        started_s=start,
        chunk_times_s=times,
        finished_s=(times[-1] if times else start) + 0.001,
        **known,
    )


POINTS = [LoadPoint(2.0**n, 27 * 1.7**n, 0.5 + n, 0.8 + 2 * n, 25 * 1.7**n, 29 * 1.7**n) for n in range(6)]
STREAM = Lane("A", (0.1, 0.2, 1.7, 1.8))
LATE = Lane("long", (1.7,), arrived_s=0.2, parts=((0.4, 1.0, 90), (1.0, 1.7, 12)), marked=False)
TRADEOFFS = [
    Tradeoff("128", 0.5, 3.0, 0.4, 0.6, 2.9, 3.2),
    Tradeoff("4096, threshold 128", 0.52, 2.9),
    Tradeoff("4096", 3, 2),
]
CHARTS: dict[str, Callable[[], Any]] = {
    "token_streams": lambda: charts.token_streams({"one": [STREAM, LATE], "two": [STREAM]}, title="T", x_title="s"),
    "tradeoff": lambda: charts.tradeoff(
        TRADEOFFS, title="Off", x_title="gap (s)", y_title="wait (s)", curve=[(0.5, 3), (3, 2)], slo_s=1.0, guess=2.0
    ),
    "request_timeline": lambda: charts.request_timeline(
        [record(n, due=n / 9, waits=n / 50) for n in range(5)] + [record(5, outcome=Outcome.TIMEOUT)]
    ),
    "anatomy": lambda: charts.anatomy(record()),
    "throughput_latency": lambda: charts.throughput_latency(POINTS, title="Load", guess=120, slo_s=2.0),
    "bars_with_intervals": lambda: charts.bars_with_intervals(
        [Bar("one", 3, 2, 4), Bar("two", 5)], title="Bars", unit="tok/s", guess=2, article=4, model=4.5
    ),
    "ecdf": lambda: charts.ecdf({"a": [1.0, 2, 3], "b": [n / 50 for n in range(200)]}, title="Shares"),
    "tail": lambda: charts.tail({"a": [1.0, 2, 3], "b": [n / 50 for n in range(200)]}, title="Tail"),
    "lines": lambda: charts.lines(
        [LinePoint(x, x * x, low=x, high=x * x + 1) for x in range(5)],
        title="L",
        x_title="x (s)",
        y_title="y (s)",
        guess=3,
    ),
}


@cache
def drawing(name: str) -> str:
    """The SVG of a chart, drawn once: drawing is what takes the time here."""
    return charts.svg(CHARTS[name]())


every_chart = pytest.mark.parametrize("name", CHARTS)


@pytest.fixture(autouse=True)
def caption() -> Iterator[None]:
    """A machine's line under every chart, taken away again."""
    set_caption(CAPTION)
    yield
    set_caption("")


def rows(chart: Any) -> list[dict[str, Any]]:
    """All data of a chart."""

    def inside(part: Any) -> Iterator[dict[str, Any]]:
        for key, value in part.items() if isinstance(part, dict) else enumerate(part if isinstance(part, list) else ()):
            if key == "data":
                yield from value["values"]
            else:
                yield from inside(value)

    return list(inside(charts.spec(chart)))


# --- what holds for every chart ---


@every_chart
def test_a_chart_draws_and_says_what_it_is(name: str) -> None:
    """Its SVG is drawn by Vega-Lite 5, carries title, machine and description, and points nowhere outside."""
    drawn, spec = drawing(name), charts.spec(CHARTS[name]())
    words = unescape(drawn)
    assert CAPTION in words
    assert spec["title"]["text"] in words
    assert f'aria-label="{spec["description"]}"' in words
    assert not re.findall(r"(?:href|src|url)\s*[=(]\s*[\"']?https?:", drawn)
    assert "NaN" not in drawn


@every_chart
def test_a_chart_needs_nothing_of_vega_lite_6(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Vega-Lite 5 compiles it without a warning."""
    vl_convert = pytest.importorskip("vl_convert")
    vl_convert.vegalite_to_vega(charts.spec(CHARTS[name]()), vl_version=VEGA_LITE, show_warnings=True)
    assert "WARN" not in capfd.readouterr().err


@every_chart
def test_the_same_data_give_the_same_chart(name: str) -> None:
    """Specification and drawing are the same in a second run, so that stored notebooks do not change."""
    assert charts.spec(CHARTS[name]()) == charts.spec(CHARTS[name]())
    assert charts.svg(CHARTS[name]()) == drawing(name)


@every_chart
def test_all_text_can_be_read(name: str) -> None:
    """No text is smaller than 13 pixels."""
    sizes = [float(size) for size in re.findall(r'font-size="([\d.]+)px"', drawing(name))]
    assert sizes
    assert min(sizes) >= 13


@every_chart
def test_a_chart_is_small(name: str) -> None:
    """With its PNG a chart adds less than 60 kB to a notebook, and the PNG is on white."""
    image = pytest.importorskip("PIL.Image")
    data, metadata = charts.bundle(CHARTS[name]())
    assert len(json.dumps(data)) < 60_000
    drawn = image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
    assert drawn.getpixel((0, 0)) == (255, 255, 255)
    assert drawn.width == 2 * metadata["image/png"]["width"]


@pytest.mark.parametrize("guess_chart", ["throughput_latency", "bars_with_intervals", "lines"])
def test_the_guess_is_drawn_in(guess_chart: str) -> None:
    """The guess stands in the drawing as a dashed rule with a label."""
    drawn = drawing(guess_chart)
    assert "your guess: " in drawn
    assert "stroke-dasharray" in drawn


# --- the renderer ---


def test_the_bundle_is_for_jupyterlabs_vega_lite_5() -> None:
    """Version 5's mime type and schema, SVG renderer, no action menu; the PNG has an alternative text."""
    data, metadata = charts.bundle(CHARTS["anatomy"]())
    assert set(data) == {MIME, "image/png", "text/plain"}
    assert data[MIME]["$schema"].endswith("/v5.json")
    assert metadata[MIME]["embed_options"] == {"renderer": "svg", "actions": False}
    assert metadata["image/png"]["alt"] == data[MIME]["description"]


def test_a_live_chart_waits_for_no_png() -> None:
    """A widget's callback cannot wait for a PNG; an empty one keeps JupyterLab from making its own."""
    data, metadata = live_bundle(CHARTS["anatomy"]())
    assert struct.unpack(">16xII", base64.b64decode(data["image/png"])[:24]) == (1, 1), "width and height"
    assert metadata["image/png"]["alt"] == data[MIME]["description"]
    assert "image/png" not in charts.bundle(CHARTS["anatomy"](), png=False)[0]


@pytest.fixture
def altairs_own() -> Iterator[None]:
    """Gives Altair its own display back after a test."""
    yield
    alt = pytest.importorskip("altair")
    alt.renderers.enable("default")
    alt.theme.enable("default")


@pytest.mark.usefixtures("altairs_own")
def test_enable_takes_over_altairs_display() -> None:
    """After enable any Altair chart shows by our renderer, in our colours and with the given caption."""
    alt = pytest.importorskip("altair")
    charts.enable(caption="one GPU", png=False)
    own = alt.Chart(alt.Data(values=[{"a": 1}])).mark_point().encode(x="a:Q").properties(description="a point")
    data, _ = own._repr_mimebundle_()
    assert data[MIME]["config"]["range"]["category"] == charts.palette()
    assert charts.spec(CHARTS["anatomy"]())["title"]["subtitle"] == "one GPU"


def test_a_chart_without_words_is_refused() -> None:
    """No description and no title: a usage error that says what to add."""
    with pytest.raises(UsageError, match="description"):
        charts.bundle({"mark": "point"}, png=False)
    with pytest.raises(UsageError, match="description"):
        charts.finish(None, title="t", description=" ")


def test_text_has_contrast() -> None:
    """Text on white reaches the 7:1 that WCAG asks at its highest level (relative luminance as defined there)."""

    def channel(value: int) -> float:
        share = value / 255
        return share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4

    for colour in (INK, charts.config()["title"]["subtitleColor"]):
        red, green, blue = (channel(int(colour[n : n + 2], 16)) for n in (1, 3, 5))
        assert 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05) >= 7


# --- each chart's own ---

gap = st.floats(0.01, 5, allow_nan=False)


@given(st.builds(record, due=gap, waits=st.floats(0.01, 2), gaps=st.lists(gap, max_size=4).map(tuple)))
def test_a_timelines_bars_cover_each_request(one: RequestRecord) -> None:
    """From when a request was due to its last token its bars follow each other without a hole or an overlap."""
    bars = phases(one)
    end = one.chunk_times_s[-1] if one.chunk_times_s else one.finished_s
    assert bars[0]["start"] == pytest.approx(one.scheduled_s, abs=1e-3)
    assert bars[-1]["end"] == pytest.approx(end, abs=1e-3)
    assert all(earlier["end"] == later["start"] for earlier, later in pairwise(bars))


def test_a_timeline_shows_the_first_ones_and_says_so() -> None:
    """More requests than fit are cut, and axis and description say how many there were."""
    chart = charts.request_timeline([record(n, due=n) for n in range(60)], limit=10)
    spec = charts.spec(chart)
    assert "(the first 10 of 60)" in json.dumps(spec["layer"])
    assert "10 of 60" in spec["description"]
    assert {row["request"] for row in rows(chart) if "request" in row} == set(range(10))


def test_a_failed_request_is_named() -> None:
    """The outcome stands beside the bar of a request that failed."""
    assert "timeout" in drawing("request_timeline")


def test_anatomy_draws_the_metrics_to_scale() -> None:
    """The boxes of TPOT are TPOT wide, those of ITL are the gaps, and together they fill E2E without TTFT."""
    one = record(gaps=(0.5, 0.1, 0.3, 0.2))
    boxes: dict[int, list[float]] = {}
    for row in rows(charts.anatomy(one)):
        if "colour" in row:
            boxes.setdefault(row["lane"], []).append(row["end"] - row["start"])
    assert boxes[1] == pytest.approx([one.e2e_s])
    assert boxes[2] == pytest.approx([one.ttft_s])
    assert boxes[3] == pytest.approx(list(one.itl_s), abs=1e-4)
    assert one.output_tokens is not None
    assert boxes[4] == pytest.approx([one.tpot_s] * (one.output_tokens - 1), abs=1e-4)
    assert sum(boxes[3]) == pytest.approx(sum(boxes[4]), abs=1e-3)


@pytest.mark.parametrize("one", [record(gaps=(0.4,)), record(gaps=()), record(outcome=Outcome.TIMEOUT)])
def test_anatomy_needs_a_stream(one: RequestRecord) -> None:
    """A request that failed or came in one piece cannot be taken apart."""
    with pytest.raises(UsageError, match="chunks"):
        charts.anatomy(one)


def test_latencies_far_apart_get_a_log_axis() -> None:
    """When the largest latency is 30 times the smallest or more, a linear axis would hide the small ones."""
    near = json.dumps(charts.spec(charts.throughput_latency(POINTS[:2], title="t")))
    far = [*POINTS, LoadPoint(64, 9, 20, 60)]
    assert near.count('"log"') < json.dumps(charts.spec(charts.throughput_latency(far, title="t"))).count('"log"')


def test_only_measured_loads_are_ticks() -> None:
    """The load axis has a tick where something was measured and nowhere else."""
    spec = charts.spec(charts.throughput_latency([LoadPoint(n, n, 1, 2) for n in (1, 3, 12)], title="t"))
    assert json.dumps([1, 3, 12]) in json.dumps(spec)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99]))
def test_quantiles_are_numpys(values: list[float], share: float) -> None:
    """The quantile is the one that numpy's default method gives."""
    numpy = pytest.importorskip("numpy")
    assert quantile(values, share) == pytest.approx(numpy.quantile(values, share), rel=1e-9, abs=1e-6)


@given(st.lists(st.integers(1, 900), min_size=1, max_size=1500))
def test_a_distribution_keeps_its_shape_when_thinned(values: list[int]) -> None:
    """Each step stands at a share that holds at its value, no step is higher than the drawing can show, none is lost
    at the end."""
    drawn = steps("a", values, above=False)
    for row in drawn[1:]:
        at_most, below = (sum(test(value) for value in values) for test in (row["value"].__ge__, row["value"].__gt__))
        assert below / len(values) - 1e-6 <= row["share"] <= at_most / len(values) + 1e-6
    assert (drawn[-1]["value"], drawn[-1]["share"]) == (max(values), 1)
    assert len(drawn) <= 352
    assert max(b["share"] - a["share"] for a, b in pairwise(drawn)) <= max(1 / len(values), 1 / 150) + 1e-6


def test_a_p99_of_few_samples_is_not_shown() -> None:
    """Below a hundred samples no sample lies above the p99: the slowest one is named instead."""
    text = charts.spec(charts.ecdf({"few": [1.0] * 99, "many": [1.0] * 100}, title="t"))["description"]
    assert "99 requests: too few for a p99" in text
    assert text.count("p99 1 s") == 1


@pytest.mark.parametrize(
    "empty",
    [
        lambda: charts.request_timeline([]),
        lambda: charts.throughput_latency([], title="t"),
        lambda: charts.lines([], title="t", x_title="x", y_title="y"),
        lambda: charts.bars_with_intervals([], title="t", unit="s"),
        lambda: charts.ecdf({}, title="t"),
        lambda: charts.tail({"a": []}, title="t"),
    ],
)
def test_nothing_to_draw_is_a_usage_error(empty: Callable[[], Any]) -> None:
    """An empty chart is an error with a remedy, not an empty picture."""
    with pytest.raises(UsageError) as caught:
        empty()
    assert caught.value.remedy


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9, 1e12])
def test_awkward_numbers_are_drawn(value: float) -> None:
    """Zero, negative, tiny and huge values give a drawing without NaN."""
    for chart in (
        charts.bars_with_intervals([Bar("a", value)], title="t", unit="s", guess=1),
        charts.lines([LinePoint(0, value), LinePoint(1, 1)], title="t", x_title="x", y_title="y", guess=value),
    ):
        assert "NaN" not in charts.svg(chart)


def test_labels_of_equal_references_do_not_overlap() -> None:
    """Guess, article and model at the same value stand in rows of their own."""
    drawn = charts.svg(charts.bars_with_intervals([Bar("a", 5)], title="t", unit="x", guess=4, article=4, model=4))
    places = re.findall(r'transform="translate\(([-\d.]+),([-\d.]+)\)"[^>]*>(your guess|the article|the model):', drawn)
    heights = sorted(float(y) for _, y, _ in places)
    assert len(heights) == 3
    assert min(b - a for a, b in pairwise(heights)) >= 13


# --- token streams and trade-offs


def test_token_streams_say_the_longest_gap_and_the_parts() -> None:
    """Each panel's heading has the longest gap of its marked rows; the description counts a prompt's parts."""
    spec = charts.spec(CHARTS["token_streams"]())
    assert [panel["title"]["text"] for panel in spec["vconcat"]] == ["one: longest gap 1.5 s", "two: longest gap 1.5 s"]
    assert "long computed in 2 parts" in spec["description"]
    boxes = [(row["kind"], row["start"], row["end"]) for row in rows_of(spec["vconcat"][0]) if "end" in row]
    assert ("waits for its turn", 0.2, 0.4) in boxes
    assert ("the longest gap", 0.2, 1.7) in boxes
    assert boxes.count(("a part of a prompt", 1.0, 1.7)) == 1


def rows_of(panel: dict[str, Any]) -> list[dict[str, Any]]:
    """All data rows of a layered chart."""
    return [row for layer in panel["layer"] for row in layer["data"]["values"]]


def test_a_stream_without_tokens_is_refused() -> None:
    """A request that was never answered cannot be drawn as a stream, and neither can nothing."""
    for panels in ({}, {"one": [Lane("A", ())]}):
        with pytest.raises(UsageError, match="without tokens"):
            charts.token_streams(panels, title="T", x_title="s")


def test_a_tradeoff_needs_points() -> None:
    """Without a point there is nothing to trade off."""
    with pytest.raises(UsageError, match="no points"):
        charts.tradeoff([], title="T", x_title="x", y_title="y")


@given(st.lists(st.tuples(st.floats(0.01, 3), st.integers(1, 24)), min_size=1, max_size=9))
def test_labels_of_a_tradeoff_never_overlap(points: list[tuple[float, int]]) -> None:
    """Two labels in one row are apart by at least the width of their letters."""
    given_points = [Tradeoff("x" * letters, at, 1.0) for at, letters in points]
    ordered = sorted(given_points, key=lambda one: one.x_s)
    levels = label_levels(given_points, right=3.0)
    for level in set(levels):
        row = [one for one, at in zip(ordered, levels, strict=True) if at == level]
        for left, right in pairwise(row):
            apart = (right.x_s - left.x_s) / 3.0 * WIDTH
            assert apart >= (len(left.label) + len(right.label)) / 2 * LETTER
