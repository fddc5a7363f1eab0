"""A ladder of loads, and the knee: the highest load at which the server still keeps up.

With an SLO, the knee is the last step before the first at which fewer than GOOD_SHARE of the requests keep it. Without
one, the rule depends on the loop. At a rate, a server that does not keep up finishes fewer requests than arrive, and
each waits longer than the one before. At a concurrency, its throughput stops rising while latency grows. A sweep that
shows no knee says so."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Literal

from labkit.errors import require
from labkit.load.metrics import Slo, Summary, summarise
from labkit.load.results import LoadResult
from labkit.words import number, share

Kind = Literal["rate", "concurrency"]
GOOD_SHARE = 0.95
KEEPS_UP = 0.9
"""Completions per arrival, each over the time from its first to its last: below this, requests queue ..."""
QUEUE_GROWS = 1.2
"""... if the median latency of the second half of them is this many times that of the first half, too."""
STILL_RISES = 0.25
"""Throughput that rises less than this, as logarithms in proportion to the load, has stopped: 19% at twice the load."""
LATENCY_GROWS = 0.25
FEWEST_STEPS = 3
SLO_RULE = f"the last step before the first at which less than {share(GOOD_SHARE)} of the requests keep the SLO"
OWN_RULES = {
    "rate": (
        f"the last step before the first at which fewer than {share(KEEPS_UP)} of the arriving requests are completed "
        f"in the same time and latency grows by a factor of {QUEUE_GROWS} within the step, or requests fail"
    ),
    "concurrency": (
        f"the last step before the first at which throughput rises by less than {STILL_RISES} of the load's growth "
        f"while the median latency grows by more than {LATENCY_GROWS} of it (as logarithms), or requests fail"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One load of the ladder. `throughput` is in requests per second; `good_share` of the requests kept the SLO.

    Of an open loop: requests arrived at `offered` per second for `lasted_s`, and `growth` is the median latency of
    the later half of them over that of the earlier half."""

    level: float
    summary: Summary
    throughput: float
    good_share: float | None
    offered: float
    lasted_s: float
    growth: float

    @property
    def queues(self) -> bool:
        return self.throughput < KEEPS_UP * self.offered and self.growth > QUEUE_GROWS

    @property
    def fails(self) -> bool:
        sent = self.summary.completed + self.summary.failed
        return self.summary.completed < GOOD_SHARE * sent


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The steps, in order; `knee` is a level, or None where the steps show none, and `why` says what decided it."""

    kind: Kind
    steps: tuple[Step, ...]
    rule: str
    knee: float | None
    why: str

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: each step holds the keys of a load."""
        steps = [
            {self.kind: step.level, "good_share": step.good_share, **step.summary.to_dict()} for step in self.steps
        ]
        return {"sweep": self.kind, "steps": steps, "knee": self.knee, "why": self.why, "rule": self.rule}


def check_levels(kind: str, levels: Sequence[float]) -> None:
    """UsageError unless a sweep over `levels` can show a knee."""
    fix = "write --sweep rate=1,2,4,8 or --sweep concurrency=1,2,4,8,16"
    require(kind in ("rate", "concurrency"), f"a sweep is over rate or concurrency, not {kind!r}", fix=fix)
    rising = all(low < high for low, high in pairwise(levels))
    require(bool(levels) and levels[0] > 0 and rising, f"the steps {_list(levels)} do not rise from above 0", fix=fix)
    enough = len(levels) >= FEWEST_STEPS
    require(enough, f"{len(levels)} steps show no knee; {FEWEST_STEPS} are the fewest", fix=fix)
    whole = kind == "rate" or all(level == int(level) for level in levels)
    require(whole, f"the steps {_list(levels)} are no whole numbers", fix=fix)


def step(result: LoadResult, level: float, slo: Slo | None) -> Step:
    """What one load of the ladder gave. The SLO counts from the time at which a request was due."""
    kept = None
    if slo is not None and result.records:
        kept = sum(slo.holds(record.due) for record in result.records) / len(result.records)
    done = sorted((record for record in result.records if record.ok), key=lambda record: record.scheduled_s)
    dues, ends = [record.scheduled_s for record in done], sorted(record.finished_s for record in done)
    latencies_s = [record.e2e_from_schedule_s or 0.0 for record in done]
    half = len(done) // 2
    summary = summarise(result)
    return Step(
        level=level,
        summary=summary,
        throughput=_per_second(ends) if result.rate is not None else summary.request_throughput,
        good_share=kept,
        offered=_per_second(dues),
        lasted_s=dues[-1] - dues[0] if dues else 0.0,
        growth=median(latencies_s[half:]) / median(latencies_s[:half]) if half else 1.0,
    )


def _per_second(times_s: Sequence[float]) -> float:
    """Between the first and the last: the wait for the first answer is no lack of throughput."""
    span_s = times_s[-1] - times_s[0] if times_s else 0.0
    return (len(times_s) - 1) / span_s if span_s > 0 else 0.0


def judge(kind: Kind, steps: Sequence[Step], slo: Slo | None) -> Sweep:
    """The knee of the steps, by the SLO or else by throughput and latency."""
    if slo is not None:
        knee, why = _by_slo(kind, steps)
    else:
        knee, why = _by_queue(steps) if kind == "rate" else _by_throughput(steps)
    beyond = [one for one in steps if knee is None or one.level > knee]
    if beyond and any("Client-bound" in said for said in beyond[0].summary.warnings):
        knee, why = None, f"the client itself was the limit at {kind} {number(beyond[0].level)}: {why}"
    return Sweep(kind=kind, steps=tuple(steps), rule=SLO_RULE if slo else OWN_RULES[kind], knee=knee, why=why)


def _by_slo(kind: Kind, steps: Sequence[Step]) -> tuple[float | None, str]:
    for before, one in zip((None, *steps), steps, strict=False):
        if (one.good_share or 0.0) >= GOOD_SHARE:
            continue
        missed = f"at {kind} {number(one.level)} only {share(one.good_share or 0.0)} of the requests keep the SLO"
        if before is None:
            return None, f"{missed}, already the first step: start lower"
        return before.level, missed
    last = steps[-1]
    return None, f"never saturated: at {kind} {number(last.level)}, the last step, the SLO is kept: go higher"


def _by_queue(steps: Sequence[Step]) -> tuple[float | None, str]:
    for before, one in zip((None, *steps), steps, strict=False):
        if one.fails:
            short = f"at rate {number(one.level)} {one.summary.failed} requests fail"
        elif one.queues:
            short = (
                f"at rate {number(one.level)}, {number(one.offered)} requests/s arrive, {number(one.throughput)} are "
                f"completed, and the later half of them takes {number(one.growth)} times as long as the earlier half"
            )
        else:
            continue
        if before is None:
            return None, f"saturated from the first step: {short}: start lower"
        if any(not later.fails and not later.queues for later in steps if later.level > one.level):
            return None, f"not clear: {short}, but a later step keeps up: send more requests for each step"
        return before.level, short
    last = steps[-1]
    latency_s = last.summary.e2e_s.p50
    if last.lasted_s < latency_s:
        return None, (
            f"too short to tell: the requests of the last step arrived within {number(last.lasted_s)} s, and one takes "
            f"{number(latency_s)} s: send more of them"
        )
    return None, f"never saturated: the server keeps up with rate {number(last.level)}, the last step: go higher"


def _by_throughput(steps: Sequence[Step]) -> tuple[float | None, str]:
    first, last = steps[0], steps[-1]
    if first.fails:
        return None, f"requests fail already at concurrency {number(first.level)}, the first step: start lower"
    for before, one in pairwise(steps):
        if one.fails:
            return before.level, f"at concurrency {number(one.level)} {one.summary.failed} requests fail"
        slow_s = before.summary.e2e_s.p50, one.summary.e2e_s.p50
        rises = _elasticity(before, one, before.throughput, one.throughput) >= STILL_RISES
        if rises or _elasticity(before, one, *slow_s) <= LATENCY_GROWS:
            continue
        flat = (
            f"from concurrency {number(before.level)} to {number(one.level)} throughput goes from "
            f"{number(before.throughput)} to {number(one.throughput)} requests/s, and the median latency from "
            f"{number(slow_s[0])} to {number(slow_s[1])} s"
        )
        if before is first and first.level > 1:
            return None, f"saturated from the first step: {flat}: start lower"
        if last.throughput > before.throughput * (last.level / before.level) ** STILL_RISES:
            return None, f"not clear: {flat}, but later steps rise again: send more requests for each step"
        return before.level, flat
    return None, (
        f"never saturated: up to concurrency {number(last.level)}, the last step, throughput rises or latency does not "
        "grow: go higher"
    )


def _elasticity(before: Step, one: Step, low: float, high: float) -> float:
    if low > 0 and high > 0:
        return math.log(high / low) / math.log(one.level / before.level)
    return 0.0


def _list(levels: Sequence[float]) -> str:
    return ", ".join(map(number, levels))
