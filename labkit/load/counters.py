"""The engine's own counters: a server's /metrics page, read once or as the difference of two readings."""

import difflib
import math
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from labkit import errors
from labkit.errors import ServerError, UsageError

Labels = frozenset[tuple[str, str]]
Series = tuple[str, Labels]


@dataclass(frozen=True)
class Histogram:
    """A Prometheus histogram: `buckets` are (upper bound, observations up to it), ascending, the last bound
    infinite."""

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
                return lower if math.isinf(upper) or math.isinf(lower) else _between(lower, upper, rank, below, up_to)
            lower, below = upper, up_to
        return lower


def _between(lower: float, upper: float, rank: float, below: float, up_to: float) -> float:
    return lower + (upper - lower) * (rank - below) / (up_to - below)


@dataclass(frozen=True)
class Snapshot:
    """The samples of one reading at `taken_s` (seconds since the epoch), or of a difference, and each family's type.

    Names are those of vLLM's documentation, with or without a counter's `_total`."""

    taken_s: float
    samples: Mapping[Series, float]
    kinds: Mapping[str, str]

    def value(self, name: str, **labels: str) -> float:
        """The counter or gauge `name`, summed over all its series that carry `labels` (such as the engines of a
        server).

        UsageError if there is none, or if a share (a gauge whose name ends in _perc or _ratio) would have to be
        summed."""
        found = self.series(name, **labels)
        if not found:
            raise self._unknown(name, labels)
        if len(found) > 1 and name.endswith(("_perc", "_ratio")):
            seen = "; ".join(sorted(str(dict(sorted(key))) for key in found))
            raise UsageError(f"{name} is a share with {len(found)} series: {seen}", remedy="choose one by its labels")
        return math.fsum(found.values())

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
        return Histogram(
            buckets=tuple(sorted(buckets.items())),
            sum=math.fsum(value for _, value in self._matching(f"{name}_sum", labels)),
            count=math.fsum(value for _, value in self._matching(f"{name}_count", labels)),
        )

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


def parse(text: str, *, taken_s: float = 0.0) -> Snapshot:
    """The Prometheus text format. ServerError if it is something else."""
    from prometheus_client.parser import text_string_to_metric_families

    samples: dict[Series, float] = {}
    kinds: dict[str, str] = {}
    try:
        for family in text_string_to_metric_families(text):
            kinds[family.name] = family.type
            for sample in family.samples:
                samples[sample.name, frozenset(sample.labels.items())] = float(sample.value)
    except (ValueError, KeyError, IndexError) as error:
        raise ServerError(f"not a Prometheus page: {error}", remedy="is this the server's /metrics?") from error
    return Snapshot(taken_s, samples, kinds)


def metrics_url(url: str) -> str:
    """`url` (a server's root, its .../v1 or its .../metrics) as the address of its metrics page."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise UsageError(f"{url!r} is not an http address", remedy="pass one such as http://127.0.0.1:8000")
    root = url.rstrip("/").removesuffix("/metrics").removesuffix("/v1")
    return f"{root}/metrics"


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Goes straight to the server, as the load client does: a proxy set for the outside knows nothing of loopback."""


def scrape(url: str, *, timeout_s: float = 10.0) -> Snapshot:
    """Reads the metrics page of the server at `url`. ServerError if it cannot be read."""
    page = metrics_url(url)
    try:
        with _DIRECT.open(page, timeout=timeout_s) as response:
            text = response.read().decode("utf-8")
    except (urllib.error.URLError, OSError, UnicodeDecodeError) as error:
        raise ServerError(
            f"{page} cannot be read: {error}", remedy="is the server running, with metrics on?"
        ) from error
    return parse(text, taken_s=time.time())


def difference(before: Snapshot, after: Snapshot) -> Snapshot:
    """What happened between two readings: counters and histograms as their growth, gauges as they are in `after`.

    `taken_s` is the time between them. A series that `before` lacks counts from 0. ServerError if a counter fell: the
    server was started again in between."""
    samples = {series: _growth(series, before, after) for series in after.samples}
    return Snapshot(after.taken_s - before.taken_s, samples, after.kinds)


def _growth(series: Series, before: Snapshot, after: Snapshot) -> float:
    name, value = series[0], after.samples[series]
    if not _grows(name, after.kinds):
        return value
    grown = value - before.samples.get(series, 0.0)
    if grown < 0:
        raise ServerError(
            f"{name} fell by {-grown:g} between two readings", remedy="did the server start again in between?"
        )
    return grown


_HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")


def _grows(sample: str, kinds: Mapping[str, str]) -> bool:
    if kinds.get(sample.removesuffix("_total")) == "counter":
        return True
    return any(
        sample.endswith(part) and kinds.get(sample.removesuffix(part)) in ("histogram", "summary")
        for part in _HISTOGRAM_PARTS
    )
