"""One replica and one GPU, as the audit finds them."""

from dataclasses import dataclass

from labkit.fractions.asked import Deployment


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One replica: the GPUs that Ray gives it (none: it waits), and what it finds there when it starts.

    `rest_bytes`: what it holds on each of its GPUs once it runs. `free_bytes`: what it finds free, on the fullest of
    them. `kv_tokens` and `at_full_length` (requests of the longest kind that fit at once): None where the model's
    architecture is not known. `refused` says why it does not start; "" if it does, or is not placed.
    """

    name: str
    deployment: Deployment
    gpus: tuple[int, ...]
    rest_bytes: int
    free_bytes: int = 0
    kv_bytes: int = 0
    kv_tokens: int | None = None
    longest_tokens: int | None = None
    at_full_length: float | None = None
    refused: str = ""

    @property
    def starts(self) -> bool:
        """Placed, and enough memory is free when its turn comes."""
        return bool(self.gpus) and not self.refused


@dataclass(frozen=True, kw_only=True)
class GpuAudit:
    """One GPU: the replicas that Ray puts there, the sum of their num_gpus, and the memory that all want at rest."""

    index: int
    replicas: tuple[str, ...]
    fraction: float
    rest_bytes: int
    total_bytes: int

    @property
    def fits(self) -> bool:
        """Whether all of it fits at rest."""
        return self.rest_bytes <= self.total_bytes
