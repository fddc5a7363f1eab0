"""Prometheus metrics: read a server's /metrics page, or take the difference of two readings."""

import difflib
import math
import re
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from labkit.errors import ServerError, UsageError, require
from labkit.load import address

Labels = frozenset[tuple[str, str]]
Series = tuple[str, Labels]
# Bypass proxies, as the load client does: they cannot reach loopback.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# Metrics whose series cannot be added: shares, averages, extremes, times, labels in the form of a metric.
NOT_ADDED = re.compile(
    r"[_:](perc|percent|percentage|ratio|rate|share|fraction|util|utili[sz]ation|usage|mean|avg|average|median|min|max"
    r"|p\d+|info|created|timestamp|time_seconds)$|Utili[sz]ation$"
)
# Ray exports counters as gauges, too (RAY_EXPORT_COUNTER_AS_GAUGE, the default), in some versions only as gauges. A
# gauge is treated as a counter if its name or help text counts events and does not describe a state.
COUNTS_UP = re.compile(
    r"_counter:|\b(number|count|total) of\b.*\b(processed|occurred|errored|failed|served|received|completed|finished"
    r"|sent|have been|has been)\b|\bnumber of times\b|\bDEPRECATED, use \w+_total\b",
    re.IGNORECASE,
)
IS_A_STATE = re.compile(
    r"\b(current|currently|ongoing|pending|waiting|running|queued|being|last|average)\b", re.IGNORECASE
)
SUFFIXES = ("_total", "_bucket", "_sum", "_count")
EMPTY = (
    "is the server's metrics page on (TorchServe: metrics_mode=prometheus; vLLM: no --disable-log-stats), and has it "
    "answered a request?"
)


@dataclass(frozen=True)
class Histogram:
    """A Prometheus histogram: `buckets` are (upper bound, observations up to it), ascending, ending at infinity."""

    buckets: tuple[tuple[float, float], ...]
    sum: float
    count: float

    @property
    def mean(self) -> float:
        """Sum / count (exact); NaN without observations."""
        return self.sum / self.count if self.count else math.nan


@dataclass(frozen=True)
class Counters:
    """The samples of one reading at `taken_s` (seconds since the epoch) or of a difference, and each family's type.

    Names are the server's documented ones, with or without a counter's `_total`."""

    taken_s: float
    samples: Mapping[Series, float]
    kinds: Mapping[str, str]

    def value(self, name: str, **labels: str) -> float:
        """Return the counter or gauge `name`, summed over all series with these `labels` (such as a server's engines).

        UsageError without such a series, or if they cannot be added: shares, averages, extremes, times (NOT_ADDED)."""
        series = self.series(name, **labels)
        if not series:
            raise self._unknown(name, labels)
        additive = len(series) == 1 or not (NOT_ADDED.search(name) or self.kinds.get(name) == "summary")
        what = f"{name} has {len(series)} series, and shares, averages and the like cannot be added: {_shown(series)}"
        require(additive, what, fix="choose one by its labels")
        return math.fsum(series.values())

    def series(self, name: str, **labels: str) -> dict[Labels, float]:
        """Return all series of the counter or gauge `name` with these `labels`: {all labels: value}."""
        totals = dict(self._matching(f"{name}_total", labels)) if self.kinds.get(name) == "counter" else {}
        return totals or dict(self._matching(name, labels))

    def histogram(self, name: str, **labels: str) -> Histogram:
        """Return the histogram `name`, summed over all series with these `labels`. UsageError without any."""
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
        return tuple(sorted(self.kinds))

    def _matching(self, sample: str, labels: Mapping[str, str]) -> Iterator[tuple[Labels, float]]:
        wanted = labels.items()
        return ((key, value) for (name, key), value in self.samples.items() if name == sample and wanted <= set(key))

    def _unknown(self, name: str, labels: Mapping[str, str]) -> UsageError:
        if not self.samples:
            return UsageError(f"the page is empty: it has no metric {name!r}", remedy=EMPTY)
        family = name if name in self.kinds else name.removesuffix("_total")
        names = {name, *(f"{family}{end}" for end in SUFFIXES)}
        keys = {key for (sample, key) in self.samples if sample in names}
        if keys and not any(labels.items() <= set(key) for key in keys):
            what = f"no series of {name!r} has the labels {dict(labels)}"
            return UsageError(what, remedy=f"choose among {_shown(keys, most=5)}")
        if keys:
            fix = "read a histogram with .histogram(), anything else with .value()"
            return UsageError(f"{name!r} is a {self.kinds.get(family, 'part of another metric')}", remedy=fix)
        if family in self.kinds:
            fix = "it gets one with the first such event: read the page again afterwards"
            return UsageError(f"the server declares {name!r}, but has no value of it yet", remedy=fix)
        near = difflib.get_close_matches(family, self.names)
        fix = f"did you mean {', '.join(near)}?" if near else f"see .names: it has {len(self.names)} metrics"
        shown = f" with labels {dict(labels)}" if labels else ""
        return UsageError(f"the server has no metric {name!r}{shown}", remedy=fix)


def _shown(keys: Iterable[Labels], most: int | None = None) -> str:
    return "; ".join(sorted(str(dict(sorted(key))) for key in keys)[:most])


def parse(text: str, *, taken_s: float = 0.0) -> Counters:
    """Parse the Prometheus text format. ServerError for anything else."""
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
    kinds: dict[str, str] = {}
    for family in families:
        counts_up = family.type == "gauge" and _counts_up(family.name, family.documentation)
        if kinds.get(family.name) != "counter":  # a counter and its duplicate gauge share a name
            kinds[family.name] = "counter" if counts_up else family.type
    return Counters(taken_s, samples, kinds)


def _counts_up(name: str, help_text: str) -> bool:
    text = f"{name}: {help_text}"
    return bool(COUNTS_UP.search(text)) and not IS_A_STATE.search(text.replace("_", " "))


def scrape(url: str, *, timeout_s: float = 10.0) -> Counters:
    """Read the metrics page of the server at `url` (root, .../v1 or .../metrics). ServerError if that fails."""
    root = address.parse(url).root
    page = root.removesuffix("/v1").removesuffix("/metrics").removesuffix("/v1") + "/metrics"
    try:
        with DIRECT.open(page, timeout=timeout_s) as response:
            text = response.read().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fix = "is the server running, with metrics on?"
        raise ServerError(f"{page} cannot be read: {error}", remedy=fix) from error
    return parse(text, taken_s=time.time())


def difference(before: Counters, after: Counters) -> Counters:
    """Return the growth of counters and histograms between two readings, and the gauges of `after`.

    `taken_s` is the time in between. A series missing in `before` counts from 0. ServerError if a counter fell, as
    after a restart."""
    samples = dict(after.samples)
    for series, value in after.samples.items():
        if _grows(series[0], after.kinds):
            samples[series] = value - before.samples.get(series, 0.0)
            if samples[series] < 0:
                what = f"{series[0]} fell by {-samples[series]:g} between two readings"
                raise ServerError(what, remedy="take both readings from one server process: did it restart?")
    return Counters(after.taken_s - before.taken_s, samples, after.kinds)


def _grows(sample: str, kinds: Mapping[str, str]) -> bool:
    family, _, part = sample.rpartition("_")
    if part in ("bucket", "sum", "count") and kinds.get(family) in ("histogram", "summary"):
        return True
    return "counter" in (kinds.get(sample), kinds.get(sample.removesuffix("_total")))
