"""The two broken configurations of lab 03: a cache that finds nothing, and a benchmark that measured its own cache."""

from labkit.teaching.exercises import ChoiceExercise, Option

ZERO_OPTIONS = (
    Option(
        "A",
        "The prompt begins with the time of day.",
        True,
        "a beginning that always changes",
        "Something about the first line is missing. What happens to a chain when its first link is another one?",
    ),
    Option(
        "B",
        "The question stands before the page.",
        True,
        "what differs stands before what is shared",
        "Something about the order of the parts is missing. The page is by far the longest part, and many requests"
        " share it: from where on are two prompts about the same page equal?",
    ),
    Option(
        "C",
        "The instructions alone are shorter than a block.",
        True,
        "a prefix shorter than a block",
        "Something about the instructions is missing. Suppose the time were gone and they came first: how many full"
        " blocks would two requests have in common?",
    ),
    Option(
        "D",
        "`enable_prefix_caching` is not set, so there is no cache.",
        False,
        "the default taken for off",
        "The missing flag is no cause: look at what this lab printed of the resolved configuration.",
    ),
    Option(
        "E",
        "The answers are sampled (temperature above 0), so nothing can be reused.",
        False,
        "sampling thought to change the prompt's cache",
        "Temperature is no cause: it decides which token is drawn after the prompt. The prompt's keys and values do not"
        " know of it.",
    ),
    Option(
        "F",
        "The requests do not overlap: a block is free, and so forgotten, as soon as its request is done.",
        False,
        "free blocks taken for forgotten",
        "Requests one after the other are no cause: a free block can still be found until somebody needs its room, and"
        " here there is plenty.",
    ),
    Option(
        "G",
        "The answers have different lengths.",
        False,
        "answers thought to matter for the prompt's hits",
        "Different answers are no cause: they come after the prompt, and a prefix is compared from its beginning.",
    ),
)

ZERO_HITS = ChoiceExercise(
    id="03.zero_hits",
    title="no hits on a shared prompt: find out why",
    prompt="""
An assistant answers questions about three manual pages, and the hit rate is **{hit_rate}**. Its configuration:

| setting | value |
|---|---|
| prompt | {template} |
| tokens | time {time_tokens}, instructions {instruction_tokens}, question {question_tokens}, page {page_tokens} |
| block size | {block_size} tokens |
| KV cache | {blocks} blocks |
| `enable_prefix_caching` | not set |
| requests | one after the other, temperature 0.7, answers of 5 to 80 tokens |

Some of the facts below cost hits, **each by itself**: mend all the others, and that one would still cost some. Which
are they? Answer with all their letters, such as `"AF"`.

"""
    + "\n".join(f"- **{one.code}** {one.text}" for one in ZERO_OPTIONS),
    starter='lost_hits = None  # letters, such as "AF"',
    answer_name="lost_hits",
    data={
        "hit_rate": "0%",
        "template": "time of day, instructions, question, page",
        "time_tokens": 12,
        "instruction_tokens": 90,
        "question_tokens": 15,
        "page_tokens": 900,
        "block_size": 128,
        "blocks": 364,
    },
    options=ZERO_OPTIONS,
    hints=(
        "A block is found if its own tokens *and everything before it* are the same.",
        "Go through the prompt from its first token: where do two of them first differ?",
        "Three of the facts are about the prompt's beginning or about block limits.",
    ),
)

OWN_OPTIONS = (
    Option(
        "A",
        "Reset the prefix cache (or restart the server) before every run.",
        True,
        "a cache left over from the run before",
        "A remedy is missing: what does the server still hold when the second run begins?",
    ),
    Option(
        "B",
        "Take a new seed for every run, and the same seeds for both settings.",
        True,
        "the same prompts again",
        "A remedy is missing: where do the prompts come from, and who has seen them before?",
    ),
    Option(
        "C",
        "Report the hit rate beside the speed, and the share of prompt tokens that the workload by itself repeats.",
        True,
        "a hit rate that nobody looks at",
        "A remedy is missing: which figure of these runs would have given it away at a glance?",
    ),
    Option(
        "D",
        "Warm the server up with the same prompts before both runs.",
        False,
        "warming up with what is measured",
        "Warming up with the same prompts makes both runs measure the cache: equal, and equally wrong for users who ask"
        " something new. Warm up, but with other prompts.",
    ),
    Option(
        "E",
        "Shuffle the order of the prompts in the second run.",
        False,
        "another order thought to be new prompts",
        "Another order is no remedy: every prompt is found by its own beginning, whichever came before.",
    ),
    Option(
        "F",
        "Send more of the same requests, so that the average settles.",
        False,
        "more samples against a bias",
        "More requests are no remedy: they make the wrong number more certain.",
    ),
    Option(
        "G",
        "Set temperature 0, so that both runs give the same answers.",
        False,
        "determinism taken for fairness",
        "Temperature 0 is no remedy: the gain came from prompts that were not computed, whatever the answers were.",
    ),
)

OWN_CACHE = ChoiceExercise(
    id="03.own_cache",
    title="the benchmark that measured its own cache",
    prompt="""
Somebody measures one running server with {first} clients, then with {second}, and reports that twice as many clients
make it {gain} times as fast:

| run | clients | prompts | requests/s | hit rate |
|---|---|---|---|---|
| 1 | {first} | random, seed {seed} | {slow} | {cold} |
| 2 | {second} | random, seed {seed} | {fast} | {warm} |

Which changes would **make this comparison honest, or show that it is not**? Answer with all the letters that apply,
such as `"DG"`.

"""
    + "\n".join(f"- **{one.code}** {one.text}" for one in OWN_OPTIONS),
    starter='honest_changes = None  # letters, such as "DG"',
    answer_name="honest_changes",
    data={
        "first": 16,
        "second": 32,
        "seed": 0,
        "slow": 2.0,
        "fast": 7.0,
        "gain": 3.5,
        "cold": "0%",
        "warm": "97%",
    },
    options=OWN_OPTIONS,
    hints=(
        "What did the second run do that the first one did not have to?",
        "Random prompts of the same seed are the same prompts.",
        "Some of these changes make both runs agree without making either of them right.",
    ),
)
