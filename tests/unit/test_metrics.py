"""Metrics: vLLM's results from vLLM's request data, and properties of any summary."""

import json
import math
import random
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.load import LoadResult, Outcome, RequestRecord
from labkit.load.metrics import Quantity, Slo, goodput, percentile, quantity, summarise
from tests.unit.refusals import not_refused
from tests.vllm_bench import from_vllm_bench

SAVED = Path(__file__).parent.parent / "data" / "vllm_bench_serve_detailed.json"
"""What `vllm bench serve --save-detailed` (0.32.0) wrote about a stub server that failed every seventh request."""

times = st.floats(0, 100)
bounds = st.none() | st.floats(0.001, 500)


@pytest.fixture(scope="module")
def saved() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(SAVED.read_text())
    return data


@st.composite
def records(draw: st.DrawFn, index: int = 0) -> RequestRecord:
    """Any request: due, then sent, then chunks, with at least as many tokens; or failed."""
    scheduled, wait = draw(times), draw(times)
    started = scheduled + wait
    chunks = tuple(accumulate(draw(st.lists(times, max_size=6)), initial=started))[1:]
    ok, failed = draw(st.booleans()), st.sampled_from([outcome for outcome in Outcome if outcome is not Outcome.OK])
    return RequestRecord(
        index=index,
        scheduled_s=scheduled,
        started_s=started,
        chunk_times_s=chunks,
        finished_s=(chunks[-1] if chunks else started) + draw(times),
        input_tokens=draw(st.integers(0, 1000)),
        output_tokens=len(chunks) + draw(st.integers(0, 5)),
        outcome=Outcome.OK if ok and chunks else draw(failed),
    )


loads = st.builds(
    lambda found, seconds: LoadResult(tuple(found), seconds, 0.0, concurrency=1, rate=None, workload="any", seed=0),
    st.lists(records(), max_size=12),
    st.floats(0.1, 1000),
)


def test_vllm_bench_is_reproduced(saved: dict[str, Any]) -> None:
    """Every metric that `vllm bench serve` printed, goodput included, follows from its per-request data, to rounding;
    each request's TTFT, gaps and latency are identical."""
    result = from_vllm_bench(saved)
    summary = summarise(result)
    slo = Slo(*(float(saved[f"slo_{name}_ms"]) / 1000 for name in ("ttft", "tpot", "e2el")))
    ours: dict[str, float] = {
        "total_input_tokens": summary.input_tokens or 0,
        "total_output_tokens": summary.output_tokens or 0,
        "duration": summary.duration_s,
        "request_goodput": goodput(result, slo),
    }
    for name in ("completed", "failed", "request_throughput", "output_throughput", "total_token_throughput"):
        ours[name] = getattr(summary, name)
    named = {"ttft": summary.ttft_s, "tpot": summary.tpot_s, "itl": summary.itl_s, "e2el": summary.e2e_s}
    for name, measured in named.items():
        for statistic in ("mean", "std", "p50", "p90", "p99"):
            ours[f"{statistic}_{name}_ms"] = getattr(measured, statistic) * 1000
    assert ours == pytest.approx({name: saved[name] for name in ours}, rel=1e-9, abs=0)
    assert 0 < ours["request_goodput"] < ours["request_throughput"]
    done = [record for record in result.records if record.ok]
    assert len(done) == saved["completed"]
    for record in done:
        theirs = tuple(saved[name][record.index] for name in ("ttfts", "latencies", "itls"))
        assert (record.ttft_s, record.e2e_s, list(record.itl_s)) == theirs


@given(records())
def test_a_requests_times_agree(record: RequestRecord) -> None:
    """TTFT plus the gaps is E2E, TPOT is the mean gap over tokens, and times from the schedule add the wait."""
    if not record.ok:
        assert (record.ttft_s, record.tpot_s, record.e2e_s, record.itl_s) == (None, None, None, ())
        return
    ttft_s, e2e_s, gaps_s, tokens = record.ttft_s or 0, record.e2e_s or 0, sum(record.itl_s), record.output_tokens or 0
    wait_s = record.started_s - record.scheduled_s
    assert e2e_s == pytest.approx(ttft_s + gaps_s, abs=1e-9)
    assert record.tpot_s == (pytest.approx(gaps_s / (tokens - 1), abs=1e-9) if tokens > 1 else None)
    assert e2e_s >= ttft_s >= 0
    assert record.e2e_from_schedule_s == pytest.approx(e2e_s + wait_s, abs=1e-9)
    assert record.due.ttft_s == pytest.approx(ttft_s + wait_s, abs=1e-9)


@given(loads, st.randoms(use_true_random=False), bounds)
def test_order_does_not_matter(result: LoadResult, rng: random.Random, bound_s: float | None) -> None:
    """Summary and goodput do not depend on the order of the records, to the last bit."""
    shuffled = replace(result, records=tuple(rng.sample(result.records, len(result.records))))
    assert summarise(shuffled).to_dict() == summarise(result).to_dict()
    assert goodput(shuffled, Slo(e2e_s=bound_s)) == goodput(result, Slo(e2e_s=bound_s))


@given(loads)
def test_counts_add_up(result: LoadResult) -> None:
    """Every request is completed or failed, only completed ones count, and rates are counts over the duration; what is
    not measured is null in JSON, which has no NaN."""
    summary = summarise(result)
    done = [record for record in result.records if record.outcome is Outcome.OK]
    assert summary.completed + summary.failed == len(result.records)
    assert summary.completed == summary.ttft_s.count == summary.e2e_s.count == len(done)
    assert summary.itl_s.count == sum(len(record.chunk_times_s) - 1 for record in done)
    assert summary.output_tokens == sum(record.output_tokens or 0 for record in done)
    assert summary.request_throughput * result.duration_s == pytest.approx(summary.completed)
    tokens = (summary.input_tokens or 0) + (summary.output_tokens or 0)
    assert summary.total_token_throughput == pytest.approx(tokens / result.duration_s)
    plain = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert (plain["e2e_s"]["mean"] is None) == (not done)


def test_an_unstreamed_load_has_no_ttft() -> None:
    """Without streaming there is an E2E, and neither a TTFT nor a TPOT."""
    record = RequestRecord(0, 0.0, 0.0, (), 2.0, 5, 8, Outcome.OK)
    summary = summarise(LoadResult((record,), 2.0, 0.0, concurrency=1, rate=None, workload="any", seed=0))
    assert (summary.ttft_s.count, summary.tpot_s.count, summary.itl_s.count) == (0, 0, 0)
    assert (summary.e2e_s.mean, summary.output_throughput) == (2.0, 4.0)


values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50)


@given(values, st.floats(0, 100))
def test_quantities_are_the_definition(data: list[float], q: float) -> None:
    """A percentile is the value at rank q/100 x (n - 1), linear between its neighbours; a quantity has three, the
    maximum and the mean."""

    def by_hand(q: float) -> Any:
        ordered = sorted(data)
        rank = q / 100 * (len(ordered) - 1)
        low = math.floor(rank)
        high = min(low + 1, len(ordered) - 1)
        return pytest.approx(ordered[low] + (ordered[high] - ordered[low]) * (rank - low), rel=1e-9, abs=1e-6)

    stats = quantity(data)
    assert percentile(data, q) == by_hand(q)
    assert (stats.p50, stats.p90, stats.p99) == (by_hand(50), by_hand(90), by_hand(99))
    assert (stats.count, stats.max) == (len(data), max(data))
    assert stats.mean == pytest.approx(fmean(data), abs=1e-6)


def test_nothing_measured_is_nan() -> None:
    """A quantity without values is NaN with a count of 0."""
    stats = quantity([None, None])
    assert stats.count == 0
    assert all(math.isnan(value) for value in (stats.mean, stats.p50, stats.p90, stats.p99, stats.max, stats.std))
    assert math.isnan(percentile([], 50))
    assert quantity([None, 2.0]) == Quantity(2.0, 2.0, 2.0, 2.0, 2.0, 0.0, 1)


slos = st.builds(Slo, ttft_s=bounds, tpot_s=bounds, e2e_s=bounds)


@given(loads, slos)
def test_goodput_is_at_most_throughput(result: LoadResult, slo: Slo) -> None:
    """No SLO makes more requests good than were completed; without a bound all of them are."""
    assert goodput(result, slo) <= summarise(result).request_throughput
    assert goodput(result, Slo()) == summarise(result).request_throughput


def test_bounds_on_missing_latencies() -> None:
    """As in vLLM, an answer of one token has a TPOT of 0; a bound on an unmeasured latency is an error."""
    assert Slo(tpot_s=1e-6).holds(RequestRecord(0, 0.0, 0.0, (1.0,), 1.0, 5, 1, Outcome.OK))
    unstreamed = RequestRecord(0, 0.0, 0.0, (), 1.0, 5, 8, Outcome.OK)
    no_usage = RequestRecord(1, 0.0, 0.0, (1.0, 2.0), 2.0, None, None, Outcome.OK)
    missing = [(unstreamed, "ttft_s, which request 0"), (no_usage, "tpot_s, which request 1")]
    assert not_refused(Slo(ttft_s=1.0, tpot_s=1.0).holds, missing) == []


def test_numbers_out_of_range_are_usage_errors() -> None:
    """A bound that is not a number above 0, and a percentile outside 0 to 100, are refused by name."""
    bounds, ranks = (0, -1.0, math.nan, math.inf), (-1, 100.5, math.nan)
    assert not_refused(lambda bound: Slo(tpot_s=bound), [(bound, "tpot_s is") for bound in bounds]) == []
    assert not_refused(lambda q: percentile([1.0], q), [(q, "q is") for q in ranks]) == []
