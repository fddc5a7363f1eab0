"""Lab 02: admission of requests (exercise), engines that share a card, and evidence on memory and preemption."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from labkit.errors import require
from labkit.files import data_path
from labkit.load import workloads
from labkit.modelled import Drive, ModelledGpu, shape_of
from labkit.modelled.replica import Moment
from labkit.modelled.settings import WORKSPACE_BYTES
from labkit.models import architecture
from labkit.models.examples import example_models
from labkit.serving import vllm_log
from labkit.session import LabSession
from labkit.teaching import solution
from labkit.theory import kv_allocation, kv_size
from labkit.theory.kv_allocation import MemorySnapshot, Policy

GIB = 2**30
OTHER_GIB = WORKSPACE_BYTES / GIB  # as the modelled engine assumes; a real log states it
DEFAULT_SHARE = 0.92  # vLLM 0.32's gpu_memory_utilization
Parts = list[tuple[str, float]]


def _overtaking(waiting: list[tuple[int, int]], free: int, running: int, most: int, size: int) -> int:
    admitted = 0
    for prompt, _ in waiting:
        needed = -(-prompt // size)
        if running + admitted < most and needed <= free:
            free -= needed
            admitted += 1
    return admitted


def _taking_nothing(waiting: list[tuple[int, int]], free: int, running: int, most: int, size: int) -> int:
    admitted = 0
    for prompt, _ in waiting:
        if running + admitted == most or -(-prompt // size) > free:
            break
        admitted += 1
    return admitted


def admit(waiting: list[tuple[int, int]], free_blocks: int, running: int, max_num_seqs: int, block_size: int) -> int:
    admitted = 0
    for prompt_tokens, _max_tokens in waiting:
        needed = -(-prompt_tokens // block_size)
        if running + admitted == max_num_seqs or needed > free_blocks:
            break
        free_blocks -= needed
        admitted += 1
    return admitted


solution(
    "02.admit",
    admit,
    unit="requests",
    cases=(
        ([(56, 48)] * 6, 15, 0, 8, 32),
        ([(40, 200), (300, 10), (10, 10)], 8, 0, 8, 32),
        ([(16, 16)] * 9, 100, 2, 6, 16),
        ([(33, 1), (33, 1), (64, 1)], 6, 0, 8, 32),
        ([(500, 12)], 3, 0, 4, 128),
        ([(40, 20), (24, 40)], 2, 1, 8, 32),
        ([], 5, 0, 4, 16),
        ([(64, 1)] * 3, 3, 0, 8, 32),
    ),
    wrong={
        "blocks reserved for the whole answer": [
            lambda waiting, free, running, most, size: admit(
                [(prompt + out, 0) for prompt, out in waiting], free, running, most, size
            ),
            lambda waiting, free, running, most, size: admit(
                [(prompt + out - 1, 0) for prompt, out in waiting], free, running, most, size
            ),
        ],
        "a small request admitted out of order": _overtaking,
        "tokens instead of blocks": lambda waiting, free, running, most, size: admit(
            waiting, free * size, running, most, 1
        ),
        "blocks rounded down": lambda waiting, free, running, most, size: admit(
            [(prompt // size * size, 0) for prompt, _ in waiting], free, running, most, size
        ),
        "the running requests forgotten": lambda waiting, free, _running, most, size: admit(
            waiting, free, 0, most, size
        ),
        "a free block allocated twice": _taking_nothing,
    },
)


# --- sizes ---


def check_sizes(lab: LabSession, *, positions: int) -> None:
    """Raise a UsageError for sizes with which nothing would be preempted, or the engine would not start.

    `positions`: the most tokens that the model supports."""
    sizes = lab.parameters
    block_size, length, tiny = sizes["block_size"], sizes["max_model_len"], sizes["tiny_blocks"]
    kv_size.check_block_size(block_size, gpu=bool(lab.machine.gpus))
    too_long = f"max_model_len is {length:,}; the model supports {positions:,} positions"
    require(length <= positions, too_long, fix=f"give max_model_len at most {positions:,}")
    longest = kv_size.blocks_for_tokens(length, block_size=block_size)
    together = sizes["prompt_tokens"] + sizes["output_tokens"]
    cut = f"a prompt and an answer of {together:,} tokens are longer than max_model_len, {length:,}"
    require(together <= length, cut, fix="lower prompt_tokens or output_tokens, or raise max_model_len")
    too_few = f"{tiny:,} blocks of {block_size} cannot hold a request of max_model_len {length:,}"
    require(tiny > longest, too_few, fix=f"give at least {longest + 1:,} blocks: vLLM keeps one for itself")
    blocks = kv_size.blocks_for_tokens(together - 1, block_size=block_size)
    enough = f"{sizes['requests']} requests of {blocks} blocks fit into {tiny - 1} at once: nothing would be preempted"
    require(sizes["requests"] * blocks >= tiny, enough, fix="send more requests, or give fewer tiny_blocks")


def kv_table(*, memory_bytes: int, max_model_len: int) -> Any:
    """Return what public models store per token, and how many requests of `max_model_len` tokens fit (a DataFrame)."""
    import pandas as pd

    known = {name: example_models()[name] for name in ("Llama-2-7B", "Llama-3.1-8B", "Llama-3.1-70B")}
    known |= {path.stem: architecture(path) for path in sorted(data_path("kv_configs").glob("*.json"))}
    rows = {}
    for name, model in known.items():
        plan = kv_size.describe(model, memory_bytes=memory_bytes, block_size=16, max_model_len=max_model_len)
        rows[name] = {
            "layers": model.layers,
            "KiB per token": round(plan.bytes_per_token / 1024, 1),
            "MiB per request in windows": round(plan.window_bytes_per_sequence / 2**20),
            "layers with a state": model.state_layers,
            f"requests of {max_model_len:,} tokens in {memory_bytes // GIB} GiB": plan.max_concurrency
            and round(plan.max_concurrency, 1),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def card_memory(gpu: ModelledGpu) -> dict[str, tuple[Parts, int]]:
    """Return the parts of a card's memory in GiB and the total tokens of KV cache, for each way to share the card."""
    shape, total = shape_of(gpu.folder), gpu.card.memory_bytes

    def split(*shares: float, weights: float = 1.0, keys: float = 1.0) -> tuple[Parts, int]:
        size = int(shape.weight_bytes * weights)
        engines = [
            kv_size.EngineShare(utilization=share, weights_bytes=size, other_bytes=int(OTHER_GIB * GIB))
            for share in shares
        ]
        parts: Parts = []
        tokens = 0
        for budget in kv_size.start_in_turn(engines, total_bytes=total):
            if not budget.refused:
                parts += [
                    ("weights", size / GIB),
                    ("activations, graphs", OTHER_GIB),
                    ("KV cache", budget.kv_bytes / GIB),
                ]
                tokens += int(budget.kv_bytes / (shape.kv_bytes_per_token * keys))
        return [*parts, ("free", max(0.0, total / GIB - sum(value for _, value in parts)))], tokens

    return {
        "one engine": split(DEFAULT_SHARE),
        "fp8 weights": split(DEFAULT_SHARE, weights=0.5),
        "fp8 weights, fp8 KV cache": split(DEFAULT_SHARE, weights=0.5, keys=0.5),
        "a share of 0.46": split(0.46),
        "two engines, 0.46 each": split(0.46, 0.46),
        "two at the default: one is refused": split(DEFAULT_SHARE, DEFAULT_SHARE),
    }


def card_title(rows: Mapping[str, tuple[Parts, int]]) -> str:
    """Return the chart's title: the KV cache of two engines relative to that of one."""
    two, one = rows["two engines, 0.46 each"][1], rows["one engine"][1]
    return f"Two engines hold {two / one:.0%} of one engine's KV cache (computed)"


def card_evidence(lab: LabSession, rows: Mapping[str, tuple[Parts, int]], gpu: ModelledGpu) -> None:
    """Record evidence on C16, C47 and C65, from the card's memory and from public models' sizes."""
    from vllm.config import CacheConfig

    one, half, two = (rows[name][1] for name in ("one engine", "a share of 0.46", "two engines, 0.46 each"))
    gpu_gib = gpu.card.memory_gib
    refused = rows["two at the default: one is refused"][1] == one
    default = CacheConfig().gpu_memory_utilization
    lab.evidence("C16", default_utilization=default, claimed_tokens=one, low_tokens=half, second_refused=refused)
    lab.evidence("C16", gpu_gib=gpu_gib)
    lab.evidence("C47", models_in_engine=1, one_engine_tokens=one, two_engines_tokens=two, gpu_gib=gpu_gib)
    sizes_gb = [(known.weight_bytes or 0) / 1e9 for known in example_models().values()]
    inside = sum(10 <= size <= 100 for size in sizes_gb)
    lab.evidence("C65", models=len(sizes_gb), inside=inside, smallest_gb=min(sizes_gb), largest_gb=max(sizes_gb))


# --- paging and preemption ---


def two_ways(*, seed: int, max_model_len: int, block_size: int) -> dict[str, list[MemorySnapshot]]:
    """The same six requests in the same memory, contiguous and paged (a model)."""
    means = {"mean_prompt_tokens": max_model_len / 6, "mean_output_tokens": max_model_len / 8}
    few = kv_allocation.stream(6, seed=seed, spread=0.6, per_step=1, max_model_len=max_model_len, **means)
    memory = {"memory_tokens": 2 * max_model_len, "max_model_len": max_model_len, "block_size": block_size}
    policies = {"contiguous": Policy.RESERVE_MAX, "paged": Policy.PAGED}
    return {name: kv_allocation.allocate(few, policy=policy, **memory) for name, policy in policies.items()}


def reserved_share(snapshots: Sequence[MemorySnapshot], reserve: int) -> float:
    """The share that would be empty if each running request had `reserve` tokens of memory."""
    holdings = [holding for snapshot in snapshots for holding in snapshot.holdings.values()]
    return 1 - sum(holding.stored_tokens for holding in holdings) / (reserve * len(holdings))


def prompts(tokenizer: Any, n: int, *, tokens: int, seed: int) -> list[list[int]]:
    """Return `n` prompts of `tokens` token ids without a shared prefix."""
    texts = workloads.chat(n, seed=seed, prompt_words=max(20, tokens)).requests
    return [list(tokenizer.encode(request.prompt))[:tokens] for request in texts]


def preemption_counter(llm: Any) -> float:
    """The engine's own counter, which `/metrics` shows as vllm:num_preemptions_total."""
    return float(next(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions"))


def warning_evidence(lab: LabSession, log: str, preemptions: int, version: str) -> None:
    """C21: whether the engine's log warns of preemption; prints the count."""
    lines = [line for line in log.splitlines() if re.search("preempt|sequence group", line, re.IGNORECASE)]
    warnings = [line for line in lines if "Preemptions:" not in line]
    statistics = vllm_log.read(log).of("statistics")
    tell = any("Preemptions" in line.text for line in statistics)
    lab.evidence("C21", preemptions=preemptions, warnings=len(warnings), statistics_tell=tell, vllm_version=version)
    print(f"{preemptions} preemptions; lines in the log that warn of one: {len(warnings)}")


def outcome(driven: Drive) -> dict[str, float]:
    """Return the results of one setting, for the lab's table."""
    records = driven.result.records
    return {
        "preemptions": driven.preemptions,
        "running at most": max(moment.running for moment in driven.moments[0]),
        "seconds for all": round(driven.result.duration_s, 1),
        "slowest TTFT, s": round(max(record.ttft_s or 0.0 for record in records), 1),
        "longest gap, s": round(max(gap for record in records for gap in record.itl_s), 2),
    }


def remedy_evidence(lab: LabSession, outcomes: Mapping[str, Mapping[str, float]]) -> None:
    """Record evidence on C22: preemptions with each remedy, and the time relative to the unchanged settings."""
    by_name = {name.replace(" ", "_"): row for name, row in outcomes.items()}
    lab.evidence("C22", before=by_name.pop("unchanged")["preemptions"])
    lab.evidence("C22", **{name: row["preemptions"] for name, row in by_name.items()})
    base_s = outcomes["unchanged"]["seconds for all"]
    for name in ("more_blocks", "fewer_sequences"):
        lab.evidence("C22", **{f"{name}_time": round(by_name[name]["seconds for all"] / base_s, 3)})


def paging_evidence(
    lab: LabSession, chats: Sequence[MemorySnapshot], crowded: Sequence[Moment], *, reserve: int
) -> None:
    """Record evidence on C03: the empty share with paging, and the steps after which a request waits despite room."""
    worst, size = kv_allocation.worst_empty_tokens(chats), 16
    room = 0.15  # of the crowded cache: three of its requests at their full length
    pairs = pairwise(crowded)
    holes = sum(
        0 < one.waiting <= after.waiting and max(one.kv_usage, after.kv_usage) < 1 - room for one, after in pairs
    )
    lab.evidence("C03", empty_share=round(kv_allocation.waste_share(chats), 5), worst_empty_tokens=worst, holes=holes)
    lab.evidence("C03", worst_over_block=worst / size, block_size=size)
    lab.evidence("C03", contiguous_share=round(reserved_share(chats, reserve), 5))


def length_evidence(lab: LabSession, message: str, fitted: Any) -> None:
    """Record evidence on C23: a length beyond the cache is an error with the longest possible length, and a longer
    prompt is refused."""
    from vllm.exceptions import VLLMClientError

    stated = re.search(r"maximum model length is (\d+)", message)
    fits = fitted.llm_engine.vllm_config.model_config.max_model_len
    try:
        fitted.generate({"prompt_token_ids": list(range(1000, 1001 + fits))}, use_tqdm=False)
        refused = False
    except (ValueError, VLLMClientError):
        refused = True
    longest = int(stated[1]) if stated else 0
    lab.evidence("C23", refused_at_start=bool(message), longest_stated=longest, long_prompt_refused=refused)
    lab.exact("longest_length_error_and_fit", [longest, fits])
    print(
        f"longest length that fits: {longest:,} by the error, {fits:,} by `--max-model-len auto`; "
        f"a longer prompt is rejected: {refused}"
    )
