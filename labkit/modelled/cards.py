"""Modelled GPUs, from data/gpus.yaml, with the source of each figure."""

from collections.abc import Mapping
from functools import cache
from typing import Literal

from pydantic import Field

from labkit.errors import require
from labkit.files import Frozen, data_path, read_named

MOST_LINKED = 8
Evidence = Literal["served", "kernels", "borrowed", "none"]


class Sheet(Frozen):
    """Source and date of the card's figures."""

    source: str
    date: str | object


class KernelTables(Frozen):
    """The folder and vLLM version of aiconfigurator-core's measured kernels."""

    system: str
    version: str


class Efficiency(Frozen):
    """Assumed shares of the data sheet's FLOP/s (mfu) and bytes/s (mbu) in the formula."""

    mfu: float = Field(gt=0, le=1)
    mbu: float = Field(gt=0, le=1)
    source: str


class Card(Frozen):
    """One GPU: its data sheet and sources of step times. `nvml`: the name NVML reports.

    `evidence`: served = compared with serving measurements of real cards; kernels = only kernel times were measured;
    borrowed = data sheet with another card's efficiency; none = no step times.
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

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * 2**30)

    @property
    def bytes_per_s(self) -> float:
        return self.bandwidth_gb_per_s * 1e9

    @property
    def flops(self) -> float | None:
        """Dense 16-bit FLOP/s, if the sheet has them."""
        tflops = self.bf16_tflops or self.fp16_tflops
        return None if tflops is None else tflops * 1e12

    def require_links(self, tensor_parallel: int) -> None:
        """UsageError unless NVLink joins that many cards: of one machine only."""
        given = f"tensor_parallel is {tensor_parallel}"
        what = f"{given}, and {self.title} has no NVLink: PCIe all-reduces are not modelled"
        fix = "choose one of the cards with nvlink_gb_per_s in data/gpus.yaml, or one GPU"
        require(tensor_parallel == 1 or self.nvlink_gb_per_s is not None, what, fix=fix)
        what = f"{given}: all-reduces between machines of {MOST_LINKED} GPUs are not modelled"
        require(tensor_parallel <= MOST_LINKED, what, fix=f"choose {MOST_LINKED} GPUs or fewer")


@cache
def known() -> Mapping[str, Card]:
    """Return all cards by name. UsageError for an invalid entry."""
    return read_named(data_path("gpus.yaml"), Card)


def find(name: str) -> Card:
    """Return the card of that name, or raise a UsageError with all names."""
    require(name.lower() in known(), f"there is no modelled card {name!r}", fix=f"choose one of {', '.join(known())}")
    return known()[name.lower()]


def reported_as(nvml_name: str) -> Card | None:
    """Return the card with this NVML name; None for unknown cards and MIG instances."""
    return next((card for card in known().values() if card.nvml == nvml_name), None)
