"""The GPUs of an audit: rows of identical nodes, whose cards may differ, and how Ray schedules replicas."""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import ConfigDict, Field, model_validator

from labkit.errors import require, shortened
from labkit.files import Frozen
from labkit.modelled import cards

GIB = 2**30
MOST_GPUS = 1024

FromZero = Annotated[float, Field(ge=0, le=1e6)]
AboveZero = Annotated[float, Field(gt=0, le=1e6)]
CardGib = Annotated[float, Field(ge=0.01, le=1e6)]
Scheduling = Literal["spread", "pack"]


class Entry(Frozen):
    """A mapping in the file. A key without a value counts as missing."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {key: value for key, value in values.items() if value is not None}


class Gpus(Entry):
    """`nodes` identical nodes, each with `count` GPUs of `memory_gib`, or with one GPU for each memory in a list.

    `used_gib`: memory that other processes use on each card. `accelerator_type`: Ray's name of the card, such as A10G.
    """

    memory_gib: CardGib | Annotated[list[CardGib], Field(min_length=1)]
    count: int = Field(default=1, ge=1, le=MOST_GPUS)
    nodes: int = Field(default=1, ge=1, le=MOST_GPUS)
    used_gib: FromZero = 0.0
    accelerator_type: str | None = None

    @model_validator(mode="after")
    def _check_count(self) -> Self:
        if isinstance(self.memory_gib, list) and self.count not in (1, length := len(self.memory_gib)):
            raise ValueError(f"memory_gib lists {length} cards, count is {self.count}: give one of the two")
        return self

    @property
    def memories_gib(self) -> list[float]:
        """The memory of each card on a node."""
        return self.memory_gib if isinstance(self.memory_gib, list) else [self.memory_gib] * self.count


class Card(NamedTuple):
    """A GPU and the number of its node."""

    node: int
    total_bytes: int
    used_bytes: int

    @property
    def free_share(self) -> float:
        return (self.total_bytes - self.used_bytes) / self.total_bytes


class Cluster(Frozen):
    """All nodes, in Ray's order. `scheduling`: whether Serve spreads (its default) or packs; None: not given.

    `unread`: sentences about what a Ray Serve config leaves to its code; `without_gpu`: deployments without GPUs.
    """

    rows: tuple[Gpus, ...]
    scheduling: Scheduling | None = None
    unread: tuple[str, ...] = ()
    without_gpu: tuple[str, ...] = ()

    @property
    def on_cpus(self) -> list[str]:
        """A sentence about the deployments that request no GPU, if there are any."""
        names = shortened(", ".join(self.without_gpu))
        text = "these deployments request no GPU, unless their code has placement_group_bundles"
        return [f"{text}: {names}"] if names else []

    @cached_property
    def cards(self) -> tuple[Card, ...]:
        """All GPUs, node by node."""
        nodes = [row for row in self.rows for _ in range(row.nodes)]
        return tuple(
            Card(node, round(gib * GIB), round(row.used_gib * GIB))
            for node, row in enumerate(nodes)
            for gib in row.memories_gib
        )

    @property
    def gpus_per_node(self) -> list[int]:
        return [len(row.memories_gib) for row in self.rows for _ in range(row.nodes)]

    def nodes_with(self, accelerator_type: str | None) -> frozenset[int] | None:
        """Return the nodes with that type of card; None (all) if no type is required or no row names one."""
        if accelerator_type is None or not any(row.accelerator_type for row in self.rows):
            return None
        types = [row.accelerator_type for row in self.rows for _ in range(row.nodes)]
        return frozenset(node for node, node_type in enumerate(types) if node_type == accelerator_type)

    def larger(self, more: int) -> "Cluster":
        """Return the cluster with `more` GPUs on its only node, or with `more` nodes like the last."""
        *rows, last = self.rows
        one_node = not rows and last.nodes == 1 and not isinstance(last.memory_gib, list)
        key = "count" if one_node else "nodes"
        grown = last.model_copy(update={key: getattr(last, key) + more})
        return Cluster(rows=(*rows, grown), scheduling=self.scheduling)

    def check(self) -> None:
        """Raise UsageError for a card without free memory, or for too many GPUs."""
        for row in self.rows:
            used = f"gpu: used_gib is {row.used_gib:g} of {min(row.memories_gib):g} GiB: nothing is free"
            require(
                row.used_gib < min(row.memories_gib), used, fix="stop the process that uses it, or choose another GPU"
            )
        count = sum(len(row.memories_gib) * row.nodes for row in self.rows)
        many = f"there are {count:,} GPUs; the audit takes at most {MOST_GPUS:,}"
        require(0 < count <= MOST_GPUS, many, fix="audit a part of the cluster")


def memory_gib_of(accelerator_type: str) -> float | None:
    """Return the memory of Ray's type of card by data/gpus.yaml; None if it is unknown or, like A100, ambiguous."""
    name = accelerator_type.lower()
    names = {name, name.removesuffix("g")} if "-" in name else {name}  # A100-40G is a100-40
    sizes = {card.memory_gib for key, card in cards.known().items() if key in names or key.split("-")[0] in names}
    return sizes.pop() if len(sizes) == 1 else None
