"""Workloads: the same seed asks the same, every bound holds, and bad input is named with its remedy."""

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

SEEDS = st.integers(-(10**9), 10**9)
MADE = st.sampled_from(["chat", "shared_prefix", "interference"])
SMALL: dict[str, dict[str, Any]] = {
    "chat": {},
    "shared_prefix": {"prompt_words": 40},
    "interference": {"long_words": 60},
}


def made(name: str, n: int, seed: int) -> workloads.Workload:
    return workloads.build(name, n=n, seed=seed, **SMALL[name])


@given(MADE, st.integers(1, 30), SEEDS)
def test_same_seed_same_requests(name: str, n: int, seed: int) -> None:
    """A workload is a function of its name, options and seed."""
    first, second = made(name, n, seed), made(name, n, seed)
    assert first == second
    assert first.digest == second.digest


@given(MADE, st.integers(1, 20), SEEDS, SEEDS)
def test_other_seed_other_prompts(name: str, n: int, seed: int, other: int) -> None:
    """Two seeds have no prompt in common."""
    prompts, others = ({request.prompt for request in made(name, n, s).requests} for s in (seed, other))
    assert prompts.isdisjoint(others) or seed == other


@given(MADE, st.integers(1, 20), st.integers(0, 20), SEEDS)
def test_a_longer_workload_begins_with_the_shorter(name: str, n: int, more: int, seed: int) -> None:
    """Request i depends on i and not on how many are asked for."""
    assert made(name, n + more, seed).requests[:n] == made(name, n, seed).requests


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


@given(st.integers(20, 90), st.integers(1, 40), SEEDS)
def test_chat_prompts_are_long_as_asked_and_distinct(words: int, n: int, seed: int) -> None:
    """Every prompt has the number of words asked for, and no two begin with the same two."""
    prompts = [request.prompt.split() for request in workloads.chat(n, seed=seed, prompt_words=words).requests]
    assert {len(prompt) for prompt in prompts} == {words}
    assert len({tuple(prompt[:2]) for prompt in prompts}) == n


@given(st.integers(1, 8), st.integers(1, 40))
def test_chat_prompts_repeat_only_if_asked(distinct: int, n: int) -> None:
    """`distinct` prompts are used in turn."""
    prompts = [request.prompt for request in workloads.chat(n, distinct=distinct).requests]
    assert len(set(prompts)) == min(distinct, n)
    assert all(prompt == prompts[i % distinct] for i, prompt in enumerate(prompts))


@given(st.integers(1, 50), st.integers(0, 50), SEEDS)
def test_lengths_are_drawn_within_their_bounds(low: int, extra: int, seed: int) -> None:
    """With a low bound, every answer's length lies between low and high."""
    requests = workloads.chat(20, seed=seed, max_tokens=low + extra, max_tokens_low=low).requests
    assert all(low <= request.max_tokens <= low + extra for request in requests)


@given(st.floats(0, 1), st.integers(1, 120), st.integers(2, 12), SEEDS)
def test_shared_prefix_is_exactly_the_share(share: float, words: int, n: int, seed: int) -> None:
    """All prompts have the same first words, as many as the share says, and differ in the next one."""
    made_up = workloads.shared_prefix(n, seed=seed, share=share, prompt_words=words)
    prompts = [request.prompt.split() for request in made_up.requests]
    common = round(share * words)
    assert all(len(prompt) == words for prompt in prompts)
    assert len({tuple(prompt[:common]) for prompt in prompts}) == 1
    assert common == words or len({prompt[common] for prompt in prompts}) == n


def test_prefix_groups_share_nothing() -> None:
    """With several prefixes, requests of a group agree in the first word and groups differ in it."""
    requests = workloads.shared_prefix(12, prefixes=3, share=0.9).requests
    first = {request.group: {r.prompt.split()[0] for r in requests if r.group == request.group} for request in requests}
    assert sorted(first) == ["prefix-0", "prefix-1", "prefix-2"]
    assert all(len(words) == 1 for words in first.values())
    assert len(set.union(*first.values())) == 3


def test_other_shares_have_other_prefixes() -> None:
    """A run at one share leaves nothing in a server's cache that another share would hit."""
    half, most = (workloads.shared_prefix(1, share=share).requests[0].prompt.split() for share in (0.5, 0.9))
    assert half[:8] != most[:8]


@given(st.integers(1, 50), st.integers(1, 10))
def test_interference_places_the_long_prompts(n: int, every: int) -> None:
    """Exactly every k-th request is long, and groups say which."""
    requests = workloads.interference(n, long_every=every, long_words=200).requests
    assert [request.group == "long" for request in requests] == [(i + 1) % every == 0 for i in range(n)]
    assert all(len(r.prompt.split()) == (200 if r.group == "long" else 30) for r in requests)


def write(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_from_file_reads_both_forms(tmp_path: Path) -> None:
    """Prompts, chat messages, both names of the length and a default are understood; empty lines are skipped."""
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


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not json", "malformed"),
        ("[1]", "object"),
        ('{"max_tokens": 3}', "neither"),
        ('{"prompt": ""}', "neither"),
        ('{"prompt": 3}', "$.prompt"),
        ('{"prompt": "a", "max_tokens": 0}', "$.max_tokens"),
        ('{"prompt": "a", "max_tokens": "many"}', "$.max_tokens"),
        ('{"prompt": "a", "max_tokens": 1, "output_tokens": 2}', "mean the same"),
        ('{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}', "both"),
        ('{"prompt": "a", "temprature": 1}', "temprature"),
    ],
)
def test_from_file_names_the_line(tmp_path: Path, line: str, said: str) -> None:
    """A bad line is refused with its number and what is wrong with it."""
    path = write(tmp_path, '{"prompt": "fine"}', line)
    with pytest.raises(UsageError) as caught:
        workloads.from_file(path)
    assert "line 2" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "workload",
    [
        workloads.chat(5, seed=3, max_tokens=9, max_tokens_low=2),
        workloads.shared_prefix(4, prefixes=2),
        workloads.Workload("one", (workloads.Request("a\u2028\n", 2, 0.5, 7, ignore_eos=False),)),
        workloads.Workload("chat", (workloads.Request("", 2, messages=({"role": "user", "content": "hi"},)),)),
    ],
)
def test_what_is_written_to_a_file_is_read_back(workload: workloads.Workload, tmp_path: Path) -> None:
    """The file asks the same, to the last bit, and holds the names that `vllm bench serve` reads."""
    path = workloads.to_file(workload, tmp_path / "requests.jsonl")
    assert workloads.from_file(path).digest == workload.digest
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert [line["output_tokens"] for line in lines] == [request.max_tokens for request in workload.requests]


def test_from_file_wants_enough_requests(tmp_path: Path) -> None:
    """Too few lines, none, no file and no text are each one clear error."""
    path = write(tmp_path, '{"prompt": "a"}', '{"prompt": "b"}')
    assert len(workloads.from_file(path, n=1).requests) == 1
    with pytest.raises(UsageError, match="holds 2 requests; 3"):
        workloads.from_file(path, n=3)
    with pytest.raises(UsageError, match="holds 0 requests"):
        workloads.from_file(write(tmp_path, ""))
    with pytest.raises(UsageError, match="cannot be read"):
        workloads.from_file(tmp_path / "absent.jsonl")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        workloads.from_file(path)


def test_a_made_workload_survives_a_file(tmp_path: Path) -> None:
    """What is written as JSONL is read back as the same requests."""
    made_up = workloads.chat(5, max_tokens_low=1)
    lines = (json.dumps({"prompt": r.prompt, "max_tokens": r.max_tokens, "group": r.group}) for r in made_up.requests)
    assert workloads.build("file", n=5, path=write(tmp_path, *lines)).requests == made_up.requests


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("chatt", {}, "chat, shared_prefix, interference, file"),
        ("chat", {"share": 1}, "no option 'share'"),
        ("file", {}, "needs the option 'path'"),
        ("chat", {"prompt_words": 3}, "prompt_words is 3"),
        ("chat", {"max_tokens": 0}, "max_tokens is 0"),
        ("chat", {"max_tokens": 2.5}, "whole number"),
        ("chat", {"max_tokens": True}, "whole number"),
        ("chat", {"max_tokens": 4, "max_tokens_low": 5}, "max_tokens_low is 5"),
        ("chat", {"distinct": 0}, "distinct is 0"),
        ("shared_prefix", {"share": 1.2}, "share is 1.2"),
        ("shared_prefix", {"share": math.nan}, "share is nan"),
        ("shared_prefix", {"share": "half"}, "share is 'half'"),
        ("interference", {"long_every": 0}, "long_every is 0"),
    ],
)
def test_build_names_what_is_wrong(name: str, options: dict[str, Any], said: str) -> None:
    """An unknown workload or option, and a value out of range, are refused with the value and the remedy."""
    with pytest.raises(UsageError) as caught:
        workloads.build(name, n=3, **options)
    assert said in str(caught.value)
    assert caught.value.remedy


def test_build_refuses_no_requests() -> None:
    """A workload has at least one request."""
    for name in SMALL:
        with pytest.raises(UsageError, match="n is 0"):
            made(name, 0, 0)


def test_build_records_its_parameters() -> None:
    """The parameters are enough to build the same workload again."""
    built = workloads.build("shared-prefix", n=4, seed=3, share=0.25, prompt_words=20)
    assert workloads.build(built.name, **built.parameters) == built


@given(st.integers(0, 50), st.floats(0.01, 1000), SEEDS)
def test_arrivals_ascend_from_the_start(n: int, rate: float, seed: int) -> None:
    """Arrival times are as many as asked, not negative, ascending, and seeded."""
    for times in (workloads.poisson_arrivals_s(n, rate=rate, seed=seed), workloads.constant_arrivals_s(n, rate=rate)):
        assert len(times) == n
        assert list(times) == sorted(times)
        assert all(time >= 0 for time in times)
    assert workloads.poisson_arrivals_s(n, rate=rate, seed=seed) == workloads.poisson_arrivals_s(
        n, rate=rate, seed=seed
    )


def test_poisson_gaps_are_exponential() -> None:
    """A Kolmogorov-Smirnov test does not tell the gaps from an exponential distribution of mean 1/rate."""
    times = workloads.poisson_arrivals_s(4000, rate=5.0, seed=1)
    gaps = [later - earlier for earlier, later in zip((0.0, *times), times, strict=False)]
    assert scipy.stats.kstest(gaps, "expon", args=(0, 1 / 5.0)).pvalue > 0.01


def test_constant_gaps_are_equal() -> None:
    """At a rate of 4 a second a request comes every 0.25 s, from 0 on."""
    assert workloads.constant_arrivals_s(4, rate=4.0) == (0.0, 0.25, 0.5, 0.75)


@pytest.mark.parametrize("rate", [0, -1, math.inf, math.nan, "fast", True])
def test_arrivals_need_a_rate(rate: Any) -> None:
    """A rate that is not a finite number above 0 is refused."""
    with pytest.raises(UsageError, match="rate is"):
        workloads.poisson_arrivals_s(3, rate=rate, seed=0)
