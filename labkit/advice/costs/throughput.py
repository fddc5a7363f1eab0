"""Throughput as the calculator takes it: entered, the article's, or measured (see `measured.py`)."""

from typing import Any, Literal

from pydantic import Field

from labkit.advice.costs.checked import Checked
from labkit.advice.costs.prices import figures
from labkit.errors import UsageError

Counts = Literal["output", "total"]
ENTERED = "entered, not measured"


class Throughput(Checked):
    """Tokens/s of `gpus` GPUs (0: of a whole machine, whatever is in it), with their interval where measured.

    `counts`: output tokens only, or input tokens as well ("total"): two very different figures of the same machine.
    `label` says where it is from, `machine` on what it was measured.
    """

    tokens_per_s: float = Field(gt=0, strict=True)
    low: float | None = Field(default=None, gt=0, strict=True)
    high: float | None = Field(default=None, gt=0, strict=True)
    counts: Counts = "output"
    gpus: int = Field(default=0, ge=0, le=1024, strict=True)
    label: str = ENTERED
    measured: bool = False
    machine: str = ""

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval's ends; twice the value where there is no interval."""
        low = self.tokens_per_s if self.low is None else min(self.low, self.tokens_per_s)
        return low, self.tokens_per_s if self.high is None else max(self.high, self.tokens_per_s)

    @classmethod
    def refusal(cls, name: str, kind: str, value: Any) -> UsageError:
        """What is wrong with a field, under the name of its setting."""
        if kind == "greater_than":
            what = "throughput" if name == "tokens_per_s" else f"throughput_{name}"
            return UsageError(
                f"the {what} is {value:g} tokens/s; it must be above 0",
                remedy="measure it (labkit load URL --model NAME --json) or enter what you expect",
            )
        remedies = {"counts": "use output or total", "gpus": "use the number of GPUs, or 0: a whole machine"}
        if name in remedies:
            return UsageError(f"throughput_{name} is {value!r}", remedy=remedies[name])
        return UsageError(f"throughput_{name} is {value!r}, not a number", remedy="give it a number above 0")


def article_throughput() -> Throughput:
    """The article's figure for a p4d: the fallback where nothing has been measured."""
    article = figures()
    label = f"the article's figure ({article.tokens_per_hour:,} tokens an hour on {article.gpus} GPUs), not measured"
    return Throughput(tokens_per_s=article.tokens_per_hour / 3600, counts="total", gpus=article.gpus, label=label)
