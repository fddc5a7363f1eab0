"""What a request is, and a workload of them."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import msgspec

Messages = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Request:
    """One request: a `prompt`, or chat `messages` in its place.

    `max_tokens` bounds the answer; with `ignore_eos` (a vLLM extension) the answer is exactly so long. `group` tells
    the requests of one workload apart in results."""

    prompt: str
    max_tokens: int
    temperature: float = 0.0
    seed: int | None = None
    ignore_eos: bool = True
    messages: Messages | None = None
    group: str = ""


@dataclass(frozen=True)
class Workload:
    """Requests in the order in which they are sent, and the parameters that made them."""

    name: str
    requests: tuple[Request, ...]
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of the requests: equal exactly if two workloads ask the same."""
        return hashlib.sha256(msgspec.json.encode(self.requests)).hexdigest()
