"""Lab 04: its claims' rules on evidence with a known verdict, and its exercises beyond what all exercises must do."""

from hypothesis import given
from hypothesis import strategies as st

from course.lab_04 import Point, chunk_sizes, largest_budget
from labkit.records import Scalar
from tests.unit.verdicts import judged_otherwise


def c20(stall: float, low: float, high: float) -> dict[str, Scalar]:
    """Evidence on C20: the longest gap with 2,048 over that with 512, and the bounds of the gain above 2,048."""
    return {"stall": stall, "smallest_budget": 512, "gain_low": low, "gain_high": high}


def c19(cards_at_2048: int, smallest: int, largest: int) -> dict[str, Scalar]:
    """Evidence on C19: the default budgets of nine cards."""
    found = {"cards_at_2048": cards_at_2048, "smallest_default": smallest, "largest_default": largest}
    return {"cards": 9, "vllm_version": "1", **found}


def test_the_rules_of_the_labs_claims() -> None:
    """Each verdict follows from the numbers as the sentence says."""
    table: list[tuple[str, dict[str, Scalar], str, str]] = [
        ("C18", {"enabled_by_default": True, "vllm_version": "0.32.0"}, "refuted", "on: the claim is outdated"),
        ("C18", {"enabled_by_default": False, "vllm_version": "0.6.0"}, "supported", "off"),
        ("C19", c19(9, 2048, 2048), "supported", "On all 9 modelled cards"),
        ("C19", c19(0, 8192, 16384), "refuted", "8,192 to 16,384"),
        ("C19", c19(5, 2048, 16384), "depends", "on 5 of 9 modelled cards"),
        ("C20", c20(2.9, 1.0, 1.03), "refuted", "Neither half"),
        ("C20", c20(2.9, 1.1, 1.2), "depends", "2,048 is not the budget for short gaps"),
        ("C20", c20(2.9, 1.01, 1.12), "depends", "stays open"),
        ("C20", c20(1.2, 1.1, 1.15), "supported", "1.1x to 1.15x"),
        ("C20", c20(1.2, 1.0, 1.05), "inconclusive", "too little"),
    ]
    assert judged_otherwise(table) == []


def test_a_budget_is_chosen_from_points_in_any_order() -> None:
    """The order of the points does not matter, and 0 says that no budget keeps the promise."""
    points = [Point(512, 0.02, (0.3, 0.2), 1.0), Point(256, 0.02, (0.1, 0.1), 1.1), Point(2048, 0.02, (0.9, 1.0), 0.9)]
    for rotated in (points, points[1:] + points[:1], points[::-1]):
        assert [largest_budget(rotated, slo) for slo in (2.0, 0.3, 0.29, 0.05)] == [2048, 512, 256, 0]


def simulated(prompt_tokens: int, budget: int, decoding: int, threshold: int) -> list[int]:
    """The scheduler's loop, token by token: streams first, then the prompt for as long as a limit allows."""
    sizes = []
    while prompt_tokens:
        left, size = budget - decoding, 0
        while prompt_tokens and left and not (threshold and size == threshold):
            prompt_tokens, left, size = prompt_tokens - 1, left - 1, size + 1
        sizes.append(size)
    return sizes


@given(st.integers(1, 3000), st.integers(1, 600), st.integers(0, 40), st.integers(0, 700))
def test_chunks_are_those_of_the_scheduler_token_by_token(prompt: int, room: int, decoding: int, limit: int) -> None:
    """The rule agrees with handing out every token of every step by itself."""
    assert chunk_sizes(prompt, room + decoding, decoding, limit) == simulated(prompt, room + decoding, decoding, limit)
