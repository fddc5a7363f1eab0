"""The modelled card and its step times, as the executor gets them: JSON under `modelled_gpu` in --additional-config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field

from labkit.errors import UsageError
from labkit.files import Frozen, validated
from labkit.modelled import cards
from labkit.modelled.shapes import shape_of
from labkit.modelled.step_time import Fitted, Formula, Kernels, StepTime

KEY = "modelled_gpu"
Source = Literal["kernels", "formula", "fitted"]


class Settings(Frozen):
    """A card, where its step times come from, and the pace of the clock."""

    card: str | None = None
    source: Source = "formula"
    overhead_ms: float = Field(default=0.0, ge=0)
    """What engine and host add to each step."""
    real_time: bool = False
    coefficients: Mapping[str, float] | None = None
    """Of a fitted step time (`calibrate`); then there is no card."""

    @classmethod
    def read(cls, additional_config: Any) -> Self:
        """From vLLM's additional_config. UsageError says what is wrong with it."""
        found = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
        if found is None:
            raise UsageError(
                f"additional_config has no {KEY!r}: the modelled GPU does not know which card it is",
                remedy='pass --additional-config \'{"modelled_gpu": {"card": "h100-sxm"}}\'',
            )
        return validated(found, cls, where=f"additional_config, {KEY},", remedy="use what labkit.modelled.gpu gives")

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
