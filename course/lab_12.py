"""Lab 12, the capstone: exercises, three briefs, a plan's bill, its trials on modelled GPUs, and the rubric."""

import shlex
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from course.briefs import BRIEFS, Brief
from labkit.advice import costs, selector
from labkit.advice.costs.prices import DAYS_PER_MONTH, HourPrice, find_instance, known_models
from labkit.errors import UsageError, require
from labkit.load.metrics import Slo
from labkit.modelled import Drive, ModelledGpu, TokenRequest, gpu, routers, shape_of
from labkit.modelled.evidence import Promise, promise
from labkit.modelled.shapes import model_folder
from labkit.teaching import solution

SHOWN = 8  # answers that would change the stack, in the note
ENOUGH = 200
"""The fewest requests for which a percentile, or a share of 95%, is quoted."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Seen:
    """What a router sees of a replica, for the exercise."""

    in_flight: int
    cached: int
    kv_usage: float = 0.5

    def __repr__(self) -> str:
        return f"({self.in_flight} in flight, {self.cached} cached)"  # a diagnosis shows 30 characters

    def cached_tokens(self, _token_ids: Sequence[int]) -> int:
        return self.cached


def route(request: TokenRequest, replicas: Sequence[Any]) -> int:
    costs = []
    for replica in replicas:
        to_compute = len(request.token_ids) - replica.cached_tokens(request.token_ids)
        costs.append(to_compute + 256 * replica.in_flight)
    return costs.index(min(costs))


def _uncached(request: TokenRequest, replica: Any) -> int:
    return len(request.token_ids) - int(replica.cached_tokens(request.token_ids))


def _least(cost: Callable[[TokenRequest, Any], int]) -> Callable[[TokenRequest, Sequence[Any]], int]:
    return lambda request, replicas: min(range(len(replicas)), key=lambda n: cost(request, replicas[n]))


_ASKED = TokenRequest(token_ids=list(range(2500)), output_tokens=100)


def _replicas(*pairs: tuple[int, int]) -> list[Seen]:
    return [Seen(in_flight=in_flight, cached=cached) for in_flight, cached in pairs]


solution(
    "12.router",
    route,
    exact=True,
    cases=(
        (_ASKED, _replicas((3, 0), (5, 2048), (2, 512))),
        (_ASKED, _replicas((14, 2048), (4, 0), (6, 1024))),
        (_ASKED, _replicas((10, 0), (9, 0), (12, 0))),
        (_ASKED, _replicas((8, 512), (2, 0))),
        (_ASKED, _replicas((4, 1024), (0, 0))),
        (_ASKED, _replicas((30, 0), (21, 0), (25, 2048))),
    ),
    wrong={
        "only the cache considered": _least(_uncached),
        "only the load considered": _least(lambda _request, replica: replica.in_flight),
        "cached tokens as a cost": _least(
            lambda request, replica: replica.cached_tokens(request.token_ids) + 256 * replica.in_flight
        ),
        "the highest cost": _least(lambda request, replica: -_uncached(request, replica) - 256 * replica.in_flight),
        "a request worth a token": _least(lambda request, replica: _uncached(request, replica) + replica.in_flight),
        "a limit in place of a price": routers.prefix_aware(),
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
        "autoscaling mistaken for headroom": lambda _rate, _running, _one, _start: 0.0,
        "the running replicas forgotten": lambda rate, _running, _one, start: rate * start,
        "a starting replica counted": lambda rate, running, one, start: waiting(rate, running + 1, one, start),
        "a negative queue": lambda rate, running, one, start: (rate - running * one) * start,
        "growth per second taken for a number": lambda rate, running, one, _start: waiting(rate, running, one, 1),
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
        "peak hour's price instead of the day's": [
            lambda running, usd, rates, tokens: usd_per_million([max(running)], usd, [max(rates)], tokens),
            lambda running, usd, rates, tokens: usd_per_million(
                [running[rates.index(max(rates))]], usd, [max(rates)], tokens
            ),
        ],
        "hourly prices averaged": lambda running, usd, rates, tokens: fmean(
            usd_per_million([n], usd, [rate], tokens) for n, rate in zip(running, rates, strict=True)
        ),
        "seconds instead of hours": lambda running, usd, rates, tokens: usd_per_million(
            running, usd * 3600, rates, tokens
        ),
        "requests instead of tokens": lambda running, usd, rates, _tokens: usd_per_million(running, usd, rates, 1),
        "only one replica paid for": lambda running, usd, rates, tokens: usd_per_million(
            [1] * len(running), usd, rates, tokens
        ),
    },
)


# --- a plan, and what it costs ---

ROUTERS: Mapping[str, Callable[[], routers.Router]] = {
    "round-robin": routers.round_robin,
    "least-loaded": lambda: routers.least_loaded,
    "prefix-aware": routers.prefix_aware,
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A learner's plan for a brief. UsageError: a machine or model that cannot be tried."""

    brief: Brief
    stack: str
    served: str
    machine: str
    replicas: int
    tensor_parallel: int
    router: str
    flags: str
    api: str
    prices_on: date

    def __post_init__(self) -> None:
        instance = find_instance(self.machine)
        tried = [name for name, one in costs.instances().items() if one.card]
        known = f"the modelled GPU has no {instance.gpu or 'machine without a card'} ({self.machine})"
        require(bool(instance.card), known, fix=f"choose one of {', '.join(tried)}")
        require(self.api in known_models(), f"no API {self.api!r}", fix=f"choose one of {', '.join(known_models())}")
        price = instance.price(self.prices_on)
        require(price is not None, f"{self.machine} has no price on {self.prices_on}", fix="choose a later day")
        most = instance.most or instance.gpus
        few = f"a replica of {self.tensor_parallel} GPUs; {self.machine} has {most} at most"
        require(self.tensor_parallel <= most, few, fix="lower tensor_parallel, or choose a larger machine")
        shape_of(self.gpu.folder)

    @cached_property
    def gpu(self) -> ModelledGpu:
        """The modelled card that stands in for the machine's."""
        return gpu(find_instance(self.machine).card, model=self.served, tensor_parallel=self.tensor_parallel)

    @property
    def price(self) -> HourPrice:
        """The price of a machine per hour."""
        price = find_instance(self.machine).price(self.prices_on)
        assert price is not None
        return price

    @property
    def machines(self) -> int:
        """Machines for all replicas; where GPUs are rented one by one, GPUs."""
        gpus = find_instance(self.machine).gpus
        whole = gpus // self.tensor_parallel
        return -(-self.replicas // whole) if whole else self.replicas * -(-self.tensor_parallel // gpus)

    @property
    def fleet_usd(self) -> Fraction:
        """The machines' price per month of 730 hours, around the clock."""
        return self.machines * self.price.usd_per_hour * 24 * DAYS_PER_MONTH

    @property
    def selection(self) -> selector.Selection:
        """The selector's answer to the brief."""
        return selector.select(self.brief.answers)

    def api_usd(self, *, seed: int) -> Fraction:
        """Return the monthly price of the brief's requests at `api`, without cached input."""
        inputs, outputs = self.brief.mean_tokens(seed=seed)
        each = costs.price_of_request(self.api, input_tokens=inputs, output_tokens=outputs, on=self.prices_on)
        return each.usd_per_request * round(sum(self.brief.rates) * 3600) * DAYS_PER_MONTH

    def calculator(self, *, seed: int) -> str:
        """The cost calculator's fleet for the same day: it knows the capacity of a full replica, and no SLO."""
        inputs, outputs = self.brief.mean_tokens(seed=seed)
        question = {
            "requests_per_s": fmean(self.brief.rates),
            "hourly_load": self.brief.load,
            "peak_factor": 1.0,
            "buffer": 0.2,
            "input_tokens": inputs,
            "output_tokens": outputs,
            "instance": self.machine,
            "model": self.served,
            "tensor_parallel": self.tensor_parallel,
            "engineering_hours_per_month": 0,
            "api": self.api,
            "prices_on": self.prices_on,
        }
        try:
            return costs.calculate(costs.settings_from(question)).headline
        except UsageError as error:
            return f"the calculator cannot say: {error}"


def plan(parameters: Mapping[str, Any]) -> Plan:
    """The plan that the lab's parameters describe."""
    names = ("stack", "served", "machine", "replicas", "tensor_parallel", "router", "flags", "api")
    chosen = {name: parameters[name] for name in names}
    try:
        day = date.fromisoformat(parameters["prices_on"])
    except ValueError as error:
        raise UsageError(
            f"prices_on is {parameters['prices_on']!r}, not a date", remedy="write it as 2026-11-30"
        ) from error
    return Plan(brief=BRIEFS[parameters["brief"]], prices_on=day, **chosen)


def ranking(chosen: selector.Selection, stack: str) -> list[dict[str, Any]]:
    """The selector's ranking as rows; the plan's stack is marked."""
    return [
        {
            "": "your choice" if one.name == stack else "",
            "stack": one.name,
            "points": "out" if one.score is None else one.score,
            "excluded because": " ".join(reason.text.split(":")[0] for reason in one.excluded),
        }
        for one in chosen.ranking
    ]


# --- the trial on modelled GPUs ---


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A load on the modelled fleet. `good`: the share of requests within the SLO; `load_share`: of the capacity.

    `ttft_s`: the mean; None near and above the capacity, where queues determine it and it cannot be modelled."""

    requests: int
    good: float
    load_share: float
    ttft_s: float | None
    tpot_s: float
    cached: float
    promise: Promise

    @property
    def row(self) -> dict[str, Any]:
        """For a table."""
        return {
            "requests": self.requests,
            "in the SLO": f"{self.good:.1%}",
            "of capacity": f"{self.load_share:.0%}",
            "mean TTFT, ms": "a queue" if self.ttft_s is None else f"{1000 * self.ttft_s:.0f}",
            "mean TPOT, ms": f"{1000 * self.tpot_s:.1f}",
            "prompt tokens cached": f"{self.cached:.0%}",
        }


def trial(driven: Drive, engines: Sequence[Any], plan: Plan, slo: Slo | None = None) -> Trial:
    """Return the results of a drive of `engines`, by the brief's SLO or a stricter one."""
    from labkit.modelled.simulate import capacity_per_s

    records, core = driven.result.records, engines[0].llm_engine
    capacity = len(engines) * capacity_per_s(core.model_executor, core.vllm_config, driven)
    rate = len(records) / max(record.scheduled_s for record in records)
    known = _promise(plan, rate / capacity)
    waits = [record.ttft_s for record in records if record.ttft_s is not None]
    return Trial(
        requests=len(records),
        good=fmean((slo or plan.brief.slo).holds(record) for record in records),
        load_share=rate / capacity,
        ttft_s=fmean(waits) if known.shows_ttft else None,
        tpot_s=fmean(record.tpot_s for record in records if record.tpot_s is not None),
        cached=driven.prefix_hit_rate,
        promise=known,
    )


def _promise(plan: Plan, load_share: float) -> Promise:
    return promise(plan.gpu.card, plan.gpu.folder, tensor_parallel=plan.tensor_parallel, load_share=load_share)


def day_share(trials: Mapping[int, Trial], brief: Brief) -> float:
    """The share of the whole day's requests within the SLO, from the sampled hours."""
    weights = brief.weights(list(trials))
    return sum(weights[hour] * trials[hour].good for hour in trials)


def with_margin(plan: Plan, peak: Trial) -> tuple[float, Slo]:
    """The peak's rate and the SLO, made stricter by the worst error of the modelled GPU against real cards."""
    known, slo = peak.promise, plan.brief.slo
    worst = {name: errors.worst for name in ("tpot_ms", "ttft_ms", "output_per_s") if (errors := known.of(name))}
    tpot = worst.get("tpot_ms", 0.0)
    ttft = worst.get("ttft_ms", tpot) if known.shows_ttft else tpot
    stricter = Slo(ttft_s=(slo.ttft_s or 0) / (1 + ttft), tpot_s=(slo.tpot_s or 0) / (1 + tpot))
    return plan.brief.peak_per_s * (1 + worst.get("output_per_s", tpot)), stricter


# --- the small version, on a real engine ---

CARD_ONLY = (
    "gpu-memory-utilization",
    "kv-cache-dtype",
    "quantization",
    "block-size",
    "max-model-len",
    "tensor-parallel-size",
)


def small_flags(flags: str) -> str:
    """The plan's flags without those that only its card or its model's length can take."""
    words, kept = shlex.split(flags), list[str]()
    for number, word in enumerate(words):
        owner = next((w for w in reversed(words[: number + 1]) if w.startswith("--")), "")
        if owner.removeprefix("--").partition("=")[0] not in CARD_ONLY:
            kept.append(word)
    return shlex.join(kept)


def status_without_key(base_url: str) -> int:
    """Return the HTTP status of a request for the list of models without a key."""
    try:
        with urllib.request.urlopen(f"{base_url}/models", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


# --- the rubric and the note ---


@dataclass(frozen=True, kw_only=True)
class Found:
    """The lab's results for a plan. `peak`, `hard`: at the peak as planned, and with the model's worst error."""

    day_share: float
    peak: Trial
    hard: Trial
    fleet_usd: Fraction
    api_usd: Fraction
    asked: int
    answered: int
    status_without_key: int


@dataclass(frozen=True, kw_only=True)
class Point:
    """One requirement: `met` is None if nothing here can decide it."""

    requirement: str
    number: str
    met: bool | None

    @property
    def outcome(self) -> str:
        return "open" if self.met is None else "met" if self.met else "NOT MET"


def rubric(plan: Plan, found: Found) -> list[Point]:
    """The plan against its brief, point by point."""
    return [Point(requirement=name, number=number, met=met) for name, number, met in _points(plan, found)]


def _points(plan: Plan, found: Found) -> Iterator[tuple[str, str, bool | None]]:
    brief, api = plan.brief, plan.stack == "hosted-api"
    place = {one.name: (number, one) for number, one in enumerate(plan.selection.ranking, start=1)}
    number, ranked = place[plan.stack]
    data = [reason.text for reason in ranked.excluded if reason.rule in ("no-api", "no-cloud")]
    if not api and plan.machine in brief.ruled_out:
        data.append(f"{plan.machine}: {brief.ruled_out[plan.machine]}")
    yield "Data stay where the brief requires", " ".join(data) or "by stack and machine", not data
    others = [reason.text for reason in ranked.excluded if reason.rule not in ("no-api", "no-cloud")]
    behind = f"rank {number} of {len(place)}" if ranked.score is None else f"rank {number}, {ranked.score} points"
    yield "The selector does not exclude the stack", " ".join(others) or behind, not others
    served = known_models()[plan.api].like if api else plan.served
    billions = shape_of(model_folder(served)).parameters / 1e9 if served else None
    size = "not stated by the vendor" if billions is None else f"{served}: {billions:.1f} billion"
    at_least = f"At least {brief.least_billions:g} billion parameters"
    yield at_least, size, None if billions is None else billions >= brief.least_billions
    enough = f"Replicas: {brief.least_replicas} or more"
    if api:
        yield enough, "the vendor's; read its SLA", None
    else:
        yield enough, f"{plan.replicas}", plan.replicas >= brief.least_replicas
        alone = plan.stack == "vllm" and plan.replicas > 1
        yield "The stack serves that many", "one server is one replica" if alone else f"{plan.replicas}", not alone
    if brief.limits:
        yield "The model reads the images", "the trial and the small version used only text", None
    yield from _latency(plan, found)
    usd = found.api_usd if api else found.fleet_usd
    priced = plan.stack != "managed-endpoint"
    words = f"{costs.show_usd(usd)} per month" + (
        "" if priced else " for the machines alone; ask for the endpoint's price"
    )
    within = usd <= brief.usd_per_month
    yield f"Within ${brief.usd_per_month:,.0f} per month", words, within if priced or not within else None
    answered = f"{found.answered} of {found.asked} answered, {found.status_without_key} without the key"
    yield (
        "The small version works, and only with its key",
        answered,
        (found.answered == found.asked and found.status_without_key == 401),
    )


def _latency(plan: Plan, found: Found) -> Iterator[tuple[str, str, bool | None]]:
    """Yield the points that depend on the modelled fleet, open if it does not apply to the stack or the card."""
    brief, known = plan.brief, found.peak.promise
    engine = selector.catalogue().stacks[plan.stack].engine
    title = selector.catalogue().stacks[plan.stack].title
    unknown = "" if engine.startswith("vLLM") else f"tried only with vLLM; {title} is not modelled: use labkit load"
    unknown = unknown or known.direction_only

    def told(number: str, met: bool) -> tuple[str, bool | None]:
        return (unknown, None) if unknown else (number, met)

    day = f"{found.day_share:.1%} of the sampled day"
    yield (f"{brief.share:.0%} of the day within the SLO", *told(day, found.day_share >= brief.share))
    hard = f"{found.hard.good:.1%} of {found.hard.requests} requests"
    yield ("At the peak, with the worst known error of the modelled GPU", *told(hard, found.hard.good >= brief.share))
    counted = min(found.peak.requests, found.hard.requests)
    yield (f"At least {ENOUGH} requests behind it", *told(f"{counted}", counted >= ENOUGH))
    if brief.most_busy < 1:
        busy = f"{found.peak.load_share:.0%} of capacity"
        free = f"At most {brief.most_busy:.0%} busy at the peak"
        yield (free, *told(busy, found.peak.load_share <= brief.most_busy))


def failing(points: Sequence[Point]) -> list[str]:
    """The requirements that are not met."""
    return [point.requirement for point in points if point.met is False]


def with_other_stacks(plan: Plan, found: Found) -> list[dict[str, Any]]:
    """Return the rubric's result for the same numbers with each stack of the selector, as rows."""
    judged = {name: rubric(replace(plan, stack=name), found) for name in selector.catalogue().stacks}
    return [
        {"stack": name, "not met": "; ".join(failing(points)) or "nothing", "open": sum(p.met is None for p in points)}
        for name, points in judged.items()
    ]


def design_note(plan: Plan, found: Found, *, decision: str, here: str, start_s: float) -> str:
    """Return the design note as Markdown: the decision, the rubric, and the sources of the numbers."""
    from jinja2 import Environment, StrictUndefined

    points = rubric(plan, found)
    titles = {name: stack.title for name, stack in selector.catalogue().stacks.items()}
    failed = failing(points)
    what = f"{plan.api}" if plan.stack == "hosted-api" else f"{plan.served} on {plan.replicas} x {plan.machine}"
    still = sum(point.met is None for point in points)
    held = "every requirement is met" if not still else f"every requirement that could be checked is met, {still} open"
    ready = f"not ready: {'; '.join(failed)}" if failed else held
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"usd": costs.show_usd}
    template = (Path(__file__).parent / "design_note.md.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        plan=plan,
        found=found,
        points=points,
        decision=decision or f"{titles[plan.stack]}, {what}: {ready}.",
        stack_title=titles[plan.stack],
        flips=[(flip.question, flip.answer, titles[flip.winner]) for flip in plan.selection.flips[:SHOWN]],
        here=here,
        start_s=start_s,
    )
