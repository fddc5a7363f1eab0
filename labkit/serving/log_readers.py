"""Explain and recompute vLLM's log lines about memory.

Their wording is in vLLM's worker/ and executor/ (V0), v1/worker/cpu_worker.py and gpu_worker.py (budgets),
v1/core/kv_cache_utils.py (blocks, length) and v1/metrics/loggers.py (statistics).
"""

import re
from itertools import product
from typing import TYPE_CHECKING

from labkit.serving.log_engine import (
    GIB,
    HALF_A_DIGIT,
    KV_BYTES,
    NUMBER,
    UNSET,
    WHOLE,
    Engine,
    Explanation,
    close,
    reads,
    whole_number,
)

if TYPE_CHECKING:
    from labkit.models import Architecture

SHOWN = (
    "max_model_len", "max_seq_len", "block_size", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization",
    "dtype", "kv_cache_dtype", "kv_cache_memory_bytes", "num_gpu_blocks_override", "tensor_parallel_size",
    "pipeline_parallel_size", "decode_context_parallel_size", "data_parallel_size", "quantization", "enforce_eager",
    "speculative_config", "enable_lora",
)  # fmt: skip
LARGER_CACHE = "raise gpu_memory_utilization, or set enforce_eager to save the memory of the CUDA graphs"
LARGER_SHARE = (
    "raise gpu_memory_utilization if nothing else uses the GPU, lower max_num_batched_tokens or max_num_seqs, or "
    "spread the model over more GPUs (tensor_parallel_size)"
)


# --- settings ---


@reads("arguments", r"(?:non-default args: |args: Namespace)([{(].*?[})](?=\s|$)|.*)")
def _arguments(match: re.Match[str], engine: Engine) -> Explanation:
    return _settings(match[1], engine, "The given settings that affect memory.")


@reads("engine", r"Initializing an? (?:V\d )?LLM engine(?: \(v[^)]*\))? with config: (.*)")
def _engine(match: re.Match[str], engine: Engine) -> Explanation:
    engine.device = "CPU" if "device_config=cpu" in match[1] else engine.device
    return _settings(match[1], engine, "The engine's settings that affect memory.")


def _settings(text: str, engine: Engine, meaning: str) -> Explanation:
    matches = {name: re.search(rf"(?<!\w){name}'?[=:] ?'?([^,'\s)}}]+)", text) for name in SHOWN}
    settings = {name: match[1].replace("{", "...") for name, match in matches.items() if match}
    settings = {name: value for name, value in settings.items() if value not in UNSET}
    engine.settings |= settings
    shown = ", ".join(f"{name}={value}" for name, value in settings.items())
    return Explanation(meaning if shown else "No setting that affects memory.", shown=shown or "-")


@reads("dtype", r"(?:Up|Down)?[cC]asting torch\.(\w+) to torch\.(\w+)")
def _dtype(match: re.Match[str], engine: Engine) -> Explanation:
    engine.settings["dtype"] = match[2]
    meaning = f"Weights and KV cache are kept as {match[2]}, not as {match[1]}."
    return Explanation(meaning, _token_bytes(engine))


@reads("kv_dtype", r"Using (\w+) data type to store kv cache")
def _kv_dtype(match: re.Match[str], engine: Engine) -> Explanation:
    engine.settings["kv_cache_dtype"] = match[1]
    return Explanation(f"The cache stores numbers as {match[1]}, independently of the weights.", _token_bytes(engine))


def _token_bytes(engine: Engine) -> str:
    plan = engine.plan(GIB * GIB, engine.block_sizes[0], 1)
    size = engine.kv_dtype_bytes
    return f"{size} bytes per number: {plan.bytes_per_token:,} bytes of KV cache per token" if plan and size else ""


@reads("hybrid", r"[Ss]etting attention block size to (\d{1,12}) tokens to ensure that attention page size is >= mamba")
def _hybrid(match: re.Match[str], engine: Engine) -> Explanation:
    engine.hybrid = True
    return Explanation(
        f"Some layers keep a state instead of keys and values; a block of {match[1]} tokens is as large."
    )


@reads("max_model_len", r"Using max model len (\d{1,12})")
def _max_model_len(match: re.Match[str], engine: Engine) -> Explanation:
    engine.settings["max_model_len"] = match[1]
    return Explanation(
        "The most tokens that a request may have, prompt and answer together. Nothing is reserved for it."
    )


# --- weights ---


@reads("checkpoint", rf"Checkpoint size: {NUMBER} GiB")
def _checkpoint(match: re.Match[str], engine: Engine) -> Explanation:
    return _weights(match[1], "The size of the weights on disk.", engine, size=None, gpus=1, within=0.01, on_disk=True)


@reads("weights", rf"(?:Loading model weights|Model loading) took {NUMBER} Gi?B")
def _loaded(match: re.Match[str], engine: Engine) -> Explanation:
    meaning = "What the weights take in the memory of each GPU: the same for one user as for a hundred."
    size = KV_BYTES.get(engine.settings.get("dtype", "").removeprefix("torch."))
    return _weights(match[1], meaning, engine, size=size, gpus=engine.tensor_parallel, within=0.02)  # and buffers


def _weights(
    gib: str, meaning: str, engine: Engine, *, size: int | None, gpus: int, within: float, on_disk: bool = False
) -> Explanation:
    """`size`: bytes per number, default the config's; `gpus` share the weights."""
    model = engine.architecture
    if model is None or model.parameters is None:
        return Explanation(meaning)
    if reason := _not_recomputed(engine, model, on_disk=on_disk):
        return Explanation(meaning, f"not recomputed: {reason}")
    size = size or model.dtype_bytes
    expected = model.parameters * size / gpus / GIB
    split = f" / {gpus} GPUs" if gpus > 1 else ""
    arithmetic = f"{model.parameters:,} parameters x {size} bytes{split} = {expected:.2f} GiB"
    return Explanation(meaning, arithmetic, close(expected, gib, within * expected + 2 * HALF_A_DIGIT))


def _not_recomputed(engine: Engine, model: "Architecture", *, on_disk: bool) -> str:
    """Return why the weights, `on_disk` or on a GPU, are not parameters x bytes / GPUs, or ""."""
    method = engine.settings.get("quantization")
    in_16_bits = 2 * (model.parameters or 0)
    stored_otherwise = model.served_bytes is not None and abs(model.served_bytes - in_16_bits) > in_16_bits / 100
    reasons = {
        f"quantised with {method}": bool(method),
        "split over stages": engine.size("pipeline_parallel_size") not in (None, 1),
        "data-parallel ranks may share experts": not on_disk and engine.size("data_parallel_size") not in (None, 1),
        "speculative decoding may load a draft model": not on_disk and "speculative_config" in engine.settings,
        "adapters take memory too": not on_disk and engine.settings.get("enable_lora") == "True",
        "the weights are stored in other types than 16 bits": stored_otherwise,
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


# --- memory for the cache ---


def _cache_memory(gib: str, engine: Engine, meaning: str, *, exact: bool = False) -> Explanation:
    """Store this rank's memory for the cache, and compute its blocks."""
    if (size := float(gib)) < 0:
        return Explanation(f"No start: {-size:.2f} GiB are missing even without a cache. {meaning}", fix=LARGER_SHARE)
    off = 0 if exact else HALF_A_DIGIT
    least, most = (max(0, int((size + sign * off) * GIB)) for sign in (-1, 1))
    engine.memory[engine.worker.engine, engine.worker.label] = least, most
    block = engine.block_sizes[0]
    plan = engine.plan(GIB * GIB, block, 1)
    if plan is None:
        return Explanation(meaning)
    low, high = least // plan.bytes_per_block, most // plan.bytes_per_block
    count = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return Explanation(
        meaning, f"{gib} GiB / {plan.bytes_per_block:,} bytes per block of {block} tokens = {count} blocks"
    )


@reads("cpu_memory", rf"Explicitly set \({NUMBER}/{NUMBER}\) GiB for KV cache")
def _cpu_given(match: re.Match[str], engine: Engine) -> Explanation:
    engine.device = "CPU"
    meaning = (
        f"The size set for the cache (by VLLM_CPU_KVCACHE_SPACE or kv_cache_memory_bytes), of {match[2]} GiB of "
        "RAM; gpu_memory_utilization has no effect."
    )
    return _cache_memory(match[1], engine, meaning, exact=float(match[1]).is_integer())


@reads(
    "cpu_auto",
    rf"Auto set \({NUMBER}/{NUMBER}\) GiB for KV cache.* with {NUMBER} GiB requested.*\. {NUMBER} GiB memory",
)
def _cpu_auto(match: re.Match[str], engine: Engine) -> Explanation:
    engine.device = "CPU"
    meaning = (
        f"gpu_memory_utilization gives this worker {match[3]} GiB of RAM; weights and other memory took {match[4]}, "
        "and the cache gets the rest."
    )
    _cache_memory(match[1], engine, meaning)
    rest = float(match[3]) - float(match[4])
    return Explanation(meaning, f"{match[3]} - {match[4]} = {rest:.2f} GiB", close(rest, match[1], 3 * HALF_A_DIGIT))


@reads("gpu_memory", rf"Available KV cache memory: {NUMBER} GiB")
def _available(match: re.Match[str], engine: Engine) -> Explanation:
    return _cache_memory(match[1], engine, "What weights and everything else leave of this engine's share of the GPU.")


@reads("gpu_given", rf"Initial free memory:? {NUMBER} GiB,? reserved {NUMBER} GiB memory for KV Cache")
def _gpu_given(match: re.Match[str], engine: Engine) -> Explanation:
    meaning = f"kv_cache_memory_bytes gives the cache {match[2]} GiB; gpu_memory_utilization has no effect."
    return _cache_memory(match[2], engine, meaning)


@reads(
    "profile",
    rf"Memory profiling results: .*?total_gpu_memory={NUMBER}GiB .*?peak_torch_memory={NUMBER}GiB "
    rf".*?non_torch_memory={NUMBER}GiB kv_cache_size={NUMBER}GiB gpu_memory_utilization={NUMBER}",
)
def _profile(match: re.Match[str], engine: Engine) -> Explanation:
    total, peak, other, _, share = map(float, match.groups())
    rest = total * share - peak - other
    meaning = f"Of the share of {total} GiB, weights and activations took {peak} at their peak and CUDA {other}."
    memory = _cache_memory(match[4], engine, f"{meaning} The cache has {match[4]} GiB.")
    arithmetic = f"{share} x {total} - {peak} - {other} = {rest:.2f} GiB"
    return Explanation(memory.meaning, arithmetic, close(rest, match[4], 5 * HALF_A_DIGIT), memory.fix)


@reads("share", rf"can use total_gpu_memory \({NUMBER}GiB\) x gpu_memory_utilization \({NUMBER}\) = {NUMBER}GiB")
def _share(match: re.Match[str], engine: Engine) -> Explanation:
    share = float(match[1]) * float(match[2])
    arithmetic = f"{match[1]} x {match[2]} = {share:.2f} GiB"
    engine.share_gib = float(match[3])
    near = close(share, match[3], float(match[1]) * HALF_A_DIGIT + HALF_A_DIGIT)  # the share also has two decimals
    return Explanation(f"This engine may have {match[3]} GiB of the GPU.", arithmetic, near)


@reads(
    "parts",
    rf"model weights take {NUMBER}GiB; non_torch_memory takes {NUMBER}GiB; PyTorch activation peak memory takes "
    rf"{NUMBER}GiB; the rest of the memory reserved for KV Cache is {NUMBER}GiB",
)
def _parts(match: re.Match[str], engine: Engine) -> Explanation:
    meaning = f"Weights take {match[1]} GiB, CUDA {match[2]} and activations {match[3]}; the cache gets the rest."
    memory = _cache_memory(match[4], engine, meaning)
    if engine.share_gib is None:
        return memory
    rest = engine.share_gib - sum(float(part) for part in match.groups()[:3])
    arithmetic = f"{engine.share_gib} - {match[1]} - {match[2]} - {match[3]} = {rest:.2f} GiB"
    return Explanation(memory.meaning, arithmetic, close(rest, match[4], 5 * HALF_A_DIGIT), memory.fix)


@reads(
    "gpu_usage",
    rf"Free memory on device \S*\s?\({NUMBER}/{NUMBER} GiB\) on startup\. Desired GPU memory utilization is "
    rf"\({NUMBER}, {NUMBER} GiB\)\. Actual usage is {NUMBER} GiB for (?:consumed memory \([^)]*\)|weights?), "
    rf"{NUMBER} GiB for peak activation,(?: {NUMBER} GiB for non-torch memory,)? and {NUMBER} GiB for CUDAGraph"
    rf"(?:.*Current kv cache memory in use is {NUMBER} (GiB|bytes))?",
)
def _gpu_usage(match: re.Match[str], _engine: Engine) -> Explanation:
    _, total, share, budget, consumed, peak, other, graphs, cache = (float(text or 0) for text in match.groups()[:-1])
    cache = cache / GIB if match[10] == "bytes" else cache
    meaning = (
        f"Of a GPU with {total} GiB this engine may use {budget}: {consumed} went to weights and context, {peak} to "
        f"activations, {graphs} to CUDA graphs" + (f", {other} to CUDA itself." if match[7] else ".")
    )
    rest = budget - consumed - peak - other
    arithmetic = f"{share} x {total} = {share * total:.2f} GiB; less weights and peak: {rest:.2f} GiB for the cache"
    agrees = close(share * total, match[4], 3 * HALF_A_DIGIT)
    return Explanation(meaning, arithmetic, agrees and (match[9] is None or close(rest, str(cache), 6 * HALF_A_DIGIT)))


@reads("graphs", rf"Graph capturing finished in \d+ secs, took {NUMBER} GiB")
def _graphs(match: re.Match[str], _engine: Engine) -> Explanation:
    return Explanation(f"CUDA graphs take {match[1]} GiB beside the cache; enforce_eager saves them and costs speed.")


# --- blocks and tokens ---


@reads("override", r"Overriding num_gpu_blocks=(\d{1,12}) with num_gpu_blocks_override=(\d{1,12})")
def _override(match: re.Match[str], engine: Engine) -> Explanation:
    fits, override = whole_number(match[1]), whole_number(match[2])
    plans = engine.plans(1, engine.block_sizes[0])
    engine.overridden = engine.blocks = override
    meaning = f"The memory would hold {fits:,} blocks; num_gpu_blocks_override sets {override:,}."
    if plans is None:
        return Explanation(meaning)
    low, high = plans[0].blocks, plans[1].blocks
    return Explanation(meaning, f"the memory holds {low:,} to {high:,} blocks", low <= fits <= high)


@reads("blocks", r"# (\w{2,9}) blocks: (\d{1,12})(?:, # CPU blocks: (\d{1,12}))?")
def _blocks(match: re.Match[str], engine: Engine) -> Explanation:
    count = whole_number(match[2])
    if count == 0:
        return Explanation("No start: the share leaves less than one block for the cache.", fix=LARGER_SHARE)
    plans_of = {size: engine.plans(1, size) for size in engine.block_sizes}
    fitting = [size for size, plans in plans_of.items() if plans and plans[0].blocks <= count <= plans[1].blocks]
    size = fitting[0] if fitting else engine.block_sizes[0]
    engine.blocks = count
    engine.set_tokens(count * size)
    swap = f"; {whole_number(match[3]):,} more in RAM, for requests that are swapped out" if match[3] else ""
    meaning = f"{count:,} blocks of {size} tokens: room for {count * size:,} tokens of all requests together{swap}."
    if (plans := plans_of[engine.block_sizes[0]]) is None:
        return Explanation(meaning)
    low, high = plans
    recomputed = f"the memory holds {low.blocks:,} to {high.blocks:,} blocks"
    return Explanation(meaning, recomputed, engine.verdict(fits=bool(fitting), fewer=count < low.blocks))


@reads(
    "cache_size",
    rf"\b(\w{{2,9}})(?: \+ host)? KV cache size: {WHOLE} tokens"
    rf"(?:, Maximum concurrency for ([1-9][\d,]{{0,19}}) tokens per request: {NUMBER}x)?",
)
def _cache_size(match: re.Match[str], engine: Engine) -> Explanation:
    engine.device = "CPU" if match[1] == "CPU" else engine.device
    tokens = whole_number(match[2])
    engine.set_tokens(tokens)
    meaning = f"Room for {tokens:,} tokens of all requests together{_sized_by(engine)}."
    length = whole_number(match[3] or "0") or engine.size("max_model_len") or engine.size("max_seq_len") or tokens
    # Without a concurrency, each rank logged its own line; else there is one for all.
    ranks = 1 if match[3] else max(1, len(engine.rank_memory()))
    recomputed, agrees = _recomputed(tokens, length, engine, ranks=ranks)
    if not match[3]:
        return Explanation(meaning, recomputed, agrees)
    divided, same = _divided(tokens, length, match[4], engine)
    verdicts = [verdict for verdict in (agrees, same) if verdict is not None]
    both = "; ".join(filter(None, (recomputed, divided)))
    return Explanation(f"{meaning} {_worst_case(length, match[4])}", both, all(verdicts) if verdicts else None)


def _sized_by(engine: Engine) -> str:
    """Name the rank with the least memory, which sizes every rank's cache."""
    ranks = engine.rank_memory()
    if not ranks or (len(ranks) < 2 and engine.all_ranks_known()):
        return ""
    if not engine.all_ranks_known():
        return f" (the log has the memory of {len(ranks)} of {engine.tensor_parallel} ranks; the smallest one decides)"
    (smallest, memory), largest = ranks[0], ranks[-1][1]
    if memory == largest:
        return f", the same on each of {len(ranks)} ranks"
    gib = sum(memory) / 2 / GIB
    return f"; every rank has as many as the smallest, {smallest or 'the first'} with {gib:.2f} GiB"


def _recomputed(tokens: int, length: int, engine: Engine, *, ranks: int) -> tuple[str, bool | None]:
    """Compute the tokens that one of the `ranks` smallest ranks holds, in the block size that fits."""
    if engine.obstacle:
        return f"not recomputed: {engine.obstacle}", None
    closest = None
    for rank, size in product(range(ranks), engine.block_sizes):
        if (plans := engine.plans(length, size, rank=rank)) is None:
            return "", None
        low, high = plans
        closest = closest or plans
        logged = (low.logged_tokens or 0) <= tokens <= (high.logged_tokens or 0)
        if logged or low.blocks * size <= tokens <= high.blocks * size:
            engine.settings["block_size"] = str(size)
            blocks = round(tokens * low.blocks_per_sequence / length) if logged else tokens // size
            engine.blocks = blocks
            return f"{blocks:,} blocks x {size} = {blocks * size:,} tokens", True
    low, high = closest  # type: ignore[misc]  # there is at least one size
    recomputed = f"the memory holds {low.tokens:,} to {high.tokens:,} tokens"
    if (verdict := engine.verdict(fits=False, fewer=tokens < low.tokens)) is None:
        recomputed += " on the ranks in the log, as vLLM 0.32 counts them"
    return recomputed, verdict


def _divided(tokens: int, length: int, times: str, engine: Engine) -> tuple[str, bool | None]:
    """Divide tokens by the length of a request. This is inconclusive if some layers keep fewer tokens."""
    quotients = [tokens / length, *(tokens / size / -(-length // size) for size in engine.block_sizes)]
    near = [value for value in quotients if close(value, times, HALF_A_DIGIT + 1 / length)]
    division = f"{tokens:,} / {length:,} = {(near or quotients)[0]:.2f}x"
    if near or engine.keeps_all_tokens:
        return division, bool(near)
    return f"{division}, not {times}x: some layers keep a window or a state, so the two cannot be divided", None


def _worst_case(length: int, times: str) -> str:
    return f"If every request had {length:,} tokens, {times} would fit at once: a worst case, not a limit."


@reads("concurrency", rf"Maximum concurrency for ([1-9][\d,]{{0,19}}) tokens per request: {NUMBER}x")
def _concurrency(match: re.Match[str], engine: Engine) -> Explanation:
    length, meaning = whole_number(match[1]), _worst_case(whole_number(match[1]), match[2])
    if engine.tokens is None:
        return Explanation(meaning)
    if engine.has("blocks") and engine.blocks:  # the tokens assumed the default block size
        counts = {size: engine.blocks * size for size in (engine.tokens // engine.blocks, *engine.block_sizes)}
        fitting = [count for count in counts.values() if close(count / length, match[2], HALF_A_DIGIT)]
        if fitting and fitting[0] != engine.tokens:
            engine.sizes.pop(engine.worker.engine, None)
            engine.set_tokens(fitting[0])
    return Explanation(meaning, *_divided(engine.tokens, length, match[2], engine))


@reads("auto_fit", r"Auto-fit max_model_len: reduced from (\d{1,12}) to (\d{1,12})")
def _auto_fit(match: re.Match[str], engine: Engine) -> Explanation:
    length, fits = whole_number(match[1]), whole_number(match[2])
    meaning = f"max_model_len=-1: the longest request that fits the cache has {fits:,} tokens, not {length:,}."
    return Explanation(meaning, *longest_request(fits, length, engine))


def longest_request(fits: int, length: int, engine: Engine) -> tuple[str, bool | None]:
    """Compute the longest request that fits the cache without the block that vLLM keeps."""
    bounds = [plans for size in engine.block_sizes if (plans := engine.plans(length, size))]
    if not bounds:
        return "", None
    fitting = [(low, high) for low, high in bounds if low.longest_tokens <= fits <= high.longest_tokens]
    low, high = (fitting or bounds)[0]
    blocks = f"{low.blocks:,}" if low.blocks == high.blocks else f"{low.blocks:,} to {high.blocks:,}"
    recomputed = f"({blocks} blocks - 1 that vLLM keeps) x {low.block_size}: {high.longest_tokens:,} tokens at most"
    return recomputed, engine.verdict(fits=bool(fitting), fewer=fits < low.longest_tokens)


@reads(
    "statistics",
    r"Running: (\d+) reqs, (?:Swapped: (\d+) reqs, )?(?:Waiting|Pending): (\d+) reqs,(?:.*?Preemptions: (\d+),)?"
    rf".*?KV cache usage: {NUMBER}%",
)
def _statistics(match: re.Match[str], engine: Engine) -> Explanation:
    running, swapped, waiting, preemptions, percent = match.groups()
    preempted = f"{preemptions} preemptions" if preemptions else "preemptions not logged"
    moved = f", {swapped} are swapped out" if swapped else ""
    meaning = f"{running} requests run and {waiting} wait{moved}; {percent}% of the blocks are allocated; {preempted}."
    usage = float(percent) / 100
    # Up to 0.9, vLLM divides by all blocks; later versions by those that requests can have.
    counts = [count for count in ((engine.blocks or 0) - 1, engine.blocks or 0) if count > 0]
    if not counts:
        return Explanation(meaning)
    usable = min(counts, key=lambda count: abs(round(usage * count) / count - usage))
    held = round(usage * usable)
    arithmetic = f"{held:,} of {usable:,} blocks = {held / usable:.1%}"
    # With a thousand blocks, some number of them matches any percentage.
    return Explanation(meaning, arithmetic, abs(held / usable - usage) <= 0.0005 + 1e-9 if usable < 1000 else None)


@reads("preempted", r"Sequence group \S+ is preempted by \S+ mode because there is not enough KV cache space")
def _preempted(_match: re.Match[str], _engine: Engine) -> Explanation:
    return Explanation("The cache was full: a request was preempted and will be recomputed later.", fix=LARGER_CACHE)
