"""The calculator's settings: traffic, machine, throughput and prices, validated for every caller."""

import json
import math
from collections.abc import Iterator, Mapping
from datetime import date
from functools import cached_property
from typing import Annotated, Any, Self, cast

from pydantic import BeforeValidator, Field, model_validator

from labkit.advice.costs.checked import Checked, quantity
from labkit.advice.costs.prices import OWN, PURCHASES, OwnPrices, Purchase, exact, find_instance, models_like
from labkit.advice.costs.throughput import ModelledReplica, Throughput, modelled, modelled_models, modelled_replicas
from labkit.errors import UsageError, did_you_mean, require
from labkit.files import read_state

HOURS = 24.0
MODEL, INSTANCE = "llama-3.1-8b", "rented-h100"
SMALL_CLOSED = ("openai/gpt-6-luna", "openai/gpt-5.4-nano")
# Requests of each hour relative to the busiest. These shapes are assumptions: better use the counts of your own log.
LOADS: Mapping[str, tuple[float, ...]] = {
    "flat": (),
    "office": (0.1,) * 8 + (1.0,) * 10 + (0.1,) * 6,
    "day": tuple(round(0.6 + 0.4 * math.cos(2 * math.pi * (hour - 14) / 24), 3) for hour in range(24)),
    "nights": (1.0,) * 6 + (0.0,) * 16 + (1.0,) * 2,
}
ROOM = 0.8
"""Largest share of the GPUs' memory for weights: vLLM uses 0.9 of it, and the KV cache needs room."""


def _names(value: Any) -> Any:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value or ()


def _hours(value: Any) -> tuple[float, ...]:
    if isinstance(value, str):
        value = LOADS[value] if value in LOADS else _names(value.strip("[]"))
    return tuple(float(hour) for hour in value or ())


class CostSettings(Checked):
    """The settings of one calculation. UsageError: impossible values, with the number and the remedy.

    Set either `requests_per_s` or `tokens_per_day`; `hourly_load` (24 numbers or a name of LOADS) distributes it over a
    day. `throughput` None: that of the modelled GPU for `model`. `api`: models to compare with, the first for the
    break-even; `own` has the user's prices.
    """

    requests_per_s: float | None = quantity(0, 1e7, "requests/s", "mean arrivals per second while requests come")
    tokens_per_day: float | None = quantity(0, 1e15, "tokens", "input and output tokens per day; needs the mix")
    input_tokens: int | None = quantity(0, 1e7, "tokens per request", "input: prompt, documents, history")
    output_tokens: int | None = quantity(0, 1e7, "tokens per request", "output: the answer")
    cached_input: float = quantity(0, 1e7, "share, or tokens above 1", "input read from the prompt cache", 0.0)
    batch: bool = Field(default=False, description="requests that may wait, at the batch price")
    hourly_load: Annotated[tuple[float, ...], BeforeValidator(_hours)] = Field(
        default=(), description=f"requests of each of 24 hours, as numbers or as one of {', '.join(LOADS)}"
    )
    hours_per_day: float = quantity(0.01, HOURS, "h", "hours per day with requests", HOURS)
    peak_factor: float = quantity(1, 1000, "x", "arrivals in the busiest minutes, as a multiple of the mean", 1.0)
    buffer: float = quantity(0, 100, "share of the peak", "spare capacity above the peak, for bursts and failures", 0.0)
    instance: str = Field(description="the machine in the price list, or own with your usd_per_hour")
    purchase: Purchase = Field(default="on_demand", description="how the machine is bought")
    usd_per_hour: float | None = quantity(0, 1e6, "$/h of one machine", "your own price; without it the price list's")
    paid_hours_per_day: float = quantity(0.01, HOURS, "h", "hours per day in which machines run and are paid", HOURS)
    min_instances: int = quantity(1, 1e6, "machines", "fewest machines: two survive the loss of one", 1)
    model: str = Field(default=MODEL, description="the model whose throughput was modelled")
    throughput: Throughput | None = None
    tensor_parallel: int | None = quantity(1, 1024, "GPUs", "GPUs of one replica; without it the fewest that fit")
    model_gb: float | None = quantity(0, 1e6, "GB", "size of the weights; without it the modelled model's, in 16 bits")
    storage_usd_per_gb_month: float = quantity(0, 1000, "$/GB and month", "price of storage; an assumption", 0.0)
    engineering_hours_per_month: float = quantity(0, 1e6, "h per month", "engineers' time, without on-call duty", 0.0)
    engineer_usd_per_hour: float = quantity(0, 1e5, "$/h", "cost of an engineer's hour; an assumption", 0.0)
    api: Annotated[tuple[str, ...], BeforeValidator(_names)] = Field(description="models, such as openai/gpt-5.4-nano")
    api_input_usd_per_million: float | None = quantity(0, 1e6, "$/1M tokens", "your own API price of input")
    api_output_usd_per_million: float | None = quantity(0, 1e6, "$/1M tokens", "your own API price of output")
    api_cached_usd_per_million: float | None = quantity(0, 1e6, "$/1M tokens", "your own API price of cached input")
    prices_on: date = Field(description="the day of the prices, such as 2026-11-24")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        count = "neither" if self.requests_per_s is None else "both"
        valid = (self.requests_per_s is None) != (self.tokens_per_day is None)
        require(valid, f"{count} of requests_per_s and tokens_per_day is set", fix="set exactly one of them")
        missing = " and ".join(name for name in ("input_tokens", "output_tokens") if getattr(self, name) is None)
        what = f"the mix is missing ({missing}): input and output tokens have different prices"
        fix = "set input_tokens and output_tokens of a request, such as 3 and 1 for a mix of 3:1"
        require(not missing, what, fix=fix)
        require(self.tokens_per_request > 0, "a request has 0 tokens", fix="set input_tokens or output_tokens above 0")
        hours, paid = self.hours_per_day, self.paid_hours_per_day
        what = f"requests come in {hours:g} hours per day and the machines are paid for only {paid:g}"
        require(paid >= hours, what, fix="raise paid_hours_per_day, or lower hours_per_day")
        what = f"cached_input is {self.cached_input:g} tokens of {self.input_tokens}"
        fix = "give a share from 0 to 1, or tokens up to input_tokens"
        require(self.cached_tokens <= (self.input_tokens or 0), what, fix=fix)
        if self.hourly_load:
            self._check_load(self.hourly_load)
        self._check_price()
        self._check_throughput()
        require(len(self.api) > 0, "there is no API to compare with", fix="set api to one model or more")
        return self

    def _check_load(self, load: tuple[float, ...]) -> None:
        fix = f"give 24 numbers from 0, at least one above 0, or a name: {', '.join(LOADS)}"
        valid = len(load) == HOURS and min(load) >= 0 and 0 < sum(load) < math.inf
        require(valid, f"hourly_load has {len(load)} numbers with a sum of {sum(load):g}", fix=fix)
        what = "hourly_load sets the hours of the requests, and so does hours_per_day or paid_hours_per_day"
        alone = self.hours_per_day == self.paid_hours_per_day == HOURS
        require(alone, what, fix="leave both at 24; an hour without requests is a 0 in hourly_load")

    def _check_price(self) -> None:
        instance = find_instance(self.instance)
        listed = " or ".join(name for name in PURCHASES if instance.price(self.prices_on, name))
        priced = self.usd_per_hour is not None or instance.price(self.prices_on, self.purchase) is not None
        fix = f"set usd_per_hour{f', or purchase to {listed}' if listed else ''}"
        require(priced, f"the price of {self.instance!r} {self.purchase} is not known", fix=fix)

    def _check_throughput(self) -> None:
        instance, used = find_instance(self.instance), self.used_throughput
        what = "output_tokens is 0, and the throughput counts only output tokens"
        fix = "give the throughput as a total (throughput_counts=total)"
        require(self.output_tokens != 0 or used.counts == "total", what, fix=fix)
        if not instance.gpus:
            return
        what = f"the throughput is that of {used.gpu}, but {self.instance} has {instance.gpu}: {used.label}"
        fix = "measure or enter it for this machine, or choose an instance with that GPU"
        require(used.gpu in ("", instance.gpu), what, fix=fix)
        what = f"the throughput was measured without a GPU ({used.machine}), but {self.instance} has {instance.gpu}"
        fix = "set instance to a machine like the measured one, such as m7g.large"
        require(not used.machine or used.gpus > 0, what, fix=fix)
        gpus, most = self.replica_gpus, instance.most or instance.gpus
        fix = "choose a machine with more or larger GPUs, or a smaller tensor_parallel or model_gb"
        require(gpus <= most, f"a replica takes {gpus} GPUs, but {self.instance} has {most}", fix=fix)
        weights, memory = self.weights_gb, gpus * instance.gpu_gb
        what = f"{weights:g} GB of weights do not fit into {gpus} x {instance.gpu_gb:g} GB"
        require(weights < memory, what, fix="raise tensor_parallel, or choose larger GPUs")
        fix = "measure a replica of that size, or set tensor_parallel to the measured number"
        what = f"the throughput is that of {used.gpus} GPUs, but a replica takes {gpus}"
        require(used.gpus % gpus == 0, what, fix=fix)

    @cached_property
    def modelled_replica(self) -> ModelledReplica | None:
        """The modelled replica whose throughput is used; None if the throughput was measured or entered."""
        if self.throughput is not None:
            return None
        replicas, card = modelled_replicas(self.model), find_instance(self.instance).card
        for replica in replicas:
            if replica.card == card and self.tensor_parallel in (None, replica.tensor_parallel):
                return replica
        cards = ", ".join(f"{row.tensor_parallel} x {row.card}" for row in replicas)
        known = f"modelled are {cards}" if cards else f"modelled models: {did_you_mean(self.model, modelled_models())}"
        size = f" with tensor_parallel={self.tensor_parallel}" if self.tensor_parallel else ""
        fix = f"measure it (throughput_from: labkit load's JSON or a record), or enter throughput_tokens_per_s; {known}"
        raise UsageError(f"no throughput is known for {self.model} on {self.instance}{size}", remedy=fix)

    @cached_property
    def used_throughput(self) -> Throughput:
        """The throughput, measured or entered; else modelled for these requests."""
        replica = self.modelled_replica
        if replica is None:
            return cast(Throughput, self.throughput)
        gpu = find_instance(self.instance).gpu
        return modelled(replica, gpu, self.input_tokens or 0, self.output_tokens or 0, self.cached_tokens)

    @property
    def weights_gb(self) -> float:
        """The weights of one replica in GB; 0 if they are unknown."""
        if self.model_gb is not None:
            return self.model_gb
        replica = self.modelled_replica
        return replica.weights_gb if replica else 0.0

    @property
    def replica_gpus(self) -> int:
        """GPUs of one replica: set, modelled, or the fewest (1, 2, 4 ...) whose memory has ROOM for the weights."""
        if self.tensor_parallel:
            return self.tensor_parallel
        if replica := self.modelled_replica:
            return replica.tensor_parallel
        gpus, room_gb = 1, ROOM * find_instance(self.instance).gpu_gb
        while room_gb and gpus * room_gb < self.weights_gb:
            gpus *= 2
        return gpus

    @property
    def cached_tokens(self) -> int:
        """Input tokens per request that are read from the cache."""
        return round(self.cached_input * (self.input_tokens or 0) if self.cached_input <= 1 else self.cached_input)

    @property
    def own_prices(self) -> OwnPrices | None:
        """The API prices that the user entered, or None."""
        inputs, outputs = self.api_input_usd_per_million, self.api_output_usd_per_million
        if inputs is None or outputs is None:
            return None
        cached = self.api_cached_usd_per_million
        return OwnPrices(input=exact(inputs), output=exact(outputs), cached=None if cached is None else exact(cached))

    @property
    def tokens_per_request(self) -> int:
        return (self.input_tokens or 0) + (self.output_tokens or 0)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings that are set, flat, as the command line and a notebook's `state` take them."""
        flat = self.model_dump(mode="json", exclude={"throughput"})
        throughput = self.throughput.model_dump() if self.throughput else {}
        flat |= {f"throughput_{name}": value for name, value in throughput.items()}
        return {name: value for name, value in flat.items() if value not in (None, "", [])}

    def to_json(self) -> str:
        """Return the settings as one line of JSON, for the parameter `state`."""
        return json.dumps(self.to_dict(), sort_keys=True)


NUMBERS = {name: field for name, field in CostSettings.model_fields.items() if field.title}
SETTINGS = [
    *(name for name in CostSettings.model_fields if name != "throughput"),
    *(f"throughput_{name}" for name in Throughput.model_fields),
    "throughput_from",
]


def keys() -> Iterator[tuple[str, str, str, str]]:
    """Yield each setting's name, meaning, unit and default, for `labkit cost --keys`."""
    now = default().to_dict()
    fields = {name: field for name, field in CostSettings.model_fields.items() if name != "throughput"}
    fields |= {f"throughput_{name}": field for name, field in Throughput.model_fields.items()}
    for name, field in fields.items():
        value = now.get(name, "")
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        yield name, field.description or "", field.title or "", shown
    yield "throughput_from", "a record, a folder of records, or the JSON of labkit load or simulate", "", "modelled"


def default(*, prices_on: date | None = None, throughput: Throughput | None = None) -> CostSettings:
    """Return the settings of a small service: an 8B model on one modelled H100, and hosted models of its size.

    With a measured `throughput`: on the listed machine nearest to the one on which it was measured.
    """
    instance, model_gb = INSTANCE, None
    if throughput:
        from labkit.advice.costs.measured import measured_instance, measured_model_gb

        instance, model_gb = measured_instance(throughput), measured_model_gb(throughput)
    return CostSettings(
        requests_per_s=2.0,
        input_tokens=600,
        output_tokens=200,
        peak_factor=2.0,
        buffer=0.2,
        instance=instance,
        throughput=throughput,
        model_gb=model_gb,
        api=_api_like(MODEL),
        storage_usd_per_gb_month=0.08,
        engineering_hours_per_month=10.0,
        engineer_usd_per_hour=100.0,
        prices_on=prices_on or date.today(),
    )


def settings_from(given: Mapping[str, Any], start: CostSettings | None = None) -> CostSettings:
    """Apply the settings in `given` to `start` (default: `default()`), those in `state` (JSON or a mapping) first.

    `throughput_from`: a record, a folder of records, or "modelled". If `instance` is not set, it follows the
    measurement. UsageError: an unknown name, a wrong type, an impossible value.
    """
    values = dict(given)
    state = read_state(values.pop("state", None))
    if state:  # a setting that an exported state does not name is unset
        unset = dict.fromkeys(name for name in NUMBERS if name.startswith(("usd_", "tensor_", "model_", "api_")))
        start = settings_from({**unset, "throughput_from": "modelled", **state}, start)
    for name in values:
        if name not in SETTINGS:
            raise UsageError(f"the cost calculator has no setting {name!r}", remedy=did_you_mean(name, SETTINGS))
    changes = {name: value for name, value in values.items() if name in CostSettings.model_fields}
    throughput = _throughput(values, start)
    if throughput is not None or "throughput_from" in values:
        changes["throughput"] = throughput
    if throughput is not None and "throughput_from" in values and "instance" not in values:
        nearest = default(throughput=throughput)
        changes = {"instance": nearest.instance, "model_gb": nearest.model_gb, "tensor_parallel": None, **changes}
    start = start or default()
    return start.changed(**_with_api(_with_one_traffic(changes), start))


def _api_like(model: str) -> tuple[str, ...]:
    """Return the hosted models of a model's size, then small closed models."""
    return (*models_like(model), *SMALL_CLOSED)


def _with_api(changes: dict[str, Any], start: CostSettings) -> dict[str, Any]:
    """Unless the APIs are set, let them follow the model. Put own prices first, unless the APIs name them."""
    usual = start.api
    if "model" in changes:
        usual = (*(model for model in start.api if model == OWN), *_api_like(str(changes["model"])))
    apis = _names(changes.get("api", usual))
    prices = (changes.get(f"api_{side}_usd_per_million") for side in ("input", "output"))
    if any(price not in (None, "") for price in prices) and OWN not in apis:
        apis = (OWN, *apis)
    return {**changes, "api": apis}


def _with_one_traffic(changes: dict[str, Any]) -> dict[str, Any]:
    """Let one kind of traffic unset the other; tokens per day also unset the mix."""
    tokens, requests = (changes.get(name) not in (None, "") for name in ("tokens_per_day", "requests_per_s"))
    if tokens and not requests:
        return {"requests_per_s": None, "input_tokens": None, "output_tokens": None, **changes}
    if requests and not tokens:
        return {"tokens_per_day": None, **changes}
    return changes


def _throughput(values: Mapping[str, Any], start: CostSettings | None) -> Throughput | None:
    """Return the throughput that the values set; None for the modelled one."""
    fields = {name: values[f"throughput_{name}"] for name in Throughput.model_fields if f"throughput_{name}" in values}
    if "tokens_per_s" in fields:  # a new figure replaces all of the old one
        return Throughput(**fields)
    where = str(values.get("throughput_from", "modelled"))
    if where == "modelled":
        return start.throughput.changed(**fields) if start and start.throughput and fields else None
    from labkit.advice.costs.measured import measured

    return measured(where).changed(**fields)
