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
        try:
            call(bad)
        except error as refused:
            if says not in str(refused) or not refused.remedy:
                offenders.append((bad, f"{refused}{'' if refused.remedy else ' (no remedy)'}"))
        else:
            offenders.append((bad, "taken"))
    return offenders
