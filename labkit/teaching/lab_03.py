"""Exercises of lab 03: what a prefix cache finds, what that is worth, and how to be fooled by it."""

from itertools import pairwise

from labkit.teaching.exercises import FunctionExercise, Misconception, ValueExercise, by_id
from labkit.teaching.lab_03_choices import OWN_CACHE, ZERO_HITS

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
