"""Three exercises of lab 01 in one line: TTFT is worked, TPOT has blanks, goodput begins from nothing.

Requests are as `load.RequestRecord` describes them: `started_s` and `chunk_times_s` in seconds on one clock,
`output_tokens` as the server counts them, and `outcome`, "ok" for a request that completed.
"""

from labkit.teaching.exercises import FunctionExercise, Misconception
from labkit.teaching.lab_01_data import GOODPUT_CASES, TPOT_CASES, Timed


def ttfts_s(requests: list[Timed]) -> list[float]:
    return [request.chunk_times_s[0] - request.started_s for request in requests if request.outcome == "ok"]


def tpots_s(requests: list[Timed]) -> list[float]:
    return [
        (request.chunk_times_s[-1] - request.chunk_times_s[0]) / (request.output_tokens - 1)
        for request in requests
        if request.outcome == "ok" and request.output_tokens > 1
    ]


TPOTS = FunctionExercise(
    id="01.tpots",
    title="TPOT of many requests (fill in the blanks)",
    prompt="""
The function above gives the TTFT of every request that completed. Fill in the three blanks so that `tpots_s` gives the
**TPOT** of every completed request that has one.
""",
    starter="""
def tpots_s(requests):
    return [
        (request.chunk_times_s[-1] - ...) / (request.output_tokens - ...)
        for request in requests
        if request.outcome == "ok" and request.output_tokens > ...
    ]
""",
    answer_name="tpots_s",
    unit="seconds",
    worked=ttfts_s,
    solution=tpots_s,
    cases=TPOT_CASES,
    hints=(
        "The first blank is a moment: when does the decoding that TPOT describes begin?",
        "A request with a single token has no gap between tokens, and so no TPOT.",
    ),
    misconceptions=(
        Misconception(
            "the time to the first token left in",
            "These times start when the request was sent: prefill and queueing are in them.",
            (
                lambda requests: [
                    (r.chunk_times_s[-1] - r.started_s) / (r.output_tokens - 1)
                    for r in requests
                    if r.outcome == "ok" and r.output_tokens > 1
                ],
            ),
        ),
        Misconception(
            "n tokens, n gaps",
            "The time starts at the right moment, but there is one gap fewer than there are tokens.",
            (
                lambda requests: [
                    (r.chunk_times_s[-1] - r.chunk_times_s[0]) / r.output_tokens
                    for r in requests
                    if r.outcome == "ok" and r.output_tokens > 1
                ],
            ),
        ),
        Misconception(
            "requests without a TPOT counted as 0",
            "A request with one token has no gap between tokens. As a zero it would pull the mean down: leave it out.",
            (
                lambda requests: [
                    (r.chunk_times_s[-1] - r.chunk_times_s[0]) / max(r.output_tokens - 1, 1)
                    for r in requests
                    if r.outcome == "ok"
                ],
                lambda requests: [
                    (r.chunk_times_s[-1] - r.chunk_times_s[0]) / r.output_tokens for r in requests if r.outcome == "ok"
                ],
            ),
        ),
    ),
)


def goodput(requests: list[Timed], duration_s: float, ttft_slo_s: float, tpot_slo_s: float) -> float:
    good = 0
    for request in requests:
        if request.outcome != "ok":
            continue
        ttft_s = request.chunk_times_s[0] - request.started_s
        tpot_s = (request.chunk_times_s[-1] - request.chunk_times_s[0]) / max(request.output_tokens - 1, 1)
        if ttft_s <= ttft_slo_s and tpot_s <= tpot_slo_s:
            good += 1
    return good / duration_s


def _ttft_s(request: Timed) -> float:
    return request.chunk_times_s[0] - request.started_s


def _tpot_s(request: Timed) -> float:
    return (request.chunk_times_s[-1] - request.chunk_times_s[0]) / max(request.output_tokens - 1, 1)


def _good(requests: list[Timed], ttft_slo_s: float, tpot_slo_s: float) -> int:
    completed = [one for one in requests if one.outcome == "ok"]
    return sum(_ttft_s(one) <= ttft_slo_s and _tpot_s(one) <= tpot_slo_s for one in completed)


def _failed_counted(requests: list[Timed], duration_s: float, ttft_slo_s: float, tpot_slo_s: float) -> float:
    begun = [one for one in requests if one.chunk_times_s]
    return sum(_ttft_s(one) <= ttft_slo_s and _tpot_s(one) <= tpot_slo_s for one in begun) / duration_s


def _either(requests: list[Timed], duration_s: float, ttft_slo_s: float, tpot_slo_s: float) -> float:
    completed = [one for one in requests if one.outcome == "ok"]
    return sum(_ttft_s(one) <= ttft_slo_s or _tpot_s(one) <= tpot_slo_s for one in completed) / duration_s


GOODPUT = FunctionExercise(
    id="01.goodput",
    title="goodput at an SLO (from nothing)",
    prompt="""
Write `goodput`: how many **requests per second** completed within both objectives, a TTFT of at most `ttft_slo_s` and a
TPOT of at most `tpot_slo_s`, over a load that took `duration_s`. (A request with one token meets every TPOT objective.)
""",
    starter="def goodput(requests, duration_s, ttft_slo_s, tpot_slo_s): ...  # your code",
    answer_name="goodput",
    unit="requests per second",
    solution=goodput,
    cases=GOODPUT_CASES,
    hints=(
        "Decide for one request whether it was good, then count the good ones.",
        "A request that failed may have streamed a fast beginning: it was still no good to its user.",
        "Goodput is a rate, as throughput is: divide by the time that the load took.",
    ),
    misconceptions=(
        Misconception(
            "failed requests counted",
            "A request that broke off is counted, because what it streamed until then was fast. Look at its outcome"
            " first.",
            (_failed_counted,),
        ),
        Misconception(
            "one objective of the two",
            "A request that meets one objective is counted. It has to meet both.",
            (
                _either,
                lambda requests, duration_s, ttft_slo_s, _tpot_slo_s: (
                    sum(r.outcome == "ok" and _ttft_s(r) <= ttft_slo_s for r in requests) / duration_s
                ),
                lambda requests, duration_s, _ttft_slo_s, tpot_slo_s: (
                    sum(r.outcome == "ok" and _tpot_s(r) <= tpot_slo_s for r in requests) / duration_s
                ),
            ),
        ),
        Misconception(
            "a share for a rate",
            "This is the share of requests that were good, often called SLO attainment. Goodput is how many per"
            " second.",
            (
                lambda requests, _duration_s, ttft_slo_s, tpot_slo_s: (
                    _good(requests, ttft_slo_s, tpot_slo_s) / len(requests)
                ),
            ),
        ),
        Misconception(
            "throughput for goodput",
            "This counts every request that completed, however late. An overloaded server has a fine throughput.",
            (
                lambda requests, duration_s, _ttft_slo_s, _tpot_slo_s: (
                    sum(r.outcome == "ok" for r in requests) / duration_s
                ),
            ),
        ),
    ),
)
