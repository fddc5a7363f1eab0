"""The chain of hashes: equal exactly as far as the tokens are."""

from collections.abc import Sequence
from itertools import takewhile

from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.theory.prefix_cache import block_hashes

quick = settings(max_examples=60, deadline=None)
# Few different tokens, so that prefixes really coincide.
PROMPT = st.lists(st.integers(0, 1), min_size=1, max_size=20)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading tokens that two lists share."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))))


@quick
@given(PROMPT, PROMPT, st.integers(1, 4))
def test_equal_hashes_mean_an_equal_prefix(a: list[int], b: list[int], block_size: int) -> None:
    """Two chains agree exactly as far as the tokens do, in full blocks, and never again after they differ."""
    pairs = zip(block_hashes(a, block_size=block_size), block_hashes(b, block_size=block_size), strict=False)
    equal = [x == y for x, y in pairs]
    assert sum(equal) == common_prefix(a, b) // block_size
    assert equal == sorted(equal, reverse=True)
