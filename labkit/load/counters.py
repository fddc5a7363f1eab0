"""The engine's own counters: a server's /metrics page, read once or as the difference of two readings."""

import difflib
import math
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from labkit import errors
from labkit.errors import ServerError, UsageError, require

Labels = frozenset[tuple[str, str]]
Series = tuple[str, Labels]
# Goes straight to the server, as the load client does: a proxy set for the outside knows nothing of loopback.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Histogram:
    """A Prometheus histogram: `buckets` are (upper bound, observations up to it), ascending, the last infinite."""

    buckets: tuple[tuple[float, float], ...]
    sum: float
    count: float

    @property
    def mean(self) -> float:
        """Sum / count, which is exact; NaN without observations."""
        return self.sum / self.count if self.count else math.nan

    def quantile(self, q: float) -> float:
        """The `q`-quantile (0 to 1) as PromQL's histogram_quantile estimates it: linear inside the bucket, from 0 in
        the first one if its bound is positive; the highest finite bound if it lies beyond; NaN without observations."""
        errors.number("q", q, high=1.0)
        total = self.buckets[-1][1] if self.buckets else 0.0
        if total == 0:
            return math.nan
        rank, lower, below = q * total, min(0.0, self.buckets[0][0]), 0.0
        for upper, up_to in self.buckets:
            if up_to >= rank and up_to > below:
                if math.isinf(upper) or math.isinf(lower):
                    return lower
                return lower + (upper - lower) * (rank - below) / (up_to - below)
            lower, below = upper, up_to
        return lower


@dataclass(frozen=True)
class Counters:
    """The samples of one reading at `taken_s` (seconds since the epoch), or of a difference, and each family's type.

    Names are those of vLLM's documentation, with or without a counter's `_total`."""

    taken_s: float
    samples: Mapping[Series, float]
    kinds: Mapping[str, str]

    def value(self, name: str, **labels: str) -> float:
        """The counter or gauge `name`, summed over all its series that carry `labels` (such as a server's engines).

        UsageError if there is none, or if a share (its name ends in _perc or _ratio) would have to be summed."""
        series = self.series(name, **labels)
        if not series:
            raise self._unknown(name, labels)
        seen = "; ".join(sorted(str(dict(sorted(key))) for key in series))
        one_share = len(series) == 1 or not name.endswith(("_perc", "_ratio"))
        require(one_share, f"{name} is a share with {len(series)} series: {seen}", fix="choose one by its labels")
        return math.fsum(series.values())

    def series(self, name: str, **labels: str) -> dict[Labels, float]:
        """All series of the counter or gauge `name` that carry `labels`: {their labels: value}."""
        sample = f"{name}_total" if self.kinds.get(name) == "counter" else name
        return dict(self._matching(sample, labels))

    def histogram(self, name: str, **labels: str) -> Histogram:
        """The histogram `name`, summed over all its series that carry `labels`. UsageError if there is none."""
        buckets: dict[float, float] = {}
        for key, value in self._matching(f"{name}_bucket", labels):
            bound = float(dict(key)["le"])
            buckets[bound] = buckets.get(bound, 0.0) + value
        if not buckets:
            raise self._unknown(name, labels)
        total, count = (
            math.fsum(value for _, value in self._matching(f"{name}_{part}", labels)) for part in ("sum", "count")
        )
        return Histogram(tuple(sorted(buckets.items())), total, count)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all families."""
        return tuple(sorted(self.kinds))

    def _matching(self, sample: str, labels: Mapping[str, str]) -> Iterator[tuple[Labels, float]]:
        wanted = labels.items()
        return ((key, value) for (name, key), value in self.samples.items() if name == sample and wanted <= set(key))

    def _unknown(self, name: str, labels: Mapping[str, str]) -> UsageError:
        near = difflib.get_close_matches(name.removesuffix("_total"), self.names)
        return UsageError(
            f"the server has no metric {name!r}{f' with labels {dict(labels)}' if labels else ''}",
            remedy=f"did you mean {', '.join(near)}?" if near else f"see .names: it has {len(self.names)} metrics",
        )


def parse(text: str, *, taken_s: float = 0.0) -> Counters:
    """The Prometheus text format. ServerError if it is something else."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        families = list(text_string_to_metric_families(text))
    except (ValueError, KeyError, IndexError) as error:
        raise ServerError(f"not a Prometheus page: {error}", remedy="is this the server's /metrics?") from error
    samples = {
        (sample.name, frozenset(sample.labels.items())): float(sample.value)
        for family in families
        for sample in family.samples
    }
    return Counters(taken_s, samples, {family.name: family.type for family in families})


def scrape(url: str, *, timeout_s: float = 10.0) -> Counters:
    """Reads the metrics page of the server at `url`: its root, its .../v1 or its .../metrics. ServerError if it cannot
    be read."""
    is_http = urlsplit(url).scheme in ("http", "https")
    require(is_http, f"{url!r} is not an http address", fix="pass one such as http://127.0.0.1:8000")
    page = url.rstrip("/").removesuffix("/metrics").removesuffix("/v1") + "/metrics"
    try:
        with DIRECT.open(page, timeout=timeout_s) as response:
            text = response.read().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ServerError(
            f"{page} cannot be read: {error}", remedy="is the server running, with metrics on?"
        ) from error
    return parse(text, taken_s=time.time())


def difference(before: Counters, after: Counters) -> Counters:
    """What happened between two readings: counters and histograms as their growth, gauges as they are in `after`.

    `taken_s` is the time between them. A series that `before` lacks counts from 0. ServerError if a counter fell: the
    server was started again in between."""
    samples = dict(after.samples)
    for series, value in after.samples.items():
        if _grows(series[0], after.kinds):
            samples[series] = value - before.samples.get(series, 0.0)
            if samples[series] < 0:
                raise ServerError(
                    f"{series[0]} fell by {-samples[series]:g} between two readings",
                    remedy="did the server start again in between?",
                )
    return Counters(after.taken_s - before.taken_s, samples, after.kinds)


def _grows(sample: str, kinds: Mapping[str, str]) -> bool:
    family, _, part = sample.rpartition("_")
    if part in ("bucket", "sum", "count") and kinds.get(family) in ("histogram", "summary"):
        return True
    return kinds.get(sample.removesuffix("_total")) == "counter"
