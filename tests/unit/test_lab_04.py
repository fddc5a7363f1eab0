"""Lab 04: its claims' rules on evidence with a known verdict, and its exercises beyond what all exercises must do."""

import pytest

from course.lab_04 import Point, chunk_sizes, largest_budget
from labkit.records import Scalar
from labkit.records.ledger import verdict
from labkit.teaching import find


def c20(stall: tuple[float, float, float], gain: tuple[float, float, float]) -> dict[str, Scalar]:
    """Evidence on C20 with these bounds (low, value, high)."""
    named = {"stall": stall, "gain": gain}
    ends = ("low", "value", "high")
    bounds = {f"{name}_{end}": x for name, found in named.items() for end, x in zip(ends, found, strict=True)}
    return {**bounds, "smallest_budget": 128, "gain_source": "measured"}


def c19(server: int, llm: int) -> dict[str, Scalar]:
    """Evidence on C19: the default budget of the server and of the LLM class."""
    return {"server_default": server, "llm_default": llm, "vllm_version": "1"}


@pytest.mark.parametrize(
    ("claim", "evidence", "expected", "words"),
    [
        ("C18", {"enabled_by_default": True, "vllm_version": "0.32.0"}, "refuted", "on: the claim is outdated"),
        ("C18", {"enabled_by_default": False, "vllm_version": "0.6.0"}, "supported", "off"),
        ("C19", c19(2048, 2048), "supported", "as a server and in"),
        ("C19", c19(2048, 4096), "depends", "but to 4,096 for the LLM"),
        ("C19", c19(8192, 2048), "depends", "but to 8,192 for `vllm"),
        ("C19", c19(8192, 16384), "refuted", "16,384"),
        ("C20", c20((4, 4.7, 5.4), (1.005, 1.007, 1.01)), "refuted", "Neither half"),
        ("C20", c20((4, 4.7, 5.4), (1.1, 1.15, 1.2)), "depends", "2,048 is not the budget for short gaps"),
        ("C20", c20((1.0, 1.2, 1.4), (1.1, 1.15, 1.2)), "supported", "grows 1.15x"),
        ("C20", c20((1.2, 1.6, 2.0), (1.0, 1.05, 1.1)), "inconclusive", "Too little"),
    ],
)
def test_the_rules_of_the_labs_claims(claim: str, evidence: dict[str, Scalar], expected: str, words: str) -> None:
    """Each verdict follows from the numbers as the sentence says."""
    found = verdict(claim, evidence)
    assert found.verdict == expected
    assert words in found.because


def test_a_budget_is_chosen_from_points_in_any_order() -> None:
    """The order of the points does not matter, and 0 says that no budget keeps the promise."""
    points = [Point(512, 0.02, (0.3, 0.2), 1.0), Point(256, 0.02, (0.1, 0.1), 1.1), Point(2048, 0.02, (0.9, 1.0), 0.9)]
    for rotated in (points, points[1:] + points[:1], points[::-1]):
        assert [largest_budget(rotated, slo) for slo in (2.0, 0.3, 0.29, 0.05)] == [2048, 512, 256, 0]


def test_a_loop_that_takes_part_after_part_passes() -> None:
    """Exercises judge what a function returns: a loop instead of a formula is as good."""

    def chunks(prompt_tokens: int, budget: int, decoding: int, threshold: int = 0) -> list[int]:
        sizes = []
        while prompt_tokens > 0:
            sizes.append(min(prompt_tokens, budget - decoding, threshold or budget))
            prompt_tokens -= sizes[-1]
        return sizes

    assert chunks(640, 128, 4) == chunk_sizes(640, 128, 4)
    assert find("04.chunks").judge(chunks).passed
