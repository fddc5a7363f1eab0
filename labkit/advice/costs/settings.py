"""The calculator's question: traffic, machine, throughput, prices. Checked here for every caller."""

import json
from collections.abc import Mapping
from datetime import date
from typing import Any, Self

from pydantic import field_validator, model_validator

from labkit.advice.costs.checked import Checked, limits, quantity
from labkit.advice.costs.prices import figures, find_instance
from labkit.advice.costs.throughput import Throughput, article_throughput
from labkit.errors import UsageError, did_you_mean, require
from labkit.files import runs_path

HOURS = 24.0
DEFAULT_API = (
    "anthropic/claude-sonnet-5-5",
    "openai/gpt-5.4-nano",
    "huggingface_nebius/meta-llama/Llama-3.1-8B-Instruct",
    "aws/meta.llama3-1-8b-instruct-v1:0",
    "article/claude-3.5-sonnet",
)


class CostSettings(Checked):
    """One question to the calculator.

    Traffic is `requests_per_s` or `tokens_per_day`, one of the two. `api`: models to compare with, the first one for
    the break-even. `prices_on`: the day whose prices count. UsageError: what cannot be, with number and remedy.
    """

    requests_per_s: float | None = quantity(
        0, 1e7, "requests/s", "mean arrivals a second in the hours in which requests come"
    )
    tokens_per_day: float | None = quantity(0, 1e15, "tokens", "tokens a day, read and written together; needs the mix")
    input_tokens: int | None = quantity(
        0, 1e7, "tokens a request", "tokens that a request brings: prompt, documents, history"
    )
    output_tokens: int | None = quantity(
        0, 1e7, "tokens a request", "tokens that a request has written for it: the answer"
    )
    hours_per_day: float = quantity(0.01, HOURS, "h", "hours a day in which requests come", HOURS)
    peak_factor: float = quantity(1, 1000, "x", "arrivals in the busiest minutes, as a multiple of the mean", 1.0)
    buffer: float = quantity(
        0, 100, "share of the peak", "capacity held in reserve above the peak, for bursts and failures", 0.0
    )
    instance: str
    usd_per_hour: float | None = quantity(
        0, 1e6, "$/h of one machine", "your own price of an hour; without it the price list's"
    )
    paid_hours_per_day: float = quantity(
        0.01, HOURS, "h", "hours a day in which the machines are switched on, and paid", HOURS
    )
    min_instances: int = quantity(1, 1e6, "machines", "machines at least: two survive the loss of one", 1)
    throughput: Throughput
    model_gb: float = quantity(
        0, 1e6, "GB", "size of the weights, which every machine stores: 2 bytes a parameter in 16 bits", 0.0
    )
    storage_usd_per_gb_month: float = quantity(
        0, 1000, "$/GB and month", "price of storing a gigabyte; an assumption", 0.0
    )
    engineering_hours_per_month: float = quantity(
        0, 1e6, "h a month", "people's time to keep it running; an assumption", 0.0
    )
    engineer_usd_per_hour: float = quantity(0, 1e5, "$/h", "what an hour of theirs costs; an assumption", 0.0)
    api: tuple[str, ...] = DEFAULT_API
    prices_on: date

    @field_validator("api", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value or ()
        return [part.strip() for part in value.split(",") if part.strip()]

    @field_validator("prices_on", mode="before")
    @classmethod
    def _day(cls, value: Any) -> date:
        return value if isinstance(value, date) else date.fromisoformat(str(value))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = "neither" if self.requests_per_s is None else "both"
        require(
            (self.requests_per_s is None) != (self.tokens_per_day is None),
            f"{given} of requests_per_s and tokens_per_day is set",
            fix="set one of them: the traffic",
        )
        missing = [name for name in ("input_tokens", "output_tokens") if getattr(self, name) is None]
        require(
            not missing,
            f"the mix is missing ({' and '.join(missing)}): "
            "a token that is read and one that is written cost different money",
            fix="set input_tokens and output_tokens of a request, such as 3 and 1 for a mix of 3:1",
        )
        require(self.tokens_per_request > 0, "a request has 0 tokens", fix="set input_tokens or output_tokens above 0")
        require(
            self.output_tokens != 0 or self.throughput.counts == "total",
            "output_tokens is 0, and the throughput counts only tokens that are written",
            fix="give the throughput as a total (throughput_counts=total)",
        )
        require(
            self.paid_hours_per_day >= self.hours_per_day,
            f"requests come in {self.hours_per_day:g} hours a day and the machines are paid for only "
            f"{self.paid_hours_per_day:g}",
            fix="raise paid_hours_per_day, or lower hours_per_day",
        )
        price = find_instance(self.instance).price(self.prices_on)
        known = price is not None or self.usd_per_hour is not None
        require(known, f"the price of {self.instance!r} is not known", fix="set usd_per_hour")
        require(len(self.api) > 0, "there is no API to compare with", fix="set api to one model or more")
        return self

    @classmethod
    def refusal(cls, name: str, kind: str, value: Any) -> UsageError:
        """What is wrong with a setting: its value, its range, and what it means."""
        if name == "prices_on":
            return UsageError(f"prices_on is {value!r}, not a day", remedy="write it as 2026-11-24")
        if name not in NUMBERS:
            return UsageError(f"{name} is {value!r}", remedy="labkit cost --json shows every setting with a value")
        (low, high), meaning = limits(NUMBERS[name]), NUMBERS[name].description
        span = f"from {low:g} to {high:,.0f} ({NUMBERS[name].title})"
        if kind in ("greater_than_equal", "less_than_equal"):
            return UsageError(f"{name} is {value:,g}; it must be {span}", remedy=f"it means: {meaning}")
        if isinstance(value, float) and kind == "int_type":
            return UsageError(f"{name} is {value!r}; it must be a whole number", remedy=f"it means: {meaning}")
        what = "not set" if value is None else f"{value!r}, not a number"
        return UsageError(f"{name} is {what}", remedy=f"give it a number {span}: {meaning}")

    @property
    def tokens_per_request(self) -> int:
        """Input and output tokens of a request."""
        return (self.input_tokens or 0) + (self.output_tokens or 0)

    def to_dict(self) -> dict[str, Any]:
        """All settings flat, as the command line and a notebook's `state` take them, without those that are not set."""
        flat = self.model_dump(mode="json", exclude={"throughput"})
        flat |= {f"throughput_{name}": value for name, value in self.throughput.model_dump().items()}
        return {name: value for name, value in flat.items() if value not in (None, "")}

    def to_json(self) -> str:
        """The settings as one line of JSON: paste it as the parameter `state`, or give it to a colleague."""
        return json.dumps(self.to_dict(), sort_keys=True)


NUMBERS = {name: field for name, field in CostSettings.model_fields.items() if field.description}
SETTINGS = [
    *(name for name in CostSettings.model_fields if name != "throughput"),
    *(f"throughput_{name}" for name in Throughput.model_fields),
    "throughput_from",
]


def article() -> CostSettings:
    """The article's own example: a p4d at its price and its throughput, all tokens of one mix, nothing added."""
    article_figures = figures()
    return CostSettings(
        tokens_per_day=article_figures.break_even_claude[0],
        input_tokens=1,
        output_tokens=1,
        instance=article_figures.instance,
        usd_per_hour=float(article_figures.usd_per_hour),
        throughput=article_throughput(),
        api=("article/claude-3.5-sonnet", "article/gpt-4o", "article/gpt-4o-mini"),
        prices_on=date.today(),
    )


def default(*, prices_on: date | None = None, throughput: Throughput | None = None) -> CostSettings:
    """A small service to begin with, on the newest throughput that was measured under runs/, or the article's."""
    instance, model_gb = figures().instance, figures().model_gb
    if (throughput and throughput.measured) or (not throughput and runs_path().is_dir()):
        from labkit.advice.costs.measured import find, measured_instance, measured_model_gb

        throughput = throughput or find(runs_path())
        if throughput:
            instance, model_gb = measured_instance(throughput), measured_model_gb(throughput) or model_gb
    return CostSettings(
        requests_per_s=2.0,
        input_tokens=600,
        output_tokens=200,
        peak_factor=2.0,
        buffer=0.2,
        instance=instance,
        throughput=throughput or article_throughput(),
        model_gb=model_gb,
        storage_usd_per_gb_month=0.08,
        engineering_hours_per_month=10.0,
        engineer_usd_per_hour=100.0,
        prices_on=prices_on or date.today(),
    )


def settings_from(given: Mapping[str, Any], start: CostSettings | None = None) -> CostSettings:
    """`start` (by default `default()`) with the values of `given`: settings by name, `state` (JSON or a mapping) first.

    `throughput_from` reads a record or folder. UsageError: an unknown name, a wrong type, what cannot be.
    """
    values = dict(given)
    state = _state(values.pop("state", None))
    if state:  # what an exported question does not set, such as a price of its own, it has not
        start = settings_from({"usd_per_hour": None, **state}, start)
    for name in values:
        if name not in SETTINGS:
            raise UsageError(f"the cost calculator has no setting {name!r}", remedy=did_you_mean(name, SETTINGS))
    throughput = _throughput(values, start)
    changes = {name: value for name, value in values.items() if name in CostSettings.model_fields}
    if throughput is not None:
        changes["throughput"] = throughput
    return (start or default(throughput=throughput)).changed(**_one_traffic(changes))


def _one_traffic(changes: dict[str, Any]) -> dict[str, Any]:
    """Setting one kind of traffic unsets the other; tokens a day need a mix of their own."""
    tokens, requests = (changes.get(name) not in (None, "") for name in ("tokens_per_day", "requests_per_s"))
    if tokens and not requests:
        return {"requests_per_s": None, "input_tokens": None, "output_tokens": None, **changes}
    if requests and not tokens:
        return {"tokens_per_day": None, **changes}
    return changes


def _throughput(values: Mapping[str, Any], start: CostSettings | None) -> Throughput | None:
    """The throughput that is asked for; None to keep what there is."""
    fields = {name: values[f"throughput_{name}"] for name in Throughput.model_fields if f"throughput_{name}" in values}
    if "tokens_per_s" in fields:  # a new figure: nothing of the old one holds any more
        return Throughput(**fields)
    if start and fields and "throughput_from" not in values:
        return start.throughput.changed(**fields)
    if not fields and "throughput_from" not in values:
        return None
    from labkit.advice.costs.measured import measured

    return measured(str(values.get("throughput_from", ""))).changed(**fields)


def _state(state: Any) -> dict[str, Any]:
    if state is None or (isinstance(state, str) and not state.strip()):
        return {}
    if isinstance(state, str):
        try:
            state = json.loads(state)
        except ValueError as error:
            raise UsageError(f"the state is no JSON: {error}", remedy="paste what the calculator exported") from error
    if not isinstance(state, Mapping):
        raise UsageError(f"the state is a {type(state).__name__}", remedy="paste what the calculator exported")
    return dict(state)
