"""Lab 07: a handler of rows, the law of batching, the longest answer; static against continuous batches."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from labkit import charts
from labkit.charts import draw
from labkit.errors import require
from labkit.load import RequestRecord
from labkit.load.client import blocking
from labkit.modelled import Traffic, drive, traffic
from labkit.serving import ray_watch
from labkit.serving.ray_watch import Answer, Ask, Observation
from labkit.serving.torchserve import TorchServe
from labkit.session import LabSession
from labkit.teaching import solution
from labkit.vega import WIDTH

# --- exercise: a handler of rows ---


def served(handler: type, *bodies: Any) -> list[str]:
    """What each client of a batch gets from a handler, and how often its model was called.

    The handler is called as TorchServe's worker calls it: `handle(rows, context)` of a BaseHandler, with TorchServe's
    own context. As there, an exception or a list of another length is a 503 for every row. The model returns each
    prompt in capitals and, like `generate`, takes no empty batch.
    """
    from ts.context import Context, RequestProcessor
    from ts.torch_handler.base_handler import BaseHandler

    whole = handler if issubclass(handler, BaseHandler) else type(handler.__name__, (handler, BaseHandler), {})
    metrics = SimpleNamespace(add_time=lambda *_, **__: None)
    context = Context("exercise", "", {"model": {}}, len(bodies), None, "0.12.0", metrics=metrics, model_yaml_config={})
    context.request_ids = {index: str(index) for index in range(len(bodies))}
    context.request_processor = [RequestProcessor({}) for _ in bodies]
    instance, calls = whole(), list[int]()

    def model(prompts: list[str]) -> list[str]:
        calls.append(len(prompts))
        require(bool(prompts), "an empty batch", fix="leave the call out")
        return [prompt.upper() for prompt in prompts]

    instance.model = model
    try:
        answers = instance.handle([{"body": body} for body in bodies], context)
    except Exception:  # what the worker does with whatever a handler raises
        return ["503 Prediction failed"] * len(bodies)
    if not isinstance(answers, list) or len(answers) != len(bodies):
        return ["503 number of batch response mismatched"] * len(bodies)
    statuses = [context.get_response_status(index)[0] for index in range(len(bodies))]
    texts = [f"{code} {text}" if code == 200 else f"{code}" for code, text in zip(statuses, answers, strict=True)]
    return [*texts, f"model calls: {len(calls)}"]


class SharedBatch:  # with BaseHandler as its base
    def preprocess(self, data: list[Any]) -> list[Any]:
        prompts = []
        for index, row in enumerate(data):
            body = row["body"]
            prompt = body.get("prompt") if isinstance(body, dict) else None
            if not isinstance(prompt, str):
                prompt = None
                self.context.set_response_status(code=422, phrase="Unprocessable Entity", idx=index)
            prompts.append(prompt)
        return prompts

    def inference(self, prompts: list[Any]) -> list[Any]:
        good = [prompt for prompt in prompts if prompt is not None]
        answers = iter(self.model(good) if good else [])
        return [None if prompt is None else next(answers) for prompt in prompts]

    def postprocess(self, answers: list[Any]) -> list[Any]:
        return ["send a JSON object with a text as prompt" if answer is None else answer for answer in answers]


class _FirstOnly(SharedBatch):
    def preprocess(self, data: list[Any]) -> list[Any]:
        return super().preprocess(data[:1])


class _Raising(SharedBatch):
    def preprocess(self, data: list[Any]) -> list[Any]:
        return [row["body"]["prompt"] for row in data]


class _LeftOut(SharedBatch):
    def postprocess(self, answers: list[Any]) -> list[Any]:
        return [answer for answer in answers if answer is not None]


class _BadRowsLast(SharedBatch):
    def inference(self, prompts: list[Any]) -> list[Any]:
        answers = [answer for answer in super().inference(prompts) if answer is not None]
        return answers + [None] * (len(prompts) - len(answers))


class _OneByOne(SharedBatch):
    def inference(self, prompts: list[Any]) -> list[Any]:
        return [None if prompt is None else self.model([prompt])[0] for prompt in prompts]


class _EmptyCall(SharedBatch):
    def inference(self, prompts: list[Any]) -> list[Any]:
        answers = iter(self.model([prompt for prompt in prompts if prompt is not None]))
        return [None if prompt is None else next(answers) for prompt in prompts]


def _reporting(status: Callable[[Any, int], None]) -> type:
    """SharedBatch with another way to set the status of the bad row `index`."""

    class Reporting(SharedBatch):
        def preprocess(self, data: list[Any]) -> list[Any]:
            bodies = [row["body"] for row in data]
            prompts = [body.get("prompt") if isinstance(body, dict) else None for body in bodies]
            prompts = [prompt if isinstance(prompt, str) else None for prompt in prompts]
            for index, prompt in enumerate(prompts):
                if prompt is None:
                    status(self.context, index)
            return prompts

    return Reporting


solution(
    "07.handler",
    SharedBatch,
    run=served,
    exact=True,
    cases=[
        ({"prompt": "paris"}, {"prompt": "rome"}),
        ({"prompt": "oslo"}, {}, {"prompt": 7}, {"prompt": "bonn"}),
        (["paris"], {"prompt": "rome"}),
        ({},),
    ],
    wrong={
        "only the first row answered": _FirstOnly,
        "one bad row fails the batch": _Raising,
        "bad rows left out": _LeftOut,
        "answers given to the wrong rows": _BadRowsLast,
        "the rows computed one after the other": _OneByOne,
        "the model called without a row": _EmptyCall,
        "an error sent as a success": _reporting(lambda _context, _index: None),
        "a client's mistake reported as the server's": [
            _reporting(lambda context, index, code=code: context.set_response_status(code=code, phrase="", idx=index))
            for code in (500, 503)
        ],
        "the status set on the first row": _reporting(lambda context, _index: context.set_response_status(code=422)),
        "the status set on all rows": _reporting(lambda context, _index: context.set_all_response_status(code=422)),
    },
)  # fmt: skip


# --- exercises: the law of batching, the longest answer ---


def batch_seconds(rows: int, fixed_s: float, per_row_s: float) -> float:
    return fixed_s + per_row_s * rows


def requests_per_s(clients: int, batch_size: int, delay_s: float, fixed_s: float, per_row_s: float) -> float:
    rows = min(clients, batch_size)
    waits_s = delay_s if rows < batch_size else 0
    return rows / (waits_s + fixed_s + per_row_s * rows)


solution(
    "07.throughput",
    requests_per_s,
    unit="requests/s",
    worked=batch_seconds,
    cases=[(32, 8, 0.2, 0.1, 0.01), (2, 8, 0.2, 0.1, 0.01), (1, 1, 0.3, 0.2, 0.02), (4, 4, 0.3, 0.2, 0.02)],
    wrong={
        "every batch full": [
            lambda _clients, size, _delay, fixed, row: size / (fixed + row * size),
            lambda clients, size, delay, fixed, row: size / ((delay if clients < size else 0) + fixed + row * size),
        ],
        "the delay paid by every batch": lambda clients, size, delay, fixed, row: requests_per_s(
            clients, size, 0, delay + fixed, row
        ),
        "the delay never paid": lambda clients, size, _delay, fixed, row: requests_per_s(clients, size, 0, fixed, row),
        "the fixed cost paid by every row": lambda clients, size, delay, fixed, row: requests_per_s(
            clients, size, delay, 0, fixed + row
        ),
        "batches per second": lambda clients, size, delay, fixed, row: (
            requests_per_s(clients, size, delay, fixed, row) / min(clients, size)
        ),
    },
)


def longest_answer(timeout_s: float, share: float, first_s: float, step_s: float, batch_size: int) -> int:  # noqa: ARG001
    return int((share * timeout_s - first_s) // step_s) + 1


solution(
    "07.longest_answer",
    longest_answer,
    unit="tokens",
    cases=((64.0, 0.5, 2.0, 0.125, 8), (16.0, 0.75, 4.0, 0.375, 4), (10.0, 1.0, 0.5, 0.25, 2)),
    wrong={
        "the margin forgotten": lambda timeout, _share, first, step, rows: longest_answer(
            timeout, 1, first, step, rows
        ),
        "the prompts forgotten": [
            lambda timeout, share, _first, step, rows: longest_answer(timeout, share, 0, step, rows),
            lambda timeout, share, _first, step, _rows: int(share * timeout / step),
        ],
        "the rows take turns": [
            lambda timeout, share, first, step, rows: longest_answer(timeout, share, first, step * rows, rows),
            lambda timeout, share, first, step, rows: int((share * timeout - first) / step / rows),
        ],
        "the batch's tokens for one answer's": [
            lambda timeout, share, first, step, rows: longest_answer(timeout, share, first, step, rows) * rows,
            lambda timeout, share, first, step, rows: int((share * timeout - first) / step) * rows,
        ],
        "the first token forgotten": lambda timeout, share, first, step, _rows: int((share * timeout - first) / step),
    },
)


# --- the tour of a handler ---


def check_sizes(lab: LabSession) -> None:
    """Refuse batch sizes that show no law, before anything starts. UsageError."""
    sizes, clients = lab.parameters["batch_sizes"], lab.parameters["clients"]
    useful = 1 in sizes and any(1 < size <= clients for size in sizes)
    fix = "give 1, and a size above 1 that the clients fill"
    require(useful, f"batch_sizes is {sizes}, with {clients} clients", fix=fix)


QUESTION = "What is the capital of France?"
TOO_LONG = f"{'The window opens at noon and closes at six. ' * 110}\nNow tell me: {QUESTION}"


def stops(max_tokens: int) -> dict[str, list[Any]]:
    """The bodies sent together at each stop of the tour."""
    good = {"prompt": QUESTION, "max_tokens": max_tokens}
    return {
        "a good request": [good],
        "four at a time": [good] * 4,
        "no prompt": [{}],
        "a number as prompt": [{"prompt": 7}],
        "malformed JSON": ['{"prompt": "Wh'],
        "three good, one bad": [good, {}, good, good],
        "a prompt too long": [{"prompt": TOO_LONG, "max_tokens": max_tokens}],
    }


@blocking
async def send(server: TorchServe, asks: Sequence[Ask]) -> list[Answer]:
    """Send requests with the inference key, each when it is due; return the answers in their order."""
    key = {"Authorization": f"Bearer {server.keys.inference}"}
    keyed = [Ask(ask.url, ask.at_s, ask.body, {**key, **ask.headers}) for ask in asks]
    return await Observation().ask_all(keyed, timeout_s=120)


def predictions(server: TorchServe, model: str, *bodies: Any, at_s: Sequence[float] = ()) -> list[Answer]:
    """Send each body to a model, together or each at its time."""
    url, due_s = f"{server.url}/predictions/{model}", at_s or [0.0] * len(bodies)
    return send(server, [Ask(url, due, body) for body, due in zip(bodies, due_s, strict=True)])


def tour(server: TorchServe, model: str, *, max_tokens: int) -> dict[str, list[Answer]]:
    """The answers of a handler at each stop."""
    return {stop: predictions(server, model, *bodies) for stop, bodies in stops(max_tokens).items()}


def text_of(answer: Answer) -> str:
    """The text of an answer, or of the error."""
    body = json.loads(answer.text)
    error = body.get("error", body.get("message"))
    text = body.get("text") or body.get("response") or (error["message"] if isinstance(error, dict) else error)
    return " ".join(str(text).split())


def statuses(found: Sequence[Answer]) -> str:
    """The statuses of a stop, in order."""
    return " ".join(str(answer.status) for answer in found)


def tour_table(**tours: Mapping[str, Sequence[Answer]]) -> Any:
    """The statuses at each stop and the end of the first client's text, by handler; a DataFrame."""
    import pandas as pd

    columns: dict[str, dict[str, str]] = {}
    for name, by_stop in tours.items():
        columns[name] = {stop: statuses(found) for stop, found in by_stop.items()}
        columns[f"{name}: the first client reads"] = {stop: text_of(found[0])[-60:] for stop, found in by_stop.items()}
    return pd.DataFrame(columns)


# --- who waits for a long answer ---


def company(*, long_tokens: int, later_s: float) -> tuple[list[int], list[float]]:
    """Tokens and times of eight requests: a long one and three short ones together, four short ones later."""
    return [long_tokens, 4, 4, 4, 4, 4, 4, 4], [0.0] * 4 + [later_s] * 4


@dataclass(frozen=True)
class Waits:
    """Seconds from request to answer: of the long answer, of the short ones beside it and of those that came later."""

    long_s: float
    beside_s: float
    later_s: float

    @property
    def shares(self) -> dict[str, float]:
        """The waits of the short ones as a share of the long answer's."""
        return {"beside": self.beside_s / self.long_s, "later": self.later_s / self.long_s}


def waits(answers: Sequence[Answer]) -> Waits:
    """The long answer's latency, and the means of the other two groups. UsageError where one failed."""
    failed = [answer.status for answer in answers if not answer.ok]
    require(not failed, f"{len(failed)} of {len(answers)} requests failed: {failed}", fix="see the server's log")
    seconds = [answer.latency_s for answer in answers]
    return Waits(seconds[0], statistics.mean(seconds[1:4]), statistics.mean(seconds[4:]))


def waits_chart(runs: Mapping[str, Sequence[Answer]], *, title: str) -> charts.Chart:
    """A bar from sending to answer for each request, for each handler."""
    names = ["long", *(f"beside it {n}" for n in (1, 2, 3)), *(f"later {n}" for n in (1, 2, 3, 4))]
    rows = {
        f"{run}: {name}": [(NOT_SENT, answer.sent_s), ("waits for its answer", answer.latency_s)]
        for run, answers in runs.items()
        for name, answer in zip(names, answers, strict=True)
    }
    return charts.stacked_bars(rows, title=title, unit="seconds", rest=NOT_SENT)


NOT_SENT = "not sent yet"


# --- the law of batching, measured ---


@blocking
async def closed_loop(server: TorchServe, model: str, clients: int, waves: int) -> float:
    """Requests per second of `clients` that each send again when they are answered."""
    headers = {"Authorization": f"Bearer {server.keys.inference}"}
    ask = Ask(f"{server.url}/predictions/{model}", body={}, headers=headers)
    async with ray_watch.session() as client:

        async def call(_: int) -> None:
            status, text, _timing = await ray_watch.fetch(client, ask)
            require(status == 200, f"{model} answered {status}: {text}", fix="see the server's log")

        return await ray_watch.calls_per_second(call, clients=clients, calls=clients * waves)


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


def _served(records: Sequence[RequestRecord], e2e_s: Sequence[float], duration_s: float) -> Served:
    tokens = [record.output_tokens or 0 for record in records]
    return Served(list(zip(tokens, e2e_s, strict=True)), sum(tokens) / duration_s)


def continuous(engine: Any, chats: Traffic, *, clients: int) -> Served:
    """A closed loop on vLLM's own scheduler."""
    result = drive(engine, chats, concurrency=clients).result
    return _served(result.records, [record.e2e_s for record in result.records], result.duration_s)


def static(engine: Any, chats: Traffic, *, clients: int) -> Served:
    """The same closed loop in static batches of all clients: each batch runs on the same engine, every answer of it is
    sent when its longest one is complete, and the next batch begins."""
    batches = [chats[first : first + clients] for first in range(0, len(chats), clients)]
    results = [drive(engine, traffic.arriving(batch, [0.0] * len(batch))).result for batch in batches]
    records = [record for result in results for record in result.records]
    e2e_s = [result.duration_s for result in results for _ in result.records]
    return _served(records, e2e_s, sum(result.duration_s for result in results))


def chats_chart(runs: Mapping[str, Served], *, title: str, caption: str | None = None) -> charts.Chart:
    """A dot for each chat: its answer's length against the time until it is complete."""
    rows = [
        {"tokens": tokens, "s": round(seconds, 3), "run": name}
        for name, run in runs.items()
        for tokens, seconds in run.chats
    ]
    shapes = {"field": "run", "type": "nominal", "title": None, "scale": {"domain": list(runs)}}
    axes = {
        "x": draw.quantity("tokens", "tokens of the answer", tickCount=8),
        "y": draw.quantity("s", "until the answer is complete (modelled s)", tickCount=6),
        "color": draw.series("run", runs),
        "shape": shapes,
    }
    panel = draw.layers([draw.mark("point", size=45, opacity=0.8)], axes, rows, width=WIDTH, height=280)
    rates = "; ".join(f"{name}: {run.tokens_per_s:,.0f} tokens/s" for name, run in runs.items())
    return charts.finish(panel, title=title, description=f"{title}. {rates}.", caption=caption)
