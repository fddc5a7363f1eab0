"""The load client on a real engine, beside two oracles: `vllm bench serve` on the same server, and the engine's
counters.

Nothing is gated on wall-clock: ratios of timed figures are recorded as properties of the test, counts must be equal.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from labkit import load
from labkit.load import LoadResult, Outcome, counters, metrics, workloads
from labkit.serving import vllm
from tests.vllm_bench import bench_serve, from_vllm_bench

pytestmark = pytest.mark.engine

WORKLOAD = workloads.chat(12, seed=41, max_tokens=24, max_tokens_low=2)
CONCURRENCY = 4


def run(server: vllm.Server, workload: workloads.Workload = WORKLOAD, **options: Any) -> LoadResult:
    """`workload` in a closed loop."""
    return load.run_blocking(
        server.base_url, server.model_name, workload, concurrency=CONCURRENCY, api_key=server.api_key, **options
    )


def bench(server: vllm.Server, workload: workloads.Workload, **options: Any) -> dict[str, Any]:
    """The same with `vllm bench serve`."""
    return bench_serve(
        server.url, server.model_name, workload, tokenizer=server.model_path, api_key=server.api_key, **options
    )


def eventually(reading: Callable[[], float], wanted: float) -> bool:
    """Whether `reading` comes to `wanted` within ten seconds: the engine publishes its counters a step later."""
    deadline = time.monotonic() + 10
    while reading() != wanted and time.monotonic() < deadline:
        time.sleep(0.1)
    return reading() == wanted


def test_both_clients_count_the_same(vllm_server: vllm.Server, record_property: Callable[[str, object], None]) -> None:
    """On the same prompts, our client and `vllm bench serve` complete the same requests with the same tokens, and the
    ratios of what they timed are recorded."""
    ours = run(vllm_server)
    saved = bench(vllm_server, WORKLOAD, concurrency=CONCURRENCY)
    summary = metrics.summarise(ours)
    assert (summary.completed, summary.failed) == (saved["completed"], saved["failed"]) == (len(ours.records), 0)
    assert [record.output_tokens for record in ours.records] == saved["output_lens"]
    assert [record.input_tokens for record in ours.records] == saved["input_lens"]
    assert summary.input_tokens == saved["total_input_tokens"]
    assert summary.output_tokens == saved["total_output_tokens"]
    assert [record.output_tokens for record in ours.records] == [request.max_tokens for request in WORKLOAD.requests]
    for name, ratio in {
        "request_throughput": summary.request_throughput / saved["request_throughput"],
        "ttft": summary.ttft_s.mean * 1000 / saved["mean_ttft_ms"],
        "tpot": summary.tpot_s.mean * 1000 / saved["mean_tpot_ms"],
        "e2e": summary.e2e_s.mean * 1000 / saved["mean_e2el_ms"],
    }.items():
        record_property(f"labkit over vllm bench, {name}", round(ratio, 3))
        assert ratio > 0


def test_our_formulas_give_its_figures(vllm_server: vllm.Server) -> None:
    """Fresh per-request data of `vllm bench serve`, put into our formulas, gives the figures that it printed."""
    saved = bench(vllm_server, workloads.chat(6, seed=42, max_tokens=8), rate=20.0)
    summary = metrics.summarise(from_vllm_bench(saved))
    for name, found in {
        "ttft": summary.ttft_s,
        "tpot": summary.tpot_s,
        "itl": summary.itl_s,
        "e2el": summary.e2e_s,
    }.items():
        ours = [found.mean * 1000, found.p50 * 1000, found.p90 * 1000, found.p99 * 1000, found.std * 1000]
        printed = [saved[f"{statistic}_{name}_ms"] for statistic in ("mean", "median", "p90", "p99", "std")]
        assert ours == pytest.approx(printed, rel=1e-9)
    assert summary.output_throughput == pytest.approx(saved["output_throughput"], rel=1e-9)


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_the_engine_counted_the_same(vllm_server: vllm.Server, api: load.Api) -> None:
    """Over a load, the engine's own counters of prompt and generated tokens grow by exactly what our records hold."""
    before = counters.scrape(vllm_server.base_url)
    summary = metrics.summarise(run(vllm_server, workloads.chat(6, seed=43, max_tokens=10), api=api))
    assert summary.failed == 0

    def grown(name: str) -> Callable[[], float]:
        return lambda: counters.difference(before, counters.scrape(vllm_server.base_url)).value(name)

    assert eventually(grown("vllm:generation_tokens"), summary.output_tokens or 0)
    assert eventually(grown("vllm:prompt_tokens"), summary.input_tokens or 0)


def test_a_greedy_request_repeats(vllm_server: vllm.Server) -> None:
    """The same request alone in the engine, again, and not streamed, gives the same text and tokens."""
    one = workloads.chat(1, seed=44, max_tokens=16)
    run(
        vllm_server, one
    )  # the first computes its prompt, later ones find it cached: other shapes, maybe other rounding
    streamed, again = (run(vllm_server, one).records[0] for _ in range(2))
    whole = run(vllm_server, one, stream=False).records[0]
    assert streamed.text == again.text == whole.text != ""
    assert streamed.output_tokens == again.output_tokens == whole.output_tokens == 16


async def test_a_cancelled_load_leaves_the_engine_idle(vllm_server: vllm.Server) -> None:
    """After a load was cancelled in the middle of long answers, the engine soon runs nothing."""
    long = workloads.chat(4, seed=45, max_tokens=400)
    task = asyncio.create_task(
        load.run(vllm_server.base_url, vllm_server.model_name, long, concurrency=4, api_key=vllm_server.api_key)
    )
    await asyncio.sleep(0.5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    def running() -> float:
        return counters.scrape(vllm_server.base_url).value("vllm:num_requests_running")

    assert await asyncio.to_thread(eventually, running, 0.0)


def test_a_refused_request_is_a_record(vllm_server: vllm.Server) -> None:
    """A request that the engine refuses (temperature below 0) ends as an HTTP error with the engine's words; the one
    beside it is served."""
    good = workloads.chat(1, seed=46, max_tokens=4).requests[0]
    bad = workloads.Request("hello", 4, temperature=-1.0)
    refused, served = run(vllm_server, workloads.Workload("mixed", (bad, good))).records
    assert (refused.outcome, refused.status) == (Outcome.HTTP_ERROR, 400)
    assert "temperature" in refused.error
    assert served.ok
