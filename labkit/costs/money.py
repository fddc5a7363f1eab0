"""Money, exactly: amounts are fractions until they are shown, and then whole cents, half a cent going up."""

import math
from decimal import Decimal
from fractions import Fraction

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
