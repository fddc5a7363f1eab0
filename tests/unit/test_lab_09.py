"""Lab 09 without engines: windows of a closed loop and Little's law, who was in time, static batches, exercises."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course import lab_09
from labkit import modelled
from labkit.errors import UsageError
from labkit.load import LoadResult, RequestRecord, metrics, workloads
from labkit.load.results import Outcome
from labkit.machine import UseSummary
from tests.unit.refusals import not_refused

pytest.importorskip("numpy")


@given(start=st.integers(0, 8), n=st.integers(1, 8))
def test_parts_of_a_workload(start: int, n: int) -> None:
    """A part is those requests and no others; one that reaches beyond the end is refused."""
    workload = workloads.chat(8, seed=2)
    if start + n > 8:
        with pytest.raises(UsageError, match="of 8 are asked for"):
            lab_09.part(workload, start, n)
    else:
        assert lab_09.part(workload, start, n).requests == workload.requests[start : start + n]


def record(scheduled_s: float, started_s: float, first_s: float, last_s: float, *, ok: bool = True) -> RequestRecord:
    """A streamed answer of three tokens."""
    times = (first_s, last_s)
    outcome = Outcome.OK if ok else Outcome.TIMEOUT
    return RequestRecord(0, scheduled_s, started_s, times, last_s, 5, 3, outcome)


def one_slice(*records: RequestRecord, cpu_s: float = 4.0, window: lab_09.Window | None = None) -> lab_09.Slice:
    """A slice with these records."""
    use = UseSummary(duration_s=8.0, processes_cpu_s=cpu_s, most_rss_bytes=2**30)
    return lab_09.Slice(result=LoadResult(records, 10.0, 0.1, None, 1.0, "chat", 0), use=use, window=window)


def test_goodput_counts_from_the_schedule() -> None:
    """A request that was sent late is late, however fast its answer; a failed one is not good; one that the end of the
    test cut off did not fail, and has waited from when it was due."""
    slo = metrics.Slo(ttft_s=1.0, tpot_s=0.5)
    good, slow = record(0.0, 0.0, 0.9, 1.5), record(0.0, 0.0, 0.5, 3.0)
    sent_late, failed = record(0.0, 0.6, 1.1, 1.5), record(0.0, 0.0, 0.5, 0.6, ok=False)
    cut = RequestRecord(0, 1.0, 1.0, (), 4.0, None, None, Outcome.CANCELLED)
    one = one_slice(good, sent_late, slow, failed, cut)
    assert (lab_09.kept_share(one, slo), one.failed) == (1 / 5, 1)
    assert lab_09.first_tokens(one) == ([0.9, 1.1, 0.5, 0.5], [3.0])


def loop(clients: int, service_s: list[float]) -> list[RequestRecord]:
    """A server that answers one request at a time, asked by clients that ask again at once."""
    ready, clock, records = [0.0] * clients, 0.0, []
    for index, seconds in enumerate(service_s):
        sent_s = ready.pop(0)
        clock += seconds
        ready.append(clock)
        records.append(RequestRecord(index, sent_s, sent_s, (clock,), clock, 5, 3, Outcome.OK))
    return records


@given(clients=st.integers(1, 8), service_s=st.floats(0.1, 5.0), each=st.integers(4, 12))
def test_a_loop_obeys_littles_law(clients: int, service_s: float, each: int) -> None:
    """Of a loop with equal service times the window has all clients in flight and N = X R, exactly; the exercise's
    answer is what was counted. Over the whole load, ramp-up and drain included, the law does not give the clients."""
    records = loop(clients, [service_s] * (clients * each))
    figures = lab_09.law([lab_09.window(records, clients)])
    assert figures["N"] == pytest.approx(clients)
    assert figures["X"] * figures["R"] == pytest.approx(clients)
    assert lab_09.requests_per_s(clients, figures["R"]) == pytest.approx(figures["X"])
    if clients > 1:
        whole = sum(one.finished_s - one.started_s for one in records) / records[-1].finished_s
        assert whole < clients - 0.01


@given(st.integers(1, 6), st.lists(st.floats(0.5, 2.0), min_size=120, max_size=160))
def test_unequal_answers_obey_it_within_a_few_percent(clients: int, service_s: list[float]) -> None:
    """With service times that differ up to four times, over twenty requests per client."""
    figures = lab_09.law([lab_09.window(loop(clients, service_s), clients)])
    assert figures["X"] * figures["R"] / figures["N"] == pytest.approx(1, abs=0.1)


def test_a_loop_that_does_not_loop_is_refused() -> None:
    """One request per client: nothing is left between ramp-up and drain."""
    with pytest.raises(UsageError, match="none of 4 requests"):
        lab_09.window(loop(4, [1.0] * 4), 4)


def test_a_line_of_the_table() -> None:
    """The windows of all slices together; CPU and memory are those of the server's processes."""
    windows = [lab_09.window(loop(2, [1.0] * n), 2) for n in (6, 8)]
    slices = [one_slice(window=one) for one in windows]
    figures = lab_09.line(slices)
    assert (figures["tokens/s"], figures["X"], figures["R"], figures["N"]) == pytest.approx((3.0, 1.0, 2.0, 2.0))
    assert (figures["GiB"], figures["cores"]) == (1.0, 0.5)


def test_what_does_not_fit_a_gpu_is_refused() -> None:
    """Two engines and two handlers with their weights: a 7B fits 80 GB with the profile's share, not with more, and not
    a card of 24 GB at all."""
    shares = [((0.31, 14.2, 79.6), "or less"), ((0.05, 14.2, 22.5), "smaller model")]
    assert not_refused(lambda it: lab_09.check_fits(it[0], weights_gib=it[1], gpu_gib=it[2]), shares) == []
    lab_09.check_fits(0.27, weights_gib=14.2, gpu_gib=79.6)
    lab_09.check_fits(0.9, weights_gib=14.2, gpu_gib=None)


def test_a_static_batch_decodes_to_its_longest() -> None:
    """Batches of equal answers lose nothing to padding; one long answer holds the others' slots; a batch of one is
    what vLLM does for one client."""
    gpu = modelled.gpu("h100-sxm", model="llama-3.1-8b")
    equal = modelled.traffic.fixed(16, input_tokens=200, output_tokens=50)
    longer = [replace(request, output_tokens=500 if index == 0 else 50) for index, request in enumerate(equal)]
    alone, together = lab_09.static_batches(gpu, equal, 1), lab_09.static_batches(gpu, equal, 16)
    assert 8 * alone < together < 16 * alone
    assert lab_09.static_batches(gpu, longer, 16) < together / 3
    assert {request.output_tokens for request in lab_09.chats(400, seed=1)} <= set(range(20, 201))


def test_a_sampler_gets_the_roots_only() -> None:
    """Of a process and its child the child is left out, unless it is asked for alone; one that ended is left out."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        me, ended = os.getpid(), child.pid
        assert lab_09.roots((me, child.pid)) == (me,)
        assert lab_09.roots((child.pid,)) == (child.pid,)
        child.communicate(b"\n")
    assert lab_09.roots((ended,)) == ()


# --- exercises


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0, 5), st.booleans()), min_size=1, max_size=20), st.floats(0.01, 5)
)
def test_the_share_asked_for_is_the_labs(answers: list[tuple[float, float, bool]], slo_s: float) -> None:
    """On the same requests the exercise and the lab's goodput count the same users."""
    timed = [(due_s, due_s + wait_s, ok) for due_s, wait_s, ok in answers]
    records = [record(due_s, due_s, first_s, first_s + 0.1, ok=ok) for due_s, first_s, ok in timed]
    share = lab_09.kept_share(one_slice(*records), metrics.Slo(ttft_s=slo_s))
    assert share == pytest.approx(lab_09.kept(timed, slo_s))
