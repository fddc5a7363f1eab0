"""The batches and requests on which lab 01's functions are judged: small, uneven, with the awkward cases in."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Output:
    """One answer of a batch; `seconds` from handing over the batch until this answer was done."""

    token_ids: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class Timed:
    """One request, with those fields of `load.RequestRecord` that the exercises are about; seconds on one clock."""

    started_s: float
    chunk_times_s: tuple[float, ...]
    output_tokens: int
    outcome: str = "ok"


def _batch(*lengths_and_seconds: tuple[int, float]) -> tuple[list[Output], float]:
    outputs = [Output(tuple(range(length)), seconds) for length, seconds in lengths_and_seconds]
    return outputs, max(output.seconds for output in outputs)


def _request(start_s: float, ttft_s: float, tpot_s: float, tokens: int, outcome: str = "ok") -> Timed:
    # Tokens arrive two to a chunk after the first one, so that chunks and tokens differ.
    times = tuple(start_s + ttft_s + tpot_s * token for token in range(tokens) if token % 2 == 0 or token == tokens - 1)
    return Timed(start_s, times, tokens, outcome)


BATCHES = (_batch((8, 1.0), (20, 2.0), (14, 1.6)), _batch((30, 3.5), (5, 0.7), (12, 1.5), (9, 1.2)))

STEADY = [
    _request(0.0, 0.3, 0.04, 20),
    # Two late starts, three slow decodings, one of both: every wrong way of counting comes to another number.
    _request(0.5, 0.9, 0.05, 12),
    _request(0.6, 0.7, 0.06, 8),
    _request(1.0, 0.2, 0.12, 10),
    _request(1.1, 0.3, 0.15, 12),
    _request(1.1, 0.4, 0.11, 14),
    _request(1.1, 0.8, 0.14, 9),
    _request(1.2, 0.4, 0.00, 1),  # a single token: no TPOT
    _request(1.5, 0.2, 0.04, 6, "timeout"),  # fast, then broken off
    _request(2.0, 0.3, 0.00, 0, "connection"),  # nothing came
]
LATE = [_request(0.1 * n, 0.2 + 0.15 * n, 0.03 + 0.01 * n, 8 + n) for n in range(8)]

TPOT_CASES = ((STEADY,), (LATE,))
GOODPUT_CASES = ((STEADY, 4.0, 0.5, 0.1), (LATE, 2.5, 0.85, 0.065))
