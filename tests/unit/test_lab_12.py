"""The capstone's arithmetic against the queueing model it feeds, against sums made by hand, and against itself."""

import math
from fractions import Fraction
from itertools import accumulate
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError

from course import lab_12
from labkit.errors import UsageError
from labkit.experiments import Ratio
from labkit.load import LoadResult, Outcome, RequestRecord
from labkit.load.workloads import poisson_arrivals_s
from labkit.theory.queues import Arrival, Service, serve_all
from tests.unit.refusals import not_refused

SERVICE = Service(step_s={1: 0.05, 2: 0.055, 4: 0.065, 8: 0.085}, prefill_s_per_token=0.0025, places=8)
PROMISE = lab_12.Promise(ttft_s=1.0, tpot_s=0.2, share=0.9)


def record(
    index: int, due_s: float, first_s: float, gaps: list[float], *, read: int = 30, ok: bool = True
) -> RequestRecord:
    """A streamed answer with one token a chunk; without `ok` a request that the server refused."""
    times = tuple(accumulate(gaps, initial=first_s))
    if not ok:
        return RequestRecord(index, due_s, due_s, (), times[-1], None, None, Outcome.HTTP_ERROR)
    return RequestRecord(index, due_s, due_s, times, times[-1], read, len(times), Outcome.OK)


def result(records: list[RequestRecord], *, concurrency: int | None = None, rate: float | None = None) -> LoadResult:
    """A load of these records."""
    return LoadResult(tuple(records), max(sent.finished_s for sent in records), 0.1, concurrency, rate, "t", 0)


def modelled(service: Service, *, rate: float, seed: int, prompt_tokens: int) -> LoadResult:
    """A load on a server that is the model itself."""
    times_s = poisson_arrivals_s(30, rate=rate, seed=seed)
    arrivals = [Arrival(at_s=at_s, prompt_tokens=prompt_tokens, output_tokens=12) for at_s in times_s]
    answers = []
    for n, done in enumerate(serve_all(service, arrivals)):
        gaps = [done.tpot_s or 0.0] * 11
        answers.append(record(n, done.arrival.at_s, done.first_token_s, gaps, read=prompt_tokens))
    return result(answers, rate=rate)


# --- one replica


@given(
    clients=st.integers(1, 16),
    step_s=st.floats(0.001, 0.3),
    read_s=st.floats(0.0, 0.01),
    prompt=st.integers(1, 200),
    output=st.integers(3, 50),
)
def test_a_level_gives_back_what_made_it(clients: int, step_s: float, read_s: float, prompt: int, output: int) -> None:
    """Requests whose prompts and those of the others stand in their time: step and reading come out again."""
    others_s = (clients - 1) * prompt * read_s
    gaps = [step_s] * (output - 1)
    if output - 1 >= 3:  # the others' prompts come in one of the gaps
        gaps[0] += others_s
        own_s = prompt * read_s
    else:
        own_s = clients * prompt * read_s
    found = lab_12.level(result([record(n, 0.0, own_s, gaps, read=prompt) for n in range(6)], concurrency=clients))
    assert found.step_s == pytest.approx(step_s)
    assert found.prefill_s_per_token == pytest.approx(read_s, abs=1e-7)


def test_what_measures_nothing_is_refused() -> None:
    """Loads without gaps or answers, with how many had them; plans without one client alone, or three rising loads."""
    streamed, failed = record(0, 0.0, 0.1, [0.05, 0.05]), record(1, 0.0, 0.1, [], ok=False)
    silent = [record(0, 0.0, 0.1, []), failed]
    levels = [(result([streamed], rate=2.0), "1 of 1 answers"), (result(silent, concurrency=2), "0 of 2 answers")]
    assert not_refused(lab_12.level, levels) == []
    no_gaps = [(result(silent, rate=1.0), "none of 2 answers has gaps")]
    assert not_refused(lambda load: lab_12.pace(load, SERVICE), no_gaps) == []
    no_answers = [(result([failed], rate=5.0), "none of 1 requests")]
    assert not_refused(lambda load: lab_12.replay(load, SERVICE), no_answers) == []
    assert not_refused(lambda load: lab_12.traffic_like(load.records, seconds=5), no_answers) == []
    lab_12.check_plan([1, 8], [0.5, 0.9, 1.5])
    clients = [([8], "alone and with others"), ([2, 4], "alone and with others"), ([1, 8, 4], "alone and with others")]
    assert not_refused(lambda levels: lab_12.check_plan(levels, [0.5, 0.9, 1.5]), clients) == []
    loads = [([0.9], "at three loads"), ([0.9, 0.5, 1.5], "at three loads")]
    assert not_refused(lambda shares: lab_12.check_plan([1, 8], shares), loads) == []
    promises = [((1, share), "slo_share") for share in (0.0, 1.0, 1.5)] + [((0, 0.5), "slo_ttft_s")]
    assert not_refused(lambda slo: lab_12.Promise(ttft_s=slo[0], tpot_s=1, share=slo[1]), promises) == []


def test_a_service_is_the_mean_of_its_rounds() -> None:
    """Steps by clients, the reading of the highest level only, and as many places as it had clients."""
    rounds = [
        lab_12.Level(clients=n, step_s=s, prefill_s_per_token=p, tpot_s=1.0)
        for n, s, p in ((4, 0.06, 0.002), (1, 0.05, 0.009), (4, 0.08, 0.004), (1, 0.05, 0.001))
    ]
    service = lab_12.service_of(rounds)
    assert service.step_s == pytest.approx({1: 0.05, 4: 0.07})
    assert service.prefill_s_per_token == pytest.approx(0.003)
    assert service.places == 4


@given(factor=st.floats(0.3, 3), together=st.integers(1, 8))
def test_the_pace_is_how_much_slower_the_steps_were(factor: float, together: int) -> None:
    """Answers side by side whose steps took `factor` times as long have that pace, however long they waited before."""
    gap = factor * SERVICE.step_of(together)
    records = [record(n, 0.0, 7.0, [gap] * 9) for n in range(together)]
    assert lab_12.pace(result(records, rate=5.0), SERVICE) == pytest.approx(factor)


@given(factor=st.floats(0.5, 2), rate=st.floats(0.5, 15), seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_the_model_agrees_with_itself(factor: float, rate: float, seed: int) -> None:
    """A server that is the model is replayed exactly, request by request, also above its capacity.

    One that is slower or faster throughout is found again on average, once its pace is known."""
    load = modelled(SERVICE, rate=rate, seed=seed, prompt_tokens=30)
    replayed = lab_12.replay(load, SERVICE)
    assert replayed.measured_s == pytest.approx(replayed.model_s)
    load = modelled(lab_12.slower(SERVICE, factor), rate=rate, seed=seed, prompt_tokens=1)
    replayed = lab_12.replay(load, lab_12.slower(SERVICE, lab_12.pace(load, SERVICE)))
    ratios = [measured / model for measured, model in zip(replayed.measured_s, replayed.model_s, strict=True)]
    assert fmean(ratios) == pytest.approx(1, abs=0.25)


def test_a_refused_request_takes_part_in_the_queue_but_not_in_the_comparison() -> None:
    """Of three requests one failed: two pairs are left, each with its own request."""
    records = [record(0, 0.0, 0.1, [0.05] * 5), record(1, 0.1, 0.2, [], ok=False), record(2, 0.2, 0.4, [0.05] * 3)]
    replayed = lab_12.replay(result(records, rate=5.0), SERVICE)
    assert [answer.index for answer in replayed.records] == [0, 2]
    assert [answer.arrival.at_s for answer in replayed.modelled] == [0.0, 0.2]


@given(words=st.integers(8, 4000), tokens=st.integers(2, 4096))
def test_the_room_holds_the_request(words: int, tokens: int) -> None:
    """It is enough at four tokens a word, and a whole number of hundreds; a model that reads less refuses."""
    room = lab_12.room_for(words, tokens, longest=None)
    assert room % 100 == 0
    assert 0 <= room - 4 * words - tokens < 100
    with pytest.raises(UsageError, match=f"need {room} tokens"):
        lab_12.room_for(words, tokens, longest=room - 1)


# --- fleets and days


TRAFFIC = lab_12.traffic_like([record(n, 0.0, 0.1, [0.05] * (7 + n % 9)) for n in range(20)], seconds=15, seed=1)


def test_traffic_is_drawn_from_what_was_answered() -> None:
    """The same rate gives the same arrivals; lengths are those of the records; it lasts as long as was asked."""
    assert TRAFFIC(100.0) == TRAFFIC(100.0)
    found = TRAFFIC(200.0)
    assert {one.output_tokens for one in found} == {8 + n % 9 for n in range(20)}
    assert len(found) == 3000
    assert found[-1].at_s == pytest.approx(15, rel=0.1)
    assert len(TRAFFIC(1.0)) == 500


def test_a_fleet_is_the_smallest_that_keeps_the_promise() -> None:
    """It keeps it and can finish what comes; with one replica less, one of the two is not so.

    A limit of the busy share takes more replicas where it binds, and only the least that it needs."""
    for rate in (5.0, 60.0):
        size = lab_12.fleet(SERVICE, TRAFFIC, rate, PROMISE)
        assert size.keeps
        assert size.busy < 1
        assert size.kept == lab_12.share_kept(SERVICE, TRAFFIC(rate), PROMISE, replicas=size.replicas)
        if fewer := size.replicas - 1:
            kept = lab_12.share_kept(SERVICE, TRAFFIC(rate), PROMISE, replicas=fewer)
            assert kept < PROMISE.share or size.busy * size.replicas / fewer >= 1
    for most_busy in (0.3, 0.7, 0.95):
        limited = lab_12.fleet(SERVICE, TRAFFIC, 60.0, PROMISE, most_busy=most_busy)
        assert limited.busy <= most_busy
        assert limited.keeps
        assert limited.replicas == max(size.replicas, math.ceil(size.busy * size.replicas / most_busy))


def test_a_promise_that_no_fleet_keeps_is_told() -> None:
    """A step that is longer than promised: the fleet is the smallest whose queue ends, and does not keep it."""
    found = lab_12.fleet(SERVICE, TRAFFIC, 30.0, lab_12.Promise(ttft_s=1, tpot_s=0.01, share=0.9))
    assert not found.keeps
    assert found.replicas == math.floor(30 / lab_12.capacity_per_s(SERVICE, TRAFFIC(30.0))) + 1


@given(peak=st.floats(1, 5000), night=st.floats(0.01, 1))
def test_a_day_goes_from_its_night_to_its_peak(peak: float, night: float) -> None:
    """24 hours, the largest in the early afternoon, the smallest twelve hours before, the mean halfway between."""
    rates = lab_12.day(peak, night_share=night)
    assert len(rates) == 24
    assert max(rates) == rates[14] == pytest.approx(peak)
    assert min(rates) == rates[2] == pytest.approx(night * peak)
    assert fmean(rates) == pytest.approx(peak * (1 + night) / 2)


def sizing(rate: float, replicas: int, **more: bool) -> lab_12.Sizing:
    """A fleet's size, as if simulated."""
    return lab_12.Sizing(rate=rate, replicas=replicas, busy=0.8, kept=0.99, **{"keeps": True, **more})


@given(night=st.floats(0.01, 1), low=st.integers(1, 50), more=st.integers(0, 200))
def test_hours_between_lie_on_the_line_rounded_up(night: float, low: int, more: int) -> None:
    """By hand between two fleets, the ends are the fleets themselves, beyond them is refused; no peak has fewer."""
    sizings = [sizing(300.0, 31), sizing(100.0, 10)]
    assert lab_12.replicas_by_hour((100.0, 150.0, 200.0, 300.0), sizings) == [10, 16, 21, 31]
    outside = [((rate,), "no fleet was simulated") for rate in (99.0, 301.0)]
    assert not_refused(lambda rates: lab_12.replicas_by_hour(rates, sizings), outside) == []
    rates = lab_12.day(500.0, night_share=night)
    replicas = lab_12.replicas_by_hour(rates, [sizing(min(rates), low), sizing(max(rates), low + more)])
    assert [n for _, n in sorted(zip(rates, replicas, strict=True))] == sorted(replicas)
    assert replicas[14] == low + more


def test_the_calculators_fleet_knows_capacity_and_peak_only() -> None:
    """By hand: a peak of 100 at 60/12 a replica are 20 machines, with a buffer of a fifth 24; only they are paid."""
    day = lab_12.day(100.0, night_share=0.5)
    about = {"prompt_tokens": 30.0, "output_tokens": 12.0, "tokens_per_s": 60.0 + 1e-6, "usd_per_hour": 0.5}
    assert lab_12.fleet_per_day(day, **about, buffer=0.0).machines == 20
    assert lab_12.fleet_per_day(day, **about, buffer=0.2).machines == 24
    assert lab_12.fleet_per_day(day, **about, buffer=0.0).usd_per_day == 20 * 24 * Fraction(1, 2)
    assert lab_12.bill_usd([20] * 24, 0.1) == 20 * 24 * Fraction(1, 10)  # exact: no binary dust


# --- the exercises against the model


@given(
    places=st.integers(1, 16),
    step_s=st.floats(0.01, 0.3),
    prompt=st.integers(1, 300),
    read_s=st.floats(0, 0.01),
    output=st.integers(2, 100),
)
def test_the_exercises_capacity_is_the_models(
    places: int, step_s: float, prompt: int, read_s: float, output: int
) -> None:
    """The formula that learners write is the one by which the model counts."""
    service = Service(step_s={places: step_s}, prefill_s_per_token=read_s, places=places)
    expected = service.capacity_per_s(prompt_tokens=prompt, output_tokens=output)
    assert lab_12.requests_per_s(places, step_s, prompt, read_s, output) == pytest.approx(expected)


def test_an_overloaded_fleets_queue_is_the_exercises() -> None:
    """What is under way or waits after a while is what the exercise's line gives, but for those in the places."""
    capacity, seconds = SERVICE.capacity_per_s(prompt_tokens=30, output_tokens=12), 200.0
    rate = 3 * capacity
    arrivals = [Arrival(at_s=n / rate, prompt_tokens=30, output_tokens=12) for n in range(round(rate * seconds))]
    served = serve_all(SERVICE, arrivals, replicas=2)
    left = sum(one.finished_s > seconds for one in served)
    assert left == pytest.approx(lab_12.waiting(rate, 2, capacity, seconds), rel=0.05)


# --- the note


PREDICTIONS: list[dict[str, Any]] = [
    {"question": "How many?", "unit": "x", "guess": 1.5, "confidence": 0.7, "measured": 1.2},
    {"question": "Which?", "unit": None, "guess": "all", "confidence": None, "measured": "none"},
    {"question": "Why?", "unit": "x", "guess": None, "confidence": 0.5, "measured": 3.0},
]


def note(**changes: object) -> str:
    """A note of facts that are made up."""
    ratio = Ratio(name="r", value=1.13, low=1.02, high=1.24, pairs=40)
    facts: dict[str, object] = {
        "decision": "",
        "machine": "2 CPUs",
        "stack": "vLLM replicas",
        "command": "vllm serve MODEL",
        "promise": PROMISE,
        "service": SERVICE,
        "capacity_per_s": 6.54,
        "measured": [(0.5, 1.0, 0.99), (0.9, 0.93, 0.97), (1.5, 0.41, 0.52)],
        "errors": [ratio] * 3,
        "peak": sizing(1000.0, 171),
        "pessimistic": sizing(1000.0, 207),
        "by_balancer": {"random": sizing(100.0, 22), "two_choices": sizing(100.0, 18)},
        "usd_per_hour": 0.1,
        "by_hour_usd": Fraction(2461, 10),
        "all_day_usd": Fraction(4104, 10),
        "usd_per_million_tokens": Fraction(39, 100),
        "start_s": 47.0,
        "predictions": PREDICTIONS[2:],
        "unsolved": [],
    }
    return lab_12.design_note(**{**facts, **changes})


def test_a_note_holds_its_figures() -> None:
    """Fleet, error, bill, price and start are in it, and what was not measured; nothing of what there is not."""
    text = note()
    lines = (
        "- 171 replicas at the peak of 1,000 requests/s, as vLLM replicas.\n",
        "- 207 if real replicas are as much slower than the model as here.\n",
        "- By balancer, at 100 requests/s: random 22, two choices 18.\n",
        "- At 90% of the capacity requests took 1.13 times what the model says (1.02 to 1.24, 40 requests).\n",
        "- A decode step by the requests in it: 1: 50 ms, 2: 55 ms, 4: 65 ms, 8: 85 ms; a prompt token: 2.5 ms.\n",
        "- $246.10 a day if the fleet follows the hours, at $0.10 an hour and replica (entered, not looked up).\n",
        "- A replica took 47 s to start",
        "- A KV cache that fills up",
    )
    assert [line for line in lines if line not in text] == []
    assert "not kept by any number" not in text
    full = {"decision": "  we wait for the GPU. ", "predictions": PREDICTIONS, "unsolved": ["12.bill"]}
    text = note(**full, peak=sizing(1000.0, 171, keeps=False))
    more = (
        "## Decision\n\n- We wait for the GPU.\n",
        "not kept by any number",
        "- How many? Expected: 1.5x (70% sure). Found: 1.2x.\n- Which? Expected: all. Found: none.\n\n## Not in",
        "not done by hand yet: 12.bill.\n",
    )
    assert [line for line in more if line not in text] == []
    with pytest.raises(UndefinedError, match="'peak' is undefined"):
        lab_12.design_note(decision="", machine="")
