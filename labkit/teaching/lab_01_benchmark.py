"""The exercise of lab 01 with a broken benchmark: a configuration that cannot answer the question it is asked."""

from labkit.teaching.exercises import ChoiceExercise, Option

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
