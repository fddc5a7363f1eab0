"""Lab 07's batches: who waits for a long answer, the law of batching, and static batches on a modelled card."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from course import lab_07
from labkit import charts, experiments
from labkit.charts import draw
from labkit.charts.render import finish
from labkit.errors import require
from labkit.load import LoadResult
from labkit.load.blocking import blocking
from labkit.modelled import Traffic, drive, traces, traffic
from labkit.modelled.traces import Lengths
from labkit.serving import ray_watch
from labkit.serving.ray_watch import Answer, Ask
from labkit.serving.torchserve import TorchServe
from labkit.vega import WIDTH

# --- who waits for a long answer ---


SHORT_TOKENS = 4
NOT_SENT = "not sent yet"


def company(*, long_tokens: int, later_s: float) -> tuple[list[int], list[float]]:
    """Tokens and times of eight requests: a long one and three short ones together, four short ones later."""
    return [long_tokens, *[SHORT_TOKENS] * 7], [0.0] * 4 + [later_s] * 4


@dataclass(frozen=True)
class Waits:
    """Seconds from request to answer: of the long answer, of the short ones beside it and of those that came later.

    `short_batch_s`: from the long answer to the last of the later ones, which a static batch computes alone by then."""

    long_s: float
    beside_s: float
    later_s: float
    short_batch_s: float


def waits(answers: Sequence[Answer]) -> Waits:
    """Return the long answer's latency and the means of the other two groups. UsageError if a request failed."""
    failed = [answer.status for answer in answers if not answer.ok]
    require(not failed, f"{len(failed)} of {len(answers)} requests failed: {failed}", fix="see the server's log")
    seconds = [answer.latency_s for answer in answers]
    alone_s = max(answer.finished_s for answer in answers) - answers[0].finished_s
    return Waits(seconds[0], statistics.mean(seconds[1:4]), statistics.mean(seconds[4:]), alone_s)


def who_waits(found: Waits) -> int:
    """Return which short answers wait for the long one: 0 none, 1 those beside it, 2 also those that came later.

    An answer waits if it takes more than twice the time of a batch of short answers."""
    limit_s = 2 * found.short_batch_s
    return (found.beside_s > limit_s) + (min(found.beside_s, found.later_s) > limit_s)


def batch_times(answers: Sequence[Answer]) -> tuple[float, float]:
    """Return the seconds of a full batch's first step (prefill) and of each later step, from two batches of different
    lengths."""
    found = waits(answers)
    long_tokens = json.loads(answers[0].text)["usage"]["completion_tokens"]
    step_s = (found.long_s - found.short_batch_s) / (long_tokens - SHORT_TOKENS)
    return found.short_batch_s - (SHORT_TOKENS - 1) * step_s, step_s


def waits_chart(runs: Mapping[str, Sequence[Answer]], *, title: str) -> charts.Chart:
    """A bar from sending to answer for each request, for each handler."""
    names = ["the long one", *(f"beside it {n}" for n in (1, 2, 3)), *(f"later {n}" for n in (1, 2, 3, 4))]
    rows = {
        f"{run}, {name}": [(NOT_SENT, answer.sent_s), ("waits for its answer", answer.latency_s)]
        for run, answers in runs.items()
        for name, answer in zip(names, answers, strict=True)
    }
    return charts.stacked_bars(rows, title=title, unit="seconds", rest=NOT_SENT)


# --- the law of batching, measured ---


@blocking
async def closed_loop(server: TorchServe, model: str, clients: int, waves: int) -> float:
    """Return the requests per second of `clients` that each send their next request after an answer."""
    headers = {"Authorization": f"Bearer {server.keys.inference}"}
    ask = Ask(f"{server.url}/predictions/{model}", body={}, headers=headers)
    async with ray_watch.session() as client:

        async def call(_: int) -> None:
            status, text = await ray_watch.fetch(client, ask)
            require(status == 200, f"{model} answered {status}: {text}", fix="see the server's log")

        return await ray_watch.calls_per_second(call, clients=clients, calls=clients * waves)


Rates = Mapping[tuple[int, int], Sequence[float]]
Rule = Callable[[int, int, float, float, float], float]


def _series(clients: int) -> str:
    return f"{clients} clients" if clients > 1 else "one client"


def law_chart(rates: Rates, *, delay_s: float, cost: Mapping[str, float], seed: int) -> charts.Chart:
    """Draw requests per second by batch size and number of clients: computed for every size, measured at the dots."""
    dots, computed = [], []
    largest = max(size for size, _ in rates)
    for clients in sorted({n for _, n in rates}, reverse=True):
        for size in range(1, largest + 1):  # a step around each size
            rate = lab_07.requests_per_s(clients, size, delay_s, cost["fixed_s"], cost["per_row_s"])
            computed += [charts.LinePoint(edge, rate, _series(clients)) for edge in (size - 0.5, size + 0.499)]
    for (size, clients), values in rates.items():
        found = experiments.interval(values, seed=seed)
        dots.append(charts.LinePoint(size, found.value, _series(clients), found.low, found.high))
    best = max(dots, key=lambda dot: dot.y)
    title = f"Highest throughput: {best.series}, batches of {best.x:g}"
    axes = {"x_title": "batchSize", "y_title": "requests/s", "unit": "requests/s"}
    return charts.computed_and_measured(computed, dots, title=title, **axes)


def law_table(rates: Rates, rule: Rule, *, delay_s: float, cost: Mapping[str, float]) -> Any:
    """Requests per second by a rule and as measured; a DataFrame."""
    import pandas as pd

    rows = {}
    for (size, clients), values in sorted(rates.items()):
        by_rule, measured = rule(clients, size, delay_s, cost["fixed_s"], cost["per_row_s"]), statistics.mean(values)
        off = f"{measured / by_rule - 1:+.0%}"
        rows[f"batchSize {size}, {_series(clients)}"] = {
            "by the rule": f"{by_rule:.1f}",
            "measured": f"{measured:.1f}",
            "off by": off,
        }
    return pd.DataFrame(rows).T


# --- at GPU scale ---


@dataclass(frozen=True)
class Served:
    """Chats on a modelled card: (tokens of the answer, seconds until it is complete) of each, and tokens per second."""

    chats: Sequence[tuple[int, float]]
    tokens_per_s: float

    @property
    def short_s(self) -> float:
        """The median time of the shorter half of the answers."""
        edge = statistics.median(tokens for tokens, _ in self.chats)
        return statistics.median(seconds for tokens, seconds in self.chats if tokens <= edge)


STATIC, CONTINUOUS = "static batches", "continuous batching"


def chats(n: int, *, seed: int) -> Traffic:
    """Return chats with prompts of 300 tokens (median) that share nothing, and answer lengths of a public trace."""
    inputs = Lengths(median=300, p90=900, longest=2000)
    return traces.generated(n, rate=1, inputs=inputs, templates=1, template_tokens=0, seed=seed).requests


def _batches(requests: Traffic, rows: int) -> list[Traffic]:
    return [requests[first : first + rows] for first in range(0, len(requests), rows)]


def padding_factor(requests: Traffic, rows: int) -> float:
    """Return the row-steps of static batches, padding included, over the tokens of the answers (computed)."""
    steps = sum(max(request.output_tokens for request in batch) * len(batch) for batch in _batches(requests, rows))
    return steps / sum(request.output_tokens for request in requests)


def _served(results: Sequence[LoadResult], *, together: bool) -> Served:
    chats = [
        (record.output_tokens or 0, result.duration_s if together else record.e2e_s or 0.0)
        for result in results
        for record in result.records
    ]
    return Served(chats, sum(tokens for tokens, _ in chats) / sum(result.duration_s for result in results))


def both(engine: Any, requests: Traffic, clients: int) -> dict[str, Served]:
    """Run a closed loop of `clients` on one modelled engine, in static batches of all clients and by vLLM's scheduler.

    Each static batch runs alone; its answers are sent when its longest one is complete, and then the next batch begins.
    """
    batches = _batches(requests, clients)
    static = [drive(engine, traffic.arriving(batch, [0.0] * len(batch))).result for batch in batches]
    continuous = drive(engine, requests, concurrency=clients).result
    return {STATIC: _served(static, together=True), CONTINUOUS: _served([continuous], together=False)}


def chats_title(runs: Mapping[str, Served]) -> str:
    """The finding: what continuous batching gains."""
    static, continuous = runs[STATIC], runs[CONTINUOUS]
    tokens, wait = continuous.tokens_per_s / static.tokens_per_s, static.short_s / continuous.short_s
    return f"Continuous batching: {tokens:.1f} times the tokens/s, short answers {wait:.1f} times as fast"


def chats_chart(runs: Mapping[str, Served], *, title: str) -> charts.Chart:
    """A dot for each chat: its answer's length against the time until it is complete."""
    rows = [
        {"tokens": tokens, "s": round(seconds, 3), "run": name}
        for name, run in runs.items()
        for tokens, seconds in run.chats
    ]
    shape = {"field": "run", "type": "nominal", "title": None, "scale": {"domain": list(runs)}}
    axes = {
        "x": draw.quantity("tokens", "tokens of the answer", tickCount=8),
        "y": draw.quantity("s", "until the answer is complete (modelled s)", tickCount=6),
        "color": draw.series("run", runs),
        "shape": shape,
    }
    panel = draw.layers([draw.mark("point", size=45, opacity=0.8)], axes, rows, width=WIDTH, height=280)
    rates = "; ".join(f"{name}: {run.tokens_per_s:,.0f} tokens/s" for name, run in runs.items())
    return finish(panel, title=title, description=f"{title}. {rates}.")
