"""Exercises of lab 01: the metrics of a serving engine, and the ways in which a benchmark deceives."""

from labkit.teaching.exercises import FunctionExercise, Misconception, ValueExercise, by_id
from labkit.teaching.lab_01_benchmark import BROKEN_BENCHMARK
from labkit.teaching.lab_01_data import BATCHES, Output
from labkit.teaching.lab_01_slo import GOODPUT, TPOTS


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
