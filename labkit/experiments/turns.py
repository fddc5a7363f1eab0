"""Interleaving finer than rounds: arms that can pause advance together, a step of each in turn."""

import random
import time
from collections.abc import Callable, Generator, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from labkit.errors import UsageError

T = TypeVar("T")
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
