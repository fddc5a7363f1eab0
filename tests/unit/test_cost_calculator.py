"""The calculator's widget (without a browser), charts and command agree with `calculate`."""

import json
import math
from datetime import date
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings

from labkit.advice import costs
from labkit.advice.costs.charts import HOSTING, break_even_chart, sensitivity_chart, utilisation_chart
from labkit.advice.costs.explain import explain
from labkit.advice.costs.form import VIEWS, CostCalculator, show_calculator
from labkit.advice.costs.prices import millions
from labkit.advice.costs.words import text, to_json
from labkit.charts.render import svg
from labkit.vega import MIME
from tests.unit.command import Labkit
from tests.unit.refusals import not_refused
from tests.unit.test_costs import questions

START = costs.settings_from(
    {
        "requests_per_s": 2,
        "instance": "g6.xlarge",
        "throughput_tokens_per_s": 500,
        "api": "article/claude-3.5-sonnet,openai/gpt-4o-mini,aws/meta.llama3-1-8b-instruct-v1:0",
    },
    costs.default(prices_on=date(2026, 11, 24)),
)


@pytest.fixture
def calculator() -> CostCalculator:
    return CostCalculator(START)


def drawn(calculator: CostCalculator) -> dict[str, Any]:
    """Return the specification in the picture."""
    (output,) = calculator.picture.outputs
    spec: dict[str, Any] = output["data"][MIME]
    return spec


def test_every_field_asks_what_the_function_asks() -> None:
    """A changed field gives the same answer as the setting in Python."""
    changes: dict[str, object] = {
        "volume": 8.0, "input_tokens": 3000, "output_tokens": 20, "hours_per_day": 12.0, "peak_factor": 5.0,
        "buffer": 0.5, "tokens_per_s": 900.0, "counts": "input and output", "instance": "p5.48xlarge",
        "tensor_parallel": "1", "usd_per_hour": "1.25", "min_instances": 3, "cached_input": 0.5, "batch": True,
        "hourly_load": "office", "engineering_hours_per_month": 99.0, "engineer_usd_per_hour": 55.0,
        "paid_hours_per_day": 24.0,
    }  # fmt: skip
    other_names: dict[str, dict[str, object]] = {
        "volume": {"requests_per_s": 8},
        "tokens_per_s": {"throughput_tokens_per_s": 900},
        "counts": {"throughput_tokens_per_s": 500, "throughput_counts": "total"},
    }
    for field, value in changes.items():
        calculator = CostCalculator(START)
        calculator.fields[field].value = value
        asked = costs.settings_from(other_names.get(field, {field: value}), START)
        assert calculator.result == costs.calculate(asked), field
        assert json.loads(calculator.state) == calculator.settings.to_dict()
        assert "alert" not in calculator.message.value
        assert drawn(calculator)["description"]
    others = {"traffic", "source", "against", "model", "purchase"}
    assert set(CostCalculator(START).fields) == {*changes, *others}


def test_traffic_in_tokens_keeps_its_amount(calculator: CostCalculator) -> None:
    """Switching from requests per second to tokens per day and back keeps the traffic and the bills."""
    before = calculator.result.hosted
    for traffic, volume in (("tokens per day", 2 * 86400 * 800), ("requests per second", 2)):
        calculator.fields["traffic"].value = traffic
        assert calculator.fields["volume"].value == volume
        assert calculator.result.hosted == before


def test_another_api_comes_first_and_the_list_does_not_grow(calculator: CostCalculator) -> None:
    """The chosen API comes first, and the table keeps its length."""
    for _, model in calculator.fields["against"].options:
        calculator.fields["against"].value = model
        assert calculator.result.against.price.id == model
        assert len({api.price.id for api in calculator.result.api}) == len(calculator.result.api) == 3
    own = {"api_input_usd_per_million": 1, "api_output_usd_per_million": 2, "api": "own,openai/gpt-5.4-nano"}
    calculator = CostCalculator(costs.settings_from(own, START))
    calculator.fields["against"].value = "openai/gpt-6-luna"
    assert calculator.settings.api == ("openai/gpt-6-luna", "own")


def test_the_modelled_throughput_follows_the_machine_and_a_typed_one_does_not(calculator: CostCalculator) -> None:
    """The modelled throughput is that of the machine's card; a typed one counts as entered."""
    calculator.fields["instance"].value = "runpod-h200"
    calculator.fields["source"].value = "modelled GPU"
    shown = calculator.fields["tokens_per_s"].value
    assert shown == round(calculator.settings.used_throughput.tokens_per_s, 2) > 500
    calculator.fields["model"].value = "llama-3.1-70b"
    assert (calculator.settings.replica_gpus, calculator.result.hosted.gpus) == (2, 2)
    calculator.fields["instance"].value = "coreweave-hgx-h100"
    calculator.fields["purchase"].value = "spot"
    assert "19.71" in "".join(explain(calculator.result))
    calculator.fields["purchase"].value = "on_demand"
    calculator.fields["instance"].value = "g6.xlarge"
    assert "no throughput is known for llama-3.1-70b on g6.xlarge" in calculator.message.value
    calculator.fields["tokens_per_s"].value = 100.0
    assert calculator.fields["source"].value == "entered"
    assert not calculator.settings.used_throughput.measured


def test_a_wrong_value_gets_a_message_and_the_last_answer_stays(calculator: CostCalculator) -> None:
    """The message has the number; the next valid change resets the field and clears the message."""
    before = calculator.result
    calculator.fields["volume"].value = -3.0
    assert "role='alert'" in calculator.message.value
    assert "requests_per_s is -3" in calculator.message.value
    assert calculator.result == before
    calculator.fields["buffer"].value = 0.4
    assert "alert" not in calculator.message.value
    assert calculator.fields["volume"].value == 2


def test_each_view_has_its_content_also_without_traffic(calculator: CostCalculator) -> None:
    """Three charts with descriptions, every line of the calculation, and the question as text; one view is visible."""
    seen = set()
    for view in VIEWS:
        calculator.view.value = view
        boxes = (calculator.picture, calculator.sums, calculator.sharing)
        assert [box.layout.display for box in boxes].count("none") == 2
        seen.add(drawn(calculator)["description"])
        if view == "The sums":
            assert calculator.sums.value.count("<li>") == len(explain(calculator.result))
    assert len(seen) == 3
    assert calculator.exported.value == calculator.state
    calculator.fields["volume"].value = 0.0
    for view in VIEWS:
        calculator.view.value = view
    assert calculator.result.hosted.machines == 1


def test_a_pasted_question_fills_every_field(calculator: CostCalculator, capsys: pytest.CaptureFixture[str]) -> None:
    """A pasted state, or one given at the start, sets every field; outside a notebook the answer is printed."""
    other = CostCalculator(START.changed(requests_per_s=20.0, instance="p5.48xlarge", usd_per_hour=9.5, buffer=0.7))
    calculator.exported.value = other.state
    assert calculator.result == show_calculator(other.state).result == other.result
    assert "Hosting: " in capsys.readouterr().out
    values = [{name: field.value for name, field in form.fields.items()} for form in (calculator, other)]
    assert values[0] == values[1]
    calculator.exported.value = '{"bufer": 1}'
    assert "no setting" in calculator.message.value
    assert calculator.result == other.result
    assert not_refused(show_calculator, [("{", "not JSON")]) == []


def test_texts_from_outside_are_escaped() -> None:
    """A label in a pasted state cannot add markup to the page."""
    label = {"throughput_tokens_per_s": 5, "throughput_label": "<img src=x>"}
    calculator = CostCalculator(costs.settings_from(label, START))
    calculator.view.value = "The sums"
    assert "<img" not in calculator.sums.value + calculator.html() + calculator.message.value
    assert "&lt;img" in calculator.sums.value


# --- charts


three_apis = questions.map(lambda config: config.changed(api=START.api))


@given(three_apis)
@settings(max_examples=40)
def test_the_break_even_chart_lies_on_the_curves(config: costs.CostSettings) -> None:
    """Every point of the staircase and of each line equals the answer, inside an ordered domain."""
    result = costs.calculate(config)
    (lines, *_) = break_even_chart(result)["layer"]
    rows = lines["data"]["values"]
    prices = {api.price.name: float(api.usd_per_million_tokens) for api in result.api}
    for row in rows:
        if row["series"] != HOSTING:
            assert row["usd"] == pytest.approx(prices[row["series"]] * row["tokens"])
            continue
        near = (Fraction(row["tokens"]) * 1000 * shift for shift in (999, 1001))
        below, above = (float(result.stairs.usd_per_day(tokens)) for tokens in near)
        assert below * 0.999999 <= row["usd"] <= above * 1.000001
    xs = [row["tokens"] for row in rows if row["series"] == HOSTING]
    assert xs == sorted(xs)
    for axis in ("x", "y"):
        low, high = lines["encoding"][axis]["scale"]["domain"]
        assert 0 < low < high


def test_charts_are_drawn_with_what_they_say() -> None:
    """Each chart renders offline with its words, the API's name and its description."""
    result = costs.calculate(START)
    for spec, words in (
        (break_even_chart(result), "break-even 8.699M"),
        (utilisation_chart(result), "40.0% busy"),
        (sensitivity_chart(result, share=0.25), "25% less of it"),
    ):
        drawing = svg(spec)
        for text_in_chart in (words, "Claude 3.5 Sonnet (article)", spec["description"][:20]):
            assert text_in_chart in drawing


@given(three_apis)
@settings(max_examples=40)
def test_hosting_that_never_pays_is_nowhere_drawn_below_the_api(config: costs.CostSettings) -> None:
    """The curve of the busy share ends where peaks and buffer end it, and not at machines that are always busy."""
    config = config.changed(hours_per_day=24.0, engineering_hours_per_month=0)
    result = costs.calculate(config)
    rows = utilisation_chart(result)["layer"][0]["data"]["values"]
    hosting = [row for row in rows if row["series"] == HOSTING]
    planned = config.peak_factor * (1 + config.buffer)
    if hosting:
        assert hosting[-1]["busy"] == pytest.approx(1 / planned)
        never = [api for api in result.api if api.break_even.first is None]
        assert all(hosting[-1]["usd"] * 1.000001 >= float(api.usd_per_million_tokens) for api in never)
        words = " ".join(explain(result))
        assert all(f"{api.price.name}: no break-even; {config.instance} " in words for api in never)


def test_a_second_crossing_is_in_the_title() -> None:
    """A machine more makes hosting the dearer one once more: title and text say from where it stays cheaper."""
    given = {"requests_per_s": 2.0, "input_tokens": 600, "output_tokens": 200, "prices_on": "2026-11-24"}
    result = costs.calculate(costs.settings_from(given))
    first, stays = result.against.break_even.first, result.against.break_even.for_good
    assert first is not None
    assert stays is not None
    assert first < stays
    assert f"for good from {millions(stays)} on" in break_even_chart(result)["title"]["text"]
    said = f"hosting pays from {millions(first)} tokens a day, for good from {millions(stays)}"
    assert said in text(result)
    assert to_json(result)["api"][0]["break_even_for_good_tokens_per_day"] == math.ceil(stays)


# --- the command line


def test_the_command_line_gives_the_same_answer(labkit: Labkit) -> None:
    """`labkit cost --json` prints the object that Python returns, without --json the text; bad settings exit with 2."""
    state = ["cost", "--set", f"state={START.to_json()}"]
    done = labkit(*state, "--json", "--set", "requests_per_s=8")
    expected = costs.calculate(costs.settings_from({"requests_per_s": 8}, START))
    assert (done.code, done.json) == (0, json.loads(json.dumps(to_json(expected))))
    done = labkit(*state)
    assert (done.code, done.stdout.strip()) == (0, text(costs.calculate(START)).strip())
    assert done.stdout.startswith("Hosting: 2 x g6.xlarge")
    for setting in ("requests_per_s=-1", "nonsense", "state={", "api=", "api=5", "throughput_tokens_per_s="):
        done = labkit("cost", "--json", "--set", setting)
        assert (done.code, done.stdout, "To fix it" in done.stderr) == (2, "", True), setting
