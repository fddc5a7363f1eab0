"""Exercises of lab 08: is it ready, what a second worker gains, how far a canary's failures can be trusted.

Those with options are in `lab_08_choices`.
"""

import math
from typing import Any

from labkit.teaching.exercises import FunctionExercise, Misconception, by_id
from labkit.teaching.lab_08_choices import AB, MOVE, RUNBOOK


def requests_per_s(
    clients: int, workers: int, batch_size: int, delay_s: float, fixed_s: float, per_row_s: float
) -> float:
    rows = min(batch_size, clients / workers)
    waits_s = 0.0 if rows == batch_size else delay_s
    return workers * rows / (waits_s + fixed_s + per_row_s * rows)


def one_worker(clients: int, batch_size: int, delay_s: float, fixed_s: float, per_row_s: float) -> float:
    rows = min(batch_size, clients)
    waits_s = 0.0 if rows == batch_size else delay_s
    return rows / (waits_s + fixed_s + per_row_s * rows)


def _law(clients: int, workers: int, batch_size: int, delay_s: float, fixed_s: float, per_row_s: float) -> float:
    rows = min(batch_size, clients / workers)
    return workers * rows / ((0.0 if rows == batch_size else delay_s) + fixed_s + per_row_s * rows)


WORKERS = FunctionExercise(
    id="08.workers",
    title="what a second worker gains",
    prompt="""
Clients that ask again as soon as they are answered share the workers of a model evenly. A worker answers a batch in
`fixed_s + per_row_s * rows`. A batch that is not full has waited `delay_s` for more before. The example is for one
worker. Fill the blanks: requests a second of all `workers` together.
""",
    starter="""
def requests_per_s(clients, workers, batch_size, delay_s, fixed_s, per_row_s):
    rows = min(batch_size, ...)
    waits_s = 0.0 if rows == batch_size else delay_s
    return ... * rows / (waits_s + fixed_s + per_row_s * rows)
""",
    answer_name="requests_per_s",
    unit="requests/s",
    worked=one_worker,
    solution=requests_per_s,
    cases=(
        (8, 2, 8, 0.02, 0.05, 0.0025),
        (16, 2, 8, 0.02, 0.05, 0.0025),
        (40, 3, 8, 0.02, 0.05, 0.0025),
        (12, 4, 16, 0.1, 0.2, 0.01),
    ),
    hints=(
        "Eight clients and two workers: how many of the eight are in one worker's batch?",
        "What a batch costs is mostly the same for four rows and for eight. Who pays it how often?",
    ),
    misconceptions=(
        Misconception(
            "every worker counts in full",
            "This multiplies one worker's throughput. They share the clients: each of them gets smaller batches.",
            (lambda c, w, b, d, f, p: w * _law(c, 1, b, d, f, p),),
        ),
        Misconception(
            "all batches taken for full",
            "This is right only where each worker always finds a whole batch waiting.",
            (lambda _c, w, b, _d, f, p: w * b / (f + p * b),),
        ),
        Misconception(
            "the delay forgotten",
            "A batch that is not full does not begin at once: it has waited for others first.",
            (lambda c, w, b, _d, f, p: _law(c, w, b, 0.0, f, p),),
        ),
        Misconception(
            "the delay always paid",
            "A full batch waits for nobody.",
            (lambda c, w, b, d, f, p: w * min(b, c / w) / (d + f + p * min(b, c / w)),),
        ),
        Misconception(
            "one worker's share taken for all",
            "This is what one of the workers does. The question is for all of them together.",
            (lambda c, w, b, d, f, p: _law(c, w, b, d, f, p) / w,),
        ),
    ),
)


def ready(model: dict[str, Any]) -> bool:
    up = sum(worker["status"] == "READY" for worker in model["workers"])
    return bool(up >= max(1, model["minWorkers"]))


def _model(least: int, *statuses: str, pending: int = 0) -> dict[str, Any]:
    workers = [{"pid": 70 + n, "status": status} for n, status in enumerate(statuses)]
    return {"minWorkers": least, "workers": workers, "jobQueueStatus": {"pendingRequests": pending}}


READY = FunctionExercise(
    id="08.ready",
    title="a probe that does not lie (from nothing)",
    prompt="""
Write what a balancer should ask in place of `/ping`: `ready(model)`, true or false, of what the management API says of
a model, such as

    {{"minWorkers": 1, "workers": [{{"pid": 71, "status": "UNLOADING"}}], "jobQueueStatus": {{"pendingRequests": 3}}}}

Ready means: as many workers as it is to have at least, and one in any case, have the status `READY`.
""",
    starter="""
def ready(model): ...  # your code
""",
    answer_name="ready",
    unit="",
    solution=ready,
    cases=(
        (_model(1, "UNLOADING", pending=3),),
        (_model(1, "READY"),),
        (_model(2, "READY", "UNLOADING"),),
        (_model(2, "READY", "READY", pending=40),),
        (_model(0),),
        (_model(1),),
        (_model(1, "UNLOADING", "READY"),),
    ),
    hints=(
        "Count something in `workers`, and compare it with a number.",
        "May a model with no worker at all be called ready, because nobody asked for one?",
    ),
    misconceptions=(
        Misconception(
            "the frontend's health taken for the model's",
            "This says yes whatever the workers do, as `/ping` does: the frontend is well, and the model is not there.",
            (lambda _model: True,),
        ),
        Misconception(
            "a worker that exists taken for one that answers",
            "A worker that is listed may be loading, or crash again and again. Look at its status.",
            (
                lambda model: len(model["workers"]) >= max(1, model["minWorkers"]),
                lambda model: len(model["workers"]) > 0,
            ),
        ),
        Misconception(
            "one worker enough for all",
            "One is ready, but the model is to have more: the load is meant for all of them.",
            (lambda model: any(worker["status"] == "READY" for worker in model["workers"]),),
        ),
        Misconception(
            "nobody is enough",
            "A model that is to have no workers, and has none, answers nobody.",
            (lambda model: sum(one["status"] == "READY" for one in model["workers"]) >= model["minWorkers"],),
        ),
        Misconception(
            "busy taken for not ready",
            "Waiting requests are no reason to take a model out: they would move to others that are as busy.",
            (lambda model: ready(model) and not model["jobQueueStatus"]["pendingRequests"],),
        ),
        Misconception(
            "all of them have to be ready",
            "A worker more than are needed may be starting: those that are needed answer already.",
            (
                lambda model: ready(model) and all(one["status"] == "READY" for one in model["workers"]),
                lambda model: bool(model["workers"]) and all(one["status"] == "READY" for one in model["workers"]),
            ),
        ),
    ),
)


def half_width_of_one(failed: int, n: int) -> float:
    share = failed / n
    return float(1.96 * (share * (1 - share) / n) ** 0.5)


def half_width(failed: int, n: int, failed_before: int, n_before: int) -> float:
    share, before = failed / n, failed_before / n_before
    return float(1.96 * (share * (1 - share) / n + before * (1 - before) / n_before) ** 0.5)


def _one(failed: int, n: int) -> float:
    share = failed / n
    return 1.96 * math.sqrt(share * (1 - share) / n)


HALF_WIDTH = FunctionExercise(
    id="08.interval",
    title="how far a canary's difference can be trusted",
    prompt="""
The share of failures among `n` requests is uncertain by about the half-width in the example (95%, the textbook's
approximation for many requests; the lab uses a better one for few). Fill the blanks: the half-width for the
**difference** between the canary's share and that of the version before.
""",
    starter="""
def half_width(failed, n, failed_before, n_before):
    share, before = failed / n, failed_before / n_before
    return 1.96 * (share * ... + before * ...) ** 0.5
""",
    answer_name="half_width",
    unit="",
    worked=half_width_of_one,
    solution=half_width,
    cases=((4, 20, 11, 380), (30, 300, 9, 300), (120, 1000, 60, 2000)),
    hints=(
        "Two independent uncertainties: what is added up, the widths or their squares?",
        "The smaller of the two groups decides. Try it with 20 on one side and a million on the other.",
    ),
    misconceptions=(
        Misconception(
            "widths added up",
            "This adds the two half-widths. Both shares seldom err as far as that, in opposite directions, at once.",
            (lambda f, n, g, m: _one(f, n) + _one(g, m),),
        ),
        Misconception(
            "the version before taken for certain",
            "Its share was measured, too, and is uncertain as well.",
            (lambda f, n, _g, _m: _one(f, n),),
        ),
        Misconception(
            "both groups thrown together",
            "This is the uncertainty of one share in all requests. A small canary would look as certain as its large"
            " neighbour.",
            (lambda f, n, g, m: _one(f + g, n + m),),
        ),
        Misconception(
            "variances subtracted",
            "Shares are subtracted; their uncertainties are not: a difference is less certain than each part of it.",
            (lambda f, n, g, m: abs(_one(f, n) ** 2 - _one(g, m) ** 2) ** 0.5,),
        ),
        Misconception(
            "the root forgotten",
            "This is a variance, times a factor: the root is missing.",
            (lambda f, n, g, m: 1.96 * ((_one(f, n) / 1.96) ** 2 + (_one(g, m) / 1.96) ** 2),),
        ),
    ),
)


def largest_share(n: int) -> float:
    return float(1 - 0.05 ** (1 / n))


NONE_FAILED = FunctionExercise(
    id="08.none",
    title="none of them failed (from nothing)",
    prompt="""
`n` requests were sent, and none failed. Nobody would say that none ever will. Write `largest_share(n)`: the largest
share of failures p for which "none of n failed" still had a chance of 5%. (One request succeeds with chance 1 - p; what
is the chance that all n do?)
""",
    starter="""
def largest_share(n): ...  # your code
""",
    answer_name="largest_share",
    unit="",
    solution=largest_share,
    cases=((20,), (300,), (3000,)),
    tolerance=1e-4,
    hints=(
        "All n succeed with chance (1 - p) multiplied by itself n times. Set it equal to the chance in the question.",
        "For large n it comes out near three divided by n: the rule of three. Check yours against it.",
    ),
    misconceptions=(
        Misconception(
            "none seen taken for none",
            "No failure among those that were seen: the share may still be above zero, and how far depends on n.",
            (lambda _n: 0.0,),
        ),
        Misconception(
            "one in n",
            "With that share, all n would succeed in more than a third of all tries: it can be larger.",
            (lambda n: 1 / n, lambda n: 1 / (n + 1)),
        ),
        Misconception(
            "the chance divided by n",
            "This shares the 5% out among the requests. It is the chance of all of them together, by multiplication.",
            (lambda n: 0.05 / n,),
        ),
        Misconception(
            "the chance of success taken",
            "This is 1 - p, the share that succeeds.",
            (lambda n: 0.05 ** (1 / n),),
        ),
        Misconception(
            "95 percent for 5",
            "Which of the two is the chance that nothing fails although p is so large?",
            (lambda n: 1 - 0.95 ** (1 / n),),
        ),
    ),
)

EXERCISES = by_id([RUNBOOK, AB, HALF_WIDTH, NONE_FAILED, WORKERS, READY, MOVE])
