"""Lab 05b: handlers, replicas and their health on Ray Serve; exercises whose classes run in the lab's Serve."""

import asyncio
import contextlib
import io
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from course.deployed import Call, outcome, running
from labkit import charts
from labkit.errors import require
from labkit.experiments import interval, paired_ratio
from labkit.load.client import blocking
from labkit.serving.ray_watch import INTERVAL_S, Answer, Ask, Observation
from labkit.session import LabSession
from labkit.teaching import solution
from labkit.words import amount

SETTLED_S = 2.0
MEET_S = 0.7  # how long a caller of `order_status` waits for a second one before it is alone


# --- a client library that blocks, for the first exercise ---

ORDERS = {"A17": "shipped", "B42": "packed"}
_arrived = threading.Condition()
_inside = 0
_most = 0


def order_status(order: str) -> str:
    """Look an order up. It blocks its thread, as many client libraries do. KeyError: an unknown order."""
    global _inside, _most
    status = ORDERS[order]
    with _arrived:
        _inside += 1
        _most = max(_most, _inside)
        _arrived.notify_all()
        _arrived.wait_for(lambda: _most > 1, timeout=MEET_S)
    time.sleep(0.05)
    with _arrived:
        _inside -= 1
    return status


def most_at_a_time() -> int:
    """The most callers that were inside `order_status` together since it was last asked for."""
    global _most
    with _arrived:
        most, _most = _most, 0
    return most


def _with_report(answer: type) -> type:
    """The learner's class, and a method that tells from its own process how many callers were inside together."""

    class Reporting(answer):  # type: ignore[misc]
        async def report(self) -> int:
            from course import lab_05b  # in the replica: this module's own counter, not a copy of it

            return lab_05b.most_at_a_time()

    Reporting.__module__ = answer.__module__
    return Reporting


TOGETHER, UNKNOWN, INSIDE = "two known orders", "an unknown order", "the most callers inside order_status together"


def looked_up(answer: type, cases: Sequence[str]) -> list[Any]:
    """What callers of a deployed lookup get, by case."""

    async def ask(call: Call) -> dict[str, Any]:
        most_at_a_time()
        known = await asyncio.gather(*(outcome(call("__call__", order), KeyError) for order in ORDERS))
        return {
            TOGETHER: list(known),
            UNKNOWN: await outcome(call("__call__", "Z99"), KeyError),
            INSIDE: await call("report"),
        }

    with running(_with_report(answer)) as call:
        seen = blocking(ask)(call)
    return [seen[case] for case in cases]


class Lookup:
    """Looks orders up with a library that blocks."""

    async def __call__(self, order: str) -> str:
        return await asyncio.to_thread(order_status, order)


class _Blocking:
    async def __call__(self, order: str) -> str:
        return order_status(order)


class _Hiding:
    async def __call__(self, order: str) -> Any:
        try:
            return await asyncio.to_thread(order_status, order)
        except Exception as error:
            return {"error": repr(error)}


class _BlockingAndHiding:
    async def __call__(self, order: str) -> Any:
        try:
            return order_status(order)
        except Exception as error:
            return {"error": repr(error)}


solution(
    "05b.lookup",
    Lookup,
    exact=True,
    cases=[(TOGETHER,), (UNKNOWN,), (INSIDE,)],
    examine=looked_up,
    wrong={
        "the loop blocked and the error hidden": _BlockingAndHiding,
        "the loop blocked": _Blocking,
        "the error hidden": _Hiding,
    },
)


# --- the health of an engine, for the second exercise ---


class EngineDeadError(RuntimeError):
    """The engine's process has ended."""


class Engine:
    """Stands for an engine in a process of its own. `alive`: whether that process runs."""

    def __init__(self) -> None:
        self.alive = True

    async def generate(self, prompt: str) -> str:
        """EngineDeadError without its process, ValueError for a prompt that it refuses."""
        if not self.alive:
            raise EngineDeadError("the engine has died")
        if not prompt:
            raise ValueError("the prompt is empty")
        return prompt.upper()


FINE, REFUSED, DEAD = "a healthy engine", "after a request that the engine refused", "a dead engine"
HEALTHY = "check_health returns"


def checked(answer: type, cases: Sequence[str]) -> list[Any]:
    """Whether `check_health` of a deployed writer returns or raises, by case."""

    class Breakable(answer):  # type: ignore[misc]
        async def end_engine(self) -> None:
            self.engine.alive = False

    Breakable.__module__ = answer.__module__

    async def state(call: Call) -> str:
        try:
            await call("check_health")
        except Exception:
            return "check_health raises"
        return HEALTHY

    async def ask(call: Call) -> dict[str, str]:
        seen = {FINE: await state(call)}
        await outcome(call("__call__", ""), ValueError)
        seen[REFUSED] = await state(call)
        await call("end_engine")
        seen[DEAD] = await state(call)
        return seen

    with running(Breakable) as call:
        seen = blocking(ask)(call)
    return [seen[case] for case in cases]


class Writer:
    """A model in an engine with a process of its own."""

    def __init__(self) -> None:
        self.engine = Engine()

    async def __call__(self, prompt: str) -> str:
        return await self.engine.generate(prompt)

    async def check_health(self) -> None:
        if not self.engine.alive:
            raise EngineDeadError("the engine has died")


class _Silent(Writer):
    async def check_health(self) -> None: ...


class _False(Writer):
    async def check_health(self) -> Any:
        return self.engine.alive


class _Touchy(Writer):
    failed = False

    async def __call__(self, prompt: str) -> str:
        try:
            return await self.engine.generate(prompt)
        except Exception:
            self.failed = True
            raise

    async def check_health(self) -> None:
        if self.failed or not self.engine.alive:
            raise EngineDeadError("a request has failed")


class _Probing(Writer):
    async def check_health(self) -> None:
        await self.engine.generate("")


solution(
    "05b.health",
    Writer,
    exact=True,
    cases=[(FINE,), (REFUSED,), (DEAD,)],
    examine=checked,
    wrong={
        "a dead engine reported as healthy": [_Silent, _False],
        "every failed request counted": _Touchy,
        "a check that the engine refuses": _Probing,
    },
)


# --- how many replicas a load asks for ---


def desired_replicas(
    rate: float, duration_s: float, target_ongoing: float, min_replicas: int, max_replicas: int
) -> int:
    needed = int(-(-rate * duration_s // target_ongoing))  # // rounds down; of the negative number, up
    return min(max(needed, min_replicas), max_replicas)


def _within(replicas: int, low: int, high: int) -> int:
    return min(max(replicas, low), high)


solution(
    "05b.replicas",
    desired_replicas,
    unit="replicas",
    cases=(
        (40.0, 0.9, 5.0, 1, 20),
        (8.0, 0.7, 2.0, 1, 10),
        (8.0, 0.05, 2.0, 2, 10),
        (100.0, 1.0, 2.0, 1, 9),
        (11.0, 0.4, 2.0, 1, 3),
        (10.0, 1.0, 2.0, 1, 20),
    ),
    wrong={
        "volume taken for concurrency": lambda rate, _duration_s, target, low, high: _within(
            -int(-rate // target), low, high
        ),
        "rounded down": [
            lambda rate, duration_s, target, low, high: _within(int(rate * duration_s / target), low, high),
            lambda rate, duration_s, target, low, high: _within(round(rate * duration_s / target), low, high),
        ],
        "the upper limit forgotten": lambda rate, duration_s, target, low, _high: desired_replicas(
            rate, duration_s, target, low, 10**9
        ),
        "the lower limit forgotten": lambda rate, duration_s, target, _low, high: desired_replicas(
            rate, duration_s, target, 0, high
        ),
        "one replica for each request": lambda rate, duration_s, _target, low, high: desired_replicas(
            rate, duration_s, 1, low, high
        ),
        "one too many where it divides evenly": lambda rate, duration_s, target, low, high: _within(
            int(rate * duration_s / target) + 1, low, high
        ),
    },
)


# --- the lab's own runs ---


def check_parameters(lab: LabSession) -> None:
    """Refuse a step that would start no replica, before Ray starts. UsageError."""
    asked = lab.parameters
    rate, short_s, long_s = asked["step_rate"], asked["short_s"], asked["long_s"]
    before, after = (desired_replicas(rate, s, asked["target_ongoing"], 1, 10**9) for s in (short_s, long_s))
    busy = f"{rate:g} requests/s of {short_s:g} s ask for {before} replicas before the step"
    require(before == 1, busy, fix="lower step_rate or short_s: one replica has to do at first")
    idle = f"{rate:g} requests/s of {long_s:g} s ask for one replica: nothing would happen"
    require(after > 1, idle, fix="raise step_rate or long_s")
    most = asked["max_replicas"]
    never = f"the step asks for {after} replicas and max_replicas is {most}: the queue would only grow"
    require(after <= most, never, fix=f"set max_replicas to {after} or more, or lower long_s")


@dataclass(frozen=True)
class Outage:
    """A replica that broke at `broke_s` while requests came, as clients and Serve's status saw it."""

    seen: Observation
    broke_s: float

    @property
    def failed(self) -> list[Answer]:
        """Requests that neither got an answer nor were refused for a full queue."""
        return [answer for answer in self.seen.answers if not answer.ok and answer.status != 503]

    @property
    def failed_share(self) -> float:
        """The share of the requests sent after the replica broke that failed."""
        after = [answer for answer in self.seen.answers if answer.sent_s >= self.broke_s]
        return sum(not answer.ok for answer in after) / len(after)

    @property
    def noticed_s(self) -> float | None:
        """When Serve's status first counted fewer replicas; None while it did not."""
        most = max(count for _, count in self.seen.replicas)
        return next((at for at, count in self.seen.replicas if at >= self.broke_s and count < most), None)

    @property
    def replaced_s(self) -> float | None:
        """When a replica first answered that had not answered before; None while none did."""
        answers = [answer for answer in self.seen.answers if answer.ok]
        known = {answer.text for answer in answers if answer.finished_s < self.broke_s}
        return min((answer.finished_s for answer in answers if answer.text not in known), default=None)

    def kind(self, *, in_progress: float) -> int:
        """0 for nothing lost, 1 for about what a replica had in progress, 2 for far more."""
        lost = len(self.failed)
        return 0 if not lost else 1 if lost <= 3 * in_progress + 2 else 2

    def after_s(self, at: float | None) -> str:
        """How long after the fault, in words."""
        return "never" if at is None else f"after {_s(at - self.broke_s)}"

    def words(self, fault: str) -> str:
        """What failed, and when Serve noticed and had another replica."""
        failed = f"{len(self.failed)} requests failed"
        return f"{fault}: noticed {self.after_s(self.noticed_s)}, replaced {self.after_s(self.replaced_s)}, {failed}"

    def chart(self, title: str) -> charts.Chart:
        """Replicas by Serve's status, requests under way and latencies, with the time in which nothing was noticed."""
        until = self.noticed_s or self.seen.now_s()
        return charts.scaling_timeline(
            replicas=self.seen.replicas,
            under_way=self.seen.under_way(),
            latencies=[(answer.sent_s, answer.latency_s) for answer in self.seen.answers if answer.ok],
            lost=[answer.sent_s for answer in self.failed],
            unnoticed=(self.broke_s, until),
            moments=[charts.Moment(self.broke_s, "not noticed yet")],
            title=title,
        )


async def outage(
    url: str, application: str, deployment: str, break_one: Call, *, rate: float, at_most_s: float
) -> Outage:
    """Send requests at `rate`, break a replica after a second, and go on until another one answers in its place."""
    seen, broke = Observation(), list[float]()

    async def break_later() -> None:
        await asyncio.sleep(1)
        await break_one()
        broke.append(seen.now_s())

    def over() -> bool:
        return bool(broke) and Outage(seen, broke[0]).replaced_s is not None

    with contextlib.redirect_stdout(io.StringIO()):  # Ray prints a long message on a death
        async with seen.watching(application, deployment):
            load = seen.ask_until(Ask(url), over, rate=rate, at_most_s=at_most_s)
            await asyncio.gather(break_later(), load)
            await asyncio.sleep(2 * INTERVAL_S)
    return Outage(seen, broke[0])


def _s(seconds: float) -> str:
    return amount(seconds, "s")


def handlers_evidence(lab: LabSession, handled: Mapping[str, Sequence[float]]) -> int:
    """C32; 0 if only the plain handler serves less than half of the asynchronous one, 1 if only the blocking one does,
    2 for both, 3 for none."""
    plain, blocked = (
        paired_ratio(handled[name], handled["asynchronous"], name=f"{name}_over_async", seed=lab.seed)
        for name in ("plain", "blocking")
    )
    for ratio in (plain, blocked):
        lab.ratio(ratio, tolerance=1.0)
    lab.evidence("C32", sync=plain, blocking=blocked, clients=lab.parameters["handler_clients"])
    return [[3, 1], [0, 2]][plain.value < 0.5][blocked.value < 0.5]


def handler_chart(handled: Mapping[str, Sequence[float]], wait_s: float, *, seed: int) -> charts.Chart:
    """Calls per second of each handler, beside the rate of one call after the other; the title names the slowest."""
    found = {name: interval(values, seed=seed) for name, values in handled.items()}
    bars = [charts.Bar(name, rate.value, rate.low, rate.high) for name, rate in found.items()]
    slow, fast = (pick(found, key=lambda name: found[name].value) for pick in (min, max))
    title = f"{slow}: {found[slow].value / found[fast].value:.0%} of the calls per second of {fast}"
    about = {"title": title, "unit": "calls/s", "axis_title": "calls per second"}
    return charts.bars_with_intervals(bars, **about, formula=("one after the other", 1 / wait_s))


def defaults_table(here: Mapping[str, Any]) -> Any:
    """The autoscaling defaults of a bare config and of num_replicas="auto", beside the lab's own values."""
    import pandas as pd
    from ray import serve
    from ray.serve.config import AutoscalingConfig

    auto = serve.deployment(num_replicas="auto")(Lookup)._deployment_config.autoscaling_config
    bare = AutoscalingConfig()
    rows = {name: [getattr(bare, name), getattr(auto, name), value] for name, value in here.items()}
    columns = ["AutoscalingConfig()", 'num_replicas="auto"', "in this lab"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


@dataclass(frozen=True)
class Scaling:
    """A load whose requests grow longer at `step_s` and end at `end_s`, and the replicas meanwhile."""

    seen: Observation
    step_s: float
    end_s: float

    @property
    def most(self) -> int:
        """The most replicas at a time."""
        return max(count for _, count in self.seen.replicas)

    @property
    def added_s(self) -> float | None:
        """When a second replica ran first, after the step."""
        return next((at - self.step_s for at, count in self.seen.replicas if count > 1), None)

    @property
    def removed_s(self) -> float | None:
        """When one replica was left, after the load."""
        return next((at - self.end_s for at, count in self.seen.replicas if at > self.end_s and count == 1), None)

    def words(self, by_rule: int) -> str:
        """The replicas by the rule and by Ray Serve, and the delays."""
        up = "no second replica ran" if self.added_s is None else f"a second one ran {_s(self.added_s)} after the step"
        one = "more than one ran to the end"
        down = one if self.removed_s is None else f"one was left {_s(self.removed_s)} after the load"
        return f"by the rule {by_rule} replicas, by Ray Serve {self.most}; {up}; {down}"

    def chart(self) -> charts.Chart:
        """Replicas, requests and latencies over time; the title says how many were added."""
        added = "no replica" if self.most < 2 else f"{self.most - 1} more replica{'s' * (self.most > 2)}"
        return charts.scaling_timeline(
            replicas=self.seen.replicas,
            under_way=self.seen.under_way(),
            latencies=[(answer.sent_s, answer.latency_s) for answer in self.seen.answers if answer.ok],
            moments=[charts.Moment(self.step_s, "requests grow longer"), charts.Moment(self.end_s, "last answer")],
            title=f"At a constant rate, longer requests bring {added}",
        )

    def evidence(self, lab: LabSession) -> None:
        """C38: replicas before and after the step, at the same rate; the delays are measured."""
        before = max(count for at, count in self.seen.replicas if at <= self.step_s)
        lab.measure("most_replicas", "replicas", float(self.most))
        for name, seconds in (("upscale_after_s", self.added_s), ("downscale_after_s", self.removed_s)):
            if seconds is not None:
                lab.measure(name, "s", seconds)
        asked = lab.parameters
        changed = {"replicas_short": before, "replicas_added": self.most - before}
        lab.evidence("C38", rate=asked["step_rate"], target_ongoing=asked["target_ongoing"], **changed)


async def stepped(lab: LabSession, url: str, deployment: str, *, replicas: int) -> Scaling:
    """Short requests for two seconds, then long ones at the same rate until `replicas` have run for a while; then wait
    until one replica is left."""
    asked, seen = lab.parameters, Observation()

    def settled() -> bool:
        recent = [count for at, count in seen.replicas if at > seen.now_s() - SETTLED_S]
        return seen.now_s() > 3 * SETTLED_S and min(recent, default=0) >= replicas

    async with seen.watching(url.rsplit("/", 1)[-1], deployment):
        short, long = (Ask(f"{url}?s={asked[name]}") for name in ("short_s", "long_s"))
        await seen.ask_until(short, lambda: False, rate=asked["step_rate"], at_most_s=2)
        step_s = seen.now_s()
        await seen.ask_until(long, settled, rate=asked["step_rate"], at_most_s=30)
        end_s = seen.now_s()
        until_s = end_s + 5 * asked["downscale_delay_s"] + 10
        while seen.replicas[-1][1] > 1 and seen.now_s() < until_s:
            await asyncio.sleep(INTERVAL_S)
    return Scaling(seen, step_s, end_s)


def burst_words(answers: Sequence[Answer], *, room: int) -> str:
    """How many of a burst were answered and refused, and after how long."""
    answered, refused = ([a for a in answers if a.status == status] for status in (200, 503))
    waits = {name: median(a.latency_s for a in group) for name, group in (("200", answered), ("503", refused)) if group}
    spans = ", ".join(f"{name} after {_s(wait)} (median)" for name, wait in waits.items())
    way = "more than" if len(answered) > room else "fewer than" if len(answered) < room else "exactly"
    text = refused[0].text if refused else ""
    counts = f"{len(answers)} at once: {len(answered)} answered, {len(refused)} refused"
    return f"{counts}; {way} the sum of {room} got an answer\n{spans}\n{text}".strip()


def measure_outages(lab: LabSession, **outages: Outage) -> None:
    """Record what each outage cost and when it was noticed and over."""
    for name, found in outages.items():
        lab.measure(f"failed_{name}", "requests", float(len(found.failed)))
        for what, at in (("noticed", found.noticed_s), ("replaced", found.replaced_s)):
            if at is not None:
                lab.measure(f"{what}_after_s_{name}", "s", at - found.broke_s)
