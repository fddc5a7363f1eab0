"""Exercises of lab 11: what a day costs, what a mix costs, how many machines, and from when on hosting pays."""

import math

from labkit.teaching.exercises import FunctionExercise, Misconception, ValueExercise, by_id
from labkit.teaching.lab_11_choices import BUSINESS_CASE


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
