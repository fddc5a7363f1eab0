"""vLLM on modelled cards: sizes, refusals, clocks, fleets and loads. No model is computed: an engine starts at once."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit import modelled
from labkit.cli import main
from labkit.errors import UsageError
from labkit.load import Outcome, RequestRecord
from labkit.modelled import cards, routers, traffic
from labkit.modelled.engine import batch_defaults
from labkit.modelled.simulate import simulate
from labkit.modelled.traffic import TokenRequest

pytestmark = pytest.mark.engine

SMALL: dict[str, Any] = {
    "max_num_seqs": 6,
    "max_num_batched_tokens": 256,
    "max_model_len": 1024,
    "num_gpu_blocks_override": 70,
}
"""A scheduler in which a few requests already queue, are chunked and are preempted: 1,104 tokens of KV cache."""


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """The environment of modelled engines; vLLM changes more of it, and all of that is undone."""
    before = dict(os.environ)
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    os.environ.update(modelled.gpu("h100-sxm").env)
    yield
    from vllm import envs

    envs.disable_envs_cache()
    os.environ.clear()
    os.environ.update(before)


@contextmanager
def engine(card: str = "h100-sxm", *, model: str | Path = "llama-3.1-8b", **options: Any) -> Iterator[Any]:
    """vLLM on a modelled card, with `options` after the card's own."""
    from vllm import LLM

    gpu = modelled.gpu(card, model=model, source="formula")
    llm = LLM(gpu.model, **gpu.llm | options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


class Engines(list[Any]):
    """Engines whose `repr` Hypothesis can print: that of an `LLM` fails on a modelled card."""

    def __repr__(self) -> str:
        return f"{len(self)} engines"


@pytest.fixture(scope="module")
def pair() -> Iterator[Engines]:
    """Two small engines on two kinds of card, whose steps take different times."""
    with engine(**SMALL) as one, engine("a100-80", **SMALL) as other:
        yield Engines([one, other])


@pytest.fixture(scope="module")
def trio() -> Iterator[Engines]:
    """Three engines alike."""
    with engine() as one, engine() as two, engine() as three:
        yield Engines([one, two, three])


def blocks(llm: Any) -> int:
    """How many KV blocks vLLM has made."""
    return int(llm.llm_engine.vllm_config.cache_config.num_gpu_blocks)


def told(records: Sequence[RequestRecord]) -> list[Any]:
    """All that is known of requests but their numbers."""
    return [(one.outcome, one.input_tokens, one.output_tokens, one.scheduled_s, one.chunk_times_s) for one in records]


# What fits


def test_the_cache_is_what_the_card_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """92% of the card's memory less weights and workspace, in blocks of 16 tokens of 128 KiB; the setting of vLLM's CPU
    build, VLLM_CPU_KVCACHE_SPACE, changes nothing."""
    by_hand = (0.92 * 79.6 * 2**30 - 2 * 8_030_261_248 - 2 * 2**30) // (16 * 131_072)
    with engine() as llm:
        assert blocks(llm) == by_hand
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    with engine() as llm:
        assert blocks(llm) == by_hand


def test_a_model_that_does_not_fit_is_refused_with_the_cards_numbers() -> None:
    """61 GiB of weights on an L4: vLLM does not start, and the message has the weights and the memory."""
    with (
        pytest.raises(ValueError, match=r"61\.02 GiB of weights.*0\.92 x 22\.5 GiB of NVIDIA L4"),
        engine("l4", model="qwen3-32b"),
    ):
        pass


@pytest.mark.parametrize("option", ["kv_cache_memory_bytes", "num_gpu_blocks_override"])
def test_a_cache_larger_than_the_card_is_refused(option: str) -> None:
    """An 8B leaves 64.6 GiB of an H100: a cache of 64 GiB starts, and one of 65 does not."""
    for gib in (64, 65):
        asked: dict[str, Any] = {option: gib * 2**30 // (1 if option == "kv_cache_memory_bytes" else 16 * 131_072)}
        if gib == 64:
            with engine(**asked) as llm:
                assert blocks(llm) == 64 * 2**30 // (16 * 131_072)
        else:
            with pytest.raises(ValueError, match=r"65\.00 GiB of KV cache do not fit.*79\.6 GiB"), engine(**asked):
                pass


def test_a_context_longer_than_the_cache_is_vllms_own_error() -> None:
    """An 8B on an RTX 4090 leaves 5.1 GiB: vLLM says how long max_model_len may be (it keeps one block for itself), and
    with that it starts."""
    made = int((0.92 * 24 * 2**30 - 2 * 8_030_261_248 - 2 * 2**30) // (16 * 131_072))
    longest = 16 * (made - 1)
    with pytest.raises(ValueError, match=f"estimated maximum model length is {longest}"), engine("rtx-4090"):
        pass
    with engine("rtx-4090", max_model_len=longest) as llm:
        assert blocks(llm) == made


def written(folder: Path, **change: Any) -> Path:
    """`folder` with Qwen3-8B's config.json, changed."""
    config = json.loads((Path(modelled.gpu("h100-sxm", model="qwen3-8b").model) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    return folder


MLA = {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "hidden_size": 256, "vocab_size": 1000,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 64, "q_lora_rank": None,
    "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "n_routed_experts": 4, "n_shared_experts": 1,
    "moe_intermediate_size": 64, "first_k_dense_replace": 1, "max_position_embeddings": 2048, "topk_method": "greedy",
    "num_experts_per_tok": 2,
}  # fmt: skip
LINEAR = {
    "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "num_hidden_layers": 4, "hidden_size": 256,
    "layer_types": ["linear_attention", "full_attention"] * 2, "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64,
}  # fmt: skip
CHUNKED = {"num_hidden_layers": 2, "layer_types": ["chunked_attention", "full_attention"]}
HALF_IN_WINDOWS = {
    "use_sliding_window": True, "sliding_window": 1024, "layer_types": ["sliding_attention", "full_attention"] * 18,
}  # fmt: skip
NGRAM = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}


@pytest.mark.parametrize(
    ("config", "options", "says"),
    [
        (None, {"enable_lora": True}, "LoRA"),
        (None, {"speculative_config": NGRAM}, "speculative decoding"),
        (None, {"kv_cache_dtype": "fp8"}, "KV cache in fp8"),
        (None, {"dtype": "float32"}, "float32"),
        (None, {"quantization": "fp8"}, "weights in fp8, which config.json does not have"),
        (None, {"cpu_offload_gb": 10}, "weights in host memory"),
        (LINEAR, {}, "state instead of a KV cache"),
        (CHUNKED, {}, "chunked_attention"),
        (MLA, {}, "multi-head latent attention"),
    ],
)
def test_what_is_not_modelled_is_refused_by_name(
    config: Mapping[str, Any] | None, options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    """An option or a kind of layer whose step times are not known stops the start, rather than be ignored."""
    model = written(tmp_path, **config) if config else "llama-3.1-8b"
    with pytest.raises(UsageError, match=says), engine(model=model, **options):
        pass


@given(
    st.floats(1, 300) | st.sampled_from([70, 160, 69.999, 159.999]), st.sampled_from(["A100", "H100", "Nvidia a100-x"])
)
def test_batch_defaults_are_vllms(memory_gib: float, title: str) -> None:
    """For any memory and name, what vLLM's own get_batch_defaults answers on a platform with such a device."""
    from vllm.engine import arg_utils
    from vllm.usage.usage_lib import UsageContext

    card = cards.find("h100-sxm").model_copy(update={"memory_gib": memory_gib, "title": f"NVIDIA {title}"})

    class Platform:
        """A CUDA machine with that card."""

        get_device_total_memory = staticmethod(lambda: card.memory_bytes)
        get_device_name = staticmethod(lambda: card.title)
        is_tpu = is_cpu = staticmethod(lambda: False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arg_utils, "current_platform", Platform)
        tokens, sequences = arg_utils.EngineArgs.get_batch_defaults(1)
    for server, context in ((False, UsageContext.LLM_CLASS), (True, UsageContext.OPENAI_API_SERVER)):
        assert batch_defaults(card, server=server) == (tokens[context], sequences[context])


# Clocks and records


Sizes = list[tuple[int, int, int, int]]
loads = st.lists(
    st.tuples(st.integers(0, 100), st.sampled_from([0, 64]), st.integers(1, 400), st.integers(1, 40)),
    min_size=1,
    max_size=12,
)
"""Up to a dozen requests: the gap before each in milliseconds, and its shared, own and output tokens."""


def made(sizes: Sizes) -> list[TokenRequest]:
    """The requests of these sizes. Their tokens are made here, since Hypothesis gives up on slow strategies."""
    shared = traffic.prompt_tokens(64, key="shared")
    return [
        TokenRequest(
            token_ids=shared[:common] + traffic.prompt_tokens(own, key=f"own/{index}"),
            output_tokens=output,
            due_s=due_ms / 1e3,
        )
        for index, (due_ms, (_, common, own, output)) in enumerate(
            zip(accumulate(gap for gap, *_ in sizes), sizes, strict=True)
        )
    ]


@settings(max_examples=25)
@given(sizes=loads)
def test_a_fleet_is_each_replica_alone_with_its_share(pair: Engines, sizes: Sizes) -> None:
    """Behind round-robin each engine does at the same times what it does alone with its requests: clocks are separate,
    and nothing starts or ends before it is due."""
    load = made(sizes)
    fleet = modelled.drive(pair, load, router=routers.round_robin())
    assert list(fleet.replica_of) == [index % 2 for index in range(len(load))]
    preemptions = cached = 0
    for number, llm in enumerate(pair):
        if share := load[number::2]:
            alone = modelled.drive(llm, share)
            assert told(fleet.result.records[number::2]) == told(alone.result.records)
            preemptions, cached = preemptions + alone.preemptions, cached + alone.cached_tokens
    assert (fleet.preemptions, fleet.cached_tokens) == (preemptions, cached)
    for record, request in zip(fleet.result.records, load, strict=True):
        times = [record.scheduled_s, *record.chunk_times_s]
        assert record.scheduled_s == request.due_s
        assert all(earlier < later for earlier, later in pairwise(times))
        assert (record.outcome, len(record.chunk_times_s)) == (Outcome.OK, request.output_tokens)


@settings(max_examples=25)
@given(sizes=loads)
def test_a_request_is_in_the_first_step_after_it_is_due(trio: Engines, sizes: Sizes) -> None:
    """With room for all, each prompt is computed in the first step that begins when it is due or later: that step's end
    is its first token's time, and every further step writes one token more."""
    driven = modelled.drive(trio[0], made(sizes))
    (moments,) = driven.moments
    for record in driven.result.records:
        ends = [one.end_s for one in moments if one.end_s - one.duration_s > record.scheduled_s - 1e-9]
        assert list(record.chunk_times_s) == ends[: len(record.chunk_times_s)]


def test_the_same_traffic_gives_the_same_records() -> None:
    """Two new engines, and an engine that has run it before, agree to the last bit, through preemptions and hits."""
    load = traffic.at_rate(
        traffic.fixed(40, input_tokens=200, output_tokens=60, shared_tokens=64), 60.0, arrival="bursty", seed=2
    )
    drives = []
    for _ in range(2):
        with engine(**SMALL) as llm:
            drives += [modelled.drive(llm, load), modelled.drive(llm, load)]
    first = drives[0]
    assert first.preemptions > 0
    assert first.cached_tokens > 0
    for other in drives[1:]:
        assert (other.result.records, other.moments) == (first.result.records, first.moments)
        assert (other.preemptions, other.cached_tokens) == (first.preemptions, first.cached_tokens)


@settings(max_examples=25)
@given(sizes=loads, concurrency=st.integers(1, 5), both=st.booleans())
def test_a_closed_loop_keeps_its_concurrency(pair: Engines, sizes: Sizes, concurrency: int, both: bool) -> None:
    """Whenever a request starts, exactly as many are in flight as were asked for, or all that are left."""
    load = made(sizes)
    records = modelled.drive(pair if both else pair[0], load, concurrency=concurrency).result.records
    assert [record.outcome for record in records] == [Outcome.OK] * len(load)
    for record in records:
        in_flight = sum(one.started_s <= record.started_s < one.finished_s for one in records)
        ended = sum(one.finished_s <= record.started_s for one in records)
        assert in_flight == min(concurrency, len(load) - ended)


def test_a_load_that_is_stopped_leaves_the_engine_empty(pair: Engines) -> None:
    """After `until_s` nothing starts; what is in flight is CANCELLED with the tokens it has; the next load finds an
    engine like new."""
    load = traffic.at_rate(traffic.fixed(20, input_tokens=100, output_tokens=40), 30.0, arrival="constant")
    whole = modelled.drive(pair[0], load)
    stopped = modelled.drive(pair[0], load, until_s=0.3)
    records, full = stopped.result.records, {record.index: record for record in whole.result.records}
    outcomes = Counter(record.outcome for record in records)
    assert set(outcomes) == {Outcome.OK, Outcome.CANCELLED}
    assert len(records) == sum(request.due_s < 0.3 for request in load)
    assert f"{20 - outcomes[Outcome.OK]} of 20" in stopped.result.warnings[0]
    for record in records:
        before = full[record.index].chunk_times_s[: len(record.chunk_times_s)]
        assert record.chunk_times_s == before
        assert record.ok == (len(record.chunk_times_s) == 40)
    assert not pair[0].llm_engine.has_unfinished_requests()
    assert told(modelled.drive(pair[0], load).result.records) == told(whole.result.records)


@pytest.mark.parametrize(
    ("load", "options", "says"),
    [
        (
            traffic.fixed(2, input_tokens=2000, output_tokens=1),
            {},
            "request 0: .* exceed max_model_len 1024",
        ),
        (traffic.fixed(2, input_tokens=9, output_tokens=1), {"router": lambda *_: 2}, "chose replica 2 of 2"),
        (traffic.fixed(2, input_tokens=9, output_tokens=1), {"concurrency": 0}, "concurrency is 0"),
        ([], {}, "0 requests"),
        ([TokenRequest(token_ids=[1], output_tokens=1, follows=0)], {}, "request 0 follows"),
    ],
)
def test_impossible_loads_are_refused_and_leave_nothing(
    pair: Engines, load: traffic.Traffic, options: dict[str, Any], says: str
) -> None:
    """Each is a usage error, and no request of it stays in an engine."""
    with pytest.raises(UsageError, match=says):
        modelled.drive(pair, load, **options)
    assert not any(llm.llm_engine.has_unfinished_requests() for llm in pair)


def test_an_engine_says_that_it_has_no_model(pair: Engines) -> None:
    """A cell that ends in `llm` shows what it is."""
    assert "no model: NVIDIA" in repr(pair[0])


def test_a_closed_loop_has_one_follower_for_each_turn(pair: Engines) -> None:
    """Two requests that follow the same one would take two slots for one: refused."""
    first, *rest = traffic.fixed(3, input_tokens=20, output_tokens=4)
    both = [first, *(replace(request, follows=0) for request in rest)]
    with pytest.raises(UsageError, match="several requests follow the same one"):
        modelled.drive(pair[0], both, concurrency=1)
    assert modelled.drive(pair[0], both).result.records[2].ok


def test_an_answer_longer_than_the_context_is_refused(pair: Engines) -> None:
    """1,000 prompt tokens and 100 more do not fit 1,024: the request cannot have the answer that was asked for."""
    with pytest.raises(UsageError, match="request 0"):
        modelled.drive(pair[0], traffic.fixed(1, input_tokens=1000, output_tokens=100))


# Prefixes, conversations and fleets


def test_each_turn_finds_all_blocks_of_the_turn_before(trio: Engines) -> None:
    """A turn's prompt is the last prompt, its answer and what the user adds; of it, all whole blocks are cached that
    the last turn computed: its prompt and its answer but for the last token."""
    system, user, output, turns = 100, 37, 23, 5
    options: dict[str, Any] = {"system_tokens": system, "user_tokens": user, "output_tokens": output, "think_s": 2.0}
    drives = [modelled.drive(trio[0], traffic.conversations(1, turns=n, **options)) for n in range(1, turns + 1)]
    prompts = [record.input_tokens for record in drives[-1].result.records]
    assert prompts == [system + user + turn * (output + user) for turn in range(turns)]
    cached = [later.cached_tokens - earlier.cached_tokens for earlier, later in pairwise(drives)]
    assert drives[0].cached_tokens == 0
    assert cached == [(system + user + turn * (output + user) + output - 1) // 16 * 16 for turn in range(turns - 1)]


def test_turns_come_after_the_answers_they_follow(trio: Engines) -> None:
    """Each turn is due its think time after the answer before it has ended, in open and closed loops."""
    talk = traffic.conversations(5, turns=3, system_tokens=50, user_tokens=20, output_tokens=10, rate=2.0, seed=3)
    for concurrency in (None, 2):
        records = modelled.drive(trio, talk, concurrency=concurrency).result.records
        for index, request in enumerate(talk):
            if request.follows is not None:
                assert records[index].scheduled_s == records[request.follows].finished_s + request.due_s


@pytest.fixture
def talk() -> traffic.Traffic:
    """Twelve conversations that start at once and share nothing."""
    return traffic.conversations(12, turns=4, system_tokens=0, user_tokens=80, output_tokens=30, think_s=1.0)


def test_round_robin_gives_every_replica_as_much(trio: Engines, talk: traffic.Traffic) -> None:
    """48 requests over three replicas: 16 each."""
    assert Counter(modelled.drive(trio, talk, router=routers.round_robin()).replica_of) == {0: 16, 1: 16, 2: 16}


def test_prefix_aware_keeps_conversations_together_and_hits_more(trio: Engines, talk: traffic.Traffic) -> None:
    """All turns of a conversation go where its prefix is, all replicas have some, and the hit rate is that of one
    engine with all of them; in turn, fewer prefixes are found."""
    aware = modelled.drive(trio, talk, router=routers.prefix_aware())
    in_turn = modelled.drive(trio, talk, router=routers.round_robin())
    homes = [set(aware.replica_of[first : first + 4]) for first in range(0, 48, 4)]
    assert all(len(home) == 1 for home in homes)
    assert set.union(*homes) == {0, 1, 2}
    assert aware.prefix_hit_rate == modelled.drive(trio[0], talk).prefix_hit_rate
    assert aware.prefix_hit_rate > 1.3 * in_turn.prefix_hit_rate


@settings(max_examples=15)
@given(sizes=loads)
def test_a_router_sees_what_the_engine_then_finds(pair: Engines, sizes: Sizes) -> None:
    """With one request at a time, `cached_tokens` before each adds up to what the engines take from their caches."""
    promised = list[int]()
    turns = routers.round_robin()

    def watching(request: TokenRequest, replicas: Sequence[routers.ReplicaView]) -> int:
        chosen = turns(request, replicas)
        promised.append(replicas[chosen].cached_tokens(request.token_ids))
        return chosen

    twice = [*made(sizes), *made(sizes)]
    assert modelled.drive(pair, twice, router=watching, concurrency=1).cached_tokens == sum(promised)


def test_a_cache_is_emptied_between_loads_unless_it_is_kept(trio: Engines) -> None:
    """The same prompts again find nothing, or with `keep_cache` all their whole blocks before the last token."""
    load = traffic.fixed(3, input_tokens=170, output_tokens=2)
    assert [modelled.drive(trio[0], load).cached_tokens for _ in range(2)] == [0, 0]
    assert modelled.drive(trio[0], load, keep_cache=True).cached_tokens == 3 * 160


def test_a_learners_scheduling_rule_is_vllms_scheduler_class() -> None:
    """Shortest prompt first, in six lines: short prompts have their first token in half the time that vLLM's own order
    takes, long ones later."""
    from vllm.v1.core.sched.scheduler import Scheduler

    class ShortestFirst(Scheduler):  # type: ignore[misc]
        def schedule(self, *args: Any, **kwargs: Any) -> Any:
            waiting = sorted(self.waiting, key=lambda request: request.num_prompt_tokens)
            self.waiting.remove_requests(waiting)
            for request in waiting:
                self.waiting.add_request(request)
            return super().schedule(*args, **kwargs)

    lengths = [4000 if index % 4 == 0 else 100 for index in range(80)]
    load = [
        TokenRequest(
            token_ids=traffic.prompt_tokens(length, key=str(index)),
            output_tokens=20,
            due_s=index / 50,
            group="long" if length > 1000 else "short",
        )
        for index, length in enumerate(lengths)
    ]
    ttft_s = {}
    for name, rule in (("own", None), ("shortest", ShortestFirst)):
        with engine(max_num_seqs=16, max_num_batched_tokens=2048, scheduler_cls=rule) as llm:
            records = modelled.drive(llm, load).result.records
        for group in ("short", "long"):
            ttft_s[name, group] = fmean(one.ttft_s or 0.0 for one in records if one.group == group)
    assert ttft_s["shortest", "short"] < ttft_s["own", "short"] / 2
    assert ttft_s["shortest", "long"] > ttft_s["own", "long"]


# Answers


@pytest.mark.parametrize(
    ("windows", "options"),
    [
        (False, {"max_num_seqs": 32, "max_num_batched_tokens": 1024}),
        (True, {"gpu_memory_utilization": 0.25, "max_model_len": 4096}),  # the cache is the limit
    ],
)
def test_the_capacity_is_what_an_overloaded_engine_finishes(
    windows: bool, options: dict[str, Any], tmp_path: Path
) -> None:
    """When all requests come at once, their throughput is the capacity that was computed from one step, to 10%. Layers
    with a window and layers without take blocks of their own from one pool."""
    model = written(tmp_path, **HALF_IN_WINDOWS) if windows else "llama-3.1-8b"
    load = traffic.fixed(400, input_tokens=300, output_tokens=60)
    found = simulate(modelled.gpu("h100-sxm", model=model), load, options=options, direction_only=windows)
    assert found.summary.request_throughput == pytest.approx(found.capacity_per_s, rel=0.1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"distributed_executor_backend": "uni"}, "distributed_executor_backend cannot be passed"),
        ({"gpu_memory_utilization": 1.1}, "gpu_memory_utilization: Input should be less than"),
    ],
)
def test_a_refusal_names_the_option(options: dict[str, Any], says: str) -> None:
    """Also where vLLM's own message does not; another executor would not be the modelled card."""
    load = traffic.fixed(1, input_tokens=5, output_tokens=1)
    with pytest.raises(UsageError, match=says):
        simulate(modelled.gpu("h100-sxm"), load, options=options)


LATENCIES = ["ttft_s", "tpot_s", "itl_s", "e2e_s"]
KEYS = [*LATENCIES, "completed", "failed", "input_tokens", "output_tokens", "duration_s", "request_throughput",
        "output_throughput", "warnings", "gpu", "source", "error", "preemptions", "prefix_hit_rate"]  # fmt: skip
"""What `labkit simulate --json` promises (the design's section on the command line)."""


def test_simulate_prints_one_object_with_the_promised_keys() -> None:
    """At light load: all keys, the counts of what was asked for, latencies with a p99 of null, and no TTFT withheld."""
    command = "simulate --gpu h100-sxm --rate 2 --requests 20 --input-tokens 300 --output-tokens 50 --json"
    done = subprocess.run(
        [sys.executable, "-m", "labkit", *command.split(), "--", "--max-num-batched-tokens", "1024"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    assert set(KEYS) <= set(answer)
    assert (answer["completed"], answer["failed"]) == (20, 0)
    assert (answer["input_tokens"], answer["output_tokens"]) == (20 * 300, 20 * 50)
    assert (answer["gpu"], answer["error"]["region"], answer["warnings"]) == ("h100-sxm", "below 50%", [])
    assert answer["prefix_hit_rate"] == 0
    for name in LATENCIES:
        assert answer[name]["p99"] is None
        assert 0 < answer[name]["p50"] <= answer[name]["p90"]
    assert answer["ttft_s"]["mean"] + 49 * answer["tpot_s"]["mean"] == pytest.approx(answer["e2e_s"]["mean"])


def test_simulate_tells_no_ttft_in_overload(capfd: pytest.CaptureFixture[str]) -> None:
    """Far above capacity TTFT and E2E are null with a warning; the throughput and the time per token stay."""
    command = "simulate --gpu h100-sxm --rate 500 --requests 60 --input-tokens 300 --output-tokens 20 --json"
    with pytest.raises(SystemExit) as ended:
        main.main([*command.split(), "--", "--max-num-seqs", "8"])
    assert ended.value.code in (None, 0)
    answer = json.loads(capfd.readouterr().out)
    nothing = {"mean": None, "p50": None, "p90": None, "p99": None}
    assert answer["ttft_s"] == answer["e2e_s"] == nothing
    assert answer["tpot_s"]["mean"] > 0
    assert answer["load_share"] > 2
    assert any("overload" in warning for warning in answer["warnings"])
