"""The design note: a decision with the numbers behind it, and what would change it, as Markdown.

Every figure is an argument: nothing is typed here. What the learner answered stands beside what was found.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from labkit.capstone.fleet import Fleet, Promise
from labkit.costs import show_usd
from labkit.experiments import Ratio
from labkit.queueing import Service
from labkit.teaching.words import amount, share

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
