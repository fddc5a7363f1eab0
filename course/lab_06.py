"""Exercises of lab 06: GPUs that are asked for, where Ray puts a fraction, and models onto few GPUs."""

import math
from typing import Any

from labkit.teaching.exercises import ChoiceExercise, FunctionExercise, Misconception, Option, by_id

PENDING = ChoiceExercise(
    id="06.pending",
    title="room, and yet it waits",
    prompt="""
A node has four GPUs. Four replicas run, each with `num_gpus` 0.6. A new one with `num_gpus` 0.5 does not start, and Ray
Serve says: *Resources required for each replica: GPU 0.5, total resources available: GPU 1.6*. Which are true?

- **A** What is left lies on four GPUs, and none of them has half of itself left.
- **B** Ray could not find the room because the message is late: it starts when the next health check comes.
- **C** With `num_gpus` 0.4 it would start at once.
- **D** Ray will move one of the running replicas to make room.
- **E** Had two of the four asked for 0.4, each could share a GPU with one of 0.6, and two GPUs would be empty.
- **F** The new replica has to wait until all four others are gone.
""",
    starter='statements = None  # letters, such as "BD"',
    answer_name="statements",
    hints=(
        "Write down what is left of each of the four GPUs. Which of these numbers is at least 0.5?",
        "For E: put 0.6, 0.4, 0.6 and 0.4 onto GPUs by best fit, one after the other, and look at what stays empty.",
    ),
    options=(
        Option(
            "A",
            "What is left lies on four GPUs, and none of them has half of itself left.",
            True,
            "the total taken for room",
            "Something about where the room lies is missing. The message adds up what is left; the scheduler does not.",
        ),
        Option(
            "B",
            "Ray could not find the room because the message is late: it starts when the next health check comes.",
            False,
            "waiting taken for lateness",
            "Nothing here is late: the scheduler tries again and again, and the answer stays the same.",
        ),
        Option(
            "C",
            "With num_gpus 0.4 it would start at once.",
            True,
            "the size of the gap not used",
            "Something about the size of the gaps is missing. How much does each GPU have left?",
        ),
        Option(
            "D",
            "Ray will move one of the running replicas to make room.",
            False,
            "a scheduler taken for a mover",
            "A replica that runs stays where it is: moving it would mean ending it and starting it again.",
        ),
        Option(
            "E",
            "Had two of the four asked for 0.4, each could share a GPU with one of 0.6, and two GPUs would be empty.",
            True,
            "the sizes not seen as the cause",
            "A way out is missing: sizes that complement each other leave whole GPUs empty.",
        ),
        Option(
            "F",
            "The new replica has to wait until all four others are gone.",
            False,
            "one free GPU taken for all",
            "Too much: how many of the others have to go before one GPU has enough left?",
        ),
    ),
)

TWO_HALVES = ChoiceExercise(
    id="06.two_halves",
    title="two halves (a broken configuration)",
    prompt="""
Two deployments, each with `ray_actor_options={{"num_gpus": 0.5}}` and in each replica `LLM("Qwen2.5-7B")` with nothing
else set, on one GPU with 80 GiB. Ray places both. One comes up; the other dies when it starts: *Free memory on device
(6.1/80.0 GiB) on startup is less than desired GPU memory utilization (0.92, 73.6 GiB)*. Which are true?

- **A** Ray's 0.5 sets the engine's gpu_memory_utilization, but only for the first replica of a GPU.
- **B** The engine takes its share of the whole GPU, whatever num_gpus says: by default nearly all of it.
- **C** `gpu_memory_utilization=0.48` in both, with `num_gpus` 0.5, would leave both room.
- **D** `num_gpus` 0.92 for both would let both run on this GPU.
- **E** Even with shares that fit, one should start after the other: each looks at what is free just then.
- **F** The second engine should get the share 0.92 of what the first one left.
""",
    starter='statements = None  # letters, such as "BD"',
    answer_name="statements",
    hints=(
        "Two numbers carry nearly the same name, and nobody compares them. Who reads which?",
        "For D: what does Ray's scheduler do with a second replica of that size?",
    ),
    options=(
        Option(
            "A",
            "Ray's 0.5 sets the engine's gpu_memory_utilization, but only for the first replica of a GPU.",
            False,
            "num_gpus taken for the engine's share",
            "Ray passes the number on to nobody. It chooses a GPU and makes it visible, whole.",
        ),
        Option(
            "B",
            "The engine takes its share of the whole GPU, whatever num_gpus says: by default nearly all of it.",
            True,
            "the engine's own share overlooked",
            "Something about the engine is missing: the message names the share that it asked for.",
        ),
        Option(
            "C",
            "gpu_memory_utilization=0.48 in both, with num_gpus 0.5, would leave both room.",
            True,
            "the remedy not seen",
            "A remedy is missing. Which shares add up to less than the whole GPU?",
        ),
        Option(
            "D",
            "num_gpus 0.92 for both would let both run on this GPU.",
            False,
            "an honest promise taken for room",
            "Now the promise is honest, and so the scheduler keeps the second one waiting: the sum is above one.",
        ),
        Option(
            "E",
            "Even with shares that fit, one should start after the other: each looks at what is free just then.",
            True,
            "the start taken for the rest",
            "Something about the start is missing. When does an engine measure what is free, and what does another one"
            " do in that moment?",
        ),
        Option(
            "F",
            "The second engine should get the share 0.92 of what the first one left.",
            False,
            "a share of the rest",
            "The share is one of the GPU's whole memory. What is left of it is far less than that.",
        ),
    ),
)


# --- lab 06 ---


# The article's listing, as (name, replicas, num_gpus): a preprocessor that splits text, and a model.
ARTICLE_LISTING = (("Preprocessor", 2, 0.5), ("Model", 4, 1.0))


def gpus_of_one(replicas: int, num_gpus: float) -> float:
    return replicas * num_gpus


def gpus_asked(deployments: list[tuple[str, int, float]]) -> float:
    return sum(replicas * num_gpus for _, replicas, num_gpus in deployments)


GPUS_ASKED = FunctionExercise(
    id="06.gpus_asked",
    title="how many GPUs are asked for",
    prompt="""
The example is one deployment. An application has several: a list of `(name, replicas, num_gpus)`. Fill the blank: how
many GPUs does the whole application ask of Ray? Below, your function meets the article's listing.
""",
    starter="""
def gpus_asked(deployments):
    return sum(... for name, replicas, num_gpus in deployments)
""",
    answer_name="gpus_asked",
    unit="GPUs",
    worked=gpus_of_one,
    solution=gpus_asked,
    cases=(([("a", 3, 0.25), ("b", 2, 2)],), ([("a", 2, 0.3), ("b", 1, 0.5), ("c", 1, 1)],)),
    hints=(
        "`num_gpus` stands in `ray_actor_options`: the options of an actor. How many actors has a deployment?",
        "The example's product, once for each deployment.",
    ),
    misconceptions=(
        Misconception(
            "the replicas forgotten",
            "Each deployment is counted once. Every replica is an actor of its own and asks for its own part.",
            (lambda deployments: sum(num_gpus for _, _, num_gpus in deployments),),
        ),
        Misconception(
            "the fraction forgotten",
            "These are the replicas. Several of them may share a GPU: that is what a fraction is for.",
            (lambda deployments: sum(replicas for _, replicas, _ in deployments),),
        ),
        Misconception(
            "a fraction rounded up",
            "Every part of a GPU became a whole one. Ray adds the parts as they are.",
            (lambda deployments: sum(replicas * math.ceil(num_gpus) for _, replicas, num_gpus in deployments),),
        ),
        Misconception(
            "the largest deployment only",
            "Only one deployment is counted. They run at the same time, and each keeps what it has.",
            (lambda deployments: max(replicas * num_gpus for _, replicas, num_gpus in deployments),),
        ),
    ),
)


def gpu_for(left: list[float], asked: float) -> int:
    best = -1
    for gpu, free in enumerate(left):
        if free >= asked and (best < 0 or free < left[best]):
            best = gpu
    return best


GPU_FOR = FunctionExercise(
    id="06.gpu_for",
    title="where Ray puts a fraction",
    prompt="""
`left` holds what is left of each GPU of a node, for instance `[0.25, 0.3, 1.0]`; a replica asks for `asked`, a part of
one GPU. Ray takes the **best fit**: of the GPUs that hold it the one with the least left, so that large gaps stay for
large replicas (of equal ones the first). Fill the blanks: the number of that GPU, or -1 where the replica has to wait.
""",
    starter="""
def gpu_for(left, asked):
    best = -1  # the number of the best GPU so far
    for gpu, free in enumerate(left):
        if free >= ... and (best < 0 or free < ...):
            best = gpu
    return best
""",
    answer_name="gpu_for",
    unit="",
    solution=gpu_for,
    cases=(
        ([0.5, 0.75, 0.25, 1.0], 0.25),
        ([1.0, 0.75, 0.5, 0.75], 0.6),
        ([0.4, 0.4, 0.4], 0.5),
        ([1.0, 0.5], 0.5),
        ([0.9, 0.3, 1.0], 0.3),
    ),
    hints=(
        "The first blank is what a GPU must at least have left.",
        "The second blank is what the best GPU so far has left: a better one has less.",
    ),
    misconceptions=(
        Misconception(
            "the first that fits",
            "This takes the first GPU that holds the replica. A later one may hold it with less to spare.",
            (lambda left, asked: next((gpu for gpu, free in enumerate(left) if free >= asked), -1),),
        ),
        Misconception(
            "the emptiest GPU",
            "This spreads the replicas out. Ray fills gaps: the GPU with the least left is taken.",
            (
                lambda left, asked: max(
                    (gpu for gpu in range(len(left)) if left[gpu] >= asked), key=lambda gpu: left[gpu], default=-1
                ),
            ),
        ),
        Misconception(
            "parts of two GPUs added up",
            "Where no single GPU holds the replica, this still finds room. What is left on two GPUs never adds up.",
            (
                lambda left, asked: (
                    gpu_for(left, asked)
                    if gpu_for(left, asked) >= 0 or sum(left) < asked
                    else max(range(len(left)), key=lambda gpu: left[gpu])
                ),
            ),
        ),
        Misconception(
            "at least taken for above",
            "A GPU that has exactly what is asked for was turned down. It holds the replica.",
            (
                lambda left, asked: min(
                    (gpu for gpu in range(len(left)) if left[gpu] > asked), key=lambda gpu: left[gpu], default=-1
                ),
            ),
        ),
    ),
)


def pack(models: list[tuple[float, float]], gpu_gib: float, most_load: float) -> list[int]:
    used: list[list[float]] = []  # memory and load of each GPU
    place = [0] * len(models)
    for number in sorted(range(len(models)), key=lambda n: -models[n][0]):
        gib, load = models[number]
        fits = [n for n, (a, b) in enumerate(used) if a + gib <= gpu_gib and b + load <= most_load]
        gpu = fits[0] if fits else len(used)
        if gpu == len(used):
            used.append([0.0, 0.0])
        used[gpu][0] += gib
        used[gpu][1] += load
        place[number] = gpu
    return place


def _in_order(models: list[tuple[float, float]], gpu_gib: float, most_load: float) -> list[int]:
    """First fit without sorting."""
    used: list[tuple[float, float]] = []
    place = []
    for gib, load in models:
        fits = (n for n, (a, b) in enumerate(used) if a + gib <= gpu_gib and b + load <= most_load)
        gpu = next(fits, len(used))
        a, b = used[gpu] if gpu < len(used) else (0.0, 0.0)
        used[gpu : gpu + 1] = [(a + gib, b + load)]
        place.append(gpu)
    return place


def _next_fit(models: list[tuple[float, float]], gpu_gib: float, most_load: float) -> list[int]:
    """Only the newest GPU is looked at."""
    gpu, a, b = 0, 0.0, 0.0
    place = [0] * len(models)
    for number in sorted(range(len(models)), key=lambda n: -models[n][0]):
        gib, load = models[number]
        if a + gib > gpu_gib or b + load > most_load:
            gpu, a, b = gpu + 1, 0.0, 0.0
        a, b = a + gib, b + load
        place[number] = gpu
    return place


MODELS = [(10.0, 0.125), (40.0, 0.25), (30.0, 0.5), (24.0, 0.125), (16.0, 0.5), (50.0, 0.125), (12.0, 0.375)]
Case = tuple[list[tuple[float, float]], float, float]
CASES: tuple[Case, ...] = (
    (MODELS, 80.0, 0.75),
    (MODELS, 64.0, 1.0),
    ([(40.0, 0.25), (40.0, 0.5), (40.0, 0.25), (40.0, 0.5)], 80.0, 0.75),
)


def _ignoring(part: int) -> Any:
    """The solution with one of the two measures taken for nothing."""
    return lambda models, gpu_gib, most_load: pack(
        [(gib, 0.0) if part else (0.001 * gib, load) for gib, load in models], gpu_gib, most_load
    )


PACK = FunctionExercise(
    id="06.pack",
    title="models onto few GPUs (from nothing)",
    prompt="""
`models` is a list of `(memory_gib, load)`. Write `pack`: the number of the GPU (from 0) for each model, in the order of
the list. Rule: **the model with the most memory first**, each onto the first GPU on which memory stays within `gpu_gib`
*and* load within `most_load`; where there is none, a new GPU. Below, it packs this lab's models.
""",
    starter="def pack(models, gpu_gib, most_load): ...  # your code",
    answer_name="pack",
    unit="",
    solution=pack,
    cases=CASES,
    hints=(
        "Keep a list with memory and load of each GPU in use. A model that fits none of them opens the next one.",
        "Sort numbers, not models: `sorted(range(len(models)), key=...)`. Then you know where each answer belongs.",
    ),
    misconceptions=(
        Misconception(
            "memory alone",
            "The load plays no part in your plan: a GPU gets more work than it was to have. Its queue grows, however"
            " well the memory fits.",
            (_ignoring(1),),
        ),
        Misconception(
            "load alone",
            "The memory plays no part in your plan: the models do not fit beside each other.",
            (_ignoring(0),),
        ),
        Misconception(
            "in the order given",
            "The models were taken as they stand in the list. The largest comes first: small ones fill gaps, large ones"
            " find none.",
            (_in_order,),
        ),
        Misconception(
            "only the newest GPU looked at",
            "A model that does not fit the newest GPU opens another one, although an earlier GPU has room for it.",
            (_next_fit,),
        ),
        Misconception(
            "a GPU for each model",
            "Every model has a GPU of its own. Which of them could be neighbours?",
            (lambda models, _gpu_gib, _most_load: list(range(len(models))),),
        ),
    ),
)

EXERCISES = by_id([GPUS_ASKED, GPU_FOR, PACK, PENDING, TWO_HALVES])
