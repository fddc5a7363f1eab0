"""Interleaved repeats: all arms of a comparison run under the same machine load."""

import random
import time
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from labkit.errors import UsageError, require

T = TypeVar("T")
Name = TypeVar("Name", bound=Hashable)
Steps = Generator[None, None, T]
"""Work that pauses (`yield`) after each of its steps and returns its result."""


def interleaved(
    arms: Mapping[str, Callable[[int], T]],
    *,
    repeats: int,
    seed: int,
    together: Sequence[Sequence[str]] = (),
) -> dict[str, list[T]]:
    """Run every arm once per round, in an order shuffled by `seed`; return each arm's results in order of rounds.

    Each arm is called with its round (0, 1, ...). Changes of the machine's speed then affect all arms equally, and
    round k of one arm pairs with round k of another. `together`: groups of arms to run directly after each other,
    because they will be compared. An exception ends the experiment, with a note that names the arm and the round.

    Raises:
        UsageError: no arm, `repeats` below 1, or a group that names an arm twice or one that does not exist.
    """
    require(bool(arms), "there are 0 arms to compare", fix="give at least one: {'name': function_of_round}")
    require(
        repeats >= 1, f"repeats is {repeats}; it must be at least 1", fix="set repeats to 3 or more for an interval"
    )
    results: dict[str, list[T]] = {name: [] for name in arms}
    for round_index, name in _schedule(_units(list(arms), together), repeats=repeats, seed=seed):
        try:
            results[name].append(arms[name](round_index))
        except BaseException as error:  # Ctrl-C too
            error.add_note(f"while measuring arm {name!r}, round {round_index + 1} of {repeats}")
            raise
    return results


def _units(names: Sequence[str], together: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Return the groups, and each remaining arm as a group by itself."""
    grouped = [name for group in together for name in group]
    for name in grouped:
        if name not in names:
            known = ", ".join(map(repr, names))
            raise UsageError(f"`together` names {name!r}, which is not an arm", remedy=f"name one of {known}")
        if (count := grouped.count(name)) > 1:
            raise UsageError(f"`together` names {name!r} {count} times", remedy="let each arm be in one group at most")
    return [*together, *([name] for name in names if name not in grouped)]


def _schedule(units: Sequence[Sequence[str]], *, repeats: int, seed: int) -> Iterator[tuple[int, str]]:
    shuffler = random.Random(seed)
    for index in range(repeats):
        for unit in shuffler.sample(units, len(units)):
            yield from ((index, name) for name in shuffler.sample(unit, len(unit)))


@dataclass(frozen=True, kw_only=True)
class Turns(Generic[T]):
    """An arm's result, and the seconds of each of its turns: its steps, and the end after the last one."""

    result: T
    steps_s: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """The sum of its own turns."""
        return sum(self.steps_s)


def in_turns(
    arms: Mapping[Name, Steps[T]], *, seed: int, clock: Callable[[], float] = time.perf_counter
) -> dict[Name, Turns[T]]:
    """Advance all arms by one step per turn, in a random order, until all have ended; return results in `arms`' order.

    Rounds (`interleaved`) are fair if the machine load lasts for a round. On a shared processor its speed may change
    by half within a second; arms in turns are at most one step apart.

    An exception closes all arms, with a note that names the arm and its step. UsageError: no arm.
    """
    require(bool(arms), "there are 0 arms to compare", fix="give at least one: {'name': generator}")
    results: dict[Name, T] = {}
    steps_s: dict[Name, list[float]] = {name: [] for name in arms}
    shuffler = random.Random(seed)
    try:
        while left := [name for name in arms if name not in results]:
            for name in shuffler.sample(left, len(left)):
                began = clock()
                try:
                    next(arms[name])
                except StopIteration as end:
                    results[name] = end.value
                except BaseException as error:  # Ctrl-C too
                    error.add_note(f"while arm {name!r} took its step {len(steps_s[name]) + 1}")
                    raise
                steps_s[name].append(clock() - began)
    finally:
        for arm in arms.values():
            arm.close()
    return {name: Turns(result=results[name], steps_s=tuple(steps_s[name])) for name in arms}
