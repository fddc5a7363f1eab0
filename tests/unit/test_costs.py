"""The cost calculator: exact money, machines from arrivals, the break-even, prices against the catalogue's own sums."""

import json
import math
import os
import re
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import nbformat
import pytest
from genai_prices import Usage, calc_price
from hypothesis import given, settings
from hypothesis import strategies as st

from course import lab_11
from labkit.advice import costs
from labkit.advice.costs import CostSettings, Throughput
from labkit.advice.costs.machines import Staircase, break_even, fleet, machine
from labkit.advice.costs.measured import find, measured
from labkit.advice.costs.prices import rounded
from labkit.errors import UsageError
from labkit.models.examples import example_models
from labkit.theory.queues import probability_of_waiting, wait_quantile
from tools.notebooks import NOTEBOOKS

DAY = date(2026, 11, 24)
CLAUDE, GPT, GPT_THEN = "article/claude-3.5-sonnet", "article/gpt-4o", "dated/gpt-4o-2024-08-06"


def question(**changes: Any) -> CostSettings:
    """A plain question: one g6.xlarge that writes 500 tokens a second, no extras, prices of one day."""
    given: dict[str, Any] = {
        "requests_per_s": 2.0,
        "input_tokens": 600,
        "output_tokens": 200,
        "instance": "g6.xlarge",
        "throughput": Throughput(tokens_per_s=500.0),
        "api": (CLAUDE,),
        "prices_on": DAY,
    }
    return CostSettings(**{**given, **changes})


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
    model_gb=st.floats(0, 200),
    storage_usd_per_gb_month=st.floats(0, 1),
    engineering_hours_per_month=st.floats(0, 200),
    engineer_usd_per_hour=st.floats(0, 300),
    instance=st.sampled_from(["g6.xlarge", "p4d.24xlarge", "m7g.large", "h100-on-demand"]),
    api=st.sampled_from([(CLAUDE,), (GPT,), ("openai/gpt-4o-mini",), ("aws/meta.llama3-1-8b-instruct-v1:0",)]),
)


# --- the hand-checked sums of the article


def test_a_million_tokens_of_a_mix() -> None:
    """One million tokens through Claude 3.5 Sonnet cost $9, $6 or $15, never $18."""
    found = [lab_11.article_usd_per_million(CLAUDE, mix) for mix in ("half and half", "3:1", "written only")]
    assert found == [9, 6, 15]
    assert lab_11.article_usd_per_million(GPT, "half and half") == 10


def test_the_articles_break_evens() -> None:
    """Half and half, 3:1 and written only, in million tokens a day, as worked out by hand."""
    for usd_per_day, model, expected in (
        (320, CLAUDE, ["35.6", "53.3", "21.3"]),
        (960, CLAUDE, ["106.7", "160.0", "64.0"]),
        (320, GPT, ["32.0", "42.7", "21.3"]),
        (320, GPT_THEN, ["51.2", "73.1", "32.0"]),
    ):
        found = [lab_11.break_even_millions(Fraction(usd_per_day), model, mix) for mix in lab_11.MIXES]
        assert [str(rounded(millions, 1)) for millions in found] == expected


def test_the_articles_day_and_fleet() -> None:
    """40 x 8 = 320 is for eight hours; a day is $960, $526.98 at today's price; 1,000 requests a second take 36 p4d."""
    today = costs.instances()["p4d.24xlarge"].price(DAY)
    assert today is not None
    lines = "\n".join(line for each in lab_11.audit(today.usd_per_hour) for line in each.lines)
    expected = (
        "40 / 8 = $5.00",
        "40 x 8 = $320.00",
        "40 x 24 = $960.00",
        "= $526.98",
        "36 p4d, 288 GPUs",
        "3.75% busy",
    )
    assert [words for words in (*expected, "= $2.00 per 1M") if words not in lines] == []


def test_the_calculator_agrees_with_the_audit() -> None:
    """The article's own example through the whole calculator: $960 a day, 3.75% busy, 106.7M against Claude."""
    found = costs.calculate(costs.article())
    assert costs.cents(found.hosted.usd_per_day) == Decimal("960.00")
    assert rounded(found.hosted.utilisation * 100, 2) == Decimal("3.75")
    assert found.against.break_even.first == lab_11.break_even_millions(Fraction(960), CLAUDE, "half and half") * 10**6


def test_the_articles_model_has_its_size() -> None:
    """The weights that the first question assumes are those of Llama-3.1-8B, computed from its shapes."""
    assert costs.figures().model_gb == round(2 * (example_models()["Llama-3.1-8B"].parameters or 0) / 1e9, 2)


def test_machines_by_price_and_date() -> None:
    """A p4d cost $32.77 an hour until the end of May 2025 and $21.957642 from then on; a day of a g6 costs $19.32."""
    p4d = costs.instances()["p4d.24xlarge"]
    for day, usd in ((date(2025, 5, 31), "32.77"), (date(2025, 6, 1), "21.957642"), (DAY, "21.957642")):
        price = p4d.price(day)
        assert price is not None
        assert price.usd_per_hour == Fraction(usd)
    assert costs.cents(machine(question()).usd_per_day) == Decimal("19.32")


# --- money


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6))
def test_cents_are_the_decimal_half_up(numerator: int, denominator: int) -> None:
    """Rounding to the cent is never more than half a cent off, and whole cents stay what they are."""
    amount = Fraction(numerator, denominator)
    assert abs(Fraction(costs.cents(amount)) - amount) <= Fraction(1, 200)
    assert costs.cents(Fraction(numerator, 100)) == Decimal(numerator) / 100


def test_amounts_are_shown_readably() -> None:
    """Dollars with commas and cents, half a cent up; small amounts with the digits that say something."""
    expected = {
        "1234.565": "$1,234.57",
        "0.105": "$0.11",
        "0.0048": "$0.0048",
        "0.00000075": "$0.00000075",
        "0": "$0.00",
    }
    assert {usd: costs.show_usd(Fraction(usd)) for usd in expected} == expected


@given(questions)
@settings(max_examples=25, deadline=None)
def test_an_hour_times_24_is_a_day_and_a_month_is_730_hours(asked: CostSettings) -> None:
    """The machines' share of a day is 24 times that of an hour, exactly; a month is a twelfth of a year."""
    day = machine(asked).usd_per_day
    hour = machine(asked.changed(hours_per_day=1.0, paid_hours_per_day=1.0))
    storage = day - hour.usd_per_hour * 24
    assert (hour.usd_per_day - storage) * 24 == day - storage
    assert fleet(asked).usd_per_month == fleet(asked).usd_per_day * Fraction(730, 24)


# --- fleets


@given(questions, st.floats(1.0, 50))
@settings(max_examples=40, deadline=None)
def test_more_traffic_never_costs_less(asked: CostSettings, factor: float) -> None:
    """Machines, hosting and every API's bill are monotone in the traffic; the token's price at the API stays."""
    more = asked.changed(requests_per_s=min(1e7, (asked.requests_per_s or 0) * factor))
    before, after = costs.calculate(asked), costs.calculate(more)
    assert after.hosted.machines >= before.hosted.machines
    assert after.hosted.usd_per_day >= before.hosted.usd_per_day
    assert after.against.usd_per_day >= before.against.usd_per_day
    assert after.against.usd_per_million_tokens == before.against.usd_per_million_tokens


@given(questions)
@settings(max_examples=40, deadline=None)
def test_the_machines_carry_the_peak_and_one_fewer_would_not(asked: CostSettings) -> None:
    """The fleet's rate covers peak and buffer, with no machine too many, and utilisation is arrivals over capacity."""
    found, one, wanted = fleet(asked), machine(asked), costs.calculate(asked).demand
    assert found.machines * one.requests_per_s >= wanted.planned_per_s
    assert found.machines == asked.min_instances or (found.machines - 1) * one.requests_per_s < wanted.planned_per_s
    busy = float(wanted.requests_per_day / 86400 / (found.machines * one.requests_per_s))
    assert float(found.utilisation) == pytest.approx(busy)
    assert found.utilisation <= 1


@given(questions)
@settings(max_examples=25, deadline=None)
def test_requests_a_second_and_tokens_a_day_are_the_same_traffic(asked: CostSettings) -> None:
    """The same traffic given as tokens a day leads to the same machines and bills."""
    before = costs.calculate(asked)
    tokens = Fraction(before.demand.tokens_per_day)
    other = asked.changed(requests_per_s=None, tokens_per_day=float(tokens))
    after = costs.calculate(other)
    assert float(after.against.usd_per_day) == pytest.approx(float(before.against.usd_per_day))
    assert abs(after.hosted.machines - before.hosted.machines) <= 1  # the float of the tokens may round over an edge


def test_replicas_on_more_gpus_scale_the_throughput() -> None:
    """A throughput of one GPU counts eight times on a machine with eight of them, and once where it was a machine's."""
    one = Throughput(tokens_per_s=500.0, gpus=1)
    eight = machine(question(instance="g6.48xlarge", throughput=one)).requests_per_s
    assert eight == 8 * machine(question(throughput=one)).requests_per_s
    whole = machine(question(instance="g6.48xlarge", throughput=Throughput(tokens_per_s=500.0))).requests_per_s
    assert whole * 8 == eight


@given(st.floats(10, 1e4), st.floats(0.1, 1.0), st.floats(1.0, 10))
@settings(max_examples=25, deadline=None)
def test_the_interval_is_carried_from_throughput_to_price(rate: float, down: float, up: float) -> None:
    """A lower throughput is never cheaper, a higher one never dearer; the ends are those of the interval."""
    found = costs.calculate(question(throughput=Throughput(tokens_per_s=rate, low=rate * down, high=rate * up)))
    assert found.cheapest.usd_per_day <= found.hosted.usd_per_day <= found.dearest.usd_per_day
    assert found.dearest == fleet(question(throughput=Throughput(tokens_per_s=rate * down)))
    shown = found.to_json()["self_hosted"]
    assert shown["usd_per_day_interval"][0] <= shown["usd_per_day"] <= shown["usd_per_day_interval"][1]


# --- break-even


@given(questions)
@settings(max_examples=50, deadline=None)
def test_the_break_even_is_where_the_curves_cross(asked: CostSettings) -> None:
    """There both bills are equal; a little below the API is the cheaper one; below a full machine, it never is."""
    found = costs.calculate(asked)
    per_token = found.against.usd_per_million_tokens / 10**6
    at = found.against.break_even.first
    if at is None:
        full = found.stairs.machine_tokens * per_token
        assert full <= found.stairs.machine_usd
        return
    assert found.stairs.usd_per_day(at) == at * per_token
    below = at * Fraction(999_999, 1_000_000)
    assert found.stairs.usd_per_day(below) > below * per_token


@given(
    fixed=st.integers(0, 500),
    price=st.integers(1, 100),
    capacity=st.integers(1, 100),
    least=st.integers(1, 4),
    per_token=st.fractions(Fraction(1, 10), 10, max_denominator=20),
)
@settings(max_examples=60, deadline=None)
def test_the_first_crossing_and_the_last_against_a_walk_along_the_curve(
    fixed: int, price: int, capacity: int, least: int, per_token: Fraction
) -> None:
    """Below the first crossing hosting is dearer at every step's end; beyond the last one, cheaper at every step."""
    stairs = Staircase(
        fixed_usd=Fraction(fixed), machine_usd=Fraction(price), machine_tokens=Fraction(capacity), least=least
    )
    found = break_even(stairs, per_token)
    ends = [Fraction(n * capacity) for n in range(1, 400)]
    if found.first is None or found.for_good is None:
        assert all(stairs.usd_per_day(at) > at * per_token or price == 0 for at in ends if fixed or least > 1) or (
            per_token * capacity <= price
        )
        return
    assert found.first <= found.for_good
    assert all(stairs.usd_per_day(at) > at * per_token for at in ends if at < found.first)
    starts = [at + Fraction(1, 10**9) for at in ends]
    assert all(stairs.usd_per_day(at) <= at * per_token for at in (*ends, *starts) if at >= found.for_good)


# --- prices


@given(model=st.sampled_from(list(costs.known_models())), read=st.integers(0, 300_000), written=st.integers(1, 20_000))
@settings(max_examples=60, deadline=None)
def test_todays_prices_are_the_catalogues_own(model: str, read: int, written: int) -> None:
    """Each model that is offered costs what genai-prices says of one such request on that day."""
    provider, _, name = model.partition("/")
    noon = datetime(2026, 11, 24, 12, tzinfo=UTC)
    usage = Usage(input_tokens=read, output_tokens=written)
    oracle = calc_price(usage, name, provider_id=provider, genai_request_timestamp=noon).total_price
    assert usd_of(model, read, written) == Fraction(oracle) > 0


def usd_of(model: str, read: int, written: int, on: date = DAY) -> Fraction:
    """The exact price of one request."""
    return costs.price_of_request(model, input_tokens=read, output_tokens=written, on=on).usd_per_request


def test_a_long_prompt_and_another_day_have_prices_of_their_own() -> None:
    """A model with tiers takes more for the tokens of a long prompt; one whose price changed cost another amount."""
    assert usd_of("openai/gpt-5.4", 400_000, 1) > 400 * usd_of("openai/gpt-5.4", 1000, 1)
    llama = "openrouter/meta-llama/llama-3.1-8b-instruct"
    assert usd_of(llama, 1000, 0, date(2026, 10, 1)) != usd_of(llama, 1000, 0)


def test_the_dated_table_agrees_with_the_catalogue_where_it_has_history() -> None:
    """The article's OpenAI models cost what the catalogue says of their snapshots."""
    snapshots = {GPT: "gpt-4o-2024-05-13", GPT_THEN: "gpt-4o", "article/gpt-4o-mini": "gpt-4o-mini"}
    usage = Usage(input_tokens=1000, output_tokens=300)
    oracle = {model: calc_price(usage, name, provider_id="openai").total_price for model, name in snapshots.items()}
    assert {model: usd_of(model, 1000, 300) for model in snapshots} == oracle


def test_every_price_has_a_day_and_a_source() -> None:
    """No row of the price lists is without the day it was read and where; a machine without a price is your own."""
    for name, instance in costs.instances().items():
        assert instance.prices or name == "own"
        assert all(price.source and price.read <= DAY and price.usd_per_hour > 0 for price in instance.prices)
    assert all(model.source and model.since and model.day.year == 2024 for model in costs.dated_models().values())


# --- what cannot be

BAD: list[tuple[dict[str, Any], str]] = [
    ({"requests_per_s": -1}, "requests_per_s is -1"),
    ({"requests_per_s": 1e300}, "requests_per_s is 1e[+]300"),
    ({"requests_per_s": "many"}, "requests_per_s is 'many', not a number"),
    ({"requests_per_s": float("nan")}, "not a number"),
    ({"requests_per_s": True}, "not a number"),
    ({"requests_per_s": None}, "neither of requests_per_s and tokens_per_day"),
    ({"requests_per_s": 1, "tokens_per_day": 5, "input_tokens": 1, "output_tokens": 1}, "both of requests_per_s"),
    ({"tokens_per_day": 18e6}, "the mix is missing"),
    ({"tokens_per_day": 18e6, "input_tokens": 3}, "the mix is missing"),
    ({"input_tokens": 0, "output_tokens": 0}, "0 tokens"),
    ({"output_tokens": 0}, "output_tokens is 0"),
    ({"input_tokens": 1.5}, "whole number"),
    ({"throughput_tokens_per_s": 0}, "throughput is 0 tokens/s"),
    ({"throughput_tokens_per_s": -5}, "above 0"),
    ({"throughput_tokens_per_s": 5, "throughput_counts": "both"}, "throughput_counts is 'both'"),
    ({"throughput_tokens_per_s": 5, "throughput_gpus": -1}, "throughput_gpus is -1"),
    ({"throughput_from": "/nowhere/at/all"}, "holds no measured throughput"),
    ({"instance": "g6.xlage"}, "no instance 'g6.xlage'"),
    ({"instance": "own"}, "price of 'own' is not known"),
    ({"api": "gpt"}, "no API model 'gpt'"),
    ({"api": "openaix/gpt-4o"}, "no API model 'openaix/gpt-4o'"),
    ({"api": "openai/gpt-77"}, "has no openai/gpt-77"),
    ({"api": " , "}, "no API to compare with"),
    ({"prices_on": "soon"}, "prices_on is 'soon', not a day"),
    ({"peak_factor": 0.5}, "peak_factor is 0.5"),
    ({"buffer": -0.1}, "buffer is -0.1"),
    ({"hours_per_day": 25}, "hours_per_day is 25"),
    ({"paid_hours_per_day": 8}, "paid for only 8"),
    ({"min_instances": 0}, "min_instances is 0"),
    ({"usd_per_hour": -1}, "usd_per_hour is -1"),
    ({"bufer": 1}, "no setting 'bufer'"),
    ({"state": "{"}, "state is no JSON"),
    ({"state": [1]}, "state is a list"),
    ({"state": {"nonsense": 1}}, "no setting 'nonsense'"),
]


def test_what_cannot_be_is_refused_with_the_number_and_a_remedy() -> None:
    """Negative and absurd numbers, unknown names, no mix, no throughput: a UsageError that says what to change."""
    offenders = []
    for values, message in BAD:
        with pytest.raises(UsageError) as raised:
            costs.calculate(costs.settings_from(values, question()))
        if not (re.search(message, raised.value.what) and raised.value.remedy):
            offenders.append((values, str(raised.value)))
    assert offenders == []


def test_a_number_out_of_range_is_told_its_range_and_meaning() -> None:
    """Value, range and unit in what is wrong; what the number means in the remedy; the same for other faults."""
    for values, what, remedy in (
        ({"buffer": 101}, "buffer is 101; it must be from 0 to 100 (share of the peak)", "it means: capacity held"),
        ({"min_instances": 1.5}, "min_instances is 1.5; it must be a whole number", "it means: machines at least"),
        ({"model_gb": ""}, "model_gb is not set", "give it a number from 0 to 1,000,000 (GB): size of the weights"),
        ({"instance": "g6.xlage"}, "there is no instance 'g6.xlage' in the price list", "did you mean g6.xlarge?"),
        ({"bufer": 1}, "the cost calculator has no setting 'bufer'", "did you mean buffer?"),
    ):
        with pytest.raises(UsageError) as raised:
            costs.settings_from(values, question())
        assert raised.value.what == what
        assert raised.value.remedy.startswith(remedy)


def test_numbers_are_taken_as_people_write_them() -> None:
    """Commas, underscores and text are numbers; an empty price is the price list's again."""
    start = question(usd_per_hour=3.0)
    found = costs.settings_from({"requests_per_s": "1,000", "input_tokens": "1_200", "usd_per_hour": ""}, start)
    assert (found.requests_per_s, found.input_tokens, found.usd_per_hour) == (1000.0, 1200, None)


# --- a question and its answer, outside


@given(questions)
@settings(max_examples=25, deadline=None)
def test_an_exported_question_comes_back_the_same(asked: CostSettings) -> None:
    """State to JSON and back, whatever question it is laid over, is the same question."""
    other = question(requests_per_s=77.0, usd_per_hour=3.0, throughput=Throughput(tokens_per_s=9.0, label="other"))
    assert costs.settings_from({"state": asked.to_json()}, other) == asked


def test_a_setting_beside_a_state_wins_and_is_labelled_anew() -> None:
    """A throughput entered over an exported one is entered: neither the interval nor the label stays."""
    measured = Throughput(
        tokens_per_s=60.0, low=50.0, high=70.0, label="measured by lab 01", measured=True, machine="m"
    )
    found = costs.settings_from({"state": question(throughput=measured).to_json(), "throughput_tokens_per_s": 100})
    assert found.throughput == Throughput(tokens_per_s=100.0)
    assert "not measured" in found.throughput.label


def test_the_answer_has_the_keys_that_scripts_rely_on() -> None:
    """`labkit cost --json`: hosting, each API, the break-even and the lines, as plain JSON."""
    found = json.loads(json.dumps(costs.calculate(question()).to_json(), allow_nan=False))
    assert {"usd_per_day", "usd_per_million_tokens", "gpus", "utilisation"} <= found["self_hosted"].keys()
    assert found["api"][0]["model"] == CLAUDE
    assert found["api"][0]["usd_per_day"] == 829.44
    assert found["break_even_tokens_per_day"] > 0
    assert any("utilisation =" in line for line in found["lines"])
    assert costs.settings_from({"state": found["settings"]}) == question()


def test_no_traffic_has_no_price_of_a_token() -> None:
    """Without requests a machine still costs, a token has no price, and the sensitivity says why it cannot be."""
    found = costs.calculate(question(requests_per_s=0.0))
    assert found.hosted.machines == 1
    assert found.to_json()["self_hosted"]["usd_per_million_tokens"] is None
    with pytest.raises(UsageError, match="costs nothing"):
        costs.sensitivity(question(requests_per_s=0.0))


@given(questions)
@settings(max_examples=25, deadline=None)
def test_sensitivity_is_in_order_and_centred(asked: CostSettings) -> None:
    """The widest swing comes first, and a dearer API always makes hosting look better."""
    swings = costs.sensitivity(asked)
    widths = [one.width for one in swings]
    assert widths == sorted(widths, reverse=True)
    api = next(one for one in swings if one.name == "API's price")
    assert api.raised < api.lowered
    assert api.lowered / api.raised == pytest.approx(1.25 / 0.75)


# --- waiting


@given(places=st.integers(1, 60), load=st.floats(0.01, 0.97))
def test_erlang_c_against_the_sum_by_definition(places: int, load: float) -> None:
    """The recursion gives what the formula with factorials gives."""
    offered = places * load
    top = offered**places / math.factorial(places) / (1 - load)
    oracle = top / (sum(offered**n / math.factorial(n) for n in range(places)) + top)
    assert probability_of_waiting(places, load) == pytest.approx(oracle)


def test_the_wait_of_a_single_place_is_the_textbooks() -> None:
    """M/M/1: P(wait > t) = load exp(-(1 - load) t), so the p99 wait is ln(100 load) / (1 - load)."""
    assert wait_quantile(1, 0.85) == pytest.approx(math.log(85) / 0.15)
    assert wait_quantile(64, 0.3) == 0.0


@given(places=st.integers(1, 200), load=st.floats(0.05, 0.9), more=st.floats(0.001, 0.09))
def test_waiting_grows_with_load_and_falls_with_places(places: int, load: float, more: float) -> None:
    """A busier engine makes people wait longer, one with more places shorter."""
    assert wait_quantile(places, load + more) >= wait_quantile(places, load)
    assert wait_quantile(places + 1, load) <= wait_quantile(places, load) + 1e-9


def test_a_queue_that_never_ends_has_no_wait() -> None:
    """No places, a load of 1 and more, and a quantile of 1 are refused."""
    for places, load, quantile in ((0, 0.5, 0.99), (1, 1.0, 0.99), (1, -0.1, 0.99), (1, 0.5, 1.0)):
        with pytest.raises(UsageError):
            wait_quantile(places, load, quantile)


# --- throughput from records


def load_file(folder: Path, throughput: Any) -> Path:
    """What `labkit load --json` leaves."""
    path = folder / "load.json"
    path.write_text(json.dumps({"completed": 32, "failed": 0, "output_throughput": throughput}))
    return path


def test_labkit_loads_json_is_a_throughput(tmp_path: Path) -> None:
    """A file, or the folder that holds it, gives the measured tokens a second with a label that says so."""
    path = load_file(tmp_path, 123.5)
    for where in (path, tmp_path):
        found = measured(where)
        assert (found.tokens_per_s, found.measured) == (123.5, True)
        assert "labkit load (load.json: 32 requests)" in found.label


def test_a_file_that_is_no_measurement_is_refused(tmp_path: Path) -> None:
    """Given by name it is an error with a remedy; met in a folder it is passed over."""
    path = tmp_path / "x.json"
    for content in ("", "[]", "{", '{"output_throughput": "fast"}', '{"lab": "x"}', "\x00"):
        path.write_text(content)
        with pytest.raises(UsageError) as raised:
            measured(path)
        assert raised.value.remedy
        assert find(tmp_path) is None


def record_file(folder: Path, measured: list[dict[str, Any]]) -> Path:
    """A lab's record of a GPU machine."""
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
        "measured": measured,
    }
    path.write_text(json.dumps(record))
    return path


def quantity(name: str, value: float, unit: str = "tokens/s", repeats: int = 1) -> dict[str, Any]:
    """One measured quantity of a record."""
    interval = {"low": value * 0.9, "high": value * 1.1}
    return {"name": name, "unit": unit, "values": [value] * repeats, "value": value, **interval}


def test_a_record_gives_its_best_throughput_under_load(tmp_path: Path) -> None:
    """Of a record's quantities in tokens/s the largest counts, with interval, machine, GPUs and the model's size."""
    others = [quantity("one_user", 9000.0), quantity("ray", 650.0), quantity("t", 9e9, "s")]
    record_file(tmp_path, [*others, quantity("vllm", 700.0)])
    found = measured(tmp_path)
    assert [found.tokens_per_s, *found.bounds, found.gpus] == pytest.approx([700.0, 630.0, 770.0, 1])
    assert found.label == "measured by lab 09_head_to_head on 2026-11-24 (vllm)"
    start = costs.default(throughput=found, prices_on=DAY)
    assert (start.instance, start.model_gb) == ("g6.xlarge", 15.23)


def test_what_lab_01_measures_is_read(tmp_path: Path) -> None:
    """Throughput by concurrency, as the notebook names it: the best one under load counts, a lone request's last."""
    cells = nbformat.read(NOTEBOOKS / "01_first_deployment.ipynb", as_version=4).cells
    name = next(
        re.search(r'measure\(f"(\w+)\{c\}", "tokens/s"', cell.source)
        for cell in cells
        if "tokens/s" in cell.source and "measure(f" in cell.source
    )
    assert name is not None
    record_file(
        tmp_path, [quantity(f"{name[1]}{c}", rate, repeats=6) for c, rate in ((1, 90.0), (16, 64.0), (4, 40.0))]
    )
    found = measured(tmp_path)
    assert found.tokens_per_s == 64.0
    assert "concurrency 16" in found.label


def test_a_single_figure_gives_way_to_a_repeated_one(tmp_path: Path) -> None:
    """A newer figure without repeats does not stand in for an older measurement; one user's speed comes last."""
    load = load_file(tmp_path, 123.5)
    os.utime(load, (1, 1))
    record_file(tmp_path, [quantity("writer", 700.0)])
    assert measured(tmp_path).tokens_per_s == 123.5
    load.unlink()
    assert measured(tmp_path).tokens_per_s == 700.0
    record_file(tmp_path, [quantity("tokens_per_second_one_user", 14.0)])
    assert measured(tmp_path).tokens_per_s == 14.0


def test_a_throughput_of_another_machine_is_warned_about() -> None:
    """Measured on one machine and priced as another: the answer says so; so it does of weights that do not fit."""
    other = Throughput(tokens_per_s=500.0, measured=True, machine="2 CPUs, no GPU, smollm2-135m")
    warnings = "\n".join(costs.calculate(question(throughput=other, model_gb=140.0)).warnings)
    assert "2 CPUs, no GPU, smollm2-135m, price of a g6.xlarge" in warnings
    assert "do not fit" in warnings
