"""The cost calculator: exact money, machines from arrivals, break-evens, and prices as genai-prices computes them."""

import json
import math
import os
import re
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from genai_prices import Usage, calc_price
from hypothesis import given, settings
from hypothesis import strategies as st

from course import lab_11
from labkit import charts
from labkit.advice import costs
from labkit.advice.costs import CostSettings, Throughput
from labkit.advice.costs.machines import Staircase, break_even, machine
from labkit.advice.costs.measured import measured
from labkit.advice.costs.prices import rounded
from labkit.advice.costs.sensitivity import flips, sensitivity
from labkit.advice.costs.throughput import modelled, modelled_replicas
from labkit.advice.costs.words import to_json
from labkit.errors import UsageError
from labkit.models.examples import example_models
from labkit.theory.queues import probability_of_waiting, wait_quantile
from tests.unit.refusals import not_refused
from tools.notebooks import NOTEBOOKS

DAY = date(2026, 11, 24)
CASES = Path(__file__).parents[1] / "data" / "cases" / "cost" / "cases.yaml"
CLAUDE, GPT, GPT_THEN = "article/claude-3.5-sonnet", "article/gpt-4o", "dated/gpt-4o-2024-08-06"


def question(**changes: Any) -> CostSettings:
    """Return settings without extras: a g6.xlarge with 500 tokens/s, prices of a fixed day."""
    plain: dict[str, Any] = {
        "requests_per_s": 2.0,
        "input_tokens": 600,
        "output_tokens": 200,
        "instance": "g6.xlarge",
        "throughput": Throughput(tokens_per_s=500.0),
        "api": (CLAUDE,),
        "prices_on": DAY,
    }
    return CostSettings(**{**plain, **changes})


questions = st.builds(
    question,
    requests_per_s=st.floats(0.001, 5000),
    input_tokens=st.integers(0, 100_000),
    output_tokens=st.integers(1, 5000),
    hours_per_day=st.floats(1, 24),
    paid_hours_per_day=st.just(24.0),
    peak_factor=st.floats(1, 20),
    buffer=st.floats(0, 2),
    min_instances=st.integers(1, 5),
    throughput=st.builds(Throughput, tokens_per_s=st.floats(1, 1e5), counts=st.sampled_from(["output", "total"])),
    model_gb=st.floats(0, 19),
    storage_usd_per_gb_month=st.floats(0, 1),
    engineering_hours_per_month=st.floats(0, 200),
    engineer_usd_per_hour=st.floats(0, 300),
    instance=st.sampled_from(["g6.xlarge", "p4d.24xlarge", "m7g.large", "rented-h100"]),
    api=st.sampled_from([(CLAUDE,), (GPT,), ("openai/gpt-4o-mini",), ("aws/meta.llama3-1-8b-instruct-v1:0",)]),
)
few = settings(max_examples=40)


def test_the_articles_sums() -> None:
    """Break-evens, daily cost, fleet and utilisation of the article's example equal those calculated by hand."""
    by_hand = {
        (320, CLAUDE): ["35.6", "53.3", "21.3"],
        (960, CLAUDE): ["106.7", "160.0", "64.0"],
        (320, GPT): ["32.0", "42.7", "21.3"],
        (320, GPT_THEN): ["51.2", "73.1", "32.0"],
    }
    for (usd_per_day, model), expected in by_hand.items():
        crossings = [lab_11.break_even_millions(Fraction(usd_per_day), model, mix) for mix in lab_11.MIXES]
        assert [str(rounded(millions, 1)) for millions in crossings] == expected
    today = machine(question(instance="p4d.24xlarge")).usd_per_hour
    audit = "\n".join(line for part in lab_11.audit(today) for line in part.lines)
    sums = ("40 / 8 = $5.00", "40 x 8 = $320.00", "40 x 24 = $960.00", "= $526.98", "36 p4d, 288 GPUs", "3.75% busy")
    assert [words for words in (*sums, "= $2.00 per 1M") if words not in audit] == []


def test_the_calculator_agrees_with_the_audit() -> None:
    """The calculator and lab 11's audit agree on the article's example: $960 a day, 3.75% busy, the same break-even."""
    answer = costs.calculate(lab_11.question())
    assert rounded(answer.hosted.usd_per_day, 2) == Decimal("960.00")
    assert rounded(answer.hosted.utilisation * 100, 2) == Decimal("3.75")
    assert answer.against.break_even.first == lab_11.break_even_millions(Fraction(960), CLAUDE, "half and half") * 10**6
    assert lab_11.figures().model_gb == round(2 * (example_models()["Llama-3.1-8B"].parameters or 0) / 1e9, 2)


def at(tree: Any, path: str) -> Any:
    """Return the value at a dotted path such as api.0.usd_per_day."""
    return reduce(lambda node, step: node[int(step) if isinstance(node, list) else step], path.split("."), tree)


def test_public_questions_have_the_right_answer() -> None:
    """Each case of tests/data/cases/cost is right within half a percent, to which its source rounds."""
    offenders = []
    for case in yaml.safe_load(CASES.read_text()):
        answer = to_json(costs.calculate(costs.settings_from(case["settings"], costs.default(prices_on=DAY))))
        for path, right in case["right"].items():
            value = at(answer, path)
            equal = value == pytest.approx(right, rel=0.005) if isinstance(right, int | float) else value == right
            offenders += [] if equal else [(case["id"], path, value, right)]
    assert offenders == []


# --- money and prices


def test_amounts_are_shown_readably() -> None:
    """Dollars have commas and cents, rounded half up; small amounts keep three significant digits."""
    shown = {"1234.565": "$1,234.57", "0.105": "$0.11", "0.0048": "$0.0048", "0.00000075": "$0.00000075", "0": "$0.00"}
    assert {usd: costs.show_usd(Fraction(usd)) for usd in shown} == shown


def test_api_prices_are_the_catalogues_own() -> None:
    """Each offered model, and the article's snapshots, costs what genai-prices computes for that day, also with cached
    input and in a batch; a note reports a discount that it does not list.

    The models include one with tiers for long prompts and one whose price has changed."""
    llama = "openrouter/meta-llama/llama-3.1-8b-instruct"
    named = {name: name for name in (*costs.known_models(), llama)}
    of_its_time = {
        GPT: "openai/gpt-4o-2024-05-13",
        GPT_THEN: "openai/gpt-4o",
        "article/gpt-4o-mini": "openai/gpt-4o-mini",
    }
    amounts, days = [(0, 1), (1000, 0), (1000, 300), (400_000, 1)], (DAY, date(2026, 10, 1))
    offenders, prices = [], {}
    for model, catalogue_name in (named | of_its_time).items():
        provider, _, name = catalogue_name.partition("/")
        discounts = [(0, False), (900, False), (0, True), (900, True)] if model in named else [(0, False)]
        for (inputs, outputs), day, (hit, batch) in product(amounts, days, discounts):
            cached = min(hit, inputs)
            noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
            usage = Usage(input_tokens=inputs, cache_read_tokens=cached, output_tokens=outputs)
            context = {"processing": "batch"} if batch else None
            oracle = calc_price(usage, name, provider_id=provider, genai_request_timestamp=noon, price_context=context)
            amount: dict[str, Any] = {"input_tokens": inputs, "output_tokens": outputs, "on": day}
            price = costs.price_of_request(model, **amount, cached_tokens=cached, batch=batch)
            full = prices[model, inputs, outputs, day] = costs.price_of_request(model, **amount).usd_per_request
            noted = (price.usd_per_request < full) == (len(price.notes) < (cached > 0) + batch)
            if not (price.usd_per_request == Fraction(oracle.total_price) > 0 and noted):
                offenders.append((model, inputs, cached, outputs, batch, day, price, oracle.total_price))
    assert offenders == []
    assert prices["openai/gpt-5.4", 400_000, 1, DAY] > 400 * prices["openai/gpt-5.4", 1000, 0, DAY]
    assert prices[llama, 1000, 0, date(2026, 10, 1)] != prices[llama, 1000, 0, DAY]


def test_machines_have_the_price_of_their_day() -> None:
    """Every price has a source; the p4d's $32.77 per hour ends in May 2025."""
    assert all(
        price.source and price.usd_per_hour > 0 for machine in costs.instances().values() for price in machine.prices
    )
    days = {date(2025, 5, 31): "32.77", date(2025, 6, 1): "21.957642", DAY: "21.957642"}
    hours = {day: machine(question(instance="p4d.24xlarge", prices_on=day)).usd_per_hour for day in days}
    assert hours == {day: Fraction(usd) for day, usd in days.items()}


# --- fleets and break-evens


@few
@given(questions)
def test_the_fleet_is_the_smallest_that_carries_the_peak(config: CostSettings) -> None:
    """The fleet carries peak and buffer, one machine less would not, and cost and utilisation follow from it."""
    answer, single = costs.calculate(config), machine(config)
    fleet, rate = answer.hosted, config.requests_per_s or 0
    used = config.used_throughput
    counted = config.output_tokens if used.counts == "output" else config.tokens_per_request
    assert float(single.requests_per_s) == pytest.approx(used.tokens_per_s / (counted or 0))
    planned = answer.demand.planned_per_s
    assert float(planned) == pytest.approx(rate * config.peak_factor * (1 + config.buffer))
    assert fleet.machines >= config.min_instances
    assert fleet.machines * single.requests_per_s >= planned
    assert fleet.machines == config.min_instances or (fleet.machines - 1) * single.requests_per_s < planned
    busy = rate * config.hours_per_day / 24 / (fleet.machines * single.requests_per_s)
    assert float(fleet.utilisation) == pytest.approx(float(busy))
    people = config.engineering_hours_per_month * config.engineer_usd_per_hour
    machine_month = float(single.usd_per_hour) * 730 + config.weights_gb * config.storage_usd_per_gb_month
    assert float(fleet.usd_per_month) == pytest.approx(fleet.machines * machine_month + people)
    assert fleet.usd_per_million_tokens == fleet.usd_per_day * 10**6 / answer.demand.tokens_per_day
    assert answer.stairs.usd_per_day(answer.demand.tokens_per_day) == fleet.usd_per_day
    per_token = answer.against.usd_per_million_tokens / 10**6
    assert answer.against.usd_per_day == per_token * answer.demand.tokens_per_day
    assert answer.against.break_even == break_even(answer.stairs, per_token)


@few
@given(questions, st.floats(1.0, 50))
def test_more_traffic_never_costs_less(config: CostSettings, factor: float) -> None:
    """Machines and bills grow with the traffic, also if it is given in tokens per day; an API's token price stays."""
    before = costs.calculate(config)
    factor = min(factor + 1e-9, 0.999e15 / float(before.demand.tokens_per_day))
    tokens = float(before.demand.tokens_per_day) * factor
    after = costs.calculate(config.changed(requests_per_s=None, tokens_per_day=tokens))
    assert after.hosted.machines >= before.hosted.machines
    assert after.hosted.usd_per_day >= before.hosted.usd_per_day
    assert float(after.against.usd_per_day) == pytest.approx(float(before.against.usd_per_day) * factor)
    assert after.against.usd_per_million_tokens == before.against.usd_per_million_tokens


@few
@given(
    load=st.lists(st.integers(0, 20), min_size=24, max_size=24).filter(any),
    rate=st.floats(0.01, 50),
    purchase=st.sampled_from(["on_demand", "reserved_1y"]),
)
def test_a_load_by_hour_is_the_sum_of_its_hours(load: list[int], rate: float, purchase: str) -> None:
    """Each hour has the machines for its own rate and pays for that hour; reserved machines are paid all day."""
    plain = question(instance="rented-h100", purchase=purchase, peak_factor=2.0)
    config = plain.changed(requests_per_s=rate, hourly_load=load)
    rates = [rate * 24 * share / sum(load) for share in load]
    hours = [costs.calculate(plain.changed(requests_per_s=hourly)).hosted.machines for hourly in rates]
    fleet = costs.calculate(config).hosted
    paid = sum(hours) if purchase == "on_demand" else 24 * max(hours)
    assert abs(fleet.machine_hours - paid) <= 1  # a rate that exactly fills its machines may round either way
    assert fleet.usd_per_day == fleet.machine_hours * machine(config).usd_per_hour
    assert fleet.machines == max(hours) or abs(fleet.machine_hours - paid) > 0


def test_a_flip_flips() -> None:
    """A setting changes which side is cheaper at the value that its flip names."""
    start = costs.default(prices_on=DAY).changed(api=("openai/gpt-5.4-nano", *costs.default().api))
    names = {"traffic": "requests_per_s", "price of an hour": "usd_per_hour", "tokens in": "input_tokens"}
    before = costs.calculate(start)
    hosting = before.hosted.usd_per_day < before.against.usd_per_day
    checked = 0
    for flip in flips(start):
        name = names.get(flip.setting, flip.setting)
        if name not in CostSettings.model_fields:
            continue
        then = costs.calculate(costs.settings_from({name: flip.to}, start))
        assert (then.hosted.usd_per_day < then.against.usd_per_day) != hosting, flip
        checked += 1
    assert checked >= 2


@given(st.sampled_from(["a100-80", "h100-sxm", "h200", "b200"]), st.integers(100, 4000), st.integers(10, 500))
@settings(max_examples=30)
def test_the_modelled_throughput_has_the_models_error_as_its_interval(card: str, read: int, written: int) -> None:
    """The formula is within fit_error of every point; the interval includes the value; cached input takes no time."""
    (replica,) = (row for row in modelled_replicas("llama-3.1-8b") if row.card == card)
    for point in replica.points:
        seconds = replica.request_s(point.input_tokens, point.output_tokens)
        assert abs(seconds * point.requests_per_s - 1) <= replica.fit_error + 1e-3
    plain, cached = (modelled(replica, "", read, written, hit) for hit in (0, read))
    assert plain.bounds is not None
    assert plain.bounds[0] < plain.tokens_per_s < plain.bounds[1]
    assert plain.tokens_per_s / plain.bounds[0] - 1 >= replica.error
    assert cached.tokens_per_s > plain.tokens_per_s


def test_the_default_compares_like_with_like() -> None:
    """An 8B on a modelled card is compared with hosted 8Bs, a 70B with hosted 70Bs."""
    for changes, size in (({}, "8B"), ({"model": "llama-3.1-70b", "instance": "p5.48xlarge"}, "70B")):
        answer = costs.calculate(costs.settings_from(changes, costs.default(prices_on=DAY)))
        assert size in answer.against.price.name
        assert answer.compared.startswith("Like with like")
        assert to_json(answer)["self_hosted"]["usd_per_day_interval"] is not None
    other = costs.calculate(costs.default(prices_on=DAY).changed(api=("anthropic/claude-sonnet-5-5",)))
    assert other.compared.startswith("Not like with like")


def test_replicas_on_more_gpus_scale_the_throughput() -> None:
    """A throughput of one GPU counts eight times on a machine with eight, that of a whole machine once."""
    for instance, gpus, expected in (("g6.xlarge", 1, 2.5), ("g6.48xlarge", 1, 20), ("g6.48xlarge", 0, 2.5)):
        throughput = Throughput(tokens_per_s=500.0, gpus=gpus)
        assert machine(question(instance=instance, throughput=throughput)).requests_per_s == expected


@settings(max_examples=15)
@given(st.floats(10, 1e4), st.floats(0.1, 1.0), st.floats(1.0, 10))
def test_the_interval_is_carried_from_throughput_to_price(rate: float, down: float, up: float) -> None:
    """The dearest and the cheapest fleet, and the break-even's bounds, are those at the ends of the interval."""
    answer = costs.calculate(question(throughput=Throughput(tokens_per_s=rate, low=rate * down, high=rate * up)))
    ends = [costs.calculate(question(throughput=Throughput(tokens_per_s=end))) for end in (rate * up, rate * down)]
    assert [answer.cheapest, answer.dearest] == [end.hosted for end in ends]
    assert answer.against.break_even_bounds == tuple(end.against.break_even.first for end in ends)
    shown = to_json(answer)["self_hosted"]
    assert shown["usd_per_day_interval"][0] <= shown["usd_per_day"] <= shown["usd_per_day_interval"][1]


@given(
    fixed=st.integers(0, 500),
    price=st.integers(1, 40),
    storage=st.integers(0, 3),
    steps=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 100)), min_size=1, max_size=3),
    least=st.integers(1, 4),
    per_token=st.fractions(Fraction(1, 10), 40, max_denominator=20),
)
def test_the_first_crossing_and_the_last_against_a_walk_along_the_curve(
    fixed: int, price: int, storage: int, steps: list[tuple[int, int]], least: int, per_token: Fraction
) -> None:
    """Both bills are equal at both crossings; hosting is dearer before the first, and not dearer after the last."""
    stairs = Staircase(
        fixed_usd=Fraction(fixed),
        hour_usd=Fraction(price),
        storage_usd=Fraction(storage),
        steps=tuple((Fraction(hours), Fraction(1, capacity)) for hours, capacity in steps),
        least=least,
    )
    crossing = break_even(stairs, per_token)
    if crossing.first is None or crossing.for_good is None:
        slope = sum(Fraction(hours * price, capacity) for hours, capacity in steps)
        assert per_token <= slope + Fraction(storage, min(capacity for _, capacity in steps))
        return
    assert crossing.first <= crossing.for_good
    assert stairs.usd_per_day(crossing.for_good) <= crossing.for_good * per_token
    ends = sorted({Fraction(n * capacity) for _, capacity in steps for n in range(1, 100)})
    before = [*(end for end in ends if end < crossing.first), crossing.first * Fraction(999_999, 1_000_000)]
    after = [at for end in ends for at in (end, end + Fraction(1, 10**9)) if at >= crossing.for_good]
    assert all(stairs.usd_per_day(at) <= at * per_token for at in after)
    if per_token > slope_of(stairs) * Fraction(101, 100):  # else the search may end at an upper bound
        assert all(stairs.usd_per_day(at) == at * per_token for at in (crossing.first, crossing.for_good))
        assert all(stairs.usd_per_day(at) > at * per_token for at in before)


def slope_of(stairs: Staircase) -> Fraction:
    """Return the limit of the hosting cost per token for large volumes."""
    hourly = sum((hours * share for hours, share in stairs.steps), Fraction(0)) * stairs.hour_usd
    return hourly + max(share for _, share in stairs.steps) * stairs.storage_usd


# --- questions and answers in text


def test_impossible_settings_are_refused_with_the_number_and_a_remedy() -> None:
    """Each message names the value and what is wrong; unknown names get the nearest known one."""
    bad: list[tuple[dict[str, Any], str]] = [
        ({"requests_per_s": -1}, "requests_per_s is -1"),
        ({"requests_per_s": float("nan")}, "nan; it should be a finite number"),
        ({"requests_per_s": None}, "neither of requests_per_s and tokens_per_day"),
        ({"requests_per_s": 1, "tokens_per_day": 5, "input_tokens": 1, "output_tokens": 1}, "both of requests_per_s"),
        ({"tokens_per_day": 18e6, "input_tokens": 3}, "the mix is missing (output_tokens)"),
        ({"input_tokens": 0, "output_tokens": 0}, "0 tokens"),
        ({"output_tokens": 0}, "output_tokens is 0"),
        ({"buffer": 101}, "101; it should be less than or equal to 100\n  To fix it: give buffer: spare capacity"),
        ({"model_gb": 30}, "a replica takes 2 GPUs, but g6.xlarge has 1"),
        ({"model_gb": 300, "instance": "g6.48xlarge", "tensor_parallel": 8}, "300 GB of weights do not fit into 8 x"),
        ({"buffer": ""}, "buffer is None; it should be a valid number"),
        ({"throughput_from": "/nowhere/at/all"}, "holds no measured throughput"),
        ({"instance": "g6.xlage"}, "did you mean g6.xlarge?"),
        ({"instance": "own"}, "price of 'own' on_demand is not known"),
        ({"instance": "p5.48xlarge", "purchase": "spot"}, "purchase to on_demand"),
        ({"throughput_from": "modelled"}, "no throughput is known for llama-3.1-8b on g6.xlarge"),
        ({"throughput_from": "modelled", "model": "llama-3.1-8"}, "did you mean llama-3.1-8b?"),
        ({"throughput_from": "modelled", "instance": "p5.48xlarge", "input_tokens": 9000}, "9,200 tokens"),
        ({"throughput_tokens_per_s": 5, "throughput_gpu": "A100"}, "throughput is that of A100, but g6.xlarge has L4"),
        ({"throughput_tokens_per_s": 5, "throughput_machine": "2 CPUs"}, "measured without a GPU (2 CPUs)"),
        (
            {"throughput_gpus": 1, "throughput_tokens_per_s": 5, "tensor_parallel": 4, "instance": "g6.48xlarge"},
            "takes 4",
        ),
        ({"cached_input": 700}, "cached_input is 700 tokens of 600"),
        ({"hourly_load": [1, 2, 3]}, "hourly_load has 3 numbers"),
        ({"hourly_load": "sometimes"}, "hourly_load is 'sometimes'"),
        ({"hourly_load": "0," * 24}, "a sum of 0"),
        ({"hourly_load": "office", "hours_per_day": 8}, "and so does hours_per_day"),
        ({"api": "own"}, "the API 'own' has no prices"),
        ({"api_output_usd_per_million": 1}, "the API 'own' has no prices"),
        ({"api": "openaix/gpt-4o"}, "no API model 'openaix/gpt-4o'"),
        ({"api": "openai/gpt-77"}, "has no openai/gpt-77"),
        ({"api": " , "}, "no API to compare with"),
        ({"paid_hours_per_day": 8}, "paid for only 8"),
        ({"bufer": 1}, "no setting 'bufer'\n  To fix it: did you mean buffer?"),
        ({"state": "{"}, "state is not JSON"),
    ]
    assert not_refused(lambda values: costs.calculate(costs.settings_from(values, question())), bad) == []
    assert not_refused(sensitivity, [(question(requests_per_s=0.0), "costs nothing")]) == []


def test_numbers_are_taken_as_people_write_them() -> None:
    """Commas and underscores are read; an empty price means the price list's."""
    values = {"requests_per_s": "1,000", "input_tokens": "1_200", "usd_per_hour": ""}
    assert costs.settings_from(values, question(usd_per_hour=3.0)) == question(requests_per_s=1000.0, input_tokens=1200)


@few
@given(questions)
def test_an_exported_question_comes_back_the_same(config: CostSettings) -> None:
    """A state restores its question over any other question; a setting beside it takes precedence."""
    throughput = Throughput(tokens_per_s=9.0, low=8.0, label="lab 01", measured=True, gpus=1, gpu="L4", machine="m")
    other = question(requests_per_s=77.0, usd_per_hour=3.0, throughput=throughput)
    assert costs.settings_from({"state": config.to_json()}, other) == config
    entered = costs.settings_from({"state": other.to_json(), "throughput_tokens_per_s": 100}, config)
    assert entered.throughput == Throughput(tokens_per_s=100.0)


def test_the_answer_has_the_keys_that_scripts_rely_on() -> None:
    """The JSON has hosting, each API, break-even and lines; without requests a token has no price."""
    answers = [to_json(costs.calculate(question(requests_per_s=rate))) for rate in (0.0, 2.0)]
    idle, busy = json.loads(json.dumps(answers, allow_nan=False))
    assert {"usd_per_day", "gpus", "utilisation"} <= busy["self_hosted"].keys()
    assert (busy["api"][0]["model"], busy["api"][0]["usd_per_day"]) == (CLAUDE, 829.44)
    assert busy["break_even_tokens_per_day"] > 0
    assert any("utilisation =" in line for line in busy["lines"])
    assert costs.settings_from({"state": busy["settings"]}) == question()
    assert (idle["self_hosted"]["machines"], idle["self_hosted"]["usd_per_million_tokens"]) == (1, None)


@few
@given(questions)
def test_sensitivity_is_in_order_and_centred(config: CostSettings) -> None:
    """The widest swing comes first; the API's price moves the ratio by its own factor."""
    swings = sensitivity(config)
    widths = [swing.width for swing in swings]
    assert widths == sorted(widths, reverse=True)
    api = next(swing for swing in swings if swing.name == "API's price")
    assert api.lowered / api.raised == pytest.approx(1.25 / 0.75)


def test_printed_flips_flip_and_shares_stay_shares() -> None:
    """A flip's value changes the cheaper side as it is printed. A share of cached input is not raised into tokens."""
    start = costs.settings_from({"prices_on": "2026-11-24"})
    hosting = costs.calculate(start).hosted.usd_per_day < costs.calculate(start).against.usd_per_day
    fields = {
        "traffic": "requests_per_s",
        "price of an hour": "usd_per_hour",
        "people's hours": "engineering_hours_per_month",
    }
    found = {fields[flip.setting]: flip.to for flip in flips(start) if flip.setting in fields}
    assert found
    for name, value in found.items():
        answer = costs.calculate(start.changed(**{name: float(f"{value:.4g}")}))
        assert (answer.hosted.usd_per_day < answer.against.usd_per_day) != hosting, name
    own = {"api_input_usd_per_million": 1, "api_output_usd_per_million": 2}
    cached = costs.settings_from({**own, "api_cached_usd_per_million": 0, "cached_input": 0.9})
    assert not [flip for flip in flips(cached) if flip.setting == "cached input" and float(flip.to) >= 1]


def test_own_prices_join_the_named_apis() -> None:
    """They come first, or where the APIs name them, and stay when the model changes."""
    own = {"api_input_usd_per_million": 1, "api_output_usd_per_million": 2}
    for named, expected in (("openai/gpt-5.4-nano", 0), ("openai/gpt-5.4-nano,own", 1)):
        settings = costs.settings_from({**own, "api": named})
        assert (len(settings.api), settings.api.index("own")) == (2, expected)
    larger = costs.settings_from({"model": "llama-3.1-70b"}, costs.settings_from(own))
    assert larger.api == ("own", *costs.settings_from({"model": "llama-3.1-70b"}).api)


def test_a_price_of_0_for_cached_input_is_a_price() -> None:
    """Half of 600 tokens at 1 dollar and 200 at 2 dollars per million, the cached half for nothing."""
    own = {"api_input_usd_per_million": 1, "api_output_usd_per_million": 2, "api_cached_usd_per_million": 0}
    answer = costs.calculate(costs.settings_from({**own, "cached_input": 0.5}))
    assert answer.against.price.usd_per_request == Fraction(300 * 1 + 200 * 2, 10**6)


# --- waiting


def test_waits_of_nothing_are_left_out_of_the_logarithmic_chart() -> None:
    """Where fewer than one percent wait, a line begins later; the axis starts above zero."""
    spec = charts.spec(lab_11.waiting_chart({1: [4.9, 29.6], 64: [0.0, 0.28]}, [0.3, 0.85]))
    assert "64 slots: 0.28x at 85 to 0.28x at 85" in spec["description"]
    assert "1 slot: 4.9x at 30" in spec["description"]
    assert '"type": "log"' in json.dumps(spec)


@given(places=st.integers(1, 60), load=st.floats(0.01, 0.97))
def test_waiting_is_that_of_m_m_c(places: int, load: float) -> None:
    """Erlang C equals its definition with factorials; C exp(-places (1 - load) t) is 1% at the p99 wait."""
    offered = places * load
    top = offered**places / math.factorial(places) / (1 - load)
    waiting = top / (sum(offered**n / math.factorial(n) for n in range(places)) + top)
    assert probability_of_waiting(places, load) == pytest.approx(waiting)
    wait = wait_quantile(places, load)
    assert waiting * math.exp(-places * (1 - load) * wait) == pytest.approx(min(waiting, 0.01))

    bad = [
        ((1, 1.0), "load is 1"),
        ((1, -0.1), "load is -0.1"),
        ((0, 0.5), "0 slots"),
        ((1, 0.5, 1.0), "quantile is 1"),
    ]
    assert not_refused(lambda arguments: wait_quantile(*arguments), bad) == []


# --- throughput from records


def written(folder: Path, *quantities: tuple[str, float, str, int]) -> Path:
    """Write a record of a GPU machine with quantities: name, value, unit, repeats."""
    path = folder / "09_head_to_head.json"
    record = {
        "format": 1,
        "lab": "09_head_to_head",
        "status": "done",
        "machine": {"line": "16 CPUs, 1 NVIDIA L4 GPU", "gpus": [{"name": "NVIDIA L4"}]},
        "versions": {},
        "parameters": {"model": "some/Qwen2.5-7B"},
        "seed": 0,
        "started": "2026-11-24T12:00:00Z",
        "measured": [
            {"name": n, "unit": u, "values": [v] * r, "value": v, "low": v * 0.9, "high": v * 1.1}
            for n, v, u, r in quantities
        ],
    }
    path.write_text(json.dumps(record))
    return path


def test_a_record_gives_its_best_throughput_under_load(tmp_path: Path) -> None:
    """The largest quantity in tokens/s counts, with interval, machine, GPUs and the model's size."""
    rates = [("one_user", 9000.0, "tokens/s", 1), ("ray", 650.0, "tokens/s", 1), ("vllm", 700.0, "tokens/s", 1)]
    written(tmp_path, *rates, ("t", 9e9, "s", 1))
    throughput = measured(tmp_path)
    assert (throughput.tokens_per_s, throughput.gpus, throughput.gpu) == (700.0, 1, "L4")
    assert throughput.bounds == pytest.approx((630.0, 770.0))
    assert throughput.label == "measured by lab 09_head_to_head on 2026-11-24 (vllm)"
    start = costs.default(throughput=throughput, prices_on=DAY)
    assert (start.instance, start.model_gb) == ("g6.xlarge", 15.23)


def test_what_lab_01_measures_is_read(tmp_path: Path) -> None:
    """Of lab 01's throughputs by concurrency the best under load counts, that of a single user only without others."""
    cells = nbformat.read(NOTEBOOKS / "01_first_deployment.ipynb", as_version=4).cells
    (name,) = re.findall(r'measure\(f"(\w+)\{\w+\}", "tokens/s"', "\n".join(cell.source for cell in cells))
    written(tmp_path, *((f"{name}{c}", rate, "tokens/s", 6) for c, rate in ((1, 90.0), (16, 64.0), (4, 40.0))))
    assert "concurrency 16" in measured(tmp_path).label


SIMULATED_IDLE: dict[str, Any] = {
    "gpu": "h200", "model": "m", "replicas": 1, "source": "modelled", "error": {}, "load_share": 0.07,
}  # fmt: skip


def test_a_load_is_read_and_a_single_figure_gives_way_to_it(tmp_path: Path) -> None:
    """labkit load's JSON takes precedence over a newer figure without repeats; a single user's speed comes last."""
    load = tmp_path / "load.json"
    trace = {"rate": None, "concurrency": None}
    for wrong in ({"rate": 4.0}, trace, {"concurrency": 1}, {"failed": 30}, {"tensor_parallel": 1, **SIMULATED_IDLE}):
        load.write_text(json.dumps({"completed": 32, "failed": 0, "output_throughput": 123.5, **wrong}))
        with pytest.raises(UsageError, match=r"an open loop|a single client|30 requests failed|at 7% of capacity"):
            measured(load)
    load.write_text(json.dumps({"completed": 32, "failed": 0, "output_throughput": 123.5}))
    os.utime(load, (1, 1))
    written(tmp_path, ("writer", 700.0, "tokens/s", 1))
    assert measured(load) == measured(tmp_path)
    assert (measured(load).tokens_per_s, measured(load).measured) == (123.5, True)
    assert "labkit load (load.json: 32 requests)" in measured(load).label
    load.unlink()
    assert measured(tmp_path).tokens_per_s == 700.0
    written(tmp_path, ("tokens_per_second_one_user", 14.0, "tokens/s", 1))
    assert measured(tmp_path).tokens_per_s == 14.0


SIMULATION: dict[str, Any] = {
    "completed": 512, "output_throughput": 4000.0, "gpu": "h200", "model": "llama-3.1-70b", "tensor_parallel": 2,
    "replicas": 1, "source": "Modelled: H200", "error": {"tpot": {"mean": 0.1, "worst": 0.25}},
}  # fmt: skip


def test_a_simulation_brings_its_error_and_is_no_measurement(tmp_path: Path) -> None:
    """The output of labkit simulate --json: its error is the interval, its card decides the machine."""
    path = tmp_path / "simulated.json"
    path.write_text(json.dumps(SIMULATION))
    config = costs.settings_from({"throughput_from": str(path)}, costs.default(prices_on=DAY))
    used = config.used_throughput
    assert (used.measured, used.gpus, used.gpu, used.bounds) == (False, 2, "H200", (3200.0, 4000 / 0.75))
    assert costs.instances()[config.instance].gpu == "H200"
    assert "off by up to 25%" in used.label
    assert not_refused(lambda name: config.changed(instance=name), [("rented-h100", "is that of H200")]) == []
    path.write_text(json.dumps({**SIMULATION, "error": {"text": "no served load to compare with"}}))
    assert (measured(path).bounds, "error not known" in measured(path).label) == (None, True)


def test_an_error_of_100_percent_or_more_gives_a_direction_only(tmp_path: Path) -> None:
    """Such an error bounds nothing from above: a simulation with it is refused, and so is a stored replica."""
    path, says = tmp_path / "simulated.json", "gives a direction only: its worst error is"
    replica = modelled_replicas("llama-3.1-8b")[0]
    for worst in (1.0, 2.14):
        path.write_text(json.dumps({**SIMULATION, "error": {"capacity": {"mean": 0.5, "worst": worst}}}))
        assert not_refused(measured, [(path, f"{path}: the simulation {says} {worst:.0%}")]) == []
        bad = replica.model_copy(update={"error": worst, "fit_error": 0.0})
        assert not_refused(lambda row: modelled(row, "L4", 600, 200, 0), [(bad, f"{says} {worst:.0%}")]) == []


def test_a_file_without_a_measurement_is_refused_and_skipped_in_a_folder(tmp_path: Path) -> None:
    """Other content, and a simulation with a missing or wrong field, is an error if the file is named; beside a
    measurement it does no harm."""
    path = tmp_path / "x.json"
    incomplete = [{k: v for k, v in SIMULATION.items() if k != name} for name in ("gpu", "model", "source", "error")]
    wrong: list[dict[str, Any]] = [
        {"error": "unknown"}, {"error": {"tpot": 0.3}}, {"error": {"tpot": {"worst": -2}}}, {"replicas": None},
        {"tensor_parallel": "two"}, {"tensor_parallel": 0}, {"gpu": ["h200"]},
    ]  # fmt: skip
    trees = [json.dumps(tree) for tree in (*incomplete, *({**SIMULATION, **change} for change in wrong))]
    others = ["", "[]", "{", "[" * 100_000, '{"output_throughput": "fast"}', '{"lab": "x"}', "\x00"]
    for says, contents in ((f"{path} is not valid", trees), (str(path), others)):
        for content in contents:
            path.write_text(content)
            assert not_refused(measured, [(path, says), (tmp_path, "holds no measured")]) == []
    written(tmp_path, ("vllm", 700.0, "tokens/s", 3))
    assert measured(tmp_path).tokens_per_s == 700.0
