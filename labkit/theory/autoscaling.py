"""How many replicas a load asks for, by the rule that Ray Serve scales by, and loads that would show nothing.

Rule (Ray Serve 2.60, ray/serve/autoscaling_policy.py): ongoing requests over the target for each, rounded up, within
the limits. Ongoing requests = rate x duration (J. D. C. Little, "A Proof for the Queuing Formula L = lambda W", 1961).
"""

from dataclasses import dataclass

from labkit.errors import UsageError


def desired_replicas(
    rate: float, duration_s: float, target_ongoing: float, min_replicas: int, max_replicas: int
) -> int:
    """The replicas that `rate` requests a second of `duration_s` each ask for, while no queue has built up."""
    ongoing = rate * duration_s
    needed = int(-(-ongoing // target_ongoing))  # // rounds down; of the negative number, up
    return min(max(needed, min_replicas), max_replicas)


@dataclass(frozen=True, kw_only=True)
class StepLoad:
    """Requests at one rate all the time, of which each takes `short_s` at first and then `long_s`.

    The volume, `rate` requests a second, is the same before and after the step.
    """

    rate: float
    short_s: float
    long_s: float

    def check(self, *, target_ongoing: float, max_replicas: int) -> None:
        """Raises UsageError for a load at which no replica would be added, or not for the reason that is shown."""
        before, after = (
            desired_replicas(self.rate, duration, target_ongoing, 1, 10**9) for duration in (self.short_s, self.long_s)
        )
        if before > 1:
            raise UsageError(
                f"{self.rate:g} requests/s of {self.short_s:g} s ask for {before} replicas before the step",
                remedy="lower step_rate or short_s: one replica has to do at first",
            )
        if after < 2:
            raise UsageError(
                f"{self.rate:g} requests/s of {self.long_s:g} s ask for one replica: nothing would happen",
                remedy="raise step_rate or long_s",
            )
        if max_replicas < after:
            raise UsageError(
                f"the step asks for {after} replicas and max_replicas is {max_replicas}: the queue would only grow",
                remedy=f"set max_replicas to {after} or more, or lower long_s",
            )
