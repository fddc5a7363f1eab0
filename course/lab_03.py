"""Lab 03: what a prefix cache finds (exercise), the lab's traffic and tables, and a router's rule (exercise)."""

from collections.abc import Mapping
from random import Random
from typing import Any

from course import page_prompts
from labkit.load import metrics
from labkit.load.workloads import poisson_arrivals_s
from labkit.modelled import Drive, TokenRequest, Traffic
from labkit.modelled.traffic import prompt_tokens
from labkit.session import LabSession
from labkit.teaching import solution

QUESTIONS = {"A": "\nWhat does the letter W mean?", "B": "\nAnd how do I silence the buzzer?"}
PAGE_TOKENS, QUESTION_TOKENS, ANSWER_TOKENS = 2000, 40, 16
MOST_EXTRA = 8


def common_tokens(before: list[int], prompt: list[int]) -> int:
    count = 0
    while count < min(len(before), len(prompt)) and before[count] == prompt[count]:
        count += 1
    return count


def _unchained(before: list[int], prompt: list[int], block_size: int) -> int:
    """Compare blocks one by one, without the blocks before them."""
    ends = range(block_size, min(len(before), len(prompt)) + 1, block_size)
    return block_size * sum(before[end - block_size : end] == prompt[end - block_size : end] for end in ends)


def hit_tokens(before: list[int], prompt: list[int], block_size: int) -> int:
    common = 0
    while common < min(len(before), len(prompt)) and before[common] == prompt[common]:
        common += 1
    most = len(prompt) - 1
    return min(common, most) // block_size * block_size


solution(
    "03.hit_tokens",
    hit_tokens,
    unit="tokens",
    worked=common_tokens,
    cases=[
        ([*range(100)], [*range(80), *range(300, 330)], 32),  # 80 in common: two and a half blocks
        ([*range(96)], [*range(96)], 32),  # cached to the end
        ([*range(70)], [*range(20), *range(500, 540)], 32),  # less than a block in common
        # equal from block 2 on
        ([*range(64), *range(200, 264)], [*range(400, 432), *range(32, 64), *range(200, 232)], 32),
        ([*range(48)], [*range(49)], 16),
        ([7, *range(1, 40)], [3, *range(1, 40)], 16),
        ([*range(33)], [*range(32), 900, *range(33, 70)], 16),
    ],
    wrong={
        "partial block counted": [
            lambda before, prompt, _size: common_tokens(before, prompt),
            lambda before, prompt, _size: min(common_tokens(before, prompt), len(prompt) - 1),
            lambda before, prompt, block_size: -(-common_tokens(before, prompt) // block_size) * block_size,
        ],
        "last token not computed": lambda before, prompt, size: common_tokens(before, prompt) // size * size,
        "blocks compared without their prefix": [
            _unchained,
            lambda before, prompt, block_size: min(_unchained(before, prompt, block_size), len(prompt) - 1),
        ],
        "blocks counted in place of tokens": [
            lambda before, prompt, block_size: min(common_tokens(before, prompt), len(prompt) - 1) // block_size,
            lambda before, prompt, block_size: common_tokens(before, prompt) // block_size,
        ],
    },
)


def route(cached_tokens: list[int], in_flight: list[int]) -> int:
    least = min(in_flight)
    open_to = [n for n, running in enumerate(in_flight) if running <= least + 8]
    return max(open_to, key=lambda n: (cached_tokens[n], -in_flight[n]))


def _most_cached(cached_tokens: list[int], in_flight: list[int]) -> int:
    return max(range(len(in_flight)), key=lambda n: (cached_tokens[n], -in_flight[n]))


def _least_loaded(_cached_tokens: list[int], in_flight: list[int]) -> int:
    return min(range(len(in_flight)), key=in_flight.__getitem__)


def _first_of_equal(cached_tokens: list[int], in_flight: list[int]) -> int:
    return max((n for n, m in enumerate(in_flight) if m <= min(in_flight) + 8), key=cached_tokens.__getitem__)


solution(
    "03.route",
    route,
    exact=True,
    cases=[
        ([0, 2000, 0, 512], [3, 5, 2, 0]),
        ([2000, 0, 0, 0], [12, 4, 3, 7]),
        ([0, 0, 0, 0], [4, 1, 3, 2]),
        ([2000, 2000, 0, 0], [8, 2, 0, 1]),
        ([16, 2000, 1024, 0], [0, 9, 8, 1]),
        ([2000, 0, 0, 0], [8, 0, 0, 0]),
        ([0, 1000], [2, 2]),
        ([700, 700, 0], [2, 2, 1]),
        ([0, 2000], [5, 12]),
    ],
    wrong={
        "queue length ignored": _most_cached,
        "the caches ignored": _least_loaded,
        "tie not broken by queue length": _first_of_equal,
        "no lead in requests allowed": lambda cached, in_flight: max(
            (n for n, m in enumerate(in_flight) if m == min(in_flight)), key=lambda n: cached[n]
        ),
    },
)


# --- the real engine's prompts ---


def page_and_question(
    documents: Any, encode: page_prompts.Encode, *, page_tokens: int, block_size: int
) -> dict[str, list[int]]:
    """Return prompts with a page before and after two questions. UsageError for a page that does not fill a block."""
    page_prompts.check_pages(documents, encode, page_tokens=page_tokens, pages=len(documents), block_size=block_size)
    page = list(encode(documents[3].text))[:page_tokens]
    question_tokens = {name: list(encode(text)) for name, text in QUESTIONS.items()}
    before = {f"page, then question {name}": page + question for name, question in question_tokens.items()}
    return before | {f"question {name}, then page": question + page for name, question in question_tokens.items()}


def default_evidence(lab: LabSession) -> None:
    """Record evidence on C17: whether the cache is on by default."""
    from importlib.metadata import version

    from vllm.config import CacheConfig

    lab.evidence("C17", enabled_by_default=bool(CacheConfig().enable_prefix_caching), vllm_version=version("vllm"))


# --- the modelled card's traffic and tables ---


def _ask(page: int, key: str, *, due_s: float = 0.0) -> TokenRequest:
    tokens = prompt_tokens(PAGE_TOKENS, key=f"page/{page}") + prompt_tokens(QUESTION_TOKENS, key=f"question/{key}")
    return TokenRequest(token_ids=tokens, output_tokens=ANSWER_TOKENS, due_s=due_s)


def page_requests(pages: int, *, order: str, seed: int) -> list[TokenRequest]:
    """One round: each of `pages` pages "in turn", or as many draws "at random"."""
    rng = Random(f"{order}/{seed}")
    chosen = range(pages) if order == "in turn" else [rng.randrange(pages) for _ in range(pages)]
    return [_ask(page, f"{seed}/{number}") for number, page in enumerate(chosen)]


def random_pages(pages: int, *, n: int, rate: float, seed: int) -> Traffic:
    """`n` questions about pages drawn at random, arriving as a Poisson process of `rate` per second."""
    rng = Random(f"random/{seed}")
    due = poisson_arrivals_s(n, rate=rate, seed=seed)
    return [_ask(rng.randrange(pages), f"{seed}/{number}", due_s=due_s) for number, due_s in enumerate(due)]


def pressure(driven: Drive) -> str:
    """Return the most concurrent requests and the largest share of KV blocks in use, in words."""
    moments = driven.moments[0]
    running, usage = max(moment.running for moment in moments), max(moment.kv_usage for moment in moments)
    return (
        f"at most {running} concurrent requests, KV usage at most {usage:.0%}, {driven.result.duration_s:.2f} s for all"
    )


def by_turn(driven: Drive) -> Any:
    """Prompt tokens, hit rate and median TTFT of each turn of conversations; a DataFrame."""
    import pandas as pd

    rows: dict[str, dict[str, float]] = {}
    records = driven.result.records
    for group in dict.fromkeys(record.group for record in records):
        mine = [n for n, record in enumerate(records) if record.group == group]
        input_tokens = sum(records[n].input_tokens or 0 for n in mine)
        rows[group] = {
            "prompt tokens, mean": round(input_tokens / len(mine)),
            "hit rate": round(sum(driven.cached_by_record[n] for n in mine) / input_tokens, 3),
            "TTFT p50, ms": round(1000 * metrics.quantity([records[n].ttft_s for n in mine]).p50, 1),
        }
    return pd.DataFrame(rows).T


def fleet_table(fleets: Mapping[str, Drive]) -> Any:
    """Hit rate, TTFT p50 and p90, and the busiest replica's share of requests, for each fleet; a DataFrame."""
    import pandas as pd

    rows = {}
    for name, driven in fleets.items():
        ttft = metrics.quantity([record.ttft_s for record in driven.result.records])
        busiest = max(driven.replica_of.count(n) for n in set(driven.replica_of)) / len(driven.replica_of)
        rows[name] = {
            "hit rate, %": round(100 * driven.prefix_hit_rate, 1),
            "TTFT p50, ms": round(1000 * ttft.p50, 1),
            "TTFT p90, ms": round(1000 * ttft.p90, 1),
            "busiest replica's share": round(busiest, 2),
        }
    return pd.DataFrame(rows).T


def speedup_evidence(
    lab: LabSession, times: Mapping[tuple[int, int], float], on: Mapping[tuple[int, int], Drive]
) -> None:
    """Record evidence on C05: the smallest and the largest gain from a shared prefix."""
    shared = {key: ratio for key, ratio in times.items() if key[0]}
    lab.evidence("C05", card=lab.parameters["card"])
    lab.exact("modelled_speedups", {f"{s} shared, answers of {n}": round(ratio, 3) for (s, n), ratio in times.items()})
    for name, key in {
        "least": min(shared, key=shared.__getitem__),
        "most": max(shared, key=shared.__getitem__),
    }.items():
        ratio = round(shared[key], 3)
        rate = round(on[key].prefix_hit_rate, 3)
        lab.evidence("C05", **{f"{name}_value": ratio, f"{name}_hit_rate": rate, f"{name}_output_tokens": key[1]})


def fleet_evidence(lab: LabSession, table: Any, *, replicas: int) -> None:
    """Record evidence on C52: hit rates of one replica, of several in turn, and with a prefix-aware router."""
    few, many, routed = (float(value) for value in table["hit rate, %"][:3])
    lab.evidence("C52", few=1, many=replicas, few_hits_percent=few, many_hits_percent=many, routed_hits_percent=routed)
