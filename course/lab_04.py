"""Exercises of lab 04: who waits when a long prompt arrives, and which budget of tokens keeps a promise."""

import math
from dataclasses import dataclass

from labkit.teaching.exercises import ChoiceExercise, FunctionExercise, Misconception, Option, by_id
from labkit.theory.steps import chunk_sizes

WHY_SMALLER = ChoiceExercise(
    id="04.why_smaller",
    title="why fewer batched tokens help the gaps",
    prompt="""
Someone lowered `max_num_batched_tokens` and the longest gap between two tokens of a stream fell. Why? Which of these
are true?

- **A** A step ends for all its requests together: a stream gets its next token when the whole step is computed.
- **B** With a smaller budget the processor computes each token several times faster.
- **C** The long prompt is spread over more steps, and the streams get a token in each of them.
- **D** The engine sets the long prompt aside until no stream is decoding any more.
- **E** Less is computed in total.
- **F** The long prompt may pay: every further step costs its fixed part again, and takes the streams along.
""",
    starter='reasons = None  # letters, such as "BD"',
    answer_name="reasons",
    hints=(
        "Look at the picture of the two token streams: what begins and ends together there?",
        "Compare the sums, not only the longest pieces: what did the whole long prompt take with either budget?",
    ),
    options=(
        Option(
            "A",
            "A step ends for all its requests together: a stream gets its next token when the whole step is computed.",
            True,
            "a step taken for many separate computations",
            "Something about when a stream's token is ready is missing. What else was in the same step?",
        ),
        Option(
            "B",
            "With a smaller budget the processor computes each token several times faster.",
            False,
            "smaller steps taken for faster computing",
            "The whole prompt took about as long with the smallest budget as with the largest. Had its tokens become"
            " several times faster, it would have been done much sooner.",
        ),
        Option(
            "C",
            "The long prompt is spread over more steps, and the streams get a token in each of them.",
            True,
            "the parts of the prompt overlooked",
            "Something about what happens between the parts of the prompt is missing. Count the streams' tokens there.",
        ),
        Option(
            "D",
            "The engine sets the long prompt aside until no stream is decoding any more.",
            False,
            "chunking taken for waiting",
            "The long prompt was under way all the time: its parts begin with the first step after it came. What is"
            " limited is its share of a step.",
        ),
        Option(
            "E",
            "Less is computed in total.",
            False,
            "splitting taken for saving",
            "All tokens of the prompt are computed with either budget, exactly once: add up its parts.",
        ),
        Option(
            "F",
            "The long prompt may pay: every further step costs its fixed part again, and takes the streams along.",
            True,
            "no price seen",
            "Something about who pays is missing. What does a step cost before the first token of the prompt is in it?",
        ),
    ),
)

FREEZES = ChoiceExercise(
    id="04.freezes",
    title="the chat that freezes (a broken configuration)",
    prompt="""
Users say that the chat freezes for seconds in the middle of an answer. The team sees nothing:

- command: `vllm serve MODEL --max-model-len 32768 --max-num-batched-tokens 32768 --max-num-seqs 64`
- dashboard, over a day: gap between tokens p50 21 ms, **p99 24 ms**; `vllm:num_preemptions` 0; cache usage below 40%
- traffic: chats with answers of about 400 tokens; now and then somebody pastes a report of 25,000 tokens

Which of these explain the complaint or would end it?

- **A** With this budget a whole report is computed in a single step, and every chat waits for it.
- **B** Chunked prefill is off: `--enable-chunked-prefill` is missing from the command.
- **C** The p99 cannot show it: an answer of 400 tokens has one such gap, a quarter of a percent of its gaps.
- **D** The KV cache is too small, and requests are preempted and computed again.
- **E** A budget of 2,048, or `--long-prefill-token-threshold 1024`, would cut the report into parts.
- **F** More sequences at a time (`--max-num-seqs 256`) would let the chats go on beside the report.
""",
    starter='causes = None  # letters, such as "BD"',
    answer_name="causes",
    hints=(
        "How many gaps has one answer, and in how many of them can one report fall?",
        "Two of the options are ruled out by the dashboard or by this version's defaults, which this lab printed.",
    ),
    options=(
        Option(
            "A",
            "With this budget a whole report is computed in a single step, and every chat waits for it.",
            True,
            "the budget not recognised as the cause",
            "Something about the size of a step is missing. How much of a report fits into one?",
        ),
        Option(
            "B",
            "Chunked prefill is off: --enable-chunked-prefill is missing from the command.",
            False,
            "a default taken for an option",
            "Chunked prefill needs no flag in this version. It is on, and has nothing to cut: compare the budget with"
            " the longest prompt.",
        ),
        Option(
            "C",
            "The p99 cannot show it: an answer of 400 tokens has one such gap, a quarter of a percent of its gaps.",
            True,
            "a percentile trusted with a rare gap",
            "Something about the dashboard is missing. What share of an answer's gaps is one long one?",
        ),
        Option(
            "D",
            "The KV cache is too small, and requests are preempted and computed again.",
            False,
            "every stall taken for preemption",
            "The dashboard rules preemption out: the counter stands still, and the cache is not full.",
        ),
        Option(
            "E",
            "A budget of 2,048, or --long-prefill-token-threshold 1024, would cut the report into parts.",
            True,
            "the remedies not seen",
            "A remedy is missing. Which settings did this lab turn to shorten the longest gap?",
        ),
        Option(
            "F",
            "More sequences at a time (--max-num-seqs 256) would let the chats go on beside the report.",
            False,
            "places taken for time",
            "The chats have their places already. They wait for the step that the report fills, and more places do not"
            " make it shorter.",
        ),
    ),
)


# --- lab 04 ---


@dataclass(frozen=True)
class Point:
    """What was measured with one budget; `stalls_s` has the longest gap of each round."""

    budget: int
    gap_p50_s: float
    stalls_s: tuple[float, ...]
    ttft_s: float


def steps_alone(prompt_tokens: int, budget: int) -> int:
    return math.ceil(prompt_tokens / budget)  # nobody is decoding: the prompt may fill every step


CHUNKS = FunctionExercise(
    id="04.chunks",
    title="the parts of a prompt",
    prompt="""
The example counts the steps of a prompt that has the engine to itself. Now `decoding` streams are under way: each takes
**one** token of every step's `budget`. A `threshold` above 0 is the most that one prompt may have of a step, even where
the budget would allow more. Fill the blanks: the sizes of the parts in which the prompt is computed, in tokens, in
order. Below, your function meets the engine's own schedule.
""",
    starter="""
def chunk_sizes(prompt_tokens, budget, decoding, threshold=0):
    most = budget - decoding * ...  # what a step leaves to the prompt
    if threshold > 0:
        most = min(most, ...)
    full, rest = divmod(prompt_tokens, most)
    return [most] * full + ([rest] if rest else [])
""",
    answer_name="chunk_sizes",
    unit="tokens",
    worked=steps_alone,
    solution=chunk_sizes,
    cases=((3000, 512, 12, 0), (3000, 2048, 12, 300), (700, 128, 8, 256), (1000, 254, 4, 0), (900, 2048, 6, 0)),
    hints=(
        "A step with twelve streams has twelve tokens of its budget taken before the prompt is looked at.",
        "Two limits hold at once: what is left of the budget, and the threshold. The smaller one binds.",
    ),
    misconceptions=(
        Misconception(
            "the streams' tokens forgotten",
            "The parts are as large as the whole budget. Every stream that is decoding takes a token of it first.",
            (
                lambda prompt_tokens, budget, _decoding, threshold=0: chunk_sizes(prompt_tokens, budget, 0, threshold),
                lambda prompt_tokens, budget, _decoding, _threshold=0: chunk_sizes(prompt_tokens, budget, 0),
            ),
        ),
        Misconception(
            "the threshold left out",
            "The threshold makes no difference in your parts. It limits what one prompt gets of a step, even where"
            " the budget has room for more.",
            (lambda prompt_tokens, budget, decoding, _threshold=0: chunk_sizes(prompt_tokens, budget, decoding),),
        ),
        Misconception(
            "the threshold for the budget",
            "The threshold took the budget's place. Where it is the larger of the two, the budget still binds.",
            (
                lambda prompt_tokens, budget, decoding, threshold=0: chunk_sizes(
                    prompt_tokens, threshold or budget - decoding, 0
                ),
            ),
        ),
        Misconception(
            "the streams charged to the threshold",
            "The streams' tokens were taken off the threshold. They come out of the budget: the threshold is about the"
            " prompt alone.",
            (
                lambda prompt_tokens, budget, decoding, threshold=0: chunk_sizes(
                    prompt_tokens, min(budget, threshold or budget), decoding
                ),
            ),
        ),
        Misconception(
            "the rest dropped",
            "The last tokens of the prompt are never computed: what remains after the full parts is a part too.",
            (
                lambda prompt_tokens, budget, decoding, threshold=0: [
                    size
                    for size in chunk_sizes(prompt_tokens, budget, decoding, threshold)
                    if size == min(budget - decoding, threshold or budget)
                ],
            ),
        ),
        Misconception(
            "the last part padded",
            "The last part is as large as the others. Nothing is padded here: a step computes the tokens that there"
            " are.",
            (
                lambda prompt_tokens, budget, decoding, threshold=0: [
                    min(budget - decoding, threshold or budget)
                    for _ in chunk_sizes(prompt_tokens, budget, decoding, threshold)
                ],
            ),
        ),
    ),
)


def largest_budget(points: list[Point], slo_s: float) -> int:
    keeping = [point.budget for point in points if max(point.stalls_s) <= slo_s]
    return max(keeping, default=0)


def _largest(budgets: list[int]) -> int:
    return max(budgets, default=0)


MEASURED = (
    Point(256, 0.021, (0.11, 0.12, 0.11), 1.35),
    Point(4096, 0.024, (1.05, 1.07, 1.31), 1.12),
    Point(1024, 0.022, (0.32, 0.30, 0.33), 1.21),
    Point(2048, 0.023, (0.58, 0.45, 0.60), 1.16),
    Point(512, 0.021, (0.18, 0.25, 0.17), 1.27),
)

LARGEST_BUDGET = FunctionExercise(
    id="04.largest_budget",
    title="the largest budget that keeps the promise (from nothing)",
    prompt="""
The promise: no user waits longer than `slo_s` for the next token, **in any round**. `points` holds one entry a budget,
in no order: `budget`, `gap_p50_s` (the median gap), `stalls_s` (the longest gap of each round) and `ttft_s` (the long
prompt's). Write `largest_budget`: the largest `budget` that kept the promise; 0 if none did.
""",
    starter="def largest_budget(points, slo_s): ...  # your code",
    answer_name="largest_budget",
    unit="tokens",
    solution=largest_budget,
    cases=((list(MEASURED), 0.5), (list(MEASURED), 0.25), (list(MEASURED), 1.2), (list(MEASURED), 0.0225)),
    hints=(
        "First decide for one point whether it kept the promise; then take the largest of those that did.",
        "A promise to every user is about the longest gap, and one round that breaks it breaks it.",
    ),
    misconceptions=(
        Misconception(
            "the median gap judged",
            "Nearly every gap is a plain decode step, whatever the budget: the median keeps any promise. The users wait"
            " in the gap that it does not see.",
            (lambda points, slo_s: _largest([one.budget for one in points if one.gap_p50_s <= slo_s]),),
        ),
        Misconception(
            "the largest of all",
            "No budget was turned down. The promise has to be part of the choice.",
            (lambda points, _slo_s: max(one.budget for one in points),),
        ),
        Misconception(
            "the smallest that keeps it",
            "This budget keeps the promise, but a larger one does too, and every smaller budget makes the long prompt"
            " wait longer.",
            (lambda points, slo_s: min((o.budget for o in points if max(o.stalls_s) <= slo_s), default=0),),
        ),
        Misconception(
            "the average round judged",
            "A budget passed because its rounds kept the promise on average. In one of them a user waited longer than"
            " promised.",
            (
                lambda points, slo_s: _largest(
                    [one.budget for one in points if sum(one.stalls_s) / len(one.stalls_s) <= slo_s]
                ),
                lambda points, slo_s: _largest(
                    [one.budget for one in points if sorted(one.stalls_s)[len(one.stalls_s) // 2] <= slo_s]
                ),
            ),
        ),
        Misconception(
            "the best round judged",
            "One good round let a budget pass. The promise has to hold in every round.",
            (lambda points, slo_s: _largest([one.budget for one in points if min(one.stalls_s) <= slo_s]),),
        ),
        Misconception(
            "the long prompt's wait judged",
            "This looks at the long prompt's time to first token. The promise is about the others, who were waiting for"
            " their next token.",
            (lambda points, slo_s: _largest([one.budget for one in points if one.ttft_s <= slo_s]),),
        ),
        Misconception(
            "at most taken for below",
            "A gap of exactly the promised length keeps the promise: it says no longer than.",
            (lambda points, slo_s: _largest([one.budget for one in points if max(one.stalls_s) < slo_s]),),
        ),
    ),
)

EXERCISES = by_id([CHUNKS, LARGEST_BUDGET, WHY_SMALLER, FREEZES])
