"""The KV cache's arithmetic against known figures, and the budgets of engines that share a GPU."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.models import Architecture
from labkit.models.attention import KvLayers
from labkit.theory.kv_pool import Group, Pool
from labkit.theory.kv_size import (
    EngineShare,
    bytes_per_block,
    bytes_per_token,
    check_block_size,
    describe,
    start_in_turn,
)
from tests.unit.refusals import not_refused

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
quick = settings(max_examples=60)


def test_plans_are_those_that_the_engine_reports() -> None:
    """For one GiB and the embedded model, blocks, tokens and concurrency equal vLLM 0.32's log. A partial block counts
    as a whole one. 8 blocks of 32 hold 224 tokens of one sequence, as in vLLM's start-up error."""
    plan = describe(SMOLLM2, memory_bytes=GIB, block_size=128, max_model_len=2048)
    assert plan.bytes_per_block == 2_949_120
    assert (plan.blocks, plan.allocatable_blocks, plan.tokens, plan.logged_tokens) == (364, 363, 46_592, 46_592)
    assert plan.max_concurrency == 22.75
    plan = describe(SMOLLM2, memory_bytes=GIB, block_size=128, max_model_len=500)
    assert (plan.max_concurrency, plan.logged_tokens, plan.tokens) == (91, 45_500, 46_592)
    plan = describe(SMOLLM2, memory_bytes=8 * 32 * 23_040, block_size=32, max_model_len=8192)
    assert (plan.blocks, plan.longest_tokens, plan.fits) == (8, 224, False)
    assert any("the longest that fits has 224" in line for line in plan.lines)


def test_bytes_of_a_token() -> None:
    """The PagedAttention paper (section 3) gives 800 KB for OPT-13B. An 8B model with 8 KV heads of 128 takes 128 KiB,
    a quarter of what its 32 heads would; KV heads are divided over GPUs, down to a whole one each."""
    assert bytes_per_token(OPT_13B) == 800 * 1024
    assert bytes_per_token(LLAMA_8B) == 128 * 1024
    assert bytes_per_token(replace(LLAMA_8B, kv_heads=32)) == 4 * 128 * 1024
    assert bytes_per_token(LLAMA_8B, kv_dtype_bytes=1) == 64 * 1024
    for gpus, heads in ((1, 8), (2, 4), (8, 1), (16, 1), (32, 1)):
        assert bytes_per_token(LLAMA_8B, tensor_parallel=gpus) == heads * 16 * 1024


def test_heads_that_cannot_be_split() -> None:
    """The error has both numbers and the possible sizes."""
    with pytest.raises(UsageError, match=r"(?s)tensor_parallel is 2, .* 9 attention heads.*use one of 1, 3, 9"):
        bytes_per_token(SMOLLM2, tensor_parallel=2)
    with pytest.raises(UsageError, match="4 KV heads can be neither divided nor repeated over 6"):
        bytes_per_token(replace(LLAMA_8B, attention_heads=12, kv_heads=4), tensor_parallel=6)


@quick
@given(
    length=st.integers(1, 5000),
    block=st.integers(1, 200),
    window=st.none() | st.integers(1, 500),
    blocks=st.integers(1, 10_000),
)
def test_a_sequence_holds_whole_blocks(length: int, block: int, window: int | None, blocks: int) -> None:
    """A sequence's blocks exceed its tokens by less than one block; with a sliding window, its window by one more
    block. `longest` is the longest sequence that fits."""
    pool = Pool(groups=(Group(layers=1, block_size=block, window=window),), bytes_per_block=1)
    held = pool.blocks(length, in_flight_tokens=1)
    spare = held * block - length if window is None else (held - 1) * block - min(length, window)
    assert 0 <= spare < block
    longest = pool.longest(blocks, at_most=length, in_flight_tokens=1)
    assert longest == 0 or pool.blocks(longest, in_flight_tokens=1) <= blocks
    assert longest == length or pool.blocks(longest + 1, in_flight_tokens=1) > blocks


def test_windows_in_all_layers_and_in_some() -> None:
    """A window of 4,096 and two steps of 8 tokens in all layers limit a sequence to their blocks. With full attention
    in 4 of 32 layers the pool's block is that of 4 layers; a sequence takes blocks for 1 full and 7 windowed groups."""
    room = {"memory_bytes": 16 * GIB, "block_size": 16, "max_num_batched_tokens": 8}
    plan = describe(MISTRAL_V01, **room)
    assert (plan.blocks_per_sequence, plan.max_concurrency) == ((4096 + 16) // 16 + 1, plan.blocks / 258)
    assert any("window of 4,096" in line for line in plan.lines)
    (alike,) = MISTRAL_V01.storing_layers
    some = (replace(alike, count=4, window=None), replace(alike, count=28))
    mixed = describe(replace(MISTRAL_V01, kv_layers=some), **room)
    assert (mixed.bytes_per_token, mixed.bytes_per_block) == (4 * 4096, 4 * 4096 * 16)
    assert mixed.window_bytes_per_sequence == 28 * 4096 * 4096
    assert mixed.blocks_per_sequence == 32768 // 16 + 7 * 258
    assert mixed.tokens == mixed.logged_tokens == int(mixed.blocks / mixed.blocks_per_sequence * 32768)


@quick
@given(
    memory=st.integers(10**7, 10**10),
    block=st.integers(1, 256),
    length=st.integers(1, 8192),
    tp=st.sampled_from([1, 3]),
)
def test_a_plan_adds_up(memory: int, block: int, length: int, tp: int) -> None:
    """Blocks and unused bytes equal the memory; a sequence fits without the block that vLLM keeps."""
    plan = describe(SMOLLM2, memory_bytes=memory, block_size=block, max_model_len=length, tensor_parallel=tp)
    assert plan.blocks * plan.bytes_per_block + plan.unused_bytes == memory
    assert 0 <= plan.unused_bytes < plan.bytes_per_block
    assert plan.bytes_per_block == bytes_per_block(SMOLLM2, block_size=block, tensor_parallel=tp)
    assert plan.fits == (plan.allocatable_blocks >= plan.blocks_per_sequence) == (plan.longest_tokens == length)
    assert plan.max_concurrency is not None
    assert plan.logged_tokens is not None
    assert plan.max_concurrency > 1 or not plan.fits
    assert plan.logged_tokens <= plan.tokens
    assert json.loads(json.dumps(plan.to_json()))["tokens"] == plan.blocks * block


def test_notes_name_what_the_numbers_omit() -> None:
    """State layers, windows and lengths beyond the model each get a note; a refusal to start is stated only if it does
    not depend on uncounted memory."""
    room = {"memory_bytes": GIB, "block_size": 16}
    assert describe(SMOLLM2, **room).notes == ()
    hybrid = describe(replace(SMOLLM2, state_layers=20), **room)
    assert "20 of 30 layers keep a fixed state" in hybrid.notes[0]
    assert (hybrid.max_concurrency, hybrid.logged_tokens) == (None, None)
    assert "8,192 positions" in describe(SMOLLM2, **room, max_model_len=9000).notes[0]
    window = (KvLayers(count=1, kv_heads=3, key_size=64, value_size=64, window=512), *SMOLLM2.storing_layers)
    tight = describe(replace(SMOLLM2, kv_layers=window), memory_bytes=15_600 * 12_288, block_size=16)
    assert [tight.fits, "depends on the tokens in flight" in tight.notes[-1]] == [False, True]
    assert not any("refuses to start" in note for note in tight.notes)


def test_bad_input_names_the_number() -> None:
    """Each wrong number is a usage error with its value."""
    room = {"memory_bytes": GIB, "block_size": 16}
    names = ("memory_bytes", "max_model_len", "tensor_parallel", "kv_dtype_bytes", "max_num_batched_tokens")
    zero = [({name: 0}, f"{name} is 0") for name in names]
    more = [({"memory_bytes": 1000}, "memory_bytes is 1,000; one block takes 368,640"), ({"block_size": -1}, "is -1")]
    assert not_refused(lambda change: describe(SMOLLM2, **{**room, **change}), [*zero, *more]) == []


def test_a_block_size_that_the_backend_refuses() -> None:
    """The refusal names supported sizes."""
    for size, gpu, remedy in ((16, False, "use 32"), (48, False, "use 32 or 64"), (8, True, "use 16")):
        with pytest.raises(UsageError, match=f"block_size is {size}") as error:
            check_block_size(size, gpu=gpu)
        assert error.value.remedy == remedy
        check_block_size(64, gpu=gpu)


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
def test_an_engine_starts_while_its_share_is_free(engines: list[EngineShare], total: int) -> None:
    """As in vLLM the share has to be free at that moment, and the cache is what weights and other memory leave of it;
    an engine that is refused takes nothing from later ones."""
    free = total
    for engine, budget in zip(engines, start_in_turn(engines, total_bytes=total), strict=True):
        assert budget.requested_bytes == pytest.approx(engine.utilization * total, abs=1)
        rest = budget.requested_bytes - engine.weights_bytes - engine.other_bytes
        starts = budget.requested_bytes <= free and rest > 0
        assert (budget.free_bytes, bool(budget.refused)) == (free, not starts)
        assert budget.kv_bytes == (rest if starts else 0)
        free -= budget.requested_bytes if starts else 0


def test_no_share() -> None:
    """A share is above zero and at most one, as in vLLM; sizes are not negative."""
    bad = [((0, 1), "not a"), ((-0.1, 1), "not a"), ((1.01, 1), "not a"), ((0.5, -1), "_bytes is -1")]

    def start(engine: tuple[float, int]) -> object:
        return start_in_turn([EngineShare(utilization=engine[0], weights_bytes=engine[1])], total_bytes=GIB)

    assert not_refused(start, bad) == []
