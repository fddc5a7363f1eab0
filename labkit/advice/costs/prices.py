"""Prices with their dates: machines and the article's models from data/prices, today's models from genai-prices."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from labkit.errors import UsageError, did_you_mean
from labkit.files import data_path

MILLION = 1_000_000
SECONDS_PER_HOUR = 3600
NOTHING = Fraction(1, 10**12)  # of a dollar, or of whatever is shown: below it stands a zero
DAYS_PER_MONTH = Fraction(365, 12)  # so that a month is 730 hours, as cloud bills count it


def exact(value: int | float | str | Decimal | Fraction) -> Fraction:
    """The number that is written: 0.1 is a tenth, not the binary fraction nearest to it."""
    return value if isinstance(value, Fraction) else Fraction(str(value))


def cents(usd: Fraction) -> Decimal:
    """The amount in dollars, to the cent."""
    return rounded(usd, 2)


def rounded(value: Fraction, digits: int) -> Decimal:
    """The value with `digits` decimals, half of the last one going up."""
    return Decimal(math.floor(value * 10**digits + Fraction(1, 2))).scaleb(-digits)


def show_usd(usd: Fraction) -> str:
    """ "$1,234.56"; an amount below a dime with two significant digits more, since a cent would say nothing of it."""
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


# --- catalogue ---


Kind = Literal["closed", "open"]
OWN = "own"
Money = Annotated[Fraction, BeforeValidator(exact)]


class Frozen(BaseModel):
    """A part of a data file: immutable, and without keys that nobody reads."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class HourPrice(Frozen):
    """What an hour cost until a day (or costs still), read on a day from a source."""

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
        """The price that holds on a day; None for a machine whose price has to be entered."""
        return next((one for one in self.prices if one.until is None or on <= one.until), None)


class DatedModel(Frozen):
    """A model's price per million tokens on a day, with what became of it since."""

    name: str
    kind: Kind
    input_usd_per_million: Money
    output_usd_per_million: Money
    day: date
    source: str
    since: str


class KnownModel(Frozen):
    """A model of the genai-prices catalogue that the calculator offers by name."""

    name: str
    kind: Kind


Model = TypeVar("Model", bound=Frozen)


@dataclass(frozen=True, kw_only=True)
class ApiPrice:
    """What one request costs at an API: `usd_per_request` exactly, the sum in words, and where the price is from."""

    id: str
    name: str
    kind: Kind | None
    usd_per_request: Fraction
    words: str
    source: str


@cache
def instances() -> Mapping[str, Instance]:
    """The machines of data/prices/instances.yaml by name."""
    return {name: _valid(Instance, entry, name) for name, entry in _read("instances.yaml")["instances"].items()}


@cache
def dated_models() -> Mapping[str, DatedModel]:
    """The models of the article's time by id."""
    return {name: _valid(DatedModel, entry, name) for name, entry in _read("api.yaml")["dated"].items()}


@cache
def known_models() -> Mapping[str, KnownModel]:
    """Today's models that are offered by name, by id (`provider/model`)."""
    return {name: _valid(KnownModel, entry, name) for name, entry in _read("api.yaml")["catalogue"].items()}


def find_instance(name: str) -> Instance:
    """The machine of a name. UsageError for an unknown one, with the nearest name."""
    if name not in instances():
        raise UsageError(f"there is no instance {name!r} in the price list", remedy=did_you_mean(name, instances()))
    return instances()[name]


def price_of_request(model: str, *, input_tokens: int, output_tokens: int, on: date) -> ApiPrice:
    """What one request of these sizes costs at `model` on a day: one of data/prices/api.yaml, or `provider/model`.

    UsageError for a model that nobody knows. A price is that of one request: long prompts may cost more a token.
    """
    if model in dated_models():
        return _dated(model, dated_models()[model], input_tokens, output_tokens)
    return _today(model, input_tokens, output_tokens, on)


def model_name(model: str) -> str:
    """The name by which a model is shown."""
    known = dated_models().get(model) or known_models().get(model)
    return known.name if known else model


@cache
def catalogue_version() -> str:
    """The catalogue's package and version, for labels."""
    from importlib.metadata import version

    return f"genai-prices {version('genai-prices')}"


def _dated(model: str, found: DatedModel, input_tokens: int, output_tokens: int) -> ApiPrice:
    usd = (found.input_usd_per_million * input_tokens + found.output_usd_per_million * output_tokens) / MILLION
    words = (
        f"({input_tokens:,} x {show_usd(found.input_usd_per_million)} + "
        f"{output_tokens:,} x {show_usd(found.output_usd_per_million)}) / 1,000,000"
    )
    source = f"{found.source} ({found.day}; {found.since})"
    return ApiPrice(id=model, name=found.name, kind=found.kind, usd_per_request=usd, words=words, source=source)


def _today(model: str, input_tokens: int, output_tokens: int, on: date) -> ApiPrice:
    provider, slash, name = model.partition("/")
    if not slash or provider not in _providers():
        known = [*dated_models(), *known_models()]
        raise UsageError(f"there is no API model {model!r}", remedy=f"{did_you_mean(model, known)} (or provider/model)")
    usd = _catalogue_price(provider, name, input_tokens, output_tokens, on)
    return ApiPrice(
        id=model,
        name=model_name(model),
        kind=known_models()[model].kind if model in known_models() else None,
        usd_per_request=usd,
        words=f"a request with {input_tokens:,} tokens in and {output_tokens:,} out, priced by {catalogue_version()}",
        source=f"{catalogue_version()}, as of {on}",
    )


@cache
def _catalogue_price(provider: str, name: str, input_tokens: int, output_tokens: int, on: date) -> Fraction:
    from genai_prices import Usage, calc_price

    usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
    noon = datetime.combine(on, time(12), UTC)
    try:
        found = calc_price(usage, name, provider_id=provider, genai_request_timestamp=noon)
    except LookupError:
        remedy = did_you_mean(f"{provider}/{name}", [*dated_models(), *known_models()])
        raise UsageError(f"{catalogue_version()} has no {provider}/{name}", remedy=remedy) from None
    return exact(found.total_price)


@cache
def _providers() -> frozenset[str]:
    # An unknown provider would be passed over by calc_price, which then guesses one from the model's name.
    from genai_prices import data_snapshot

    return frozenset(one.id for one in data_snapshot.get_snapshot().providers)


def _read(name: str) -> dict[str, Any]:
    path = data_path(f"prices/{name}")
    try:
        found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read: {error}", remedy="restore it from the repository") from error
    return found


def _valid(kind: type[Model], entry: Any, name: str) -> Model:
    try:
        return kind.model_validate(entry)
    except ValidationError as error:
        raise UsageError(f"data/prices: {name}: {error}", remedy="correct that entry") from None


class Figures(Frozen):
    """What the article counts with. Dollars, hours, tokens, shares."""

    usd_per_hour: Money
    instance: str
    hours: int
    usd_per_day: Money
    tokens_per_hour: int
    gpus: int
    api_usd_per_day: Money
    break_even_claude: tuple[int, int]
    break_even_gpt_4o: tuple[int, int]
    break_even_typical: int
    requests_per_s: int
    output_tokens: int
    utilisation: Money
    buffer: Money


@cache
def figures() -> Figures:
    """The article's figures."""
    return Figures.model_validate(yaml.safe_load(data_path("prices/article.yaml").read_text(encoding="utf-8")))
