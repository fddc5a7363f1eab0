"""Exercises of lab 05: what an application asks for, how long its stages take together, how many replicas.

The defects of a deployment are in `lab_05_defects`, batching and blocking in `lab_05_choices`.
"""

import math
from dataclasses import dataclass

from labkit.autoscaling import desired_replicas
from labkit.teaching.exercises import FunctionExercise, Misconception, by_id
from labkit.teaching.lab_05_choices import BATCH, BLOCKING
from labkit.teaching.lab_05_defects import AWAIT, HAND_OVER, ROUTE, SCRIPT
from labkit.teaching.lab_05_status import STATUS


@dataclass(frozen=True)
class Asked:
    """What a deployment asks for: replicas, and CPUs and GPUs for each of them."""

    name: str
    replicas: int
    cpus: float
    gpus: float


def total_cpus(deployments: list[Asked]) -> float:
    return sum(one.replicas * one.cpus for one in deployments)


def total_gpus(deployments: list[Asked]) -> float:
    return sum(one.replicas * one.gpus for one in deployments)


DESK = [Asked("Desk", 2, 0.1, 0), Asked("Writer", 3, 1, 1), Asked("Classifier", 3, 0.5, 0.25)]
PLAIN = [Asked("Front", 1, 0.1, 0), Asked("Words", 4, 1, 0.5)]

GPUS = FunctionExercise(
    id="05.gpus",
    title="what an application asks for",
    prompt="""
`serve.run` waits until every replica has its place, and asks nobody whether there is one. The example adds up the CPUs.
Fill the blanks for the GPUs, in all.
""",
    starter="""
def total_gpus(deployments):
    return sum(... * one.gpus for one in deployments)
""",
    answer_name="total_gpus",
    unit="GPUs",
    worked=total_cpus,
    solution=total_gpus,
    cases=((DESK,), (PLAIN,), ([Asked("Front", 3, 0.1, 0)],)),
    hints=(
        "What a deployment asks for in `ray_actor_options` is for one of its replicas.",
        "Add up by hand: how many processes would hold a part of a GPU, and which part?",
    ),
    misconceptions=(
        Misconception(
            "the replicas forgotten",
            "This adds up one replica of each deployment. `num_gpus` is what each of its replicas gets.",
            (lambda deployments: sum(one.gpus for one in deployments),),
        ),
        Misconception(
            "replicas counted for GPUs",
            "This counts replicas, whether or not they ask for a GPU.",
            (lambda deployments: sum(one.replicas for one in deployments),),
        ),
        Misconception(
            "the largest taken for the sum",
            "This is the deployment that asks for most. All of them have to be placed at the same time.",
            (
                lambda deployments: max(one.replicas * one.gpus for one in deployments),
                lambda deployments: max(one.gpus for one in deployments),
            ),
        ),
        Misconception(
            "parts rounded up to whole GPUs",
            "A share is counted as a whole GPU. Ray puts several shares on one GPU, as long as they do not exceed it.",
            (lambda deployments: sum(one.replicas * math.ceil(one.gpus) for one in deployments),),
        ),
        Misconception(
            "CPUs for GPUs",
            "These are the CPUs, as in the example.",
            (total_cpus,),
        ),
    ),
)


@dataclass(frozen=True)
class Stage:
    """A stage of a pipeline: how long it takes by itself, and which stages' results it needs before."""

    seconds: float
    needs: tuple[str, ...] = ()


def chain_s(stages: dict[str, Stage]) -> float:
    return sum(one.seconds for one in stages.values())


def parallel_s(stages: dict[str, Stage]) -> float:
    def ends_s(name: str) -> float:
        return stages[name].seconds + max((ends_s(before) for before in stages[name].needs), default=0.0)

    return max(ends_s(name) for name in stages)


def _needs_added_up(stages: dict[str, Stage]) -> float:
    def ends_s(name: str) -> float:
        return stages[name].seconds + sum(ends_s(before) for before in stages[name].needs)

    return max(ends_s(name) for name in stages)


INDEPENDENT = {"intent": Stage(0.05), "reply": Stage(0.8), "summary": Stage(0.7)}
CHAIN = {"words": Stage(0.1), "answer": Stage(0.9, ("words",))}
MIXED = {
    "intent": Stage(0.2),
    "search": Stage(0.3, ("intent",)),
    "history": Stage(0.5, ("intent",)),
    "reply": Stage(0.6, ("search", "history")),
    "log": Stage(0.1),
}

PARALLEL = FunctionExercise(
    id="05.parallel",
    title="how long stages take together",
    prompt="""
The example runs the stages one after the other. Now each begins as soon as it has all that it `needs` (the names of
other stages), and stages that do not wait for each other overlap, each as fast as by itself. Fill the blanks: the
seconds until the last one is done.
""",
    starter="""
def parallel_s(stages):
    def ends_s(name):
        begins_s = max((... for before in stages[name].needs), default=0.0)
        return begins_s + ...

    return max(ends_s(name) for name in stages)
""",
    answer_name="parallel_s",
    unit="s",
    worked=chain_s,
    solution=parallel_s,
    cases=((MIXED,), (INDEPENDENT,), (CHAIN,)),
    hints=(
        "When can a stage begin that needs two others? When the later of them has ended.",
        "When a stage ends is asked in the same way as when the stages before it end: the function calls itself.",
    ),
    misconceptions=(
        Misconception(
            "nothing overlaps",
            "All stages are added up, as in a chain. Those that do not need each other may run at the same time.",
            (chain_s,),
        ),
        Misconception(
            "the needs ignored",
            "This is the longest stage alone. A stage that needs another's result cannot begin with it.",
            (lambda stages: max(one.seconds for one in stages.values()),),
        ),
        Misconception(
            "the needs added up",
            "A stage with two needs waits for both, but these may run side by side: it waits for the later one.",
            (_needs_added_up,),
        ),
        Misconception(
            "the work shared out evenly",
            "The sum is divided by the number of stages. A stage is not split: the longest path sets the time.",
            (lambda stages: chain_s(stages) / len(stages),),
        ),
    ),
)

REPLICAS = FunctionExercise(
    id="05.replicas",
    title="how many replicas a load asks for (from nothing)",
    prompt="""
Ray Serve keeps `target_ongoing` requests under way in each replica. `rate` requests come every second, and each takes
`duration_s` seconds; no queue has built up. Write `desired_replicas`: how many replicas the autoscaler goes for, a
whole number, not below `min_replicas` and not above `max_replicas`. (How many requests are under way on average? That
is Little's law, three letters and one equals sign.)
""",
    starter="""
def desired_replicas(rate, duration_s, target_ongoing, min_replicas, max_replicas): ...  # your code
""",
    answer_name="desired_replicas",
    unit="replicas",
    solution=desired_replicas,
    cases=(
        (40.0, 0.9, 5.0, 1, 20),
        (8.0, 0.7, 2.0, 1, 10),
        (8.0, 0.05, 2.0, 2, 10),
        (100.0, 1.0, 2.0, 1, 9),
        (11.0, 0.4, 2.0, 1, 3),
    ),
    hints=(
        "If eight come every second and each stays for half a second, how many are there at a time?",
        "A part of a replica cannot be started: which way is the number rounded, and what holds it in its limits?",
    ),
    misconceptions=(
        Misconception(
            "volume taken for concurrency",
            "How long a request takes makes no difference here. What is under way depends on it: requests that take"
            " twice as long are twice as many at a time.",
            (lambda rate, _duration_s, target, low, high: min(max(math.ceil(rate / target), low), high),),
        ),
        Misconception(
            "rounded down",
            "With a part of a replica missing, each of the others would have more under way than its target.",
            (
                lambda rate, duration_s, target, low, high: min(max(int(rate * duration_s / target), low), high),
                lambda rate, duration_s, target, low, high: min(max(round(rate * duration_s / target), low), high),
            ),
        ),
        Misconception(
            "the upper limit forgotten",
            "A large load is answered with more replicas than are allowed.",
            (lambda rate, duration_s, target, low, _high: max(math.ceil(rate * duration_s / target), low),),
        ),
        Misconception(
            "the lower limit forgotten",
            "A small load is answered with fewer replicas than are to stay.",
            (lambda rate, duration_s, target, _low, high: min(math.ceil(rate * duration_s / target), high),),
        ),
        Misconception(
            "one replica for each request",
            "Every request under way gets a replica of its own: the target is how many of them share one.",
            (lambda rate, duration_s, _target, low, high: min(max(math.ceil(rate * duration_s), low), high),),
        ),
    ),
)

EXERCISES = by_id([ROUTE, HAND_OVER, AWAIT, GPUS, SCRIPT, PARALLEL, BATCH, BLOCKING, REPLICAS, STATUS])
