"""What makes a load's result doubtful, in words."""

from collections import Counter
from collections.abc import Sequence

from labkit.load.results import LoadResult, RequestRecord

CLIENT_IS_THE_LIMIT_SHARE = 0.8
"""Share of one core above which the client, being one thread, probably shaped the result."""

LATE_S = 0.1
"""Requests of an open loop that are sent so much after they were due were held up by the client."""


def find_doubts(result: LoadResult, *, asked: int) -> tuple[str, ...]:
    """One sentence for each doubt about `result`, of a run that was to send `asked` requests."""
    found = (
        _failures(result.records, "requests"),
        _failures(result.warmup_records, "warm-up requests"),
        _not_sent(result, asked),
        _no_usage(result.records),
        _busy_client(result.client_cpu_share),
        _late(result.records),
    )
    return tuple(doubt for doubt in found if doubt)


def _failures(records: Sequence[RequestRecord], what: str) -> str:
    failed = [record for record in records if not record.ok]
    if not failed:
        return ""
    outcomes = Counter(record.outcome.value for record in failed)
    kinds = ", ".join(f"{outcome} {count}" for outcome, count in outcomes.most_common())
    return f"{len(failed)} of {len(records)} {what} failed ({kinds}); the first: {failed[0].error}"


def _not_sent(result: LoadResult, asked: int) -> str:
    missing = asked - len(result.records)
    return f"{missing} of {asked} requests were not sent: stopped after {result.duration_s:.1f} s" if missing else ""


def _no_usage(records: Sequence[RequestRecord]) -> str:
    blind = sum(record.ok and record.output_tokens is None for record in records)
    return f"{blind} answers came without usage: their tokens are unknown, and chunks are not tokens" if blind else ""


def _busy_client(share: float) -> str:
    if share <= CLIENT_IS_THE_LIMIT_SHARE:
        return ""
    return f"the client is the limit: it used {share:.0%} of one core, so the server may be faster than measured"


def _late(records: Sequence[RequestRecord]) -> str:
    latest = max((record.waited_s for record in records), default=0.0)
    return f"the client fell behind: a request was sent {latest:.2f} s after it was due" if latest > LATE_S else ""
