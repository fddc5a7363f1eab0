"""Exercises of lab 05: what an application asks for, how long its stages take together, how many replicas."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from labkit.teaching import solution
from labkit.theory.autoscaling import desired_replicas


def _but(**wrong: int) -> Callable[[str], int]:
    """The right statuses but for these."""
    return lambda ending: wrong.get(ending.replace(" ", "_"), status(ending))


ENDINGS = (
    "queue full", "exception in our code", "no such field", "body too large", "took too long", "no key", "answered",
)  # fmt: skip


def status(ending: str) -> int:
    return {
        "answered": 200,
        "no key": 401,
        "took too long": 408,
        "body too large": 413,
        "no such field": 422,
        "exception in our code": 500,
        "queue full": 503,
    }[ending]


solution(
    "05.status",
    status,
    exact=True,
    cases=[(ending,) for ending in ENDINGS],
    wrong={
        "everything is fine": lambda _ending: 200,
        "every failure is ours": lambda ending: 200 if ending == "answered" else 500,
        "every failure is the client's": lambda ending: 200 if ending == "answered" else 400,
        "a full queue reported as an exception": [_but(queue_full=500), _but(queue_full=429)],
        "a gateway's status for Ray Serve's own": _but(took_too_long=504),
        "a body that cannot be used told as one that cannot be read": _but(no_such_field=400),
    },
)


@dataclass(frozen=True)
class Asked:
    """What a deployment asks for: replicas, and CPUs and GPUs for each of them."""

    name: str
    replicas: int
    cpus: float
    gpus: float


def total_cpus(deployments: list[Asked]) -> float:
    return sum(deployment.replicas * deployment.cpus for deployment in deployments)


def total_gpus(deployments: list[Asked]) -> float:
    return sum(deployment.replicas * deployment.gpus for deployment in deployments)


solution(
    "05.gpus",
    total_gpus,
    unit="GPUs",
    worked=total_cpus,
    cases=[
        ([Asked("Desk", 2, 0.1, 0), Asked("Writer", 3, 1, 1), Asked("Classifier", 3, 0.5, 0.25)],),
        ([Asked("Front", 1, 0.1, 0), Asked("Words", 4, 1, 0.5)],),
        ([Asked("Front", 3, 0.1, 0)],),
    ],
    wrong={
        "the replicas forgotten": lambda deployments: sum(deployment.gpus for deployment in deployments),
        "replicas counted for GPUs": lambda deployments: sum(deployment.replicas for deployment in deployments),
        "the largest taken for the sum": [
            lambda deployments: max(deployment.replicas * deployment.gpus for deployment in deployments),
            lambda deployments: max(deployment.gpus for deployment in deployments),
        ],
        "parts rounded up to whole GPUs": lambda deployments: sum(
            deployment.replicas * math.ceil(deployment.gpus) for deployment in deployments
        ),
        "CPUs for GPUs": total_cpus,
    },
)


@dataclass(frozen=True)
class Stage:
    """A stage of a pipeline: how long it takes by itself, and which stages' results it needs before."""

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
        "nothing overlaps": chain_s,
        "the needs ignored": lambda stages: max(stage.seconds for stage in stages.values()),
        "the needs added up": lambda stages: max(_ends_s(stages, name, sum) for name in stages),
        "the work shared out evenly": lambda stages: chain_s(stages) / len(stages),
    },
)


def _within(replicas: int, low: int, high: int) -> int:
    return min(max(replicas, low), high)


solution(
    "05.replicas",
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
            math.ceil(rate / target), low, high
        ),
        "rounded down": [
            lambda rate, duration_s, target, low, high: _within(int(rate * duration_s / target), low, high),
            lambda rate, duration_s, target, low, high: _within(round(rate * duration_s / target), low, high),
        ],
        "the upper limit forgotten": lambda rate, duration_s, target, low, _high: max(
            math.ceil(rate * duration_s / target), low
        ),
        "the lower limit forgotten": lambda rate, duration_s, target, _low, high: min(
            math.ceil(rate * duration_s / target), high
        ),
        "one replica for each request": lambda rate, duration_s, _target, low, high: _within(
            math.ceil(rate * duration_s), low, high
        ),
        "one too many where it divides evenly": lambda rate, duration_s, target, low, high: _within(
            int(rate * duration_s / target) + 1, low, high
        ),
    },
)
