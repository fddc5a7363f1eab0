"""Interleaved repeats: both arms of a comparison meet the same weather."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from labkit.errors import UsageError

T = TypeVar("T")
Progress = Callable[[int, int, str], None]
"""Called with (measurements done, measurements in all, the arm about to run; "" at the end)."""


def interleaved(
    arms: Mapping[str, Callable[[int], T]], *, repeats: int, seed: int, progress: Progress | None = None
) -> dict[str, list[T]]:
    """Run every arm once a round, in an order shuffled by `seed`, for `repeats` rounds; results in order of rounds.

    Each arm is called with its round (0, 1, ...). A machine that slows down or warms up then hits all arms alike, and
    round k of one arm pairs with round k of another. An exception ends the experiment and carries a note that names the
    arm and the round.

    Raises:
        UsageError: no arm, or `repeats` below 1.
    """
    if not arms:
        raise UsageError("there are 0 arms to compare", remedy="give at least one: {'name': function_of_round}")
    if repeats < 1:
        raise UsageError(
            f"repeats is {repeats}; it must be at least 1", remedy="set repeats to 3 or more for an interval"
        )
    results: dict[str, list[T]] = {name: [] for name in arms}
    plan = _schedule(list(arms), repeats=repeats, seed=seed)
    for done, (round_index, name) in enumerate(plan):
        _report(progress, done, len(plan), name)
        results[name].append(_one(arms[name], name, round_index, repeats))
    _report(progress, len(plan), len(plan), "")
    return results


def _report(progress: Progress | None, done: int, total: int, arm: str) -> None:
    if progress is not None:
        progress(done, total, arm)


def _schedule(names: Sequence[str], *, repeats: int, seed: int) -> list[tuple[int, str]]:
    shuffler = random.Random(seed)
    return [(index, name) for index in range(repeats) for name in shuffler.sample(names, len(names))]


def _one(arm: Callable[[int], T], name: str, round_index: int, repeats: int) -> T:
    try:
        return arm(round_index)
    except BaseException as error:  # Ctrl-C too: the note says where it struck
        error.add_note(f"while measuring arm {name!r}, round {round_index + 1} of {repeats}")
        raise
