"""Traces: prompts share exactly what their hash ids share, and generated traces have the given statistics."""

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median, pvariance, quantiles
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.modelled import traces
from labkit.modelled.traffic import FIRST_TOKEN, TOKENS
from tests.unit.refusals import not_refused
from tests.unit.test_prefix_cache import common_prefix

# Lines 40, 41, 99, 253, 262 and 551 of FAST25-release/traces/conversation_trace.jsonl (github.com/kvcache-ai/Mooncake,
# Apache-2.0, commit 3b5a594).
EXCERPT = """\
{"timestamp": 12000, "input_length": 2038, "output_length": 524, "hash_ids": [0, 972, 973, 974]}
{"timestamp": 12000, "input_length": 1902, "output_length": 587, "hash_ids": [0, 975, 976, 977]}
{"timestamp": 33000, "input_length": 1322, "output_length": 514, "hash_ids": [0, 2932, 2933]}
{"timestamp": 86999, "input_length": 1309, "output_length": 111, "hash_ids": [0, 6625, 6626]}
{"timestamp": 90000, "input_length": 1902, "output_length": 654, "hash_ids": [0, 975, 976, 977]}
{"timestamp": 179999, "input_length": 1641, "output_length": 93, "hash_ids": [0, 6625, 10667, 12605]}
"""
GOOD: dict[str, Any] = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}


@pytest.fixture
def excerpt(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text(EXCERPT)
    return path


def write(folder: Path, *lines: dict[str, Any]) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_an_excerpt_of_mooncakes_trace(excerpt: Path) -> None:
    """Lines of the real file keep their lengths, times (from 0, divided by the speed) and sharing, counted by hand."""
    trace, faster = traces.from_mooncake(excerpt), traces.from_mooncake(excerpt, speed=4)
    assert [len(request.token_ids) for request in trace.requests][:3] == [2038, 1902, 1322]
    assert [request.output_tokens for request in trace.requests][-2:] == [654, 93]
    assert [request.due_s for request in trace.requests] == [0.0, 0.0, 21.0, 74.999, 78.0, 167.999]
    assert [request.due_s * 4 for request in faster.requests] == [request.due_s for request in trace.requests]
    assert trace.shared_tokens == 512 * (0 + 1 + 1 + 1 + 0 + 2) + 1902  # the fifth line repeats a whole prompt
    assert trace.notes == ()


@st.composite
def prefix_trees(draw: st.DrawFn) -> list[list[int]]:
    """Lists of block ids as a prefix cache names them: an id stands for a block and all the blocks before it."""
    names = draw(st.permutations([0, 1, 2, 39_999, 40_000, 40_001, 79_999, 80_000, 120_000, TOKENS**2 - 1]))
    paths = draw(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=3), min_size=2, max_size=4))
    ids: dict[tuple[int, ...], int] = {}
    for path in paths:
        for end in range(1, len(path) + 1):
            ids.setdefault(tuple(path[:end]), names[len(ids)])
    return [[ids[tuple(path[:end])] for end in range(1, len(path) + 1)] for path in paths]


@given(prefix_trees(), st.sampled_from([2, 3, 16, 512]), st.data())
def test_prompts_share_what_their_ids_share(
    tmp_path_factory: pytest.TempPathFactory, paths: list[list[int]], block_tokens: int, data: st.DataObject
) -> None:
    """Two prompts agree in the blocks that their ids share, differ within two tokens after them, and are in range."""
    lengths = [data.draw(st.integers((len(ids) - 1) * block_tokens + 2, len(ids) * block_tokens)) for ids in paths]
    lines = [
        {"timestamp": 0, "input_length": length, "output_length": 1, "hash_ids": ids}
        for length, ids in zip(lengths, paths, strict=True)
    ]
    path = write(tmp_path_factory.mktemp("traces"), *lines)
    prompts = [request.token_ids for request in traces.from_mooncake(path, block_tokens=block_tokens).requests]
    assert [len(prompt) for prompt in prompts] == lengths
    assert all(FIRST_TOKEN <= token < FIRST_TOKEN + TOKENS for prompt in prompts for token in prompt)
    for first_ids, first in zip(paths, prompts, strict=True):
        for second_ids, second in zip(paths, prompts, strict=True):
            shared = common_prefix(first_ids, second_ids) * block_tokens
            most = min(len(first), len(second))
            assert min(shared, most) <= common_prefix(first, second) <= min(shared + 1, most)


def test_lines_are_sorted_filtered_and_noted(tmp_path: Path) -> None:
    """Lines out of order are sorted stably, long requests omitted, missing outputs get a token; notes count each."""
    path = write(
        tmp_path,
        {**GOOD, "timestamp": 5000, "output_length": 1, "session_id": "x"},
        {**GOOD, "timestamp": 2000.5, "output_length": 0},
        {**GOOD, "timestamp": 5000, "output_length": 2},
        {**GOOD, "timestamp": 1000, "output_length": 401},
    )
    trace = traces.from_mooncake(path, longest=1000)
    assert [request.due_s for request in trace.requests] == [0.0, 2.9995, 2.9995]
    assert [request.output_tokens for request in trace.requests] == [1, 1, 2]
    assert trace.notes == (
        "1 of 4 requests have more than 1000 tokens: left out",
        "1 steps back in time: sorted",
        "1 requests without output: 1 token each",
    )
    assert [request.output_tokens for request in traces.from_mooncake(path, n=2).requests] == [401, 1]


def test_a_bad_line_is_refused_with_its_number(tmp_path: Path) -> None:
    """A bad line is refused with the file, its number (counting empty lines) and the reason."""
    path = tmp_path / "trace.jsonl"
    table: list[tuple[Any, str]] = [
        ("not json", "malformed"),
        ("[1]", "object"),
        ("\xff\xfe", "not UTF-8"),
        ('{"timestamp": 0, "input_length": 600, "output_length": 5}', "hash_ids"),
        ('{"input_length": 600, "output_length": 5, "hash_ids": [1, 2]}', "timestamp"),
        ({"timestamp": -1}, "$.timestamp"),
        ({"input_length": 0}, "$.input_length"),
        ({"output_length": -1}, "$.output_length"),
        ({"hash_ids": [-1, 2]}, "$.hash_ids"),
        ({"hash_ids": [1, 2**60]}, "$.hash_ids"),
        ({"hash_ids": [1]}, "1 hash_ids; an input_length of 600 makes 2 blocks of 512"),
        ({"hash_ids": [1, 2, 3]}, "3 hash_ids"),
        ({"input_length": 512}, "2 hash_ids; an input_length of 512 makes 1 blocks"),
    ]

    def third_line(line: Any) -> None:
        text = line if isinstance(line, str) else json.dumps(GOOD | line)
        path.write_bytes(f"{json.dumps(GOOD)}\n\n{text}\n".encode("latin-1"))
        traces.from_mooncake(path)

    assert not_refused(third_line, table) == []
    assert not_refused(third_line, [(line, f"{path}, line 3: ") for line, _ in table]) == []


def test_a_trace_needs_requests(excerpt: Path, tmp_path: Path) -> None:
    """Too few lines, only too long ones, an empty and a missing file each have their error."""
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"path": excerpt, "n": 7}, "holds 6 requests; 7 are needed"),
        ({"path": excerpt, "longest": 100}, "holds 0 requests of at most 100 tokens"),
        ({"path": tmp_path / "absent.jsonl"}, "cannot be read"),
        ({"path": empty}, "holds 0 requests; 1 are needed"),
        ({"path": excerpt, "speed": 0}, "speed is 0"),
    ]
    assert not_refused(lambda options: traces.from_mooncake(**options), refused) == []
    assert len(traces.from_mooncake(excerpt, n=6).requests) == 6


def test_generated_lengths_have_the_published_percentiles() -> None:
    """Medians and 90th percentiles are within 5% of the kind's, and no length exceeds its limit."""
    for kind in ("conversation", "code"):
        requests, model = traces.generated(10_000, rate=5.0, kind=kind, seed=1).requests, traces.KINDS[kind]
        inputs, outputs = zip(*((len(sent.token_ids), sent.output_tokens) for sent in requests), strict=True)
        for lengths, wanted in ((inputs, model.inputs), (outputs, model.outputs)):
            assert median(lengths) == pytest.approx(wanted.median, rel=0.05)
            assert quantiles(lengths, n=10)[-1] == pytest.approx(wanted.p90, rel=0.05)
            assert 1 <= min(lengths) <= max(lengths) <= wanted.longest


def test_generated_gaps_have_the_rate_and_burstiness() -> None:
    """Rate and squared coefficient of variation, computed from the times, are the given ones."""
    small = traces.Lengths(median=5, p90=8, longest=9)
    trace = traces.generated(20_000, rate=8.0, inputs=small, template_tokens=0, burstiness=3.0, seed=2)
    gaps_s = [later.due_s - earlier.due_s for earlier, later in pairwise(trace.requests)]
    assert 1 / fmean(gaps_s) == pytest.approx(8.0, rel=0.05)
    assert pvariance(gaps_s) / fmean(gaps_s) ** 2 == pytest.approx(3.0, rel=0.1)


def test_templates_are_shared_as_zipfs_law_says() -> None:
    """With 3 templates, 6/11, 3/11 and 2/11 of the prompts begin with them, and share nothing else."""
    lengths = traces.Lengths(median=200, p90=200, longest=200)
    trace = traces.generated(4400, rate=1.0, inputs=lengths, templates=3, template_tokens=100, seed=3)
    openings = Counter(tuple(request.token_ids[:96]) for request in trace.requests)
    assert sorted(openings.values(), reverse=True) == pytest.approx([2400, 1200, 800], rel=0.1)
    assert len({tuple(request.token_ids[96:98]) for request in trace.requests}) == 4400
    assert trace.shared_tokens == (4400 - 3) * 96
    assert trace.notes == ()


def test_prompts_shorter_than_the_template_share_nothing() -> None:
    """Prompts no longer than a template have none, and are counted in the notes."""
    lengths = traces.Lengths(median=512, p90=512, longest=512)
    trace = traces.generated(20, rate=1.0, inputs=lengths)
    assert trace.shared_tokens == 0
    assert trace.notes == ("20 of 20 prompts have at most 512 tokens: without a template",)


@given(st.sampled_from(sorted(traces.KINDS)), st.integers(1, 8), st.integers(0, 8), st.integers(0, 10**9))
def test_same_seed_same_trace(kind: str, n: int, more: int, seed: int) -> None:
    """A trace depends only on its arguments, and a longer one begins with the shorter."""
    shorter = traces.generated(n, rate=2.0, kind=kind, seed=seed)
    assert shorter == traces.generated(n, rate=2.0, kind=kind, seed=seed)
    assert traces.generated(n + more, rate=2.0, kind=kind, seed=seed).requests[:n] == shorter.requests
    assert shorter.requests != traces.generated(n, rate=2.0, kind=kind, seed=seed + 1).requests


def test_generated_names_what_is_wrong() -> None:
    """An unknown kind, a value out of range and descending percentiles are refused with the value."""
    refused: list[tuple[dict[str, Any], str]] = [
        ({"kind": "chat"}, "choose one of conversation, code, long_conversation"),
        ({"n": 0}, "n is 0"),
        ({"rate": 0}, "rate is 0"),
        ({"templates": 0}, "templates is 0"),
        ({"template_tokens": -1}, "template_tokens is -1"),
        ({"zipf": math.nan}, "zipf is nan"),
        ({"burstiness": 0}, "burstiness is 0"),
    ]
    usual: dict[str, Any] = {"n": 3, "rate": 1.0}
    assert not_refused(lambda options: traces.generated(**usual | options), refused) == []
    descending = [((9, 20), "p90 is 9"), ((20, 19), "longest is 19")]
    assert not_refused(lambda ends: traces.Lengths(median=10, p90=ends[0], longest=ends[1]), descending) == []
