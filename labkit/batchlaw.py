"""What server-side batching does, from four numbers: batch size, delay, and the cost of a batch and of a row in it.

A batch of n rows takes `fixed_s + per_row_s * n`. Clients are a closed loop: each sends again as soon as it has its
answer. The server (TorchServe's rule) hands over what has come as soon as the batch is full, or `delay_s` after its
first request. Left out: the server's own time for a batch, and the clients' for their next request, which must come
within the delay. The residual shows what these amount to.
"""

from dataclasses import dataclass

from labkit.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class BatchCost:
    """Seconds for every batch, and for every row in it."""

    fixed_s: float
    per_row_s: float

    def __post_init__(self) -> None:
        if min(self.fixed_s, self.per_row_s) < 0 or self.fixed_s + self.per_row_s <= 0:
            raise UsageError(f"{self} is no cost", remedy="give two numbers of 0 or more, not both 0")

    def seconds(self, rows: int) -> float:
        """What a batch of `rows` takes."""
        return self.fixed_s + self.per_row_s * rows


@dataclass(frozen=True, kw_only=True)
class Law:
    """What the law says of one setting under one load."""

    rows: int
    """Requests in a batch."""
    throughput: float
    """Requests a second."""
    latency_s: float
    """From a request to its answer, on average."""


def law(cost: BatchCost, *, clients: int, batch_size: int, delay_s: float) -> Law:
    """A closed loop of `clients` on one worker. UsageError for a count below 1 or a negative delay.

    Enough clients fill every batch, and nobody waits for the delay; too few never do, and all pay it every time. The
    latency is Little's: clients / throughput.
    """
    if min(clients, batch_size) < 1 or delay_s < 0:
        raise UsageError(
            f"{clients} clients, batches of {batch_size}, a delay of {delay_s} s",
            remedy="give counts from 1, and 0 s or more",
        )
    rows = min(clients, batch_size)
    round_s = cost.seconds(rows) + (delay_s if rows < batch_size else 0.0)
    return Law(rows=rows, throughput=rows / round_s, latency_s=clients * round_s / rows)
