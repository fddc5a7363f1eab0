"""Interleaved repeats: both arms of a comparison meet the same weather."""

import random
import time
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

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


# --- turns ---


Name = TypeVar("Name", bound=Hashable)
Steps = Generator[None, None, T]
"""Work that pauses (`yield`) after each of its steps and returns its result."""


@dataclass(frozen=True, kw_only=True)
class Turns(Generic[T]):
    """What an arm returned, and the seconds of each of its turns: its steps, and what came after the last one."""

    result: T
    steps_s: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """Of all its turns; the other arms' do not count."""
        return sum(self.steps_s)


def in_turns(
    arms: Mapping[Name, Steps[T]], *, seed: int, clock: Callable[[], float] = time.perf_counter
) -> dict[Name, Turns[T]]:
    """Advance all arms a step each, in an order drawn anew every turn, until all have ended; results in `arms`' order.

    `interleaved` makes all arms meet the same weather if it lasts for a round. Where others share the processor, its
    speed may change by half from second to second; arms in turns are never further apart than one step of each.

    An exception closes all arms and carries a note that names the arm and its step.

    Raises:
        UsageError: no arm.
    """
    if not arms:
        raise UsageError("there are 0 arms to compare", remedy="give at least one: {'name': generator}")
    results: dict[Name, T] = {}
    steps_s: dict[Name, list[float]] = {name: [] for name in arms}
    shuffler = random.Random(seed)
    try:
        while left := [name for name in arms if name not in results]:
            for name in shuffler.sample(left, len(left)):
                began = clock()
                _advance(name, arms[name], results, step=len(steps_s[name]))
                steps_s[name].append(clock() - began)
    finally:
        for arm in arms.values():
            arm.close()
    return {name: Turns(result=results[name], steps_s=tuple(steps_s[name])) for name in arms}


def _advance(name: Name, arm: Steps[T], results: dict[Name, T], *, step: int) -> None:
    try:
        next(arm)
    except StopIteration as end:
        results[name] = end.value
    except BaseException as error:  # Ctrl-C too: the note says where it struck
        error.add_note(f"while arm {name!r} took its step {step + 1}")
        raise
