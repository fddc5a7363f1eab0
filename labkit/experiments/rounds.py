"""Interleaved repeats: both arms of a comparison meet the same weather."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from labkit.errors import UsageError

T = TypeVar("T")
Progress = Callable[[int, int, str], None]
"""Called with (measurements done, measurements in all, the arm about to run; "" at the end)."""


def interleaved(
    arms: Mapping[str, Callable[[int], T]],
    *,
    repeats: int,
    seed: int,
    together: Sequence[Sequence[str]] = (),
    progress: Progress | None = None,
) -> dict[str, list[T]]:
    """Run every arm once a round, in an order shuffled by `seed`, for `repeats` rounds; results in order of rounds.

    Each arm is called with its round (0, 1, ...). A machine that slows down or warms up then hits all arms alike, and
    round k of one arm pairs with round k of another. `together`: groups of arms that follow each other directly, since
    they will be compared and the weather changes within a round. An exception ends the experiment and carries a note
    that names the arm and the round.

    Raises:
        UsageError: no arm, `repeats` below 1, or a group that names an arm twice or one that there is not.
    """
    if not arms:
        raise UsageError("there are 0 arms to compare", remedy="give at least one: {'name': function_of_round}")
    if repeats < 1:
        raise UsageError(
            f"repeats is {repeats}; it must be at least 1", remedy="set repeats to 3 or more for an interval"
        )
    results: dict[str, list[T]] = {name: [] for name in arms}
    plan = list(_schedule(_units(list(arms), together), repeats=repeats, seed=seed))
    for done, (round_index, name) in enumerate(plan):
        _report(progress, done, len(plan), name)
        results[name].append(_one(arms[name], name, round_index, repeats))
    _report(progress, len(plan), len(plan), "")
    return results


def _report(progress: Progress | None, done: int, total: int, arm: str) -> None:
    if progress is not None:
        progress(done, total, arm)


def _units(names: Sequence[str], together: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The groups, and each arm that is in none by itself."""
    grouped = Counter(name for group in together for name in group)
    for name, count in grouped.items():
        if name not in names:
            raise UsageError(
                f"`together` names {name!r}, and there is no such arm",
                remedy=f"name one of {', '.join(map(repr, names))}",
            )
        if count > 1:
            raise UsageError(f"`together` names {name!r} {count} times", remedy="let each arm be in one group at most")
    return [*together, *([name] for name in names if name not in grouped)]


def _schedule(units: Sequence[Sequence[str]], *, repeats: int, seed: int) -> Iterator[tuple[int, str]]:
    shuffler = random.Random(seed)
    for index in range(repeats):
        for unit in shuffler.sample(units, len(units)):
            yield from ((index, name) for name in shuffler.sample(unit, len(unit)))


def _one(arm: Callable[[int], T], name: str, round_index: int, repeats: int) -> T:
    try:
        return arm(round_index)
    except BaseException as error:  # Ctrl-C too: the note says where it struck
        error.add_note(f"while measuring arm {name!r}, round {round_index + 1} of {repeats}")
        raise
