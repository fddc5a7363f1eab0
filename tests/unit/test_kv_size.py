"""The KV cache's arithmetic against known figures, and the budgets of engines that share a GPU."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.models import Architecture
from labkit.theory.kv_size import (
    EngineShare,
    blocks_for_tokens,
    blocks_per_sequence,
    bytes_per_block,
    bytes_per_token,
    check_block_size,
    describe,
    kv_heads_per_rank,
    longest_sequence,
    start_in_turn,
)

SMOLLM2 = Architecture(
    model_type="llama",
    layers=30,
    attention_heads=9,
    kv_heads=3,
    head_dim=64,
    hidden_size=576,
    dtype_bytes=2,
    max_positions=8192,
)
LLAMA_8B = replace(SMOLLM2, layers=32, attention_heads=32, kv_heads=8, head_dim=128, hidden_size=4096)
MISTRAL_V01 = replace(LLAMA_8B, model_type="mistral", sliding_window=4096, max_positions=32768)
OPT_13B = replace(SMOLLM2, layers=40, attention_heads=40, kv_heads=40, head_dim=128, hidden_size=5120)
GIB = 2**30
# A deadline would test how busy the machine is.
quick = settings(max_examples=60, deadline=None)


def test_the_embedded_model_as_the_engine_reports_it() -> None:
    """One GiB for the embedded model gives the blocks, tokens and concurrency that vLLM logged at start-up."""
    plan = describe(SMOLLM2, memory_bytes=GIB, block_size=128, max_model_len=2048)
    assert plan.bytes_per_block == 2_949_120
    assert (plan.blocks, plan.tokens, plan.logged_tokens) == (364, 46_592, 46_592)
    assert f"{plan.max_concurrency:.2f}" == "22.75"
    assert plan.allocatable_blocks == 363


def test_the_logged_tokens_follow_the_length() -> None:
    """A length that ends inside a block counts a whole one, so the engine logs fewer tokens than its blocks hold."""
    plan = describe(SMOLLM2, memory_bytes=GIB, block_size=128, max_model_len=500)
    assert (plan.max_concurrency, plan.logged_tokens, plan.tokens) == (91, 45_500, 46_592)


def test_the_papers_own_example() -> None:
    """The PagedAttention paper (section 3) gives 800 KB a token for OPT-13B, and 1.6 GB for its 2048 tokens."""
    assert bytes_per_token(OPT_13B) == 800 * 1024
    assert bytes_per_token(OPT_13B) * 2048 == pytest.approx(1.6e9, rel=0.05)


def test_grouped_query_attention_counts_kv_heads() -> None:
    """An 8B model with 8 KV heads of 128 takes 128 KiB a token, a quarter of what its 32 heads would."""
    assert bytes_per_token(LLAMA_8B) == 128 * 1024
    assert bytes_per_token(replace(LLAMA_8B, kv_heads=32)) == 4 * bytes_per_token(LLAMA_8B)
    assert bytes_per_token(LLAMA_8B, kv_dtype_bytes=1) == 64 * 1024


@pytest.mark.parametrize(("gpus", "heads"), [(1, 8), (2, 4), (8, 1), (16, 1), (32, 1)])
def test_tensor_parallel_divides_kv_heads_down_to_one(gpus: int, heads: int) -> None:
    """KV heads are divided over the GPUs; with more GPUs than heads each keeps a whole one."""
    assert kv_heads_per_rank(LLAMA_8B, gpus) == heads
    assert bytes_per_token(LLAMA_8B, tensor_parallel=gpus) == bytes_per_token(LLAMA_8B) * heads // 8


def test_heads_that_cannot_be_split() -> None:
    """The error shows both numbers and the sizes that work."""
    with pytest.raises(
        UsageError, match="tensor_parallel is 2, which does not divide the model's 9 attention heads"
    ) as error:
        kv_heads_per_rank(SMOLLM2, 2)
    assert error.value.remedy == "use one of 1, 3, 9"
    with pytest.raises(UsageError, match="4 KV heads can be neither divided nor repeated over 6"):
        kv_heads_per_rank(replace(LLAMA_8B, attention_heads=12, kv_heads=4), 6)


@quick
@given(length=st.integers(1, 5000), block=st.integers(1, 200), memory=st.integers(1, 10_000))
def test_whole_blocks_only(length: int, block: int, memory: int) -> None:
    """The blocks hold the tokens with less than one block to spare; the longest sequence that fits is the longest."""
    blocks = blocks_for_tokens(length, block_size=block)
    assert 0 <= blocks * block - length < block
    longest = longest_sequence(memory, block_size=block, at_most=length)
    assert blocks_per_sequence(longest, block_size=block) <= memory
    assert longest == length or blocks_per_sequence(longest + 1, block_size=block) > memory


@quick
@given(length=st.integers(1, 3000), block=st.integers(1, 64), window=st.integers(1, 500), blocks=st.integers(1, 100))
def test_a_sliding_window_caps_a_sequence(length: int, block: int, window: int, blocks: int) -> None:
    """However long it gets, a sequence holds the window's blocks and one; below that, what its tokens need and one."""
    held = blocks_per_sequence(length, block_size=block, sliding_window=window)
    assert held == blocks_for_tokens(min(length, window), block_size=block) + 1
    longest = longest_sequence(blocks, block_size=block, at_most=length, sliding_window=window)
    assert longest == 0 or blocks_per_sequence(longest, block_size=block, sliding_window=window) <= blocks
    assert longest == length or blocks_per_sequence(longest + 1, block_size=block, sliding_window=window) > blocks


def test_a_window_raises_concurrency_and_says_so() -> None:
    """A model with a window of 4,096 fits more long sequences than the same model without, and the lines tell why."""
    with_window = describe(MISTRAL_V01, memory_bytes=16 * GIB, block_size=16)
    without = describe(replace(MISTRAL_V01, sliding_window=None), memory_bytes=16 * GIB, block_size=16)
    assert with_window.blocks_per_sequence == 4096 // 16 + 1
    assert with_window.max_concurrency > without.max_concurrency
    assert any("window of 4,096" in line for line in with_window.lines)


def test_a_window_in_some_layers_is_an_upper_bound() -> None:
    """A model that mixes layers is counted as if all were full, and a note says that the engine needs less."""
    plan = describe(replace(MISTRAL_V01, model_type="gpt_oss"), memory_bytes=16 * GIB, block_size=16)
    assert plan.sliding_window is None
    assert any("mixes full and sliding" in note for note in plan.notes)


@quick
@given(
    memory=st.integers(10**7, 10**10),
    block=st.integers(1, 256),
    length=st.integers(1, 8192),
    tp=st.sampled_from([1, 3]),
)
def test_a_plan_adds_up(memory: int, block: int, length: int, tp: int) -> None:
    """Blocks and what is left over are the memory, to the byte; a sequence fits without the block that vLLM keeps."""
    plan = describe(SMOLLM2, memory_bytes=memory, block_size=block, max_model_len=length, tensor_parallel=tp)
    assert plan.blocks * plan.bytes_per_block + plan.unused_bytes == memory
    assert 0 <= plan.unused_bytes < plan.bytes_per_block
    assert plan.bytes_per_block == bytes_per_block(SMOLLM2, block_size=block, tensor_parallel=tp)
    assert plan.fits == (plan.allocatable_blocks >= plan.blocks_per_sequence) == (plan.longest_tokens == length)
    assert plan.max_concurrency > 1 or not plan.fits
    assert plan.logged_tokens <= plan.tokens
    assert json.loads(json.dumps(plan.to_json()))["tokens"] == plan.blocks * block


def test_a_plan_whose_length_does_not_fit() -> None:
    """It says that the engine will refuse to start, and the longest length that it would take: a block stays back."""
    plan = describe(SMOLLM2, memory_bytes=10 * 2_949_120, block_size=128, max_model_len=2048)
    assert not plan.fits
    assert any("the longest that fits has 1,152" in line for line in plan.lines)


def test_the_longest_length_is_the_one_in_the_start_up_error() -> None:
    """8 blocks of 32 hold 224 tokens of one sequence: so says vLLM 0.32, asked for 8,192 or for an automatic fit."""
    plan = describe(SMOLLM2, memory_bytes=8 * 32 * 23_040, block_size=32, max_model_len=8192)
    assert (plan.blocks, plan.longest_tokens) == (8, 224)
    assert describe(SMOLLM2, memory_bytes=8 * 32 * 23_040, block_size=32, max_model_len=224).fits


def test_notes_say_what_the_numbers_leave_out() -> None:
    """Compressed caches, fixed states, float32 weights and lengths beyond the model each get a note; others none."""
    assert describe(SMOLLM2, memory_bytes=GIB, block_size=16).notes == ()
    cases = [("deepseek_v3", 2, "MLA"), ("qwen3_next", 2, "fixed state"), ("llama", 4, "float32")]
    for kind, size, words in cases:
        notes = describe(replace(SMOLLM2, model_type=kind, dtype_bytes=size), memory_bytes=GIB, block_size=16).notes
        assert [words in note for note in notes] == [True]
    assert "8,192 positions" in describe(SMOLLM2, memory_bytes=GIB, block_size=16, max_model_len=9000).notes[0]


def test_bad_input_names_the_number() -> None:
    """Each wrong number is a usage error that shows it; an encoder is refused by its type."""
    wrong = {
        "memory_bytes is 0": {"memory_bytes": 0},
        "memory_bytes is 1,000; one block takes 368,640": {"memory_bytes": 1000},
        "block_size is -1": {"block_size": -1},
        "max_model_len is 0": {"max_model_len": 0},
        "tensor_parallel is 0": {"tensor_parallel": 0},
        "kv_dtype_bytes is 0": {"kv_dtype_bytes": 0},
    }
    for message, change in wrong.items():
        with pytest.raises(UsageError, match=message):
            describe(SMOLLM2, **{"memory_bytes": GIB, "block_size": 16, **change})
    with pytest.raises(UsageError, match="type bert is an encoder"):
        describe(replace(SMOLLM2, model_type="bert"), memory_bytes=GIB, block_size=16)


@pytest.mark.parametrize(
    ("size", "gpu", "remedy"), [(16, False, "use 32"), (48, False, "use 32 or 64"), (8, True, "use 16")]
)
def test_a_block_size_that_the_backend_refuses(size: int, gpu: bool, remedy: str) -> None:
    """The refusal names sizes that work, and they do."""
    with pytest.raises(UsageError, match=f"block_size is {size}") as error:
        check_block_size(size, gpu=gpu)
    assert error.value.remedy == remedy
    check_block_size(64, gpu=gpu)


ENGINE = EngineShare(utilization=0.45, weights_bytes=15 * GIB, other_bytes=3 * GIB)


def test_two_engines_get_half_each_and_less_together() -> None:
    """Each brings its own weights: together they have less cache than one with the whole share."""
    first, second = start_in_turn([ENGINE, ENGINE], total_bytes=80 * GIB)
    (alone,) = start_in_turn(
        [EngineShare(utilization=0.9, weights_bytes=15 * GIB, other_bytes=3 * GIB)], total_bytes=80 * GIB
    )
    assert first.kv_bytes == second.kv_bytes == 18 * GIB
    assert alone.kv_bytes - first.kv_bytes - second.kv_bytes == 18 * GIB
    assert second.free_bytes == 44 * GIB


def test_a_second_engine_at_nine_tenths_is_refused() -> None:
    """vLLM compares the share with what is free at that moment; the refused one takes nothing from those behind it."""
    large = EngineShare(utilization=0.9, weights_bytes=15 * GIB)
    small = EngineShare(utilization=0.1, weights_bytes=GIB)
    budgets = start_in_turn([large, large, small], total_bytes=80 * GIB)
    assert [bool(one.refused) for one in budgets] == [False, True, False]
    assert budgets[1].kv_bytes == 0
    assert "free" in budgets[1].refused
    assert budgets[2].free_bytes == 8 * GIB


def test_weights_that_fill_the_share() -> None:
    """A share that leaves nothing for the cache starts nothing."""
    (only,) = start_in_turn([EngineShare(utilization=0.2, weights_bytes=16 * GIB)], total_bytes=80 * GIB)
    assert (only.kv_bytes, only.refused) == (0, "the share leaves nothing for the KV cache")


@quick
@given(
    st.lists(
        st.builds(
            EngineShare,
            utilization=st.floats(0.01, 1),
            weights_bytes=st.integers(0, 40 * GIB),
            other_bytes=st.integers(0, 4 * GIB),
        ),
        max_size=6,
    ),
    st.integers(GIB, 192 * GIB),
)
def test_budgets_never_exceed_the_gpu(engines: list[EngineShare], total: int) -> None:
    """What all that started took is no more than the GPU; each cache is its share without weights and the rest."""
    budgets = start_in_turn(engines, total_bytes=total)
    started = [(one, each) for one, each in zip(budgets, engines, strict=True) if not one.refused]
    assert sum(one.requested_bytes for one, _ in started) <= total
    for one, each in started:
        assert one.kv_bytes + each.weights_bytes + each.other_bytes == one.requested_bytes
        assert one.kv_bytes > 0


def test_no_share() -> None:
    """A share is above zero and at most one, as in vLLM; sizes are not negative."""
    for share in (0, -0.1, 1.01):
        with pytest.raises(UsageError, match="not a share"):
            start_in_turn([EngineShare(utilization=share, weights_bytes=1)], total_bytes=GIB)
    with pytest.raises(UsageError, match="weights_bytes is -1"):
        start_in_turn([EngineShare(utilization=0.5, weights_bytes=-1)], total_bytes=GIB)
