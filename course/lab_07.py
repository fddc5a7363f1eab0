"""Lab 07: a handler for batches of rows, the law of batching, the longest answer; static and continuous batches."""

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from labkit.errors import require
from labkit.experiments import Ratio
from labkit.load.blocking import blocking
from labkit.serving import torchserve
from labkit.serving.ray_watch import Answer, Ask, Observation
from labkit.serving.torchserve import Archive, TorchServe
from labkit.serving.vllm import executable
from labkit.session import LabSession
from labkit.teaching import solution

# --- exercise: a handler of rows ---


def served(handler: type, *bodies: Any) -> list[str]:
    """Return what each client of a batch gets from a handler, and how often its model was called.

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


class SharedBatch:  # with BaseHandler as its base, which has these two
    context: Any
    model: Any

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


def _status(code: int) -> Callable[[Any, int], None]:
    return lambda context, index: context.set_response_status(code=code, phrase="", idx=index)


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
    observe=lambda answer, cases: [served(answer, *case) for case in cases],
    exact=True,
    cases=[
        ({"prompt": "paris"}, {"prompt": "rome"}),
        ({"prompt": "oslo"}, {}, {"prompt": 7}, {"prompt": "bonn"}),
        (["paris"], "a prompt", {"prompt": "rome"}),
        ({},),
    ],
    wrong={
        "only the first row answered": _FirstOnly,
        "one bad row fails the batch": _Raising,
        "bad rows left out": _LeftOut,
        "answers in the wrong order": _BadRowsLast,
        "rows computed one after the other": _OneByOne,
        "the model called with an empty batch": _EmptyCall,
        "error returned with status 200": _reporting(lambda _context, _index: None),
        "client error reported as a server error": [_reporting(_status(500)), _reporting(_status(503))],
        "status set on the first row only": _reporting(lambda context, _index: context.set_response_status(code=422)),
        "status set on every row": _reporting(lambda context, _index: context.set_all_response_status(code=422)),
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
    cases=[
        (32, 8, 0.2, 0.1, 0.01),
        (2, 8, 0.2, 0.1, 0.01),
        (1, 1, 0.3, 0.2, 0.02),
        (4, 4, 0.3, 0.2, 0.02),
        (12, 8, 0.2, 0.1, 0.01),
    ],
    wrong={
        "all batches assumed full": [
            lambda _clients, size, _delay, fixed, row: size / (fixed + row * size),
            lambda clients, size, delay, fixed, row: size / ((delay if clients < size else 0) + fixed + row * size),
        ],
        "delay added to every batch": lambda clients, size, delay, fixed, row: requests_per_s(
            clients, size, 0, delay + fixed, row
        ),
        "delay ignored": lambda clients, size, _delay, fixed, row: requests_per_s(clients, size, 0, fixed, row),
        "fixed cost counted per row": lambda clients, size, delay, fixed, row: requests_per_s(
            clients, size, delay, 0, fixed + row
        ),
        "batches instead of requests per second": lambda clients, size, delay, fixed, row: (
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
        "safety margin ignored": lambda timeout, _share, first, step, rows: longest_answer(
            timeout, 1, first, step, rows
        ),
        "the prefill forgotten": [
            lambda timeout, share, _first, step, rows: longest_answer(timeout, share, 0, step, rows),
            lambda timeout, share, _first, step, _rows: int(share * timeout / step),
        ],
        "rows thought to take turns": [
            lambda timeout, share, first, step, rows: longest_answer(timeout, share, first, step * rows, rows),
            lambda timeout, share, first, step, rows: int((share * timeout - first) / step / rows),
        ],
        "the batch's tokens taken for one answer's": [
            lambda timeout, share, first, step, rows: longest_answer(timeout, share, first, step, rows) * rows,
            lambda timeout, share, first, step, rows: int((share * timeout - first) / step) * rows,
        ],
        "first token ignored": lambda timeout, share, first, step, _rows: int((share * timeout - first) / step),
    },
)


# --- the tour of a handler ---


def check_sizes(lab: LabSession) -> None:
    """Raise a UsageError for batch sizes that cannot show the law of batching, before anything starts."""
    sizes, clients = lab.parameters["batch_sizes"], lab.parameters["clients"]
    useful = 1 in sizes and any(1 < size <= clients for size in sizes)
    fix = "give 1, and a size above 1 that the clients fill"
    require(useful, f"batch_sizes is {sizes}, with {clients} clients", fix=fix)


QUESTION = "What is the capital of France?"
TOO_LONG = f"{'The window opens at noon and closes at six. ' * 110}\nNow tell me: {QUESTION}"


def stops(max_tokens: int) -> dict[str, list[Any]]:
    """Return the bodies sent together at each stop of the tour."""
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
    """Return a handler's answers at each stop."""
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
        columns[f"{name}: end of the first client's text"] = {
            stop: text_of(found[0])[-45:] for stop, found in by_stop.items()
        }
    return pd.DataFrame(columns)


def model_free_archives(folder: Path, *, batch_sizes: Sequence[int], delay_ms: int) -> list[Archive]:
    """The sleep handler without settings as "plain" (a batch size of 1) and with each larger size as "nap-SIZE"; and
    the decode handler in both modes."""
    handlers = torchserve.handlers_path()
    words = ["--model-name", "plain", "--version", "1.0", "--handler", str(handlers / "sleep.py")]
    program = str(executable("torch-model-archiver"))
    subprocess.run([program, *words, "--export-path", str(folder), "--force"], check=True)
    made = [Archive(path=folder / "plain.mar", model_name="plain", version="1.0")]
    for size in sorted({*batch_sizes} - {1}):
        settings = {"batchSize": size, "maxBatchDelay": delay_ms}
        made.append(torchserve.archive("sleep", folder=folder, model_name=f"nap-{size}", settings=settings))
    decode = handlers / "steps" / "decode.py"
    for name, is_continuous in (("static", False), ("continuous", True)):
        settings = {"continuousBatching": is_continuous, "maxBatchDelay": 1 if is_continuous else 50}
        made.append(torchserve.archive(decode, folder=folder, model_name=name, settings=settings))
    return made


# --- evidence ---


def rows_leave(steps: str) -> bool:
    """Return whether a row left the batch before its long answer ended; `steps`: the rows at each of its steps."""
    return any(after < before for before, after in pairwise(map(int, steps.split())))


def reasons(server: TorchServe) -> list[str]:
    """Return what TorchServe's log says about failed batches and requests: each line once, without its time."""
    marks = ("number of batch response", "KeyError", "TypeError", "AttributeError")
    lines = (line for line in server.process.log_text().splitlines() if any(mark in line for mark in marks))
    return list(dict.fromkeys(line.split(" - ", 1)[-1].strip()[:110] for line in lines))


def access(server: TorchServe, model: str) -> dict[str, int]:
    """Return the statuses of a prediction without and with a key, and of a registration with the management key."""
    url = f"{server.url}/predictions/{model}"
    without = send(server, [Ask(url, body={}, headers={"Authorization": ""})])
    with_key = send(server, [Ask(url, body={})])
    register = server.control.call("POST", "/models", url=f"{model}.mar", timeout_s=10)
    return {"without a key": without[0].status, "with a key": with_key[0].status, "register a model": register.status}


def latency_evidence(lab: LabSession, share: Ratio) -> None:
    """Record evidence on C12: the effect of continuous batching on short answers, and the shipped LLM handlers."""
    import ts

    folder = Path(ts.__file__).parent / "torch_handler"
    shipped = sorted(path.stem for path in folder.glob("*llm_handler.py"))
    lab.evidence("C12", share=share, shipped=", ".join(shipped))
