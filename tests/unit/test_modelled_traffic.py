"""Traffic of token ids: reproducible, with exact prefixes and the right distribution of arrivals."""

import random
from itertools import pairwise, product
from statistics import fmean, pvariance
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.load.workloads import Request, Workload, interference
from labkit.modelled import TokenRequest, traffic
from tests.unit.refusals import not_refused
from tests.unit.test_prefix_cache import common_prefix

counts = st.integers(1, 40)
seeds = st.integers(0, 10**6)


def common(first: TokenRequest, second: TokenRequest) -> int:
    """Number of leading tokens that two prompts share."""
    return common_prefix(first.token_ids, second.token_ids)


@given(counts, st.integers(0, 300), st.integers(20, 200), counts, seeds)
def test_fixed_prompts_share_exactly_the_prefix(n: int, shared: int, own: int, output: int, seed: int) -> None:
    """All have the given lengths and share `shared_tokens`; any two differ within the next few."""
    requests = traffic.fixed(n, input_tokens=shared + own, output_tokens=output, shared_tokens=shared, seed=seed)
    assert [(len(request.token_ids), request.output_tokens, request.due_s) for request in requests] == [
        (shared + own, output, 0.0)
    ] * n
    assert all(shared <= common(a, b) < shared + 3 for a, b in pairwise(requests))


@given(seeds)
def test_the_same_seed_gives_the_same_traffic(seed: int) -> None:
    """Tokens and times depend only on the arguments; another seed changes both; a longer load extends a shorter."""

    def load(seed: int, n: int = 6) -> traffic.Traffic:
        return traffic.at_rate(traffic.fixed(n, input_tokens=30, output_tokens=3, seed=seed), 2.0, seed=seed)

    state = random.getstate()
    assert load(seed) == load(seed) == load(seed, n=9)[:6]
    talks = [
        traffic.conversations(3, turns=2, system_tokens=9, user_tokens=5, output_tokens=4, seed=seed) for _ in "ab"
    ]
    assert talks[0] == talks[1]
    assert random.getstate() == state  # the global generator is not used
    other = load(seed + 1)
    assert all(a.token_ids != b.token_ids for a, b in zip(load(seed), other, strict=True))
    assert [request.due_s for request in other] != [request.due_s for request in load(seed)]


def test_bursty_gaps_have_the_mean_and_variation_asked_for() -> None:
    """Over 20,000 gaps the mean is 1/rate, within five standard errors, and the squared coefficient of variation
    `burstiness`, within 12%."""
    for rate, burstiness in product((0.5, 20.0), (0.25, 1.0, 4.0)):
        times = traffic.bursty_arrivals_s(20_000, rate=rate, burstiness=burstiness, seed=5)
        gaps = [later - earlier for earlier, later in pairwise((0.0, *times))]
        assert min(gaps) >= 0
        assert fmean(gaps) == pytest.approx(1 / rate, rel=5 * (burstiness / 20_000) ** 0.5)
        assert pvariance(gaps) / fmean(gaps) ** 2 == pytest.approx(burstiness, rel=0.12)


def test_each_arrival_has_its_statistics() -> None:
    """The squared coefficient of variation of the gaps is 0 for constant, 1 for Poisson and 4 for bursty arrivals."""
    load = traffic.fixed(4000, input_tokens=1, output_tokens=1)
    for arrival, scv in (("constant", 0), ("poisson", 1), ("bursty", 4)):
        due = [request.due_s for request in traffic.at_rate(load, 8.0, arrival=arrival, seed=1)]
        gaps = [later - earlier for earlier, later in pairwise(due)]
        assert due[-1] == pytest.approx(4000 / 8, rel=0.15)
        assert pvariance(gaps) / fmean(gaps) ** 2 == pytest.approx(scv, rel=0.2, abs=1e-9)
    with pytest.raises(UsageError, match=r"(?s)'gaussian'.*poisson, constant, bursty"):
        traffic.at_rate(load, 8.0, arrival="gaussian")


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 60), st.integers(20, 40), seeds)
def test_conversations_are_chains_behind_one_system_prompt(
    n: int, turns: int, system: int, user: int, seed: int
) -> None:
    """Every turn follows the previous one; first turns share the system prompt, and all user messages differ."""
    sizes = {"turns": turns, "system_tokens": system, "user_tokens": user, "output_tokens": 7, "seed": seed}
    talk = traffic.conversations(n, rate=3.0, **sizes)
    firsts = talk[::turns]
    assert [request.due_s for request in firsts] == sorted(request.due_s for request in firsts)
    assert all(system <= common(a, b) < system + 3 for a, b in pairwise(firsts))
    assert [(request.follows, len(request.token_ids), request.group, request.output_tokens) for request in talk] == [
        (index - 1 if turn else None, user if turn else system + user, f"turn-{turn + 1}", 7)
        for index, (_, turn) in enumerate(product(range(n), range(turns)))
    ]
    assert len({tuple(request.token_ids[-user:]) for request in talk}) == n * turns
    assert {request.due_s for request in traffic.conversations(n, **sizes)[::turns]} == {0.0}


def test_users_think_as_long_as_asked() -> None:
    """Think times are exponential: their mean and standard deviation are `think_s`."""
    sizes = {"turns": 5, "system_tokens": 0, "user_tokens": 1, "output_tokens": 1}
    times = [
        request.due_s for request in traffic.conversations(1000, think_s=3.0, **sizes) if request.follows is not None
    ]
    assert (fmean(times), pvariance(times) ** 0.5) == pytest.approx((3.0, 3.0), rel=0.08)
    assert all(request.due_s == 0 for request in traffic.conversations(3, think_s=0.0, **sizes))


def test_a_workload_of_texts_keeps_its_lengths_and_groups() -> None:
    """Prompts are encoded in order, with their answers' lengths and groups; chat messages are refused."""
    workload = interference(9, long_every=4)
    load = traffic.tokenised(workload, lambda text: [ord(letter) for letter in text])
    assert [
        ("".join(map(chr, request.token_ids)), request.output_tokens, request.group, request.due_s) for request in load
    ] == [(request.prompt, request.max_tokens, request.group, 0.0) for request in workload.requests]
    with pytest.raises(UsageError, match="chat messages"):
        traffic.tokenised(Workload("chat", (Request("", 1, messages=({"role": "user"},)),)), lambda _text: [1])


def test_impossible_lengths_are_refused() -> None:
    """Each wrong length is a usage error with its name and number; so are an empty request, and times for turns."""
    refused: list[tuple[dict[str, Any], str]] = [
        ({"n": 0}, "n is 0"),
        ({"input_tokens": 0}, "input_tokens is 0"),
        ({"output_tokens": 0}, "output_tokens is 0"),
        ({"shared_tokens": 5}, "5 of 5 input tokens"),
        ({"shared_tokens": -1}, "shared_tokens is -1"),
    ]
    usual = {"n": 1, "input_tokens": 5, "output_tokens": 1}
    assert not_refused(lambda wrong: traffic.fixed(**usual | wrong), refused) == []
    with pytest.raises(UsageError, match="0 prompt tokens"):
        TokenRequest(token_ids=[], output_tokens=1)
    talk = traffic.conversations(1, turns=2, system_tokens=0, user_tokens=1, output_tokens=1)
    with pytest.raises(UsageError, match="depend on answers"):
        traffic.at_rate(talk, 1.0)
