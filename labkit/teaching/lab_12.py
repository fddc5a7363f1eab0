"""Exercises of lab 12: from a step to a capacity, to a fleet, to a share of good requests, to a bill.

The plan that is to be reviewed stands in `lab_12_choices`.
"""

import math
from collections.abc import Sequence
from statistics import fmean

from labkit.teaching.exercises import FunctionExercise, Misconception, by_id
from labkit.teaching.lab_12_choices import REVIEW


def alone_per_s(step_s: float, prompt_tokens: int, prefill_s: float, output_tokens: int) -> float:
    return 1 / (prompt_tokens * prefill_s + (output_tokens - 1) * step_s)


def requests_per_s(places: int, step_s: float, prompt_tokens: int, prefill_s: float, output_tokens: int) -> float:
    cycle_s = places * prompt_tokens * prefill_s + (output_tokens - 1) * step_s
    return places / cycle_s


CAPACITY = FunctionExercise(
    id="12.capacity",
    title="what a full replica finishes",
    prompt="""
A replica holds `places` requests, and all places are taken all the time. A step, one token for each of them, takes
`step_s`. A prompt of `prompt_tokens` is read in `prefill_s` a token, and meanwhile **nobody** gets a token. The first
of the `output_tokens` comes with the reading. The example is one request alone. Fill the blanks: requests a second.
""",
    starter="""
def requests_per_s(places, step_s, prompt_tokens, prefill_s, output_tokens):
    cycle_s = ... * prompt_tokens * prefill_s + (output_tokens - 1) * step_s
    return ... / cycle_s
""",
    answer_name="requests_per_s",
    unit="requests/s",
    worked=alone_per_s,
    solution=requests_per_s,
    cases=((8, 0.085, 30, 0.0025, 12), (4, 0.07, 200, 0.003, 50), (16, 0.12, 10, 0.001, 5)),
    hints=(
        "While one request lives, every other place changes hands once: how many prompts are read in that time?",
        "In one cycle each place finishes one request.",
    ),
    misconceptions=(
        Misconception(
            "only one's own prompt waited for",
            "The prompts of the others are read while this request is under way, and it stands still meanwhile.",
            (lambda n, s, p, r, m: n / (p * r + (m - 1) * s),),
        ),
        Misconception(
            "one request at a time",
            "This is what one place finishes. The others finish something in the same time.",
            (
                lambda n, s, p, r, m: 1 / (n * p * r + (m - 1) * s),
                lambda _n, s, p, r, m: 1 / (p * r + (m - 1) * s),
            ),
        ),
        Misconception(
            "prompts read for nothing",
            "This leaves the reading out. With short answers it is a good part of the work.",
            (lambda n, s, _p, _r, m: n / ((m - 1) * s),),
        ),
        Misconception(
            "the first token paid twice",
            "The first token comes out of the reading: only those after it take a step.",
            (lambda n, s, p, r, m: n / (n * p * r + m * s),),
        ),
        Misconception(
            "tokens taken for requests",
            "This is tokens a second. A request is done when it has all of its own.",
            (lambda n, s, _p, _r, _m: n / s, lambda n, s, p, r, m: n * m / (n * p * r + (m - 1) * s)),
        ),
    ),
)


def replicas(rates: Sequence[float], per_replica: float, most_busy: float) -> int:
    import math

    return math.ceil(max(rates) / (per_replica * most_busy))


REPLICAS = FunctionExercise(
    id="12.replicas",
    title="a fleet for the whole day (from nothing)",
    prompt="""
`rates` are the requests a second of each hour of the day. A full replica finishes `per_replica` requests a second. To
keep the promise no replica may be busier than `most_busy` (0.8 is 80%) in any hour. The fleet stays the same all day.
Write `replicas(rates, per_replica, most_busy)`.
""",
    starter="""
def replicas(rates, per_replica, most_busy): ...  # your code
""",
    answer_name="replicas",
    unit="replicas",
    solution=replicas,
    cases=(
        ([10.0, 40.0, 91.0, 55.0], 6.0, 0.8),
        ([3.0, 5.0], 7.0, 0.5),
        ([100.0, 900.0, 400.0], 6.5, 0.9),
        ([25.0, 25.0, 31.0], 4.0, 0.7),
    ),
    hints=(
        "In which hour is the promise hardest to keep?",
        "If a replica may only do four fifths of what it can, are more of them needed, or fewer?",
    ),
    misconceptions=(
        Misconception(
            "sized on the mean",
            "That fleet carries the day's mean. Half of the day has more than that, and that is when people come.",
            (
                lambda rates, one, most: math.ceil(fmean(rates) / (one * most)),
                lambda rates, one, _most: math.ceil(fmean(rates) / one),
            ),
        ),
        Misconception(
            "busy all of the time",
            "Every replica of this fleet is as good as full in the busiest hour: whoever arrives waits for a place.",
            (lambda rates, one, _most: math.ceil(max(rates) / one),),
        ),
        Misconception(
            "headroom the wrong way round",
            "With this, a stricter limit gives a smaller fleet.",
            (lambda rates, one, most: math.ceil(max(rates) * most / one),),
        ),
        Misconception(
            "rounded down",
            "A part of a replica is missing, and the limit is broken in the busiest hour.",
            (lambda rates, one, most: math.floor(max(rates) / (one * most)),),
        ),
        Misconception(
            "a part of a replica",
            "Nobody rents a part of a replica.",
            (lambda rates, one, most: max(rates) / (one * most),),
        ),
        Misconception(
            "hours added up",
            "Rates of different hours do not come at the same time.",
            (lambda rates, one, most: math.ceil(sum(rates) / (one * most)),),
        ),
    ),
)


def good_share(hours: Sequence[tuple[int, int]]) -> float:
    return sum(good for _, good in hours) / sum(requests for requests, _ in hours)


SHARE = FunctionExercise(
    id="12.share",
    title="good requests of a day",
    prompt="""
`hours` has, for each hour, how many requests came and how many of them were good: `[(requests, good), ...]`. The
promise is on the share of good ones among **all requests of the day**. Fill the blanks.
""",
    starter="""
def good_share(hours):
    return sum(... for requests, good in hours) / sum(... for requests, good in hours)
""",
    answer_name="good_share",
    unit="",
    solution=good_share,
    cases=(
        ([(1000, 1000), (9000, 7200)],),
        ([(200, 200), (400, 396), (4000, 3000)],),
        ([(50, 50), (60, 60), (70, 63)],),
    ),
    hints=(
        "A user is one request. In which hour do most of them come?",
        "Try it with an hour in which a single request came, and went well.",
    ),
    misconceptions=(
        Misconception(
            "hours averaged in place of requests",
            "A quiet hour counts here as much as a busy one. Most users come in the busy one.",
            (lambda hours: fmean(good / requests for requests, good in hours),),
        ),
        Misconception(
            "the worst hour taken for the day",
            "This is the worst hour: a stricter promise than the one that was given.",
            (lambda hours: min(good / requests for requests, good in hours),),
        ),
        Misconception(
            "the mean hour taken for the day",
            "This looks at one hour with a middling load. Requests fail in the others.",
            (lambda hours: sorted(good / requests for requests, good in hours)[len(hours) // 2],),
        ),
        Misconception(
            "bad ones counted",
            "This is the share of those that were not good.",
            (lambda hours: 1 - good_share(hours),),
        ),
    ),
)


def waiting(rate: float, running: int, per_replica: float, start_s: float) -> float:
    return max(0.0, rate - running * per_replica) * start_s


WAITING = FunctionExercise(
    id="12.waiting",
    title="while the autoscaler starts one",
    prompt="""
Traffic has jumped to `rate` requests a second, and no more. `running` replicas each finish `per_replica` a second; more
have been ordered and take `start_s` to start. Nobody waited before the jump. How many requests wait at the moment at
which the new ones are ready? Fill the blanks.
""",
    starter="""
def waiting(rate, running, per_replica, start_s):
    more_than_they_finish = rate - ...
    return max(0.0, more_than_they_finish) * ...
""",
    answer_name="waiting",
    unit="requests",
    solution=waiting,
    cases=((50.0, 6, 6.5, 50.0), (12.0, 4, 5.0, 30.0), (900.0, 100, 6.0, 120.0), (20.0, 1, 6.0, 8.0)),
    hints=(
        "What do the replicas that run already finish meanwhile?",
        "If those that run keep up with the traffic, does anybody wait?",
    ),
    misconceptions=(
        Misconception(
            "autoscaling taken for headroom",
            "A replica that was ordered serves nobody yet: requests come all the time until it is ready.",
            (lambda _rate, _running, _one, _start: 0.0,),
        ),
        Misconception(
            "those that run forgotten",
            "This lets everybody wait who comes. The replicas that run go on finishing requests.",
            (lambda rate, _running, _one, start: rate * start,),
        ),
        Misconception(
            "the new one counted too early",
            "This lets a further replica work while it is still being started.",
            (lambda rate, running, one, start: max(0.0, rate - (running + 1) * one) * start,),
        ),
        Misconception(
            "fewer than nobody",
            "Where the replicas keep up, this has a negative number of requests wait.",
            (lambda rate, running, one, start: (rate - running * one) * start,),
        ),
        Misconception(
            "a rate taken for a number",
            "This is by how much the queue grows in a second.",
            (lambda rate, running, one, _start: max(0.0, rate - running * one),),
        ),
    ),
)


def usd_per_million(replicas: Sequence[int], usd_per_hour: float, rates: Sequence[float], tokens: float) -> float:
    usd = sum(replicas) * usd_per_hour
    return 1e6 * usd / (sum(rates) * 3600 * tokens)


BILL = FunctionExercise(
    id="12.bill",
    title="a million tokens of a whole day (from nothing)",
    prompt="""
`replicas` has how many run in each hour, `rates` the requests a second in the same hours. A replica costs
`usd_per_hour`, an answer has `tokens` tokens. Write `usd_per_million(replicas, usd_per_hour, rates, tokens)`: what a
million tokens of the day cost.
""",
    starter="""
def usd_per_million(replicas, usd_per_hour, rates, tokens): ...  # your code
""",
    answer_name="usd_per_million",
    unit="dollars",
    solution=usd_per_million,
    cases=(
        ([2, 5, 9], 0.1, [10.0, 31.0, 60.0], 12.0),
        ([9, 9, 9], 0.1, [10.0, 31.0, 60.0], 12.0),
        ([4, 1], 2.5, [20.0, 1.0], 200.0),
    ),
    hints=(
        "All dollars of the day over all tokens of the day.",
        "A rate is by the second, a price by the hour.",
    ),
    misconceptions=(
        Misconception(
            "the peak's price taken for the day's",
            "This prices the hour in which the replicas are busiest. At night they are paid for, and idle.",
            (
                lambda n, usd, rates, tokens: 1e6 * max(n) * usd / (max(rates) * 3600 * tokens),
                lambda n, usd, rates, tokens: 1e6 * n[rates.index(max(rates))] * usd / (max(rates) * 3600 * tokens),
            ),
        ),
        Misconception(
            "hours averaged in place of tokens",
            "The mean of the hours' prices lets the few tokens of a quiet hour count like the many of a busy one.",
            (
                lambda n, usd, rates, tokens: fmean(
                    1e6 * one * usd / (rate * 3600 * tokens) for one, rate in zip(n, rates, strict=True)
                ),
            ),
        ),
        Misconception(
            "seconds taken for hours",
            "The rates are by the second, and an hour has more than one of them.",
            (lambda n, usd, rates, tokens: 1e6 * sum(n) * usd / (sum(rates) * tokens),),
        ),
        Misconception(
            "requests taken for tokens",
            "This is what a million requests cost.",
            (lambda n, usd, rates, _tokens: 1e6 * sum(n) * usd / (sum(rates) * 3600),),
        ),
        Misconception(
            "one replica paid",
            "This pays for a single replica around the clock.",
            (lambda n, usd, rates, tokens: 1e6 * len(n) * usd / (sum(rates) * 3600 * tokens),),
        ),
    ),
)

EXERCISES = by_id([CAPACITY, REPLICAS, SHARE, WAITING, BILL, REVIEW])
