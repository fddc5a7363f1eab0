"""Exercises of lab 10: what a ranking is, what would change it, and what a rate asks for."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from labkit.teaching import solution


def points_of(stack: str, rules: list[Mapping[str, int]]) -> int:
    return sum(rule.get(stack, 0) for rule in rules)  # a rule that does not name the stack gives nothing


def _places(taking_part: Sequence[int], key: Sequence[Any]) -> list[int]:
    ranked = sorted(taking_part, key=key.__getitem__)
    return [ranked.index(n) + 1 if n in ranked else 0 for n in range(len(key))]


def _which(excluded: Sequence[bool], *, out: bool = False) -> list[int]:
    return [n for n, is_out in enumerate(excluded) if is_out == out]


def _down(points: Sequence[int]) -> list[int]:
    return [-value for value in points]


def places(points: Sequence[int], excluded: Sequence[bool]) -> list[int]:
    numbers = range(len(points))
    ranked = sorted((n for n in numbers if not excluded[n]), key=lambda n: -points[n])  # sorted keeps ties in order
    return [ranked.index(n) + 1 if n in ranked else 0 for n in numbers]


solution(
    "10.places",
    places,
    exact=True,
    worked=points_of,
    cases=(
        ([13, 6, 9, -3, 1, -2], [False, True, False, False, False, True]),
        ([5, 11, 5, 9, 9, -4], [True, False, False, False, False, False]),
        ([2, 2, 2], [False, False, False]),
    ),
    wrong={
        "an excluded stack ranked": [
            lambda points, _excluded: _places(range(len(points)), _down(points)),
            lambda points, excluded: _places(range(len(points)), list(zip(excluded, _down(points), strict=True))),
        ],
        "the lowest points first": lambda points, excluded: _places(_which(excluded), points),
        "ties given to more parts": lambda points, excluded: _places(
            _which(excluded), [(-value, -n) for n, value in enumerate(points)]
        ),
        "only the excluded ranked": lambda points, excluded: _places(_which(excluded, out=True), _down(points)),
    },
)


Answers = Mapping[str, str]


def _three_rules(answers: Answers) -> str:
    """A selector whose second place is near."""
    if answers["kind"] == "other":
        return "own"
    if answers["models"] == "many" or (answers["pattern"] == "pipeline" and answers["models"] == "few"):
        return "ray"
    return "vllm"


def _by_data(answers: Answers) -> str:
    """A selector that looks at nothing but the data."""
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
        "a change not taken back": _without_return,
        "questions counted instead of answers": _questions_only,
        "the same result counted": lambda choose, answers, options: (
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
    cases=((1000, 800, 200, 20e6), (5000, 300, 20, 9e5), (12, 500, 90, 3.2e6), (3, 100, 50, 30e6)),
    wrong={
        "input tokens counted as made": lambda rate, given, made, hourly: instances(rate, 0, given + made, hourly),
        "half an instance": lambda rate, _given, made, hourly: rate * made / (hourly / 3600),
        "rounded down": [
            lambda rate, _given, made, hourly: math.floor(rate * made / (hourly / 3600)),
            lambda rate, _given, made, hourly: round(rate * made / (hourly / 3600)),
        ],
        "minutes for hours": lambda rate, given, made, hourly: instances(rate, given, made, hourly * 60),
        "an hour's tokens for a second's": lambda rate, given, made, hourly: instances(
            rate, given, made, hourly * 3600
        ),
        "requests taken for tokens": lambda rate, given, _made, hourly: instances(rate, given, 1, hourly),
    },
)
