"""The capstone's briefs: what three teams ask for, with the traffic of their day."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from labkit.advice.costs.settings import LOADS
from labkit.load.metrics import Slo
from labkit.modelled import Traffic, traces
from labkit.modelled.traces import Lengths


@dataclass(frozen=True, kw_only=True)
class Brief:
    """A brief's requirements. `traffic`: options of `traces.generated`. `load`: the day's curve (costs.settings.LOADS).

    `answers`: the brief in the selector's terms. `ruled_out`: machines on which it may not run, and why. `most_busy`:
    the largest share of the capacity that may be used at the peak."""

    title: str
    story: str
    answers: Mapping[str, str]
    traffic: Mapping[str, Any]
    lengths: str
    load: str
    peak_per_s: float
    slo: Slo
    share: float
    usd_per_month: float
    least_billions: float
    least_replicas: int = 1
    ruled_out: Mapping[str, str] = field(default_factory=dict)
    most_busy: float = 1.0
    limits: str = ""

    @property
    def rates(self) -> list[float]:
        """Requests per second of each hour of the day."""
        return [self.peak_per_s * share for share in LOADS[self.load]]

    def requests(self, rate: float, n: int, *, seed: int) -> Traffic:
        """`n` requests of the brief's kind at `rate` per second."""
        return traces.generated(n, rate=rate, seed=seed, **self.traffic).requests

    def mean_tokens(self, *, seed: int) -> tuple[int, int]:
        """Mean input and output tokens of a request."""
        drawn = self.requests(1.0, 1000, seed=seed)
        return round(fmean(len(r.token_ids) for r in drawn)), round(fmean(r.output_tokens for r in drawn))

    def weights(self, hours: Sequence[int]) -> dict[int, float]:
        """The share of the day's requests that each sampled hour stands for: each hour of the day counts with the
        sampled hours whose rate is nearest to its own."""
        weights = dict.fromkeys(hours, 0.0)
        for rate in self.rates:
            off = {hour: abs(self.rates[hour] - rate) for hour in hours}
            near = [hour for hour in hours if off[hour] <= min(off.values()) + 1e-9]
            for hour in near:
                weights[hour] += rate / sum(self.rates) / len(near)
        return weights

    @property
    def words(self) -> str:
        """The brief in Markdown."""
        data = {
            "must": "on machines that the company owns, or rents for itself alone: no vendor's API or endpoint",
            "cloud": "in our own cloud account: no vendor's API",
        }
        rows = {
            "Traffic": f"{self.peak_per_s:g} requests/s in the busiest hour; {self.lengths}",
            "Promise": f"{self.share:.0%} of requests: TTFT within {self.slo.ttft_s:g} s and "
            f"TPOT within {1000 * (self.slo.tpot_s or 0):g} ms",
            "Model": f"at least {self.least_billions:g} billion parameters",
            "Data": data.get(self.answers["host"], "may go to an API"),
            "Availability": f"at least {self.least_replicas} replicas"
            if self.least_replicas > 1
            else "one replica will do",
            "Budget": f"${self.usd_per_month:,.0f} per month for machines or API",
        }
        if self.limits:
            rows["Limits of the trial"] = self.limits
        lines = [f"| {name} | {text} |" for name, text in rows.items()]
        return "\n".join([f"**{self.title}.** {self.story}", "", "| | |", "|---|---|", *lines])


_COMMON = {"hardware": "cluster", "card": "80gb", "size": "9b", "slo": "p99", "rate": "medium", "prefixes": "yes"}
_MARKET = {"runpod-rtx-4090": "a marketplace of other people's hosts"}
BRIEFS = {
    "rag": Brief(
        title="Questions about the company's documents",
        story="Employees of all sites ask; a search adds passages to each prompt. No document may leave the company.",
        answers={**_COMMON, "kind": "rag", "host": "must", "context": "32k"},
        traffic={
            "kind": "conversation",
            "inputs": Lengths(median=3000, p90=5500, longest=12_000),
            "templates": 60,
            "template_tokens": 2048,
        },
        lengths="prompts of 3,000 tokens (median; 60 sets of passages of 2,048 tokens, asked for by Zipf's law: "
        "assumed); answers and gaps as in Azure's conversation trace of 2023",
        load="day",
        peak_per_s=20.0,
        slo=Slo(ttft_s=1.0, tpot_s=0.025),
        share=0.95,
        usd_per_month=7000,
        least_billions=7,
        least_replicas=2,
        ruled_out=_MARKET,
    ),
    "chat": Brief(
        title="An internal chat",
        story="Nine to five, in bursts. Nothing confidential is typed; an hour without it costs nothing.",
        answers={**_COMMON, "kind": "llm", "host": "may", "traffic": "burst", "priority": "cost"},
        traffic={"kind": "conversation", "burstiness": 13.0},
        lengths="lengths as in Azure's conversation trace of 2023 (median 1,020 and 129 tokens), gaps as bursty as in "
        "its code trace (squared coefficient of variation 13)",
        load="office",
        peak_per_s=16.0,
        slo=Slo(ttft_s=1.0, tpot_s=0.04),
        share=0.95,
        usd_per_month=2000,
        least_billions=7,
    ),
    "vision": Brief(
        title="Claims with photographs",
        story="An application sends two photographs and a form with each request, and writes a short assessment.",
        answers={**_COMMON, "kind": "llm", "host": "cloud"},
        traffic={
            "kind": "conversation",
            "inputs": Lengths(median=2400, p90=4200, longest=10_000),
            "outputs": Lengths(median=80, p90=220, longest=600),
            "templates": 1,
            "template_tokens": 256,
        },
        lengths="two images of 1,000 tokens and about 400 of text (assumed; Qwen2.5-VL has a token for 28 x 28 pixels, "
        "which is 999 for 1,024 x 768); answers of 80 tokens (median, assumed)",
        load="day",
        peak_per_s=14.0,
        slo=Slo(ttft_s=1.5, tpot_s=0.04),
        share=0.95,
        usd_per_month=5000,
        least_billions=7,
        least_replicas=2,
        ruled_out=_MARKET,
        most_busy=0.6,
        limits="The modelled GPU refuses multimodal input: the images are text tokens here, and the time and memory of "
        "the vision encoder are in no number. Leave 40% of the capacity free at the peak for it",
    ),
}
