"""Charts of memory: blocks over time, quantities step by step, parts of a whole; drawn from the data as it is."""

import re
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit import charts
from labkit.charts.spans import EMPTY, STORED, patches
from labkit.charts.theme import set_caption
from labkit.errors import UsageError
from labkit.theory.kv_allocation import MemorySnapshot, Policy, TokenSequence, allocate

LENGTHS = [(40, 9), (12, 30), (33, 12)]


def some_snapshots(policy: Policy = Policy.PAGED, *, block_size: int = 16, memory: int = 128) -> list[MemorySnapshot]:
    sequences = [TokenSequence(arrival=2 * n, prompt_tokens=p, output_tokens=o) for n, (p, o) in enumerate(LENGTHS)]
    return allocate(sequences, policy=policy, memory_tokens=memory, max_model_len=64, block_size=block_size)


CHARTS: dict[str, Callable[[], Any]] = {
    "memory_map": lambda: charts.memory_map(
        {"contiguous": some_snapshots(Policy.RESERVE_MAX), "paged": some_snapshots()}, title="Two ways", block_size=16
    ),
    "step_panels": lambda: charts.step_panels(
        [
            charts.StepPanel("running", {"engine": [1, 2, 2], "model": [1, 2, 1]}),
            charts.StepPanel("usage (%)", {"engine": [10.0, 90.0, 100.0]}, top=105),
        ],
        title="Steps",
    ),
    "stacked_bars": lambda: charts.stacked_bars(
        {
            "one": [("weights", 14.0), ("cache", 20), ("free", 6)],
            "two": [("weights", 14.0), ("weights", 14), ("free", 12)],
        },
        title="Parts",
        unit="GiB",
        rest="free",
    ),
}


@pytest.mark.parametrize("name", CHARTS)
def test_each_chart_is_drawn_offline_with_its_words(name: str) -> None:
    """It becomes an SVG with its title, the machine's caption and a description, without an address to fetch."""
    set_caption("2 CPUs (a model)")
    chart = CHARTS[name]()
    set_caption("")
    drawing = unescape(charts.svg(chart))
    title = charts.spec(chart)["title"]
    assert title["text"] in drawing
    assert title["subtitle"] == "2 CPUs (a model)"
    assert not re.search(r"https?://(?!www\.w3\.org)", drawing)
    assert len(charts.spec(chart)["description"]) > 30


def filled_at(snapshot: MemorySnapshot, drawn: list[Any]) -> dict[tuple[str, int], int]:
    """What the patches show at a step: the upper end of what is stored, by sequence and extent."""
    shown: dict[tuple[str, int], int] = {}
    for patch in drawn:
        if patch.kind == STORED and patch.start <= snapshot.step < patch.end:
            shown[patch.owner, patch.low] = max(shown.get((patch.owner, patch.low), 0), patch.high)
    return shown


@pytest.mark.parametrize("policy", Policy)
@settings(max_examples=40, deadline=None)
@given(block_size=st.integers(1, 32), every=st.integers(1, 4))
def test_the_patches_show_each_step_as_it_was(policy: Policy, block_size: int, every: int) -> None:
    """At every step looked at, what is drawn as given and as stored is what each sequence had and had stored."""
    found = some_snapshots(policy, block_size=block_size)
    drawn = list(patches(found, every=every))
    for one in found[::every]:
        given_now = sum(p.high - p.low for p in drawn if p.kind == EMPTY and p.start <= one.step < p.end)
        assert given_now == one.given_tokens
        stored = sum(high - low for (_, low), high in filled_at(one, drawn).items())
        assert stored == sum(holding.stored_tokens for holding in one.holdings.values())


def test_the_patches_of_preempted_sequences_end_when_they_are_thrown_out() -> None:
    """A sequence that loses its blocks loses its colour, and gets another when it comes back."""
    both = [TokenSequence(arrival=0, prompt_tokens=7, output_tokens=8)] * 2
    found = allocate(both, policy=Policy.PAGED, memory_tokens=16, max_model_len=64, block_size=4)
    drawn = list(patches(found))
    thrown_out = next(one.step for one in found if one.preemptions)
    assert {patch.end for patch in drawn if patch.owner == "2" and patch.start < thrown_out} == {thrown_out}
    assert any(patch.owner == "2" and patch.start > thrown_out for patch in drawn)


def test_a_cropped_axis_ends_at_the_highest_place() -> None:
    """`crop` leaves out what nobody ever used; without it the axis is the whole memory."""

    def top(**options: bool) -> float:
        chart = charts.memory_map({"paged": some_snapshots(memory=4096)}, title="T", **options)  # type: ignore[arg-type]
        return float(charts.spec(chart)["vconcat"][0]["layer"][0]["encoding"]["y"]["scale"]["domain"][1])

    assert top() == 4096
    assert top(crop=True) < 4096


def test_parts_follow_each_other_and_keep_their_colour() -> None:
    """Each part begins where the one before ended, also when a kind comes again; the rest is last in the legend."""
    drawn = charts.spec(CHARTS["stacked_bars"]())
    values = drawn["layer"][0].get("data", drawn.get("data"))["values"]
    two = [(row["start"], row["end"]) for row in values if row["row"] == "two"]
    assert two == [(0, 14), (14, 28), (28, 40)]
    assert drawn["layer"][0]["encoding"]["color"]["scale"]["domain"] == ["weights", "cache", "free"]


@pytest.mark.parametrize(
    "broken",
    [
        lambda: charts.memory_map({}, title="T"),
        lambda: charts.memory_map({"a": []}, title="T"),
        lambda: charts.step_panels([], title="T"),
        lambda: charts.step_panels([charts.StepPanel("x", {"a": []})], title="T"),
        lambda: charts.stacked_bars({}, title="T", unit="GiB"),
        lambda: charts.stacked_bars({"a": [("b", -1.0)]}, title="T", unit="GiB"),
    ],
)
def test_nothing_to_draw_is_refused(broken: Callable[[], Any]) -> None:
    """Without data, or with a part below zero, the message names the chart."""
    with pytest.raises(UsageError, match="'T'"):
        broken()
