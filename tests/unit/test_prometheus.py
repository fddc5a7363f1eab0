"""Prometheus readings: counters, gauges and histograms of a vLLM page, their differences, and quantiles."""

import math
from bisect import bisect_left

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from labkit import load
from labkit.errors import ServerError, UsageError
from labkit.load import counters
from labkit.load.counters import Histogram, difference, parse
from labkit.load.workloads import chat
from tests.unit.stub_server import MODEL, serving

PAGE = """\
# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{{generation="0"}} 13266.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="a/b"}} {running}
vllm:num_requests_running{{engine="1",model_name="a/b"}} 1.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{engine="0",model_name="a/b"}} 0.25
vllm:kv_cache_usage_perc{{engine="1",model_name="a/b"}} 0.5
# HELP vllm:prefix_cache_hits_total Prefix cache hits, in terms of number of cached tokens.
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{{engine="0",model_name="a/b"}} {hits}
# HELP vllm:prefix_cache_hits_created Prefix cache hits, in terms of number of cached tokens.
# TYPE vllm:prefix_cache_hits_created gauge
vllm:prefix_cache_hits_created{{engine="0",model_name="a/b"}} 1.7e+09
# HELP vllm:request_success_total Count of successfully processed requests.
# TYPE vllm:request_success_total counter
vllm:request_success_total{{engine="0",finished_reason="stop",model_name="a/b"}} 2.0
vllm:request_success_total{{engine="0",finished_reason="length",model_name="a/b"}} 5.0
# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{{engine="0",le="0.1",model_name="a/b"}} {first}
vllm:time_to_first_token_seconds_bucket{{engine="0",le="0.5",model_name="a/b"}} {second}
vllm:time_to_first_token_seconds_bucket{{engine="0",le="+Inf",model_name="a/b"}} {total}
vllm:time_to_first_token_seconds_count{{engine="0",model_name="a/b"}} {total}
vllm:time_to_first_token_seconds_sum{{engine="0",model_name="a/b"}} {sum}
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{{block_size="32",engine="0",num_gpu_blocks="364"}} 1.0
"""


def page(hits: float = 96.0, running: float = 3.0, first: float = 2, second: float = 6, total: float = 8) -> str:
    return PAGE.format(hits=hits, running=running, first=first, second=second, total=total, sum=total * 0.25)


BEFORE = parse(page(), taken_s=10.0)
AFTER = parse(page(hits=224.0, running=0.0, first=4, second=16, total=18), taken_s=12.5)


def test_values_by_the_names_in_vllms_documentation() -> None:
    """Counters are found with and without _total, gauges by their name, and series are summed."""
    assert BEFORE.value("vllm:prefix_cache_hits") == BEFORE.value("vllm:prefix_cache_hits_total") == 96.0
    assert BEFORE.value("vllm:num_requests_running") == 4.0
    assert BEFORE.value("vllm:request_success") == 7.0


def test_labels_choose_series() -> None:
    """Labels given choose among the series; those not given may be anything."""
    assert BEFORE.value("vllm:num_requests_running", engine="0") == 3.0
    assert BEFORE.value("vllm:request_success", finished_reason="length") == 5.0
    assert BEFORE.value("vllm:kv_cache_usage_perc", engine="1") == 0.5


def test_labels_can_be_read() -> None:
    """What vLLM tells in labels (its cache's configuration) can be read from the series."""
    (labels,) = BEFORE.series("vllm:cache_config_info")
    assert dict(labels)["num_gpu_blocks"] == "364"


def test_shares_are_not_summed() -> None:
    """Two engines' cache usage has no sum: the error shows what there is to choose."""
    with pytest.raises(UsageError, match="share with 2 series"):
        BEFORE.value("vllm:kv_cache_usage_perc")


@pytest.mark.parametrize("name", ["vllm:prefix_cache_hit", "nothing_like_it"])
def test_unknown_names_are_errors(name: str) -> None:
    """A name that is not there is never a silent 0; similar names are offered."""
    for read in (BEFORE.value, BEFORE.histogram):
        with pytest.raises(UsageError, match=f"no metric '{name}'"):
            read(name)
    with pytest.raises(UsageError, match="did you mean"):
        BEFORE.value("vllm:prefix_cache_hit")
    with pytest.raises(UsageError, match="with labels"):
        BEFORE.value("vllm:prefix_cache_hits", engine="7")


def test_difference_takes_growth_of_counters_only() -> None:
    """Counters and histograms give what was added, gauges what they are now, and the time is the time between."""
    grown = difference(BEFORE, AFTER)
    assert grown.taken_s == 2.5
    assert grown.value("vllm:prefix_cache_hits") == 128.0
    assert grown.value("vllm:num_requests_running") == 1.0
    assert grown.value("vllm:prefix_cache_hits_created") == 1.7e9
    histogram = grown.histogram("vllm:time_to_first_token_seconds")
    assert histogram.buckets == ((0.1, 2.0), (0.5, 10.0), (math.inf, 10.0))
    assert (histogram.count, histogram.mean) == (10.0, 0.25)


def test_difference_with_itself_is_nothing() -> None:
    """Between a reading and itself no counter grew, and a histogram without observations has no quantile."""
    none = difference(AFTER, AFTER)
    assert none.value("vllm:prefix_cache_hits") == 0.0
    histogram = none.histogram("vllm:time_to_first_token_seconds")
    assert math.isnan(histogram.mean)
    assert math.isnan(histogram.quantile(0.5))


def test_a_new_series_counts_from_zero() -> None:
    """A counter that appeared between the readings has grown by its value."""
    assert difference(parse(""), AFTER).value("vllm:prefix_cache_hits") == 224.0


def test_a_fallen_counter_is_a_restart() -> None:
    """A counter that fell means another server process: an error, not a negative growth."""
    with pytest.raises(ServerError, match="fell by 128"):
        difference(AFTER, BEFORE)


def test_quantile_inside_a_bucket() -> None:
    """As PromQL's histogram_quantile: linear inside the bucket, from 0 in the first."""
    histogram = Histogram(((1.0, 4.0), (2.0, 8.0), (math.inf, 10.0)), sum=20.0, count=10.0)
    assert histogram.quantile(0.2) == 0.5
    assert histogram.quantile(0.4) == 1.0
    assert histogram.quantile(0.6) == 1.5
    assert histogram.quantile(0.99) == 2.0
    assert histogram.mean == 2.0


observations = st.lists(st.floats(0.001, 99), min_size=1, max_size=60)
BOUNDS = (0.5, 1.0, 2.0, 5.0, 10.0, 50.0, 100.0, math.inf)


def histogram_of(data: list[float]) -> Histogram:
    buckets = tuple((bound, float(sum(value <= bound for value in data))) for bound in BOUNDS)
    return Histogram(buckets, sum(data), len(data))


@given(observations, st.floats(0.01, 1))
def test_quantiles_fall_into_the_right_bucket(data: list[float], q: float) -> None:
    """The estimate lies in the same bucket as the exact quantile of the observations."""
    exact = float(np.quantile(data, q, method="inverted_cdf"))
    assume(not math.isclose(q * len(data), round(q * len(data)), rel_tol=1e-9))
    estimate = histogram_of(data).quantile(q)
    assert bisect_left(BOUNDS, estimate - 1e-9) <= bisect_left(BOUNDS, exact) <= bisect_left(BOUNDS, estimate + 1e-9)


@given(observations, st.floats(0, 1), st.floats(0, 1))
def test_quantiles_rise(data: list[float], q: float, other: float) -> None:
    """A higher q never gives a lower estimate."""
    low, high = sorted((q, other))
    assert histogram_of(data).quantile(low) <= histogram_of(data).quantile(high) + 1e-9


@pytest.mark.parametrize("q", [-0.1, 1.5, math.nan])
def test_quantiles_end_at_one(q: float) -> None:
    """A q outside 0 to 1 is a usage error (99 is not 0.99)."""
    with pytest.raises(UsageError, match="q is"):
        histogram_of([1.0]).quantile(q)


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/", "/metrics"])
def test_scrape_reads_a_server(suffix: str) -> None:
    """The page is found from the server's root, its /v1 and its own address, and the reading is dated."""
    with serving() as stub:
        snapshot = counters.scrape(stub.root + suffix)
    assert snapshot.value("vllm:generation_tokens", model_name="stub") == 0.0
    assert snapshot.taken_s > 0


def test_scrape_and_load_go_past_any_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment, here a dead one, is not asked for a server on this machine."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving() as stub:
        load.run_blocking(stub.base_url, MODEL, chat(1, max_tokens=7), concurrency=1)
        assert counters.scrape(stub.root).value("vllm:generation_tokens") == 7.0


def test_scrape_says_what_is_wrong() -> None:
    """No server, no such page, no http address and no Prometheus text are one clear error each."""
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
