"""Workloads: equal seeds give equal requests, every bound holds, and bad input is refused with a remedy."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.load import workloads
from tests.unit.refusals import not_refused

SEEDS = st.integers(-(10**9), 10**9)
SMALL: dict[str, dict[str, Any]] = {
    "chat": {},
    "shared_prefix": {"prompt_words": 40},
    "interference": {"long_words": 60},
}


def small(name: str, n: int, seed: int) -> workloads.Workload:
    return workloads.build(name, n=n, seed=seed, **SMALL[name])


@given(st.sampled_from(list(SMALL)), st.integers(1, 20), st.integers(0, 10), SEEDS, SEEDS)
def test_requests_follow_from_the_seed_and_their_number(name: str, n: int, more: int, seed: int, other: int) -> None:
    """Equal seeds, or a workload's own parameters, give equal requests; a longer workload begins with the shorter, and
    another seed shares no prompt."""
    first = small(name, n, seed)
    assert small(name, n, seed).digest == first.digest
    assert workloads.build(first.name, **first.parameters) == first
    assert small(name, n + more, seed).requests[:n] == first.requests
    prompts, others = ({request.prompt for request in small(name, n, s).requests} for s in (seed, other))
    assert prompts.isdisjoint(others) or seed == other


def test_requests_are_the_same_in_every_process() -> None:
    """A process with another hash seed and another locale builds the same requests."""
    program = (
        "from labkit.load.workloads import *; print(*(make(9).digest for make in (chat, shared_prefix, interference)))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "LC_ALL": "C", "PYTHONPATH": os.pathsep.join(sys.path)}
    printed = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True
    )
    here = (workloads.chat(9), workloads.shared_prefix(9), workloads.interference(9))
    assert printed.stdout.split() == [workload.digest for workload in here]


@given(st.integers(20, 90), st.integers(1, 40), SEEDS, st.integers(1, 50), st.integers(0, 50))
def test_chat_lengths_are_as_asked_and_prompts_distinct(words: int, n: int, seed: int, low: int, extra: int) -> None:
    """Every prompt has its number of words and other first two words, and answers are within their bounds."""
    requests = workloads.chat(n, seed=seed, prompt_words=words, max_tokens=low + extra, max_tokens_low=low).requests
    prompts = [request.prompt.split() for request in requests]
    assert {len(prompt) for prompt in prompts} == {words}
    assert len({tuple(prompt[:2]) for prompt in prompts}) == n
    assert all(low <= request.max_tokens <= low + extra for request in requests)


@given(st.floats(0, 1), st.integers(1, 120), st.integers(2, 12), SEEDS)
def test_shared_prefix_is_exactly_the_share(share: float, words: int, n: int, seed: int) -> None:
    """All prompts share exactly the first `share` of their words."""
    workload = workloads.shared_prefix(n, seed=seed, share=share, prompt_words=words)
    prompts = [request.prompt.split() for request in workload.requests]
    common = round(share * words)
    assert all(len(prompt) == words for prompt in prompts)
    assert len({tuple(prompt[:common]) for prompt in prompts}) == 1
    assert common == words or len({prompt[common] for prompt in prompts}) == n


def test_other_groups_and_other_shares_have_other_prefixes() -> None:
    """Each group has its own prefix, and so has each share."""
    requests = workloads.shared_prefix(12, prefixes=3, share=0.9).requests
    first = {request.group: {r.prompt.split()[0] for r in requests if r.group == request.group} for request in requests}
    assert sorted(first) == ["prefix-0", "prefix-1", "prefix-2"]
    assert all(len(words) == 1 for words in first.values())
    assert len(set.union(*first.values())) == 3
    half, most = (workloads.shared_prefix(1, share=share).requests[0].prompt.split() for share in (0.5, 0.9))
    assert half[:8] != most[:8]


@given(st.integers(1, 50), st.integers(1, 10))
def test_interference_places_the_long_prompts(n: int, every: int) -> None:
    """Every k-th request is long, and has that group."""
    requests = workloads.interference(n, long_every=every, long_words=200).requests
    assert [request.group == "long" for request in requests] == [(i + 1) % every == 0 for i in range(n)]
    assert all(len(r.prompt.split()) == (200 if r.group == "long" else 30) for r in requests)


def write(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_from_file_reads_both_forms(tmp_path: Path) -> None:
    """Prompts, chat messages, both names of the length and its default are read; empty lines are skipped."""
    path = write(
        tmp_path,
        '{"prompt": "a\u2028b", "max_tokens": 3, "group": "x"}',
        "",
        '{"messages": [{"role": "user", "content": "hi"}], "output_tokens": 4}',
        '{"prompt": "c", "temperature": 0.5, "seed": 1, "ignore_eos": false}',
    )
    first, second, third = workloads.from_file(path, max_tokens=9).requests
    assert (first.prompt, first.max_tokens, first.group) == ("a\u2028b", 3, "x")
    assert second.messages == ({"role": "user", "content": "hi"},)
    assert second.max_tokens == 4
    assert (third.max_tokens, third.temperature, third.seed, third.ignore_eos) == (9, 0.5, 1, False)


BAD_LINES = {
    "not json": "malformed",
    "[1]": "object",
    '{"max_tokens": 3}': "missing or empty",
    '{"prompt": ""}': "missing or empty",
    '{"prompt": 3}': "$.prompt",
    '{"prompt": "a", "max_tokens": 0}': "$.max_tokens",
    '{"prompt": "a", "max_tokens": 1, "output_tokens": 2}': "mean the same",
    '{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}': "both",
    '{"prompt": "a", "temprature": 1}': "temprature",
}


def test_a_bad_file_is_refused(tmp_path: Path) -> None:
    """A bad line is refused with its number and the reason; too few lines, a missing file and bytes that are not text
    each have their error."""
    bad = [*BAD_LINES.items(), *((line, "line 2") for line in BAD_LINES)]
    assert not_refused(lambda line: workloads.from_file(write(tmp_path, '{"prompt": "fine"}', line)), bad) == []
    path = write(tmp_path, '{"prompt": "a"}', '{"prompt": "b"}')
    assert len(workloads.from_file(path, n=1).requests) == 1
    with pytest.raises(UsageError, match="holds 2 requests; 3"):
        workloads.from_file(path, n=3)
    for raw, message in ((b"", "holds 0 requests"), (b"\xff\xfe", "UTF-8")):
        path.write_bytes(raw)
        with pytest.raises(UsageError, match=message):
            workloads.from_file(path)
    with pytest.raises(UsageError, match="cannot be read"):
        workloads.from_file(tmp_path / "absent.jsonl")


def test_what_is_written_to_a_file_is_read_back(tmp_path: Path) -> None:
    """A written file has the same digest, and the field names of `vllm bench serve`."""
    odd = workloads.Request("a\u2028\n", 2, 0.5, 7, ignore_eos=False)
    messages = workloads.Request("", 2, messages=({"role": "user", "content": "hi"},))
    drawn = workloads.chat(5, seed=3, max_tokens=9, max_tokens_low=2)
    for workload in (drawn, workloads.shared_prefix(4, prefixes=2), workloads.Workload("odd", (odd, messages))):
        path = workloads.to_file(workload, tmp_path / "requests.jsonl")
        assert workloads.build("file", n=len(workload.requests), path=path).digest == workload.digest
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        assert [line["output_tokens"] for line in lines] == [request.max_tokens for request in workload.requests]


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("chatt", {}, "chat, shared_prefix, interference, conversations, file, mooncake"),
    ("chat", {"n": 0}, "n is 0"),
    ("chat", {"share": 1}, "no option 'share'"),
    ("file", {}, "needs the option 'path'"),
    ("chat", {"prompt_words": 3}, "prompt_words is 3"),
    ("chat", {"max_tokens": 2.5}, "whole number"),
    ("chat", {"max_tokens": True}, "whole number"),
    ("chat", {"max_tokens": 4, "max_tokens_low": 5}, "max_tokens_low is 5"),
    ("shared_prefix", {"share": 1.2}, "share is 1.2"),
    ("shared_prefix", {"share": math.nan}, "share is nan"),
    ("interference", {"long_every": 0}, "long_every is 0"),
]


def test_build_names_what_is_wrong() -> None:
    """An unknown workload or option, and a value out of range, are refused with the value and a remedy."""
    bad = [((name, {"n": 3, **options}), words) for name, options, words in REFUSED]
    assert not_refused(lambda given: workloads.build(given[0], **given[1]), bad) == []


def test_arrivals() -> None:
    """Poisson gaps are seeded and exponential with mean 1/rate (Kolmogorov-Smirnov); constant gaps are 1/rate."""
    times, again, others = (workloads.poisson_arrivals_s(4000, rate=5.0, seed=seed) for seed in (1, 1, 2))
    assert times == again != others
    gaps = [later - earlier for earlier, later in zip((0.0, *times), times, strict=False)]
    assert min(gaps) >= 0
    assert scipy.stats.kstest(gaps, "expon", args=(0, 1 / 5.0)).pvalue > 0.01
    assert workloads.constant_arrivals_s(4, rate=4.0) == (0.0, 0.25, 0.5, 0.75)
    bad = [(rate, "rate is") for rate in (0, -1, math.inf, math.nan, "fast", True)]
    assert not_refused(lambda rate: workloads.poisson_arrivals_s(3, rate=rate, seed=0), bad) == []
