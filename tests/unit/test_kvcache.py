"""The KV-cache arithmetic against known figures, the pool against plain lists, the simulation against a slow one."""

import json
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.models import Architecture
from labkit.theory.kv_allocation import Policy, Sequence, Trace, simulate, stream
from labkit.theory.kv_size import (
    blocks_for_tokens,
    blocks_per_sequence,
    bytes_per_block,
    bytes_per_token,
    check_block_size,
    describe,
    kv_heads_per_rank,
    longest_sequence,
)
from labkit.theory.prefix_cache import BlockPool, Lease, block_hashes, common_full_blocks, replay

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


# --- arithmetic -------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("wrong", "number"),
    [
        ({"memory_bytes": 0}, "memory_bytes is 0"),
        ({"memory_bytes": 1000}, "memory_bytes is 1,000; one block takes 368,640"),
        ({"block_size": -1}, "block_size is -1"),
        ({"max_model_len": 0}, "max_model_len is 0"),
        ({"tensor_parallel": 0}, "tensor_parallel is 0"),
        ({"kv_dtype_bytes": 0}, "kv_dtype_bytes is 0"),
    ],
)
def test_bad_input_names_the_number(wrong: dict[str, int], number: str) -> None:
    """Each wrong number is a usage error that shows it and what to change."""
    with pytest.raises(UsageError, match=number) as error:
        describe(SMOLLM2, **{"memory_bytes": GIB, "block_size": 16, **wrong})
    assert error.value.remedy


def test_an_encoder_has_no_kv_cache() -> None:
    """An embedding model is refused by its type instead of being given numbers."""
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
    assert check_block_size(64, gpu=gpu) == 64


# --- the pool ---------------------------------------------------------------------------------------------------------

# Few different tokens, so that prefixes really coincide.
PROMPT = st.lists(st.integers(0, 1), min_size=1, max_size=20)


def check_pool(pool: BlockPool, leases: list[Lease]) -> None:
    """Blocks are conserved, references are the leases', and a shared block holds equal prefixes."""
    held = Counter(number for lease in leases for number in lease.blocks)
    assert all(pool.blocks[number].references == held[number] for number in range(len(pool.blocks)))
    assert pool.free_blocks + len(held) == len(pool.blocks)
    prefixes: dict[int, list[int]] = {}
    for lease in leases:
        assert (
            len(set(lease.blocks))
            == len(lease.blocks)
            == blocks_for_tokens(len(lease.tokens), block_size=pool.block_size)
        )
        for place, number in enumerate(lease.blocks):
            prefix = lease.tokens[: (place + 1) * pool.block_size]
            assert prefixes.setdefault(number, prefix) == prefix


@quick
@given(st.lists(PROMPT, max_size=12), st.integers(1, 5), st.integers(1, 12), st.randoms(use_true_random=False))
def test_the_pool_conserves_blocks(
    prompts: list[list[int]], block_size: int, blocks: int, chance: random.Random
) -> None:
    """Through leases, growth and releases in any order, no block is lost and none has two owners unless shared."""
    pool, leases = BlockPool(blocks, block_size=block_size), list[Lease]()
    for prompt in prompts:
        lease = pool.lease(prompt)
        if lease is not None:
            leases.append(lease)
        for each in leases:
            if chance.random() < 0.5:
                pool.append(each, chance.randint(0, 1))
        check_pool(pool, leases)
        if leases and chance.random() < 0.5:
            pool.release(leases.pop(chance.randrange(len(leases))))
            check_pool(pool, leases)
    for each in leases:
        pool.release(each)
    assert pool.free_blocks == blocks


@quick
@given(st.lists(PROMPT, min_size=1, max_size=10), PROMPT, st.integers(1, 5))
def test_prefix_hits_are_the_full_blocks_in_common(earlier: list[list[int]], new: list[int], block_size: int) -> None:
    """With room for all, what a prompt finds is the most that it has in common with any earlier one, in full blocks."""
    pool = BlockPool(1000, block_size=block_size)
    for prompt in earlier:
        lease = pool.lease(prompt)
        assert lease is not None
        pool.release(lease)
    common = max(common_full_blocks(prompt, new, block_size=block_size) for prompt in earlier)
    assert len(pool.match(new)) == common
    lease = pool.lease(new)
    assert lease is not None
    # The last token is always computed, so a prompt that is known to its end gives up its last block.
    assert lease.hit_blocks == min(common, (len(new) - 1) // block_size)


@quick
@given(PROMPT, PROMPT, st.integers(1, 4))
def test_equal_hashes_mean_an_equal_prefix(a: list[int], b: list[int], block_size: int) -> None:
    """Two chains agree exactly as far as the tokens do, in full blocks, and never again after they differ."""
    equal = [
        x == y
        for x, y in zip(block_hashes(a, block_size=block_size), block_hashes(b, block_size=block_size), strict=False)
    ]
    assert sum(equal) == common_full_blocks(a, b, block_size=block_size)
    assert equal == sorted(equal, reverse=True)


@quick
@given(st.lists(PROMPT, max_size=15), st.integers(1, 4), st.integers(20, 30))
def test_eviction_never_invents_a_hit(prompts: list[list[int]], block_size: int, blocks: int) -> None:
    """In a pool that is too small, a prompt finds no more than it has in common with an earlier one."""
    pool = BlockPool(blocks, block_size=block_size)
    for index, prompt in enumerate(prompts):
        common = max((common_full_blocks(old, prompt, block_size=block_size) for old in prompts[:index]), default=0)
        assert len(pool.match(prompt)) <= common
        lease = pool.lease(prompt)
        assert lease is not None
        pool.release(lease)


def test_the_longest_unused_goes_first_and_a_prefix_from_its_end() -> None:
    """What was used last stays; of one prompt the last block is evicted before the first."""
    pool = BlockPool(4, block_size=1)
    for prompt in ([1, 2], [3, 4], [1, 2], [5]):
        lease = pool.lease(prompt)
        assert lease is not None
        pool.release(lease)
    assert [len(pool.match(prompt)) for prompt in ([1, 2], [3, 4], [5])] == [2, 1, 1]
    assert pool.evictions == 2  # of 2, whose block was computed anew as the prompt's last, and of 4 for 5


def test_a_prefix_that_two_computed_survives_the_loss_of_one() -> None:
    """Two sequences with the same generated block each keep it, so that evicting one leaves the other findable."""
    pool = BlockPool(4, block_size=2)
    first, second = pool.lease([1]), pool.lease([1])
    assert first is not None
    assert second is not None
    assert pool.append(first, 2)
    assert pool.append(second, 2)
    assert pool.cached_blocks == 2
    pool.release(first)
    third = pool.lease([9, 9, 8, 8, 7, 7])
    assert third is not None
    assert pool.match([1, 2, 3]) == second.blocks


def test_what_nobody_can_find_is_given_away_first() -> None:
    """A released partial block is taken again before any free block that a prefix could still hit."""
    pool = BlockPool(3, block_size=2)
    findable, partial = pool.lease([1, 2, 3, 4]), pool.lease([5])
    assert findable is not None
    assert partial is not None
    last = partial.blocks[0]
    pool.release(findable)
    pool.release(partial)
    assert pool.take(1) == [last]
    assert pool.evictions == 0
    assert len(pool.match([1, 2, 3, 4])) == 2


def test_generated_tokens_become_findable_by_full_blocks() -> None:
    """A conversation's next turn finds the answer's full blocks as well as the prompt's."""
    pool = BlockPool(8, block_size=2)
    lease = pool.lease([1, 2, 3])
    assert lease is not None
    for token in (4, 5):
        assert pool.append(lease, token)
    pool.release(lease)
    assert len(pool.match([1, 2, 3, 4, 5, 6, 7])) == 2


@quick
@given(PROMPT, PROMPT, st.integers(1, 4))
def test_a_sequence_grown_token_by_token_has_the_same_chain(prompt: list[int], answer: list[int], block: int) -> None:
    """Whether tokens came as a prompt or one by one, their full blocks are found under the same hashes."""
    pool = BlockPool(50, block_size=block)
    lease = pool.lease(prompt)
    assert lease is not None
    assert all(pool.append(lease, token) for token in answer)
    assert tuple(lease.hashes) == block_hashes([*prompt, *answer], block_size=block)
    assert pool.match([*prompt, *answer]) == lease.blocks[: len(lease.hashes)]


def test_a_full_pool_gives_nothing_and_stays_as_it_is() -> None:
    """A lease or a token that does not fit changes nothing; sharing makes room for what would not fit alone."""
    pool = BlockPool(3, block_size=2)
    first = pool.lease([1, 2, 3, 4])
    assert first is not None
    assert pool.lease([5, 6, 7, 8]) is None
    assert pool.free_blocks == 1
    shared = pool.lease([1, 2, 9])
    assert shared is not None
    assert shared.hit_blocks == 1
    assert not pool.append(first, 5)
    assert first.tokens == [1, 2, 3, 4]
    check_pool(pool, [first, shared])


def test_without_caching_nothing_is_found() -> None:
    """The same prompt again finds nothing when caching is off, or after a reset."""
    for pool in (BlockPool(8, block_size=2, caching=False), BlockPool(8, block_size=2)):
        lease = pool.lease([1, 2, 3, 4])
        assert lease is not None
        assert pool.cached_blocks == (2 if pool.caching else 0)
        pool.release(lease)
        pool.reset()
        assert pool.match([1, 2, 3, 4]) == []


def test_giving_back_twice_is_an_error() -> None:
    """A block that nobody holds cannot be given back."""
    pool = BlockPool(2, block_size=2)
    numbers = pool.take(1)
    assert numbers is not None
    pool.give_back(numbers)
    with pytest.raises(UsageError, match="block 0 is given back"):
        pool.give_back(numbers)


def test_a_round_robin_balancer_halves_what_affinity_keeps() -> None:
    """Two documents on two replicas: routed by document each is computed once, in rotation once on each replica."""
    documents = [[1] * 64, [2] * 64]
    prompts = [[*documents[number // 2 % 2], 100 + number] for number in range(8)]
    pools = [[BlockPool(100, block_size=16) for _ in range(2)] for _ in range(2)]
    rotation = replay(prompts, pools=pools[0])
    affinity = replay(prompts, pools=pools[1], route=lambda _, prompt: prompt[0])
    assert affinity.by_prompt == (0, 64, 0, 64, 64, 64, 64, 64)
    assert rotation.by_prompt == (0, 0, 0, 0, 64, 64, 64, 64)
    assert rotation.hit_rate < affinity.hit_rate == affinity.hit_tokens / sum(map(len, prompts))


def test_a_prefix_shorter_than_a_block_never_hits() -> None:
    """A shared system prompt of 30 tokens finds nothing with blocks of 32, and one block of 16 with blocks of 16."""
    prompts = [[7] * 30 + [number] * 40 for number in range(4)]
    assert replay(prompts, pools=[BlockPool(100, block_size=32)]).hit_tokens == 0
    assert replay(prompts, pools=[BlockPool(100, block_size=16)]).by_prompt == (0, 16, 16, 16)


def test_a_prompt_larger_than_the_pool() -> None:
    """It is a usage error with both sizes."""
    with pytest.raises(UsageError, match="9 tokens does not fit into a pool of 8"):
        replay([[1] * 9], pools=[BlockPool(4, block_size=2)])


# --- allocation -------------------------------------------------------------------------------------------------------

BLOCK, MAX_LEN = 4, 16  # MAX_LEN is a multiple of BLOCK, as the comparison of policies needs
SEQUENCES = st.lists(
    st.builds(Sequence, arrival=st.integers(0, 30), prompt_tokens=st.integers(1, 8), output_tokens=st.integers(1, 8)),
    min_size=1,
    max_size=20,
)
CAPACITY = st.integers(MAX_LEN, 80)


def run(sequences: list[Sequence], policy: Policy, capacity: int, *, block_size: int = BLOCK) -> Trace:
    """One simulation with the sizes of this section."""
    return simulate(sequences, policy=policy, memory_tokens=capacity, max_model_len=MAX_LEN, block_size=block_size)


def naive(sequences: list[Sequence], policy: Policy, capacity: int) -> list[tuple[int, ...]]:
    """The same rules token by token and cell by cell: (step, running, waiting, used, preemptions) of every step."""
    paged, unit = policy is Policy.PAGED, BLOCK if policy is Policy.PAGED else 1
    cells: list[int | None] = [None] * (capacity // unit)
    order = sorted(sequences, key=lambda each: each.arrival)
    coming, waiting, running = list(range(len(order))), list[int](), list[int]()
    made, stored, log = [0] * len(order), [0] * len(order), list[tuple[int, ...]]()
    step = preemptions = 0

    def reservation(each: Sequence) -> int:
        output = next(power for power in (1, 2, 4, 8) if power >= each.output_tokens)
        return {
            Policy.RESERVE_MAX: MAX_LEN,
            Policy.RESERVE_KNOWN: each.prompt_tokens + each.output_tokens - 1,
            Policy.RESERVE_POWER_OF_TWO: min(MAX_LEN, each.prompt_tokens + output),
        }[policy]

    def place(index: int, count: int) -> bool:
        free = [at for at, owner in enumerate(cells) if owner is None]
        spots = (
            free[:count]
            if paged
            else next(
                (
                    free[k : k + count]
                    for k in range(len(free))
                    if free[k : k + count] == list(range(free[k], free[k] + count))
                ),
                [],
            )
        )
        if len(spots) < count:
            return False
        for at in spots:
            cells[at] = index
        return True

    def vacate(index: int) -> None:
        running.remove(index)
        for at, owner in enumerate(cells):
            cells[at] = None if owner == index else owner

    while coming or waiting or running:
        if not (waiting or running):
            step = max(step, order[coming[0]].arrival)
        while coming and order[coming[0]].arrival <= step:
            waiting.append(coming.pop(0))
        preempted = False
        for index in list(running):
            if index not in running:
                continue
            stored[index] += 1
            while paged and index in running and stored[index] > BLOCK * cells.count(index) and not place(index, 1):
                victim, preempted = running[-1], True
                preemptions += 1
                vacate(victim)
                waiting.insert(0, victim)
        while waiting and not preempted:
            head = waiting[0]
            tokens = order[head].prompt_tokens + made[head]
            if not place(head, -(-tokens // BLOCK) if paged else reservation(order[head])):
                break
            stored[head] = tokens
            running.append(waiting.pop(0))
        log.append((step, len(running), len(waiting), sum(stored[index] for index in running), preemptions))
        for index in list(running):
            made[index] += 1
            if made[index] == order[index].output_tokens:
                vacate(index)
        step += 1
    return log


@pytest.mark.parametrize("policy", Policy)
@quick
@given(sequences=SEQUENCES, capacity=CAPACITY)
def test_the_simulation_is_the_token_by_token_one(policy: Policy, sequences: list[Sequence], capacity: int) -> None:
    """The fast simulation gives the steps, queues, tokens and preemptions of a plain one that moves every token."""
    steps = run(sequences, policy, capacity).steps
    assert [(s.step, s.running, s.waiting, s.used_tokens, s.preemptions) for s in steps] == naive(
        sequences, policy, capacity
    )


@pytest.mark.parametrize("policy", Policy)
@quick
@given(sequences=SEQUENCES, capacity=CAPACITY)
def test_memory_is_conserved(policy: Policy, sequences: list[Sequence], capacity: int) -> None:
    """In every step the five kinds of tokens are the memory, no token has two owners, and at the end all is free."""
    trace = run(sequences, policy, capacity)
    for state in trace.steps:
        kinds = (state.used_tokens, state.reserved_tokens, state.internal_tokens)
        assert sum(kinds) + state.external_tokens + state.free_tokens == trace.capacity_tokens
        assert min(*kinds, state.external_tokens, state.free_tokens) >= 0
        owned = trace.owners_at(state.step)
        assert sum(tenure.tokens for tenure in owned) == sum(kinds)
        assert all(a.start_token + a.tokens <= b.start_token for a, b in pairwise(owned))
        assert len({tenure.owner for tenure in owned}) == state.running
    assert trace.owners_at(trace.steps[-1].step + 1) == []
    assert sum(trace.shares().values()) == pytest.approx(1)


@quick
@given(sequences=SEQUENCES, capacity=CAPACITY)
def test_paging_wastes_less_than_a_block_a_sequence(sequences: list[Sequence], capacity: int) -> None:
    """The paper's claim: less than one block of each running sequence is empty, and nothing is external."""
    for state in run(sequences, Policy.PAGED, capacity).steps:
        assert state.reserved_tokens + state.internal_tokens <= state.running * (BLOCK - 1)
        assert state.external_tokens == 0


@pytest.mark.parametrize(
    ("policy", "block_size"), [(Policy.RESERVE_MAX, BLOCK), (Policy.RESERVE_POWER_OF_TWO, 1), (Policy.RESERVE_KNOWN, 1)]
)
@quick
@given(sequences=SEQUENCES, capacity=CAPACITY)
def test_contiguous_never_admits_more_than_paged(
    policy: Policy, block_size: int, sequences: list[Sequence], capacity: int
) -> None:
    """Where reservations cover whole blocks, no sequence starts or ends later with paging, preempted or not."""
    contiguous, paged = run(sequences, policy, capacity), run(sequences, Policy.PAGED, capacity, block_size=block_size)
    assert all(a >= b for a, b in zip(contiguous.admitted_step, paged.admitted_step, strict=True))
    assert all(a >= b for a, b in zip(contiguous.finished_step, paged.finished_step, strict=True))


@pytest.mark.parametrize("policy", Policy)
@quick
@given(sequences=SEQUENCES, capacity=CAPACITY)
def test_every_sequence_ends_and_again_the_same(policy: Policy, sequences: list[Sequence], capacity: int) -> None:
    """All are admitted and finish with the tokens that they asked for, and a second run gives the same trace."""
    trace = run(sequences, policy, capacity)
    assert trace.steps[-1].admitted == len(sequences)
    for sequence, start, end in zip(trace.sequences, trace.admitted_step, trace.finished_step, strict=True):
        assert sequence.arrival <= start <= end
        assert end - start + 1 >= sequence.output_tokens
    assert run(sequences, policy, capacity) == trace


def test_preemption_recomputes_and_the_oldest_goes_on() -> None:
    """Two sequences that fit at first but not to their ends: the later one gives way, waits, and stores all anew."""
    pair = [
        Sequence(arrival=0, prompt_tokens=4, output_tokens=8),
        Sequence(arrival=0, prompt_tokens=4, output_tokens=8),
    ]
    trace = simulate(pair, policy=Policy.PAGED, memory_tokens=16, max_model_len=16, block_size=4)
    assert trace.preemptions == 1
    assert trace.finished_step[0] == 7
    # After a block of 4 each it had made 5 tokens, the last of which was never stored: 4 + 5 are stored again.
    assert trace.recomputed_tokens == 9


def test_external_fragmentation_is_seen() -> None:
    """Free memory that would do in one piece but lies in two counts as external while the queue waits for it."""
    lengths = [(4, 1), (4, 9), (4, 1), (7, 1)]
    several = [Sequence(arrival=0, prompt_tokens=p, output_tokens=o) for p, o in lengths]
    trace = simulate(several, policy=Policy.RESERVE_KNOWN, memory_tokens=20, max_model_len=16)
    assert trace.steps[1].external_tokens == 8
    assert (
        simulate(several, policy=Policy.PAGED, memory_tokens=20, max_model_len=16, block_size=1).steps[0].waiting == 0
    )


def test_the_batch_limit_holds() -> None:
    """No more than max_num_seqs run at once, and waiting for it is not called fragmentation."""
    many = [Sequence(arrival=0, prompt_tokens=2, output_tokens=4) for _ in range(10)]
    trace = simulate(many, policy=Policy.PAGED, memory_tokens=400, max_model_len=16, max_num_seqs=3)
    assert trace.most_running == 3
    assert all(state.external_tokens == 0 for state in trace.steps)


def test_a_summary_is_of_the_steps() -> None:
    """The summary's means are those of the rows, and a run without tenures differs in nothing else."""
    many = stream(50, seed=3, mean_prompt_tokens=20, mean_output_tokens=30, max_model_len=256, per_step=1)
    trace = simulate(many, policy=Policy.PAGED, memory_tokens=512, max_model_len=256)
    rows = list(trace.rows())
    assert trace.summary()["mean_running"] == pytest.approx(sum(row["running"] for row in rows) / len(rows))
    assert trace.summary()["used_share"] == pytest.approx(sum(row["used_tokens"] for row in rows) / len(rows) / 512)
    bare = simulate(many, policy=Policy.PAGED, memory_tokens=512, max_model_len=256, keep_tenures=False)
    assert bare == replace(trace, tenures=())


@pytest.mark.parametrize(
    ("prompt", "output", "memory", "words"),
    [
        (0, 1, 64, "prompt_tokens of sequence 0 is 0"),
        (1, 0, 64, "output_tokens of sequence 0 is 0"),
        (10, 7, 64, "sequence 0 has 17 tokens, max_model_len is 16"),
        (8, 8, 12, "sequence 0 needs 16 tokens of memory; there are 12"),
        (1, 1, 3, "memory_tokens is 3, less than one block of 4"),
    ],
)
def test_what_can_never_run_is_refused(prompt: int, output: int, memory: int, words: str) -> None:
    """It is a usage error with both numbers, before the first step."""
    one = [Sequence(arrival=0, prompt_tokens=prompt, output_tokens=output)]
    with pytest.raises(UsageError, match=words):
        simulate(one, policy=Policy.PAGED, memory_tokens=memory, max_model_len=16, block_size=4)


def test_nothing_to_do_is_an_empty_trace() -> None:
    """A stream without sequences gives no steps and means of zero."""
    trace = simulate([], policy=Policy.PAGED, memory_tokens=64, max_model_len=16)
    assert trace.steps == ()
    assert (trace.mean_running, trace.waste_of_given(), trace.makespan_steps) == (0, 0, 0)


def test_a_stream_is_its_seed() -> None:
    """Equal arguments give equal streams, another seed another one; means, order and limits are as asked."""
    many = stream(4000, seed=1, mean_prompt_tokens=40, mean_output_tokens=60, spread=0.5, per_step=0.5)
    assert many == stream(4000, seed=1, mean_prompt_tokens=40, mean_output_tokens=60, spread=0.5, per_step=0.5)
    assert many != stream(4000, seed=2, mean_prompt_tokens=40, mean_output_tokens=60, spread=0.5, per_step=0.5)
    assert sum(each.prompt_tokens for each in many) / 4000 == pytest.approx(40, rel=0.05)
    assert sum(each.output_tokens for each in many) / 4000 == pytest.approx(60, rel=0.05)
    assert many[-1].arrival == pytest.approx(8000, rel=0.1)
    assert all(a.arrival <= b.arrival for a, b in pairwise(many))
    assert {each.prompt_tokens for each in stream(20, seed=1, spread=0)} == {160}
    assert max(each.prompt_tokens for each in stream(200, seed=1, mean_prompt_tokens=900)) == 1024
    with pytest.raises(UsageError, match="per_step 0"):
        stream(1, seed=1, per_step=0)
