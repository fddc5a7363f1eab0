"""The fields of the two pages' forms, from the calculator's settings and the selector's questions."""

from collections.abc import Mapping
from datetime import date

import pydantic

from labkit.advice.costs.checked import limits
from labkit.advice.costs.prices import PURCHASES, dated_models, known_models, machine_choices, model_name
from labkit.advice.costs.settings import LOADS, NUMBERS, CostSettings, default
from labkit.advice.costs.throughput import Throughput, modelled_models
from labkit.advice.selector import catalogue
from labkit.advice.selector.answers import MODEL
from labkit.files import Frozen

# The calculator's settings by heading, each with its label. A test checks that they are settings of the calculator.
SETTINGS = {
    "Traffic": {
        "requests_per_s": "Requests/s",
        "tokens_per_day": "or tokens per day",
        "input_tokens": "Input tokens",
        "output_tokens": "Output tokens",
        "cached_input": "Cached input",
        "hourly_load": "Load by hour",
        "hours_per_day": "Hours with traffic",
        "peak_factor": "Peak over mean",
        "buffer": "Buffer above peak",
    },
    "API": {
        "api": "Compare with",
        "batch": "Answers",
        "api_input_usd_per_million": "Your price, input",
        "api_output_usd_per_million": "Your price, output",
        "prices_on": "Prices of",
    },
    "Machines": {
        "instance": "Machine",
        "purchase": "Bought",
        "usd_per_hour": "Your price, USD/h",
        "paid_hours_per_day": "Paid hours",
        "min_instances": "Machines at least",
        "engineering_hours_per_month": "People, h/month",
        "engineer_usd_per_hour": "People, USD/h",
    },
    "Throughput": {
        "model": "Modelled model",
        "tensor_parallel": "GPUs per replica",
        "throughput_tokens_per_s": "Your tokens/s",
        "throughput_counts": "They count",
        "model_gb": "Weights, GB",
    },
}
TIPS = {
    "api": "The API for the break-even and the charts",
    "instance": "The machine that is rented, with its GPUs and its dated price",
    "model": "The model whose throughput was modelled",
    "throughput_tokens_per_s": "Of one machine, measured under full load; empty: the modelled GPU's",
}


class Field(Frozen):
    """One field: a number with `least` and `most`, a choice with `options` (label by value), a date or a text."""

    name: str
    label: str
    tip: str
    kind: str
    value: str = ""
    required: bool = False
    least: float | None = None
    most: float | None = None
    whole: bool = False
    options: dict[str, str] = pydantic.Field(default_factory=dict)


def calculator() -> dict[str, list[Field]]:
    """Return the calculator's fields by heading, filled with its first question."""
    start, choices = default(), _choices()
    return {
        heading: [_cost_field(name, label, start, choices.get(name, {})) for name, label in fields.items()]
        for heading, fields in SETTINGS.items()
    }


def selector() -> dict[str, list[Field]]:
    """Return the selector's questions, and the field for the name of the served model."""
    headings = {"article": "The article's questions", "ours": "What it leaves out"}
    fields: dict[str, list[Field]] = {heading: [] for heading in headings.values()}
    for name, question in catalogue().questions.items():
        tip = f"{question.question} {question.help}"
        options, value = question.options, question.default
        field = Field(name=name, label=question.label, tip=tip, kind="select", value=value, options=options)
        fields[headings[question.asked_by]].append(field)
    tip = "The model to serve: a hub id or a folder; empty: a suitable one"
    model = Field(name=MODEL, label="Model", tip=tip, kind="text")
    fields[headings["ours"]].append(model)
    return fields


def given(fields: Mapping[str, list[Field]]) -> dict[str, str]:
    """Return the page's first question: its fields' values, without the empty ones and the day."""
    every = (field for group in fields.values() for field in group)
    return {field.name: field.value for field in every if field.value and field.kind != "date"}


def _cost_field(name: str, label: str, start: CostSettings, options: dict[str, str]) -> Field:
    number = NUMBERS.get(name)
    field = number or CostSettings.model_fields.get(name) or Throughput.model_fields[name.removeprefix("throughput_")]
    value = getattr(start, name, None)
    meaning = TIPS.get(name) or str(field.description or label)
    unit = f" ({field.title})" if field.title else ""
    tip = f"{meaning[:1].upper()}{meaning[1:]}{unit}"
    if options:
        chosen = next((option for option in options if option == str(value)), next(iter(options)))
        return Field(name=name, label=label, tip=tip, kind="select", value=chosen, options=options)
    if name == "prices_on":
        return Field(name=name, label=label, tip=tip, kind="date", value=str(date.today()), required=True)
    low, high = limits(number) if number else (0, 1e9)
    return Field(
        name=name,
        label=label,
        tip=tip,
        kind="number",
        value="" if value is None else f"{value:g}",
        required=value is not None and name != "requests_per_s",
        least=low,
        most=high,
        whole=field.annotation in (int, int | None),
    )


def _choices() -> dict[str, dict[str, str]]:
    usual = default().api
    models = [*known_models(), *dated_models()]
    lists = {model: ",".join([model, *(other for other in usual if other != model)]) for model in models}
    return {
        "api": {"": "hosted models of that size", **{lists[model]: model_name(model) for model in models}},
        "batch": {"false": "at once", "true": "in a batch"},
        "hourly_load": {name: name for name in LOADS},
        "instance": machine_choices(date.today()),
        "purchase": {purchase: purchase.replace("_", " ") for purchase in PURCHASES},
        "model": {model: model for model in modelled_models()},
        "throughput_counts": {"output": "output tokens", "total": "input and output tokens"},
    }
