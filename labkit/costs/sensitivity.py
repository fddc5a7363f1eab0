"""Which input matters most: each is lowered and raised by the same share, all others stay, and the answer is watched.

The answer is the cost of hosting over that of the API that is compared with: below 1 hosting is the cheaper one.
"""

from dataclasses import dataclass, replace
from fractions import Fraction

from labkit.costs.break_even import volume
from labkit.costs.catalogue import price_of_request
from labkit.costs.fleet import fleet, hour_price
from labkit.costs.money import exact
from labkit.costs.settings import NUMBERS, WHOLE, CostSettings
from labkit.errors import UsageError

NAMES = {
    "traffic": "traffic",
    "throughput": "throughput",
    "usd_per_hour": "price of an hour",
    "input_tokens": "tokens in",
    "output_tokens": "tokens out",
    "peak_factor": "peak factor",
    "buffer": "buffer",
    "paid_hours_per_day": "paid hours",
    "engineering_hours_per_month": "people's hours",
    "api_price": "API's price",
}


@dataclass(frozen=True, kw_only=True)
class Swing:
    """One input: the ratio of costs, hosting over API, with the input lowered and raised. `width` as a factor."""

    name: str
    lowered: float
    raised: float

    @property
    def width(self) -> float:
        """How far the answer moves, as a factor of 1 or more."""
        return max(self.lowered, self.raised) / min(self.lowered, self.raised)


def ratio(settings: CostSettings, *, api_factor: Fraction = Fraction(1)) -> float:
    """Cost of hosting over the cost at the first API. UsageError where the API's bill is nothing."""
    price = price_of_request(
        settings.api[0],
        input_tokens=settings.input_tokens or 0,
        output_tokens=settings.output_tokens or 0,
        on=settings.prices_on,
    )
    bill = price.usd_per_request * volume(settings) / settings.tokens_per_request * api_factor
    if not bill:
        raise UsageError(
            f"{price.name} costs nothing for this traffic", remedy="raise the traffic, or take another API"
        )
    return float(fleet(settings).usd_per_day / bill)


def sensitivity(settings: CostSettings, *, share: float = 0.25) -> tuple[Swing, ...]:
    """Every input lowered and raised by `share` (0 to below 1), the one that moves the answer most first."""
    if not 0 < share < 1:
        raise UsageError(f"the share is {share:g}", remedy="give one above 0 and below 1, such as 0.25")
    found = []
    for name in NAMES:
        low, high = (_ratio_with(settings, name, factor) for factor in (1 - exact(share), 1 + exact(share)))
        found.append(Swing(name=NAMES[name], lowered=low, raised=high))
    return tuple(sorted(found, key=lambda one: one.width, reverse=True))


def _ratio_with(settings: CostSettings, name: str, factor: Fraction) -> float:
    if name == "api_price":
        return ratio(settings, api_factor=factor)
    if name == "throughput":
        rate = settings.throughput.tokens_per_s * float(factor)
        return ratio(settings.changed(throughput=replace(settings.throughput, tokens_per_s=rate, low=None, high=None)))
    if name == "traffic":
        name = "requests_per_s" if settings.tokens_per_day is None else "tokens_per_day"
    if name == "usd_per_hour":
        return ratio(settings.changed(usd_per_hour=float(hour_price(settings) * factor)))
    return ratio(settings.changed(**{name: _within(settings, name, float(exact(getattr(settings, name)) * factor))}))


def _within(settings: CostSettings, name: str, value: float) -> float | int:
    """The value, kept inside its range: a day has 24 hours, and machines run at least as long as requests come."""
    _, low, high, _ = NUMBERS[name]
    if name == "paid_hours_per_day":
        low = max(low, settings.hours_per_day)
    inside = min(high, max(low, value))
    return round(inside) if name in WHOLE else inside
