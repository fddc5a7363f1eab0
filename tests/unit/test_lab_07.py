"""Lab 07: its exercises against a simulation, who waits for whom, its decode handler and its claims' rules."""

import heapq
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course import batches, lab_07
from handlers.steps import decode
from labkit.errors import UsageError
from labkit.modelled import traffic
from labkit.records import Scalar
from labkit.serving.ray_watch import Answer
from labkit.serving.torchserve import handlers_path
from tests.unit.verdicts import judged_otherwise


def simulated(clients: int, batch_size: int, delay_s: float, fixed_s: float, per_row_s: float) -> float:
    """Requests per second of one worker, event by event: it waits for a first request, then for others or the delay."""
    blink_s, last = 1e-9, 400  # between an answer and the client's next request; batches
    arrivals = [0.0] * clients
    now, counted_from, counted = 0.0, 0.0, 0
    for done in range(1, last + 1):
        opens = max(now, heapq.heappop(arrivals))
        rows, leaves = 1, opens
        while rows < batch_size:
            if not arrivals or arrivals[0] > opens + delay_s:
                leaves = opens + delay_s
                break
            leaves = max(leaves, heapq.heappop(arrivals))
            rows += 1
        now = leaves + fixed_s + per_row_s * rows
        for _ in range(rows):
            heapq.heappush(arrivals, now + blink_s)
        if done == last // 2:
            counted_from = now
        elif done > last // 2:
            counted += rows
    return counted / (now - counted_from)


@given(st.integers(1, 40), st.integers(1, 20), st.floats(0.001, 2.0), st.floats(0.01, 1.0), st.floats(0.0, 0.1))
def test_the_formula_is_what_a_simulation_gives(
    clients: int, batch_size: int, delay_s: float, fixed_s: float, per_row_s: float
) -> None:
    """For any setting the exercise's solution gives the throughput of a simulated worker."""
    case = (clients, batch_size, delay_s, fixed_s, per_row_s)
    assert lab_07.requests_per_s(*case) == pytest.approx(simulated(*case), rel=1e-3)


@given(st.integers(1, 600), st.sampled_from([0.25, 0.5, 1.0]), st.integers(0, 8), st.integers(1, 16))
def test_the_longest_answer_fits_and_one_token_more_does_not(
    timeout_s: int, share: float, first_s: int, eighths: int
) -> None:
    """Counted step by step, the answer ends within the share of the timeout; the next token would come after it."""
    step_s, end_s = eighths / 8, share * timeout_s
    tokens = lab_07.longest_answer(timeout_s, share, first_s, step_s, 4)
    assert first_s + step_s * (tokens - 1) <= end_s < first_s + step_s * tokens
    assert (tokens >= 1) == (first_s <= end_s)


# --- who waits ---


def answers(long_s: float, beside_s: float, later_s: float, *, tokens: int = 24) -> list[Answer]:
    """Eight answers as the lab sends them; the later four are sent after 0.3 s and end at `later_s` after that."""
    usage = json.dumps({"usage": {"completion_tokens": tokens}})
    ends = [(0.0, long_s), *[(0.0, beside_s)] * 3, *[(0.3, 0.3 + later_s)] * 4]
    return [Answer(sent_s, end_s, 200, usage) for sent_s, end_s in ends]


def test_who_waits_for_a_long_answer() -> None:
    """A short answer waits if it takes more than twice the time of a batch of short ones, here 0.5 s or less."""
    table = {(2.0, 2.0, 2.2): 2, (2.0, 2.0, 0.4): 1, (2.0, 0.3, 0.4): 0, (2.0, 0.3, 2.2): 0}
    found = {times_s: replace(batches.waits(answers(*times_s)), short_batch_s=0.5) for times_s in table}
    assert {times_s: batches.who_waits(waits) for times_s, waits in found.items()} == table


def test_the_times_of_a_batch_follow_from_two_lengths() -> None:
    """24 tokens in 2.5 s, 4 tokens in 0.5 s after that: a prefill of 0.2 s with the first token, and 0.1 s per step."""
    assert batches.batch_times(answers(2.5, 2.5, 2.7)) == pytest.approx((0.2, 0.1))
    with pytest.raises(UsageError, match=r"1 of 8 requests failed: \[503\]"):
        batches.waits([Answer(0.0, 1.0, 503), *answers(2.5, 2.5, 2.7)[1:]])


def test_a_static_batch_is_sent_when_its_longest_answer_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches of two, a step of a second for each token: the batches take 4 and 3 s, and each client waits as long
    as its batch; a scheduler sends each answer when it is complete."""

    def drive(_engine: Any, requests: Any, *, concurrency: int = 0) -> Any:
        assert concurrency in (0, 2)
        records = [SimpleNamespace(output_tokens=one.output_tokens, e2e_s=one.output_tokens) for one in requests]
        duration_s = 5.0 if concurrency else max(one.output_tokens for one in requests)
        return SimpleNamespace(result=SimpleNamespace(records=records, duration_s=duration_s))

    monkeypatch.setattr(batches, "drive", drive)
    chats = [traffic.fixed(1, input_tokens=1, output_tokens=n)[0] for n in (1, 4, 2, 3)]
    static, continuous = batches.both(None, chats, 2).values()
    assert static.chats == [(1, 4), (4, 4), (2, 3), (3, 3)]
    assert (static.tokens_per_s, continuous.tokens_per_s) == (10 / 7, 2.0)
    assert continuous.chats == [(1, 1), (4, 4), (2, 2), (3, 3)]
    assert (static.short_s, continuous.short_s) == (3.5, 1.5)
    assert batches.padding_factor(chats, 2) == 1.4


# --- the decode handler ---


def test_the_decode_handler_in_both_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A static batch sleeps for its longest answer. Continuous, each call is one step: a row that is complete says so,
    and one that joins later has all of its steps."""
    slept: list[float] = []
    monkeypatch.setattr("handlers.steps.decode.time.sleep", slept.append)
    config = {"continuousBatching": False, "handler": {"step_s": 0.5}}
    handler, context = decode.DecodeHandler(), SimpleNamespace(model_yaml_config=config, stopping_criteria=None)
    handler.initialize(context)
    assert handler.handle([{"body": {"tokens": 3}}, {"body": {"tokens": 1}}], context) == ["2 2 2 ", "2 "]
    assert slept == [1.5]
    config["continuousBatching"] = True
    handler.initialize(context)
    ended = []
    for ids, rows in [("ab", [2, 1]), ("ac", [0, 1])]:  # a's body comes with its first call alone
        context.request_ids = dict(enumerate(ids))
        bodies = [{"body": {"tokens": n}} if n else {} for n in rows]
        assert handler.handle(bodies, context) == ["2 ", "2 "]
        ended.append([ends("2 ") for ends in context.stopping_criteria])
    assert ended == [[False, True], [True, True]]
    assert slept == [1.5, 0.5, 0.5]
    assert "labkit" not in (handlers_path() / "steps" / "decode.py").read_text()


# --- claims ---


def c12(low: float, value: float, high: float) -> dict[str, Scalar]:
    return {"share_low": low, "share_value": value, "share_high": high, "shipped": "vllm_handler"}


def c42(without: int, with_key: int) -> dict[str, Scalar]:
    return {"status_without": without, "status_with": with_key, "status_register": 405, "torchserve_version": "0.12.0"}


def test_the_rules_of_the_labs_claims() -> None:
    """Each verdict follows from the numbers as the sentence says."""
    table: list[tuple[str, dict[str, Scalar], str, str]] = [
        ("C12", c12(0.1, 0.15, 0.2), "refuted", "15% of the time"),
        ("C12", c12(1.0, 1.1, 1.3), "supported", "not sooner"),
        ("C12", c12(0.8, 1.0, 1.2), "inconclusive", "Too uncertain"),
        ("C25", {"batch_size": 8, "delay_ms": 50}, "supported", "batches of 8"),
        ("C25", {"batch_size": 1, "delay_ms": 100}, "unsourced", "a delay of 100 ms"),
        ("C41", {"batch_size": 4, "sent": 4, "lost": 4}, "refuted", "4 of 4 valid concurrent requests"),
        ("C41", {"batch_size": 4, "sent": 4, "lost": 0}, "supported", "0 of 4"),
        ("C42", c42(200, 200), "supported", "without a token"),
        ("C42", c42(400, 200), "refuted", "rejects a request without a token"),
        ("C42", c42(400, 503), "inconclusive", "neither"),
    ]
    assert judged_otherwise(table) == []


def test_rows_that_leave_early_are_seen() -> None:
    """The number of rows falls before the long answer ends; in a static batch it never does."""
    leaves = {"4 4 1 1": True, "1 4 4 2": True, "4 4 4": False, "1 2 4": False, "1": False}
    assert {steps: lab_07.rows_leave(steps) for steps in leaves} == leaves
