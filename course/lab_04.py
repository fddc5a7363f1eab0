"""Lab 04: a long prompt among running answers, real or modelled; exercises on budgets and on a scheduling rule."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from labkit import charts, modelled, models, words
from labkit.errors import require
from labkit.load import RequestRecord, metrics
from labkit.modelled import Drive, ModelledGpu, Traffic, traffic
from labkit.modelled.engine import batch_defaults
from labkit.modelled.settings import Source
from labkit.serving import vllm_steps
from labkit.session import LabSession
from labkit.teaching import solution

STREAM, LONG, NEWCOMER = "stream", "long prompt", "newcomer"
HEADROOM_STEPS = 8  # steps that answers continue after the long prompt
LOAD_S = 30  # seconds of chats


@dataclass(frozen=True)
class Point:
    """The results with one budget; `stalls_s` has the longest gap that each long prompt caused, in seconds."""

    budget: int
    gap_p50_s: float
    stalls_s: tuple[float, ...]
    ttft_s: float


def steps_alone(prompt_tokens: int, budget: int) -> int:
    return math.ceil(prompt_tokens / budget)  # no stream is decoding: the prompt may fill every step


def chunk_sizes(prompt_tokens: int, budget: int, decoding: int, threshold: int = 0) -> list[int]:
    most = budget - decoding
    if threshold > 0:
        most = min(most, threshold)
    full, rest = divmod(prompt_tokens, most)
    return [most] * full + ([rest] if rest else [])


solution(
    "04.chunks",
    chunk_sizes,
    unit="tokens",
    worked=steps_alone,
    cases=((3000, 512, 12, 0), (3000, 2048, 12, 300), (700, 128, 8, 256), (1000, 254, 4, 0), (900, 2048, 6, 0)),
    wrong={
        "decoding tokens ignored": [
            lambda tokens, budget, _decoding, threshold: chunk_sizes(tokens, budget, 0, threshold),
            lambda tokens, budget, _decoding, _threshold: chunk_sizes(tokens, budget, 0),
        ],
        "threshold ignored": lambda tokens, budget, decoding, _threshold: chunk_sizes(tokens, budget, decoding),
        "the threshold in place of the budget": lambda tokens, budget, decoding, threshold: chunk_sizes(
            tokens, threshold or budget - decoding, 0
        ),
        "decoding tokens subtracted from the threshold": lambda tokens, budget, decoding, threshold: chunk_sizes(
            tokens, min(budget, threshold or budget), decoding
        ),
        "the remainder dropped": lambda tokens, budget, decoding, threshold: chunk_sizes(
            tokens - tokens % min(budget - decoding, threshold or budget), budget, decoding, threshold
        ),
        "the last chunk padded": lambda tokens, budget, decoding, threshold: (
            [min(budget - decoding, threshold or budget)] * len(chunk_sizes(tokens, budget, decoding, threshold))
        ),
    },
)


def _largest(keeps: Callable[[Point, float], bool]) -> Callable[..., int]:
    """Chooses the largest budget whose point keeps the promise, by this rule."""
    return lambda points, slo_s: max((point.budget for point in points if keeps(point, slo_s)), default=0)


POINTS = [
    Point(256, 0.021, (0.11, 0.12, 0.11), 1.35),
    Point(4096, 0.024, (1.05, 1.07, 1.31), 1.12),
    Point(1024, 0.022, (0.32, 0.30, 0.33), 1.21),
    Point(2048, 0.023, (0.58, 0.45, 0.60), 1.16),
    Point(512, 0.021, (0.18, 0.25, 0.17), 1.27),
]


def largest_budget(points: list[Point], slo_s: float) -> int:
    keeping = [point.budget for point in points if max(point.stalls_s) <= slo_s]
    return max(keeping, default=0)


solution(
    "04.largest_budget",
    largest_budget,
    unit="tokens",
    cases=[(POINTS, slo_s) for slo_s in (0.5, 0.25, 1.2, 0.0225)],
    wrong={
        "judged by the median gap": _largest(lambda point, slo_s: point.gap_p50_s <= slo_s),
        "SLO ignored": _largest(lambda _point, _slo_s: True),
        "the smallest budget that meets it": lambda points, slo_s: min(
            (point.budget for point in points if max(point.stalls_s) <= slo_s), default=0
        ),
        "judged by the average stall": [
            _largest(lambda point, slo_s: fmean(point.stalls_s) <= slo_s),
            _largest(lambda point, slo_s: median(point.stalls_s) <= slo_s),
        ],
        "judged by the best case": _largest(lambda point, slo_s: min(point.stalls_s) <= slo_s),
        "judged by the long prompt's TTFT": _largest(lambda point, slo_s: point.ttft_s <= slo_s),
        "'at most' taken for 'below'": _largest(lambda point, slo_s: max(point.stalls_s) < slo_s),
    },
)


@dataclass(frozen=True)
class Waiting:
    """A request in the queue, with those fields of vLLM's own `Request` that a rule may look at."""

    request_id: str
    num_prompt_tokens: int


def next_up(waiting: list[Waiting]) -> list[Waiting]:
    return sorted(waiting, key=lambda request: request.num_prompt_tokens)


def _swapped(waiting: list[Waiting]) -> list[Waiting]:
    shortest = min(waiting, key=lambda request: request.num_prompt_tokens)
    return [shortest, *(request for request in waiting if request is not shortest)]


def _queue(*prompt_tokens: int) -> list[Waiting]:
    return [Waiting(f"{n}-{tokens:x}", tokens) for n, tokens in enumerate(prompt_tokens)]


solution(
    "04.next_up",
    next_up,
    exact=True,
    cases=[(_queue(6000, 300, 12000, 250, 300),), (_queue(80, 70, 80, 70),), (_queue(900),)],
    wrong={
        "longest first": [
            lambda waiting: sorted(waiting, key=lambda request: -request.num_prompt_tokens),
            lambda waiting: next_up(waiting)[::-1],
        ],
        "first come, first served": lambda waiting: list(waiting),
        "only the first request chosen": _swapped,
        "ties in reverse order": lambda waiting: next_up(waiting[::-1]),
        "requests dropped": [
            lambda waiting: [min(waiting, key=lambda request: request.num_prompt_tokens)],
            lambda waiting: [request for request in next_up(waiting) if request.num_prompt_tokens < 1000],
        ],
        "lengths in place of requests": lambda waiting: sorted(request.num_prompt_tokens for request in waiting),
        "sorted by request id": lambda waiting: sorted(waiting, key=lambda request: request.request_id, reverse=True),
    },
)


# --- the scene ---


def check_sizes(lab: LabSession) -> None:
    """Raise a UsageError for sizes that the engine would refuse, before it starts."""
    parameters = lab.parameters
    budgets, most, long = parameters["budgets"], parameters["max_model_len"], parameters["long_prompt_tokens"]
    positions = models.architecture(models.resolve(parameters["model"])).max_positions
    require(min(budgets) < max(budgets), f"budgets is {budgets}: nothing to compare", fix="give two that differ")
    too_long = f"max_model_len is {most}; the model supports {positions} positions"
    require(most <= positions, too_long, fix=f"pass max_model_len={positions} or less")
    no_answer = f"a prompt of {long} tokens and its answer are longer than max_model_len, {most}"
    require(long + 2 <= most, no_answer, fix=f"pass long_prompt_tokens={most - 2} or less")
    together, slots = parameters["streams"] + 2, parameters["max_num_seqs"]
    crowded = (
        f"{together - 2} streams, the long prompt and a newcomer are {together} sequences; max_num_seqs is {slots}"
    )
    require(together <= slots, crowded, fix=f"pass max_num_seqs={together} or more")
    small = f"the budget {min(budgets)} is below max_num_seqs, {slots}: a step could not hold one token of each"
    require(min(budgets) >= slots, small, fix="pass larger budgets, or a smaller max_num_seqs")


def scene(
    streams: int, long_tokens: int, *, at_s: Sequence[float], answer_tokens: int, short_tokens: int = 100
) -> Traffic:
    """Return `streams` answers from the start, and at each of `at_s` a long prompt directly followed by a newcomer."""
    late = [(LONG, long_tokens, 1), (NEWCOMER, short_tokens, 2)]
    requests = list(traffic.fixed(streams, input_tokens=short_tokens, output_tokens=answer_tokens, group=STREAM))
    for group, tokens, seed in late if at_s else ():
        # two tokens, so that the scheduler still has the request after the step that ends its prompt
        prompts = traffic.fixed(len(at_s), input_tokens=tokens, output_tokens=2, seed=seed, group=group)
        requests += traffic.arriving(prompts, at_s)
    return requests


@dataclass(frozen=True)
class Played:
    """A load that an engine has run; `computed`: the computed tokens of each request after each step."""

    driven: Drive
    computed: Sequence[Mapping[int, int]]

    def of(self, group: str) -> list[RequestRecord]:
        """The requests of a group, in the order of their arrival."""
        return [record for record in self.driven.result.records if record.group == group]

    @property
    def gaps_s(self) -> list[float]:
        """All gaps between two tokens of the streams."""
        return [gap for record in self.of(STREAM) for gap in record.itl_s]

    @property
    def stalls_s(self) -> tuple[float, ...]:
        """The longest gap of any stream that ended while a long prompt was computed, for each long prompt."""
        ends = [(b, b - a) for record in self.of(STREAM) for a, b in pairwise(record.chunk_times_s)]
        spans = [(record.started_s, record.chunk_times_s[0]) for record in self.of(LONG)]
        return tuple(max((gap for end, gap in ends if begin < end <= until), default=0.0) for begin, until in spans)

    def ttfts_s(self, group: str) -> list[float]:
        """From arrival to first token, for each request of a group."""
        return [record.chunk_times_s[0] - record.started_s for record in self.of(group)]

    def parts(self, record: RequestRecord) -> list[tuple[float, float, int]]:
        """Begin, end and tokens of each part in which a prompt was computed."""
        parts, before = [], 0
        for computed, moment in zip(self.computed, self.driven.moments[0], strict=True):
            after = min(computed.get(record.index, 0), record.input_tokens or 0)
            if after > before:
                parts.append((moment.end_s - moment.duration_s, moment.end_s, after - before))
            before = max(before, after)
        return parts

    def chunks(self) -> list[int]:
        """The sizes of the first long prompt's parts, in tokens."""
        return [tokens for _, _, tokens in self.parts(self.of(LONG)[0])]

    def lanes(self, *, before_s: float = 0.1, after_s: float = math.inf, most: int = 6) -> list[charts.Lane]:
        """Return some streams, the first long prompt and its newcomer as rows of a chart.

        They begin `before_s` before the prompt arrives."""
        long, newcomer = self.of(LONG)[0], self.of(NEWCOMER)[0]
        begin = max(0.0, long.started_s - before_s)

        def shown(record: RequestRecord) -> tuple[float, ...]:
            return tuple(at - begin for at in record.chunk_times_s if begin <= at <= begin + before_s + after_s)

        rows = [charts.Lane(f"answer {n}", shown(record)) for n, record in enumerate(self.of(STREAM)[:most], 1)]
        for record in (long, newcomer):
            parts = tuple((start - begin, end - begin, tokens) for start, end, tokens in self.parts(record))
            first = (record.chunk_times_s[0] - begin,)
            rows.append(charts.Lane(record.group, first, record.started_s - begin, parts, marked=False))
        return rows


def play(llm: Any, requests: Traffic) -> Played:
    """Drive an engine in this process through `requests`, and read its scheduler after each step."""
    pending, computed = vllm_steps.scheduler(llm).requests, list[dict[int, int]]()

    def look() -> None:
        computed.append({int(name.split("-")[0]): request.num_computed_tokens for name, request in pending.items()})

    driven = modelled.drive(llm, requests, each_step=look)
    return Played(driven, computed)


def streams_only_s(llm: Any, streams: int) -> float:
    """Return the median seconds of a step that computes only `streams` answers."""
    return median(play(llm, scene(streams, 0, at_s=(), answer_tokens=16, short_tokens=16)).gaps_s)


def answer_tokens(long_tokens: int, budget: int, streams: int) -> int:
    """Return the answer length, in tokens, that outlasts a long prompt arriving in the eighth step."""
    return 8 + len(chunk_sizes(long_tokens, budget, streams)) + HEADROOM_STEPS


# --- figures and evidence ---


def figures(played: Played) -> dict[str, float]:
    """Return what users notice in one scene, in milliseconds: maxima over all streams, long prompts and newcomers."""
    gaps = played.gaps_s
    figures_s = {"gap p50": median(gaps), "longest gap": max(gaps)}
    figures_s |= {f"TTFT, {group}": max(played.ttfts_s(group)) for group in (LONG, NEWCOMER)}
    return {f"{name} (ms)": round(1000 * value, 1) for name, value in figures_s.items()}


def picture(budget: int, played: Played) -> tuple[charts.Chart, str]:
    """Return a chart of the steps around the first long prompt and a line of figures, for the slider."""
    lanes, gap = played.lanes(after_s=1.1 * played.ttfts_s(LONG)[0]), words.amount(max(played.gaps_s), "s")
    chunks = len(played.chunks())
    steps = f"{chunks} chunks" if chunks > 1 else "one chunk"
    title = f"Budget {budget:,}: {steps}, and answers pause for up to {gap}"
    panel = f"{len(played.of(STREAM))} answers, {len(lanes) - 2} shown"
    chart = charts.token_streams({panel: lanes}, title=title, x_title="modelled seconds")
    waits = ", ".join(f"TTFT, {group} {words.amount(max(played.ttfts_s(group)), 's')}" for group in (LONG, NEWCOMER))
    return chart, f"Budget {budget:,}: longest gap {gap}, {waits}, {steps}"


def point(budget: int, played: Played) -> Point:
    """One budget's figures, for the exercise on promises."""
    return Point(budget, median(played.gaps_s), played.stalls_s, median(played.ttfts_s(LONG)))


def tradeoff_title(figures: Mapping[str, Mapping[str, float]], limited: str) -> str:
    """Return the trade-off's title: the setting in which a newcomer waits least."""
    first = min(figures, key=lambda name: figures[name]["TTFT, newcomer (ms)"])
    gap, wait = (words.amount(figures[first][f"{name} (ms)"] / 1000, "s") for name in ("longest gap", "TTFT, newcomer"))
    name = "The threshold" if first == limited else f"A budget of {first}"
    return f"{name} has the newcomer's lowest TTFT: {wait}, with gaps up to {gap}"


def default_budgets() -> dict[str, int]:
    """vLLM's default budget for a server on each card that can be modelled."""
    known = [card for card in modelled.cards.known().values() if card.evidence != "none"]
    return {card.name: batch_defaults(card, server=True)[0] for card in known}


def default_evidence(lab: LabSession, defaults: Mapping[str, int]) -> None:
    """Record evidence on C19: on how many of the cards the default is 2,048."""
    budgets = list(defaults.values())
    version = lab.recorder.record.versions["vllm"]
    lab.evidence("C19", cards=len(budgets), cards_at_2048=budgets.count(2048), vllm_version=version)
    lab.evidence("C19", smallest_default=min(budgets), largest_default=max(budgets))


def chats_and_reports(reports_per_minute: int, *, report_tokens: int, seed: int) -> Traffic:
    """Return half a minute of 10 chats/s (200 + 150 tokens) at random times, with long prompts at regular times."""
    chats = traffic.fixed(10 * LOAD_S, input_tokens=200, output_tokens=150, seed=seed, group=STREAM)
    requests, n = list(traffic.at_rate(chats, 10, seed=seed)), round(reports_per_minute * LOAD_S / 60)
    if n:
        reports = traffic.fixed(n, input_tokens=report_tokens, output_tokens=150, seed=seed + 1000, group=LONG)
        requests += traffic.arriving(reports, [LOAD_S * (k + 0.5) / n for k in range(n)])
    return requests


def tail(played: Played, freeze_s: float) -> dict[str, float]:
    """Return median and tail of the chats' gaps in milliseconds, and the share of chats with a gap above `freeze_s`."""
    chats, reports, gaps = played.of(STREAM), len(played.of(LONG)), metrics.quantity(played.gaps_s)
    frozen = sum(max(record.itl_s) > freeze_s for record in chats)
    gaps_ms = {"gap p50": gaps.p50, "gap p99": gaps.p99, "longest gap": gaps.max}
    return {f"{name} (ms)": round(1000 * value, 1) for name, value in gaps_ms.items()} | {
        "gaps above the SLO (%)": round(100 * sum(gap > freeze_s for gap in played.gaps_s) / gaps.count, 3),
        "chats that froze (%)": round(100 * frozen / len(chats), 1),
        "frozen per long prompt": round(frozen / reports, 1) if reports else 0.0,
    }


def tail_chart(tails: Mapping[int, Mapping[str, float]], limited: tuple[int, Mapping[str, float]]) -> charts.Chart:
    """The chats' gaps, median and tail, by long prompts per minute; `limited`: a rate and its tail with a threshold."""
    names = {"gap p50 (ms)": "median", "gap p99 (ms)": "p99", "longest gap (ms)": "longest"}
    points = [charts.LinePoint(rate, row[key], name) for key, name in names.items() for rate, row in tails.items()]
    points.append(charts.LinePoint(limited[0], limited[1]["longest gap (ms)"], "longest, with the threshold"))
    medians, longest = ([row[f"{name} (ms)"] for row in tails.values()] for name in ("gap p50", "longest gap"))
    title = f"The median is at most {max(medians):.1f} ms, the longest gap reaches {max(longest):.0f} ms"
    return charts.lines(points, title=title, x_title="long prompts per minute", y_title="gap (modelled ms)", unit="ms")


Rates = Mapping[str, Mapping[int, float]]


def prefill_rates(gpu: ModelledGpu, run: Callable[[ModelledGpu, int], Played], budgets: Sequence[int]) -> Rates:
    """Requests per second by source of the step times and budget; kernels only where they were measured on the card."""
    sources: dict[str, Source] = {"formula: an upper bound of the gain": "formula"}
    if gpu.card.kernels:
        sources[f"kernels measured with vLLM {gpu.card.kernels.version}"] = "kernels"
    rates = {}
    for name, source in sources.items():
        card = modelled.gpu(gpu.card.name, model=gpu.folder, source=source)
        results = {budget: run(card, budget).driven.result for budget in budgets}
        rates[name] = {budget: round(len(found.records) / found.duration_s, 3) for budget, found in results.items()}
    return rates


def _gains(rates: Rates) -> list[float]:
    """Return, for each source, the best rate above a budget of 2,048 over the rate at 2,048."""
    return [max(rate[budget] for budget in rate if budget > 2048) / rate[2048] for rate in rates.values()]


def gain_chart(rates: Rates) -> charts.Chart:
    """Requests per second by budget and source; the title says what budgets above 2,048 gain."""
    formula, *kernels = (f"{gain - 1:.0%}" for gain in _gains(rates))
    title = f"Above 2,048: at most {formula} more" + (f", {kernels[0]} by measured kernels" if kernels else "")
    points = [charts.LinePoint(budget, rate, name) for name, found in rates.items() for budget, rate in found.items()]
    axes = {"x_title": "max_num_batched_tokens", "y_title": "requests/s (modelled)"}
    return charts.lines(points, title=title, log_x=True, **axes)


def budget_evidence(lab: LabSession, longest_gap_s: Mapping[int, float], rates: Rates) -> None:
    """Record evidence on C20: the longest gap at 2,048, and what more gains where prefill is most of the work."""
    smallest, gains = min(longest_gap_s), _gains(rates)
    low = min(gains) if len(gains) > 1 else 1.0  # alone, the formula bounds the gain from above only
    stall = round(longest_gap_s[2048] / longest_gap_s[smallest], 2)
    lab.evidence("C20", stall=stall, smallest_budget=smallest, gain_low=round(low, 3), gain_high=round(max(gains), 3))


def burst(*, seed: int) -> Traffic:
    """200 requests at 50 per second: three of four with short prompts, the fourth with 6,000 tokens."""
    short = traffic.fixed(150, input_tokens=300, output_tokens=100, seed=seed, group="short")
    long = iter(traffic.fixed(50, input_tokens=6000, output_tokens=100, seed=seed + 1, group="long"))
    mixed = [request for n, one in enumerate(short) for request in ([one, next(long)] if n % 3 == 2 else [one])]
    return traffic.at_rate(mixed, 50, seed=seed)


def mean_ttfts(played: Played) -> dict[str, float]:
    """Mean and longest TTFT of short and long prompts, in seconds."""
    waits = {group: played.ttfts_s(group) for group in ("short", "long")}
    means = {f"mean TTFT, {group} (s)": round(fmean(found), 2) for group, found in waits.items()}
    return means | {f"longest TTFT, {group} (s)": round(max(found), 2) for group, found in waits.items()}
