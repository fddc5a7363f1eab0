"""Reads what vLLM 0.32's log says of memory: what each line says, means, and should say.

Where in vLLM: config/model.py (types), model_loader/weight_utils.py (checkpoint), v1/worker/cpu_worker.py and
gpu_worker.py (budgets), v1/core/kv_cache_utils.py (blocks, length, errors), v1/metrics/loggers.py (statistics).
A GiB figure is printed with two decimals, so what follows from it lies between two bounds; agreeing means inside.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path

from labkit.errors import UsageError
from labkit.files import CPU_BLOCK_SIZE, GPU_BLOCK_SIZE
from labkit.models import Architecture
from labkit.models.architecture import DTYPE_BYTES
from labkit.theory.kv_size import KvPlan, bytes_per_block, bytes_per_token, describe

GIB = 2**30
HALF_A_DIGIT = 0.005  # GiB
NUMBER = r"([\d.]+)"
ARGUMENTS = (
    "max_model_len", "block_size", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization", "kv_cache_dtype",
    "kv_cache_memory_bytes", "num_gpu_blocks_override", "tensor_parallel_size",
)  # fmt: skip
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# (EngineCore pid=8505) INFO 11-24 07:31:58 [kv_cache_utils.py:2327] ...
PREFIX = re.compile(
    r"^(?:\([^)]*pid=\d+\) )?(?:(?:DEBUG|INFO|WARNING|ERROR) )?(?:\d\d-\d\d \d\d:\d\d:\d\d )?(?:\[[\w./]+:\d+\] )?"
)
CELL = "text-align:left;vertical-align:top;white-space:normal;padding:.3em .6em"


@dataclass(frozen=True)
class MemoryLine:
    """One line of a log that is about memory. `number` counts the log's lines from 1.

    `recomputed`: what it should say, with the arithmetic; empty where too little is known. `agrees`: whether it does;
    None where there is nothing to compare.
    """

    number: int
    kind: str
    text: str
    meaning: str
    recomputed: str = ""
    agrees: bool | None = None

    @property
    def check(self) -> str:
        """The recomputation and whether the line agrees with it."""
        verdict = {True: " - agrees", False: " - DIFFERS", None: ""}[self.agrees]
        return f"{self.recomputed}{verdict}" if self.recomputed else ""


@dataclass(frozen=True, repr=False)
class MemoryLog:
    """The memory lines of a log, in its order. In a notebook it shows itself as a table."""

    lines: tuple[MemoryLine, ...]

    @property
    def agrees(self) -> bool:
        """Whether there are lines that could be compared with what was computed, and all of them agree."""
        compared = [line.agrees for line in self.lines if line.agrees is not None]
        return bool(compared) and all(compared)

    def of(self, kind: str) -> tuple[MemoryLine, ...]:
        """The lines of one kind, such as "cache_size"."""
        return tuple(line for line in self.lines if line.kind == kind)

    def __str__(self) -> str:
        parts = [(f"{line.number}: {line.text}", line.meaning, line.check) for line in self.lines]
        return "\n\n".join("\n  ".join(filter(None, part)) for part in parts)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='{CELL}'>{name}</th>" for name in ("line", "the log says", "it means", "recomputed"))
        rows = "".join(
            f"<tr><td style='{CELL}'>{line.number}</td><td style='{CELL}'><code>{escape(line.text)}</code></td>"
            f"<td style='{CELL}'>{escape(line.meaning)}</td><td style='{CELL}'>{escape(line.check)}</td></tr>"
            for line in self.lines
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def read_text(file: Path | str) -> str:
    """The text of a log file. UsageError: there is none, or it cannot be read."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise UsageError(f"there is no log file {file}", remedy="name a file, or leave it empty for the lab's own log")
    return path.read_text(encoding="utf-8", errors="replace")


def read(text: str, *, architecture: Architecture | None = None) -> MemoryLog:
    """The memory lines of a log's text, explained, and with the model's `architecture` recomputed.

    `architecture`: as its config says; a number type that the log names goes before the config's.
    """
    engine, lines = Engine(architecture), []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = PREFIX.sub("", COLOUR.sub("", raw).strip())
        for kind, (pattern, explain) in READERS.items():
            if match := pattern.search(line):
                if said := explain(match, engine):
                    shown = said.shown or line
                    lines.append(MemoryLine(number, kind, shown, said.meaning, said.recomputed, said.agrees))
                break
    return MemoryLog(tuple(lines))


# --- what is known while reading ---


@dataclass
class Engine:
    """What the log has told so far of its engine. `blocks`: the fewest and the most that it may have."""

    architecture: Architecture | None
    block_size: int | None = None
    dtype_bytes: int | None = None
    tensor_parallel: int = 1
    cpu: bool = False
    blocks: tuple[int, int] | None = None

    @property
    def tokens_per_block(self) -> int:
        return self.block_size or (CPU_BLOCK_SIZE if self.cpu else GPU_BLOCK_SIZE)

    def block_bytes(self, architecture: Architecture) -> int:
        """Bytes of a block on one GPU."""
        return bytes_per_block(
            architecture,
            block_size=self.tokens_per_block,
            tensor_parallel=self.tensor_parallel,
            kv_dtype_bytes=self.dtype_bytes,
        )

    def plan(self, blocks: int, max_model_len: int) -> KvPlan | None:
        """The arithmetic for this many blocks; None without the architecture or without a block."""
        if self.architecture is None or blocks < 1:
            return None
        return describe(
            self.architecture,
            memory_bytes=blocks * self.block_bytes(self.architecture),
            block_size=self.tokens_per_block,
            max_model_len=max_model_len,
            tensor_parallel=self.tensor_parallel,
            kv_dtype_bytes=self.dtype_bytes,
        )

    def plans(self, max_model_len: int) -> tuple[KvPlan, KvPlan] | None:
        """The arithmetic for the fewest and the most blocks."""
        low, high = (self.plan(blocks, max_model_len) for blocks in self.blocks or (0, 0))
        return (low, high) if low and high else None


@dataclass(frozen=True)
class Said:
    """What a line means, what it should say, and whether it does. `shown` replaces a line that says much else."""

    meaning: str
    recomputed: str = ""
    agrees: bool | None = None
    shown: str = ""


Explain = Callable[[re.Match[str], Engine], Said | None]
READERS: dict[str, tuple[re.Pattern[str], Explain]] = {}


def _reads(kind: str, pattern: str) -> Callable[[Explain], Explain]:
    """Registers a function for the lines that `pattern` finds; the first pattern that finds a line reads it."""

    def register(explain: Explain) -> Explain:
        READERS[kind] = re.compile(pattern), explain
        return explain

    return register


def _whole(text: str) -> int:
    return int(text.replace(",", ""))


def _close(value: float, printed: str, within: float) -> bool:
    return abs(value - float(printed)) <= within + 1e-9


# --- the lines ---


@_reads("arguments", r"non-default args: (\{.*\})")
def _arguments(match: re.Match[str], engine: Engine) -> Said | None:
    found = {name: re.search(rf"'{name}': '?([^,'}}]+)", match[1]) for name in ARGUMENTS}
    given = {name: hit[1] for name, hit in found.items() if hit}
    # A new engine begins: what was known of another one no longer holds.
    engine.dtype_bytes = engine.blocks = None
    engine.block_size = int(given["block_size"]) if given.get("block_size", "").isdigit() else None
    engine.tensor_parallel = int(given.get("tensor_parallel_size", 1))
    shown = ", ".join(f"{name}={value}" for name, value in given.items())
    meaning = "Of the settings that were given, those that decide about memory."
    return Said(meaning, shown=f"non-default args: {shown}") if given else None


@_reads("dtype", r"(?:Up|Down)?[cC]asting torch\.(\w+) to torch\.(\w+)")
def _dtype(match: re.Match[str], engine: Engine) -> Said:
    size = engine.dtype_bytes = DTYPE_BYTES.get(match[2])
    meaning = f"Weights and KV cache are kept as {match[2]}, not as {match[1]}."
    if engine.architecture is None or size is None:
        return Said(meaning)
    token = bytes_per_token(engine.architecture, tensor_parallel=engine.tensor_parallel, kv_dtype_bytes=size)
    return Said(meaning, f"{size} bytes a number: {token:,} bytes of KV cache for each token")


@_reads("max_model_len", r"Using max model len (\d+)")
def _max_model_len(_match: re.Match[str], _engine: Engine) -> Said:
    return Said("The most tokens that a request may have, prompt and answer together. Nothing is reserved for it.")


@_reads("checkpoint", rf"Checkpoint size: {NUMBER} GiB")
def _checkpoint(match: re.Match[str], engine: Engine) -> Said:
    return _weights(match[1], "The weights as they lie on the disk.", engine.architecture, within=0.01)


@_reads("weights", rf"Model loading took {NUMBER} GiB")
def _loaded(match: re.Match[str], engine: Engine) -> Said:
    meaning = "What the weights take in the GPU's memory: the same for one user as for a hundred."
    size, gpus = engine.dtype_bytes, engine.tensor_parallel
    return _weights(match[1], meaning, engine.architecture, size=size, gpus=gpus, within=0.02)  # buffers are in it, too


def _weights(
    gib: str, meaning: str, model: Architecture | None, *, within: float, size: int | None = None, gpus: int = 1
) -> Said:
    """`size`: bytes per number, by default the config's; `gpus`: over how many they are split."""
    if model is None or model.parameters is None:
        return Said(meaning)
    size = size or model.dtype_bytes
    expected = model.parameters * size / gpus / GIB
    split = f" / {gpus} GPUs" if gpus > 1 else ""
    arithmetic = f"{model.parameters:,} parameters x {size} bytes{split} = {expected:.2f} GiB"
    return Said(meaning, arithmetic, _close(expected, gib, within * expected + 2 * HALF_A_DIGIT))


def _cache_memory(gib: str, engine: Engine, meaning: str, *, exact: bool = False) -> Said:
    if engine.architecture is None:
        return Said(meaning)
    block = engine.block_bytes(engine.architecture)
    off = 0 if exact else HALF_A_DIGIT
    low, high = (int((float(gib) + sign * off) * GIB) // block for sign in (-1, 1))
    engine.blocks = (low, high)
    count = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return Said(meaning, f"{gib} GiB / {block:,} bytes a block of {engine.tokens_per_block} tokens = {count} blocks")


@_reads("cpu_memory", rf"Explicitly set \({NUMBER}/{NUMBER}\) GiB for KV cache")
def _cpu_given(match: re.Match[str], engine: Engine) -> Said:
    engine.cpu = True
    meaning = (
        f"The size that the cache was given (by VLLM_CPU_KVCACHE_SPACE or kv_cache_memory_bytes), of {match[2]} GiB of "
        "RAM; gpu_memory_utilization has no say."
    )
    return _cache_memory(match[1], engine, meaning, exact=float(match[1]).is_integer())


@_reads(
    "cpu_auto",
    rf"Auto set \({NUMBER}/{NUMBER}\) GiB for KV cache.* with {NUMBER} GiB requested.*\. {NUMBER} GiB memory",
)
def _cpu_auto(match: re.Match[str], engine: Engine) -> Said:
    engine.cpu = True
    meaning = (
        f"gpu_memory_utilization gives this worker {match[3]} GiB of RAM; weights and everything else took {match[4]}, "
        "the cache gets the rest."
    )
    _cache_memory(match[1], engine, meaning)
    rest = float(match[3]) - float(match[4])
    return Said(meaning, f"{match[3]} - {match[4]} = {rest:.2f} GiB", _close(rest, match[1], 3 * HALF_A_DIGIT))


@_reads("gpu_memory", rf"Available KV cache memory: {NUMBER} GiB")
def _available(match: re.Match[str], engine: Engine) -> Said:
    return _cache_memory(match[1], engine, "What weights and everything else leave of this engine's share of the GPU.")


@_reads("override", r"Overriding num_gpu_blocks=(\d+) with num_gpu_blocks_override=(\d+)")
def _override(match: re.Match[str], engine: Engine) -> Said:
    fits, made = _whole(match[1]), _whole(match[2])
    before, engine.blocks = engine.blocks, (made, made)
    meaning = f"The memory would hold {fits:,} blocks; {made:,} are made, as was asked for."
    if before is None:
        return Said(meaning)
    return Said(meaning, f"the memory holds {before[0]:,} to {before[1]:,} blocks", before[0] <= fits <= before[1])


@_reads(
    "cache_size",
    rf"(\w+) KV cache size: ([\d,]+) tokens, Maximum concurrency for ([\d,]+) tokens per request: {NUMBER}x",
)
def _cache_size(match: re.Match[str], engine: Engine) -> Said:
    engine.cpu = match[1] == "CPU"
    tokens, length, times = _whole(match[2]), _whole(match[3]), match[4]
    meaning = (
        f"Room for {tokens:,} tokens of all requests together. If every request had {length:,} tokens, {times} would "
        "fit at once: a worst case, no limit."
    )
    same = _close(tokens / length, times, 2 * HALF_A_DIGIT)
    plans = engine.plans(length)
    if plans is None:
        return Said(meaning, f"{tokens:,} / {length:,} = {tokens / length:.2f}x", same)
    low, high = plans
    blocks = round(tokens * low.blocks_per_sequence / length)
    engine.blocks = (blocks, blocks)
    plan = engine.plan(blocks, length) or low
    arithmetic = (
        f"{plan.blocks:,} blocks x {plan.block_size} = {plan.tokens:,} tokens; {plan.blocks:,} blocks / "
        f"{plan.blocks_per_sequence:,} for a full request = {plan.blocks / plan.blocks_per_sequence:.2f}x"
    )
    if low.logged_tokens is None or high.logged_tokens is None:  # state layers take blocks too
        return Said(meaning)
    return Said(meaning, arithmetic, same and low.logged_tokens <= tokens <= high.logged_tokens)


@_reads("auto_fit", r"Auto-fit max_model_len: reduced from (\d+) to (\d+)")
def _auto_fit(match: re.Match[str], engine: Engine) -> Said:
    asked, fits = _whole(match[1]), _whole(match[2])
    meaning = f"max_model_len=-1: the longest request that the cache can hold is {fits:,} tokens, not {asked:,}."
    return _longest(fits, asked, meaning, engine)


def _longest(fits: int, asked: int, meaning: str, engine: Engine) -> Said:
    plans = engine.plans(asked)
    if plans is None:
        return Said(meaning)
    low, high = plans
    arithmetic = f"({low.blocks:,} blocks - 1 that vLLM keeps) x {low.block_size} = {low.longest_tokens:,} tokens"
    return Said(meaning, arithmetic, low.longest_tokens <= fits <= high.longest_tokens)


@_reads(
    "gpu_usage",
    rf"Free memory on device \([\d.]+/{NUMBER} GiB\) on startup\. Desired GPU memory utilization is "
    rf"\({NUMBER}, {NUMBER} GiB\)\. Actual usage is {NUMBER} GiB for consumed.*?, {NUMBER} GiB for peak "
    rf"activation, and {NUMBER} GiB for CUDAGraph.*Current kv cache memory in use is {NUMBER} GiB",
)
def _gpu_usage(match: re.Match[str], _engine: Engine) -> Said:
    total, share, asked, consumed, peak, graphs, cache = map(float, match.groups())
    meaning = (
        f"Of a GPU with {total} GiB this engine may have {asked}: {consumed} went to weights and context, {peak} to "
        f"activations, {graphs} to CUDA graphs; the cache has {cache}."
    )
    rest = asked - consumed - peak
    arithmetic = f"{share} x {total} = {share * total:.2f} GiB; {asked} - {consumed} - {peak} = {rest:.2f} GiB"
    agrees = _close(share * total, match[3], 3 * HALF_A_DIGIT) and _close(rest, match[7], 5 * HALF_A_DIGIT)
    return Said(meaning, arithmetic, agrees)


@_reads(
    "not_free",
    rf"Free memory on device \S+ \({NUMBER}/{NUMBER} GiB\) on startup is less than desired GPU memory "
    rf"utilization \({NUMBER}, {NUMBER} GiB\)",
)
def _not_free(match: re.Match[str], _engine: Engine) -> Said:
    share = float(match[2]) * float(match[3])
    meaning = f"No start: {match[1]} GiB are free, and the share asks for {match[4]}. Something else uses this GPU."
    arithmetic = f"{match[3]} x {match[2]} GiB = {share:.2f} GiB"
    return Said(meaning, arithmetic, _close(share, match[4], 3 * HALF_A_DIGIT))


@_reads(
    "too_long",
    rf"max seq len \((\d+)\), \({NUMBER} GiB KV cache is needed, which is larger than the available KV cache "
    rf"memory \({NUMBER} GiB\)\.(?:.*maximum model length is (\d+))?",
)
def _too_long(match: re.Match[str], engine: Engine) -> Said:
    length, fits = _whole(match[1]), _whole(match[4] or "0")
    meaning = f"No start: one request of {length:,} tokens takes {match[2]} GiB, the cache has {match[3]} for it."
    return _longest(fits, length, f"{meaning} The longest that fits is {fits:,}." if fits else meaning, engine)


@_reads("nothing_left", r"No available memory for the cache blocks")
def _nothing_left(_match: re.Match[str], _engine: Engine) -> Said:
    return Said("No start: after weights and everything else the share leaves no memory for a single usable block.")


@_reads(
    "statistics",
    rf"Running: (\d+) reqs, Waiting: (\d+) reqs,(?:.*?Preemptions: (\d+),)?.*?KV cache usage: {NUMBER}%",
)
def _statistics(match: re.Match[str], engine: Engine) -> Said:
    preempted = f"{match[3]} preemptions" if match[3] else "nothing on preemptions"
    meaning = f"{match[1]} requests run and {match[2]} wait; {match[4]}% of the blocks are given out; {preempted}."
    low, high = engine.blocks or (0, 0)
    usable, usage = low - 1, float(match[4]) / 100
    if low != high or usable < 1:
        return Said(meaning, shown=match[0])
    held = round(usage * usable)
    arithmetic = f"{held:,} of {usable:,} blocks = {held / usable:.1%}"
    return Said(meaning, arithmetic, abs(held / usable - usage) <= 0.0005 + 1e-9, shown=match[0])
