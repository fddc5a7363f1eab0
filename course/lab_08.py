"""Exercises of lab 08: is it ready, what a second worker gains, how far a canary's failures can be trusted.

Those with options are in `lab_08_choices`.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

from labkit.errors import UsageError
from labkit.experiments import Interval
from labkit.serving.ray_watch import NO_ANSWER, Answer
from labkit.teaching.exercises import ChoiceExercise, FunctionExercise, Misconception, Option, by_id

RUNBOOK = ChoiceExercise(
    id="08.runbook",
    title="the runbook that loses requests (a broken procedure)",
    prompt="""
A colleague's runbook for a new version, under load; clients ask `/predictions/nap`, without a version:

    1. POST   /models?url=nap-2.0.mar&initial_workers=1&synchronous=false
    2. wait until GET /ping says Healthy
    3. PUT    /models/nap/2.0/set-default
    4. DELETE /models/nap/1.0

Which of these are true?

- **A** After step 2 nobody knows yet whether 2.0 can load at all.
- **B** Step 3 may send everybody to a version that has no worker ready.
- **C** Step 4 would be refused, because 1.0 is the version that was registered first.
- **D** Step 4 takes away what 1.0 still has in its queue and in its worker.
- **E** Between 3 and 4: wait until 1.0 has had nothing pending for longer than a batch takes.
- **F** Between 3 and 4: wait until the clients have heard of the new version and changed their URL.
""",
    starter='faults = None  # letters, such as "BD"',
    answer_name="faults",
    hints=(
        "What does each call wait for, and what does /ping look at?",
        "The switch in this lab lost nothing. Compare it with this one, line by line.",
    ),
    options=(
        Option(
            "A",
            "After step 2 nobody knows yet whether 2.0 can load at all.",
            True,
            "the frontend's health taken for the model's",
            "Something about step 2 is missing: whose health does it tell?",
        ),
        Option(
            "B",
            "Step 3 may send everybody to a version that has no worker ready.",
            True,
            "asked for taken for there",
            "Something about step 3 is missing: the first call returned at once, and loading takes seconds.",
        ),
        Option(
            "C",
            "Step 4 would be refused, because 1.0 is the version that was registered first.",
            False,
            "the first one taken for the default for ever",
            "What is refused is to take away the default version while there are others, and that is another one now.",
        ),
        Option(
            "D",
            "Step 4 takes away what 1.0 still has in its queue and in its worker.",
            True,
            "a DELETE thought to wait",
            "Something about step 4 is missing: it waits for nobody.",
        ),
        Option(
            "E",
            "Between 3 and 4: wait until 1.0 has had nothing pending for longer than a batch takes.",
            True,
            "the drain not seen",
            "A step is missing between the last two: requests came for the old version until a moment ago.",
        ),
        Option(
            "F",
            "Between 3 and 4: wait until the clients have changed their URL.",
            False,
            "clients thought to choose the default",
            "These clients name no version: they follow the default without hearing of it.",
        ),
    ),
)

AB = ChoiceExercise(
    id="08.ab",
    title="who splits the traffic",
    prompt="""
2.0 is the default version of `nap`, and 3.0 is registered beside it. A tenth of the users are to get 3.0. Which of
these do it?

- **A** Nothing more has to be done: TorchServe splits among the registered versions.
- **B** A proxy in front sends a tenth of the requests to `/predictions/nap/3.0`, and the rest to `/predictions/nap`.
- **C** `PUT /models/nap/3.0/set-default` with a weight.
- **D** The client hashes the user's name, and asks `/predictions/nap/3.0` where it falls into the lowest tenth.
- **E** Nine workers for 2.0 and one for 3.0.
- **F** Change the default version to and fro: one minute of ten it is 3.0.
""",
    starter='ways = None  # letters, such as "BD"',
    answer_name="ways",
    hints=(
        "Which version answers a request that names none? The lab counted.",
        "It should be the same tenth of the users for as long as the test lasts.",
    ),
    options=(
        Option(
            "A",
            "TorchServe splits among the registered versions.",
            False,
            "versions side by side taken for a split",
            "The lab counted who answers requests that name no version: it was one of the two, every time.",
        ),
        Option(
            "B",
            "A proxy in front sends a tenth of the requests to `/predictions/nap/3.0`.",
            True,
            "the proxy forgotten",
            "A place that sees all requests before TorchServe does is missing.",
        ),
        Option(
            "C",
            "`PUT /models/nap/3.0/set-default` with a weight.",
            False,
            "a default taken for a weight",
            "That call knows no weight: there is one default version, and it gets all of them.",
        ),
        Option(
            "D",
            "The client hashes the user's name, and asks for 3.0 by a tenth of the hashes.",
            True,
            "the client forgotten",
            "Whoever writes the URL can choose the version, and can choose it by user.",
        ),
        Option(
            "E",
            "Nine workers for 2.0 and one for 3.0.",
            False,
            "workers taken for weights",
            "Workers decide how fast a version answers what it gets. What it gets is decided by the URL.",
        ),
        Option(
            "F",
            "Change the default version to and fro.",
            False,
            "a split in time taken for one of users",
            "Then everybody gets 3.0 now and then, and what differs between the minutes is measured along with it.",
        ),
    ),
)

MOVE = ChoiceExercise(
    id="08.move",
    title="the configuration that moved (a broken move)",
    prompt="""
A team has moved from TorchServe to vLLM. Before: `batchSize: 16`, `maxBatchDelay: 50`, `responseTimeout: 120`,
`minWorkers: 2`, the handler's chat template, clients at `/predictions/chat` with `{{"prompt": ...}}`. Now:

    vllm serve MODEL --max-num-seqs 16 --port 8000

with the clients at `/v1/completions`, their bodies unchanged but for `"model"`. Answers have become strange, and
anybody can ask. Which of these are true?

- **A** The model sees the bare prompt now: the chat template is applied by `/v1/chat/completions` only.
- **B** `maxBatchDelay` is missing: without it vLLM cannot batch.
- **C** Nobody asks for a key any more: `--api-key`, or VLLM_API_KEY, has to be set.
- **D** `--max-num-seqs 16` makes every request wait for the longest one of its batch, as `batchSize: 16` did.
- **E** A limit on how long a request may take has to move into the client or into a proxy.
- **F** Two workers become two servers behind a balancer, each with a copy of the model.
""",
    starter='truths = None  # letters, such as "BD"',
    answer_name="truths",
    hints=(
        "Go through the old settings one by one: who does its work now? Some work is not there any more.",
        "The comparison in this lab sent one prompt to two routes, and showed the first token that differed.",
    ),
    options=(
        Option(
            "A",
            "The chat template is applied by `/v1/chat/completions` only.",
            True,
            "the template lost on the way",
            "The strange answers have a cause: the model was trained on a form that somebody has to write.",
        ),
        Option(
            "B",
            "`maxBatchDelay` is missing: without it vLLM cannot batch.",
            False,
            "waiting taken for batching",
            "A new request joins the running batch at its next step: there is nothing to wait for.",
        ),
        Option(
            "C",
            "Nobody asks for a key any more.",
            True,
            "the key left behind",
            "TorchServe asked for a token by itself. Who asks now?",
        ),
        Option(
            "D",
            "`--max-num-seqs 16` makes every request wait for the longest one of its batch.",
            False,
            "continuous batching taken for static",
            "A request leaves when it is done, and its place is given to the next one (lab 01).",
        ),
        Option(
            "E",
            "A limit on how long a request may take has to move into the client or into a proxy.",
            True,
            "the time limit left behind",
            "What ended long requests before was a setting of TorchServe's. Nobody has taken it over.",
        ),
        Option(
            "F",
            "Two workers become two servers behind a balancer.",
            True,
            "workers thought to be an option of the engine",
            "Something about the two workers is missing: they were two processes, with a model each.",
        ),
    ),
)


# --- lab 08 ---


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


# --- lifecycle ---


NOBODY = "no answer"
FAILED = " failed"
MOST_OF_CAPACITY = 0.9
FEWEST_IN_CANARY = 10


def fate(answer: Answer) -> str:
    """What became of a request: "2.0" (answered by it), "2.0 failed" (its own error), "404", "no answer"."""
    if answer.status == NO_ANSWER:
        return NOBODY
    version = signature(answer)
    if not version:
        return str(answer.status)
    return version if answer.ok else f"{version}{FAILED}"


def signature(answer: Answer) -> str:
    """The version that signed it; "" where none did."""
    try:
        found = json.loads(answer.text)
    except ValueError:
        return ""
    return str(found.get("version", "")) if isinstance(found, dict) else ""


def books(answers: Sequence[Answer]) -> dict[str, int]:
    """How many requests met which fate, the most frequent first. The numbers add up to all requests."""
    return dict(Counter(map(fate, answers)).most_common())


def lost(answers: Sequence[Answer]) -> list[Answer]:
    """Those that no version signed: whatever they were told, no model has seen them to the end."""
    return [one for one in answers if not signature(one)]


def failure_difference(failed: int, n: int, failed_before: int, n_before: int, *, confidence: float = 0.95) -> Interval:
    """How much more often the first fails than the second, as a difference of shares, with its interval.

    The interval is R. G. Newcombe's, made of two Wilson intervals ("Interval estimation for the difference between
    independent proportions", Statistics in Medicine 17 (1998), method 10): it holds for few and for no failures, too.
    UsageError without requests on a side.
    """
    for name, total in (("the canary", n), ("the version before", n_before)):
        if total < 1:
            raise UsageError(f"{name} got {total} requests", remedy="send some to each before you compare")
    share, before = failed / n, failed_before / n_before
    low, high = wilson(failed, n, confidence=confidence)
    low_before, high_before = wilson(failed_before, n_before, confidence=confidence)
    below, above = math.hypot(share - low, high_before - before), math.hypot(high - share, before - low_before)
    value = share - before
    return Interval(value=value, low=value - below, high=value + above, n=n + n_before, confidence=confidence)


def wilson(failed: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a share of `failed` among `n` (E. B. Wilson, 1927): also of none, and of all."""
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), failed / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def as_it_went(answers: Sequence[Answer], *, canary: str, before: str) -> list[tuple[int, Interval]]:
    """(answers so far, difference of failures) after each answer, once both versions have given one."""
    seen = {canary: [0, 0], before: [0, 0]}
    found = []
    for place, one in enumerate(sorted(answers, key=lambda one: one.finished_s), start=1):
        if (version := signature(one)) in seen:
            seen[version][0] += not one.ok
            seen[version][1] += 1
        if all(total for _, total in seen.values()):
            found.append((place, failure_difference(*seen[canary], *seen[before])))
    return found


def verdict(difference: Interval) -> str:
    """What an interval of a difference of failures allows to say: "worse", "better" or "cannot tell"."""
    if difference.low > 0:
        return "worse"
    return "better" if difference.high < 0 else "cannot tell"


def first_difference(left: Sequence[str], right: Sequence[str]) -> int | None:
    """The place of the first element that is not the same in both; None where they are equal, lengths too."""
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return None if len(left) == len(right) else min(len(left), len(right))


def capacity(*, batch_size: int, fixed_s: float, per_row_s: float) -> float:
    """Requests a second that one worker answers with full batches."""
    return batch_size / (fixed_s + per_row_s * batch_size)


def check_load(rate: float, *, batch_size: int, fixed_s: float, per_row_s: float) -> None:
    """UsageError for a load that one worker cannot carry: the queue would grow, and fill up, whatever one does."""
    most = capacity(batch_size=batch_size, fixed_s=fixed_s, per_row_s=per_row_s)
    if rate > MOST_OF_CAPACITY * most:
        raise UsageError(
            f"{rate:g} requests/s are too many for one worker, which answers {most:.0f} in batches of {batch_size}",
            remedy=f"lower rate to {math.floor(MOST_OF_CAPACITY * most)} or less, or fixed_s and per_row_s",
        )


def check_canary(requests: int, share: float) -> None:
    """UsageError for a canary that gets too few requests to say anything."""
    if requests * min(share, 1 - share) < FEWEST_IN_CANARY:
        raise UsageError(
            f"of {requests} requests a share of {share:g} leaves one side {requests * min(share, 1 - share):.0f}",
            remedy=f"raise canary_requests, so that each side gets {FEWEST_IN_CANARY} at least",
        )
