"""The KV cache: its size in bytes, blocks and tokens, and a model of how allocation and prefix sharing use it."""

from labkit.kvcache.allocation import simulate
from labkit.kvcache.arithmetic import (
    blocks_for_tokens,
    blocks_per_sequence,
    bytes_per_block,
    bytes_per_token,
    check_block_size,
    kv_heads_per_rank,
    longest_sequence,
)
from labkit.kvcache.budget import Budget, EngineShare, start_in_turn
from labkit.kvcache.limits import check_blocks, check_contention, check_lengths, check_several_blocks
from labkit.kvcache.memory import Extent, Policy, Sequence
from labkit.kvcache.plan import KvPlan, describe
from labkit.kvcache.pool import Block, BlockPool, Lease, block_hashes, chain_hash
from labkit.kvcache.replay import HitCount, common_full_blocks, replay
from labkit.kvcache.snapshots import Holding, Snapshot, snapshots, waste_share, worst_empty_tokens
from labkit.kvcache.stream import stream
from labkit.kvcache.trace import StepState, Tenure, Trace

__all__ = [
    "Block",
    "BlockPool",
    "Budget",
    "EngineShare",
    "Extent",
    "HitCount",
    "Holding",
    "KvPlan",
    "Lease",
    "Policy",
    "Sequence",
    "Snapshot",
    "StepState",
    "Tenure",
    "Trace",
    "block_hashes",
    "blocks_for_tokens",
    "blocks_per_sequence",
    "bytes_per_block",
    "bytes_per_token",
    "chain_hash",
    "check_block_size",
    "check_blocks",
    "check_contention",
    "check_lengths",
    "check_several_blocks",
    "common_full_blocks",
    "describe",
    "kv_heads_per_rank",
    "longest_sequence",
    "replay",
    "simulate",
    "snapshots",
    "start_in_turn",
    "stream",
    "waste_share",
    "worst_empty_tokens",
]
