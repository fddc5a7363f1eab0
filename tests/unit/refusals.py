"""Tables of bad input: what a call must refuse, and words that its message must hold."""

from collections.abc import Callable, Iterable
from typing import Any

from labkit.errors import LabkitError, UsageError


def not_refused(
    call: Callable[[Any], object], table: Iterable[tuple[Any, str]], error: type[LabkitError] = UsageError
) -> list[tuple[Any, str]]:
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
