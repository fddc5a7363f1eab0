"""Tables of bad input: what a call must refuse, and words that its message must hold."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from labkit.errors import LabkitError, UsageError

Input = TypeVar("Input")


def not_refused(
    call: Callable[[Input], object], table: Iterable[tuple[Input, str]], error: type[LabkitError] = UsageError
) -> list[tuple[Input, str]]:
    """The table's inputs that `call` takes, or refuses in other words or without a remedy, with what it said."""
    offenders = []
    for bad, says in table:
        said = "taken"
        try:
            call(bad)
        except error as refused:
            said = str(refused) if refused.remedy else f"{refused} (no remedy)"
        if says not in said or said.endswith("(no remedy)"):
            offenders.append((bad, said))
    return offenders
