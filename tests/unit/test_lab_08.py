"""Lab 08: requests accounted for by fate, a drain on a management API, answers compared token by token."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course import lab_08
from course.token_margins import END, Comparison, Difference, Token, first_difference, tokens
from labkit import charts
from labkit.serving.ray_watch import Answer
from labkit.serving.torchserve import Control, Reply
from labkit.session import LabSession
from labkit.teaching import find
from tests.unit.chart_drill import assert_draws_and_says_what_it_is
from tests.unit.refusals import not_refused

# --- requests and their fates ---


def answer(status: int, version: str = "", *, at_s: float = 0.0, latency_s: float = 0.1) -> Answer:
    """An answer that a version signed, or that none did."""
    body = {"version": version} if version else {"code": status, "message": "no"}
    return Answer(at_s, at_s + latency_s, status, json.dumps(body) if status else "TimeoutError")


def load(*answers: Answer) -> lab_08.Load:
    """A load with these answers, 2.0 ready at 1 s and the default at 2 s."""
    seen = lab_08.Load()
    seen.answers = list(answers)
    seen.moments = [charts.Moment(1.0, "2.0 is ready"), charts.Moment(2.0, "2.0 is the default")]
    return seen


def test_the_fate_of_a_request() -> None:
    """A version signs its answers; other results are named by their status, or counted as unanswered."""
    answers = {
        "1.0": answer(200, "1.0"),
        "404": answer(404),
        "no answer": answer(0),
        "503": Answer(0, 1, 503, "<html>"),
        "200": Answer(0, 1, 200, "[1]"),
    }
    assert [lab_08.fate(received) for received in answers.values()] == list(answers)


@given(st.lists(st.tuples(st.sampled_from([0, 200, 404, 500]), st.sampled_from(["", "1.0", "2.0"])), max_size=40))
def test_the_counts_add_up(pairs: list[tuple[int, str]]) -> None:
    """Every request is counted once, and the lost ones are those that no version signed."""
    answers = [answer(status, version) for status, version in pairs]
    assert sum(lab_08.counts(answers).values()) == len(answers)
    assert len(lab_08.lost(answers)) == sum(not version or not status for status, version in pairs)


def test_only_requests_between_ready_and_default_say_where_unnamed_ones_go() -> None:
    """A request that began before 2.0 was ready, or ended after the change, could only have gone to one version."""
    seen = load(answer(200, "1.0", at_s=0.95), answer(200, "1.0", at_s=1.5), answer(200, "2.0", at_s=1.95))
    assert lab_08.default_versions(seen) == (1, ["1.0"])
    two = load(answer(200, "1.0", at_s=1.5), answer(200, "2.0", at_s=1.6), answer(0, at_s=1.7))
    assert lab_08.default_versions(two) == (3, ["1.0", "2.0"])
    none = [((load(),), "no request ended in 1.0 s")]
    assert not_refused(lambda arguments: lab_08.default_versions(*arguments), none) == []


def test_in_flight_is_littles_law_without_the_lost_ones() -> None:
    """The rate times the median latency of requests that were answered."""
    waits_s = (0.1, 0.2, 0.3)
    seen = load(*(answer(200, "1.0", latency_s=wait_s) for wait_s in waits_s), answer(0, latency_s=4.0))
    assert lab_08.in_flight(seen, 50) == pytest.approx(10)


def test_lost_requests_are_large_crosses(capfd: pytest.CaptureFixture[str]) -> None:
    """The chart starts at the given time, marks lost requests, and has a log axis for a few long latencies."""
    kept = [answer(200, "1.0", at_s=n / 10) for n in range(15)]
    seen = load(*kept, answer(0, at_s=1.6, latency_s=4.0), answer(500, at_s=1.7))
    chart = lab_08.fates_chart(seen, title="T", around_s=0.5)
    assert_draws_and_says_what_it_is(chart, capfd)
    points = chart["layer"][0]
    assert min(row["at"] for row in points["data"]["values"]) == 0.5
    assert [row["lost"] for row in points["data"]["values"]] == [False] * 10 + [True] * 2
    assert points["encoding"]["shape"]["scale"]["range"] == ["circle", "cross", "cross"]
    assert points["encoding"]["y"]["scale"]["type"] == "log"
    assert lab_08.fates_chart(load(*kept), title="T")["layer"][0]["encoding"]["y"]["scale"].get("type") != "log"


def test_the_reason_of_a_crash_is_in_the_log() -> None:
    """The error that the handler raised, without TorchServe's own lines."""
    log = "[INFO ] W-9001 MODEL_LOG - ValueError: could not convert string to float: 'soon'\n[INFO ] W-9001 restart\n"
    assert lab_08.reason(log) == "ValueError: could not convert string to float: 'soon'"
    assert lab_08.reason("[INFO ] W-9001 restart") == "no error"


def test_a_load_that_one_worker_cannot_carry_is_refused(tmp_path: Path) -> None:
    """One worker answers 8 requests in 0.07 s: 102 requests/s pass, 103 do not; a folder without files is no model."""

    def checked(rate: float, folder: Path = tmp_path) -> None:
        lab_08.check(cast(LabSession, SimpleNamespace(parameters={"rate": rate})), folder)

    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).touch()
    checked(102)
    refused = [(103, "103 requests/s are too many for one worker, which answers 114"), (110, "102 or less")]
    assert not_refused(checked, refused) == []
    empty = [(tmp_path / "none", "has no config.json, tokenizer.json")]
    assert not_refused(lambda folder: checked(1, folder), empty) == []


# --- retiring a version ---


class Management(Control):
    """A management API with one version: a script of pending requests, one for each look."""

    def __init__(self, pending: list[int]) -> None:
        self.pending, self.asked = pending, list[str]()

    def call(self, method: str, path: str, **_: Any) -> Reply:
        self.asked.append(f"{method} {path}")
        if method == "DELETE":
            return Reply(200, {"status": 'Model "nap" unregistered'})
        waiting = self.pending.pop(0) if self.pending else 0
        return Reply(200, [{"minWorkers": 1, "workers": [], "jobQueueStatus": {"pendingRequests": waiting}}])


def test_the_solution_retires_a_version_of_a_server() -> None:
    """It deletes once the queue has been empty for longer than a batch after the last pending request, and not before;
    at the time limit it leaves the version alone."""
    api = Management([3, 0, 2, 0])
    version = lab_08.Version(api, "nap", "1.0")
    began_s = time.monotonic()
    assert str(lab_08.retire(version, 1.0, 30)) == "200 {'status': 'Model \"nap\" unregistered'}"
    assert time.monotonic() - began_s >= 1.2  # two looks at pending requests, and the batch
    assert api.asked[-1] == "DELETE /models/nap/1.0"
    assert api.asked.count("GET /models/nap/1.0") >= 4
    api.asked.clear()
    api.pending = [1] * 100
    assert lab_08.retire(version, 0.3, 0.5) is None
    assert set(api.asked) == {"GET /models/nap/1.0"}


def test_other_ways_to_retire_a_version_are_judged_by_what_they_do() -> None:
    """Looks counted instead of a clock, and looks more often than needed, are as good; the
    message about one that fails names the first case and what was done to which version."""

    def counted(version: Any, batch_s: float, timeout_s: float) -> Any:
        quiet = 0
        for _ in range(int(timeout_s / 0.1)):
            quiet = 0 if version.describe()["jobQueueStatus"]["pendingRequests"] else quiet + 1
            if quiet * 0.1 > batch_s:
                return version.delete()
            version.sleep(0.1)
        return None

    def often(version: Any, batch_s: float, timeout_s: float) -> Any:
        end_s, quiet_s = version.now_s() + timeout_s, version.now_s() + batch_s
        while version.now_s() < end_s:
            if version.describe()["jobQueueStatus"]["pendingRequests"]:
                quiet_s = version.now_s() + batch_s
            if version.now_s() > quiet_s:
                return version.delete()
            version.sleep(0.01)
        return None

    def one_look(version: Any, batch_s: float, timeout_s: float) -> Any:  # noqa: ARG001
        version.sleep(2.0)
        return version.delete()

    assert [find("08.retire").judge(function).passed for function in (counted, often)] == [True, True]
    told = find("08.retire").judge(one_look)
    assert "retire(Version(20 queued requests), 1.0, 20.0)` returns 'deleted, 4 requests lost'" in told.diagnosis


# --- answers compared ---


def chosen(*texts: str, runner_up: str = "?", margin: float = 1.0) -> list[Token]:
    """Tokens, each with a next one that is less likely by `margin` nats."""
    return [Token(text, {text: -0.5, runner_up: -0.5 - margin}) for text in texts]


def test_the_first_difference() -> None:
    """The first token that the other text does not continue with, and by how much the choice was made."""
    cases: list[tuple[list[Token], str, Difference | None]] = [
        (chosen("I", " am"), "I am", None),
        (chosen("I", " am", runner_up=" vo"), "I vow", Difference(1, " am", " vo", 1.0)),
        (chosen("I", " am", runner_up=" v"), "I x", Difference(1, " am", " x", None)),
        (chosen("I", " am"), "I am here", Difference(2, END, " here", None)),
        (chosen("I", " am"), "I", Difference(1, " am", END, None)),
        (chosen("I", ""), "I", None),
        (chosen("I", "", runner_up=" am"), "I am", Difference(1, END, " am", 1.0)),
    ]
    assert [first_difference(ours, theirs) for ours, theirs, _ in cases] == [expected for *_, expected in cases]


@given(st.lists(st.sampled_from(["a", "ab", "b"]), max_size=8), st.text("ab", max_size=12))
def test_texts_are_the_same_up_to_the_difference(parts: list[str], other: str) -> None:
    """Without a difference both are the same text; with one, they agree before it."""
    found = first_difference(chosen(*parts), other)
    if found is None:
        assert "".join(parts) == other
    else:
        assert other.startswith("".join(parts[: found.place]))
        assert not other.startswith("".join(parts[: found.place + 1])) or found.place == len(parts)


def test_the_token_that_ends_an_answer_has_no_text() -> None:
    """A completion that stopped by itself ends with a special token, which is not in its text."""

    def completion(reason: str) -> Any:
        tops = [{"Hi": -0.1, "Ho": -2.0}, {"<|im_end|>": -0.2, "!": -1.2}]
        likely = [[SimpleNamespace(token=text, logprob=value) for text, value in top.items()] for top in tops]
        content = [SimpleNamespace(token=top[0].token, top_logprobs=top) for top in likely]
        choice = SimpleNamespace(finish_reason=reason, logprobs=SimpleNamespace(content=content))
        return SimpleNamespace(choices=[choice])

    assert [token.text for token in tokens(completion("stop"))] == ["Hi", ""]
    assert [token.text for token in tokens(completion("length"))] == ["Hi", "<|im_end|>"]
    assert tokens(completion("stop"))[1].margin == pytest.approx(1.0)


def test_a_comparison_counts_and_draws(capfd: pytest.CaptureFixture[str]) -> None:
    """One of two answers differs, at a near tie; where none does, the title gives the closest choice instead."""
    ours = [chosen("I", " am", runner_up=" vo", margin=0.0625), chosen("No")]
    both = Comparison({"A": ["I vow", "No"], "B": ["I vow", "No"], "vLLM": ["I am", "No"]}, ours)
    assert (both.same_percent, both.same_as("A", "B"), both.same_as("A", "vLLM")) == (50, 2, 1)
    assert list(both.table("A").loc[0]) == [1, " am", " vo", pytest.approx(0.0625)]
    chart = both.chart("A")
    assert chart["title"]["text"] == "1 of 2 answers differs from A's, at margins of up to 0.062 nats"
    assert_draws_and_says_what_it_is(chart, capfd)
    same = Comparison({"A": ["I am", "No"], "vLLM": ["I am", "No"]}, ours)
    assert same.table("A") == "none of 2 answers differs"
    assert same.chart("A")["title"]["text"].startswith("0 of 2 answers differ from A's; the closest choice")
