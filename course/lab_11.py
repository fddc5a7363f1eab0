"""Lab 11: exercises on mixes, machines and break-evens; the article's example and sums, recomputed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from functools import cache
from itertools import product

import pandas as pd

from labkit import charts
from labkit.advice.costs import CostSettings, Throughput, calculate
from labkit.advice.costs.prices import (
    MILLION,
    SECONDS_PER_HOUR,
    Money,
    dated_models,
    exact,
    known_models,
    price_of_request,
    show_number,
    show_usd,
)
from labkit.advice.costs.sensitivity import Swing
from labkit.errors import require
from labkit.files import Frozen, data_path, read_yaml
from labkit.teaching import solution
from labkit.theory.queues import wait_quantile


def usd_per_million(usd_in: float, usd_out: float, input_tokens: int, output_tokens: int) -> float:
    return (usd_in * input_tokens + usd_out * output_tokens) / (input_tokens + output_tokens)


solution(
    "11.mix",
    usd_per_million,
    unit="dollars",
    cases=((3.0, 15.0, 1, 1), (3.0, 15.0, 3, 1), (5.0, 15.0, 0, 7), (2.5, 10.0, 900, 100), (0.15, 0.6, 600, 200)),
    wrong={
        "input and output prices added": lambda usd_in, usd_out, _input_tokens, _output_tokens: usd_in + usd_out,
        "the mix ignored": lambda usd_in, usd_out, _input_tokens, _output_tokens: (usd_in + usd_out) / 2,
        "input and output swapped": lambda usd_in, usd_out, input_tokens, output_tokens: usd_per_million(
            usd_out, usd_in, input_tokens, output_tokens
        ),
        "only the output tokens charged": [
            lambda _usd_in, usd_out, input_tokens, output_tokens: (
                usd_out * output_tokens / (input_tokens + output_tokens)
            ),
            lambda _usd_in, usd_out, _input_tokens, _output_tokens: usd_out,
        ],
        "price per million requests": lambda usd_in, usd_out, input_tokens, output_tokens: (
            usd_in * input_tokens + usd_out * output_tokens
        ),
    },
)


def machines(requests_per_s: float, output_tokens: int, tokens_per_s: float, peak: float, buffer: float) -> int:
    import math  # learners see only this function

    return math.ceil(requests_per_s * output_tokens * peak * (1 + buffer) / tokens_per_s)


solution(
    "11.machines",
    machines,
    unit="machines",
    cases=[
        (2, 200, 500, 2, 0.2),
        (8, 200, 500, 2, 0.2),
        (3, 150, 500, 3, 0.0),
        (1, 100, 400, 1, 0.0),
        (1, 210, 200, 1, 0.5),
        (10, 100, 500, 4, 0.25),
    ],
    wrong={
        "average load instead of the peak": [
            lambda rate, tokens, per_s, _peak, buffer: machines(rate, tokens, per_s, 1, buffer),
            lambda rate, tokens, per_s, _peak, _buffer: machines(rate, tokens, per_s, 1, 0),
        ],
        "no buffer": lambda rate, tokens, per_s, peak, _buffer: machines(rate, tokens, per_s, peak, 0),
        "rounded down or to the nearest": [
            lambda rate, tokens, per_s, peak, buffer: math.floor(rate * tokens * peak * (1 + buffer) / per_s),
            lambda rate, tokens, per_s, peak, buffer: round(rate * tokens * peak * (1 + buffer) / per_s),
        ],
        "fractions of machines rented": lambda rate, tokens, per_s, peak, buffer: (
            rate * tokens * peak * (1 + buffer) / per_s
        ),
        "the reserve computed from the average": lambda rate, tokens, per_s, peak, buffer: machines(
            rate, tokens, per_s, peak + buffer, 0
        ),
        "one too many for an exact multiple": lambda rate, tokens, per_s, peak, buffer: (
            int(rate * tokens * peak * (1 + buffer) / per_s) + 1
        ),
        "the reserve subtracted from the demand": lambda rate, tokens, per_s, peak, buffer: machines(
            rate, tokens, per_s, peak, -buffer
        ),
    },
)


def break_even(usd_per_day: float, usd_per_million: float, capacity_tokens: float) -> float | None:
    tokens = usd_per_day / usd_per_million * 1_000_000
    return tokens if tokens <= capacity_tokens else None


solution(
    "11.break_even",
    break_even,
    unit="tokens",
    cases=((320.0, 9.0, 480e6), (960.0, 0.375, 480e6), (526.98, 6.0, 480e6), (19.32, 0.22, 60e6), (90.0, 1.5, 75e6)),
    wrong={
        "machine's capacity ignored": lambda per_day, per_million, _capacity: per_day / per_million * 1_000_000,
        "capped at the capacity": lambda per_day, per_million, capacity: min(
            per_day / per_million * 1_000_000, capacity
        ),
        "inverted ratio": lambda per_day, per_million, capacity: break_even(per_million, per_day, capacity),
        "an hour's bill compared with a day's": lambda per_day, per_million, capacity: break_even(
            per_day / 24, per_million, capacity
        ),
    },
)


# --- the article's own figures and example ---


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
def figures() -> Figures:
    """The article's figures."""
    return read_yaml(data_path("prices/article.yaml"), Figures)


def question() -> CostSettings:
    """Return the article's own example: a p4d at the article's price and throughput, one mix, nothing added."""
    article = figures()
    label = f"the article's figure ({article.tokens_per_hour:,} tokens an hour on {article.gpus} A100), not measured"
    rate = article.tokens_per_hour / 3600
    return CostSettings(
        tokens_per_day=article.break_even_claude[0],
        input_tokens=1,
        output_tokens=1,
        instance=article.instance,
        usd_per_hour=float(article.usd_per_hour),
        throughput=Throughput(tokens_per_s=rate, counts="total", gpus=article.gpus, gpu="A100", label=label),
        model_gb=0.0,
        api=("article/claude-3.5-sonnet", "article/gpt-4o", "article/gpt-4o-mini"),
        prices_on=date.today(),
    )


def dated_table() -> pd.DataFrame:
    """Return the API prices of the article's time, and how they have changed since."""
    models = dated_models().values()
    return pd.DataFrame(
        {
            "model": [model.name for model in models],
            "USD per 1M input": [float(model.input_usd_per_million) for model in models],
            "USD per 1M output": [float(model.output_usd_per_million) for model in models],
            "on": [str(model.day) for model in models],
            "since then": [model.since for model in models],
        }
    )


def like_with_like(on: date) -> tuple[dict[str, float], float]:
    """Dollars per million tokens, half input and half output: 8B models by provider, and the article's machine, never
    idle."""
    hosted = {
        model.name: float(price_of_request(name, input_tokens=500, output_tokens=500, on=on).usd_per_request * 1000)
        for name, model in known_models().items()
        if "8B" in model.name
    }
    return hosted, float(figures().usd_per_hour * MILLION / figures().tokens_per_hour)


def deciders(swings: Sequence[Swing], share: float) -> str:
    """Summarise the swings of a question in one sentence."""
    moved = [f"{swing.name} ({swing.width:.2f}x)" for swing in swings if swing.width > 1]
    still = [swing.name for swing in swings if swing.width == 1]
    first = f"Between {share:.0%} less and {share:.0%} more, most to least: {', '.join(moved) or 'nothing moves it'}."
    return first + (f" Without effect here: {', '.join(still)}." if still else "")


# --- the article's sums, recomputed: its statement, the sum behind it, and the result ---

# (input tokens, output tokens) of a mix
MIXES: Mapping[str, tuple[int, int]] = {"half and half": (1, 1), "3:1": (3, 1), "output only": (0, 1)}


@dataclass(frozen=True, kw_only=True)
class Sum:
    """One sum of the article: the claim's id, the statement, and the recomputation line by line."""

    claim: str
    says: str
    lines: tuple[str, ...]


def article_usd_per_million(model: str, mix: str) -> Fraction:
    """Return the price of a million tokens at a model of the article's time, for one of MIXES."""
    require(mix in MIXES, f"there is no mix {mix!r}", fix=f"use one of: {', '.join(MIXES)}")
    price, (read, written) = dated_models()[model], MIXES[mix]
    total = price.input_usd_per_million * read + price.output_usd_per_million * written
    return total / (read + written)


def break_even_millions(usd_per_day: Fraction, model: str, mix: str) -> Fraction:
    """Return the million tokens per day for which the API costs as much as machines at `usd_per_day`."""
    return exact(usd_per_day) / article_usd_per_million(model, mix)


def break_evens_by_day() -> dict[str, float]:
    """Million tokens per day against Claude, by the article's prices: for its 8-hour day and for a whole one."""
    days = {"8 h": figures().usd_per_day, "24 h": figures().usd_per_hour * 24}
    claude = "article/claude-3.5-sonnet"
    return {
        f"{hours}, {mix}": float(break_even_millions(usd, claude, mix)) for hours, usd in days.items() for mix in MIXES
    }


def audit_title(bars: Sequence[charts.Bar]) -> str:
    """The finding on the article's break-even."""
    said, least = figures().break_even_claude[0] / MILLION, min(bar.value for bar in bars)
    where = "above" if least > float(said) else "not above"
    said_millions = f"{float(said):g}M"
    return f"Against Claude, every break-even by the article's prices is {where} its {said_millions} (computed)"


def waiting_chart(waits: Mapping[int, Sequence[float]], loads: Sequence[float]) -> charts.Chart:
    """Draw the wait of the unluckiest 1% against the load, by slots; loads with fewer than 1% waiting are omitted."""
    points = [
        charts.LinePoint(load * 100, value, f"{slots} slot{'s' * (slots > 1)}")
        for slots, values in waits.items()
        for load, value in zip(loads, values, strict=True)
        if value > 0
    ]
    title = f"With {max(waits)} slots instead of {min(waits)}, the unluckiest 1% wait less at every load"
    return charts.lines(
        points, title=title, x_title="busy (%)", y_title="wait, in service times (log)", unit="x", log_y=True
    )


def waiting_evidence(*, places: int, peak_factor: float) -> dict[str, dict[str, float]]:
    """Return what Erlang's formula says about the article's 85 percent and its 20% reserve, by claim."""
    busy, spare = float(figures().utilisation), 1 / (1 + float(figures().buffer))
    own = float(question().tokens_per_day or 0) / (24 * figures().tokens_per_hour)

    def waits(load: float) -> dict[str, float]:
        return {"wait_one_place": wait_quantile(1, load), "wait_many_places": wait_quantile(places, load)}

    return {
        "C15": {"article_busy_percent": 100 * own, "places": places, **waits(busy)},
        "C53": {
            "places": places,
            "peak_factor": peak_factor,
            "load_at_peak_percent": 100 * peak_factor * spare,
            **waits(spare),
        },
    }


def least_millions() -> float:
    """The smallest break-even that follows from the article's own prices and its 8-hour day, whatever the mix."""
    models = ("article/claude-3.5-sonnet", "article/gpt-4o")
    return float(min(break_even_millions(figures().usd_per_day, model, mix) for model in models for mix in MIXES))


def article_evidence(today_usd_per_hour: Fraction) -> dict[str, dict[str, float]]:
    """Return the results of the article's prices by claim: dollars, and break-evens in million tokens per day."""
    f = figures()
    claude, gpt, gpt_then = "article/claude-3.5-sonnet", "article/gpt-4o", "dated/gpt-4o-2024-08-06"
    day, usd = f.usd_per_hour * 24, {mix: float(article_usd_per_million(claude, mix)) for mix in MIXES}

    def span(model: str, usd_per_day: Fraction, suffix: str = "") -> dict[str, float]:
        found = [float(break_even_millions(usd_per_day, model, mix)) for mix in MIXES]
        return {f"least_millions{suffix}": min(found), f"most_millions{suffix}": max(found)}

    return {
        "C58": {
            "usd_least": float(dated_models()[claude].input_usd_per_million),
            "usd_half_half": usd["half and half"],
            "usd_most": usd["output only"],
        },
        "C59": {
            "usd_per_hour": float(f.usd_per_hour),
            "usd_eight_hours": float(f.usd_per_hour * f.hours),
            "usd_day": float(day),
            "usd_day_today": float(today_usd_per_hour * 24),
        },
        "C60": span(claude, f.usd_per_day) | span(claude, day, "_day"),
        "C61": span(gpt, f.usd_per_day) | span(gpt_then, f.usd_per_day, "_true_price"),
    }


# Machines with a throughput of their own: the article's p4d (at its price and at the list's), and modelled GPUs.
SURVEYED = ("g6e.xlarge", "rented-h100", "p5.48xlarge", "runpod-h200", "runpod-b200")


def survey(on: date) -> dict[tuple[str, str, str], float | None]:
    """Break-evens of an 8B model in million tokens a day by machine, API and mix; None: hosting never pays."""
    start = question().changed(prices_on=on)
    p4d = {"p4d.24xlarge at $40": start, "p4d.24xlarge": start.changed(usd_per_hour=None)}
    modelled = {
        name: start.changed(instance=name, usd_per_hour=None, throughput=None, model_gb=None) for name in SURVEYED
    }
    apis = ["article/claude-3.5-sonnet", "article/gpt-4o", "article/gpt-4o-mini"]
    apis += [name for name, known in known_models().items() if known.kind == "closed" or "8B" in known.name]
    found: dict[tuple[str, str, str], float | None] = {}
    for (machine, asked), api, (mix, (read, written)) in product((p4d | modelled).items(), apis, MIXES.items()):
        answer = calculate(asked.changed(api=(api,), input_tokens=200 * read, output_tokens=200 * written))
        first = answer.against.break_even.first
        found[machine, api, mix] = None if first is None else float(first / MILLION)
    return found


def audit(today_usd_per_hour: Fraction) -> tuple[Sum, ...]:
    """The article's contradictions, each with the sum that shows it. `today_usd_per_hour`: its machine's price now."""
    f = figures()
    day = f.usd_per_hour * 24
    claude, gpt = "article/claude-3.5-sonnet", "article/gpt-4o"
    machines = math.ceil(Fraction(f.requests_per_s * f.output_tokens * SECONDS_PER_HOUR, f.tokens_per_hour))
    busy = Fraction(f.break_even_claude[0], 24 * f.tokens_per_hour)
    return (
        Sum(
            claim="C58",
            says=f"1M tokens a day through Claude 3.5 Sonnet cost {show_usd(f.api_usd_per_day)}",
            lines=(
                "that is a million input AND a million output tokens: two million",
                *(f"one million, {mix}: {show_usd(article_usd_per_million(claude, mix))}" for mix in MIXES),
            ),
        ),
        Sum(
            claim="C59",
            says=f"{show_usd(f.usd_per_hour)} an hour, divided by {f.hours} hours, is {show_usd(f.usd_per_day)} a day",
            lines=(
                f"{f.usd_per_hour} / {f.hours} = {show_usd(f.usd_per_hour / f.hours)}",
                f"{f.usd_per_hour} x {f.hours} = {show_usd(f.usd_per_hour * f.hours)}: for {f.hours} hours",
                f"{f.usd_per_hour} x 24 = {show_usd(day)}: for a day",
                f"at the listed price {show_usd(today_usd_per_hour)} x 24 = {show_usd(today_usd_per_hour * 24)}",
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
            lines=(
                "three figures for one question, and none of them follows from the prices beside it: the smallest that"
                f" does is {show_number(least_millions())}M, for output tokens and an 8-hour day",
            ),
        ),
        Sum(
            claim="C63",
            says="Claude is the comparison for your own 8B model",
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
                f"/ ({f.tokens_per_hour:,} / 3,600) = {machines} p4d, {machines * f.gpus} GPUs",
                f"{machines} x {show_usd(day)} = {show_usd(machines * day)} a day",
            ),
        ),
        Sum(
            claim="C15",
            says=f"keep the GPUs busy for more than {float(f.utilisation):.0%}",
            lines=(
                f"{f.break_even_claude[0]:,} / (24 x {f.tokens_per_hour:,}) = {float(busy):.2%} "
                "busy in its own example",
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
