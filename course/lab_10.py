"""Lab 10: exercises on flips and fleets; a selection as lines and rows."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from labkit.advice import selector
from labkit.advice.selector import Selection
from labkit.teaching import solution

Answers = Mapping[str, str]


def _three_rules(answers: Answers) -> str:
    """A selector with a close second place."""
    if answers["kind"] == "other":
        return "own"
    if answers["models"] == "many" or (answers["pattern"] == "pipeline" and answers["models"] == "few"):
        return "ray"
    return "vllm"


def _by_data(answers: Answers) -> str:
    """A selector that considers only the data."""
    return {"must": "vllm", "partly": "ray", "may": "api"}[answers["host"]]


OPTIONS = {"pattern": ("single", "several", "pipeline"), "models": ("one", "few", "many"), "kind": ("llm", "other")}
DATA_OPTIONS = {"host": ("must", "partly", "may"), "rate": ("low", "medium", "high")}


def _changes(answers: Answers, options: Any) -> list[dict[str, str]]:
    return [{name: other} for name, others in options.items() for other in others if other != answers[name]]


def _without_return(choose: Any, answers: Answers, options: Any) -> int:
    changed, results = dict(answers), []
    for change in _changes(answers, options):
        changed |= change
        results.append(choose(changed))
    return sum(result != choose(answers) for result in results)


def _questions_only(choose: Any, answers: Answers, options: Any) -> int:
    now = choose(answers)
    return sum(any(choose({**answers, name: other}) != now for other in others) for name, others in options.items())


def count_flips(choose: Callable[[Mapping[str, str]], str], answers: Mapping[str, str], options: Any) -> int:
    now = choose(answers)
    return sum(
        choose({**answers, question: other}) != now
        for question, others in options.items()
        for other in others
        if other != answers[question]
    )


solution(
    "10.flips",
    count_flips,
    unit="answers",
    cases=[
        (_three_rules, {"kind": "llm", "models": "few", "pattern": "single"}, OPTIONS),
        (_three_rules, {"kind": "llm", "models": "many", "pattern": "pipeline"}, OPTIONS),
        (_three_rules, {"kind": "other", "models": "one", "pattern": "single"}, OPTIONS),
        (_by_data, {"host": "may", "rate": "low"}, DATA_OPTIONS),
    ],
    wrong={
        "every other answer counted": lambda _choose, answers, options: len(_changes(answers, options)),
        "a change not undone": _without_return,
        "questions counted instead of answers": _questions_only,
        "unchanged results counted": lambda choose, answers, options: (
            len(_changes(answers, options)) - count_flips(choose, answers, options)
        ),
    },
)


def instances(requests_per_s: float, _input_tokens: float, output_tokens: float, tokens_per_hour: float) -> int:
    needed = requests_per_s * output_tokens * 3600 / tokens_per_hour
    return int(needed) + (needed > int(needed))


solution(
    "10.instances",
    instances,
    unit="instances",
    cases=(
        (1024, 800, 180, 14_745_600),
        (5000, 300, 20, 1.1e6),
        (12, 500, 90, 3.2e6),
        (3, 100, 50, 30e6),
        (2000, 300, 100, 91e3),
    ),
    wrong={
        "input tokens counted as generated": lambda rate, given, made, hourly: instances(rate, 0, given + made, hourly),
        "fractions of instances": lambda rate, _given, made, hourly: rate * made / (hourly / 3600),
        "rounded down": [
            lambda rate, _given, made, hourly: math.floor(rate * made / (hourly / 3600)),
            lambda rate, _given, made, hourly: round(rate * made / (hourly / 3600)),
        ],
        "minutes in place of hours": lambda rate, given, made, hourly: instances(rate, given, made, hourly * 60),
        "an hour's tokens taken for a second's": lambda rate, given, made, hourly: instances(
            rate, given, made, hourly * 3600
        ),
        "requests instead of tokens": lambda rate, given, _made, hourly: instances(rate, given, 1, hourly),
    },
)


def ranking_rows(selection: Selection) -> Iterator[dict[str, object]]:
    """Every stack with its points, and the first reason against it."""
    for stack in selection.ranking:
        against = " ".join(reason.text for reason in (stack.excluded or stack.behind[:1]))
        yield {"stack": stack.title, "points": "out" if stack.score is None else stack.score, "why not first": against}


def flip_lines(selection: Selection) -> Iterator[str]:
    """Each single other answer that changes the first place, and how many were tried."""
    known = selector.catalogue()
    for flip in selection.flips:
        question = known.questions[flip.question]
        answered = question.options[selection.answers[flip.question]]
        winner = known.stacks[flip.winner].title
        yield f"{question.label} = {question.options[flip.answer]} (now: {answered}) -> {winner}"
    tried = sum(len(question.options) - 1 for question in known.questions.values())
    yield f"{len(selection.flips)} of {tried} single changes"


def neighbour_rows(selection: Selection) -> Iterator[dict[str, object]]:
    """Other systems that suit these answers."""
    for project, why in selection.neighbours:
        source = f"{project.source}, {project.checked}"
        yield {"name": project.name, "why": why, "what it is": project.line, "source": source}
