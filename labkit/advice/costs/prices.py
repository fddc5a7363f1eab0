"""Prices with their dates: machines and dated models from data/prices, today's models from genai-prices."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

from labkit.errors import UsageError, did_you_mean, require
from labkit.files import Frozen, data_path, read_yaml, validated

MILLION = 1_000_000
SECONDS_PER_HOUR = 3600
NOTHING = Fraction(1, 10**12)  # smaller amounts are shown as zero
DAYS_PER_MONTH = Fraction(365, 12)  # a month is 730 hours, as on cloud bills
OWN = "own"
"""The machine or API whose price the user enters."""

Purchase = Literal["on_demand", "spot", "reserved_1y", "reserved_3y"]
PURCHASES: tuple[Purchase, ...] = get_args(Purchase)


def exact(value: int | float | str | Decimal | Fraction) -> Fraction:
    """Return the number as written: 0.1 is a tenth, not the nearest binary fraction."""
    return value if isinstance(value, Fraction) else Fraction(str(value))


def rounded(value: Fraction, digits: int) -> Decimal:
    """Round to `digits` decimals, half up."""
    return Decimal(math.floor(value * 10**digits + Fraction(1, 2))).scaleb(-digits)


def show_usd(usd: Fraction) -> str:
    """Format as "$1,234.56", amounts below 10 cents with three significant digits."""
    if NOTHING < abs(usd) < Fraction(1, 10):
        digits = 2 - math.floor(math.log10(abs(usd)))
        return f"${rounded(usd, digits).normalize():f}"
    return f"${rounded(usd, 2):,}"


def show_gpus(count: int) -> str:
    return f"{count:,} GPU{'' if count == 1 else 's'}"


def show_number(value: Fraction | float) -> str:
    """Format whole numbers with commas, others with up to four significant digits."""
    number = exact(value)
    if number.denominator == 1 or abs(number) >= 100_000 or abs(number) < NOTHING:
        return f"{math.floor(number + Fraction(1, 2)):,}"
    digits = max(0, 3 - math.floor(math.log10(abs(number))))
    return f"{rounded(number, digits):,}".rstrip("0").rstrip(".") if digits else f"{rounded(number, 0):,}"


def millions(tokens: Fraction) -> str:
    return f"{show_number(tokens / MILLION)}M"


Money = Annotated[Fraction, BeforeValidator(exact)]


class HourPrice(Frozen):
    """The price per hour for one way to buy, valid until `until` (None: today), with source and day of reading."""

    usd_per_hour: Money
    read: date
    source: str
    purchase: Purchase = "on_demand"
    until: date | None = None

    @property
    def words(self) -> str:
        return f"{self.purchase.replace('_', ' ')}, {self.source}, read {self.read}"


class Instance(Frozen):
    """A machine for rent, whole or by the GPU (up to `most` in one machine). `gpu` is empty if it has none.

    `gpu_gb`: the memory of one GPU in 10^9 bytes; `card`: its name in data/gpus.yaml.
    """

    gpus: int
    gpu: str = ""
    gpu_gb: float = 0
    card: str = ""
    most: int = 0
    prices: tuple[HourPrice, ...]

    def price(self, on: date, purchase: str = "on_demand") -> HourPrice | None:
        """Return the price on a day, or None if it is unknown."""
        valid = (price for price in self.prices if price.until is None or on <= price.until)
        return next((price for price in valid if price.purchase == purchase), None)


def machine_choices(on: date) -> dict[str, str]:
    """Return each machine with its GPUs and its price on a day, for a form's list."""
    choices = {}
    for name, instance in instances().items():
        price = instance.price(on)
        gpus = f"{instance.gpus} x {instance.gpu}" if instance.gpus else "no GPU"
        words = f"{gpus}, {show_usd(price.usd_per_hour)}/h" if price else f"{gpus}, enter its price"
        choices[name] = f"{'your own machine' if name == OWN else name}: {words}"
    return choices


class KnownModel(Frozen):
    """A model in the genai-prices catalogue that the calculator offers. `like`: the modelled model of its size."""

    name: str
    kind: Literal["closed", "open"]
    like: str = ""


class DatedModel(KnownModel):
    """A model with its prices per million tokens on a past day; `since` says what has happened to them."""

    input_usd_per_million: Money
    output_usd_per_million: Money
    day: date
    source: str
    since: str


@cache
def instances() -> Mapping[str, Instance]:
    path = data_path("prices/instances.yaml")
    return validated(read_yaml(path, dict[str, Any])["instances"], dict[str, Instance], where=str(path))


class _Models(Frozen):
    dated: dict[str, DatedModel]
    catalogue: dict[str, KnownModel]


@cache
def _models() -> _Models:
    return read_yaml(data_path("prices/api.yaml"), _Models)


def dated_models() -> Mapping[str, DatedModel]:
    return _models().dated


def known_models() -> Mapping[str, KnownModel]:
    """Return the current models that are offered by name, by id (`provider/model`)."""
    return _models().catalogue


def models_like(model: str) -> tuple[str, ...]:
    """Return the hosted models of the same size as a modelled model."""
    return tuple(name for name, known in known_models().items() if known.like and known.like == model)


def find_instance(name: str) -> Instance:
    """Return the machine by name. UsageError for an unknown name, with the nearest one."""
    if name not in instances():
        raise UsageError(f"there is no instance {name!r} in the price list", remedy=did_you_mean(name, instances()))
    return instances()[name]


def model_name(model: str) -> str:
    known = dated_models().get(model) or known_models().get(model)
    return known.name if known else model


@dataclass(frozen=True, kw_only=True)
class ApiPrice:
    """The exact price of one request at an API, with the calculation, the source and its limits."""

    id: str
    name: str
    usd_per_request: Fraction
    words: str
    source: str
    notes: tuple[str, ...] = ()


class OwnPrices(Frozen):
    """Prices per million tokens that the user entered. Without `cached`, cached input costs as much as other input."""

    input: Money
    output: Money
    cached: Money | None = None


def price_of_request(
    model: str,
    *,
    input_tokens: int,
    output_tokens: int,
    on: date,
    cached_tokens: int = 0,
    batch: bool = False,
    own: OwnPrices | None = None,
) -> ApiPrice:
    """Return the price of one request on a day at a model of data/prices/api.yaml, `own`, or any `provider/model`.

    `cached_tokens` of the input are read from the prompt cache; cache writes are not priced. Long prompts may cost
    more per token. UsageError: an unknown model.
    """
    tokens = (input_tokens, cached_tokens, output_tokens)
    if model == OWN and own is not None:
        return _multiply(OWN, "API at your prices", own, tokens, batch, "entered")
    if model in dated_models():
        dated = dated_models()[model]
        prices = OwnPrices(input=dated.input_usd_per_million, output=dated.output_usd_per_million)
        return _multiply(model, dated.name, prices, tokens, batch, f"{dated.source} ({dated.day}; {dated.since})")
    fix = "set api_input_usd_per_million and api_output_usd_per_million"
    require(model != OWN, "the API 'own' has no prices", fix=fix)
    usd, notes = _catalogue_price(model, tokens, batch, on)
    cached = f" ({cached_tokens:,} of them cached)" if cached_tokens else ""
    mode = " in a batch" if batch else ""
    return ApiPrice(
        id=model,
        name=model_name(model),
        usd_per_request=usd,
        words=f"a request with {input_tokens:,} tokens in{cached} and {output_tokens:,} out{mode}, priced by "
        f"{_catalogue_version()}",
        source=f"{_catalogue_version()}, as of {on}",
        notes=notes,
    )


def _multiply(
    model: str, name: str, prices: OwnPrices, tokens: tuple[int, int, int], batch: bool, source: str
) -> ApiPrice:
    inputs, cached, outputs = tokens
    notes: tuple[str, ...] = (f"{name}: no batch price is known; the standard price is used.",) if batch else ()
    if cached and prices.cached is None:
        notes += (f"{name}: no price of cached input is known; it is counted as input.",)
        cached = 0
    parts = [
        (inputs - cached, prices.input),
        (cached, prices.input if prices.cached is None else prices.cached),
        (outputs, prices.output),
    ]
    shown = [f"{count:,} x {show_usd(usd)}" for count, usd in parts if count or usd is not parts[1][1]]
    return ApiPrice(
        id=model,
        name=name,
        usd_per_request=sum((count * usd for count, usd in parts), Fraction(0)) / MILLION,
        words=f"({' + '.join(shown)}) / 1,000,000",
        source=source,
        notes=notes,
    )


@cache
def _catalogue_version() -> str:
    from importlib.metadata import version

    return f"genai-prices {version('genai-prices')}"


@cache
def _catalogue_price(
    model: str, tokens: tuple[int, int, int], batch: bool, on: date
) -> tuple[Fraction, tuple[str, ...]]:
    """Return the catalogue's price, with notes on discounts that it does not list (it then takes the full price)."""
    from genai_prices import Usage, calc_price

    known = [*dated_models(), *known_models()]
    provider, slash, name = model.partition("/")
    if not slash or provider not in _providers():
        raise UsageError(f"there is no API model {model!r}", remedy=f"{did_you_mean(model, known)} (or provider/model)")

    def usd(cached: int, context: dict[str, str] | None) -> Fraction:
        noon = datetime.combine(on, time(12), UTC)
        usage = Usage(input_tokens=tokens[0], cache_read_tokens=cached, output_tokens=tokens[2])
        price = calc_price(usage, name, provider_id=provider, genai_request_timestamp=noon, price_context=context)
        return exact(price.total_price)

    context = {"processing": "batch"} if batch else None
    try:
        price = usd(tokens[1], context)
    except LookupError:
        raise UsageError(f"{_catalogue_version()} has no {model}", remedy=did_you_mean(model, known)) from None
    notes = []
    if tokens[1] and price == usd(0, context):
        notes.append(f"{model_name(model)}: no price of cached input is listed; it is counted as input.")
    if batch and price == usd(tokens[1], None):
        notes.append(f"{model_name(model)}: no batch price is listed; the standard one is used.")
    return price, tuple(notes)


@cache
def _providers() -> frozenset[str]:
    # calc_price ignores an unknown provider and guesses one from the model's name.
    from genai_prices import data_snapshot

    return frozenset(provider.id for provider in data_snapshot.get_snapshot().providers)
