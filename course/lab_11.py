"""Exercises of lab 11: what a day costs, what a mix costs, how many machines, and from when on hosting pays."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from labkit.advice.costs.prices import (
    MILLION,
    SECONDS_PER_HOUR,
    dated_models,
    exact,
    figures,
    show_number,
    show_usd,
)
from labkit.errors import UsageError
from labkit.teaching.exercises import ChoiceExercise, FunctionExercise, Misconception, Option, ValueExercise, by_id

BUSINESS_CASE = ChoiceExercise(
    id="11.business_case",
    title="the saving that is not there (a broken business case)",
    prompt="""
A team wants to leave its API. The sheet that everybody likes says:

- traffic: 30M tokens a day in all, in 10 hours of the day, three times the average in the busiest minutes; 9 of 10
  tokens are read, 1 is written
- API: 0.15 and 0.60 dollars for a million read and written; 30M x 0.60 = **18.00 dollars a day**
- own machine: a benchmark with the same mix shows 2,500 tokens a second, read and written; 30M / 2,500 = 12,000 s =
  3.3 hours; 3.3 x 0.80 dollars an hour = **2.67 dollars a day**
- people: "the team does it on the side"

Which of these are faults of the sheet?

- **A** All tokens have the price of written ones.
- **B** The machine is paid for the hours in which it computes, not for those in which it is switched on.
- **C** The throughput counts tokens that are read: it must be divided by ten before it is used for this traffic.
- **D** Whether one machine carries the busiest minutes has not been asked.
- **E** The hours have to be divided by a utilisation of 85 percent, since that is what one aims for.
- **F** Nobody's time is in it.
""",
    starter='faults = None  # letters, such as "BD"',
    answer_name="faults",
    hints=(
        "Do both bills for one day, hour by hour: what is paid at night, and for whom?",
        "A figure that was measured with the traffic's own mix and counted the same way can be used as it is.",
    ),
    options=(
        Option(
            "A",
            "All tokens have the price of written ones.",
            True,
            "one price for all tokens",
            "Something about the API's bill is missing. Which of the two prices do nine of ten tokens have?",
        ),
        Option(
            "B",
            "The machine is paid for the hours in which it computes, not for those in which it is switched on.",
            True,
            "idle hours for nothing",
            "Something about the machine's bill is missing. What does it cost between two requests?",
        ),
        Option(
            "C",
            "The throughput counts tokens that are read: it must be divided by ten before it is used for this traffic.",
            False,
            "the same count converted again",
            "Traffic and benchmark count the same tokens of the same mix: there is nothing to convert.",
        ),
        Option(
            "D",
            "Whether one machine carries the busiest minutes has not been asked.",
            True,
            "the average taken for the peak",
            "Something about time is missing. When do the tokens of a day come?",
        ),
        Option(
            "E",
            "The hours have to be divided by a utilisation of 85 percent, since that is what one aims for.",
            False,
            "a target taken for a fact",
            "How busy the machine is follows from the arrivals and from what it can do. A target changes neither.",
        ),
        Option(
            "F",
            "Nobody's time is in it.",
            True,
            "people for nothing",
            "A cost is missing that no price list has, and for a small service it is the largest one.",
        ),
    ),
)


# --- lab 11 ---


def usd_of_a_shift(usd_per_hour: float, hours: float) -> float:
    return usd_per_hour * hours  # one working day of it


def usd_per_day(usd_per_hour: float) -> float:
    return usd_per_hour * 24  # it is paid while nobody asks, too


DAY = ValueExercise(
    id="11.day",
    title="what a day of the machine costs",
    prompt="""
The article rents a machine for **{usd_per_hour} dollars an hour**, writes "{usd_per_hour} ÷ {hours} hours = {said}
dollars a day", and serves with it around the clock. What does the machine cost a day, in dollars?
""",
    starter="usd_per_day = ...  # dollars",
    answer_name="usd_per_day",
    unit="dollars",
    data={"usd_per_hour": 40, "hours": 8, "said": 320},
    worked=usd_of_a_shift,
    solution=usd_per_day,
    hints=(
        "Dollars an hour times hours are dollars. Which hours does a service run that answers at night, too?",
        "Two mistakes cancel in the article's line for anyone who only looks at the result. Do the sum as it stands.",
    ),
    misconceptions=(
        Misconception(
            "a working day taken for a day",
            "That is the price of a working day. A service that answers around the clock is paid around the clock.",
            (lambda usd_per_hour, hours: usd_per_hour * hours,),
        ),
        Misconception(
            "divided where it has to be multiplied",
            "Dollars an hour divided by hours are dollars an hour, squared hours below: no amount of money. The sign in"
            " the article's line is wrong, and its result is from another sum.",
            (lambda usd_per_hour, hours: usd_per_hour / hours, lambda usd_per_hour: usd_per_hour / 24),
        ),
        Misconception(
            "a month taken for a day",
            "That is a month of hours. Only a day was asked for.",
            (lambda usd_per_hour: usd_per_hour * 730, lambda usd_per_hour: usd_per_hour * 24 * 30),
        ),
    ),
)


def usd_per_million(usd_in: float, usd_out: float, read: int, written: int) -> float:
    return (usd_in * read + usd_out * written) / (read + written)


MIX = FunctionExercise(
    id="11.mix",
    title="what a million tokens of a mix cost",
    prompt="""
An API takes `usd_in` dollars for a million tokens that it reads and `usd_out` for a million that it writes. A request
has `read` tokens in and `written` tokens out. What do **one million tokens** of such requests cost, all of them
counted? The article adds its two prices. Fill the blanks.
""",
    starter="""
def usd_per_million(usd_in, usd_out, read, written):
    of_one_request = usd_in * ... + usd_out * ...  # millionths of a dollar
    return of_one_request / ...
""",
    answer_name="usd_per_million",
    unit="dollars",
    solution=usd_per_million,
    cases=((3.0, 15.0, 1, 1), (3.0, 15.0, 3, 1), (5.0, 15.0, 0, 7), (2.5, 10.0, 900, 100), (0.15, 0.6, 600, 200)),
    hints=(
        "How many tokens does the request have that you have just priced?",
        "With as many read as written the result lies in the middle of the two prices; with written tokens only it is"
        " the second price.",
    ),
    misconceptions=(
        Misconception(
            "the two prices added",
            "The sum of both prices buys a million tokens in and another million out: twice as many as were asked for.",
            (lambda usd_in, usd_out, _read, _written: usd_in + usd_out,),
        ),
        Misconception(
            "the mix left out",
            "The plain middle of the two prices holds for one mix only. Who sends long prompts reads far more than they"
            " write.",
            (lambda usd_in, usd_out, _read, _written: (usd_in + usd_out) / 2,),
        ),
        Misconception(
            "read and written exchanged",
            "The tokens that are read got the price of those that are written.",
            (lambda usd_in, usd_out, read, written: (usd_in * written + usd_out * read) / (read + written),),
        ),
        Misconception(
            "only the written tokens paid",
            "The prompt was forgotten. It is cheaper by the token, but there is more of it.",
            (
                lambda _usd_in, usd_out, read, written: usd_out * written / (read + written),
                lambda _usd_in, usd_out, _read, _written: usd_out,
            ),
        ),
        Misconception(
            "a request taken for a million tokens",
            "This is the price of one request, times a million. A million requests are more than a million tokens.",
            (lambda usd_in, usd_out, read, written: usd_in * read + usd_out * written,),
        ),
    ),
)


def machines(requests_per_s: float, output_tokens: int, tokens_per_s: float, peak: float, buffer: float) -> int:
    import math

    return math.ceil(requests_per_s * output_tokens * peak * (1 + buffer) / tokens_per_s)


MACHINES = FunctionExercise(
    id="11.machines",
    title="how many machines",
    prompt="""
On average `requests_per_s` requests come in a second; in the busiest minutes `peak` times as many. Each has
`output_tokens` tokens written, and one machine writes `tokens_per_s` in all. A share `buffer` of the peak is to be held
in reserve above it. How many machines are rented?
""",
    starter="""
def machines(requests_per_s, output_tokens, tokens_per_s, peak, buffer):
    wanted = requests_per_s * output_tokens  # tokens a second, on average
    return wanted * ...
""",
    answer_name="machines",
    unit="machines",
    solution=machines,
    cases=(
        (2, 200, 500, 2, 0.2),
        (8, 200, 500, 2, 0.2),
        (3, 150, 500, 3, 0.0),
        (1, 100, 400, 1, 0.0),
        (1, 210, 200, 1, 0.5),
    ),
    hints=(
        "The rate that has to be carried is not the average one.",
        "Nobody rents three quarters of a machine.",
    ),
    misconceptions=(
        Misconception(
            "the average taken for the peak",
            "Your machines carry the average. In the busiest minutes more comes, and the queue grows and grows.",
            (
                lambda requests_per_s, output_tokens, tokens_per_s, _peak, buffer: math.ceil(
                    requests_per_s * output_tokens * (1 + buffer) / tokens_per_s
                ),
                lambda requests_per_s, output_tokens, tokens_per_s, _peak, _buffer: math.ceil(
                    requests_per_s * output_tokens / tokens_per_s
                ),
            ),
        ),
        Misconception(
            "no reserve",
            "The peak is carried, and nothing is held in reserve above it.",
            (
                lambda requests_per_s, output_tokens, tokens_per_s, peak, _buffer: math.ceil(
                    requests_per_s * output_tokens * peak / tokens_per_s
                ),
            ),
        ),
        Misconception(
            "rounded down or to the nearest",
            "A part of a machine was cut off. What it would have answered is left to queue.",
            (
                lambda requests_per_s, output_tokens, tokens_per_s, peak, buffer: math.floor(
                    requests_per_s * output_tokens * peak * (1 + buffer) / tokens_per_s
                ),
                lambda requests_per_s, output_tokens, tokens_per_s, peak, buffer: round(
                    requests_per_s * output_tokens * peak * (1 + buffer) / tokens_per_s
                ),
            ),
        ),
        Misconception(
            "parts of machines rented",
            "The number is not a whole one. Machines come whole.",
            (
                lambda requests_per_s, output_tokens, tokens_per_s, peak, buffer: (
                    requests_per_s * output_tokens * peak * (1 + buffer) / tokens_per_s
                ),
            ),
        ),
        Misconception(
            "the reserve taken off the demand",
            "The reserve makes your demand smaller. It comes on top of the peak.",
            (
                lambda requests_per_s, output_tokens, tokens_per_s, peak, buffer: math.ceil(
                    requests_per_s * output_tokens * peak * (1 - buffer) / tokens_per_s
                ),
            ),
        ),
    ),
)


def break_even(usd_per_day: float, usd_per_million: float, capacity_tokens: float) -> float | None:
    tokens = usd_per_day / usd_per_million * 1_000_000
    return tokens if tokens <= capacity_tokens else None


BREAK_EVEN = FunctionExercise(
    id="11.break_even",
    title="from when on hosting pays",
    prompt="""
One machine costs `usd_per_day`, whatever it does, and gets at most `capacity_tokens` tokens done in a day. The API
takes `usd_per_million` for a million. From how many **tokens a day** on is the machine the cheaper one? If it would
have to do more than it can, the answer is `None`: this machine never gets there. (Several machines at once are the
calculator's business.)
""",
    starter="""
def break_even(usd_per_day, usd_per_million, capacity_tokens):
    tokens = ...
    return tokens if ... else None
""",
    answer_name="break_even",
    unit="tokens",
    solution=break_even,
    cases=((320.0, 9.0, 480e6), (960.0, 0.375, 480e6), (526.98, 6.0, 480e6), (19.32, 0.22, 60e6), (90.0, 1.5, 60e6)),
    hints=(
        "At the break-even both bills are the same. What does the API's bill say for so many tokens?",
        "A machine that is full cannot earn its price by doing more.",
    ),
    misconceptions=(
        Misconception(
            "a machine without limits",
            "Some of your volumes are more than the machine can do in a day. What it cannot do costs another machine.",
            (lambda usd_per_day, usd_per_million, _capacity: usd_per_day / usd_per_million * 1_000_000,),
        ),
        Misconception(
            "stopped at the capacity",
            "Where the machine is full before it has paid off, it does not pay off when it is full, either.",
            (lambda usd_per_day, usd_per_million, capacity: min(usd_per_day / usd_per_million * 1_000_000, capacity),),
        ),
        Misconception(
            "upside down",
            "The dearer the API, the sooner hosting pays. Yours pays later.",
            (
                lambda usd_per_day, usd_per_million, capacity: (
                    tokens if (tokens := usd_per_million / usd_per_day * 1_000_000) <= capacity else None
                ),
            ),
        ),
        Misconception(
            "an hour's bill against a day's",
            "The machine's day was divided by its hours. Both bills have to be for the same time.",
            (
                lambda usd_per_day, usd_per_million, capacity: (
                    tokens if (tokens := usd_per_day / 24 / usd_per_million * 1_000_000) <= capacity else None
                ),
            ),
        ),
    ),
)

EXERCISES = by_id([DAY, MIX, MACHINES, BREAK_EVEN, BUSINESS_CASE])


# --- the article's sums, recomputed: what it says, the sum behind it, and what comes out ---


# (tokens read, tokens written) of a mix
MIXES: Mapping[str, tuple[int, int]] = {"half and half": (1, 1), "3:1": (3, 1), "written only": (0, 1)}


@dataclass(frozen=True, kw_only=True)
class Sum:
    """One sum of the article: the claim's id, what it says, and lines of what it comes to."""

    claim: str
    says: str
    lines: tuple[str, ...]


def article_usd_per_million(model: str, mix: str) -> Fraction:
    """What a million tokens of a mix cost at a model of the article's time, by one of MIXES."""
    if mix not in MIXES:
        raise UsageError(f"there is no mix {mix!r}", remedy=f"use one of: {', '.join(MIXES)}")
    price, (read, written) = dated_models()[model], MIXES[mix]
    total = price.input_usd_per_million * read + price.output_usd_per_million * written
    return total / (read + written)


def break_even_millions(usd_per_day: Fraction, model: str, mix: str) -> Fraction:
    """Million tokens a day that cost as much at the API as machines that cost `usd_per_day`, whatever is served."""
    return exact(usd_per_day) / article_usd_per_million(model, mix)


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
