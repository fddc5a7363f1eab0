"""The lines of vLLM 0.32's log that are about memory: what each says, means, and should say.

Where in vLLM: config/model.py (types), model_loader/weight_utils.py (checkpoint), v1/worker/cpu_worker.py and
gpu_worker.py (budgets), v1/core/kv_cache_utils.py (blocks, length, errors), v1/metrics/loggers.py (statistics).
A GiB figure is printed with two decimals, so what follows from it lies between two bounds; agreeing means inside.
"""

import re
from collections.abc import Callable, Mapping
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
ARGUMENTS = (
    "max_model_len", "block_size", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization", "kv_cache_dtype",
    "kv_cache_memory_bytes", "num_gpu_blocks_override", "tensor_parallel_size",
)  # fmt: skip


@dataclass
class State:
    """What is known so far of the engine that the log is about. `blocks`: the fewest and the most that it may have."""

    architecture: Architecture | None
    given_block_size: int | None = None
    block_size: int | None = None
    dtype_bytes: int | None = None
    tensor_parallel: int = 1
    cpu: bool = False
    blocks: tuple[int, int] | None = None

    @property
    def tokens_a_block(self) -> int:
        return self.block_size or self.given_block_size or (CPU_BLOCK_SIZE if self.cpu else GPU_BLOCK_SIZE)

    def block_bytes(self) -> int | None:
        """Bytes of a block on one GPU; None without the model's architecture."""
        if self.architecture is None:
            return None
        return bytes_per_block(
            self.architecture,
            block_size=self.tokens_a_block,
            tensor_parallel=self.tensor_parallel,
            kv_dtype_bytes=self.dtype_bytes,
        )

    def plan(self, blocks: int, max_model_len: int) -> KvPlan | None:
        """The arithmetic for so many blocks; None without the architecture or without a block."""
        block = self.block_bytes()
        if self.architecture is None or block is None or blocks < 1:
            return None
        return describe(
            self.architecture,
            memory_bytes=blocks * block,
            block_size=self.tokens_a_block,
            max_model_len=max_model_len,
            tensor_parallel=self.tensor_parallel,
            kv_dtype_bytes=self.dtype_bytes,
        )


@dataclass(frozen=True)
class Said:
    """What a line means, what it should say, and whether it does. `shown` stands for a line that says much else."""

    meaning: str
    recomputed: str = ""
    agrees: bool | None = None
    shown: str = ""


def _whole(text: str) -> int:
    return int(text.replace(",", ""))


def _close(value: float, printed: str, within: float) -> bool:
    return abs(value - float(printed)) <= within + 1e-9


def _arguments(match: re.Match[str], state: State) -> Said | None:
    # A new engine begins: what was known of another one no longer holds.
    state.block_size = state.dtype_bytes = state.blocks = None
    found = {name: re.search(rf"'{name}': '?([^,'}}]+)", match[1]) for name in ARGUMENTS}
    given = {name: hit[1] for name, hit in found.items() if hit}
    state.block_size = int(given["block_size"]) if given.get("block_size", "").isdigit() else None
    state.tensor_parallel = int(given.get("tensor_parallel_size", 1))
    if not given:
        return None
    shown = ", ".join(f"{name}={value}" for name, value in given.items())
    return Said("Of the settings that were given, those that decide about memory.", shown=f"non-default args: {shown}")


def _dtype(match: re.Match[str], state: State) -> Said:
    state.dtype_bytes = DTYPE_BYTES.get(match[2])
    meaning = f"Weights and KV cache are kept as {match[2]}, not as {match[1]}."
    if state.architecture is None or state.dtype_bytes is None:
        return Said(meaning)
    size = bytes_per_token(state.architecture, tensor_parallel=state.tensor_parallel, kv_dtype_bytes=state.dtype_bytes)
    return Said(meaning, f"{state.dtype_bytes} bytes a number: {size:,} bytes of KV cache for each token")


def _max_model_len(_match: re.Match[str], _state: State) -> Said:
    return Said("The most tokens that a request may have, prompt and answer together. Nothing is reserved for it.")


def _weights(match: re.Match[str], state: State, *, size: int | None, meaning: str, within: float) -> Said:
    if state.architecture is None or state.architecture.parameters is None:
        return Said(meaning)
    size = size or state.architecture.dtype_bytes
    gib = state.architecture.parameters * size / state.tensor_parallel / GIB
    split = f" / {state.tensor_parallel} GPUs" if state.tensor_parallel > 1 else ""
    arithmetic = f"{state.architecture.parameters:,} parameters x {size} bytes{split} = {gib:.2f} GiB"
    return Said(meaning, arithmetic, _close(gib, match[1], within * gib + 2 * HALF_A_DIGIT))


def _checkpoint(match: re.Match[str], state: State) -> Said | None:
    state.tensor_parallel, kept = 1, state.tensor_parallel  # the file holds the whole model
    said = _weights(match, state, size=None, meaning="The weights as they lie on the disk.", within=0.01)
    state.tensor_parallel = kept
    return said


def _loaded(match: re.Match[str], state: State) -> Said:
    meaning = "What the weights take in the GPU's memory: the same for one user as for a hundred."
    return _weights(match, state, size=state.dtype_bytes, meaning=meaning, within=0.02)  # buffers are in it, too


def _cache_memory(gib: str, state: State, meaning: str, *, exact: bool = False) -> Said:
    block = state.block_bytes()
    if block is None:
        return Said(meaning)
    off = 0 if exact else HALF_A_DIGIT
    low, high = (int((float(gib) + sign * off) * GIB) // block for sign in (-1, 1))
    state.blocks = (low, high)
    count = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return Said(meaning, f"{gib} GiB / {block:,} bytes a block of {state.tokens_a_block} tokens = {count} blocks")


def _cpu_given(match: re.Match[str], state: State) -> Said:
    state.cpu = True
    meaning = (
        f"The size that the cache was given (by VLLM_CPU_KVCACHE_SPACE or kv_cache_memory_bytes), of {match[2]} GiB of "
        "RAM; gpu_memory_utilization has no say."
    )
    return _cache_memory(match[1], state, meaning, exact=float(match[1]).is_integer())


def _cpu_auto(match: re.Match[str], state: State) -> Said:
    state.cpu = True
    meaning = (
        f"gpu_memory_utilization gives this worker {match[3]} GiB of RAM; weights and everything else took {match[4]}, "
        "the cache gets the rest."
    )
    _cache_memory(match[1], state, meaning)
    rest = float(match[3]) - float(match[4])
    return Said(meaning, f"{match[3]} - {match[4]} = {rest:.2f} GiB", _close(rest, match[1], 3 * HALF_A_DIGIT))


def _available(match: re.Match[str], state: State) -> Said:
    return _cache_memory(match[1], state, "What weights and everything else leave of this engine's share of the GPU.")


def _override(match: re.Match[str], state: State) -> Said:
    fits, made = _whole(match[1]), _whole(match[2])
    before, state.blocks = state.blocks, (made, made)
    meaning = f"The memory would hold {fits:,} blocks; {made:,} are made, as was asked for."
    if before is None:
        return Said(meaning)
    return Said(meaning, f"the memory holds {before[0]:,} to {before[1]:,} blocks", before[0] <= fits <= before[1])


def _cache_size(match: re.Match[str], state: State) -> Said:
    state.cpu = match[1] == "CPU"
    tokens, length, times = _whole(match[2]), _whole(match[3]), match[4]
    meaning = (
        f"Room for {tokens:,} tokens of all requests together. If every request had {length:,} tokens, {times} would "
        "fit at once: a worst case, no limit."
    )
    same = _close(tokens / length, times, 2 * HALF_A_DIGIT)
    plans = [state.plan(blocks, length) for blocks in state.blocks or ()]
    if not plans or plans[0] is None or plans[1] is None:
        return Said(meaning, f"{tokens:,} / {length:,} = {tokens / length:.2f}x", same)
    low, high = plans[0], plans[1]
    blocks = round(tokens * low.blocks_per_sequence / length)
    state.blocks = (blocks, blocks)
    found = state.plan(blocks, length) or low
    arithmetic = (
        f"{found.blocks:,} blocks x {found.block_size} = {found.tokens:,} tokens; {found.blocks:,} blocks / "
        f"{found.blocks_per_sequence:,} for a full request = {found.max_concurrency:.2f}x"
    )
    return Said(meaning, arithmetic, same and low.logged_tokens <= tokens <= high.logged_tokens)


def _auto_fit(match: re.Match[str], state: State) -> Said:
    asked, fits = _whole(match[1]), _whole(match[2])
    meaning = f"max_model_len=-1: the longest request that the cache can hold is {fits:,} tokens, not {asked:,}."
    return _longest(fits, asked, meaning, state)


def _too_long(match: re.Match[str], state: State) -> Said:
    length, fits = _whole(match[1]), _whole(match[4] or "0")
    meaning = f"No start: one request of {length:,} tokens takes {match[2]} GiB, the cache has {match[3]} for it."
    return _longest(fits, length, f"{meaning} The longest that fits is {fits:,}." if fits else meaning, state)


def _longest(fits: int, asked: int, meaning: str, state: State) -> Said:
    plans = [state.plan(blocks, asked) for blocks in state.blocks or ()]
    if not plans or plans[0] is None or plans[1] is None:
        return Said(meaning)
    low, high = plans[0], plans[1]
    arithmetic = f"({low.blocks:,} blocks - 1 that vLLM keeps) x {low.block_size} = {low.longest_tokens:,} tokens"
    return Said(meaning, arithmetic, low.longest_tokens <= fits <= high.longest_tokens)


def _nothing_left(_match: re.Match[str], _state: State) -> Said:
    return Said("No start: after weights and everything else the share leaves no memory for a single usable block.")


def _not_free(match: re.Match[str], _state: State) -> Said:
    share = float(match[2]) * float(match[3])
    meaning = f"No start: {match[1]} GiB are free, and the share asks for {match[4]}. Something else uses this GPU."
    arithmetic = f"{match[3]} x {match[2]} GiB = {share:.2f} GiB"
    return Said(meaning, arithmetic, _close(share, match[4], 3 * HALF_A_DIGIT))


def _gpu_usage(match: re.Match[str], _state: State) -> Said:
    total, share, asked, consumed, peak, graphs, cache = (float(match[n]) for n in range(1, 8))
    meaning = (
        f"Of a GPU with {total} GiB this engine may have {asked}: {consumed} went to weights and context, {peak} to "
        f"activations, {graphs} to CUDA graphs; the cache has {cache}."
    )
    rest = asked - consumed - peak
    arithmetic = f"{share} x {total} = {share * total:.2f} GiB; {asked} - {consumed} - {peak} = {rest:.2f} GiB"
    agrees = _close(share * total, match[3], 3 * HALF_A_DIGIT) and _close(rest, match[7], 5 * HALF_A_DIGIT)
    return Said(meaning, arithmetic, agrees)


def _statistics(match: re.Match[str], state: State) -> Said:
    usage = float(match[4]) / 100
    preempted = f"{match[3]} preemptions" if match[3] else "nothing on preemptions"
    meaning = f"{match[1]} requests run and {match[2]} wait; {match[4]}% of the blocks are given out; {preempted}."
    if state.blocks is None or state.blocks[0] != state.blocks[1]:
        return Said(meaning, shown=match[0])
    usable = state.blocks[0] - 1
    held = round(usage * usable)
    arithmetic = f"{held:,} of {usable:,} blocks = {held / usable:.1%}" if usable else ""
    return Said(meaning, arithmetic, usable > 0 and abs(held / usable - usage) <= 0.0005 + 1e-9, shown=match[0])


Explain = Callable[[re.Match[str], State], Said | None]
NUMBER = r"([\d.]+)"
READERS: Mapping[str, tuple[re.Pattern[str], Explain]] = {
    name: (re.compile(pattern), explain)
    for name, (pattern, explain) in {
        "arguments": (r"non-default args: (\{.*\})", _arguments),
        "dtype": (r"(?:Up|Down)?[cC]asting torch\.(\w+) to torch\.(\w+)", _dtype),
        "max_model_len": (r"Using max model len (\d+)", _max_model_len),
        "checkpoint": (rf"Checkpoint size: {NUMBER} GiB", _checkpoint),
        "weights": (rf"Model loading took {NUMBER} GiB", _loaded),
        "cpu_memory": (rf"Explicitly set \({NUMBER}/{NUMBER}\) GiB for KV cache", _cpu_given),
        "cpu_auto": (
            rf"Auto set \({NUMBER}/{NUMBER}\) GiB for KV cache.* with {NUMBER} GiB requested.*\. {NUMBER} GiB memory",
            _cpu_auto,
        ),
        "gpu_memory": (rf"Available KV cache memory: {NUMBER} GiB", _available),
        "override": (r"Overriding num_gpu_blocks=(\d+) with num_gpu_blocks_override=(\d+)", _override),
        "cache_size": (
            rf"(\w+) KV cache size: ([\d,]+) tokens, Maximum concurrency for ([\d,]+) tokens per request: {NUMBER}x",
            _cache_size,
        ),
        "auto_fit": (r"Auto-fit max_model_len: reduced from (\d+) to (\d+)", _auto_fit),
        "gpu_usage": (
            rf"Free memory on device \([\d.]+/{NUMBER} GiB\) on startup\. Desired GPU memory utilization is "
            rf"\({NUMBER}, {NUMBER} GiB\)\. Actual usage is {NUMBER} GiB for consumed.*?, {NUMBER} GiB for peak "
            rf"activation, and {NUMBER} GiB for CUDAGraph.*Current kv cache memory in use is {NUMBER} GiB",
            _gpu_usage,
        ),
        "not_free": (
            rf"Free memory on device \S+ \({NUMBER}/{NUMBER} GiB\) on startup is less than desired GPU memory "
            rf"utilization \({NUMBER}, {NUMBER} GiB\)",
            _not_free,
        ),
        "too_long": (
            rf"max seq len \((\d+)\), \({NUMBER} GiB KV cache is needed, which is larger than the available KV cache "
            rf"memory \({NUMBER} GiB\)\.(?:.*maximum model length is (\d+))?",
            _too_long,
        ),
        "nothing_left": (r"No available memory for the cache blocks", _nothing_left),
        "statistics": (
            rf"Running: (\d+) reqs, Waiting: (\d+) reqs,(?:.*?Preemptions: (\d+),)?.*?KV cache usage: {NUMBER}%",
            _statistics,
        ),
    }.items()
}


# --- reads what vLLM's log says of memory, explains each line and recomputes it ---


COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# (EngineCore pid=8505) INFO 11-24 07:31:58 [kv_cache_utils.py:2327] ...
PREFIX = re.compile(
    r"^(?:\([^)]*pid=\d+\) )?(?:(?:DEBUG|INFO|WARNING|ERROR) )?(?:\d\d-\d\d \d\d:\d\d:\d\d )?(?:\[[\w./]+:\d+\] )?"
)
CELL = "text-align:left;vertical-align:top;white-space:normal;padding:.3em .6em"


@dataclass(frozen=True, kw_only=True)
class MemoryLine:
    """One line of a log that is about memory. `number` counts the log's lines from 1.

    `recomputed`: what should stand there, with the arithmetic; empty where what is known does not tell. `agrees`:
    whether it does stand there; None where there is nothing to compare.
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
class Reading:
    """The memory lines of a log, in its order. In a notebook it shows itself as a table."""

    lines: tuple[MemoryLine, ...]

    @property
    def agrees(self) -> bool:
        """Whether there are lines that could be compared with what was computed, and all of them agree."""
        compared = [line.agrees for line in self.lines if line.agrees is not None]
        return bool(compared) and all(compared)

    def of(self, kind: str) -> tuple[MemoryLine, ...]:
        """The lines of one kind (a name in `startup_lines.READERS`)."""
        return tuple(line for line in self.lines if line.kind == kind)

    def __str__(self) -> str:
        parts = [(f"{line.number}: {line.text}", line.meaning, line.check) for line in self.lines]
        return "\n\n".join("\n  ".join(filter(None, part)) for part in parts)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        heads = ("line", "the log says", "it means", "recomputed")
        head = "".join(f"<th style='{CELL}'>{name}</th>" for name in heads)
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


def read(text: str, *, architecture: Architecture | None = None, block_size: int | None = None) -> Reading:
    """The memory lines of a log's text, explained, and with the model's `architecture` recomputed.

    `architecture`: as its config says; a number type that the log names goes before the config's. `block_size`: for a
    log that names none (default: vLLM's for the device).
    """
    state = State(architecture=architecture, given_block_size=block_size)
    found = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = PREFIX.sub("", COLOUR.sub("", raw).strip())
        for kind, (pattern, explain) in READERS.items():
            match = pattern.search(line)
            if match is None:
                continue
            said = explain(match, state)
            if said is not None:
                found.append(
                    MemoryLine(
                        number=number,
                        kind=kind,
                        text=said.shown or line,
                        meaning=said.meaning,
                        recomputed=said.recomputed,
                        agrees=said.agrees,
                    )
                )
            break
    return Reading(tuple(found))
