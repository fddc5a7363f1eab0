"""Exercises of lab 10: what a ranking is, what would change it, and what a rate asks for."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from labkit.teaching.exercises import ChoiceExercise, FunctionExercise, Misconception, Option, by_id

WHICH_EVIDENCE = ChoiceExercise(
    id="10.evidence",
    title="what a reason rests on",
    prompt="""
Six reasons for or against a stack, as they are heard in meetings. Which of them can be **measured on your own
machine**, with the means of this course?

- **A** Most companies like ours use this framework.
- **B** For one model, a hop through Ray Serve costs milliseconds a request.
- **C** The project has been archived, and no security patches are coming.
- **D** Our team would find it too complicated.
- **E** In a plain handler, a language model makes fewer tokens a second than in an engine.
- **F** Prompts that begin alike get their first token sooner.
""",
    starter='measurable = None  # letters, such as "BD"',
    answer_name="measurable",
    hints=(
        "Which of them would two people with the same machine have to agree on after one run?",
        "Three kinds are mixed here: what a run shows, what a dated source says, and what somebody thinks.",
    ),
    options=(
        Option(
            "A",
            "Most companies like ours use this framework.",
            False,
            "a crowd taken for evidence",
            "How many use something is a survey at best; your machine cannot tell, and it says nothing of your load.",
        ),
        Option(
            "B",
            "For one model, a hop through Ray Serve costs milliseconds a request.",
            True,
            "an overhead thought unmeasurable",
            "An overhead is left out. The same request with and without the hop, many times: what is the difference?",
        ),
        Option(
            "C",
            "The project has been archived, and no security patches are coming.",
            False,
            "a source taken for a measurement",
            "It is true, and it weighs a lot, but it is read, not measured: it comes with a source and a date.",
        ),
        Option(
            "D",
            "Our team would find it too complicated.",
            False,
            "an opinion taken for a measurement",
            "A judgement on people. It may decide; then it should be called an opinion, so that it can be left out.",
        ),
        Option(
            "E",
            "In a plain handler, a language model makes fewer tokens a second than in an engine.",
            True,
            "throughput taken on trust",
            "A statement on tokens a second is left out. Same model, same workload, two servers.",
        ),
        Option(
            "F",
            "Prompts that begin alike get their first token sooner.",
            True,
            "a mechanism taken on trust",
            "A statement on the first token is left out. A clock and two runs, one with an empty cache, decide it.",
        ),
    ),
)

SHARED_GPU = ChoiceExercise(
    id="10.shared_gpu",
    title="two models on one GPU (a broken configuration)",
    prompt="""
A team wrote this by hand for two chat models that share one GPU in Ray Serve; both entries are alike:

```yaml
engine_kwargs: {{gpu_memory_utilization: 0.92, max_model_len: 8192}}
deployment_config: {{num_replicas: 1, max_ongoing_requests: 5}}
placement_group_config: {{bundles: [{{CPU: 1, GPU: 0.5}}]}}
```

The first model comes up. The second one dies while it starts, **out of memory**. With the first one alone the load
test shows at most five requests under way in the engine, and a long queue before it.

Which of these are true?

- **A** Each engine takes 0.92 of the whole GPU, whatever fraction Ray has counted for it.
- **B** `GPU: 0.5` makes the driver keep half of the memory for each replica.
- **C** `max_ongoing_requests: 5` keeps all further requests out of the engine's batch.
- **D** Without `enable_prefix_caching: true` the engine does not batch.
- **E** 0.45 for each, and starting them one after the other, would bring both up.
- **F** A larger `max_model_len` would shorten the queue.
""",
    starter='true_ones = None  # letters, such as "BD"',
    answer_name="true_ones",
    hints=(
        "Two faults with two causes. Who counts fractions, and who takes memory?",
        "The selector's own configuration for a shared GPU differs from this one in two numbers.",
    ),
    options=(
        Option(
            "A",
            "Each engine takes 0.92 of the whole GPU, whatever fraction Ray has counted for it.",
            True,
            "the engine's share overlooked",
            "What the engine takes at its start is not among your causes. Whose share is `gpu_memory_utilization`?",
        ),
        Option(
            "B",
            "GPU: 0.5 makes the driver keep half of the memory for each replica.",
            False,
            "a scheduler's number taken for a wall",
            "The fraction is a number in Ray's books: it decides where a replica is placed. Nobody watches its memory.",
        ),
        Option(
            "C",
            "max_ongoing_requests: 5 keeps all further requests out of the engine's batch.",
            True,
            "the gate before the engine overlooked",
            "What lets requests through to the engine is not among your causes. Where does the number five stand?",
        ),
        Option(
            "D",
            "Without enable_prefix_caching: true the engine does not batch.",
            False,
            "a cache taken for batching",
            "Batching needs no switch. The prefix cache is on by default, and is about computing less, not together.",
        ),
        Option(
            "E",
            "0.45 for each, and starting them one after the other, would bring both up.",
            True,
            "the remedy not seen",
            "A remedy is missing. What would both engines' shares have to add up to?",
        ),
        Option(
            "F",
            "A larger max_model_len would shorten the queue.",
            False,
            "length taken for room",
            "It is the longest request that is allowed. It makes no place for more of them; if anything, for fewer.",
        ),
    ),
)


# --- exercises of lab 10: what a ranking is, what would change it, and what a rate asks for ---


def points_of(stack: str, rules: list[Mapping[str, int]]) -> int:
    return sum(rule.get(stack, 0) for rule in rules)  # a rule that does not name the stack gives nothing


def places(points: Sequence[int], excluded: Sequence[bool]) -> list[int]:
    numbers = range(len(points))
    ranked = sorted((n for n in numbers if not excluded[n]), key=lambda n: -points[n])  # sorted keeps ties in order
    return [ranked.index(n) + 1 if n in ranked else 0 for n in numbers]


def _sorted_places(points: Sequence[int], kept: Sequence[int], key: Callable[[int], Any]) -> list[int]:
    ranked = sorted(kept, key=key)
    return [ranked.index(n) + 1 if n in ranked else 0 for n in range(len(points))]


def _kept(excluded: Sequence[bool]) -> list[int]:
    return [n for n, out in enumerate(excluded) if not out]


PLACES = FunctionExercise(
    id="10.places",
    title="places from points",
    prompt="""
The example adds up one stack's points. Now `points` and `excluded` hold an entry for each stack, those with the fewest
parts first. Fill the blanks of `places`: for each stack its place, 1 for the first; **0 where it is excluded**. Of
equal points the stack with fewer parts comes first, the one that stands earlier in the list.
""",
    starter="""
def places(points, excluded):
    numbers = range(len(points))
    ranked = sorted((n for n in numbers if ...), key=lambda n: points[n] * ...)
    return [ranked.index(n) + 1 if n in ranked else 0 for n in numbers]
""",
    answer_name="places",
    unit="places",
    worked=points_of,
    solution=places,
    cases=(
        ([13, 6, 9, -3, 1, -2], [False, True, False, False, False, True]),
        ([5, 11, 5, 9, 9, -4], [True, False, False, False, False, False]),
        ([2, 2, 2], [False, False, False]),
    ),
    hints=(
        "Two blanks: who takes part at all, and in which order. What the function is given is enough for both.",
        "`sorted` puts the smallest first and leaves equal ones in the order in which they came.",
    ),
    misconceptions=(
        Misconception(
            "an excluded stack ranked",
            "A stack that is excluded got a place. Hard reasons come before points: no sum makes up for them.",
            (
                lambda points, _excluded: _sorted_places(points, range(len(points)), lambda n: -points[n]),
                lambda points, excluded: _sorted_places(
                    points, range(len(points)), lambda n: (excluded[n], -points[n])
                ),
            ),
        ),
        Misconception(
            "the lowest points first",
            "The stack with the lowest points has the first place. `sorted` begins with the smallest key.",
            (lambda points, excluded: _sorted_places(points, _kept(excluded), lambda n: points[n]),),
        ),
        Misconception(
            "ties given to more parts",
            "Of two stacks with equal points yours puts the later one first: the one with more parts.",
            (lambda points, excluded: _sorted_places(points, _kept(excluded), lambda n: (-points[n], -n)),),
        ),
        Misconception(
            "only the excluded ranked",
            "The condition is turned round: the stacks that are excluded were ranked, and the others were not.",
            (
                lambda points, excluded: _sorted_places(
                    points, [n for n, out in enumerate(excluded) if out], lambda n: -points[n]
                ),
            ),
        ),
    ),
)


def count_flips(choose: Callable[[Mapping[str, str]], str], answers: dict[str, str], options: Any) -> int:
    now = choose(answers)
    return sum(
        choose({**answers, question: other}) != now
        for question, others in options.items()
        for other in others
        if other != answers[question]
    )


def _toy(answers: Mapping[str, str]) -> str:
    """A selector of three rules, whose second place is near."""
    if answers["kind"] == "other":
        return "own"
    if answers["models"] == "many" or (answers["pattern"] == "pipeline" and answers["models"] == "few"):
        return "ray"
    return "vllm"


def _alone(answers: Mapping[str, str]) -> str:
    """A selector that looks at nothing but the data."""
    return {"must": "vllm", "partly": "ray", "may": "api"}[answers["host"]]


TOY_OPTIONS = {
    "pattern": ("single", "several", "pipeline"),
    "models": ("one", "few", "many"),
    "kind": ("llm", "other"),
}
DATA_OPTIONS = {"host": ("must", "partly", "may"), "rate": ("low", "medium", "high")}


def _without_return(choose: Any, answers: dict[str, str], options: Any) -> int:
    now, changed, found = choose(answers), dict(answers), 0
    for question, others in options.items():
        for other in others:
            if other != answers[question]:
                changed[question] = other
                found += choose(changed) != now
    return found


def _questions_only(choose: Any, answers: dict[str, str], options: Any) -> int:
    now = choose(answers)
    return sum(any(choose({**answers, name: one}) != now for one in others) for name, others in options.items())


FLIPS = FunctionExercise(
    id="10.flips",
    title="what single answer would change the result (from nothing)",
    prompt="""
`choose(answers)` names the stack that comes first. `answers` is a dict of question and answer; `options` holds the
possible answers of each question. Write `count_flips`: **how many single other answers** bring another stack to the
first place? Each is tried by itself, with all other answers as they are.
""",
    starter="def count_flips(choose, answers, options): ...  # your code",
    answer_name="count_flips",
    unit="answers",
    solution=count_flips,
    cases=(
        (_toy, {"kind": "llm", "models": "few", "pattern": "single"}, TOY_OPTIONS),
        (_toy, {"kind": "llm", "models": "many", "pattern": "pipeline"}, TOY_OPTIONS),
        (_toy, {"kind": "other", "models": "one", "pattern": "single"}, TOY_OPTIONS),
        (_alone, {"host": "may", "rate": "low"}, DATA_OPTIONS),
    ),
    hints=(
        "Ask `choose` once for the answers as they are. Then, for each question and each other option, once more.",
        "`{**answers, question: other}` is a new dict with one answer changed; `answers` itself stays as it was.",
    ),
    misconceptions=(
        Misconception(
            "every other answer counted",
            "You counted all other answers. Most of them leave the first place as it is.",
            (
                lambda _choose, answers, options: sum(
                    other != answers[name] for name, others in options.items() for other in others
                ),
            ),
        ),
        Misconception(
            "a change not taken back",
            "A changed answer stayed changed while the next ones were tried: those results are of several changes.",
            (_without_return,),
        ),
        Misconception(
            "questions counted instead of answers",
            "You counted questions. One question can have two answers that each change the result.",
            (_questions_only,),
        ),
        Misconception(
            "the same result counted",
            "You counted the answers that leave the first place as it is.",
            (
                lambda choose, answers, options: sum(
                    choose({**answers, name: other}) == choose(answers)
                    for name, others in options.items()
                    for other in others
                    if other != answers[name]
                ),
            ),
        ),
    ),
)


def instances(requests_per_s: float, _input_tokens: float, output_tokens: float, tokens_per_hour: float) -> int:
    needed = requests_per_s * output_tokens * 3600 / tokens_per_hour
    return int(needed) + (needed > int(needed))


INSTANCES = FunctionExercise(
    id="10.instances",
    title="from requests a second to instances",
    prompt="""
A load test gave `tokens_per_hour`: the **output** tokens that one instance makes in an hour while it answers requests
like these. Write `instances(requests_per_s, input_tokens, output_tokens, tokens_per_hour)`: how many whole instances
carry the load, without any reserve? (`input_tokens` and `output_tokens` are those of one request.)
""",
    starter="def instances(requests_per_s, input_tokens, output_tokens, tokens_per_hour): ...  # your code",
    answer_name="instances",
    unit="instances",
    solution=instances,
    cases=((1000, 800, 200, 20e6), (5000, 300, 20, 9e5), (12, 500, 90, 3.2e6), (3, 100, 50, 30e6)),
    hints=(
        "How many output tokens a second are asked for, and how many does one instance make in a second?",
        "Reading the input is part of what the load test measured; its tokens are not in the figure.",
    ),
    misconceptions=(
        Misconception(
            "input tokens counted as made",
            "The input tokens were added. The figure counts output tokens only, so the two would not be of one kind.",
            (lambda rate, given, made, hourly: math.ceil(rate * (given + made) / (hourly / 3600)),),
        ),
        Misconception(
            "half an instance",
            "An instance cannot be rented in part: the result has to be whole.",
            (lambda rate, _given, made, hourly: rate * made / (hourly / 3600),),
        ),
        Misconception(
            "rounded down",
            "With one instance fewer the load is not carried: the rest needs an instance, too.",
            (
                lambda rate, _given, made, hourly: math.floor(rate * made / (hourly / 3600)),
                lambda rate, _given, made, hourly: round(rate * made / (hourly / 3600)),
            ),
        ),
        Misconception(
            "minutes for hours",
            "The hour has gone wrong: it was divided as if it had sixty seconds.",
            (lambda rate, _given, made, hourly: math.ceil(rate * made / (hourly / 60)),),
        ),
        Misconception(
            "an hour's tokens for a second's",
            "Tokens an hour were compared with tokens a second.",
            (lambda rate, _given, made, hourly: math.ceil(rate * made / hourly),),
        ),
        Misconception(
            "requests taken for tokens",
            "Requests a second were divided by tokens a second. How many tokens does a request ask for?",
            (lambda rate, _given, _made, hourly: math.ceil(rate / (hourly / 3600)),),
        ),
    ),
)

EXERCISES = by_id([PLACES, FLIPS, INSTANCES, WHICH_EVIDENCE, SHARED_GPU])
