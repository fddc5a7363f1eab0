"""Who holds which memory between two steps: of a simulation, and of an engine; limits, and budgets on one GPU."""

import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import UsageError
from labkit.serving.vllm_steps import Watch, log_to, scheduler
from labkit.theory.kv_allocation import (
    Extent,
    Holding,
    Policy,
    Sequence,
    Snapshot,
    simulate,
    snapshots,
    waste_share,
    worst_empty_tokens,
)
from labkit.theory.kv_size import (
    EngineShare,
    check_blocks,
    check_contention,
    check_lengths,
    check_several_blocks,
    start_in_turn,
)

GIB = 2**30
quick = settings(max_examples=60, deadline=None)
SEQUENCES = st.lists(
    st.builds(Sequence, arrival=st.integers(0, 20), prompt_tokens=st.integers(1, 40), output_tokens=st.integers(1, 24)),
    min_size=1,
    max_size=8,
)


# --- of a simulation


@pytest.mark.parametrize("policy", Policy)
@quick
@given(sequences=SEQUENCES, memory=st.integers(64, 200))
def test_snapshots_hold_what_the_trace_counts(policy: Policy, sequences: list[Sequence], memory: int) -> None:
    """After each step the rest of the running ones hold what the step's state counted, less those that ended in it."""
    trace = simulate(sequences, policy=policy, memory_tokens=memory, max_model_len=64, block_size=8)
    found = snapshots(trace)
    assert [one.step for one in found] == [state.step for state in trace.steps]
    for one, state in zip(found, trace.steps, strict=True):
        ended = [n for n, step in enumerate(trace.finished_step) if step == state.step]
        gone = sum(trace.sequences[n].final_tokens for n in ended)
        assert one.running == len(one.holdings) == state.running - len(ended)
        assert (one.waiting, one.preemptions) == (state.waiting, state.preemptions)
        assert sum(each.stored_tokens for each in one.holdings.values()) == state.used_tokens - gone
        assert one.given_tokens <= one.capacity_tokens
        assert all(each.empty_tokens >= 0 for each in one.holdings.values())
    assert not found[-1].holdings


@quick
@given(sequences=SEQUENCES, memory=st.integers(64, 200), block=st.integers(1, 16))
def test_paging_leaves_less_than_a_block_empty(sequences: list[Sequence], memory: int, block: int) -> None:
    """At most one partly filled block a sequence, at any moment, whatever the lengths and the block's size."""
    memory += block
    trace = simulate(sequences, policy=Policy.PAGED, memory_tokens=memory, max_model_len=64, block_size=block)
    assert worst_empty_tokens(snapshots(trace)) < block
    assert 0 <= waste_share(snapshots(trace)) < 1


@quick
@given(sequences=SEQUENCES)
def test_without_contention_no_place_has_two_owners(sequences: list[Sequence]) -> None:
    """In no snapshot do two sequences hold the same memory."""
    trace = simulate(sequences, policy=Policy.PAGED, memory_tokens=100, max_model_len=64, block_size=4)
    for one in snapshots(trace):
        starts = [extent.start for each in one.holdings.values() for extent in each.extents]
        assert len(starts) == len(set(starts))


def test_a_preempted_sequence_comes_back_with_its_tokens() -> None:
    """Two sequences in four blocks: the second is thrown out when the first grows, and later holds all that it had."""
    both = [Sequence(arrival=0, prompt_tokens=7, output_tokens=8)] * 2
    found = snapshots(simulate(both, policy=Policy.PAGED, memory_tokens=16, max_model_len=64, block_size=4))
    assert [one.running for one in found[:3]] == [2, 2, 1]
    assert found[2].preemptions == 1
    back = next(one for one in found[3:] if 1 in one.holdings)
    assert back.holdings[1].stored_tokens == found[1].holdings[1].stored_tokens + 1


def test_shares_of_nothing() -> None:
    """Where nobody holds memory nothing is wasted."""
    nobody = Snapshot(step=0, running=0, waiting=1, preemptions=0, capacity_tokens=64, holdings={})
    assert (waste_share([nobody]), worst_empty_tokens([nobody]), nobody.usage) == (0, 0, 0)
    half = Snapshot(
        step=0, running=1, waiting=0, preemptions=0, capacity_tokens=64, holdings={0: Holding(24, (Extent(0, 32),))}
    )
    assert (waste_share([half, nobody]), worst_empty_tokens([half]), half.usage) == (0.25, 8, 0.5)


# --- of an engine


def engine(*requests: tuple[str, int, list[int], int], waiting: int = 0) -> Any:
    """An object with what is read of vLLM's in-process engine."""
    running = [
        SimpleNamespace(request_id=name, num_computed_tokens=stored, num_preemptions=times)
        for name, stored, _, times in requests
    ]
    blocks = {name: (held,) for name, _, held, _ in requests}
    manager = SimpleNamespace(block_pool=SimpleNamespace(num_gpu_blocks=13), get_block_ids=blocks.__getitem__)
    found = SimpleNamespace(
        running=running,
        waiting=[None] * waiting,
        requests={one.request_id: one for one in running},
        kv_cache_manager=manager,
        block_size=32,
    )
    return SimpleNamespace(
        llm_engine=SimpleNamespace(engine_core=SimpleNamespace(engine_core=SimpleNamespace(scheduler=found)))
    )


def test_a_look_at_an_engine() -> None:
    """Blocks become places (the first that a request can have is at 0), and requests go by the number in their id."""
    llm = engine(("0-ab12", 40, [1, 4], 0), ("3-cd34", 32, [2], 2), waiting=1)
    watch = Watch(llm)
    one = watch.look()
    assert (one.step, one.running, one.waiting, one.preemptions) == (0, 2, 1, 2)
    assert one.capacity_tokens == 12 * 32
    assert one.holdings == {0: Holding(40, (Extent(0, 32), Extent(96, 32))), 3: Holding(32, (Extent(32, 32),))}
    assert watch.look(7).step == 7
    assert [each.step for each in watch.snapshots] == [0, 7]


def test_preemptions_of_finished_requests_still_count() -> None:
    """A request that left the scheduler takes its count along; the watch keeps it."""
    llm = engine(("0-ab12", 40, [1, 4], 2))
    watch = Watch(llm)
    watch.look()
    found = scheduler(llm)
    found.running, found.requests = [], {}
    assert watch.look().preemptions == 2


def test_an_engine_elsewhere_cannot_be_looked_at() -> None:
    """An engine in a process of its own is refused, with the setting that brings it here."""
    llm = SimpleNamespace(llm_engine=SimpleNamespace(engine_core=SimpleNamespace()))
    with pytest.raises(UsageError, match="process of its own") as caught:
        Watch(llm)
    assert "VLLM_ENABLE_V1_MULTIPROCESSING=0" in caught.value.remedy


def test_the_log_goes_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM is told of a configuration that Python's logging takes, with the file in it; an older log is gone."""
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", "")
    file = tmp_path / "logs" / "engine.log"
    file.parent.mkdir()
    file.write_text("of an earlier run")
    assert log_to(file) == file
    assert not file.exists()
    found = json.loads(Path(os.environ["VLLM_LOGGING_CONFIG_PATH"]).read_text())
    assert found["loggers"]["vllm"]["propagate"] is False
    handler = found["handlers"]["file"]
    assert (handler["filename"], handler["level"]) == (str(file), "INFO")
    assert logging.getLevelName(handler["level"]) == logging.INFO


# --- limits


def test_lengths_that_the_engine_would_cut() -> None:
    """Prompt and answer have to fit into the longest request; the remedy has the number that does."""
    check_lengths(prompt_tokens=200, output_tokens=56, max_model_len=256)
    with pytest.raises(UsageError, match="a prompt of 200 and an answer of 57 tokens are longer") as caught:
        check_lengths(prompt_tokens=200, output_tokens=57, max_model_len=256)
    assert "at most 56 output tokens" in caught.value.remedy
    with pytest.raises(UsageError, match="max_model_len is 8,192; the model was made for 4,096 positions"):
        check_lengths(prompt_tokens=100, output_tokens=1, max_model_len=8192, positions=4096)
    with pytest.raises(UsageError, match="output_tokens is 0"):
        check_lengths(prompt_tokens=1, output_tokens=0, max_model_len=256)


def test_a_cache_for_no_request() -> None:
    """One block more than the longest request takes is needed; the remedy says so, and it works."""
    check_blocks(9, block_size=32, max_model_len=256)
    with pytest.raises(UsageError, match="8 blocks of 32 hold no request of max_model_len 256") as caught:
        check_blocks(8, block_size=32, max_model_len=256)
    assert "at least 9 blocks, or lower max_model_len to 224" in caught.value.remedy
    with pytest.raises(UsageError, match="no more than one block of 32"):
        check_several_blocks(block_size=32, max_model_len=32)


@quick
@given(requests=st.integers(1, 8), prompt=st.integers(1, 60), output=st.integers(1, 60), blocks=st.integers(17, 60))
def test_contention_is_what_the_simulation_needs(requests: int, prompt: int, output: int, blocks: int) -> None:
    """Sizes that are refused are those with which nobody would ever be preempted."""
    same = [Sequence(arrival=0, prompt_tokens=prompt, output_tokens=output)] * requests
    trace = simulate(same, policy=Policy.PAGED, memory_tokens=(blocks - 1) * 8, max_model_len=128, block_size=8)
    sizes = {"requests": requests, "prompt_tokens": prompt, "output_tokens": output, "blocks": blocks, "block_size": 8}
    try:
        check_contention(**sizes)
    except UsageError:
        assert trace.preemptions == 0


# --- budgets


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


@pytest.mark.parametrize("share", [0, -0.1, 1.01])
def test_no_share(share: float) -> None:
    """A share is above zero and at most one, as vLLM has it; sizes are not negative."""
    with pytest.raises(UsageError, match="not a share"):
        start_in_turn([EngineShare(utilization=share, weights_bytes=1)], total_bytes=GIB)
    with pytest.raises(UsageError, match="below zero"):
        start_in_turn([EngineShare(utilization=0.5, weights_bytes=-1)], total_bytes=GIB)
