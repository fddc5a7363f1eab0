"""The GPUs that are audited: nodes alike in a row, cards alike or not on a node, and how Ray spreads replicas."""

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
    """A mapping of the file. A key without a value counts as left out."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {key: value for key, value in values.items() if value is not None}


class Gpus(Entry):
    """`nodes` nodes alike, each with `count` GPUs of `memory_gib`; a list of memories names unequal cards one by one.

    `used_gib`: what other processes use on each card. `accelerator_type`: Ray's name of the card, as A10G.
    """

    memory_gib: CardGib | Annotated[list[CardGib], Field(min_length=1)]
    count: int = Field(default=1, ge=1, le=MOST_GPUS)
    nodes: int = Field(default=1, ge=1, le=MOST_GPUS)
    used_gib: FromZero = 0.0
    accelerator_type: str | None = None

    @model_validator(mode="after")
    def _count_is_the_list(self) -> Self:
        if isinstance(self.memory_gib, list) and self.count not in (1, len(self.memory_gib)):
            raise ValueError(
                f"memory_gib lists {len(self.memory_gib)} cards, count is {self.count}: give one of the two"
            )
        return self

    @property
    def memories_gib(self) -> list[float]:
        """The memory of each card of a node."""
        return self.memory_gib if isinstance(self.memory_gib, list) else [self.memory_gib] * self.count


class Card(NamedTuple):
    """One GPU. `node`: the number of its node."""

    node: int
    total_bytes: int
    used_bytes: int

    @property
    def free_share(self) -> float:
        """The share of its memory that is free."""
        return (self.total_bytes - self.used_bytes) / self.total_bytes


class Cluster(Frozen):
    """All nodes, in Ray's order. `scheduling`: None where it is not said whether Serve spreads (its default) or packs.

    `unread`: what a Ray Serve config leaves to its code, in sentences; `without_gpu`: deployments that ask for none.
    """

    rows: tuple[Gpus, ...]
    scheduling: Scheduling | None = None
    unread: tuple[str, ...] = ()
    without_gpu: tuple[str, ...] = ()

    @property
    def on_cpus(self) -> list[str]:
        """A sentence about the deployments that ask for no GPU, if there are any."""
        names = shortened(", ".join(self.without_gpu))
        return [f"no GPU is asked for by {names}, unless their code has placement_group_bundles"] if names else []

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
        """How many GPUs each node has."""
        return [len(row.memories_gib) for row in self.rows for _ in range(row.nodes)]

    def nodes_with(self, accelerator_type: str | None) -> frozenset[int] | None:
        """The nodes with that type of card; None where all may have it: none is asked for, or no row names its own."""
        if accelerator_type is None or not any(row.accelerator_type for row in self.rows):
            return None
        types = [row.accelerator_type for row in self.rows for _ in range(row.nodes)]
        return frozenset(node for node, known in enumerate(types) if known == accelerator_type)

    def larger(self, more: int) -> "Cluster":
        """With so many more GPUs on the one node, or, where there are several, more nodes like the last."""
        *rows, last = self.rows
        one_node = not rows and last.nodes == 1 and not isinstance(last.memory_gib, list)
        key = "count" if one_node else "nodes"
        grown = last.model_copy(update={key: getattr(last, key) + more})
        return Cluster(rows=(*rows, grown), scheduling=self.scheduling)

    def check(self) -> None:
        """UsageError: a card of which nothing is free, or more GPUs than are audited."""
        for row in self.rows:
            used = f"gpu: used_gib is {row.used_gib:g} of {min(row.memories_gib):g} GiB: nothing is free"
            require(row.used_gib < min(row.memories_gib), used, fix="stop what uses it, or take another")
        count = sum(len(row.memories_gib) * row.nodes for row in self.rows)
        many = f"there are {count:,} GPUs; at most {MOST_GPUS:,} are audited"
        require(0 < count <= MOST_GPUS, many, fix="audit a part of the cluster")


def memory_gib_of(accelerator_type: str) -> float | None:
    """The memory of Ray's type of card, by data/gpus.yaml; None if it is not there or, as A100, has several sizes."""
    name = accelerator_type.lower()
    names = {name, name.removesuffix("g")} if "-" in name else {name}  # A100-40G is a100-40
    sizes = {card.memory_gib for key, card in cards.known().items() if key in names or key.split("-")[0] in names}
    return sizes.pop() if len(sizes) == 1 else None
