"""What a log has told so far of the engine that starts, and what follows from it for the memory of its KV cache.

A GiB figure is printed with two decimals, so what follows from it lies between two bounds; agreeing means inside.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from labkit.errors import LabkitError
from labkit.files import CPU_BLOCK_SIZE, GPU_BLOCK_SIZE
from labkit.models import Architecture
from labkit.models.architecture import DTYPE_BYTES
from labkit.serving.log_lines import Worker
from labkit.theory.kv_size import IN_FLIGHT_TOKENS, KvPlan, describe, kv_heads_per_rank

GIB = 2**30
HALF_A_DIGIT = 0.005  # GiB
NUMBER = r"(-?\d{1,9}(?:\.\d{1,9})?)"
WHOLE = r"(\d[\d,]{0,19})"  # no longer: such a number is none of vLLM's
BLOCK_SIZES = (GPU_BLOCK_SIZE, 32, 64, CPU_BLOCK_SIZE, 256)  # the attention kernel may choose another than the default
KV_BYTES = {**DTYPE_BYTES, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "fp8_inc": 1, "half": 2, "float": 4}
UNSET = ("None", "auto", "")


@dataclass
class Engine:
    """What the log has told so far of the engine that starts. Bytes and blocks: at least and at most."""

    architecture: Architecture | None
    tensor_parallel_given: int | None = None
    settings: dict[str, str] = field(default_factory=dict)
    device: str = ""
    hybrid: bool = False
    worker: Worker = field(default_factory=Worker)
    kinds: set[tuple[str, str, str]] = field(default_factory=set)
    memory: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)  # by engine and rank
    ranks: set[int] = field(default_factory=set)
    share_gib: float | None = None
    made: int | None = None  # blocks that num_gpu_blocks_override asked for
    blocks: int | None = None
    tokens: int | None = None  # of the last line that told them
    sizes: dict[str, int] = field(default_factory=dict)  # by engine: tokens of its smallest rank

    def starts_again(self, kind: str) -> bool:
        """Whether a line of this kind cannot be of this engine any more."""
        here = (self.worker.engine, self.worker.label)
        sizes = {engine for seen, engine, _ in self.kinds if seen in ("cache_size", "blocks")}
        sized = bool(sizes) and (not here[0] or bool(sizes & {"", here[0]}))
        if kind in ("arguments", "engine"):
            return (kind, *here) in self.kinds or sized
        return sized and kind in ("weights", "gpu_memory", "cpu_memory", "cpu_auto", "not_free")

    def has(self, *kinds: str) -> bool:
        """Whether a line of one of these kinds was read."""
        return any(kind in kinds for kind, _, _ in self.kinds)

    def size(self, name: str) -> int | None:
        """A setting that is a whole number; None where it is not given."""
        text = self.settings.get(name, "")
        return int(text) if text.isdecimal() and len(text) < 20 else None

    @property
    def tensor_parallel(self) -> int:
        """Over how many GPUs the model is split: as the log says, as was given, or as many as there are ranks."""
        ranks = max(self.ranks, default=0) + 1
        return self.size("tensor_parallel_size") or self.tensor_parallel_given or ranks

    @property
    def kv_dtype_bytes(self) -> int | None:
        """Bytes of a number in the cache, where the log tells its type; 0 for a type that is not known here."""
        if (name := self.settings.get("kv_cache_dtype", "")) not in UNSET:
            return KV_BYTES.get(name, 0)
        if self.architecture is not None and self.architecture.kv_dtype:  # the checkpoint's own, under "auto"
            return None
        return KV_BYTES.get(self.settings.get("dtype", "").removeprefix("torch."))

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """The block size where the log tells it, else those that the engine may have chosen, the default first."""
        if size := self.size("block_size"):
            return (size,)
        return (CPU_BLOCK_SIZE, *BLOCK_SIZES) if self.device == "CPU" else BLOCK_SIZES

    @property
    def keeps_all_tokens(self) -> bool:
        """Whether the model is known to keep keys and values of every token in every layer."""
        model = self.architecture
        if model is None or self.obstacle:
            return False
        return not model.state_layers and all(layers.window is None for layers in model.storing_layers)

    @property
    def obstacle(self) -> str:
        """Why nothing of the cache can be recomputed though the model is known; empty where it can."""
        if self.architecture is None:
            return ""
        draft = self.settings.get("speculative_config", "None") not in UNSET
        told = self.size("tensor_parallel_size") or self.tensor_parallel_given or max(self.ranks, default=0)
        several = self.ranks or len({rank for _, rank in self.memory}) > 1
        reasons = {
            "the log does not say over how many GPUs the model is split (--tensor-parallel)": several and not told,
            "the layers are split over pipeline stages": (self.size("pipeline_parallel_size") or 1) > 1,
            "a draft model has layers in the cache, too": draft,
            "the tokens of a request are split over GPUs": (self.size("decode_context_parallel_size") or 1) > 1,
            f"a cache of {self.settings.get('kv_cache_dtype')} is laid out in its own way": self.kv_dtype_bytes == 0,
            "some layers keep a state, which shares the blocks": self.hybrid or self.architecture.state_layers > 0,
        }
        try:
            kv_heads_per_rank(self.architecture, self.tensor_parallel)
        except LabkitError as error:
            return error.what
        return next((reason for reason, applies in reasons.items() if applies), "")

    def has_room_for(self, tokens: int) -> None:
        """Keeps the tokens of a cache. From 0.7 to 0.10 each rank logs its own; the fewest are every rank's."""
        self.tokens = tokens
        self.sizes[self.worker.engine] = min(tokens, self.sizes.get(self.worker.engine, tokens))

    def rank_memory(self) -> list[tuple[str, tuple[int, int]]]:
        """The ranks of this line's engine with their bytes for the cache, the smallest first."""
        ours = {rank: sizes for (engine, rank), sizes in self.memory.items() if engine == self.worker.engine}
        if not ours:  # the ranks' lines and the engine's may differ in whether they name the engine
            ours = {rank: sizes for (_, rank), sizes in self.memory.items()}
        return sorted(ours.items(), key=lambda item: item[1])

    def all_ranks_known(self) -> bool:
        """Whether every rank has told its memory: since vLLM 0.10 only the first of them writes the line."""
        return len({rank for _, rank in self.memory}) >= self.tensor_parallel

    def verdict(self, *, fits: bool, fewer: bool) -> bool | None:
        """Whether a figure agrees. Where it does not: None if versions of vLLM count layers with a window in other
        ways, or if there are `fewer` and a rank that did not write its memory may be smaller."""
        if fits or (self.keeps_all_tokens and (self.all_ranks_known() or not fewer)):
            return fits
        return None

    def plan(self, memory_bytes: int, block_size: int, max_model_len: int) -> KvPlan | None:
        """The arithmetic for so much memory; None where the model is unknown or there is an obstacle."""
        if self.architecture is None or self.obstacle:
            return None
        try:
            return describe(
                self.architecture,
                memory_bytes=memory_bytes,
                block_size=block_size,
                max_model_len=max_model_len,
                tensor_parallel=self.tensor_parallel,
                kv_dtype_bytes=self.kv_dtype_bytes,
                in_flight_tokens=self.size("max_num_batched_tokens") or IN_FLIGHT_TOKENS,
            )
        except LabkitError:  # less than a block
            return None

    def plans(self, max_model_len: int, block_size: int, *, rank: int = 0) -> tuple[KvPlan, KvPlan] | None:
        """The arithmetic for the least and the most memory that a rank may have, counted from the smallest."""
        bounds = self.rank_memory()[rank][1] if self.memory else None
        one = self.plan(GIB * GIB, block_size, max_model_len)
        if one is None or (bounds is None and self.made is None):
            return None
        least, most = bounds or (0, 0)
        if self.made is not None:
            least = most = self.made * one.bytes_per_block
        low, high = (self.plan(size, block_size, max_model_len) for size in (least, most))
        return (low, high) if low and high else None

    def notes(self) -> Iterator[str]:
        """What a reader must know of the whole log."""
        if (engines := len({engine for engine, _ in self.memory if engine})) > 1:
            yield f"{engines} engines (data parallel): each has a cache of its own, and kv_tokens is the smallest one's"
        if self.architecture is None:
            yield "without the model's config (--model) only figures within the log are compared with each other"
        elif self.obstacle:
            yield f"the cache is not recomputed: {self.obstacle}"


@dataclass(frozen=True)
class Said:
    """What a line means, what it should say, whether it does, and what to change. `shown` replaces a long line."""

    meaning: str
    recomputed: str = ""
    agrees: bool | None = None
    fix: str = ""
    shown: str = ""


Explain = Callable[[re.Match[str], Engine], Said]
READERS: dict[str, tuple[re.Pattern[str], Explain]] = {}


def reads(kind: str, pattern: str) -> Callable[[Explain], Explain]:
    """Registers a function for the lines that `pattern` finds; the first pattern that finds a line reads it."""

    def register(explain: Explain) -> Explain:
        READERS[kind] = re.compile(pattern), explain
        return explain

    return register


def whole_number(text: str) -> int:
    return int(text.replace(",", ""))


def close(value: float, printed: str, within: float) -> bool:
    return abs(value - float(printed)) <= within + 1e-9
