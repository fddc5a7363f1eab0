"""Prices with their dates: machines and the article's models from data/prices, today's models from genai-prices."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from labkit.errors import UsageError, did_you_mean
from labkit.files import Frozen, data_path, read_yaml, validated

MILLION = 1_000_000
SECONDS_PER_HOUR = 3600
NOTHING = Fraction(1, 10**12)  # of a dollar, or of whatever is shown: anything smaller is shown as zero
DAYS_PER_MONTH = Fraction(365, 12)  # a month is 730 hours, as on cloud bills
OWN = "own"


def exact(value: int | float | str | Decimal | Fraction) -> Fraction:
    """The number as written: 0.1 is a tenth, not the binary fraction nearest to it."""
    return value if isinstance(value, Fraction) else Fraction(str(value))


def rounded(value: Fraction, digits: int) -> Decimal:
    """The value with `digits` decimals, half of the last one rounded up."""
    return Decimal(math.floor(value * 10**digits + Fraction(1, 2))).scaleb(-digits)


def cents(usd: Fraction) -> Decimal:
    """The amount in dollars, to the cent."""
    return rounded(usd, 2)


def show_usd(usd: Fraction) -> str:
    """ "$1,234.56"; an amount below a dime with three significant digits, since cents would hide it."""
    if NOTHING < abs(usd) < Fraction(1, 10):
        digits = 2 - math.floor(math.log10(abs(usd)))
        return f"${rounded(usd, digits).normalize():f}"
    return f"${cents(usd):,}"


def show_number(value: Fraction | float) -> str:
    """Whole numbers with commas, others with up to four significant digits."""
    number = exact(value)
    if number.denominator == 1 or abs(number) >= 100_000 or abs(number) < NOTHING:
        return f"{math.floor(number + Fraction(1, 2)):,}"
    digits = max(0, 3 - math.floor(math.log10(abs(number))))
    return f"{rounded(number, digits):,}".rstrip("0").rstrip(".") if digits else f"{rounded(number, 0):,}"


Money = Annotated[Fraction, BeforeValidator(exact)]


class HourPrice(Frozen):
    """The price of an hour until a day (None: still), with the day it was read and its source."""

    usd_per_hour: Money
    read: date
    source: str
    until: date | None = None


class Instance(Frozen):
    """A machine to rent. Without a GPU `gpu` is empty; `gpu_gb` is one GPU's memory in 10^9 bytes."""

    gpus: int
    gpu: str = ""
    gpu_gb: float = 0
    prices: tuple[HourPrice, ...]

    def price(self, on: date) -> HourPrice | None:
        """The price on a day; None for a machine whose price has to be entered."""
        return next((price for price in self.prices if price.until is None or on <= price.until), None)


class KnownModel(Frozen):
    """A model of the genai-prices catalogue that the calculator offers by name."""

    name: str
    kind: Literal["closed", "open"]


class DatedModel(KnownModel):
    """A model with its price per million tokens on a day, and what became of it since."""

    input_usd_per_million: Money
    output_usd_per_million: Money
    day: date
    source: str
    since: str


class Figures(Frozen):
    """The article's figures. Dollars, hours, tokens, shares; `model_gb` are its 8B model's weights in 16 bits."""

    usd_per_hour: Money
    instance: str
    hours: int
    usd_per_day: Money
    tokens_per_hour: int
    gpus: int
    model_gb: float
    api_usd_per_day: Money
    break_even_claude: tuple[int, int]
    break_even_gpt_4o: tuple[int, int]
    break_even_typical: int
    requests_per_s: int
    output_tokens: int
    utilisation: Money
    buffer: Money


@cache
def instances() -> Mapping[str, Instance]:
    """The machines of data/prices/instances.yaml by name."""
    path = data_path("prices/instances.yaml")
    return validated(read_yaml(path, dict[str, Any])["instances"], dict[str, Instance], where=str(path))


class _Models(Frozen):
    dated: dict[str, DatedModel]
    catalogue: dict[str, KnownModel]


@cache
def _models() -> _Models:
    return read_yaml(data_path("prices/api.yaml"), _Models)


def dated_models() -> Mapping[str, DatedModel]:
    """The models of the article's time by id."""
    return _models().dated


def known_models() -> Mapping[str, KnownModel]:
    """Today's models that are offered by name, by id (`provider/model`)."""
    return _models().catalogue


@cache
def figures() -> Figures:
    """The article's figures."""
    return read_yaml(data_path("prices/article.yaml"), Figures)


def find_instance(name: str) -> Instance:
    """The machine of a name. UsageError for an unknown one, with the nearest name."""
    if name not in instances():
        raise UsageError(f"there is no instance {name!r} in the price list", remedy=did_you_mean(name, instances()))
    return instances()[name]


def model_name(model: str) -> str:
    """The name by which a model is shown."""
    known = dated_models().get(model) or known_models().get(model)
    return known.name if known else model


@dataclass(frozen=True, kw_only=True)
class ApiPrice:
    """The exact price of one request at an API, the sum in words, and the price's source."""

    id: str
    name: str
    usd_per_request: Fraction
    words: str
    source: str


def price_of_request(model: str, *, input_tokens: int, output_tokens: int, on: date) -> ApiPrice:
    """The price of one request at `model` on a day: a model of data/prices/api.yaml, or any `provider/model`.

    UsageError for an unknown model. It is the price of one request: long prompts may cost more per token.
    """
    if model in dated_models():
        return _dated(model, dated_models()[model], input_tokens, output_tokens)
    usd = _catalogue_price(model, input_tokens, output_tokens, on)
    return ApiPrice(
        id=model,
        name=model_name(model),
        usd_per_request=usd,
        words=f"a request with {input_tokens:,} tokens in and {output_tokens:,} out, priced by {_catalogue_version()}",
        source=f"{_catalogue_version()}, as of {on}",
    )


def _dated(model: str, price: DatedModel, input_tokens: int, output_tokens: int) -> ApiPrice:
    usd = (price.input_usd_per_million * input_tokens + price.output_usd_per_million * output_tokens) / MILLION
    words = (
        f"({input_tokens:,} x {show_usd(price.input_usd_per_million)} + "
        f"{output_tokens:,} x {show_usd(price.output_usd_per_million)}) / 1,000,000"
    )
    source = f"{price.source} ({price.day}; {price.since})"
    return ApiPrice(id=model, name=price.name, usd_per_request=usd, words=words, source=source)


@cache
def _catalogue_version() -> str:
    from importlib.metadata import version

    return f"genai-prices {version('genai-prices')}"


@cache
def _catalogue_price(model: str, input_tokens: int, output_tokens: int, on: date) -> Fraction:
    from genai_prices import Usage, calc_price

    known = [*dated_models(), *known_models()]
    provider, slash, name = model.partition("/")
    if not slash or provider not in _providers():
        raise UsageError(f"there is no API model {model!r}", remedy=f"{did_you_mean(model, known)} (or provider/model)")
    usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
    noon = datetime.combine(on, time(12), UTC)
    try:
        price = calc_price(usage, name, provider_id=provider, genai_request_timestamp=noon)
    except LookupError:
        raise UsageError(f"{_catalogue_version()} has no {model}", remedy=did_you_mean(model, known)) from None
    return exact(price.total_price)


@cache
def _providers() -> frozenset[str]:
    # calc_price passes over an unknown provider and guesses one from the model's name.
    from genai_prices import data_snapshot

    return frozenset(provider.id for provider in data_snapshot.get_snapshot().providers)
