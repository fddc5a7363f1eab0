"""Lab 05's code shown from its files, its charts, and its exercises' rules against independent counts."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course import lab_05
from labkit import charts
from labkit.charts import panels
from labkit.charts.panels import MOST, _thinned
from labkit.display import show_source, source_of
from labkit.errors import UsageError
from labkit.theory import queues

# --- sources


def test_a_class_is_shown_with_its_decorators() -> None:
    """The source of a named class begins with its decorator and ends with its last line; it can be compiled."""
    text = source_of(queues, "Service")
    assert text.startswith("@dataclass(frozen=True, kw_only=True)\nclass Service:")
    compile(text, "shown", "exec")


def test_methods_and_functions_come_in_the_order_asked_for() -> None:
    """A method by its class's name, a function by its own, separated by an empty line."""
    text = source_of(queues, "Service.step_of", "law")
    assert text.index("def step_of") < text.index("def law")
    assert "class" not in text


def test_without_names_the_file_is_shown() -> None:
    """The whole file, from its docstring on."""
    assert source_of(queues).startswith('"""Queues in front')


def test_an_unknown_name_is_told_the_known_ones() -> None:
    """A name that is not there is refused with the names that are."""
    with pytest.raises(UsageError, match="has no Nobody") as caught:
        source_of(queues, "Nobody")
    assert "Service.step_of" in caught.value.remedy


def test_source_is_printed_with_its_files_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Outside of a notebook it is printed, the file's name above it, relative to the repository."""
    show_source(queues, "law")
    assert capsys.readouterr().out.startswith("# labkit/theory/queues.py\n\ndef law")


# --- the timeline of a load

REPLICAS = [(0.0, 1), (5.0, 1), (9.0, 2), (12.0, 3), (20.0, 1)]
UNDER_WAY = [(0.5, 1), (0.6, 0), (4.0, 7), (15.0, 0)]
LATENCIES = [(0.5, 0.1), (4.0, 3.0), (8.0, 1.2)]


def timeline(**changes: Any) -> dict[str, Any]:
    """The chart's specification."""
    data = {"replicas": REPLICAS, "under_way": UNDER_WAY, "latencies": LATENCIES, "title": "T", **changes}
    return dict(panels.scaling_timeline(**data))


def test_the_timeline_has_three_panels_on_one_axis() -> None:
    """Replicas, requests under way and latency, each to the same end; what is said in words has the extremes."""
    found = timeline(moments=[charts.Moment(3.0, "the step")])
    assert len(found["vconcat"]) == 3
    domains = {str(panel["encoding"]["x"]["scale"]["domain"]) for panel in found["vconcat"]}
    assert len(domains) == 1
    assert "1 from 0.0 s, 2 from 9.0 s, 3 from 12.0 s" in found["description"]
    assert "At most 7 requests under way. Latency from 0.10 to 3.00 s; the step at 3.0 s" in found["description"]


def test_lost_requests_are_crosses_and_words() -> None:
    """Each lost request is a mark, and their number is told to whoever cannot see them."""
    text = charts.svg(timeline(lost=[2.0, 2.5]))
    assert "2 requests lost" in timeline(lost=[2.0, 2.5])["description"]
    assert text.startswith("<svg")


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=1500), st.integers(0, 20))
def test_a_thinned_curve_keeps_its_top_and_its_end(gaps: list[float], seed: int) -> None:
    """However many points, few are drawn, in order of time; the highest value and the last point are among them."""
    times = list(itertools.accumulate(gaps))
    points = [(at, float((n * 7919 + seed) % 101)) for n, at in enumerate(times)]
    drawn = _thinned(points, times[-1])
    assert len(drawn) <= MOST + 2
    assert [at for at, _ in drawn] == sorted(at for at, _ in drawn)
    assert max(value for _, value in drawn) == max(value for _, value in points)
    assert drawn[-1] == points[-1]
    assert set(drawn) <= set(points)


def test_a_timeline_without_anything_is_refused() -> None:
    """Without replicas or latencies there is nothing to draw."""
    for missing in ("replicas", "latencies"):
        with pytest.raises(UsageError, match="nothing to show"):
            timeline(**{missing: []})


# --- the exercises' rules

seconds = st.floats(0.01, 5)


@given(st.lists(seconds, min_size=1, max_size=6), st.data())
def test_parallel_stages_take_their_longest_path(lengths: list[float], data: st.DataObject) -> None:
    """The time is the longest of all paths, found here by trying every one; never above the chain's."""
    stages: dict[str, lab_05.Stage] = {}
    for n, length in enumerate(lengths):
        before = data.draw(st.sets(st.sampled_from(sorted(stages)))) if stages else set()
        stages[f"s{n}"] = lab_05.Stage(length, tuple(sorted(before)))
    names = list(stages)
    longest = max(
        sum(stages[name].seconds for name in path)
        for size in range(1, len(names) + 1)
        for path in itertools.combinations(names, size)
        if all(earlier in stages[later].needs for earlier, later in itertools.pairwise(path))
    )
    found = lab_05.parallel_s(stages)
    assert found == pytest.approx(longest)
    assert max(lengths) <= found <= lab_05.chain_s(stages) * (1 + 1e-9)


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from([0, 0.25, 0.5, 1])), min_size=1, max_size=6))
def test_gpus_are_asked_for_by_each_replica(asked: list[tuple[int, float]]) -> None:
    """The total is that of a list with one entry for every replica."""
    deployments = [lab_05.Asked(str(n), replicas, 0.1, gpus) for n, (replicas, gpus) in enumerate(asked)]
    assert lab_05.total_gpus(deployments) == sum(gpus for replicas, gpus in asked for _ in range(replicas))
