"""Two exercises of lab 04 with options: why smaller steps help, and a chat that freezes while its charts are fine."""

from labkit.teaching.exercises import ChoiceExercise, Option

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
