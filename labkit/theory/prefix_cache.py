"""The hash chain by which a prefix cache identifies a prompt's blocks, as in vLLM's v1/core/kv_cache_utils.py.

A block's hash covers its tokens and the previous block's hash, so equal hashes mean equal prefixes; only full blocks
have a hash.
"""

import hashlib
import struct
from collections.abc import Sequence


def block_hashes(tokens: Sequence[int], *, block_size: int) -> tuple[bytes, ...]:
    """Return for each full block the SHA-256 of (the previous block's hash, its tokens).

    vLLM's `hash_block_tokens`, with the tokens as 64-bit numbers instead of a pickle.
    """
    hashes = []
    parent = b""
    for end in range(block_size, len(tokens) + 1, block_size):
        block = struct.pack(f"<{block_size}q", *tokens[end - block_size : end])
        parent = hashlib.sha256(parent + block).digest()
        hashes.append(parent)
    return tuple(hashes)
