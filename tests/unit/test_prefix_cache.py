"""The prefix cache on token numbers: what is found, what is evicted. (vLLM's: tests/engine/kvcache_oracle.py)"""

from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.theory.prefix_cache import BlockPool, block_hashes, replay

quick = settings(max_examples=60, deadline=None)
# Few different tokens, so that prefixes really coincide.
PROMPT = st.lists(st.integers(0, 1), min_size=1, max_size=20)


def common_blocks(a: list[int], b: list[int], block_size: int) -> int:
    """Full blocks that two token lists have in common from their beginning."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))) // block_size


@quick
@given(PROMPT, PROMPT, st.integers(1, 4))
def test_equal_hashes_mean_an_equal_prefix(a: list[int], b: list[int], block_size: int) -> None:
    """Two chains agree exactly as far as the tokens do, in full blocks, and never again after they differ."""
    pairs = zip(block_hashes(a, block_size=block_size), block_hashes(b, block_size=block_size), strict=False)
    equal = [x == y for x, y in pairs]
    assert sum(equal) == common_blocks(a, b, block_size)
    assert equal == sorted(equal, reverse=True)


@quick
@given(st.lists(PROMPT, min_size=1, max_size=15), st.integers(1, 5), st.integers(20, 1000))
def test_hits_are_the_full_blocks_in_common(prompts: list[list[int]], block_size: int, blocks: int) -> None:
    """With room for all a prompt finds the most that it has in common with an earlier one, but never its last token;
    in a smaller pool no more than that."""
    hits = replay(prompts, pools=[BlockPool(blocks, block_size=block_size)]).by_prompt
    for index, (prompt, found) in enumerate(zip(prompts, hits, strict=True)):
        common = max((common_blocks(earlier, prompt, block_size) for earlier in prompts[:index]), default=0)
        most = block_size * min(common, (len(prompt) - 1) // block_size)
        assert found == most if blocks >= sum(map(len, prompts)) else found <= most


def test_the_longest_unused_goes_first_and_a_prefix_from_its_end() -> None:
    """What was used last stays; of one prompt the last block is evicted before the first."""
    pool = BlockPool(4, block_size=1)
    replay([[1, 2], [3, 4], [1, 2], [5]], pools=[pool])
    assert pool.evictions == 2  # of 2, whose block was computed anew as the prompt's last, and of 4 for 5
    assert pool.compute([1, 2, 9, 9]) == 2
    assert BlockPool(3, block_size=2).compute([1]) == 0


def test_what_nobody_can_find_is_given_away_first() -> None:
    """A released partial block is taken again before any free block that a prefix could still hit."""
    pool = BlockPool(3, block_size=2)
    assert replay([[1, 2, 3, 4], [5], [6], [7], [1, 2, 3, 4, 5]], pools=[pool]).by_prompt == (0, 0, 0, 0, 4)
    assert pool.evictions == 0


def test_a_round_robin_balancer_halves_what_affinity_keeps() -> None:
    """Two documents on two replicas: routed by document each is computed once, in rotation once on each replica."""
    documents = [[1] * 64, [2] * 64]
    prompts = [[*documents[number // 2 % 2], 100 + number] for number in range(8)]
    rotation = replay(prompts, pools=[BlockPool(100, block_size=16) for _ in range(2)])
    by_page = [BlockPool(100, block_size=16) for _ in range(2)]
    affinity = replay(prompts, pools=by_page, route=lambda _, prompt: prompt[0])
    assert affinity.by_prompt == (0, 64, 0, 64, 64, 64, 64, 64)
    assert rotation.by_prompt == (0, 0, 0, 0, 64, 64, 64, 64)
    assert rotation.hit_rate < affinity.hit_rate == affinity.hit_tokens / sum(map(len, prompts))


def test_a_prefix_shorter_than_a_block_never_hits() -> None:
    """A shared system prompt of 30 tokens finds nothing with blocks of 32, and one block of 16 with blocks of 16."""
    prompts = [[7] * 30 + [number] * 40 for number in range(4)]
    assert replay(prompts, pools=[BlockPool(100, block_size=32)]).hit_tokens == 0
    assert replay(prompts, pools=[BlockPool(100, block_size=16)]).by_prompt == (0, 16, 16, 16)
    with pytest.raises(UsageError, match="9 tokens does not fit into a pool of 8"):
        replay([[1] * 9], pools=[BlockPool(4, block_size=2)])
