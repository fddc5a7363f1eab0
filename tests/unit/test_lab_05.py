"""Labs 05 and 05b: their rules against independent counts, what an outage shows, and their claims' sentences."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course import lab_05, lab_05b, replicas
from labkit.records import Scalar
from labkit.serving.ray_watch import Answer, Observation
from tests.unit.verdicts import judged_otherwise


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=6), st.data())
def test_parallel_stages_take_their_longest_path(lengths: list[float], data: st.DataObject) -> None:
    """The time is the longest of all paths, found here by trying every one; never above the chain's."""
    stages: dict[str, lab_05.Stage] = {}
    for n, length in enumerate(lengths):
        before = data.draw(st.sets(st.sampled_from(sorted(stages)))) if stages else set()
        stages[f"s{n}"] = lab_05.Stage(length, tuple(sorted(before)))
    names = list(stages)
    longest = max(
        sum(stages[name].seconds for name in path)
        for size in range(1, len(names) + 1)
        for path in itertools.combinations(names, size)
        if all(earlier in stages[later].needs for earlier, later in itertools.pairwise(path))
    )
    found = lab_05.parallel_s(stages)
    assert found == pytest.approx(longest)
    assert max(lengths) <= found <= lab_05.chain_s(stages) * (1 + 1e-9)


@given(st.floats(0.1, 1000), st.floats(0.001, 60), st.floats(0.1, 100), st.integers(1, 5), st.integers(5, 100))
def test_the_wanted_replicas_hold_the_load(rate: float, duration_s: float, target: float, low: int, high: int) -> None:
    """Within the limits, and with one replica fewer somebody would be above the target."""
    wanted = lab_05b.desired_replicas(rate, duration_s, target, low, high)
    assert low <= wanted <= high
    assert wanted == high or wanted * target >= rate * duration_s * (1 - 1e-9)
    assert wanted == low or (wanted - 1) * target < rate * duration_s * (1 + 1e-9)


def test_what_a_call_adds_is_a_smaller_share_of_a_longer_answer() -> None:
    """20 ms of 0.4 s are 5%; of 200 tokens that take 40 ms each, by hand; a faster engine makes the share larger."""
    found = lab_05.share([20.0] * 3, [0.4] * 3, [0.4 + 24 * 0.04] * 3, short_tokens=8, seed=0)
    assert found.short.value == pytest.approx(0.05)
    assert found.of(8, 8) == pytest.approx(0.05)
    assert found.of(200, 8) == pytest.approx(0.02 / (0.02 + 0.38 + 192 * 0.04))
    assert found.at(8, 0.005) == pytest.approx(1 / 3)
    assert next(found.words(8)) == "of 8 tokens by this engine: 5.0% (measured)"


def outage() -> replicas.Outage:
    """Replica 1 breaks at 1 s: two requests fail, Serve's status notices at 4 s, replica 3 answers at 6 s."""
    seen = Observation()
    answered = [(0.1, 0.4, "1"), (0.2, 0.5, "2"), (1.5, 1.8, "2"), (5.7, 6.0, "3")]
    seen.answers = [Answer(sent, end, 200, text) for sent, end, text in answered]
    seen.answers += [Answer(0.9, 1.1, 500), Answer(1.2, 1.3, 500), Answer(1.4, 1.4, 503)]
    seen.replicas = [(0.0, 2), (3.8, 2), (4.0, 1), (6.2, 2)]
    return replicas.Outage(seen, 1.0)


def test_overlapping_outages_leave_the_output_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    """What Ray prints meanwhile is not shown, what is printed afterwards is, whichever outage ends first."""

    async def ends(after_s: float) -> replicas.Outage:
        print("a death")
        await asyncio.sleep(after_s)
        return outage()

    async def both() -> list[replicas.Outage]:
        return await replicas.outages(ends(0.0), ends(0.02))

    assert len(asyncio.run(both())) == 2
    print("afterwards")
    assert capsys.readouterr().out == "afterwards\n"


def test_an_outage_ends_with_an_answer_of_a_new_replica() -> None:
    """Failed requests are those without an answer or a 503; the share counts what was sent after the fault."""
    found = outage()
    assert (found.noticed_s, found.replaced_s, len(found.failed)) == (4.0, 6.0, 2)
    assert found.fails_for_s == pytest.approx(0.3)
    assert found.failed_share == 0.5  # 500 and 503 of the four that were sent after it
    assert found.over_before_replaced
    assert not found.lasts
    assert found.words("Killed") == "Killed: noticed after 3 s, replaced after 5 s, 2 requests failed"
    assert "not noticed from 1.0 to 4.0 s" in found.chart("Killed")["description"]


def test_an_outage_that_nothing_ends_is_said_to_be_one() -> None:
    """Without a smaller count and without a new replica: never."""
    found = outage()
    found.seen.replicas, found.seen.answers = [(0.0, 2), (9.0, 2)], found.seen.answers[:3]
    assert found.words("Sick") == "Sick: noticed never, replaced never, 0 requests failed"


def test_failures_that_go_on_are_not_over() -> None:
    """A request that fails after another replica has answered, and near the end of the load, turns both sentences."""
    found = outage()
    found.seen.answers.append(Answer(5.8, 6.1, 500))
    assert not found.over_before_replaced
    assert found.lasts


def test_a_burst_is_compared_with_its_room() -> None:
    """The sentence follows from the counts, whichever way they differ."""
    for answered, way in ((20, "exactly as many were"), (27, "and more were"), (7, "and fewer were")):
        answers = [Answer(0, 1, 200)] * answered + [Answer(0, 0.1, 503, "full")] * (60 - answered)
        assert way in replicas.burst_words(answers, room=20)


def share(low: float, value: float, high: float, long: float, fast: float = 0.2) -> dict[str, Scalar]:
    """Evidence on C09."""
    about: dict[str, Scalar] = {"added_ms": 12.0, "short_tokens": 8, "long_tokens": 200}
    about |= {"long_share": long, "fast_share": fast}
    return about | {"share_low": low, "share_value": value, "share_high": high}


def test_the_rules_of_the_labs_claims() -> None:
    """Each verdict follows from the numbers as the sentence says."""
    table: list[tuple[str, dict[str, Scalar], str, str]] = [
        ("C09", share(0.02, 0.03, 0.04, 0.002, 0.04), "supported", "by arithmetic 4% with 5 ms"),
        ("C09", share(0.02, 0.03, 0.04, 0.002), "depends", "20% of the short one"),
        ("C09", share(0.04, 0.05, 0.06, 0.002), "depends", "Python proxy"),
        ("C09", share(0.3, 0.4, 0.5, 0.1), "refuted", "HAProxy was not part of this run"),
        ("C09", share(0.01, 0.4, 0.5, 0.1), "inconclusive", "Too uncertain"),
        ("C39", {"engine": "vLLM 1", "engine_processes": 1}, "refuted", "the engine's, not Ray Serve's"),
        ("C39", {"engine": "vLLM 1", "engine_processes": 0}, "inconclusive", "No process"),
        ("C38", {"rate": 8, "replicas_short": 1, "replicas_added": 2, "target_ongoing": 2}, "depends", "default"),
    ]
    assert judged_otherwise(table) == []
