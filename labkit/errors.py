"""The error tree. Every error that a user can cause or meet is a `LabkitError`.

A message says what happened, with the number, and what to change. Raise with both parts:

    raise UsageError("concurrency is 0; it must be at least 1", remedy="pass --concurrency 1 or more")
"""


class LabkitError(Exception):
    """The root. `exit_code` is what the command line ends with when the error reaches it."""

    exit_code = 1

    def __init__(self, what: str, *, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}\n  To fix it: {self.remedy}" if self.remedy else self.what


class UsageError(LabkitError):
    """An unknown name, a parameter of the wrong type or outside its range, an unreadable input."""

    exit_code = 2


class ModelError(LabkitError):
    """A model that cannot be fetched, verified, converted or read."""


class ServerError(LabkitError):
    """A server that did not start, died or did not stop. `log_tail` holds its last lines."""

    def __init__(self, what: str, *, remedy: str = "", log_tail: str = "") -> None:
        super().__init__(what, remedy=remedy)
        self.log_tail = log_tail

    def __str__(self) -> str:
        tail = f"\n  The end of its log:\n{self.log_tail}" if self.log_tail else ""
        return super().__str__() + tail


class LoadError(LabkitError):
    """A load run that could not be carried out at all (single failed requests are outcomes, not errors)."""


class RecordError(LabkitError):
    """A result record that is corrupt, of another format version, or cannot be written."""

    exit_code = 2


class LabError(LabkitError):
    """A lab that failed while it ran."""
