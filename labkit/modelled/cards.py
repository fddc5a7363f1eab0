"""GPUs that can be modelled: data/gpus.yaml, with the source of each figure."""

from collections.abc import Mapping
from functools import cache
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from labkit.errors import RecordError, UsageError
from labkit.files import data_path

Evidence = Literal["served", "kernels", "borrowed", "none"]


class _Base(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sheet(_Base):
    """Where the card's figures were read, and when."""

    source: str
    date: str | object


class KernelTables(_Base):
    """The folder and vLLM version of aiconfigurator-core's measured kernels."""

    system: str
    version: str


class Efficiency(_Base):
    """Shares of the data sheet's FLOP/s (mfu) and bytes/s (mbu) that the formula takes as reached."""

    mfu: float = Field(gt=0, le=1)
    mbu: float = Field(gt=0, le=1)
    source: str


class Price(_Base):
    """USD for an hour of the card, with its source and date."""

    value: float = Field(gt=0)
    source: str
    date: str | object


class Card(_Base):
    """One GPU: its data sheet, and what is known about how long kernels take on it. `nvml`: the name NVML reports.

    `evidence`: served = compared with served measurements of real cards; kernels = only kernel times were measured;
    borrowed = data sheet with another card's efficiency; none = no step time can be given.
    """

    name: str
    title: str
    nvml: str
    memory_gib: float = Field(gt=0)
    bandwidth_gb_per_s: float = Field(gt=0)
    nvlink_gb_per_s: float | None = None
    bf16_tflops: float | None = None
    fp16_tflops: float | None = None
    fp8_tflops: float | None = None
    sheet: Sheet
    kernels: KernelTables | None = None
    efficiency: Efficiency | None = None
    evidence: Evidence
    usd_per_hour: Price | None = None

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * 2**30)

    @property
    def bytes_per_s(self) -> float:
        return self.bandwidth_gb_per_s * 1e9

    @property
    def flops(self) -> float | None:
        """Dense 16-bit FLOP/s, where the sheet has them."""
        tflops = self.bf16_tflops or self.fp16_tflops
        return None if tflops is None else tflops * 1e12


@cache
def known() -> Mapping[str, Card]:
    """All cards by name. RecordError names the entry that is wrong."""
    entries = yaml.safe_load(data_path("gpus.yaml").read_text(encoding="utf-8"))
    try:
        return {name: Card(name=name, **entry) for name, entry in entries.items()}
    except (ValidationError, TypeError) as error:
        raise RecordError(f"data/gpus.yaml: {error}", remedy="correct that entry") from error


def find(name: str) -> Card:
    """The card of that name. UsageError lists those that there are."""
    card = known().get(name.lower())
    if card is None:
        raise UsageError(f"there is no modelled card {name!r}", remedy=f"choose one of {', '.join(known())}")
    return card


def reported_as(nvml_name: str) -> Card | None:
    """The card with the name that NVML reports; None for others, and for a MIG instance, which is only part of one."""
    return next((card for card in known().values() if card.nvml == nvml_name), None)
