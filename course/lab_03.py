"""Exercises of lab 03: what a prefix cache finds, what that is worth, and how to be fooled by it."""

from itertools import pairwise

from labkit.teaching import solution


def common_tokens(before: list[int], prompt: list[int]) -> int:
    count = 0
    while count < min(len(before), len(prompt)) and before[count] == prompt[count]:
        count += 1
    return count


def _unchained(before: list[int], prompt: list[int], block_size: int) -> int:
    """Blocks compared one by one, without those before them."""
    ends = range(block_size, min(len(before), len(prompt)) + 1, block_size)
    return block_size * sum(before[end - block_size : end] == prompt[end - block_size : end] for end in ends)


def hit_tokens(before: list[int], prompt: list[int], block_size: int) -> int:
    common = 0
    while common < min(len(before), len(prompt)) and before[common] == prompt[common]:
        common += 1
    most = len(prompt) - 1
    return min(common, most) // block_size * block_size


solution(
    "03.hit_tokens",
    hit_tokens,
    unit="tokens",
    worked=common_tokens,
    cases=[
        ([*range(100)], [*range(80), *range(300, 330)], 32),  # 80 in common: two and a half blocks
        ([*range(96)], [*range(96)], 32),  # known to its very end
        ([*range(70)], [*range(20), *range(500, 540)], 32),  # less than a block in common
        # equal from block 2 on
        ([*range(64), *range(200, 264)], [*range(400, 432), *range(32, 64), *range(200, 232)], 32),
        ([*range(48)], [*range(49)], 16),
        ([*range(33)], [*range(32), 900, *range(33, 70)], 16),
    ],
    wrong={
        "a partial block counted": [
            lambda before, prompt, _size: common_tokens(before, prompt),
            lambda before, prompt, _size: min(common_tokens(before, prompt), len(prompt) - 1),
            lambda before, prompt, block_size: -(-common_tokens(before, prompt) // block_size) * block_size,
        ],
        "nothing left to compute": lambda before, prompt, size: common_tokens(before, prompt) // size * size,
        "blocks without their past": [
            _unchained,
            lambda before, prompt, block_size: min(_unchained(before, prompt, block_size), len(prompt) - 1),
        ],
        "blocks for tokens": [
            lambda before, prompt, block_size: min(common_tokens(before, prompt), len(prompt) - 1) // block_size,
            lambda before, prompt, block_size: common_tokens(before, prompt) // block_size,
        ],
    },
)


def hit_rate(system_tokens: int, question_tokens: int, requests: int, block_size: int) -> float:
    found = (requests - 1) * (system_tokens // block_size * block_size)
    return found / (requests * (system_tokens + question_tokens))


solution(
    "03.hit_rate",
    hit_rate,
    unit="tokens found for each token asked for",
    tolerance=2e-3,
    wrong={
        "a partial block counted": [
            lambda system_tokens, question_tokens, requests: hit_rate(system_tokens, question_tokens, requests, 1),
            lambda system_tokens, question_tokens: system_tokens / (system_tokens + question_tokens),
        ],
        "the first request finds nothing": lambda system_tokens, question_tokens, block_size: (
            system_tokens // block_size * block_size / (system_tokens + question_tokens)
        ),
        "the questions left out": [
            lambda system_tokens, requests, block_size: hit_rate(system_tokens, 0, requests, block_size),
            lambda system_tokens, block_size: system_tokens // block_size * block_size / system_tokens,
        ],
        "requests for tokens": lambda requests: (requests - 1) / requests,
    },
)


def cache_speedup(prefill_s: float, decode_s: float, found_share: float) -> float:
    with_cache_s = prefill_s * (1 - found_share) + decode_s
    return (prefill_s + decode_s) / with_cache_s


solution(
    "03.speedup",
    cache_speedup,
    unit="times",
    tolerance=2e-3,
    wrong={
        "decoding forgotten": lambda found_share: 1 / (1 - found_share),
        "time saved taken for speed gained": [
            lambda prefill_s, decode_s, found_share: 1 + prefill_s * found_share / (prefill_s + decode_s),
            lambda prefill_s, decode_s, found_share: prefill_s * found_share / (prefill_s + decode_s),
        ],
        "the hit rate taken for the gain": [lambda found_share: 1 + found_share, lambda found_share: found_share],
        "turned upside down": lambda prefill_s, decode_s, found_share: (
            1 / cache_speedup(prefill_s, decode_s, found_share)
        ),
    },
)


def pages_found(pages: list[str], replicas: int) -> int:
    known: list[set[str]] = [set() for _ in range(replicas)]
    found = 0
    for number, page in enumerate(pages):
        cache = known[number % replicas]
        found += page in cache
        cache.add(page)
    return found


solution(
    "03.pages_found",
    pages_found,
    unit="requests",
    cases=[(list("abacbadabcaabd"), replicas) for replicas in (1, 2, 3, 5)] + [(["a"] * 7, 3), (["a", "b"] * 4, 2)],
    wrong={
        "one cache for all": [
            lambda pages, _replicas: len(pages) - len(set(pages)),
            lambda pages, _replicas: pages_found(pages, 1),
        ],
        "divided by the replicas": [
            lambda pages, replicas: pages_found(pages, 1) / replicas,
            lambda pages, replicas: pages_found(pages, 1) // replicas,
        ],
        "every page in every engine once": [
            lambda pages, replicas: len(pages) - len(set(pages)) * replicas,
            lambda pages, replicas: max(0, len(pages) - len(set(pages)) * replicas),
        ],
        "misses for hits": lambda pages, replicas: len(pages) - pages_found(pages, replicas),
        "only the request before": [
            lambda pages, replicas: sum(a == b for a, b in zip(pages, pages[replicas:], strict=False)),
            lambda pages, _replicas: sum(a == b for a, b in pairwise(pages)),
        ],
    },
)
