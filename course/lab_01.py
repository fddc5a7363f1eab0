"""Lab 01: vLLM against transformers in turns; exercises on the metrics of a serving engine and broken benchmarks."""

import math
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labkit.experiments import in_turns
from labkit.load import LoadResult, Outcome, RequestRecord
from labkit.teaching import solution

Ways = dict[str, list[float]]


def transformers_answers(model: Any, tokenizer: Any, prompts: Sequence[str], lengths: Sequence[int]) -> list[list[int]]:
    """Greedy answers of transformers' `generate` in one static batch: it decodes until the longest of `lengths`."""
    import torch

    with torch.inference_mode():
        inputs = tokenizer(list(prompts), return_tensors="pt", padding=True).to(model.device)
        rows = model.generate(
            **inputs, max_new_tokens=max(lengths), do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
    answers = rows[:, inputs.input_ids.shape[1] :].tolist()
    return [answer[:length] for answer, length in zip(answers, lengths, strict=True)]


def race(
    llm: Any, model: Any, tokenizer: Any, prompts: Sequence[str], lengths: Sequence[int], *, batch: int, repeats: int,
    seed: int,
) -> Ways:  # fmt: skip
    """Useful tokens per second of vLLM, static batches and one prompt at a time, in each of `repeats` rounds.

    Within a round the three take turns, a batch of prompts each, so that the same machine load meets all of them. On a
    CPU the clock is the processor's, which does not count waiting for a busy neighbour; on a GPU it is the wall's.
    """
    from vllm import SamplingParams

    wanted = [SamplingParams(temperature=0, max_tokens=length, ignore_eos=True) for length in lengths]
    batches = [slice(first, first + batch) for first in range(0, len(prompts), batch)]

    def vllm(part: slice) -> list[list[int]]:
        outputs = llm.generate(prompts[part], wanted[part], use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def static(part: slice) -> list[list[int]]:
        return transformers_answers(model, tokenizer, prompts[part], lengths[part])

    def one_by_one(part: slice) -> list[list[int]]:
        pairs = zip(prompts[part], lengths[part], strict=True)
        return [transformers_answers(model, tokenizer, [prompt], [length])[0] for prompt, length in pairs]

    ways = {"vLLM": (vllm, [slice(None)]), "static batch": (static, batches), "one by one": (one_by_one, batches)}

    def useful_tokens(name: str) -> Generator[None, None, int]:
        answer, parts = ways[name]
        tokens = 0
        for part in parts:
            tokens += sum(map(len, answer(part)))
            yield  # the others' turn
        return tokens

    vllm(slice(None)), static(batches[0])  # warm-up
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter
    rates: Ways = {name: [] for name in ways}
    for index in range(repeats):
        turns = in_turns({name: useful_tokens(name) for name in ways}, seed=seed + index, clock=clock)
        for name, turn in turns.items():
            rates[name].append(turn.result / turn.seconds)
    return rates


def goodput_falls_first(kept: Mapping[int, float], loads: Mapping[int, LoadResult]) -> bool:
    """Whether goodput falls and throughput grows between two neighbouring arrival rates."""
    rates = list(kept)
    throughput = [len(loads[rate].records) / loads[rate].duration_s for rate in rates]
    good = [kept[rate] * answered for rate, answered in zip(rates, throughput, strict=True)]
    return any(good[n + 1] < good[n] and throughput[n + 1] > throughput[n] for n in range(len(rates) - 1))


def http_ports() -> int:
    """Return how many ports of this process answer HTTP. The ports of a notebook's kernel do not."""
    from concurrent.futures import ThreadPoolExecutor

    import psutil

    from labkit.serving.process import answers_http

    connections = psutil.Process().net_connections("tcp")
    ports = {connection.laddr.port for connection in connections if connection.status == "LISTEN"}
    with ThreadPoolExecutor() as pool:
        return sum(pool.map(answers_http, ports))


@dataclass(frozen=True)
class Output:
    """One answer of a batch; `seconds` from handing over the batch until this answer was done."""

    token_ids: tuple[int, ...]
    seconds: float


def _batch(*lengths_and_seconds: tuple[int, float]) -> tuple[list[Output], float]:
    outputs = [Output(tuple(range(length)), seconds) for length, seconds in lengths_and_seconds]
    return outputs, max(output.seconds for output in outputs)


def _request(start_s: float, ttft_s: float, tpot_s: float, tokens: int, outcome: Outcome = Outcome.OK) -> RequestRecord:
    # Tokens arrive two to a chunk after the first one, so that chunks and tokens differ.
    times = tuple(start_s + ttft_s + tpot_s * token for token in range(tokens) if token % 2 == 0 or token == tokens - 1)
    return RequestRecord(
        index=0, scheduled_s=start_s, started_s=start_s, chunk_times_s=times, finished_s=max(times, default=start_s),
        input_tokens=16, output_tokens=tokens, outcome=outcome,
    )  # fmt: skip


STEADY = [
    _request(0.0, 0.3, 0.04, 20),
    # Two late starts, three slow decodes, one with both: every wrong way of counting gives another number.
    _request(0.5, 0.9, 0.05, 12),
    _request(0.6, 0.7, 0.06, 8),
    _request(1.0, 0.2, 0.12, 10),
    _request(1.1, 0.3, 0.15, 12),
    _request(1.1, 0.4, 0.11, 14),
    _request(1.1, 0.8, 0.14, 9),
    _request(1.2, 0.4, 0.00, 1),  # a single token: no TPOT
    _request(1.5, 0.2, 0.04, 6, Outcome.TIMEOUT),  # fast, then interrupted
    _request(2.0, 0.3, 0.00, 0, Outcome.CONNECTION),  # no token arrived
]
ON_TIME = [_request(0.0, 0.5, 0.25, 5), _request(0.25, 0.75, 0.25, 5)]  # the first just meets 0.5 s and 0.25 s
LATE = [_request(0.1 * n, 0.2 + 0.15 * n, 0.03 + 0.01 * n, 8 + n) for n in range(8)]


def _ok(requests: list[Any]) -> list[Any]:
    return [request for request in requests if request.ok]


def goodput(requests: list[Any], duration_s: float, ttft_slo_s: float, tpot_slo_s: float) -> float:
    good = 0
    for request in requests:
        if not request.ok or request.ttft_s > ttft_slo_s:
            continue
        if request.tpot_s is None or request.tpot_s <= tpot_slo_s:
            good += 1
    return good / duration_s


solution(
    "01.goodput",
    goodput,
    unit="requests per second",
    cases=[(STEADY, 4.0, 0.5, 0.1), (LATE, 2.5, 0.85, 0.065), (ON_TIME, 2.0, 0.5, 0.25)],
    wrong={
        "failed requests included": lambda requests, duration_s, ttft_slo_s, tpot_slo_s: (
            sum((r.ttft_s or 0) <= ttft_slo_s and (r.tpot_s or 0) <= tpot_slo_s for r in requests) / duration_s
        ),
        "only one of two objectives": [
            lambda requests, duration_s, ttft_slo_s, tpot_slo_s: (
                sum(r.ttft_s <= ttft_slo_s or (r.tpot_s or 0) <= tpot_slo_s for r in _ok(requests)) / duration_s
            ),
            lambda requests, duration_s, ttft_slo_s, _tpot: goodput(requests, duration_s, ttft_slo_s, math.inf),
            lambda requests, duration_s, _ttft, tpot_slo_s: goodput(requests, duration_s, math.inf, tpot_slo_s),
        ],
        "a share in place of a rate": lambda requests, _duration_s, ttft_slo_s, tpot_slo_s: goodput(
            requests, len(requests), ttft_slo_s, tpot_slo_s
        ),
        "throughput taken for goodput": lambda requests, duration_s, _ttft, _tpot: len(_ok(requests)) / duration_s,
        "'at most' taken for 'below'": lambda requests, duration_s, ttft_slo_s, tpot_slo_s: goodput(
            requests, duration_s, math.nextafter(ttft_slo_s, 0), math.nextafter(tpot_slo_s, 0)
        ),
        "a single token left out": lambda requests, duration_s, ttft_slo_s, tpot_slo_s: goodput(
            [r for r in requests if r.tpot_s is not None], duration_s, ttft_slo_s, tpot_slo_s
        ),
    },
)


def tokens_per_second(outputs: list[Output], seconds: float) -> float:
    return sum(len(output.token_ids) for output in outputs) / seconds


solution(
    "01.tokens_per_second",
    tokens_per_second,
    unit="tokens per second",
    cases=[_batch((8, 1.0), (20, 2.0), (13, 1.6)), _batch((30, 3.5), (5, 0.7), (12, 1.5), (9, 1.2))],
    wrong={
        "one output's tokens over the batch's time": [
            lambda outputs, seconds: len(outputs[0].token_ids) / seconds,
            lambda outputs, seconds: len(outputs[-1].token_ids) / seconds,
            lambda outputs, seconds: max(len(one.token_ids) for one in outputs) / seconds,
            lambda outputs, seconds: sum(len(one.token_ids) for one in outputs) / len(outputs) / seconds,
        ],
        "sum of the requests' rates": lambda outputs, _seconds: sum(
            len(one.token_ids) / one.seconds for one in outputs
        ),
        "one user's speed taken for the server's": lambda outputs, _seconds: (
            sum(len(one.token_ids) / one.seconds for one in outputs) / len(outputs)
        ),
        "overlapping request times added up": lambda outputs, _seconds: (
            sum(len(o.token_ids) for o in outputs) / sum(o.seconds for o in outputs)
        ),
        "requests counted in place of tokens": lambda outputs, seconds: len(outputs) / seconds,
    },
)


def tpot_s(chunk_times_s: list[float], output_tokens: int) -> float:
    return (chunk_times_s[-1] - chunk_times_s[0]) / (output_tokens - 1)


solution(
    "01.tpot",
    tpot_s,
    unit="seconds",
    tolerance=1e-3,
    wrong={
        "one token per chunk": [
            lambda chunk_times_s: tpot_s(chunk_times_s, len(chunk_times_s)),
            lambda chunk_times_s: tpot_s(chunk_times_s, len(chunk_times_s) + 1),
        ],
        "TTFT included": [
            lambda chunk_times_s, started_s, output_tokens: (chunk_times_s[-1] - started_s) / (output_tokens - 1),
            lambda chunk_times_s, started_s, output_tokens: (chunk_times_s[-1] - started_s) / output_tokens,
        ],
        "n gaps for n tokens": lambda chunk_times_s, output_tokens: tpot_s(chunk_times_s, output_tokens + 1),
    },
)
