"""The solutions of the exercises, for whoever teaches: from the same exercises that judge the learners' answers.

The notebooks hold none of it in their cells; a learner finds a solution folded below a judgement of an own answer.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from labkit.errors import UsageError
from labkit.labs import LABS, find_lab
from labkit.teaching import ChoiceExercise, Exercise, exercises


def solutions(labs: Iterable[str] = ()) -> dict[str, list[Exercise]]:
    """The exercises by lab; `labs`: names, numbers or beginnings (default: all). UsageError for an unknown lab, or for
    one without exercises that was asked for."""
    asked = [find_lab(name).name for name in labs]
    found = {
        name: [one for key, one in exercises().items() if key.startswith(f"{name[:2]}.")] for name in asked or LABS
    }
    for name in asked:
        if not found[name]:
            raise UsageError(f"{name} has 0 exercises", remedy="leave it out; without a lab, all solutions are shown")
    return {name: ones for name, ones in found.items() if ones}


def to_json(found: dict[str, list[Exercise]]) -> dict[str, Any]:
    """Plain data, in the course's order."""
    return {"exercises": [_as_data(lab, one) for lab, ones in found.items() for one in ones]}


def to_markdown(found: dict[str, list[Exercise]]) -> str:
    """One document: question, solution, and what a wrong answer tells, for each exercise."""
    parts = ["# Solutions", NOTE]
    for lab, ones in found.items():
        parts += [f"## {lab[:2]} · {LABS[lab].title}", *(_section(one) for one in ones)]
    return "\n\n".join(parts) + "\n"


NOTE = (
    "For instructors. Where an exercise uses what was measured on a learner's machine, the question stands here with "
    "an example's numbers; the solution is the function that computes the answer from theirs."
)


def _as_data(lab: str, one: Exercise) -> dict[str, Any]:
    return {
        "id": one.id,
        "lab": lab,
        "title": one.title,
        "prompt": _prompt(one),
        "solution": one.solution_text(),
        "hints": list(one.hints),
        "misconceptions": [{"name": name, "told": told} for name, told in _misconceptions(one)],
    }


def _section(one: Exercise) -> str:
    solved = one.solution_text()
    shown = f"```text\n{solved}\n```" if isinstance(one, ChoiceExercise) else f"```python\n{solved}\n```"
    wrong = "\n".join(f"- **{name}**: {' '.join(told.split())}" for name, told in _misconceptions(one))
    parts = [f"### {one.id}: {one.title}", _prompt(one), "**Solution**", shown, "**What wrong answers tell**", wrong]
    return "\n\n".join(part for part in parts if part)


def _prompt(one: Exercise) -> str:
    return one.prompt.format_map(one.context(one.needs)).strip()


def _misconceptions(one: Exercise) -> Sequence[tuple[str, str]]:
    if isinstance(one, ChoiceExercise):
        return [(option.misconception, option.told) for option in one.options]
    return [(each.name, each.text) for each in getattr(one, "misconceptions", ())]
