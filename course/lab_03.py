"""Exercises of lab 03: what a prefix cache finds, what that is worth, and how to be fooled by it."""

from itertools import pairwise

from labkit.teaching.exercises import ChoiceExercise, FunctionExercise, Misconception, Option, ValueExercise, by_id

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


# --- lab 03 ---


CASES = (
    ([*range(100)], [*range(80), *range(300, 330)], 32),  # 80 in common: two and a half blocks
    ([*range(96)], [*range(96)], 32),  # known to its very end
    ([*range(70)], [*range(20), *range(500, 540)], 32),  # less than a block in common
    ([*range(64), *range(200, 264)], [*range(400, 432), *range(32, 64), *range(200, 232)], 32),  # equal from block 2 on
    ([*range(48)], [*range(49)], 16),
    ([*range(33)], [*range(32), 900, *range(33, 70)], 16),
)


def common_tokens(before: list[int], prompt: list[int]) -> int:
    count = 0
    while count < min(len(before), len(prompt)) and before[count] == prompt[count]:
        count += 1
    return count


def hit_tokens(before: list[int], prompt: list[int], block_size: int) -> int:
    common = 0
    while common < min(len(before), len(prompt)) and before[common] == prompt[common]:
        common += 1
    most = len(prompt) - 1
    return min(common, most) // block_size * block_size


def _unchained(before: list[int], prompt: list[int], block_size: int) -> int:
    """Blocks compared one by one, without those before them."""
    ends = range(block_size, min(len(before), len(prompt)) + 1, block_size)
    return block_size * sum(before[end - block_size : end] == prompt[end - block_size : end] for end in ends)


HIT_TOKENS = FunctionExercise(
    id="03.hit_tokens",
    title="what one prompt finds of another",
    prompt="""
The prompt `before` has been answered, and its blocks are in the cache. Now `prompt` comes. Both are lists of token
numbers. How many tokens of `prompt` are **not computed again**? Fill the blanks; the loop is the worked example's.
""",
    starter="""
def hit_tokens(before, prompt, block_size):
    common = 0
    while common < min(len(before), len(prompt)) and before[common] == prompt[common]:
        common += 1
    most = len(prompt) - ...  # the engine computes at least so many: it needs their result to answer
    return min(common, most) // ... * ...
""",
    answer_name="hit_tokens",
    unit="tokens",
    worked=common_tokens,
    solution=hit_tokens,
    cases=CASES,
    hints=(
        "A block is found by the hash of its tokens and of the block before it. Which blocks have a hash?",
        "Even of a prompt that is known to its end, something has to go through the model: what comes after it?",
        "`//` gives the full blocks; they have to become tokens again.",
    ),
    misconceptions=(
        Misconception(
            "a partial block counted",
            "Your function finds tokens one by one. Only a full block has a hash, so what the two prompts have in"
            " common counts in whole blocks only.",
            (
                lambda before, prompt, block_size: common_tokens(before, prompt),  # noqa: ARG005
                lambda before, prompt, block_size: min(common_tokens(before, prompt), len(prompt) - 1),  # noqa: ARG005
                lambda before, prompt, block_size: -(-common_tokens(before, prompt) // block_size) * block_size,
            ),
        ),
        Misconception(
            "nothing left to compute",
            "Nearly: for a prompt that is known to its very end your function computes nothing at all. But the next"
            " token comes out of the last one's result, so that one is computed, and with it the block it is in.",
            (lambda before, prompt, block_size: common_tokens(before, prompt) // block_size * block_size,),
        ),
        Misconception(
            "blocks without their past",
            "Your function compares block with block, whatever stood before. A token's key and value depend on all"
            " tokens before it, so the hash is chained: behind a different beginning nothing is the same.",
            (
                _unchained,
                lambda before, prompt, block_size: min(_unchained(before, prompt, block_size), len(prompt) - 1),
            ),
        ),
        Misconception(
            "blocks for tokens",
            "These are full blocks. Each of them holds `block_size` tokens.",
            (
                lambda before, prompt, block_size: min(common_tokens(before, prompt), len(prompt) - 1) // block_size,
                lambda before, prompt, block_size: common_tokens(before, prompt) // block_size,
            ),
        ),
    ),
)


def hit_rate(system_tokens: int, question_tokens: int, requests: int, block_size: int) -> float:
    found = (requests - 1) * (system_tokens // block_size * block_size)
    return found / (requests * (system_tokens + question_tokens))


HIT_RATE = ValueExercise(
    id="03.hit_rate",
    title="the hit rate of a shared system prompt",
    prompt="""
A chatbot puts the same system prompt of {system_tokens} tokens in front of every question; the {requests} questions of
today have {question_tokens} tokens each and are all different. The cache was empty and is large enough; a block holds
{block_size} tokens. What will be the day's **hit rate**, tokens found over tokens asked for (0 to 1)?
""",
    starter="day_hit_rate = ...  # a share, 0 to 1",
    answer_name="day_hit_rate",
    unit="tokens found for each token asked for",
    data={"system_tokens": 300, "question_tokens": 60, "requests": 10, "block_size": 128},
    solution=hit_rate,
    tolerance=2e-3,
    hints=(
        "How many full blocks does the system prompt have by itself?",
        "Somebody has to be the first.",
        "Asked for are the tokens of all prompts, questions included.",
    ),
    misconceptions=(
        Misconception(
            "a partial block counted",
            "The system prompt ends inside a block. That block goes on with the question, so it is another one for"
            " every request, and never found.",
            (
                lambda system_tokens, question_tokens, requests: (
                    (requests - 1) * system_tokens / (requests * (system_tokens + question_tokens))
                ),
                lambda system_tokens, question_tokens: system_tokens / (system_tokens + question_tokens),
            ),
        ),
        Misconception(
            "the first request finds nothing",
            "Nearly: the first request of the day met an empty cache. It paid for the others.",
            (
                lambda system_tokens, question_tokens, block_size: (
                    system_tokens // block_size * block_size / (system_tokens + question_tokens)
                ),
            ),
        ),
        Misconception(
            "the questions left out",
            "This is the share of the system prompts alone. The engine counts all tokens that it looks for, those of"
            " the questions too.",
            (
                lambda system_tokens, requests, block_size: (
                    (requests - 1) * (system_tokens // block_size * block_size) / (requests * system_tokens)
                ),
                lambda system_tokens, block_size: system_tokens // block_size * block_size / system_tokens,
            ),
        ),
        Misconception(
            "requests for tokens",
            "This is the share of requests that found something. The hit rate counts tokens.",
            (lambda requests: (requests - 1) / requests,),
        ),
    ),
)


def cache_speedup(prefill_s: float, decode_s: float, found_share: float) -> float:
    with_cache_s = prefill_s * (1 - found_share) + decode_s
    return (prefill_s + decode_s) / with_cache_s


SPEEDUP = ValueExercise(
    id="03.speedup",
    title="what a hit rate is worth",
    prompt="""
Without a cache a batch spends {prefill_s} s on its prompts and {decode_s} s on its answers. With the cache,
{found_share} of the prompt tokens are found. **How many times faster** is the batch done? (Take the prefill's time to
be proportional to the tokens computed.)
""",
    starter="times_faster = ...  # times",
    answer_name="times_faster",
    unit="times",
    data={"prefill_s": 3.0, "decode_s": 2.0, "found_share": 0.75},
    solution=cache_speedup,
    tolerance=2e-3,
    hints=(
        "Which of the two times does a hit make shorter?",
        "Write both times down, without and with the cache, and divide.",
        "It is Amdahl's law: what is not made faster sets the limit.",
    ),
    misconceptions=(
        Misconception(
            "decoding forgotten",
            "This would be the speed-up of the prefill alone. The answers' tokens are produced one after the other as"
            " before, whatever the cache holds.",
            (lambda found_share: 1 / (1 - found_share),),
        ),
        Misconception(
            "time saved taken for speed gained",
            "The time saved is right, and it is not the gain in speed: half the time is twice the speed, not one and a"
            " half times.",
            (
                lambda prefill_s, decode_s, found_share: 1 + prefill_s * found_share / (prefill_s + decode_s),
                lambda prefill_s, decode_s, found_share: prefill_s * found_share / (prefill_s + decode_s),
            ),
        ),
        Misconception(
            "the hit rate taken for the gain",
            "This takes the hit rate for the gain. Found tokens save time only where prompts take any.",
            (lambda found_share: 1 + found_share, lambda found_share: found_share),
        ),
        Misconception(
            "turned upside down",
            "This is the new time over the old one. The question is how many times faster.",
            (
                lambda prefill_s, decode_s, found_share: (
                    (prefill_s * (1 - found_share) + decode_s) / (prefill_s + decode_s)
                ),
            ),
        ),
    ),
)

PAGES = ["a", "b", "a", "c", "b", "a", "d", "a", "b", "c", "a", "a", "b", "d"]


def pages_found(pages: list[str], replicas: int) -> int:
    known: list[set[str]] = [set() for _ in range(replicas)]
    found = 0
    for number, page in enumerate(pages):
        cache = known[number % replicas]
        found += page in cache
        cache.add(page)
    return found


PAGES_FOUND = FunctionExercise(
    id="03.pages_found",
    title="a cache behind a round-robin balancer",
    prompt="""
Requests ask about pages of a manual, one page each: `pages` is the list of their names, in order of arrival. A balancer
hands them to `replicas` engines in turn, the first request to the first engine. Every engine has a cache of its own,
empty at first and large enough. Write `pages_found`: **how many requests find their page** in the cache of the engine
that they come to?
""",
    starter="def pages_found(pages, replicas): ...  # your code",
    answer_name="pages_found",
    unit="requests",
    solution=pages_found,
    cases=((PAGES, 1), (PAGES, 2), (PAGES, 3), (PAGES, 5), (["a"] * 7, 3), (["a", "b"] * 4, 2)),
    hints=(
        "Keep a set of known pages for each engine.",
        "Request number k goes to engine k % replicas.",
        "A page is known to an engine after that engine has computed it once.",
    ),
    misconceptions=(
        Misconception(
            "one cache for all",
            "Your function lets the engines share what they know. Each has its own memory: what one has computed, the"
            " others have to compute themselves.",
            (
                lambda pages, replicas: len(pages) - len(set(pages)),  # noqa: ARG005
                lambda pages, replicas: pages_found(pages, 1),  # noqa: ARG005
            ),
        ),
        Misconception(
            "divided by the replicas",
            "The hits do not simply divide: a page that many ask for is soon known everywhere, a rare one is computed"
            " anew by every engine that it comes to.",
            (
                lambda pages, replicas: pages_found(pages, 1) / replicas,
                lambda pages, replicas: pages_found(pages, 1) // replicas,
            ),
        ),
        Misconception(
            "every page in every engine once",
            "Your function lets every engine compute every page. An engine computes only what it is asked for.",
            (
                lambda pages, replicas: len(pages) - len(set(pages)) * replicas,
                lambda pages, replicas: max(0, len(pages) - len(set(pages)) * replicas),
            ),
        ),
        Misconception(
            "misses for hits",
            "These are the requests that do not find their page.",
            (lambda pages, replicas: len(pages) - pages_found(pages, replicas),),
        ),
        Misconception(
            "only the request before",
            "Your function looks only at the last request that an engine has had. A cache keeps all pages until it"
            " needs the room.",
            (
                lambda pages, replicas: sum(a == b for a, b in zip(pages, pages[replicas:], strict=False)),
                lambda pages, replicas: sum(a == b for a, b in pairwise(pages)),  # noqa: ARG005
            ),
        ),
    ),
)

EXERCISES = by_id([HIT_TOKENS, HIT_RATE, ZERO_HITS, SPEEDUP, OWN_CACHE, PAGES_FOUND])
