"""Lab 05b: handlers, replicas and their health on Ray Serve; exercises whose classes run in the lab's Serve."""

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from course.deployed import FAILS, Call, called_here, outcome, running
from labkit import charts
from labkit.errors import require
from labkit.experiments import interval, paired_ratio
from labkit.load.blocking import blocking
from labkit.session import LabSession
from labkit.teaching import solution

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
    """Return the most concurrent callers of `order_status` since the last call of this function."""
    global _most
    with _arrived:
        most, _most = _most, 0
    return most


def _with_report(answer: type) -> type:
    """Return the learner's class with a method that reports, from its own process, the most concurrent callers."""

    class Reporting(answer):  # type: ignore[misc]
        async def report(self) -> int:
            from course import lab_05b  # in the replica: this module's own counter, not a copy of it

            return lab_05b.most_at_a_time()

    Reporting.__module__ = answer.__module__
    return Reporting


TOGETHER, UNKNOWN, INSIDE = "two known orders", "an unknown order", "the most callers inside order_status together"


def looked_up(answer: type, cases: Sequence[tuple[str]]) -> list[Any]:
    """What callers of a deployed lookup get, by case."""

    async def ask(call: Call) -> dict[str, Any]:
        most_at_a_time()
        known = await asyncio.gather(*(outcome(call("__call__", order)) for order in ORDERS))
        return {
            TOGETHER: list(known),
            UNKNOWN: await outcome(call("__call__", "Z99"), FAILS),
            INSIDE: await call("report"),
        }

    with running(_with_report(answer)) as call:
        seen = blocking(ask)(call)
    return [seen[name] for (name,) in cases]


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
    observe=looked_up,
    wrong={
        "event loop blocked and error hidden": _BlockingAndHiding,
        "event loop blocked": _Blocking,
        "error hidden from the caller": _Hiding,
    },
)


# --- the health of an engine, for the second exercise ---


class EngineDeadError(RuntimeError):
    """The engine's process has ended."""


class Engine:
    """A stand-in for an engine in a separate process. `alive`: whether that process runs."""

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
HEALTHY, RAISES = "check_health returns", "check_health raises"


def checked(answer: type, cases: Sequence[tuple[str]]) -> list[Any]:
    """Return whether `check_health` of a deployed writer returns or raises, by case."""

    class Breakable(answer):  # type: ignore[misc]
        async def end_engine(self) -> None:
            self.engine.alive = False

    Breakable.__module__ = answer.__module__

    async def state(call: Call) -> str:
        try:
            await call("check_health")
        except Exception:
            return RAISES
        return HEALTHY

    async def ask(call: Call) -> dict[str, str]:
        seen = {FINE: await state(call)}
        await outcome(call("__call__", ""))
        seen[REFUSED] = await state(call)
        await call("end_engine")
        seen[DEAD] = await state(call)
        return seen

    if blocking(state)(called_here(Breakable)) == RAISES:
        return [RAISES for _ in cases]  # Serve does not start a replica that fails its first check
    with running(Breakable) as call:
        seen = blocking(ask)(call)
    return [seen[name] for (name,) in cases]


class Writer:
    """A model in an engine that runs in a separate process."""

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


class _Inverted(Writer):
    async def check_health(self) -> None:
        if self.engine.alive:
            raise EngineDeadError("the engine has died")


solution(
    "05b.health",
    Writer,
    exact=True,
    cases=[(FINE,), (REFUSED,), (DEAD,)],
    observe=checked,
    wrong={
        "a dead engine reported as healthy": [_Silent, _False],
        "every failed request treated as a dead engine": _Touchy,
        "a check that fails on a healthy engine": [_Probing, _Inverted],
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
        "rate taken for concurrency": lambda rate, _duration_s, target, low, high: _within(
            -int(-rate // target), low, high
        ),
        "rounded down": [
            lambda rate, duration_s, target, low, high: _within(int(rate * duration_s / target), low, high),
            lambda rate, duration_s, target, low, high: _within(round(rate * duration_s / target), low, high),
        ],
        "maximum ignored": lambda rate, duration_s, target, low, _high: desired_replicas(
            rate, duration_s, target, low, 10**9
        ),
        "minimum ignored": lambda rate, duration_s, target, _low, high: desired_replicas(
            rate, duration_s, target, 0, high
        ),
        "one replica per request": lambda rate, duration_s, _target, low, high: desired_replicas(
            rate, duration_s, 1, low, high
        ),
        "one too many for an exact multiple": lambda rate, duration_s, target, low, high: _within(
            int(rate * duration_s / target) + 1, low, high
        ),
    },
)


# --- the lab's own runs ---


def check_parameters(lab: LabSession) -> None:
    """Raise a UsageError for a step that would not start a replica, before Ray starts."""
    parameters = lab.parameters
    rate, short_s, long_s = parameters["step_rate"], parameters["short_s"], parameters["long_s"]
    before, after = (desired_replicas(rate, s, parameters["target_ongoing"], 1, 10**9) for s in (short_s, long_s))
    busy = f"{rate:g} requests/s of {short_s:g} s ask for {before} replicas before the step"
    require(before == 1, busy, fix="lower step_rate or short_s: one replica must be enough before the step")
    idle = f"{rate:g} requests/s of {long_s:g} s ask for one replica: nothing would happen"
    require(after > 1, idle, fix="raise step_rate or long_s")
    most = parameters["max_replicas"]
    never = f"the step asks for {after} replicas and max_replicas is {most}: the queue would only grow"
    require(after <= most, never, fix=f"set max_replicas to {after} or more, or lower long_s")


def handlers_evidence(lab: LabSession, handled: Mapping[str, Sequence[float]]) -> int:
    """Record evidence on C32. Return which handler serves less than half of the asynchronous one's calls: 0 the plain
    one, 1 the blocking one, 2 both, 3 none."""
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
    intervals = {name: interval(values, seed=seed) for name, values in handled.items()}
    bars = [charts.Bar(name, rate.value, rate.low, rate.high) for name, rate in intervals.items()]
    slow, fast = (pick(intervals, key=lambda name: intervals[name].value) for pick in (min, max))
    title = f"{slow}: {intervals[slow].value / intervals[fast].value:.0%} of the calls per second of {fast}"
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
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns, dtype=object)  # 3 replicas, not 3.0
