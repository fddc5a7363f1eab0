"""From which volume on is it cheaper to host it yourself? For one mix, one clock, and machines that come whole.

An API costs a dollars a token. n machines cost F + n p a day and carry n c tokens, so the cost is a staircase:
    first crossing   the smallest n with F + n p <= a n c, at the volume (F + n p) / a
    for good         the smallest n from which every next step is cheaper too: F + (n + 1) p <= a n c
Where a c <= p a full machine costs more than the API does for the same tokens, and it never pays.
"""

from dataclasses import dataclass
from fractions import Fraction

from labkit.costs.fleet import ceiling, demand, engineering_per_day, machine
from labkit.costs.money import SECONDS_PER_HOUR, exact
from labkit.costs.settings import CostSettings


@dataclass(frozen=True, kw_only=True)
class Staircase:
    """The cost of hosting as a function of the volume: dollars a day, tokens a day."""

    fixed_usd: Fraction
    machine_usd: Fraction
    machine_tokens: Fraction
    least: int

    def machines(self, tokens_per_day: Fraction) -> int:
        """Machines for a volume."""
        return max(self.least, ceiling(tokens_per_day / self.machine_tokens))

    def usd_per_day(self, tokens_per_day: Fraction) -> Fraction:
        """The cost of a volume."""
        return self.fixed_usd + self.machines(tokens_per_day) * self.machine_usd


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """Tokens a day: `first` where hosting becomes cheaper, `for_good` from where it stays so; None: never."""

    first: Fraction | None
    for_good: Fraction | None


def staircase(settings: CostSettings, tokens_per_s: float | None = None) -> Staircase:
    """The settings' cost of hosting for any volume of their mix and clock."""
    one, spread = machine(settings, tokens_per_s), exact(settings.peak_factor) * (1 + exact(settings.buffer))
    requests = one.requests_per_s / spread * SECONDS_PER_HOUR * exact(settings.hours_per_day)
    return Staircase(
        fixed_usd=engineering_per_day(settings),
        machine_usd=one.usd_per_day,
        machine_tokens=requests * settings.tokens_per_request,
        least=settings.min_instances,
    )


def break_even(stairs: Staircase, usd_per_token: Fraction) -> BreakEven:
    """Where the staircase falls below the API's line."""
    gain = usd_per_token * stairs.machine_tokens - stairs.machine_usd  # of one more machine, when it is full
    if gain <= 0:
        return BreakEven(first=None, for_good=None)
    first = max(stairs.least, ceiling(stairs.fixed_usd / gain))
    for_good = max(stairs.least, ceiling((stairs.fixed_usd + stairs.machine_usd) / gain))
    return BreakEven(first=_crossing(stairs, first, usd_per_token), for_good=_crossing(stairs, for_good, usd_per_token))


def _crossing(stairs: Staircase, machines: int, usd_per_token: Fraction) -> Fraction:
    return (stairs.fixed_usd + machines * stairs.machine_usd) / usd_per_token


def volume(settings: CostSettings) -> Fraction:
    """Tokens a day of the settings."""
    return demand(settings).tokens_per_day
