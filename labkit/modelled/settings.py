"""The executor's settings: JSON under `modelled_gpu` in --additional-config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from labkit.errors import require
from labkit.files import Frozen, validated
from labkit.modelled import cards
from labkit.modelled.shapes import shape_of
from labkit.modelled.step_time import Fitted, Formula, Kernels, StepTime

KEY = "modelled_gpu"
Source = Literal["kernels", "formula", "fitted"]
WORKSPACE_BYTES = 2 * 2**30
"""Activations, CUDA graphs and the CUDA context, which vLLM subtracts from the cache. An assumption: on a real card
vLLM measures it (1.5 to 2.5 GiB for an 8B at the default token budgets)."""


class Settings(Frozen):
    """A card, the source of its step times, and its clock."""

    card: str | None = None
    source: Source = "formula"
    overhead_ms: float = Field(default=0.0, ge=0)
    """Engine and host time added to each step."""
    real_time: bool = False
    coefficients: Mapping[str, float] | None = None
    """For fitted step times (`calibrate`), without a card."""

    @classmethod
    def read(cls, additional_config: Any) -> Self:
        """Read vLLM's additional_config. UsageError if it is missing or invalid."""
        settings = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
        fix = 'pass --additional-config \'{"modelled_gpu": {"card": "h100-sxm"}}\''
        require(settings is not None, f"additional_config has no {KEY!r}, which names the modelled card", fix=fix)
        remedy = "use the value from labkit.modelled.gpu"
        return validated(settings, cls, where=f"additional_config, {KEY},", remedy=remedy)

    @property
    def title(self) -> str:
        return cards.find(self.card).title if self.card else "this machine, modelled"

    @property
    def memory_bytes(self) -> int:
        return cards.find(self.card).memory_bytes if self.card else 0

    @property
    def overhead_s(self) -> float:
        return self.overhead_ms / 1e3

    def step_time(self, folder: Path, tensor_parallel: int) -> StepTime:
        """The step times of the model in `folder`."""
        if self.source == "fitted":
            return Fitted(coefficients=self.coefficients or {})
        card = cards.find(self.card or "")
        if self.source == "kernels":
            return Kernels(card, folder, tensor_parallel=tensor_parallel)
        return Formula.of(card, shape_of(folder), tensor_parallel=tensor_parallel)
