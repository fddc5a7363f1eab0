"""Prometheus readings: counters, gauges and histograms of a vLLM page, and their differences."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from labkit import load
from labkit.errors import ServerError, UsageError
from labkit.load import counters
from labkit.load.counters import Counters, difference, parse
from labkit.load.workloads import chat
from tests.unit.stub_server import MODEL, serving

PAGE = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="a/b"}} {running}
vllm:num_requests_running{{engine="1",model_name="a/b"}} 1.0
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{{engine="0",model_name="a/b"}} {hits}
# TYPE vllm:prefix_cache_hits_created gauge
vllm:prefix_cache_hits_created{{engine="0",model_name="a/b"}} 1.7e+09
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{{engine="0",le="0.1"}} {first}
vllm:time_to_first_token_seconds_bucket{{engine="0",le="0.5"}} {second}
vllm:time_to_first_token_seconds_bucket{{engine="0",le="+Inf"}} {total}
vllm:time_to_first_token_seconds_count{{engine="0"}} {total}
vllm:time_to_first_token_seconds_sum{{engine="0"}} {sum}
"""
BEFORE = parse(PAGE.format(hits=96, running=3, first=2, second=6, total=8, sum=2), taken_s=10.0)
AFTER = parse(PAGE.format(hits=224, running=0, first=4, second=16, total=18, sum=4.5), taken_s=12.5)


def test_difference_takes_growth_of_counters_only() -> None:
    """Counters and histograms give their growth, gauges their latest value; a counter that fell (after a restart) is an
    error."""
    grown = difference(BEFORE, AFTER)
    assert grown.taken_s == 2.5
    assert grown.value("vllm:prefix_cache_hits") == 128.0
    assert grown.value("vllm:num_requests_running") == 1.0
    assert grown.value("vllm:prefix_cache_hits_created") == 1.7e9
    histogram = grown.histogram("vllm:time_to_first_token_seconds")
    assert histogram.buckets == ((0.1, 2.0), (0.5, 10.0), (math.inf, 10.0))
    assert (histogram.count, histogram.mean) == (10.0, 0.25)
    assert difference(parse(""), AFTER).value("vllm:prefix_cache_hits") == 224.0, "a new series counts from 0"
    nothing = difference(AFTER, AFTER).histogram("vllm:time_to_first_token_seconds")
    assert math.isnan(nothing.mean)
    with pytest.raises(ServerError, match="fell by 128"):
        difference(AFTER, BEFORE)


CASES = Path(__file__).parent.parent / "data" / "cases" / "metrics"
REQUESTS = "ray_serve_deployment_request_counter"
LATENCY = "ray_serve_deployment_processing_latency_ms"
Query = tuple[Callable[[Counters], float], float | str]
# Pages of vLLM (two engines, LoRA) and TorchServe 0.9: queries, each with its value or its error message.
PAGES: dict[str, list[Query]] = {
    "vllm_v1_dp2_lora": [
        (lambda page: page.value("vllm:num_requests_running"), 5.0),
        (lambda page: page.value("vllm:num_requests_running", engine="0"), 3.0),
        (lambda page: page.value("vllm:kv_cache_usage_perc"), "2 series.* cannot be added"),
        (lambda page: page.value("vllm:kv_cache_usage_perc", engine="1"), 0.5),
        (lambda page: page.value("vllm:request_success"), 9.0),
        (lambda page: page.value("vllm:request_success_total"), 9.0),
        (lambda page: page.value("vllm:request_success", finished_reason="length"), 2.0),
        (lambda page: page.value("vllm:request_success", engine="7"), "has the labels"),
        (lambda page: len(page.series("vllm:request_success")), 2),
        (lambda page: page.value("vllm:request_succes"), "did you mean vllm:request_success"),
        (lambda page: page.value("nothing_like_it"), "no metric 'nothing_like_it'"),
        (lambda page: page.histogram("nothing_like_it").count, "no metric 'nothing_like_it'"),
        (lambda page: page.histogram("vllm:iteration_tokens_total").count, 9.0),
        (lambda page: page.value("vllm:iteration_tokens_total"), r"is a histogram(.|\n)*\.histogram\(\)"),
    ],
    "torchserve_0_9_trailing_comma": [
        (lambda page: page.value("MemoryUtilization"), 15.1),
        (lambda page: page.value("ts_inference_requests"), 4.0),
        (lambda page: page.value("NameOfHistogramMetric"), "but has no value"),
        (lambda page: page.histogram("NameOfHistogramMetric").count, "no value of it yet"),
    ],
    "empty": [
        (lambda page: page.value("ts_inference_requests"), r"page is empty(.|\n)*metrics_mode"),
        (lambda page: page.histogram("vllm:e2e").count, "page is empty"),
    ],
}


def test_real_pages() -> None:
    """Counters by the names in vLLM's documentation, with and without _total; series with the labels are summed, except
    shares; each query has the right value, or an error with the reason, and similar names for an unknown one."""
    wrong = []
    for name, queries in PAGES.items():
        page = parse((CASES / f"{name}.prom").read_text(encoding="utf-8"))
        for query, right in queries:
            try:
                answer: float | str = query(page)
            except UsageError as error:
                answer = str(error)
            matches = isinstance(right, str) and isinstance(answer, str) and re.search(right, answer)
            if not matches and answer != right:
                wrong.append((name, answer, right))
    assert wrong == []


TWINS = """\
# HELP ray_serve_num_http_requests_total The number of HTTP requests processed.
# TYPE ray_serve_num_http_requests_total counter
ray_serve_num_http_requests_total{{WorkerId="a"}} {a}
ray_serve_num_http_requests_total{{WorkerId="b"}} {b}
# HELP ray_serve_num_http_requests (DEPRECATED, use ray_serve_num_http_requests_total metric instead) The number of.
# TYPE ray_serve_num_http_requests gauge
ray_serve_num_http_requests{{WorkerId="a"}} {a}
ray_serve_num_http_requests{{WorkerId="b"}} {b}
# HELP ray_serve_num_router_requests The number of requests processed by the router.
# TYPE ray_serve_num_router_requests gauge
ray_serve_num_router_requests{{WorkerId="a"}} {a}
# HELP ray_serve_replica_processing_queries The current number of queries being processed.
# TYPE ray_serve_replica_processing_queries gauge
ray_serve_replica_processing_queries{{WorkerId="a"}} {a}
# HELP ray_node_mem_total Total memory on a ray node
# TYPE ray_node_mem_total gauge
ray_node_mem_total{{ip="x"}} {b}
# HELP ray_serve_replica_utilization_percent The utilization of a replica.
# TYPE ray_serve_replica_utilization_percent gauge
ray_serve_replica_utilization_percent{{WorkerId="a"}} 10
ray_serve_replica_utilization_percent{{WorkerId="b"}} 20
"""


def test_counters_exported_as_gauges() -> None:
    """A counter that Ray exports as a gauge, in addition or only, counts once, by its growth; gauges of a state keep
    their latest value."""
    before, after = (
        parse((CASES / f"ray_2_52_counter_as_gauge_{part}.prom").read_text()) for part in ("before", "after")
    )
    grown = difference(before, after)
    assert (grown.value(REQUESTS), grown.histogram(LATENCY).count) == (16.0, 2.0)
    twins = difference(parse(TWINS.format(a=100, b=10)), parse(TWINS.format(a=107, b=12)))
    for name in ("ray_serve_num_http_requests", "ray_serve_num_http_requests_total"):
        assert twins.value(name) == 9.0
    assert twins.value("ray_serve_num_router_requests") == 7.0
    assert twins.value("ray_serve_replica_processing_queries") == 107.0
    assert twins.value("ray_node_mem_total") == 12.0
    with pytest.raises(UsageError, match="cannot be added"):
        twins.value("ray_serve_replica_utilization_percent")


def test_scrape_reads_a_server_past_any_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is found from the root, /v1 and /metrics, and has a time; neither the reading nor the load uses a (dead)
    proxy in the environment."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving() as stub:
        load.run_blocking(stub.base_url, MODEL, chat(1, max_tokens=7), concurrency=1)
        for suffix in ("", "/", "/v1", "/v1/", "/metrics"):
            reading = counters.scrape(stub.root + suffix)
            assert reading.value("vllm:generation_tokens", model_name="stub") == 7.0
            assert reading.taken_s > 0


def test_scrape_errors() -> None:
    """A missing page, a stopped server, a bad address and another format each have their error."""
    with serving() as stub:
        url = stub.root
        with pytest.raises(ServerError, match="404"):
            counters.scrape(f"{url}/nowhere")
    with pytest.raises(ServerError, match="cannot be read"):
        counters.scrape(url)
    with pytest.raises(UsageError, match="is not an http address"):
        counters.scrape("localhost:8000")
    with pytest.raises(ServerError, match="not a Prometheus page"):
        parse("<html>hello</html>")
