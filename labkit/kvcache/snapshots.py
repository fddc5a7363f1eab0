"""Who holds which memory between two steps, and how much of it is filled: of the model and of the real engine alike.

The engine can be looked at only between steps, when those that ended have gone already; `snapshots` shows a simulation
at the same moments, so that the two can be compared number by number (`labkit.serving.stepping` takes the engine's).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from labkit.kvcache.memory import Extent
from labkit.kvcache.trace import Tenure, Trace


@dataclass(frozen=True)
class Holding:
    """What one sequence has: `stored_tokens` fill its `extents` one after the other, in the order of its tokens."""

    stored_tokens: int
    extents: tuple[Extent, ...]

    @property
    def given_tokens(self) -> int:
        """Tokens for which it has memory."""
        return sum(extent.tokens for extent in self.extents)

    @property
    def empty_tokens(self) -> int:
        """Of these, those that nothing is stored in."""
        return self.given_tokens - self.stored_tokens


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state after `step` (counted from 0). `preemptions` count from the beginning; `holdings` go by sequence."""

    step: int
    running: int
    waiting: int
    preemptions: int
    capacity_tokens: int
    holdings: Mapping[int, Holding]

    @property
    def given_tokens(self) -> int:
        """Tokens for which sequences have memory."""
        return sum(each.given_tokens for each in self.holdings.values())

    @property
    def usage(self) -> float:
        """The share of the memory that sequences have, 0 to 1 (vLLM's `kv_cache_usage_perc`)."""
        return self.given_tokens / self.capacity_tokens


def waste_share(snapshots: Iterable[Snapshot]) -> float:
    """Of the memory that sequences had, the share in which nothing was stored, over all steps together (0 to 1)."""
    held = [each for snapshot in snapshots for each in snapshot.holdings.values()]
    given = sum(each.given_tokens for each in held)
    return sum(each.empty_tokens for each in held) / given if given else 0.0


def worst_empty_tokens(snapshots: Iterable[Snapshot]) -> int:
    """The most tokens of memory that any one sequence had for nothing at any moment."""
    return max((each.empty_tokens for snapshot in snapshots for each in snapshot.holdings.values()), default=0)


def snapshots(trace: Trace) -> list[Snapshot]:
    """A simulation (with its tenures) after each of its steps: those that ended in the step have left."""
    by_step = _holdings_by_step(trace)
    return [
        Snapshot(
            step=state.step,
            running=len(by_step[state.step]),
            waiting=state.waiting,
            preemptions=state.preemptions,
            capacity_tokens=trace.capacity_tokens,
            holdings=by_step[state.step],
        )
        for state in trace.steps
    ]


def _holdings_by_step(trace: Trace) -> defaultdict[int, dict[int, Holding]]:
    found: defaultdict[int, dict[int, Holding]] = defaultdict(dict)
    for owner, stays in _stays(trace).items():
        stored = trace.sequences[owner].prompt_tokens
        for tenures in stays:
            since, until = min(one.since for one in tenures), tenures[0].until
            last = until - (trace.finished_step[owner] == until - 1)
            for step in range(since, last):
                extents = tuple(Extent(one.start_token, one.tokens) for one in tenures if one.since <= step)
                found[step][owner] = Holding(stored + step - since, extents)
            stored += until - since  # each step adds a token; a preempted sequence comes back with all of them
    return found


def _stays(trace: Trace) -> dict[int, list[list[Tenure]]]:
    """Each sequence's stays in memory in order: the pieces that it gave back together, in the order of its tokens."""
    grouped: defaultdict[tuple[int, int], list[Tenure]] = defaultdict(list)
    for tenure in trace.tenures:
        grouped[tenure.owner, tenure.until].append(tenure)
    stays: defaultdict[int, list[list[Tenure]]] = defaultdict(list)
    for (owner, _), pieces in sorted(grouped.items()):
        stays[owner].append(pieces)
    return dict(stays)
