"""The chain of hashes by which a prefix cache finds a prompt's blocks again, as in vLLM's v1/core/kv_cache_utils.py.

A block is found by the hash of its own tokens and of the block before it, so equal hashes mean an equal prefix; only
full blocks have a hash.
"""

import hashlib
import struct
from collections.abc import Sequence


def block_hashes(tokens: Sequence[int], *, block_size: int) -> tuple[bytes, ...]:
    """The chain: for each full block SHA-256 of (hash of the block before, its tokens); none for a partial block.

    It is vLLM's `hash_block_tokens`, with the tokens as 64-bit numbers in place of a pickle.
    """
    hashes = []
    parent = b""
    for end in range(block_size, len(tokens) + 1, block_size):
        block = struct.pack(f"<{block_size}q", *tokens[end - block_size : end])
        parent = hashlib.sha256(parent + block).digest()
        hashes.append(parent)
    return tuple(hashes)
