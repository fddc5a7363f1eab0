"""Lab 12: exercises from a step to a bill; a measured replica in the queueing model, its fleet for a day, the note."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from random import Random
from statistics import fmean, median
from typing import Any

from labkit import errors
from labkit.advice.costs import calculate, settings_from, show_usd
from labkit.advice.costs.machines import Fleet
from labkit.advice.costs.prices import exact
from labkit.errors import UsageError, require
from labkit.load import LoadResult, RequestRecord
from labkit.load.metrics import Slo
from labkit.load.workloads import poisson_arrivals_s
from labkit.teaching import solution
from labkit.theory.queues import Arrival, Balancer, Served, Service, replicas_needed, serve_all
from labkit.words import amount, share


def alone_per_s(step_s: float, prompt_tokens: int, prefill_s: float, output_tokens: int) -> float:
    return 1 / (prompt_tokens * prefill_s + (output_tokens - 1) * step_s)


def requests_per_s(places: int, step_s: float, prompt_tokens: int, prefill_s: float, output_tokens: int) -> float:
    cycle_s = places * prompt_tokens * prefill_s + (output_tokens - 1) * step_s
    return places / cycle_s


solution(
    "12.capacity",
    requests_per_s,
    unit="requests/s",
    worked=alone_per_s,
    cases=((8, 0.085, 30, 0.0025, 12), (4, 0.07, 200, 0.003, 50), (16, 0.12, 10, 0.001, 5)),
    wrong={
        "only one's own prompt waited for": lambda n, step, prompt, read, out: n * alone_per_s(step, prompt, read, out),
        "one's own prompt left out": lambda n, step, prompt, read, out: (
            n / ((n - 1) * prompt * read + (out - 1) * step)
        ),
        "one request at a time": [
            lambda n, step, prompt, read, out: requests_per_s(n, step, prompt, read, out) / n,
            lambda _n, step, prompt, read, out: alone_per_s(step, prompt, read, out),
        ],
        "prompts read for nothing": lambda n, step, prompt, _read, out: requests_per_s(n, step, prompt, 0, out),
        "the first token paid twice": lambda n, step, prompt, read, out: requests_per_s(n, step, prompt, read, out + 1),
        "tokens taken for requests": [
            lambda n, step, _prompt, _read, _out: n / step,
            lambda n, step, prompt, read, out: out * requests_per_s(n, step, prompt, read, out),
        ],
    },
)


def replicas(rates: Sequence[float], per_replica: float, most_busy: float) -> int:
    import math

    return math.ceil(max(rates) / (per_replica * most_busy))


solution(
    "12.replicas",
    replicas,
    unit="replicas",
    cases=(
        ([10.0, 40.0, 91.0, 55.0], 6.0, 0.8),
        ([3.0, 5.0], 7.0, 0.5),
        ([100.0, 900.0, 400.0], 6.5, 0.9),
        ([25.0, 25.0, 31.0], 4.0, 0.7),
        ([6.0, 24.0], 6.0, 0.5),
    ),
    wrong={
        "sized on the mean": [
            lambda rates, one, most: math.ceil(fmean(rates) / (one * most)),
            lambda rates, one, _most: math.ceil(fmean(rates) / one),
        ],
        "busy all of the time": lambda rates, one, _most: math.ceil(max(rates) / one),
        "headroom the wrong way round": lambda rates, one, most: math.ceil(max(rates) * most / one),
        "rounded down": lambda rates, one, most: math.floor(max(rates) / (one * most)),
        "one too many where it divides evenly": lambda rates, one, most: int(max(rates) / (one * most)) + 1,
        "a part of a replica": lambda rates, one, most: max(rates) / (one * most),
        "hours added up": lambda rates, one, most: math.ceil(sum(rates) / (one * most)),
    },
)


def good_share(hours: Sequence[tuple[int, int]]) -> float:
    return sum(good for _, good in hours) / sum(requests for requests, _ in hours)


solution(
    "12.share",
    good_share,
    cases=[
        ([(1000, 1000), (9000, 7200)],),
        ([(200, 200), (400, 396), (4000, 3000)],),
        ([(50, 50), (60, 60), (70, 63)],),
    ],
    wrong={
        "hours averaged in place of requests": lambda hours: fmean(good / requests for requests, good in hours),
        "the worst hour taken for the day": lambda hours: min(good / requests for requests, good in hours),
        "the mean hour taken for the day": lambda hours: median(good / requests for requests, good in hours),
        "bad ones counted": lambda hours: 1 - good_share(hours),
    },
)


def waiting(rate: float, running: int, per_replica: float, start_s: float) -> float:
    return max(0.0, rate - running * per_replica) * start_s


solution(
    "12.waiting",
    waiting,
    unit="requests",
    cases=((50.0, 6, 6.5, 50.0), (12.0, 4, 5.0, 30.0), (900.0, 100, 6.0, 120.0), (20.0, 1, 6.0, 8.0)),
    wrong={
        "autoscaling taken for headroom": lambda _rate, _running, _one, _start: 0.0,
        "those that run forgotten": lambda rate, _running, _one, start: rate * start,
        "the new one counted too early": lambda rate, running, one, start: waiting(rate, running + 1, one, start),
        "fewer than nobody": lambda rate, running, one, start: (rate - running * one) * start,
        "a rate taken for a number": lambda rate, running, one, _start: waiting(rate, running, one, 1),
    },
)


def usd_per_million(replicas: Sequence[int], usd_per_hour: float, rates: Sequence[float], tokens: float) -> float:
    usd = sum(replicas) * usd_per_hour
    return 1e6 * usd / (sum(rates) * 3600 * tokens)


solution(
    "12.bill",
    usd_per_million,
    unit="dollars",
    cases=(
        ([2, 5, 9], 0.1, [10.0, 31.0, 60.0], 12.0),
        ([9, 9, 9], 0.1, [10.0, 31.0, 60.0], 12.0),
        ([4, 1], 2.5, [20.0, 1.0], 200.0),
    ),
    wrong={
        "the peak's price taken for the day's": [
            lambda running, usd, rates, tokens: usd_per_million([max(running)], usd, [max(rates)], tokens),
            lambda running, usd, rates, tokens: usd_per_million(
                [running[rates.index(max(rates))]], usd, [max(rates)], tokens
            ),
        ],
        "hours averaged in place of tokens": lambda running, usd, rates, tokens: fmean(
            usd_per_million([n], usd, [rate], tokens) for n, rate in zip(running, rates, strict=True)
        ),
        "seconds taken for hours": lambda running, usd, rates, tokens: usd_per_million(
            running, usd * 3600, rates, tokens
        ),
        "requests taken for tokens": lambda running, usd, rates, _tokens: usd_per_million(running, usd, rates, 1),
        "one replica paid": lambda running, usd, rates, tokens: usd_per_million([1] * len(running), usd, rates, tokens),
    },
)


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
        fix = "promise a share above 0 and below 1: nobody can promise all"
        require(0 < self.share < 1, f"slo_share is {self.share:g}", fix=fix)

    @property
    def slo(self) -> Slo:
        """The objective for each single request."""
        return Slo(ttft_s=self.ttft_s, tpot_s=self.tpot_s)

    def holds(self, served: Served) -> bool:
        """Whether a request of the model was good."""
        return served.ttft_s <= self.ttft_s and (served.tpot_s or 0.0) <= self.tpot_s


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """`replicas` for `rate` requests a second, `busy` for that share of the time. `kept` is the share of good requests
    in the simulation; with `keeps` false no number of replicas keeps the promise, and this one's queue just ends."""

    rate: float
    replicas: int
    busy: float
    kept: float
    keeps: bool


Traffic = Callable[[float], Sequence[Arrival]]  # the arrivals of a simulation, by their rate


def traffic_like(records: Sequence[RequestRecord], *, seconds: float, seed: int = 0) -> Traffic:
    """Poisson traffic of `seconds` whose requests are drawn from those that a server answered, tokens in and out.

    At least 500 requests, however low the rate. UsageError when none was answered."""
    mix = [(record.input_tokens or 0, record.output_tokens or 1) for record in records if record.ok]
    require(bool(mix), f"none of {len(records)} requests was answered", fix="look into the server's log")

    def traffic(rate: float) -> tuple[Arrival, ...]:
        rng = Random(f"mix/{seed}")
        times = poisson_arrivals_s(max(500, math.ceil(rate * seconds)), rate=rate, seed=seed)
        drawn = [(at, *rng.choice(mix)) for at in times]
        return tuple(Arrival(at_s=at, prompt_tokens=read, output_tokens=written) for at, read, written in drawn)

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
) -> Sizing:
    """The smallest fleet that keeps the promise at `rate`.

    It can finish what comes and is at most `most_busy`: a simulation is short, and a queue that never ends, or hardly,
    may look short in it."""
    arrivals = traffic(rate)
    capacity = capacity_per_s(service, arrivals)
    least = max(math.floor(rate / capacity) + 1, math.ceil(rate / (capacity * most_busy)))
    bounds: dict[str, Any] = {"at_least": least, "at_most": 4 * least + 16, "balancer": balancer, "seed": seed}
    try:
        replicas = replicas_needed(service, arrivals, promise.holds, share=promise.share, **bounds)
    except UsageError:
        replicas = least
    kept = share_kept(service, arrivals, promise, replicas=replicas, balancer=balancer, seed=seed)
    busy = rate / (replicas * capacity)
    return Sizing(rate=rate, replicas=replicas, busy=busy, kept=kept, keeps=kept >= promise.share)


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
    return fmean(map(promise.holds, served))


def capacity_per_s(service: Service, arrivals: Sequence[Arrival]) -> float:
    """Requests per second that one full replica finishes, of requests like these."""
    return service.capacity_per_s(
        prompt_tokens=fmean(arrival.prompt_tokens for arrival in arrivals),
        output_tokens=fmean(arrival.output_tokens for arrival in arrivals),
    )


# --- a day of traffic: its curve, the replicas of each hour, and what they cost ---


def day(peak_rate: float, *, night_share: float) -> tuple[float, ...]:
    """24 rates: a cosine from `night_share` of the peak, at two in the night, to the peak at two in the afternoon.

    An assumption; take your own log's counts where you have them."""
    require(
        peak_rate > 0 and 0 < night_share <= 1,
        f"a day has a peak of {peak_rate:g} requests/s and a night of {night_share:g} of it",
        fix="a peak above 0, and a share above 0 and up to 1",
    )
    wave = [(1 + math.cos(2 * math.pi * (hour - 14) / 24)) / 2 for hour in range(24)]
    return tuple(peak_rate * (night_share + (1 - night_share) * height) for height in wave)


def replicas_by_hour(rates: Sequence[float], sizings: Sequence[Sizing]) -> list[int]:
    """The replicas of each hour: between two simulated rates on the line between their fleets, rounded up.

    UsageError for a rate outside of those simulated: a line would go on where no queue does."""
    import numpy as np

    known = sorted(sizings, key=lambda sizing: (sizing.rate, sizing.replicas))
    low, high = known[0].rate * (1 - 1e-9), known[-1].rate * (1 + 1e-9)
    for rate in rates:
        fix = "simulate the day's extremes"
        require(low <= rate <= high, f"no fleet was simulated around {rate:g} requests/s", fix=fix)
    line = np.interp(rates, [sizing.rate for sizing in known], [sizing.replicas for sizing in known])
    return [math.ceil(replicas - 1e-9) for replicas in line]


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
) -> Fleet:
    """The cost calculator's answer (lab 11) for the same day: it knows capacity, peak and a buffer, and no queue."""
    settings = settings_from(
        {
            "requests_per_s": fmean(rates),
            "peak_factor": max(rates) / fmean(rates),
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


# --- the note ---


def design_note(**facts: Any) -> str:
    """`course/design_note.md.j2` filled with the facts that it names, as Markdown."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"as": format, "usd": lambda usd: show_usd(exact(usd)), "words": _words}
    template = (Path(__file__).parent / "design_note.md.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(facts)


def _words(value: float | str, unit: str | None, confidence: float | None = None) -> str:
    text = value if isinstance(value, str) else amount(value, unit)
    return text if confidence is None else f"{text} ({share(confidence)} sure)"


# --- one replica: from a load to a service, and back ---


@dataclass(frozen=True, kw_only=True)
class Level:
    """What a closed loop with `clients` says of a replica (seconds; `tpot_s` is what a user sees, prompts included)."""

    clients: int
    step_s: float
    prefill_s_per_token: float
    tpot_s: float


def check_plan(clients: Sequence[int], shares: Sequence[float]) -> None:
    """UsageError for levels from which no service can be made, and loads that validate nothing."""
    require(
        len(clients) >= 2 and clients[0] == 1 and list(clients) == sorted(set(clients)),
        f"clients is {list(clients)}: a service is measured alone and with others",
        fix="begin with 1 and go up, such as [1, 2, 4, 8]",
    )
    require(
        len(shares) == 3 and list(shares) == sorted(set(shares)),
        f"load_shares is {list(shares)}: a model is validated at three loads, the lowest one first",
        fix="pass shares of the capacity below it, near it and above it, such as [0.5, 0.9, 1.5]",
    )


def room_for(prompt_words: int, output_tokens: int, *, longest: int | None) -> int:
    """Tokens that a request may take: four a word of the prompt, which is ample, and the answer, in whole hundreds.

    UsageError when the model's own limit (`longest`) is lower."""
    room = -(-(4 * prompt_words + output_tokens) // 100) * 100
    require(
        longest is None or room <= longest,
        f"prompts of {prompt_words} words with answers of {output_tokens} tokens need {room} tokens; the model reads"
        f" {longest}",
        fix="shorten the prompts or the answers",
    )
    return room


def level(result: LoadResult) -> Level:
    """The level that a closed loop measured. UsageError: no streamed answer of two tokens or more, or an open loop."""
    done = [record for record in result.records if record.tpot_s is not None and record.e2e_s is not None]
    gaps = [gap for record in done for gap in record.itl_s]
    if not gaps or result.concurrency is None:
        raise UsageError(
            f"{len(done)} of {len(result.records)} answers of this load have gaps between tokens",
            remedy="stream answers of two tokens or more, in a closed loop",
        )
    step_s = median(gaps)
    beyond_s = fmean((record.e2e_s or 0.0) - ((record.output_tokens or 1) - 1) * step_s for record in done)
    read = fmean(record.input_tokens or 0 for record in done)
    return Level(
        clients=result.concurrency,
        step_s=step_s,
        prefill_s_per_token=max(0.0, beyond_s) / result.concurrency / read if read else 0.0,
        tpot_s=fmean(record.tpot_s or 0.0 for record in done),
    )


def service_of(levels: Sequence[Level]) -> Service:
    """A replica of the queueing model: the mean of what every round measured. It holds as many requests as the highest
    level had clients, and reads a prompt as fast as it did there, in the company of others."""
    by_clients = {n: [level for level in levels if level.clients == n] for n in sorted({o.clients for o in levels})}
    highest = max(by_clients)
    return Service(
        step_s={n: fmean(level.step_s for level in rounds) for n, rounds in by_clients.items()},
        prefill_s_per_token=fmean(level.prefill_s_per_token for level in by_clients[highest]),
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

    It says what else the machine did meanwhile, and nothing of waits for a place. UsageError without a gap.
    """
    done = [record for record in result.records if record.itl_s]
    what = f"none of {len(result.records)} answers has gaps between tokens"
    require(bool(done), what, fix="stream answers of two tokens or more")

    def under_way(at_s: float) -> int:
        return sum(record.chunk_times_s[0] <= at_s <= record.chunk_times_s[-1] for record in done)

    return median(
        gap / service.step_of(under_way(end_s))
        for record in done
        for gap, end_s in zip(record.itl_s, record.chunk_times_s[1:], strict=True)
    )


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """The same requests twice: as the server answered them, and as the model does, in the same order.

    Only requests that ended OK; all of them, the failed ones too, were in the model's queue."""

    records: tuple[RequestRecord, ...]
    modelled: tuple[Served, ...]

    @property
    def measured_s(self) -> list[float]:
        """What each request took from the moment at which it was due."""
        return [record.e2e_from_schedule_s or 0.0 for record in self.records]

    @property
    def model_s(self) -> list[float]:
        """The same by the model."""
        return [served.e2e_s for served in self.modelled]


def replay(result: LoadResult, service: Service) -> Replayed:
    """An open loop's requests, at the times at which they were due and with the tokens that they had, in the model.

    UsageError without an answered request: there is nothing to compare."""
    answered = [record for record in result.records if record.ok and record.e2e_from_schedule_s]
    require(bool(answered), f"none of {len(result.records)} requests was answered", fix="look into the server's log")
    prompt = round(fmean(record.input_tokens or 0 for record in answered))
    output = round(fmean(record.output_tokens or 1 for record in answered))
    due = sorted(result.records, key=lambda record: record.scheduled_s)
    arrivals = [
        Arrival(
            at_s=record.scheduled_s,
            prompt_tokens=record.input_tokens or prompt,
            output_tokens=record.output_tokens or output,
        )
        for record in due
    ]
    pairs = [
        (record, served)
        for record, served in zip(due, serve_all(service, arrivals), strict=True)
        if record.ok and record.e2e_from_schedule_s
    ]
    records, modelled = zip(*pairs, strict=True)
    return Replayed(records=records, modelled=modelled)
