"""The capstone: briefs, a plan's bill, what a trial may say, and the rubric, by hand and against independent code."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course import lab_12
from course.briefs import BRIEFS
from course.lab_12 import Found, Plan, Seen, Trial
from labkit import labs
from labkit.advice import costs, selector
from labkit.files import notebooks_path
from labkit.load.metrics import Slo
from labkit.modelled import cards
from labkit.modelled.evidence import promise
from labkit.modelled.shapes import model_folder
from labkit.modelled.traffic import TokenRequest
from labkit.runs.plan import read_defaults
from tests.unit.refusals import not_refused
from tests.unit.stub_server import serving

LAB = labs.find_lab("12")
DEFAULTS = read_defaults(notebooks_path() / LAB.notebook)
STACKS = selector.catalogue().stacks
DATA, BUDGET = "Data stay where the brief requires", "Within $7,000 per month"


def plan(**changes: Any) -> Plan:
    """The notebook's plan with other choices."""
    return lab_12.plan(DEFAULTS | changes)


def trial(good: float, *, requests: int = 400, load_share: float = 0.5) -> Trial:
    """A trial on an H100, as if driven."""
    folder = model_folder("llama-3.1-8b")
    known = promise(cards.find("h100-sxm"), folder, tensor_parallel=1, load_share=load_share)
    return Trial(
        requests=requests, good=good, load_share=load_share, ttft_s=0.1, tpot_s=0.01, cached=0.3, promise=known
    )


def found(chosen: Plan, *, day_share: float = 1.0, peak: Trial | None = None, hard: float = 0.99, **more: Any) -> Found:
    """What a lab would find of this plan, if all went well."""
    return Found(
        day_share=day_share,
        peak=peak or trial(day_share),
        hard=trial(hard),
        fleet_usd=chosen.fleet_usd,
        api_usd=chosen.api_usd(seed=0),
        **{"asked": 20, "answered": 20, "status_without_key": 401} | more,
    )


def failing(chosen: Plan, **facts: Any) -> list[str]:
    """The requirements that the plan fails."""
    return lab_12.failing(lab_12.rubric(chosen, found(chosen, **facts)))


# --- the rubric


def test_the_defaults_are_a_right_answer_and_wrong_choices_fail_by_name() -> None:
    """Each wrong choice fails its own requirement and no other."""
    share, hard = "95% of the day within the SLO", "At the peak, with the worst known error of the modelled GPU"
    table: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
        ({}, {}, []),
        ({}, {"day_share": 0.9}, [share]),
        ({}, {"hard": 0.9}, [hard]),
        ({}, {"peak": trial(1.0, requests=199)}, ["At least 200 requests behind it"]),
        ({}, {"answered": 19}, ["The small version works, and only with its key"]),
        ({}, {"status_without_key": 200}, ["The small version works, and only with its key"]),
        ({"replicas": 1}, {}, ["Replicas: 2 or more"]),
        ({"replicas": 4}, {}, [BUDGET]),
        ({"stack": "hosted-api"}, {}, [DATA]),
        ({"stack": "managed-endpoint"}, {}, [DATA]),
        ({"machine": "runpod-rtx-4090"}, {}, [DATA]),
        ({"stack": "vllm"}, {}, ["The stack serves that many"]),
        ({"stack": "torchserve"}, {}, ["The selector does not exclude the stack"]),
        ({"served": "qwen2.5-1.5b"}, {}, ["At least 7 billion parameters"]),
    ]
    told = [(choice, facts, failing(plan(**choice), **facts)) for choice, facts, _ in table]
    assert told == table


def test_an_api_wins_the_bursty_brief_and_machines_can_win_it_too() -> None:
    """With open points where nothing here can tell; the same machines that serve the documents are over its budget."""
    api = plan(brief="chat", stack="hosted-api")
    points = lab_12.rubric(api, found(api))
    assert lab_12.failing(points) == []
    assert "95% of the day within the SLO" in {point.requirement for point in points if point.met is None}
    assert failing(plan(brief="chat", machine="runpod-rtx-4090", replicas=8)) == []
    assert failing(plan(brief="chat")) == ["Within $2,000 per month"]


def test_the_vision_brief_leaves_room_for_what_is_not_modelled() -> None:
    """Two replicas are within the budget; more than 60% of the capacity at the peak fails and names the
    limits."""
    chosen = plan(brief="vision", replicas=2)
    assert failing(chosen) == []
    assert failing(chosen, peak=trial(1.0, load_share=0.61)) == ["At most 60% busy at the peak"]
    assert failing(replace(chosen, stack="hosted-api")) == [DATA]
    assert "refuses multimodal input" in chosen.brief.words


@pytest.mark.parametrize("brief", BRIEFS)
def test_no_stack_raises_and_another_engine_leaves_the_latency_open(brief: str) -> None:
    """All stacks of the selector are allowed values; what vLLM's trial cannot tell of another engine is open."""
    assert set(LAB.parameters["stack"].choices or ()) == set(STACKS)
    chosen = plan(brief=brief)
    rows = lab_12.with_other_stacks(chosen, found(chosen))
    assert [row["stack"] for row in rows] == list(STACKS)
    for name, stack in STACKS.items():
        points = lab_12.rubric(replace(chosen, stack=name), found(chosen))
        day = next(point for point in points if "of the day within" in point.requirement)
        assert (day.met is None) == (not stack.engine.startswith("vLLM"))


def test_a_note_holds_the_rubric_and_the_decision() -> None:
    """Every requirement with its number and outcome; what failed by name; the learner's sentence first."""
    chosen = plan(replicas=4)
    about: dict[str, Any] = {"here": "2 CPUs", "start_s": 20.4}
    note = lab_12.design_note(chosen, found(chosen), decision="", **about)
    for point in lab_12.rubric(chosen, found(chosen)):
        assert f"| {point.requirement} | {point.number} | {point.outcome} |" in note
    assert f"not ready: {BUDGET}" in note
    assert "ready 20 s after" in note
    mine = lab_12.design_note(chosen, found(chosen), decision="We buy four.", **about)
    assert mine.splitlines()[2] == "We buy four."
    api = replace(chosen, brief=BRIEFS["chat"], stack="hosted-api")
    assert chosen.api in lab_12.design_note(api, found(api), decision="", **about)


# --- plans


def test_what_cannot_be_tried_is_refused() -> None:
    """Machines, models, APIs and days that do not exist, and machines whose card is not modelled."""
    table: list[tuple[dict[str, Any], str]] = [
        ({"machine": "g7"}, "no instance 'g7'"),
        ({"machine": "g5.xlarge"}, "the modelled GPU has no A10G"),
        ({"machine": "m7g.large"}, "machine without a card"),
        ({"machine": "runpod-rtx-4090", "tensor_parallel": 2}, "has 1 at most"),
        ({"served": "gpt-9"}, "gpt-9"),
        ({"api": "nobody/gpt"}, "no API 'nobody/gpt'"),
        ({"prices_on": "tomorrow"}, "not a date"),
    ]
    assert not_refused(lambda changes: plan(**changes), table) == []


def test_machines_are_counted_whole() -> None:
    """By hand: rented one by one, by eight with several replicas in each, and with replicas larger than a machine."""
    assert [plan(replicas=n).machines for n in (1, 3)] == [1, 3]
    assert plan(replicas=3, tensor_parallel=2).machines == 6
    assert plan(replicas=3, tensor_parallel=4, machine="p5.48xlarge").machines == 2
    assert plan(replicas=9, machine="p5.48xlarge").machines == 2
    assert plan().fleet_usd == 3 * Fraction("2.95") * 730


def test_the_api_costs_what_the_calculator_says() -> None:
    """Its bill for the same day, tokens and prices."""
    chosen = plan(brief="chat")
    inputs, outputs = chosen.brief.mean_tokens(seed=0)
    question = {
        "requests_per_s": sum(chosen.brief.rates) / 24,
        "hourly_load": "office",
        "input_tokens": inputs,
        "output_tokens": outputs,
        "api": chosen.api,
        "prices_on": chosen.prices_on,
    }
    answer = costs.calculate(costs.settings_from(question))
    assert float(chosen.api_usd(seed=0)) == pytest.approx(float(answer.against.usd_per_month), rel=1e-6)
    assert "Hosting: " in chosen.calculator(seed=0)
    assert "cannot say" in plan(served="qwen3-8b").calculator(seed=0)


# --- the day and its trials


@given(hours=st.lists(st.integers(0, 23), min_size=1, max_size=8, unique=True), name=st.sampled_from(list(BRIEFS)))
def test_the_sampled_hours_stand_for_the_whole_day(hours: list[int], name: str) -> None:
    """Their weights add up to 1; all 24 hours stand for themselves; equal shares give that share."""
    brief = BRIEFS[name]
    assert sum(brief.weights(hours).values()) == pytest.approx(1)
    assert lab_12.day_share({hour: trial(0.75) for hour in hours}, brief) == pytest.approx(0.75)


def test_a_busy_hour_weighs_by_its_requests() -> None:
    """By hand for the office's day: ten hours at the full rate, fourteen at a tenth."""
    weights = BRIEFS["chat"].weights([3, 12])
    assert weights == pytest.approx({3: 1.4 / 11.4, 12: 10 / 11.4})
    share = lab_12.day_share({3: trial(1.0), 12: trial(0.5)}, BRIEFS["chat"])
    assert share == pytest.approx((1.4 + 5) / 11.4)


def test_the_margin_is_the_worst_known_error() -> None:
    """More requests per second and less time for each, by the errors of the load's region."""
    peak = trial(1.0, load_share=0.6)
    worst = {name: peak.promise.of(name) for name in ("tpot_ms", "ttft_ms", "output_per_s")}
    rate, slo = lab_12.with_margin(plan(), peak)
    factor = {name: 1 + errors.worst for name, errors in worst.items() if errors}
    assert rate == pytest.approx(20 * factor["output_per_s"])
    assert slo == Slo(ttft_s=1.0 / factor["ttft_ms"], tpot_s=0.025 / factor["tpot_ms"])


def test_no_ttft_is_shown_where_a_queue_decides_it() -> None:
    """A trial's row says so in words."""
    assert trial(1.0).row["mean TTFT, ms"] == "100"
    assert replace(trial(0.5), ttft_s=None).row["mean TTFT, ms"] == "a queue"


# --- the exercise and the small version


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2500)), min_size=1, max_size=8))
def test_the_exercises_router_pays_least(pairs: list[tuple[int, int]]) -> None:
    """No replica would cost less than the chosen one, and none before it as little."""
    replicas: list[Any] = [Seen(in_flight=in_flight, cached=cached) for in_flight, cached in pairs]
    request = TokenRequest(token_ids=[1, 2, 3], output_tokens=1)
    costs = [3 - cached + 256 * in_flight for in_flight, cached in pairs]
    chosen = lab_12.route(request, replicas)
    assert all(costs[chosen] <= cost for cost in costs)
    assert all(costs[chosen] < cost for cost in costs[:chosen])


def test_flags_of_the_card_are_left_out_of_the_small_version() -> None:
    """With their values, however these are written."""
    table = {
        "--max-num-seqs 128 --max-num-batched-tokens 4096": "--max-num-seqs 128 --max-num-batched-tokens 4096",
        "--kv-cache-dtype fp8 --max-num-seqs 8": "--max-num-seqs 8",
        "--max-num-seqs=8 --gpu-memory-utilization=0.9 --no-enable-prefix-caching": (
            "--max-num-seqs=8 --no-enable-prefix-caching"
        ),
        "": "",
    }
    assert {flags: lab_12.small_flags(flags) for flags in table} == table


def test_a_request_without_a_key_tells_its_status() -> None:
    """The client adds no key, so a server that requires one answers 401, and an open one 200."""
    for key, status in (("a key", 401), (None, 200)):
        with serving(api_key=key) as stub:
            assert lab_12.status_without_key(stub.base_url) == status
