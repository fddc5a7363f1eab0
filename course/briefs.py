"""The capstone's briefs (data/briefs.yaml): what three teams ask for, with the traffic of their day."""

from collections.abc import Sequence
from statistics import fmean

from pydantic import Field

from labkit.advice.costs.settings import LOADS
from labkit.files import Frozen, data_path, read_yaml
from labkit.load.metrics import Slo
from labkit.modelled import Traffic, traces
from labkit.modelled.traces import Lengths


class Options(Frozen):
    """Options of `traces.generated`."""

    kind: str
    inputs: Lengths | None = None
    outputs: Lengths | None = None
    templates: int | None = None
    template_tokens: int | None = None
    burstiness: float | None = None


class Brief(Frozen):
    """A brief's requirements. `lengths`: the `traffic` in words. `load`: the day's curve (costs.settings.LOADS).

    `answers`: the brief in the selector's terms. `ruled_out`: machines on which it may not run, and why. `most_busy`:
    the largest share of the capacity that may be used at the peak."""

    title: str
    story: str
    answers: dict[str, str]
    traffic: Options
    lengths: str
    load: str
    peak_per_s: float
    slo: Slo
    share: float
    usd_per_month: float
    least_billions: float
    least_replicas: int = 1
    ruled_out: dict[str, str] = Field(default_factory=dict)
    most_busy: float = 1.0
    limits: str = ""

    @property
    def rates(self) -> list[float]:
        """Requests per second of each hour of the day."""
        return [self.peak_per_s * share for share in LOADS[self.load]]

    def requests(self, rate: float, n: int, *, seed: int) -> Traffic:
        """`n` requests of the brief's kind at `rate` per second."""
        return traces.generated(n, rate=rate, seed=seed, **dict(self.traffic)).requests

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


BRIEFS = read_yaml(data_path("briefs.yaml"), dict[str, Brief])
