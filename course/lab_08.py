"""Lab 08: exercises, a load that continues while versions change, and the outcome of each request."""

import asyncio
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from labkit import charts
from labkit.charts import draw
from labkit.errors import require
from labkit.load import counters
from labkit.load.blocking import blocking
from labkit.serving import torchserve
from labkit.serving.ray_watch import NO_ANSWER, Answer, Ask, Observation
from labkit.serving.torchserve import Archive, Control, Reply, TorchServe
from labkit.session import LabSession
from labkit.teaching import solution
from labkit.vega import BLACK, BLUE, GREEN, INK, ORANGE, VERMILLION, WIDTH

# --- exercises ---


class Version:
    """A registered version of a model, with everything needed to retire it: its description, a clock and its DELETE."""

    def __init__(self, control: Control, model: str, version: str) -> None:
        self._control, self._model, self._version = control, model, version

    def describe(self) -> dict[str, Any]:
        """Return what `GET /models/MODEL/VERSION` says."""
        return self._control.describe(self._model, self._version)

    def now_s(self) -> float:
        """Return the seconds of a clock that only goes forward."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def delete(self) -> Reply:
        """Send `DELETE /models/MODEL/VERSION`."""
        return self._control.call("DELETE", f"/models/{self._model}/{self._version}")


class Rehearsal:
    """A `Version` without a server: one worker takes the queue in batches, and `delete` counts the lost requests.

    `arrivals_s`: when requests reach its queue. Only `sleep`, and 10 ms per `describe`, advance its clock, which,
    like a server's, does not start at zero.
    """

    def __init__(self, name: str, arrivals_s: Sequence[float], *, batch_size: int = 8, batch_s: float = 0.9) -> None:
        self._name, self._clock_s, self._waits = name, 0.0, []
        free_s, queue = 0.0, sorted(arrivals_s)
        while queue:
            start_s = max(free_s, queue[0])
            batch = [at_s for at_s in queue[:batch_size] if at_s <= start_s]
            queue, free_s = queue[len(batch) :], start_s + batch_s
            self._waits += [(at_s, start_s, free_s) for at_s in batch]

    def __repr__(self) -> str:
        return f"Version({self._name})"

    def __deepcopy__(self, _memo: object) -> "Rehearsal":
        """Return a copy in the initial state: each answer is judged from the beginning."""
        fresh = Rehearsal(self._name, ())
        fresh._waits = self._waits
        return fresh

    def describe(self) -> dict[str, Any]:
        self._clock_s += 0.01
        pending = sum(at_s <= self._clock_s < start_s for at_s, start_s, _ in self._waits)
        return {"jobQueueStatus": {"pendingRequests": pending}}

    def now_s(self) -> float:
        return 1000.0 + self._clock_s

    def sleep(self, seconds: float) -> None:
        self._clock_s += seconds

    def delete(self) -> str:
        lost = sum(done_s > self._clock_s for *_, done_s in self._waits)
        return f"deleted, {lost or 'no'} requests lost"


LATE = Rehearsal("late requests", [0.0] * 3 + [0.6] * 2)
CASES = (
    (Rehearsal("20 queued requests", [0.0] * 20), 1.0, 20.0),
    (LATE, 1.0, 20.0),
    (Rehearsal("no requests", ()), 1.0, 20.0),
    (Rehearsal("clients still sending", [0.3 * n for n in range(400)]), 1.0, 20.0),
)


def retire(version: Any, batch_s: float, timeout_s: float) -> Any:
    began_s, empty_s = version.now_s(), None
    while (look_s := version.now_s()) - began_s < timeout_s:
        if version.describe()["jobQueueStatus"]["pendingRequests"]:
            empty_s = None
        elif empty_s is None:
            empty_s = version.now_s()
        elif look_s - empty_s > batch_s:  # between two looks at an empty queue
            return version.delete()
        version.sleep(0.1)
    return None


def _pending(version: Any) -> bool:
    return bool(version.describe()["jobQueueStatus"]["pendingRequests"])


def _when_empty(version: Any, then_s: float) -> Any:
    while _pending(version):
        version.sleep(0.1)
    version.sleep(then_s)
    return version.delete()


def _after(version: Any, seconds: float) -> Any:
    version.sleep(seconds)
    return version.delete()


solution(
    "08.retire",
    retire,
    exact=True,
    cases=CASES,
    wrong={
        "DELETE mistaken for a drain": lambda version, _batch_s, _timeout_s: version.delete(),
        "empty queue mistaken for an idle worker": lambda version, _batch_s, _timeout_s: _when_empty(version, 0.0),
        "the idle time not restarted": lambda version, batch_s, _timeout_s: _when_empty(version, batch_s),
        "fixed wait mistaken for a drain": lambda version, batch_s, _timeout_s: _after(version, batch_s),
        "a drain without a time limit": lambda version, batch_s, _timeout_s: retire(version, batch_s, math.inf),
        "deleted at the time limit anyway": lambda version, batch_s, timeout_s: (
            retire(version, batch_s, timeout_s) or version.delete()
        ),
    },
)


def _model(least: int, *statuses: str, pending: int = 0) -> tuple[dict[str, Any]]:
    workers = [{"pid": 70 + n, "status": status} for n, status in enumerate(statuses)]
    return ({"minWorkers": least, "workers": workers, "jobQueueStatus": {"pendingRequests": pending}},)


def _up(model: dict[str, Any]) -> list[bool]:
    return [worker["status"] == "READY" for worker in model["workers"]]


def ready(model: dict[str, Any]) -> bool:
    up = sum(worker["status"] == "READY" for worker in model["workers"])
    return bool(up >= max(1, model["minWorkers"]))


solution(
    "08.ready",
    ready,
    exact=True,
    cases=[
        _model(1, "UNLOADING", pending=3),
        _model(1, "READY"),
        _model(2, "READY", "UNLOADING"),
        _model(2, "READY", "READY", pending=40),
        _model(0),
        _model(1),
        _model(1, "UNLOADING", "READY"),
        _model(1, "READY", "READY"),
        _model(0, "UNLOADING"),
    ],
    wrong={
        "a healthy ping mistaken for a ready model": lambda _model: True,
        "a listed worker taken for a ready one": [
            lambda model: len(model["workers"]) >= max(1, model["minWorkers"]),
            lambda model: len(model["workers"]) > 0,
        ],
        "one worker taken for enough": lambda model: any(_up(model)),
        "zero workers accepted": lambda model: sum(_up(model)) >= model["minWorkers"],
        "busy mistaken for not ready": lambda model: ready(model) and not model["jobQueueStatus"]["pendingRequests"],
        "every worker required to be ready": [
            lambda model: ready(model) and all(_up(model)),
            lambda model: bool(model["workers"]) and all(_up(model)),
        ],
    },
)


# --- a load that goes on ---

UNANSWERED = "no answer"
NAP: dict[str, dict[str, Any]] = {
    "settings": {"batchSize": 8, "maxBatchDelay": 20},
    "handler_settings": {"fixed_s": 0.05, "per_row_s": 0.0025},
}
CAPACITY = 8 / (0.05 + 0.0025 * 8)  # requests/s of its one worker, in full batches
MOST_OF_CAPACITY = 0.9
COLOURS = (BLUE, GREEN, VERMILLION, ORANGE, BLACK)
HEIGHT_PX, LABEL_PX, SINCE = 240, 17, "seconds since the load began"
LOG_FROM = 10  # times the median latency
LOG_TICKS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30]
AROUND_S = 1.0  # of load before the first step and after the last one


class Load(Observation):
    """Requests that are sent at a constant rate, their answers, and marked moments."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[charts.Moment] = []

    def note(self, text: str) -> None:
        """Mark this moment."""
        self.moments.append(charts.Moment(self.now_s(), text))


@contextmanager
def load(server: TorchServe, path: str, *, rate: float, timeout_s: float = 60.0) -> Iterator[Load]:
    """Send requests to `/predictions/PATH` while the block runs, and a second before and after it.

    `rate`: requests/s. `timeout_s`: how long a client waits. On leaving, all requests have ended.
    """
    seen, ended = Load(), Event()
    ask = Ask(f"{server.url}/predictions/{path}", body={}, headers=_key(server))
    with ThreadPoolExecutor(1) as sender:
        sending = sender.submit(
            asyncio.run, seen.ask_until(ask, ended.is_set, rate=rate, at_most_s=120, timeout_s=timeout_s)
        )
        try:
            time.sleep(AROUND_S)
            yield seen
            time.sleep(AROUND_S)
        finally:
            ended.set()
        sending.result()


def request(server: TorchServe, path: str, *, timeout_s: float = 60.0) -> Answer:
    """Send one request (a POST; a GET to /ping) and return the answer; its status is 0 without one."""
    ask = Ask(f"{server.url}/{path}", body=None if path == "ping" else {}, headers=_key(server))
    (answer,) = blocking(Observation().ask_all)([ask], timeout_s=timeout_s)
    return answer


def _key(server: TorchServe) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.keys.inference}"}


def fate(answer: Answer) -> str:
    """Return the outcome of a request: "2.0" (the version that answered), "404", or "no answer"."""
    return signature(answer) or (UNANSWERED if answer.status == NO_ANSWER else str(answer.status))


def signature(answer: Answer) -> str:
    """Return the version that signed an answer; "" if none did."""
    try:
        body = json.loads(answer.text)
    except ValueError:
        return ""
    return str(body.get("version", "")) if isinstance(body, dict) else ""


def counts(answers: Sequence[Answer]) -> dict[str, int]:
    """Count the requests by outcome, the most frequent first. The numbers add up to all requests."""
    return dict(Counter(map(fate, answers)).most_common())


def lost(answers: Sequence[Answer]) -> list[Answer]:
    """Return the requests that no version has answered."""
    return [answer for answer in answers if not signature(answer)]


def default_versions(seen: Load) -> tuple[int, list[str]]:
    """Requests that began and ended between the first two moments of a load, and the versions that answered them."""
    start_s, end_s = (moment.at_s for moment in seen.moments[:2])
    between = [answer for answer in seen.answers if start_s <= answer.sent_s and answer.finished_s <= end_s]
    require(bool(between), f"no request ended in {end_s - start_s:.1f} s", fix="leave more time between the two")
    return len(between), sorted({signature(answer) for answer in between} - {""})


def fates_chart(seen: Load, *, title: str, around_s: float = math.inf) -> charts.Chart:
    """Draw each request at the time at which it was sent, lost ones as crosses.

    `around_s`: seconds shown before the first moment and after the last one."""
    start_s, end_s = max(0.0, seen.moments[0].at_s - around_s), seen.moments[-1].at_s + around_s
    answers = [answer for answer in seen.answers if start_s <= answer.sent_s <= end_s]
    ordered = [answer for answer in answers if signature(answer)] + lost(answers)  # crosses on top
    fates, missing = list(dict.fromkeys(map(fate, ordered))), {fate(answer) for answer in lost(answers)}
    encoding = {
        "x": draw.quantity("at", SINCE, (start_s, 0.02 + max(answer.sent_s for answer in answers)), tickCount=8),
        "y": _latency_axis([answer.latency_s for answer in answers]),
        "color": draw.series("fate", fates, COLOURS, orient="bottom"),
        "shape": draw.series("fate", fates, ["cross" if one in missing else "circle" for one in fates]),
        "size": {"condition": {"test": "datum.lost", "value": 170}, "value": 40},
    }
    rows = [
        {"at": round(one.sent_s, 3), "waited": round(one.latency_s, 4), "fate": fate(one), "lost": not signature(one)}
        for one in ordered
    ]
    marks = [
        draw.mark("point", encoding, rows, filled=True, opacity=1, stroke="white", strokeWidth=0.7),
        *map(_moment, range(9), seen.moments),
    ]
    met = ", ".join(f"{count} {name}" for name, count in counts(answers).items())
    when = "; ".join(f"{moment.text} at {moment.at_s:.1f} s" for moment in seen.moments)
    text = f"{len(answers)} requests by the time at which they were sent: {met}. {when}."
    return charts.finish(draw.layers(marks, width=WIDTH, height=HEIGHT_PX), title=title, description=text)


def _latency_axis(latencies_s: Sequence[float]) -> dict[str, Any]:
    """Return a linear axis, or a logarithmic one if a few long latencies would squeeze the others to the bottom."""
    is_log = max(latencies_s) > LOG_FROM * statistics.median(latencies_s)
    ends = (min(latencies_s) / 1.5, 1.5 * max(latencies_s)) if is_log else (0.0, 1.08 * max(latencies_s))
    return draw.quantity("waited", "latency (s)", ends, log=is_log, **({"values": LOG_TICKS} if is_log else {}))


def _moment(place: int, moment: charts.Moment) -> dict[str, Any]:
    """A line with its name above the panel, each name higher than the one before."""
    top = -LABEL_PX * place
    rule = draw.mark("rule", strokeDash=[6, 4], color=INK, strokeWidth=1.5, y=top, y2=HEIGHT_PX)
    name = draw.words({}, baseline="bottom", y=top - 1, align="right", dx=-3)
    return draw.layers([rule, name], {"x": "at"}, [{"at": moment.at_s, "text": moment.text}])


def in_flight(seen: Load, rate: float) -> float:
    """Requests in the queue and in the worker by Little's law: the rate times the median latency (formula)."""
    return rate * statistics.median(answer.latency_s for answer in seen.answers if signature(answer))


def reason(log: str) -> str:
    """Return the error in TorchServe's log for a model that does not load."""
    errors = [line.split("MODEL_LOG - ")[-1] for line in log.splitlines() if "MODEL_LOG - ValueError" in line]
    return errors[0] if errors else "no error"


def counts_requests(server: TorchServe) -> bool:
    """Whether the server's metrics page counts requests. The server must have answered one."""
    return "Requests2XX" in counters.scrape(server.metrics_url).names


def counts_without_settings(archive: Archive, folder: Path) -> bool:
    """The same for another TorchServe, with the default metrics_mode."""
    with torchserve.start([archive], folder=folder, changes={"metrics_mode": ""}) as server:
        request(server, f"predictions/{archive.model_name}")
        return counts_requests(server)


def switch_evidence(lab: LabSession, seen: Load, side_by_side: Sequence[Answer]) -> None:
    """Record evidence on C44 and C45: versions at the same time, a default that changes under load, and which version
    answers requests that name none."""
    total, missing = len(seen.answers), len(lost(seen.answers))
    at_once = len({signature(answer) for answer in side_by_side} - {""})
    before_and_after = {signature(answer) for answer in seen.answers} - {""}
    unnamed, answered_by = default_versions(seen)
    lab.measure("switch_requests", "requests", float(total))
    lab.measure("switch_lost", "requests", float(missing))
    switch = {"switch_requests": total, "switch_lost": missing}
    lab.evidence("C44", versions_at_once=at_once, default_changed=len(before_and_after) == 2, **switch)
    lab.says("While both versions are ready, requests without a version go to the default", answered_by == ["1.0"])
    lab.evidence("C45", default_requests=unnamed, default_versions=len(answered_by), switch_lost=missing)


def metrics_evidence(lab: LabSession, by_default: bool, server: TorchServe) -> dict[str, bool]:
    """Record evidence on C43: whether a metrics page counts requests, by default and with our server's setting."""
    counted, version = counts_requests(server), lab.recorder.record.versions["torchserve"]
    lab.evidence("C43", default_counts=by_default, prometheus_counts=counted, torchserve_version=version)
    return {"by default": by_default, "with metrics_mode=prometheus": counted}


def check(lab: LabSession, folder: Path) -> None:
    """Raise a UsageError for a load that is too high for one worker, or a model folder that TorchServe cannot load."""
    rate, most = float(lab.parameters["rate"]), math.floor(MOST_OF_CAPACITY * CAPACITY)
    what = f"{rate:g} requests/s are too many for one worker, which answers {CAPACITY:.0f} in batches of 8"
    require(rate <= most, what, fix=f"lower rate to {most} or less")
    missing = [file for file in ("config.json", "tokenizer.json") if not (folder / file).is_file()]
    fix = "pass an embedded model's name or a model folder"
    require(not missing, f"{folder} has no {', '.join(missing)}", fix=fix)
