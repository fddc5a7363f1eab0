"""The state of a starting engine, collected from its log, and the KV cache that follows from it.

Logs print GiB with two decimals, so derived figures have two bounds; a figure agrees if it is between them.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from labkit.errors import LabkitError
from labkit.files import CPU_BLOCK_SIZE, GPU_BLOCK_SIZE
from labkit.models import Architecture
from labkit.models.architecture import DTYPE_BYTES
from labkit.serving.log_lines import Worker
from labkit.theory.kv_size import KvPlan, describe, kv_heads_per_rank

GIB = 2**30
HALF_A_DIGIT = 0.005  # GiB
NUMBER = r"(-?\d{1,9}(?:\.\d{1,9})?)"
WHOLE = r"(\d[\d,]{0,19})"  # longer numbers are not vLLM's
BLOCK_SIZES = (GPU_BLOCK_SIZE, 32, 64, CPU_BLOCK_SIZE, 256)  # attention kernels may choose other sizes than the default
KV_BYTES = {**DTYPE_BYTES, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "fp8_inc": 1, "half": 2, "float": 4}
UNSET = ("None", "auto", "")


@dataclass
class Engine:
    """The engine as logged so far. Memory: (least, most) bytes."""

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
    overridden: int | None = None  # blocks set by num_gpu_blocks_override
    blocks: int | None = None
    tokens: int | None = None  # from the latest line
    sizes: dict[str, int] = field(default_factory=dict)  # by engine: tokens of its smallest rank

    def starts_again(self, kind: str) -> bool:
        """Whether a line of this kind must belong to the next engine."""
        source = (self.worker.engine, self.worker.label)
        sizes = {engine for seen, engine, _ in self.kinds if seen in ("cache_size", "blocks")}
        sized = bool(sizes) and (not source[0] or bool(sizes & {"", source[0]}))
        if kind in ("arguments", "engine"):
            return (kind, *source) in self.kinds or sized
        return sized and kind in ("weights", "gpu_memory", "cpu_memory", "cpu_auto", "not_free")

    def has(self, *kinds: str) -> bool:
        return any(kind in kinds for kind, _, _ in self.kinds)

    def size(self, name: str) -> int | None:
        """Return the setting if it is a whole number, else None."""
        text = self.settings.get(name, "")
        return int(text) if text.isdecimal() and len(text) < 20 else None

    @property
    def tensor_parallel(self) -> int:
        """The GPUs that share the model: from the log, the argument, or the number of ranks."""
        ranks = max(self.ranks, default=0) + 1
        return self.size("tensor_parallel_size") or self.tensor_parallel_given or ranks

    @property
    def kv_dtype_bytes(self) -> int | None:
        """Bytes per number in the cache: None if the log does not name its type, 0 for an unknown type."""
        if (name := self.settings.get("kv_cache_dtype", "")) not in UNSET:
            return KV_BYTES.get(name, 0)
        if self.architecture is not None and self.architecture.kv_dtype:  # the checkpoint's type, under "auto"
            return None
        return KV_BYTES.get(self.settings.get("dtype", "").removeprefix("torch."))

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """The logged block size, or all possible ones, the default first."""
        if size := self.size("block_size"):
            return (size,)
        return (CPU_BLOCK_SIZE, *BLOCK_SIZES) if self.device == "CPU" else BLOCK_SIZES

    @property
    def keeps_all_tokens(self) -> bool:
        """Whether every layer of a known model keeps keys and values of every token."""
        model = self.architecture
        if model is None or self.obstacle:
            return False
        return not model.state_layers and all(layers.window is None for layers in model.storing_layers)

    @property
    def obstacle(self) -> str:
        """Why the cache of a known model cannot be recomputed; "" if it can."""
        if self.architecture is None:
            return ""
        draft = self.settings.get("speculative_config", "None") not in UNSET
        gpus = self.size("tensor_parallel_size") or self.tensor_parallel_given or max(self.ranks, default=0)
        several = self.ranks or len({rank for _, rank in self.memory}) > 1
        reasons = {
            "the log does not say how many GPUs share the model (--tensor-parallel)": several and not gpus,
            "the layers are split over pipeline stages": (self.size("pipeline_parallel_size") or 1) > 1,
            "a draft model also has layers in the cache": draft,
            "the tokens of a request are split over GPUs": (self.size("decode_context_parallel_size") or 1) > 1,
            f"the layout of a {self.settings.get('kv_cache_dtype')} cache is unknown": self.kv_dtype_bytes == 0,
            "some layers keep a state, which shares the blocks": self.hybrid or self.architecture.state_layers > 0,
        }
        try:
            kv_heads_per_rank(self.architecture, self.tensor_parallel)
        except LabkitError as error:
            return error.what
        return next((reason for reason, applies in reasons.items() if applies), "")

    def set_tokens(self, tokens: int) -> None:
        """Set the cache's tokens. From 0.7 to 0.10 each rank logs its own; the smallest applies to all."""
        self.tokens = tokens
        self.sizes[self.worker.engine] = min(tokens, self.sizes.get(self.worker.engine, tokens))

    def rank_memory(self) -> list[tuple[str, tuple[int, int]]]:
        """The current engine's ranks and their bytes for the cache, the smallest first."""
        ranks = {rank: sizes for (engine, rank), sizes in self.memory.items() if engine == self.worker.engine}
        if not ranks:  # not every line names the engine
            ranks = {rank: sizes for (_, rank), sizes in self.memory.items()}
        return sorted(ranks.items(), key=lambda item: item[1])

    def all_ranks_known(self) -> bool:
        """Whether every rank has logged its memory: since vLLM 0.10 only the first one does."""
        return len({rank for _, rank in self.memory}) >= self.tensor_parallel

    def verdict(self, *, fits: bool, fewer: bool) -> bool | None:
        """Whether a figure agrees. A mismatch is None (inconclusive) with sliding windows, which vLLM versions count
        differently, and for `fewer` tokens than expected if another rank may be smaller."""
        if fits or (self.keeps_all_tokens and (self.all_ranks_known() or not fewer)):
            return fits
        return None

    def plan(self, memory_bytes: int, block_size: int, max_model_len: int) -> KvPlan | None:
        """Compute the cache for `memory_bytes`; None for an unknown model or with an obstacle."""
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
                max_num_batched_tokens=self.size("max_num_batched_tokens") or None,
            )
        except LabkitError:  # less than a block
            return None

    def plans(self, max_model_len: int, block_size: int, *, rank: int = 0) -> tuple[KvPlan, KvPlan] | None:
        """Compute the cache for the least and the most memory of a rank (0: the smallest)."""
        bounds = self.rank_memory()[rank][1] if self.memory else None
        plan = self.plan(GIB * GIB, block_size, max_model_len)
        if plan is None or (bounds is None and self.overridden is None):
            return None
        least, most = bounds or (0, 0)
        if self.overridden is not None:
            least = most = self.overridden * plan.bytes_per_block
        low, high = (self.plan(size, block_size, max_model_len) for size in (least, most))
        return (low, high) if low and high else None

    def notes(self) -> Iterator[str]:
        """Yield notes on the whole log."""
        if (engines := len({engine for engine, _ in self.memory if engine})) > 1:
            yield f"{engines} engines (data parallel), each with its own cache: kv_tokens is the smallest one's"
        if self.architecture is None:
            yield "without the model's config (--model) only figures within the log are compared with each other"
        elif self.obstacle:
            yield f"the cache is not recomputed: {self.obstacle}"


@dataclass(frozen=True)
class Explanation:
    """A line's meaning, its recomputation, whether they agree, and what to change. `shown` replaces a long line."""

    meaning: str
    recomputed: str = ""
    agrees: bool | None = None
    fix: str = ""
    shown: str = ""


Explain = Callable[[re.Match[str], Engine], Explanation]
READERS: dict[str, tuple[re.Pattern[str], Explain]] = {}


def reads(kind: str, pattern: str) -> Callable[[Explain], Explain]:
    """Register a function for lines that match `pattern`; the first matching pattern wins."""

    def register(explain: Explain) -> Explain:
        READERS[kind] = re.compile(pattern), explain
        return explain

    return register


def whole_number(text: str) -> int:
    return int(text.replace(",", ""))


def close(value: float, printed: str, within: float) -> bool:
    return abs(value - float(printed)) <= within + 1e-9
