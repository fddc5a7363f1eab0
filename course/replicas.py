"""What clients and Ray Serve's status see while replicas start, end and break (lab 05b)."""

import asyncio
import contextlib
import io
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from statistics import median

from course.deployed import Call
from labkit import charts
from labkit.serving.ray_watch import INTERVAL_S, Answer, Ask, Observation
from labkit.session import LabSession
from labkit.words import amount

SETTLED_S = 2.0  # how long replicas have to run before a load ends


def _s(seconds: float) -> str:
    return amount(seconds, "s")


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
        one = "more than one was still running at the end"
        down = one if self.removed_s is None else f"one was left {_s(self.removed_s)} after the load"
        return f"by the rule {by_rule} replicas, by Ray Serve {self.most}; {up}; {down}"

    def chart(self) -> charts.Chart:
        """Replicas, requests and latencies over time; the title says how many were added."""
        added = "no replica" if self.most < 2 else f"{self.most - 1} more replica{'s' * (self.most > 2)}"
        return charts.scaling_timeline(
            replicas=self.seen.replicas,
            in_flight=self.seen.in_flight(),
            latencies=[(answer.sent_s, answer.latency_s) for answer in self.seen.answers if answer.ok],
            moments=[charts.Moment(self.step_s, "requests take longer"), charts.Moment(self.end_s, "last answer")],
            title=f"At a constant rate, longer requests add {added}",
        )

    def evidence(self, lab: LabSession) -> None:
        """Record evidence on C38: replicas before and after the step, at the same rate, and the delays."""
        before = max(count for at, count in self.seen.replicas if at <= self.step_s)
        lab.measure("most_replicas", "replicas", float(self.most))
        for name, seconds in (("upscale_after_s", self.added_s), ("downscale_after_s", self.removed_s)):
            if seconds is not None:
                lab.measure(name, "s", seconds)
        parameters = lab.parameters
        changed = {"replicas_short": before, "replicas_added": self.most - before}
        lab.evidence("C38", rate=parameters["step_rate"], target_ongoing=parameters["target_ongoing"], **changed)


async def stepped(lab: LabSession, url: str, deployment: str, *, replicas: int) -> Scaling:
    """Short requests for two seconds, then long ones at the same rate until `replicas` have run for a while; then wait
    until one replica is left."""
    parameters, seen = lab.parameters, Observation()

    def settled() -> bool:
        recent = [count for at, count in seen.replicas if at > seen.now_s() - SETTLED_S]
        return seen.now_s() > 3 * SETTLED_S and min(recent, default=0) >= replicas

    async with seen.watching(url.rsplit("/", 1)[-1], deployment):
        short, long = (Ask(f"{url}?s={parameters[name]}") for name in ("short_s", "long_s"))
        await seen.ask_until(short, lambda: False, rate=parameters["step_rate"], at_most_s=2)
        step_s = seen.now_s()
        await seen.ask_until(long, settled, rate=parameters["step_rate"], at_most_s=30)
        end_s = seen.now_s()
        until_s = end_s + 5 * parameters["downscale_delay_s"] + 10
        while seen.replicas[-1][1] > 1 and seen.now_s() < until_s:
            await asyncio.sleep(INTERVAL_S)
    return Scaling(seen, step_s, end_s)


def burst_words(answers: Sequence[Answer], *, room: int) -> str:
    """Return how many requests of a burst were answered and refused, and after how long."""
    answered, refused = ([a for a in answers if a.status == status] for status in (200, 503))
    waits = {name: median(a.latency_s for a in group) for name, group in (("200", answered), ("503", refused)) if group}
    spans = ", ".join(f"{name} after {_s(wait)} (median)" for name, wait in waits.items())
    way = "more" if len(answered) > room else "fewer" if len(answered) < room else "exactly as many"
    text = refused[0].text if refused else ""
    counts = f"{len(answers)} at once: {len(answered)} answered, {len(refused)} refused"
    allowed = f"the limits allow {room} in flight and queued, and {way} were answered"
    return f"{counts}; {allowed}\n{spans}\n{text}".strip()


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
    def fails_for_s(self) -> float:
        """How long after the fault the last request failed."""
        return max((answer.finished_s for answer in self.failed), default=self.broke_s) - self.broke_s

    @property
    def over_before_replaced(self) -> bool:
        """Whether requests stopped failing before another replica answered. Both times grow on a slow machine."""
        return self.broke_s + self.fails_for_s < (self.replaced_s or self.seen.now_s())

    @property
    def lasts(self) -> bool:
        """Whether requests still failed in the last third of the load after the fault."""
        return self.fails_for_s > 2 / 3 * (max(answer.sent_s for answer in self.seen.answers) - self.broke_s)

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

    def kind(self, *, in_flight: float) -> int:
        """0 for nothing lost, 1 for about what a replica had in flight, 2 for far more."""
        lost = len(self.failed)
        return 0 if not lost else 1 if lost <= 3 * in_flight + 2 else 2

    def after_s(self, at: float | None) -> str:
        """How long after the fault, in words."""
        return "never" if at is None else f"after {_s(at - self.broke_s)}"

    def words(self, fault: str) -> str:
        """What failed, and when Serve noticed and had another replica."""
        failed = f"{len(self.failed)} requests failed"
        return f"{fault}: noticed {self.after_s(self.noticed_s)}, replaced {self.after_s(self.replaced_s)}, {failed}"

    def chart(self, title: str) -> charts.Chart:
        """Replicas by Serve's status, requests in flight and latencies, with the time in which nothing was noticed."""
        until = self.noticed_s or self.seen.now_s()
        return charts.scaling_timeline(
            replicas=self.seen.replicas,
            in_flight=self.seen.in_flight(),
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

    async with seen.watching(application, deployment):
        load = seen.ask_until(Ask(url), over, rate=rate, at_most_s=at_most_s)
        await asyncio.gather(break_later(), load)
        await asyncio.sleep(2 * INTERVAL_S)
    return Outage(seen, broke[0])


async def outages(*together: Awaitable[Outage]) -> list[Outage]:
    """Run outages at the same time, without the long messages that Ray prints on a death.

    One redirection for all: of two that overlap, the one that ends last would restore the other's buffer.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        return await asyncio.gather(*together)


def measure_outages(lab: LabSession, **outages: Outage) -> None:
    """Record what each outage cost and when it was noticed and over."""
    for name, seen in outages.items():
        lab.measure(f"failed_{name}", "requests", float(len(seen.failed)))
        for what, at in (("noticed", seen.noticed_s), ("replaced", seen.replaced_s)):
            if at is not None:
                lab.measure(f"{what}_after_s_{name}", "s", at - seen.broke_s)
