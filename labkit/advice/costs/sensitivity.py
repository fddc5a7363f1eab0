"""Vary each input of the calculator: how far it moves the answer, and the value at which the cheaper side changes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from labkit.advice.costs.calculate import request_price
from labkit.advice.costs.checked import limits
from labkit.advice.costs.machines import demand, fleet, hour_price
from labkit.advice.costs.prices import PURCHASES, exact, find_instance, show_number
from labkit.advice.costs.settings import NUMBERS, CostSettings
from labkit.errors import UsageError, require

INPUTS = {
    "traffic": "traffic",
    "throughput": "throughput",
    "usd_per_hour": "price of an hour",
    "input_tokens": "tokens in",
    "output_tokens": "tokens out",
    "cached_input": "cached input",
    "peak_factor": "peak factor",
    "buffer": "buffer",
    "paid_hours_per_day": "paid hours",
    "engineering_hours_per_month": "people's hours",
    "api_price": "API's price",
}
"""The inputs that are varied, with their names for readers."""
FARTHEST, STEPS, HALVINGS = 20.0, 24, 12  # search for flips up to 20 times less and more


@dataclass(frozen=True, kw_only=True)
class Swing:
    """The cost of hosting over the API's, with one input lowered and raised."""

    name: str
    lowered: float
    raised: float

    @property
    def width(self) -> float:
        """The larger ratio over the smaller one."""
        return max(self.lowered, self.raised) / min(self.lowered, self.raised)


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A setting that alone changes which side is cheaper: its value, and a value nearby that does."""

    setting: str
    now: float | str
    to: float | str
    cheaper: str

    def __str__(self) -> str:
        now, to = (show_number(value) if isinstance(value, float) else value for value in (self.now, self.to))
        return f"{self.setting} from {now} to {to}: {self.cheaper}"


def sensitivity(settings: CostSettings, *, share: float = 0.25) -> tuple[Swing, ...]:
    """Lower and raise every input by `share`; return the widest swing first, without inputs that cannot be varied.

    UsageError: the first API's bill is 0, or a share that is not between 0 and 1.
    """
    require(0 < share < 1, f"the share is {share:g}", fix="pass a share above 0 and below 1, such as 0.25")
    _ratio(settings)
    swings = []
    for name, words in INPUTS.items():
        lowered, raised = (_tried(settings, name, factor) for factor in (1 - share, 1 + share))
        if lowered and raised:
            swings.append(Swing(name=words, lowered=lowered, raised=raised))
    return tuple(sorted(swings, key=lambda swing: swing.width, reverse=True))


def flips(settings: CostSettings) -> tuple[Flip, ...]:
    """Return the settings that alone change which side is cheaper; none if the first API's bill is 0."""
    price = request_price(settings, settings.api[0])
    if not price.usd_per_request or not demand(settings).requests_per_day:
        return ()
    hosting = _ratio(settings) < 1
    cheaper = f"{price.name} is cheaper" if hosting else "hosting is cheaper"
    numbers = (
        Flip(setting=words, now=_value(settings, name, 1), to=_beyond(settings, name, factor), cheaper=cheaper)
        for name, words in INPUTS.items()
        if (factor := _flipping(settings, name, hosting)) is not None
    )
    choices = (
        Flip(setting=name, now=_word(getattr(settings, name)), to=_word(value), cheaper=cheaper)
        for name, value in _choices(settings)
        if (_ratio(settings.changed(**{name: value})) < 1) != hosting
    )
    return (*numbers, *choices)


def _word(value: Any) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _choices(settings: CostSettings) -> Iterator[tuple[str, Any]]:
    yield "batch", not settings.batch
    if not settings.cached_input:
        yield "cached_input", 0.9
    instance = find_instance(settings.instance)
    if settings.usd_per_hour is None:
        priced = (purchase for purchase in PURCHASES if instance.price(settings.prices_on, purchase))
        yield from (("purchase", purchase) for purchase in priced if purchase != settings.purchase)


def _flipping(settings: CostSettings, name: str, hosting: bool) -> float | None:
    """Return the factor nearest to 1 that changes the cheaper side, up to FARTHEST."""
    factors = []
    for direction in (1, -1):
        before = 1.0
        for step in range(1, STEPS + 1):
            factor = FARTHEST ** (direction * step / STEPS)
            ratio = _tried(settings, name, factor)
            if ratio is None:
                break
            if (ratio < 1) != hosting:
                for _ in range(HALVINGS):
                    middle = math.sqrt(before * factor)
                    flipped = (_ratio(settings, name, middle) < 1) != hosting
                    before, factor = (before, middle) if flipped else (middle, factor)
                factors.append(factor)
                break
            before = factor
    return min(factors, key=lambda factor: abs(math.log(factor)), default=None)


def _value(settings: CostSettings, name: str, factor: float) -> float:
    if name == "throughput":
        return settings.used_throughput.tokens_per_s * factor
    if name == "api_price":
        price = request_price(settings, settings.api[0])
        return float(price.usd_per_request * 1_000_000 / settings.tokens_per_request) * factor
    return _changed_value(settings, _field(settings, name), factor)


def _beyond(settings: CostSettings, name: str, factor: float) -> float:
    """Return the value with four digits, rounded away from the current one, so that the printed value flips too."""
    value = _value(settings, name, factor)
    if value == 0 or value == int(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 3)
    rounded = (math.ceil if factor > 1 else math.floor)(value / unit) * unit
    return float(f"{rounded:.4g}")


def _field(settings: CostSettings, name: str) -> str:
    if name != "traffic":
        return name
    return "requests_per_s" if settings.tokens_per_day is None else "tokens_per_day"


def _ratio(settings: CostSettings, name: str = "", factor: float = 1) -> float:
    """Return the cost of hosting over that of the first API, with one input multiplied."""
    api_factor, tokens_per_s = Fraction(1), None
    if name == "api_price":
        api_factor = exact(factor)
    elif name == "throughput":
        tokens_per_s = settings.used_throughput.tokens_per_s * factor
    elif name:
        field = _field(settings, name)
        settings = settings.changed(**{field: _changed_value(settings, field, factor)})
    price = request_price(settings, settings.api[0])
    bill = price.usd_per_request * demand(settings).requests_per_day * api_factor
    require(bill > 0, f"{price.name} costs nothing for this traffic", fix="raise the traffic, or choose another API")
    return float(fleet(settings, tokens_per_s).usd_per_day / bill)


def _tried(settings: CostSettings, name: str, factor: float) -> float | None:
    """Return `_ratio`, or None for settings that the calculator refuses."""
    try:
        return _ratio(settings, name, factor)
    except UsageError:
        return None


def _changed_value(settings: CostSettings, name: str, factor: float) -> float:
    """Multiply a setting within its range; machines are paid for at least the hours of traffic."""
    value = hour_price(settings) if name == "usd_per_hour" else exact(getattr(settings, name))
    low, high = limits(NUMBERS[name])
    if name == "paid_hours_per_day":
        low = max(low, settings.hours_per_day)
    if name == "cached_input" and value <= 1:  # a share; above 1 it would be a number of tokens
        high = 1
    inside = min(high, max(low, float(value) * factor))
    return max(1, round(inside)) if name in ("input_tokens", "output_tokens") and value else inside
