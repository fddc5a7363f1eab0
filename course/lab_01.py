"""Exercises of lab 01: the metrics of a serving engine, and the ways in which a benchmark deceives."""

from dataclasses import dataclass

from labkit.teaching.exercises import ChoiceExercise, FunctionExercise, Misconception, Option, ValueExercise, by_id

CONFIGURATION = {
    "purpose": "promise a p99 latency to users who arrive on their own, about four a second",
    "loop": "closed",
    "concurrency": 1,
    "warm_up_requests": 0,
    "requests": 20,
    "reported": "p99 of E2E",
    "seed": 7,
    "server": "started an hour ago, has run this benchmark with seed 7 before, prefix caching on",
    "temperature": 0.0,
    "streaming": True,
    "ignore_eos": True,
}

OPTIONS = (
    Option(
        "A",
        "The next request is sent only when the one before is done, so no queue can form.",
        True,
        "a closed loop hides queueing",
        "Something about when requests are sent is missing. The users come when they like; does this client?",
    ),
    Option(
        "B",
        "The server never has two requests to batch.",
        True,
        "one request at a time measures no batching",
        "Something about how much the server has to do at once is missing. Compare the concurrency with the purpose.",
    ),
    Option(
        "C",
        "The first requests pay for things that happen once, and they are counted.",
        True,
        "no warm-up",
        "Something about the first requests is missing. What does a server do on its first requests that it never"
        " does again?",
    ),
    Option(
        "D",
        "There are too few requests for the percentile that is reported.",
        True,
        "a p99 of twenty samples",
        "Something about the reported figure is missing. How many of these requests lie above it?",
    ),
    Option(
        "E",
        "The server has seen these prompts: part of the work is already in its cache.",
        True,
        "the benchmark measures its own cache",
        "Something about the prompts is missing. Where do they come from, and who has seen them before?",
    ),
    Option(
        "F",
        "Temperature 0 makes decoding faster than sampling, so the figures do not carry over.",
        False,
        "greedy decoding taken for a shortcut",
        "Temperature 0 is no fault here: choosing the likeliest token instead of drawing one changes next to nothing"
        " in the time of a step, and it makes runs comparable.",
    ),
    Option(
        "G",
        "Streaming slows the answers down; latency has to be measured without it.",
        False,
        "streaming taken for a fault",
        "Streaming is no fault here: it is how users are served, and without it there is no time to the first token"
        " to measure.",
    ),
    Option(
        "H",
        "Answers of a fixed length (ignore_eos) make runs incomparable.",
        False,
        "fixed lengths taken for a fault",
        "Fixed lengths are no fault here: with them every run does the same work, which is what makes runs comparable.",
    ),
)

_PROMPT = """
This benchmark is broken. It was run for this purpose: **{purpose}**.

| setting | value |
|---|---|
| loop | {loop}, concurrency {concurrency} |
| warm-up requests | {warm_up_requests} |
| requests | {requests}, seed {seed} |
| reported | {reported} |
| server | {server} |
| request | temperature {temperature}, streaming {streaming}, ignore_eos {ignore_eos} |

Which of these are faults of it, for this purpose? Answer with all the letters that apply, such as `"ACF"`.

"""

BROKEN_BENCHMARK = ChoiceExercise(
    id="01.broken_benchmark",
    title="this benchmark is broken: find out why",
    prompt=_PROMPT + "\n".join(f"- **{one.code}** {one.text}" for one in OPTIONS),
    starter='faults = None  # letters, such as "ACF"',
    answer_name="faults",
    data=CONFIGURATION,
    options=OPTIONS,
    hints=(
        "Read the purpose again: arrivals, load, and the tail of the distribution. Which settings speak about these?",
        "Some settings look suspicious and only make runs comparable.",
        "There are more faults than innocent settings on the list.",
    ),
)


# --- lab 01 data ---


@dataclass(frozen=True)
class Output:
    """One answer of a batch; `seconds` from handing over the batch until this answer was done."""

    token_ids: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class Timed:
    """One request, with those fields of `load.RequestRecord` that the exercises are about; seconds on one clock."""

    started_s: float
    chunk_times_s: tuple[float, ...]
    output_tokens: int
    outcome: str = "ok"


def _batch(*lengths_and_seconds: tuple[int, float]) -> tuple[list[Output], float]:
    outputs = [Output(tuple(range(length)), seconds) for length, seconds in lengths_and_seconds]
    return outputs, max(output.seconds for output in outputs)


def _request(start_s: float, ttft_s: float, tpot_s: float, tokens: int, outcome: str = "ok") -> Timed:
    # Tokens arrive two to a chunk after the first one, so that chunks and tokens differ.
    times = tuple(start_s + ttft_s + tpot_s * token for token in range(tokens) if token % 2 == 0 or token == tokens - 1)
    return Timed(start_s, times, tokens, outcome)


BATCHES = (_batch((8, 1.0), (20, 2.0), (14, 1.6)), _batch((30, 3.5), (5, 0.7), (12, 1.5), (9, 1.2)))

STEADY = [
    _request(0.0, 0.3, 0.04, 20),
    # Two late starts, three slow decodings, one of both: every wrong way of counting comes to another number.
    _request(0.5, 0.9, 0.05, 12),
    _request(0.6, 0.7, 0.06, 8),
    _request(1.0, 0.2, 0.12, 10),
    _request(1.1, 0.3, 0.15, 12),
    _request(1.1, 0.4, 0.11, 14),
    _request(1.1, 0.8, 0.14, 9),
    _request(1.2, 0.4, 0.00, 1),  # a single token: no TPOT
    _request(1.5, 0.2, 0.04, 6, "timeout"),  # fast, then broken off
    _request(2.0, 0.3, 0.00, 0, "connection"),  # nothing came
]
LATE = [_request(0.1 * n, 0.2 + 0.15 * n, 0.03 + 0.01 * n, 8 + n) for n in range(8)]

TPOT_CASES = ((STEADY,), (LATE,))
GOODPUT_CASES = ((STEADY, 4.0, 0.5, 0.1), (LATE, 2.5, 0.85, 0.065))


# --- lab 01 slo ---


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


# --- lab 01 ---


def tokens_per_second(outputs: list[Output], seconds: float) -> float:
    return sum(len(output.token_ids) for output in outputs) / seconds


TOKENS_PER_SECOND = FunctionExercise(
    id="01.tokens_per_second",
    title="the throughput of a batch",
    prompt="""
A batch of prompts was handed to the engine at once. `outputs` holds one entry a prompt, with its `token_ids` and the
`seconds` after which it was done; `seconds` is the time from handing over the batch until the last one was done. Write
`tokens_per_second`, the **throughput of the server** for this batch.
""",
    starter="def tokens_per_second(outputs, seconds): ...  # your code",
    answer_name="tokens_per_second",
    unit="tokens per second",
    solution=tokens_per_second,
    cases=BATCHES,
    hints=(
        "Throughput is work done per time. Which tokens did the server produce in these seconds?",
        "All requests ran in the same seconds: the time is there once, the tokens of every request count.",
    ),
    misconceptions=(
        Misconception(
            "one output's tokens over the whole batch's time",
            "The time is the whole batch's, the tokens are one request's (or an average one's). While this request"
            " ran, the server produced the tokens of all the others too. The article's first listing prints just this.",
            (
                lambda outputs, seconds: len(outputs[0].token_ids) / seconds,
                lambda outputs, seconds: len(outputs[-1].token_ids) / seconds,
                lambda outputs, seconds: max(len(one.token_ids) for one in outputs) / seconds,
                lambda outputs, seconds: sum(len(one.token_ids) for one in outputs) / len(outputs) / seconds,
            ),
        ),
        Misconception(
            "the requests' own rates added up",
            "Each request's rate is over its own time, and these times differ: the sum pretends that the short"
            " requests kept producing until the batch was done.",
            (lambda outputs, _seconds: sum(len(one.token_ids) / one.seconds for one in outputs),),
        ),
        Misconception(
            "one user's speed for the server's",
            "This is how fast tokens came for an average user. The server worked for all of them at the same time.",
            (lambda outputs, _seconds: sum(len(one.token_ids) / one.seconds for one in outputs) / len(outputs),),
        ),
        Misconception(
            "waiting times added up",
            "The tokens are right, but the requests' times overlap: adding them up counts the same second several"
            " times.",
            (lambda outputs, _seconds: sum(len(o.token_ids) for o in outputs) / sum(o.seconds for o in outputs),),
        ),
        Misconception(
            "requests for tokens",
            "This is requests per second. It says nothing of how much text each of them got.",
            (lambda outputs, seconds: len(outputs) / seconds,),
        ),
    ),
)


def tpot_s(chunk_times_s: list[float], output_tokens: int) -> float:
    return (chunk_times_s[-1] - chunk_times_s[0]) / (output_tokens - 1)


TPOT = ValueExercise(
    id="01.tpot",
    title="the time per output token of one request",
    prompt="""
A request was sent at {started_s} s. Its answer came in chunks at {chunk_times_s} s, and the server counted
{output_tokens} output tokens. What is its **TPOT** in seconds?
""",
    starter="tpot_s = ...  # seconds",
    answer_name="tpot_s",
    unit="seconds",
    data={"started_s": 0.0, "chunk_times_s": [0.9, 1.1, 1.35, 1.5, 1.8, 2.1], "output_tokens": 16},
    solution=tpot_s,
    tolerance=1e-3,
    hints=(
        "The first token is paid for by the TTFT. Which stretch of time is left for the others?",
        "Between n tokens there are fewer than n gaps.",
        "A chunk of a stream may carry several tokens: only the server's count says how many.",
    ),
    misconceptions=(
        Misconception(
            "a chunk taken for a token",
            "The time is right, but it was divided by the gaps between chunks. A chunk may carry several tokens; the"
            " server says how many tokens there were.",
            (
                lambda chunk_times_s: (chunk_times_s[-1] - chunk_times_s[0]) / (len(chunk_times_s) - 1),
                lambda chunk_times_s: (chunk_times_s[-1] - chunk_times_s[0]) / len(chunk_times_s),
            ),
        ),
        Misconception(
            "the time to the first token left in",
            "The time before the first token is in here: queueing and prefill. TPOT describes the decoding that"
            " follows.",
            (
                lambda chunk_times_s, started_s, output_tokens: (chunk_times_s[-1] - started_s) / (output_tokens - 1),
                lambda chunk_times_s, started_s, output_tokens: (chunk_times_s[-1] - started_s) / output_tokens,
            ),
        ),
        Misconception(
            "n tokens, n gaps",
            "Nearly: the time from the first token to the last holds one gap fewer than there are tokens.",
            (lambda chunk_times_s, output_tokens: (chunk_times_s[-1] - chunk_times_s[0]) / output_tokens,),
        ),
    ),
)


def padding_factor(output_lengths: list[int]) -> float:
    computed = len(output_lengths) * max(output_lengths)
    useful = sum(output_lengths)
    return computed / useful


PADDING = ValueExercise(
    id="01.padding",
    title="what a static batch computes for nothing",
    prompt="""
A static batch decodes until its longest answer is done; the rows that finished earlier go on producing padding. The
answers have {output_lengths} tokens, the prompts had {prompt_lengths}. How many output tokens does the batch
**compute for each useful one**?
""",
    starter="padding_answer = ...  # computed tokens for each useful token",
    answer_name="padding_answer",
    unit="computed tokens for each useful token",
    data={"output_lengths": [4, 32, 9, 12, 20, 7, 16, 4], "prompt_lengths": [40, 18, 25, 40, 12, 31, 22, 36]},
    solution=padding_factor,
    tolerance=0.005,
    hints=(
        "Draw it: a rectangle, as high as there are requests and as long as the longest answer.",
        "Computed is the whole rectangle, useful is the part of it that somebody reads.",
    ),
    misconceptions=(
        Misconception(
            "turned upside down",
            "This is the useful share of what is computed. The question is how much is computed for each useful token.",
            (lambda output_lengths: sum(output_lengths) / (len(output_lengths) * max(output_lengths)),),
        ),
        Misconception(
            "the wasted share",
            "This is the share of the work that was padding. It is a good number too, but another one: what is asked"
            " is the whole work over the useful part.",
            (
                lambda output_lengths: 1 - sum(output_lengths) / (len(output_lengths) * max(output_lengths)),
                lambda output_lengths: len(output_lengths) * max(output_lengths) / sum(output_lengths) - 1,
            ),
        ),
        Misconception(
            "the prompts' padding counted",
            "The prompts' tokens are in here. Prompts are padded too, but they are computed once, in the prefill;"
            " the question is about output tokens.",
            (
                lambda output_lengths, prompt_lengths: (
                    len(output_lengths)
                    * (max(output_lengths) + max(prompt_lengths))
                    / (sum(output_lengths) + sum(prompt_lengths))
                ),
                lambda prompt_lengths: len(prompt_lengths) * max(prompt_lengths) / sum(prompt_lengths),
            ),
        ),
        Misconception(
            "longest against shortest",
            "This compares the longest answer with the shortest. The others count as well: every row is as long as"
            " the longest.",
            (lambda output_lengths: max(output_lengths) / min(output_lengths),),
        ),
    ),
)

EXERCISES = by_id([TOKENS_PER_SECOND, TPOT, TPOTS, GOODPUT, BROKEN_BENCHMARK, PADDING])
