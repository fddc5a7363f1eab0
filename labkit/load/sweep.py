"""A sweep over loads, and its knee: the highest load at which the server keeps up.

With an SLO, the knee is the last step before the first at which fewer than GOOD_SHARE of the requests meet it, or at
which an open loop's queue grows: a longer load would miss the SLO. Without one: in an open loop, a saturated server
completes fewer requests than arrive, and latency grows during the step; in a closed loop, throughput stops rising while
latency grows. A sweep without a knee says why."""

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
"""Saturated below this rate of completions over that of arrivals (each from its first to its last) ..."""
QUEUE_GROWS = 1.2
"""... if the median latency of the second half of the requests is also this many times that of the first half."""
STILL_RISES = 0.25
"""Throughput rises if its logarithm grows by at least this share of the load's: 19% at twice the load."""
LATENCY_GROWS = 0.25
FEWEST_STEPS = 3
SLO_RULE = (
    f"the last step before the first at which less than {share(GOOD_SHARE)} of the requests meet the SLO, or at which "
    "an open loop's requests arrive faster than they are completed"
)
OWN_RULES = {
    "rate": (
        f"the last step before the first at which fewer than {share(KEEPS_UP)} of the arriving requests are completed "
        "in the same time (and the spread of the first step's latencies), and latency grows by a factor of "
        f"{QUEUE_GROWS} during the step, or requests fail"
    ),
    "concurrency": (
        f"the last step before the first at which throughput rises by less than {STILL_RISES} of the load's growth "
        f"while the median latency grows by more than {LATENCY_GROWS} of it (as logarithms), or requests fail"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One load. `throughput` is in requests per second; `good_share` of the requests met the SLO.

    In an open loop requests arrived at `offered` per second for `lasted_s`; `spread_s` is the longest latency less the
    shortest (`early_spread_s`: of the earlier half of the requests), `growth` the median latency of the later half over
    that of the earlier half."""

    level: float
    summary: Summary
    throughput: float
    good_share: float | None
    offered: float
    lasted_s: float
    spread_s: float
    early_spread_s: float
    growth: float

    @property
    def fails(self) -> bool:
        sent = self.summary.completed + self.summary.failed
        return self.summary.completed < GOOD_SHARE * sent


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The steps in order, the level of the `knee` or None, and `why`."""

    kind: Kind
    steps: tuple[Step, ...]
    rule: str
    knee: float | None
    why: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; each step has the keys of a load."""
        steps = [
            {self.kind: step.level, "good_share": step.good_share, **step.summary.to_dict()} for step in self.steps
        ]
        return {"sweep": self.kind, "steps": steps, "knee": self.knee, "why": self.why, "rule": self.rule}


def check_levels(kind: str, levels: Sequence[float]) -> None:
    """UsageError unless a sweep over `levels` can show a knee."""
    fix = "write --sweep rate=1,2,4,8 or --sweep concurrency=1,2,4,8,16"
    require(kind in ("rate", "concurrency"), f"a sweep is over rate or concurrency, not {kind!r}", fix=fix)
    rising = all(low < high for low, high in pairwise(levels))
    require(bool(levels) and levels[0] > 0 and rising, f"the steps {_list(levels)} must rise from above 0", fix=fix)
    enough = len(levels) >= FEWEST_STEPS
    require(enough, f"{len(levels)} steps cannot show a knee; at least {FEWEST_STEPS} are needed", fix=fix)
    whole = kind == "rate" or all(level == int(level) for level in levels)
    require(whole, f"the steps {_list(levels)} are not whole numbers", fix=fix)


def step(result: LoadResult, level: float, slo: Slo | None) -> Step:
    """Evaluate one load. The SLO counts from when a request was due."""
    good_share = None
    if slo is not None and result.records:
        good_share = sum(slo.holds(record.due) for record in result.records) / len(result.records)
    done = sorted((record for record in result.records if record.ok), key=lambda record: record.scheduled_s)
    dues, ends = [record.scheduled_s for record in done], sorted(record.finished_s for record in done)
    latencies_s = [record.e2e_from_schedule_s or 0.0 for record in done]
    half = len(done) // 2
    summary = summarise(result)
    return Step(
        level=level,
        summary=summary,
        throughput=_per_second(ends) if result.rate is not None else summary.request_throughput,
        good_share=good_share,
        offered=_per_second(dues),
        lasted_s=dues[-1] - dues[0] if dues else 0.0,
        spread_s=max(latencies_s) - min(latencies_s) if latencies_s else 0.0,
        early_spread_s=max(latencies_s[:half]) - min(latencies_s[:half]) if half else 0.0,
        growth=median(latencies_s[half:]) / median(latencies_s[:half]) if half else 1.0,
    )


def _per_second(times_s: Sequence[float]) -> float:
    """Rate from the first to the last: the wait for the first answer does not count as low throughput."""
    span_s = times_s[-1] - times_s[0] if times_s else 0.0
    return (len(times_s) - 1) / span_s if span_s > 0 else 0.0


def judge(kind: Kind, steps: Sequence[Step], slo: Slo | None) -> Sweep:
    """Find the knee by the SLO, or without one by throughput and latency."""
    if slo is not None:
        knee, why = _by_slo(kind, steps)
    else:
        knee, why = _by_queue(steps) if kind == "rate" else _by_throughput(steps)
    beyond = [step for step in steps if knee is None or step.level > knee]
    if beyond and any("Client-bound" in warning for warning in beyond[0].summary.warnings):
        knee, why = None, f"the client itself was the limit at {kind} {number(beyond[0].level)}: {why}"
    return Sweep(kind=kind, steps=tuple(steps), rule=SLO_RULE if slo else OWN_RULES[kind], knee=knee, why=why)


def _queues(step: Step, first: Step) -> bool:
    """Whether an open loop's queue grows: completions take longer than arrivals, and latency grows.

    Answers of different lengths stretch the completions as well, by up to the spread of latencies in the `first` step,
    which is taken to be without a queue (for the first step itself, by that of its earlier half)."""
    if not step.throughput:
        return False
    completing_s = (step.summary.completed - 1) / step.throughput
    stretched_s = first.early_spread_s if step is first else first.spread_s
    return completing_s > step.lasted_s / KEEPS_UP + stretched_s and step.growth > QUEUE_GROWS


def _arrivals(step: Step) -> str:
    return (
        f"at rate {number(step.level)}, {number(step.offered)} requests/s arrive, {number(step.throughput)} are "
        f"completed, and the later half takes {number(step.growth)} times as long as the earlier half"
    )


def _by_slo(kind: Kind, steps: Sequence[Step]) -> tuple[float | None, str]:
    for before, step in zip((None, *steps), steps, strict=False):
        meets = (step.good_share or 0.0) >= GOOD_SHARE
        later_keep_up = any(not _queues(later, steps[0]) for later in steps if later.level > step.level)
        if meets and (kind != "rate" or not _queues(step, steps[0]) or later_keep_up):
            continue
        missed = f"at {kind} {number(step.level)} only {share(step.good_share or 0.0)} of the requests meet the SLO"
        missed = f"{_arrivals(step)}: a longer load would miss the SLO" if meets else missed
        if before is None:
            return None, f"{missed}, already the first step: start lower"
        return before.level, missed
    return None, f"never saturated: at {kind} {number(steps[-1].level)}, the last step, the SLO is met: go higher"


def _by_queue(steps: Sequence[Step]) -> tuple[float | None, str]:
    for before, step in zip((None, *steps), steps, strict=False):
        if step.fails:
            reason = f"at rate {number(step.level)} {step.summary.failed} requests fail"
        elif _queues(step, steps[0]):
            reason = _arrivals(step)
        else:
            continue
        later = [later for later in steps if later.level > step.level]
        if any(not step.fails and not _queues(step, steps[0]) for step in later):
            return None, f"not clear: {reason}, but a later step keeps up: send more requests for each step"
        if before is None:
            return None, f"saturated from the first step: {reason}: start lower"
        return before.level, reason
    last = steps[-1]
    latency_s = last.summary.e2e_s.p50
    if last.lasted_s < latency_s:
        return None, (
            f"too short: the requests of the last step arrived within {number(last.lasted_s)} s, and their median "
            f"latency is {number(latency_s)} s: send more requests"
        )
    return None, f"never saturated: the server keeps up with rate {number(last.level)}, the last step: go higher"


def _by_throughput(steps: Sequence[Step]) -> tuple[float | None, str]:
    first, last = steps[0], steps[-1]
    if first.fails:
        return None, f"requests fail already at concurrency {number(first.level)}, the first step: start lower"
    for before, step in pairwise(steps):
        if step.fails:
            return before.level, f"at concurrency {number(step.level)} {step.summary.failed} requests fail"
        latencies_s = before.summary.e2e_s.p50, step.summary.e2e_s.p50
        rises = _elasticity(before, step, before.throughput, step.throughput) >= STILL_RISES
        if rises or _elasticity(before, step, *latencies_s) <= LATENCY_GROWS:
            continue
        flat = (
            f"from concurrency {number(before.level)} to {number(step.level)} throughput goes from "
            f"{number(before.throughput)} to {number(step.throughput)} requests/s, and the median latency from "
            f"{number(latencies_s[0])} to {number(latencies_s[1])} s"
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


def _elasticity(before: Step, step: Step, low: float, high: float) -> float:
    return math.log(high / low) / math.log(step.level / before.level) if low > 0 and high > 0 else 0.0


def _list(levels: Sequence[float]) -> str:
    return ", ".join(map(number, levels))
