"""Exercises of lab 12: from a step to a capacity, to a fleet, to a share of good requests, to a bill.

The plan that is to be reviewed stands in `lab_12_choices`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from random import Random
from statistics import fmean, median
from typing import Any

from labkit import errors
from labkit.advice.costs import calculate, settings_from, show_usd
from labkit.advice.costs.machines import Fleet as PaidFleet
from labkit.advice.costs.prices import exact
from labkit.errors import UsageError
from labkit.experiments import Ratio
from labkit.load import LoadResult, RequestRecord
from labkit.load.metrics import Slo
from labkit.load.workloads import poisson_arrivals_s
from labkit.teaching.exercises import ChoiceExercise, FunctionExercise, Misconception, Option, by_id
from labkit.theory.queues import Arrival, Balancer, Served, Service, replicas_needed, serve_all
from labkit.words import amount, share

REVIEW = ChoiceExercise(
    id="12.review",
    title="the plan that is to be signed (a broken plan)",
    prompt="""
A colleague's plan, with a promise on the p99 of the first token:

    Traffic: 3,628,800 requests a day, which is 42 a second.
    A replica finishes 6 a second, in a closed loop with 8 clients. So we take 7 replicas.
    An open loop with 40 requests had a p99 of 0.8 s; we promise 1 s.
    If more come than planned, the autoscaler starts replicas; each takes a minute to start.
    Our model of the queue agreed with the server within 3% at half load. We trust it for the peak.
    A million tokens cost the price of an hour over what a full replica writes in an hour.

Which of these are true?

- **A** 42 a second is the day's mean: the peak is above it, and the plan does not say how far.
- **B** Even at the mean the 7 replicas would have no time left at all: the queue would not end.
- **C** A closed loop tells nothing about what a replica can finish.
- **D** The p99 of 40 requests is about the slowest of them: no promise rests on it.
- **E** Thanks to the autoscaler no headroom is needed.
- **F** Agreement at half load says little about the peak: hardly anybody waits at half load.
- **G** A million tokens will cost more than that: the replicas are paid for when they are idle, too.
""",
    starter='truths = None  # letters, such as "BD"',
    answer_name="truths",
    hints=(
        "Go line by line: which number is a mean, which one is a rate that only a full replica has?",
        "Divide the traffic by what the fleet can finish. What did the model have to get right in this lab, and where?",
    ),
    options=(
        Option(
            "A",
            "42 a second is the day's mean: the peak is above it.",
            True,
            "sized on the mean",
            "Something about the first line is missing: do as many come at night as at noon?",
        ),
        Option(
            "B",
            "Even at the mean the 7 replicas would have no time left at all.",
            True,
            "busy all of the time",
            "Something about the second line is missing: divide the traffic by what they finish together.",
        ),
        Option(
            "C",
            "A closed loop tells nothing about what a replica can finish.",
            False,
            "the closed loop thrown away",
            "It tells exactly that. What it cannot tell is how long anybody waits whose arrival nobody planned.",
        ),
        Option(
            "D",
            "The p99 of 40 requests is about the slowest of them.",
            True,
            "a p99 from a handful",
            "Something about the third line is missing: how many of the requests are beyond that p99?",
        ),
        Option(
            "E",
            "Thanks to the autoscaler no headroom is needed.",
            False,
            "autoscaling taken for headroom",
            "What comes until a new replica is ready is carried by those that run, or it waits.",
        ),
        Option(
            "F",
            "Agreement at half load says little about the peak.",
            True,
            "a model trusted where it was not tried",
            "Something about the model is missing: what is hard to predict happens where the queue is.",
        ),
        Option(
            "G",
            "A million tokens will cost more than that.",
            True,
            "priced as if never idle",
            "Something about the last line is missing: in which hours are the replicas full?",
        ),
    ),
)


# --- lab 12 ---


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


# --- how many replicas keep a promise, by the queueing model ---


@dataclass(frozen=True, kw_only=True)
class Promise:
    """`share` of all requests have their first token within `ttft_s` and then each token within `tpot_s`, on average
    over the answer. Seconds, from the moment at which a request is due."""

    ttft_s: float
    tpot_s: float
    share: float

    def __post_init__(self) -> None:
        errors.above_zero("slo_ttft_s", self.ttft_s, unit="seconds")
        errors.above_zero("slo_tpot_s", self.tpot_s, unit="seconds")
        if not 0 < self.share < 1:
            raise UsageError(
                f"slo_share is {self.share:g}", remedy="promise a share above 0 and below 1: nobody can promise all"
            )

    @property
    def slo(self) -> Slo:
        """What each single request is held to."""
        return Slo(ttft_s=self.ttft_s, tpot_s=self.tpot_s)

    def holds(self, served: Served) -> bool:
        """Whether a request of the model was good."""
        return served.ttft_s <= self.ttft_s and (served.tpot_s or 0.0) <= self.tpot_s


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """`replicas` for `rate` requests a second. `kept` is the share of good requests in the simulation; with
    `keeps` false no number of replicas keeps the promise, and the fleet is the smallest one whose queue ends."""

    rate: float
    replicas: int
    busy: float
    """The rate over what all replicas could finish."""
    kept: float
    keeps: bool


Traffic = Callable[[float], Sequence[Arrival]]
"""The arrivals of a simulation, by their rate."""


def traffic_like(records: Sequence[RequestRecord], *, seconds: float, seed: int = 0) -> Traffic:
    """Poisson traffic of `seconds` whose requests are drawn from those that a server answered, tokens in and out.

    At least 500 requests, however low the rate. UsageError when none was answered."""
    mix = [(one.input_tokens or 0, one.output_tokens or 1) for one in records if one.ok]
    if not mix:
        raise UsageError(f"none of {len(records)} requests was answered", remedy="look into the server's log")

    def traffic(rate: float) -> tuple[Arrival, ...]:
        rng = Random(f"mix/{seed}")
        times = poisson_arrivals_s(max(500, math.ceil(rate * seconds)), rate=rate, seed=seed)
        drawn = [rng.choice(mix) for _ in times]
        return tuple(
            Arrival(at_s=at, prompt_tokens=read, output_tokens=written)
            for at, (read, written) in zip(times, drawn, strict=True)
        )

    return traffic


def fleet(
    service: Service,
    traffic: Traffic,
    rate: float,
    promise: Promise,
    *,
    balancer: Balancer = "two_choices",
    most_busy: float = 1.0,
    seed: int = 0,
) -> Fleet:
    """The smallest fleet that keeps the promise at `rate`.

    None is considered that could not finish what comes, or that would be busier than `most_busy`: a simulation is
    short, and a queue that never ends, or hardly, may look short in it."""
    arrivals = traffic(rate)
    capacity = capacity_per_s(service, arrivals)
    least = max(math.floor(rate / capacity) + 1, math.ceil(rate / (capacity * most_busy)))
    try:
        found = replicas_needed(
            service,
            arrivals,
            promise.holds,
            share=promise.share,
            balancer=balancer,
            at_least=least,
            at_most=4 * least + 16,
            seed=seed,
        )
    except UsageError:
        found = least
    kept = share_kept(service, arrivals, promise, replicas=found, balancer=balancer, seed=seed)
    return Fleet(rate=rate, replicas=found, busy=rate / (found * capacity), kept=kept, keeps=kept >= promise.share)


def share_kept(
    service: Service,
    arrivals: Sequence[Arrival],
    promise: Promise,
    *,
    replicas: int = 1,
    balancer: Balancer = "two_choices",
    seed: int = 0,
) -> float:
    """The share of the arrivals that a fleet of this size serves well."""
    served = serve_all(service, arrivals, replicas=replicas, balancer=balancer, seed=seed)
    return sum(map(promise.holds, served)) / len(served)


def capacity_per_s(service: Service, arrivals: Sequence[Arrival]) -> float:
    """Requests a second that one full replica finishes, of requests like these."""
    return service.capacity_per_s(
        prompt_tokens=sum(one.prompt_tokens for one in arrivals) / len(arrivals),
        output_tokens=sum(one.output_tokens for one in arrivals) / len(arrivals),
    )


# --- a day of traffic: its curve, the replicas of each hour, and what they cost ---


HOURS = 24
BUSIEST_HOUR = 14


@dataclass(frozen=True, kw_only=True)
class Hour:
    """An hour of the day, its mean rate (requests a second) and the replicas that keep the promise in it."""

    hour: int
    rate: float
    replicas: int


def day(peak_rate: float, *, night_share: float) -> tuple[float, ...]:
    """24 rates: a cosine from `night_share` of the peak, at two in the night, to the peak at two in the afternoon.

    An assumption; take your own log's counts where you have them."""
    if peak_rate <= 0 or not 0 < night_share <= 1:
        raise UsageError(
            f"a day with a peak of {peak_rate:g} requests/s and a night of {night_share:g} of it is none",
            remedy="a peak above 0, and a share above 0 and up to 1",
        )
    wave = [(1 + math.cos(2 * math.pi * (hour - BUSIEST_HOUR) / HOURS)) / 2 for hour in range(HOURS)]
    return tuple(peak_rate * (night_share + (1 - night_share) * height) for height in wave)


def day_of_replicas(rates: Sequence[float], fleets: Sequence[Fleet]) -> tuple[Hour, ...]:
    """The replicas of each hour: between two simulated rates on the line between their fleets, rounded up.

    UsageError for a rate that lies outside of those simulated: a line would go on where no queue does."""
    known = sorted(fleets, key=lambda one: one.rate)
    hours = []
    for hour, rate in enumerate(rates):
        if not known or not known[0].rate * (1 - 1e-9) <= rate <= known[-1].rate * (1 + 1e-9):
            raise UsageError(f"no fleet was simulated around {rate:g} requests/s", remedy="simulate the day's extremes")
        hours.append(Hour(hour=hour, rate=rate, replicas=_between(known, rate)))
    return tuple(hours)


def _between(known: Sequence[Fleet], rate: float) -> int:
    right = next((one for one in known if one.rate >= rate * (1 - 1e-9)), known[-1])
    left = next((one for one in reversed(known) if one.rate <= rate * (1 + 1e-9)), known[0])
    if right.rate <= left.rate:
        return max(left.replicas, right.replicas)
    along = (rate - left.rate) / (right.rate - left.rate)
    return math.ceil(left.replicas + along * (right.replicas - left.replicas) - 1e-9)


def bill_usd(replicas: Sequence[int], usd_per_hour: float) -> Fraction:
    """What a replica count for each hour costs, to the fraction of a cent."""
    return sum(replicas) * exact(usd_per_hour)


def fleet_per_day(
    rates: Sequence[float],
    *,
    prompt_tokens: float,
    output_tokens: float,
    tokens_per_s: float,
    usd_per_hour: float,
    buffer: float,
) -> PaidFleet:
    """The cost calculator's answer (lab 11) for the same day: it knows capacity, peak and a buffer, and no queue."""
    mean = sum(rates) / len(rates)
    settings = settings_from(
        {
            "requests_per_s": mean,
            "peak_factor": max(rates) / mean,
            "buffer": buffer,
            "input_tokens": max(1, round(prompt_tokens)),
            "output_tokens": max(1, round(output_tokens)),
            "instance": "own",
            "usd_per_hour": usd_per_hour,
            "throughput_tokens_per_s": tokens_per_s,
            "throughput_counts": "output",
            "engineering_hours_per_month": 0,  # the machines alone, as in `bill_usd`
            "model_gb": 0,
        }
    )
    return calculate(settings).hosted


# --- note ---


NOT_MODELLED = (
    "a KV cache that fills up, prefixes that are found again, a prompt read in chunks",
    "failures, releases, and the time in which a new replica starts",
    "the network and the balancer's own time",
    "traffic that comes in bursts: arrivals were taken as independent of each other (Poisson) within an hour",
)


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A prediction of the learner's beside what was found, both in words."""

    question: str
    guess: str
    found: str


def guesses_of(predictions: Sequence[Mapping[str, Any]]) -> tuple[Guess, ...]:
    """A record's predictions in words, those that were made."""
    return tuple(
        Guess(
            question=one["question"],
            guess=_words(one["guess"], one["unit"], one["confidence"]),
            found=_words(one["measured"], one["unit"]),
        )
        for one in predictions
        if one["guess"] is not None
    )


def _words(value: float | str, unit: str | None, confidence: float | None = None) -> str:
    text = value if isinstance(value, str) else amount(value, unit)
    return text if confidence is None else f"{text} ({share(confidence)} sure)"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a note is made of. `measured`: (load, share of good requests, the same by the model) of the real replica.

    `error`: what requests took over what the model says, of each load. `pessimistic`: the fleet for the peak if the
    model is as far off as it was here. `by_hour_usd` and `all_day_usd`: a day's bill of a fleet that follows the hours,
    and of one for the peak around the clock.
    """

    decision: str
    machine: str
    stack: str
    command: str
    promise: Promise
    service: Service
    capacity_per_s: float
    measured: Sequence[tuple[float, float, float]]
    error: Sequence[Ratio]
    peak: Fleet
    pessimistic: Fleet
    balancers: Sequence[tuple[str, Fleet]]
    usd_per_hour: float
    by_hour_usd: Fraction
    all_day_usd: Fraction
    usd_per_million_tokens: Fraction
    start_s: float
    guesses: Sequence[Guess] = ()
    solved: Sequence[str] = ()
    unsolved: Sequence[str] = ()


def design_note(facts: Facts) -> str:
    """The note as Markdown."""
    parts = (
        ("Decision", _decision(facts)),
        ("Promise", [_promise(facts.promise)]),
        ("What one replica does", _replica(facts)),
        ("How far the model can be trusted", _trust(facts)),
        ("The fleet", _fleet(facts)),
        ("The bill", _bill(facts)),
        ("Expected and found", [f"{one.question} Expected: {one.guess}. Found: {one.found}." for one in facts.guesses]),
        ("Not in these numbers", [f"{one}." for one in (*NOT_MODELLED, *_unsolved(facts))]),
    )
    lines = ["# Design note", "", f"Measured on {facts.machine}."]
    for title, entries in parts:
        found = list(entries)
        if found:
            lines += ["", f"## {title}", "", *(f"- {one[:1].upper()}{one[1:]}" for one in found)]
    return "\n".join(lines) + "\n"


def _decision(facts: Facts) -> Iterator[str]:
    yield facts.decision.strip() or (
        f"{facts.peak.replicas:,} replicas at the peak of {facts.peak.rate:,.0f} requests/s, as {facts.stack}."
    )
    yield f"Each replica: `{facts.command}`."
    if not facts.peak.keeps:
        yield "**The promise is not kept by any number of these replicas**: loosen it, or take a faster one."


def _promise(promise: Promise) -> str:
    return (
        f"{promise.share:.0%} of all requests: the first token within {promise.ttft_s:g} s, then each within"
        f" {1000 * promise.tpot_s:g} ms."
    )


def _replica(facts: Facts) -> Iterator[str]:
    steps = ", ".join(f"{n}: {1000 * seconds:.0f} ms" for n, seconds in sorted(facts.service.step_s.items()))
    yield f"A decode step by the requests in it: {steps}; a prompt token: {_milli(facts.service.prefill_s_per_token)}."
    yield f"Full, with {facts.service.places} requests: {facts.capacity_per_s:.2f} requests/s."
    for load, good, modelled in facts.measured:
        yield f"At {load:.0%} of that {good:.0%} of the requests were good; the model said {modelled:.0%}."


def _milli(seconds: float) -> str:
    return f"{1000 * seconds:.2g} ms"


def _trust(facts: Facts) -> Iterator[str]:
    for (load, _, _), error in zip(facts.measured, facts.error, strict=True):
        yield (
            f"At {load:.0%} of the capacity requests took {error.value:.2f} times what the model says"
            f" ({error.low:.2f} to {error.high:.2f}, {error.pairs} requests)."
        )
    yield "Beyond one replica nothing was measured: the fleet is the model's."


def _fleet(facts: Facts) -> Iterator[str]:
    peak = facts.peak
    yield f"{peak.replicas:,} replicas at the peak, {peak.busy:.0%} busy; {peak.kept:.1%} of the requests good."
    if facts.pessimistic.replicas != peak.replicas:
        yield f"{facts.pessimistic.replicas:,} if real replicas are as much slower than the model as here."
    yield from _balancers(facts)
    yield f"A replica took {facts.start_s:.0f} s to start: what comes in that time is carried by those that run."


def _balancers(facts: Facts) -> Iterator[str]:
    for rate in dict.fromkeys(one.rate for _, one in facts.balancers):
        sizes = [f"{name.replace('_', ' ')} {one.replicas}" for name, one in facts.balancers if one.rate == rate]
        yield f"By balancer, at {rate:,.0f} requests/s: {', '.join(sizes)}."


def _bill(facts: Facts) -> Iterator[str]:
    price = f"{show_usd(Fraction(str(facts.usd_per_hour)))} an hour and replica (entered, not looked up)"
    yield f"{show_usd(facts.by_hour_usd)} a day if the fleet follows the hours, at {price}."
    yield f"{show_usd(facts.all_day_usd)} a day for the peak's fleet around the clock."
    yield f"{show_usd(facts.usd_per_million_tokens)} for a million tokens that were asked for, the idle hours paid."


def _unsolved(facts: Facts) -> Iterator[str]:
    if facts.unsolved:
        yield f"Steps of this plan that its author has not done by hand yet: {', '.join(facts.unsolved)}"


# --- replica ---


@dataclass(frozen=True, kw_only=True)
class Level:
    """What a closed loop with `clients` says of a replica (seconds; `tpot_s` is what a user sees, prompts included)."""

    clients: int
    step_s: float
    prefill_s_per_token: float
    tpot_s: float
    e2e_s: float


def check_plan(clients: Sequence[int], shares: Sequence[float]) -> None:
    """Refuses levels from which no service can be made, and loads that validate nothing. UsageError."""
    if len(clients) < 2 or clients[0] != 1 or list(clients) != sorted(set(clients)):
        raise UsageError(
            f"clients is {list(clients)}: a service is measured alone and with others",
            remedy="begin with 1 and go up, such as [1, 2, 4, 8]",
        )
    if len(shares) != 3 or list(shares) != sorted(set(shares)):
        raise UsageError(
            f"load_shares is {list(shares)}: a model is validated at three loads, the lowest one first",
            remedy="pass shares of the capacity below it, near it and above it, such as [0.5, 0.9, 1.5]",
        )


def room_for(prompt_words: int, output_tokens: int, *, longest: int | None) -> int:
    """Tokens that a request may take: four a word of the prompt, which is ample, and the answer, in whole hundreds.

    UsageError when the model's own limit (`longest`) is lower."""
    room = -(-(4 * prompt_words + output_tokens) // 100) * 100
    if longest is not None and room > longest:
        raise UsageError(
            f"prompts of {prompt_words} words with answers of {output_tokens} tokens need {room} tokens; the model"
            f" reads {longest}",
            remedy="shorten the prompts or the answers",
        )
    return room


def level(result: LoadResult) -> Level:
    """The level that a closed loop measured. UsageError: no streamed answer of two tokens or more, or an open loop."""
    done = [one for one in result.records if one.tpot_s is not None and one.e2e_s is not None]
    gaps = [gap for one in done for gap in one.itl_s]
    if not gaps or result.concurrency is None:
        raise UsageError(
            f"{len(done)} of {len(result.records)} answers of this load have gaps between tokens",
            remedy="stream answers of two tokens or more, in a closed loop",
        )
    step_s, clients = median(gaps), result.concurrency
    beyond_s = fmean((one.e2e_s or 0.0) - ((one.output_tokens or 1) - 1) * step_s for one in done)
    read = fmean(one.input_tokens or 0 for one in done)
    return Level(
        clients=clients,
        step_s=step_s,
        prefill_s_per_token=max(0.0, beyond_s) / clients / read if read else 0.0,
        tpot_s=fmean(one.tpot_s or 0.0 for one in done),
        e2e_s=fmean(one.e2e_s or 0.0 for one in done),
    )


def service_of(levels: Sequence[Level]) -> Service:
    """A replica of the queueing model: the mean of what every round measured. It holds as many requests as the highest
    level had clients, and reads a prompt as fast as it did there, in the company of others."""
    highest = max(one.clients for one in levels)
    of = {n: [one for one in levels if one.clients == n] for n in sorted({one.clients for one in levels})}
    return Service(
        step_s={n: fmean(one.step_s for one in found) for n, found in of.items()},
        prefill_s_per_token=fmean(one.prefill_s_per_token for one in of[highest]),
        places=highest,
    )


def slower(service: Service, factor: float) -> Service:
    """The same replica with every time multiplied."""
    return replace(
        service,
        step_s={n: seconds * factor for n, seconds in service.step_s.items()},
        prefill_s_per_token=service.prefill_s_per_token * factor,
    )


def pace(result: LoadResult, service: Service) -> float:
    """How long a step took in this load, over what `service` says of a step with as many requests: the median over all
    gaps between two chunks, each with the answers that were being written at its end.

    It says what else the machine did meanwhile, and nothing of how long anybody waited for a place. UsageError without
    a gap.
    """
    done = [one for one in result.records if one.itl_s]
    ratios = [
        gap / service.step_of(sum(one.chunk_times_s[0] <= end <= one.chunk_times_s[-1] for one in done))
        for record in done
        for gap, end in zip(record.itl_s, record.chunk_times_s[1:], strict=True)
    ]
    if not ratios:
        raise UsageError(
            f"none of {len(result.records)} answers has gaps between tokens",
            remedy="stream answers of two tokens or more",
        )
    return median(ratios)


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """The same requests twice: as the server answered them, and as the model does, in the same order.

    Only requests that ended OK; all of them, the failed ones too, were in the model's queue."""

    records: tuple[RequestRecord, ...]
    modelled: tuple[Served, ...]

    @property
    def measured_s(self) -> list[float]:
        """What each request took from the moment at which it was due."""
        return [one.e2e_from_schedule_s or 0.0 for one in self.records]

    @property
    def model_s(self) -> list[float]:
        """The same by the model."""
        return [one.e2e_s for one in self.modelled]


def replay(result: LoadResult, service: Service) -> Replayed:
    """An open loop's requests, at the times at which they were due and with the tokens that they had, in the model.

    UsageError without an answered request: there is nothing to compare."""
    known = [one for one in result.records if one.ok and one.e2e_from_schedule_s]
    if not known:
        raise UsageError(f"none of {len(result.records)} requests was answered", remedy="look into the server's log")
    prompt = round(fmean(one.input_tokens or 0 for one in known))
    output = round(fmean(one.output_tokens or 1 for one in known))
    due = sorted(result.records, key=lambda one: one.scheduled_s)
    arrivals = [
        Arrival(
            at_s=one.scheduled_s,
            prompt_tokens=one.input_tokens or prompt,
            output_tokens=one.output_tokens or output,
        )
        for one in due
    ]
    served = serve_all(service, arrivals)
    kept = [(record, one) for record, one in zip(due, served, strict=True) if record.ok and record.e2e_from_schedule_s]
    return Replayed(records=tuple(record for record, _ in kept), modelled=tuple(one for _, one in kept))


# ---   init   ---


__all__ = [
    "Facts",
    "Fleet",
    "Guess",
    "Hour",
    "Level",
    "Promise",
    "Replayed",
    "bill_usd",
    "capacity_per_s",
    "check_plan",
    "day",
    "day_of_replicas",
    "design_note",
    "fleet",
    "fleet_per_day",
    "guesses_of",
    "level",
    "pace",
    "replay",
    "room_for",
    "service_of",
    "share_kept",
    "slower",
    "traffic_like",
]
