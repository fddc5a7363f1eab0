"""A modelled GPU by name: the arguments for vLLM's own `LLM(...)` and `vllm serve`."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import require
from labkit.files import GPU_BLOCK_SIZE
from labkit.machine.facts import vllm_version
from labkit.modelled import cards
from labkit.modelled import settings as modelled_settings
from labkit.modelled.cards import Card
from labkit.modelled.evidence import errors_in_words
from labkit.modelled.shapes import is_dense_16_bit, model_folder
from labkit.modelled.step_time import StepTime
from labkit.models.architecture import architecture, is_multimodal

EXECUTOR = "labkit.modelled.executor.ModelledExecutor"
SERVER_ENV = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",  # idle threads would spin and disturb the clock
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""Environment for `vllm serve` on a modelled card."""


@dataclass(frozen=True, kw_only=True)
class ModelledGpu:
    """A model on a modelled card.

    `LLM(gpu.model, **gpu.llm)` and `vllm serve {gpu.model} {gpu.flags}`; put other options after them, as in
    `LLM(gpu.model, **gpu.llm | {"max_num_batched_tokens": 2048})`.
    """

    card: Card
    folder: Path
    tensor_parallel: int
    source: modelled_settings.Source
    overhead_ms: float
    tokenizer: Path | None

    @property
    def model(self) -> str:
        """The folder with the model's config.json, for vLLM."""
        return str(self.folder)

    @property
    def label(self) -> str:
        """The subtitle of charts: "Modelled", the sources and the error."""
        times = "step times by formula"
        if self.source == "kernels" and self.card.kernels:
            times = f"kernels of {self.card.kernels.version}"
        count = f"{self.tensor_parallel} x " if self.tensor_parallel > 1 else ""
        card, engine = self.card.title.removeprefix("NVIDIA "), vllm_version().partition("+")[0]
        error = errors_in_words(self.folder, self.tensor_parallel, self.card)
        return f"Modelled: {count}{card}, {self.folder.name}, vLLM {engine}, {times}; {error}"

    def step_time(self) -> StepTime:
        """The card's step times without `overhead_ms`: `gpu.step_time().seconds(step)`."""
        return self._settings().step_time(self.folder, self.tensor_parallel)

    def _settings(self, *, real_time: bool = False) -> modelled_settings.Settings:
        return modelled_settings.Settings(
            card=self.card.name, source=self.source, overhead_ms=self.overhead_ms, real_time=real_time
        )

    @property
    def env(self) -> Mapping[str, str]:
        """Environment for an engine in this process; set it before importing vllm."""
        return {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the drivers step the engine and read its clock
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }

    @property
    def llm(self) -> dict[str, Any]:
        """Arguments of `LLM(...)`: the modelled card, and vLLM's defaults for `LLM` on that card."""
        return self._options(server=False, real_time=False)

    @property
    def served_llm(self) -> dict[str, Any]:
        """Arguments of `LLM(...)` with vLLM's defaults for a server, on a virtual clock."""
        return self._options(server=True, real_time=False)

    @property
    def flags(self) -> str:
        """Flags of `vllm serve`: answers take the card's time."""
        options = self._options(server=True, real_time=True)
        return shlex.join(word for name, value in options.items() for word in _flag(name, value))

    def _options(self, *, server: bool, real_time: bool) -> dict[str, Any]:
        budget, sequences = batch_defaults(self.card, server=server)
        settings = self._settings(real_time=real_time).model_dump(exclude_defaults=True)
        tokens = {"tokenizer": str(self.tokenizer)} if self.tokenizer else {"skip_tokenizer_init": True}
        return {
            "distributed_executor_backend": EXECUTOR,
            "additional_config": {modelled_settings.KEY: settings},
            "block_size": GPU_BLOCK_SIZE,
            "tensor_parallel_size": self.tensor_parallel,
            "max_logprobs": 0,  # a modelled card has no logits
            **tokens,
            "max_num_batched_tokens": budget,
            "max_num_seqs": sequences,
        }


def gpu(
    card: str,
    *,
    model: str | Path = "llama-3.1-8b",
    tensor_parallel: int = 1,
    source: modelled_settings.Source | None = None,
    overhead_ms: float | None = None,
    tokenizer: Path | None = None,
) -> ModelledGpu:
    """Return a card of data/gpus.yaml with a model of data/models, or of a folder with a config.json.

    `source` of step times, by default: "formula" for dense 16-bit models, for which it fits best, and measured
    "kernels" for experts and fp8 (docs/modelled-gpu.md has both errors). `overhead_ms`: engine and host time per step.
    `tokenizer`: a folder, for requests of text instead of token ids. UsageError for an unknown name, or a card without
    evidence.
    """
    gpu_card, folder = cards.find(card), model_folder(model)
    what = f"{gpu_card.title}: there is no evidence for its step times"
    fix = "choose another card; docs/modelled-gpu.md lists the evidence for each"
    require(gpu_card.evidence != "none", what, fix=fix)
    what = f"{folder / 'config.json'} is of a multimodal model, and the modelled GPU has step times for text only"
    fix = "copy its language model's part, such as text_config, into a config.json in another folder"
    require(not is_multimodal(folder / "config.json"), what, fix=fix)
    if source is None:
        source = "formula" if is_dense_16_bit(folder) else "kernels"
    what = f"no kernels were measured on {gpu_card.title}, and the formula is for dense models in 16 bits"
    fix = "choose a card with measured kernels, or a dense model in 16 bits"
    require(source != "kernels" or gpu_card.kernels is not None, what, fix=fix)
    gpu_card.require_links(tensor_parallel)
    return ModelledGpu(
        card=gpu_card,
        folder=folder,
        tensor_parallel=tensor_parallel,
        source=source,
        overhead_ms=default_overhead_ms(folder, source) if overhead_ms is None else overhead_ms,
        tokenizer=tokenizer,
    )


OVERHEAD_MS_PER_LAYER = 0.042
"""Engine and host time per layer and step, added to the formula: the median of three hosts with vLLM 0.19 and 0.20 (RTX
4090, RTX PRO 6000, A100), each from one point of light load; hosts with 0.8 to 0.11 had 0.05 to 0.07."""


def default_overhead_ms(folder: Path, source: modelled_settings.Source) -> float:
    """Return the time that engine and host add to a step: 0 with measured kernels, whose served points need none."""
    return 0.0 if source == "kernels" else OVERHEAD_MS_PER_LAYER * architecture(folder).layers


def batch_defaults(card: Card, *, server: bool) -> tuple[int, int]:
    """Return vLLM 0.32's max_num_batched_tokens and max_num_seqs (engine/arg_utils.py, get_batch_defaults)."""
    if card.memory_bytes >= 160 * 2**30:
        return 16384, 1024
    if card.memory_bytes >= 70 * 2**30 and "a100" not in card.title.lower():
        return (8192 if server else 16384), 1024
    return (2048 if server else 8192), 256


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if value is True:
        return [flag]
    return [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
