"""The article's sums, recomputed: what it says, the sum behind it, and what comes out.

Every figure of the article stands in data/prices/article.yaml; every result is computed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import yaml

from labkit.costs.catalogue import Frozen, Money, dated_models
from labkit.costs.money import MILLION, SECONDS_PER_HOUR, exact, show_number, show_usd
from labkit.errors import UsageError
from labkit.paths import data_path

# (tokens read, tokens written) of a mix
MIXES: Mapping[str, tuple[int, int]] = {"half and half": (1, 1), "3:1": (3, 1), "written only": (0, 1)}


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


@dataclass(frozen=True, kw_only=True)
class Sum:
    """One sum of the article: the claim's id, what it says, and lines of what it comes to."""

    claim: str
    says: str
    lines: tuple[str, ...]


@cache
def figures() -> Figures:
    """The article's figures."""
    return Figures.model_validate(yaml.safe_load(data_path("prices/article.yaml").read_text(encoding="utf-8")))


def usd_per_million(model: str, mix: str) -> Fraction:
    """What a million tokens of a mix cost at a model of the article's time, by one of MIXES."""
    if mix not in MIXES:
        raise UsageError(f"there is no mix {mix!r}", remedy=f"use one of: {', '.join(MIXES)}")
    price, (read, written) = dated_models()[model], MIXES[mix]
    total = price.input_usd_per_million * read + price.output_usd_per_million * written
    return total / (read + written)


def break_even_millions(usd_per_day: Fraction, model: str, mix: str) -> Fraction:
    """Million tokens a day that cost as much at the API as machines that cost `usd_per_day`, whatever is served."""
    return exact(usd_per_day) / usd_per_million(model, mix)


def busy_share(tokens_per_day: int) -> Fraction:
    """Share of a 24-hour day that the article's machine needs for so many tokens, at its own figure."""
    return Fraction(tokens_per_day, 24 * figures().tokens_per_hour)


def instances_for(requests_per_s: int, output_tokens: int) -> int:
    """Machines for so many requests a second, at the article's figure, counting only the tokens that are written."""
    needed = Fraction(requests_per_s * output_tokens * SECONDS_PER_HOUR, figures().tokens_per_hour)
    return -(-needed.numerator // needed.denominator)


def audit(today_usd_per_hour: Fraction) -> tuple[Sum, ...]:
    """The article's contradictions, each with the sum that shows it. `today_usd_per_hour`: its machine's price now."""
    f = figures()
    day = f.usd_per_hour * 24
    claude, gpt = "article/claude-3.5-sonnet", "article/gpt-4o"
    fleet = instances_for(f.requests_per_s, f.output_tokens)
    return (
        Sum(
            claim="C58",
            says=f"1M tokens a day through Claude 3.5 Sonnet cost {show_usd(f.api_usd_per_day)}",
            lines=(
                "that is a million read AND a million written: two million tokens",
                *(f"one million, {mix}: {show_usd(usd_per_million(claude, mix))}" for mix in MIXES),
            ),
        ),
        Sum(
            claim="C59",
            says=f"{show_usd(f.usd_per_hour)} an hour, divided by {f.hours} hours, is {show_usd(f.usd_per_day)} a day",
            lines=(
                f"{f.usd_per_hour} / {f.hours} = {show_usd(f.usd_per_hour / f.hours)}",
                f"{f.usd_per_hour} x {f.hours} = {show_usd(f.usd_per_hour * f.hours)}: for {f.hours} hours",
                f"{f.usd_per_hour} x 24 = {show_usd(day)}: for a day",
                f"at the price of today {show_usd(today_usd_per_hour)} x 24 = {show_usd(today_usd_per_hour * 24)}",
            ),
        ),
        Sum(
            claim="C60",
            says=f"self-hosting pays from {f.break_even_claude[0] / MILLION:g}M tokens a day on, against Claude",
            lines=_break_evens(claude, (f.usd_per_day, day)),
        ),
        Sum(
            claim="C61",
            says="against GPT-4o from {:g}M to {:g}M on".format(*(one / MILLION for one in f.break_even_gpt_4o)),
            lines=(
                *_break_evens(gpt, (f.usd_per_day, day)),
                *_break_evens("dated/gpt-4o-2024-08-06", (f.usd_per_day,)),
            ),
        ),
        Sum(
            claim="C62",
            says=f"in general above {f.break_even_typical / MILLION:g}M",
            lines=(f"three figures for one question, and none of them follows from the prices beside it: {_least()}",),
        ),
        Sum(
            claim="C63",
            says="an 8B model of your own is weighed against Claude",
            lines=(
                f"{show_usd(f.usd_per_hour)} / {f.tokens_per_hour:,} tokens = "
                f"{show_usd(f.usd_per_hour * MILLION / f.tokens_per_hour)} per 1M, never idle",
            ),
        ),
        Sum(
            claim="C14",
            says=f"more than {f.requests_per_s:,} requests a second: take vLLM",
            lines=(
                f"{f.requests_per_s:,} x {f.output_tokens} tokens = {f.requests_per_s * f.output_tokens:,} tokens/s",
                f"/ ({f.tokens_per_hour:,} / 3,600) = {fleet} p4d, {fleet * f.gpus} GPUs",
                f"{fleet} x {show_usd(day)} = {show_usd(fleet * day)} a day",
            ),
        ),
        Sum(
            claim="C15",
            says=f"keep the GPUs busy for more than {float(f.utilisation):.0%}",
            lines=(
                f"{f.break_even_claude[0]:,} / (24 x {f.tokens_per_hour:,}) = "
                f"{float(busy_share(f.break_even_claude[0])):.2%} busy in its own example",
            ),
        ),
    )


def _break_evens(model: str, costs: tuple[Fraction, ...]) -> tuple[str, ...]:
    name = dated_models()[model].name
    return tuple(
        f"{name}, {mix}, at {show_usd(cost)} a day: {show_number(break_even_millions(cost, model, mix))}M"
        for cost in costs
        for mix in MIXES
    )


def _least() -> str:
    models = ("article/claude-3.5-sonnet", "article/gpt-4o")
    least = min(break_even_millions(figures().usd_per_day, model, mix) for model in models for mix in MIXES)
    return f"the smallest that does is {show_number(least)}M, for written tokens and an 8-hour day"
