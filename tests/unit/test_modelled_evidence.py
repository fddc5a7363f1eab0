"""The errors stated for a modelled answer: by region of load, and never more than was compared."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit import modelled
from labkit.modelled import cards, evidence
from labkit.modelled.evidence import CAPACITY_MARGIN, Compared, Promise, promise, summary_rows
from labkit.modelled.shapes import model_folder, read_config

PUBLISHED = {
    "llama-3.1-8b": 8.03e9,
    "qwen3-32b": 32.76e9,
    "qwen3-30b-a3b": 30.53e9,
    "half-b": 0.5e9,
    "fp8": 8.03e9,
    "blocks": 8.03e9,
    "windows": 8.03e9,
}
ROW = Compared(
    kind="dense 8B, one GPU",
    card="h100-sxm",
    vllm="0.19.0",
    load="500 + 200 tokens",
    region="below 50%",
    quantity="tpot_ms",
    measured=10.0,
    modelled=10.5,
)
ROWS = (
    ROW,
    replace(ROW, card="a100-80", vllm="0.20.1", modelled=8.0),
    replace(ROW, quantity="ttft_ms", measured=100.0, modelled=140.0),
    replace(ROW, region="50-90%", modelled=13.0),
    replace(ROW, region="50-90%", quantity="ttft_ms", measured=200.0, modelled=150.0),
    replace(ROW, region="capacity", quantity="output_per_s", measured=4000.0, modelled=4400.0),
    replace(ROW, region="follows the rate", quantity="output_per_s", measured=900.0, modelled=900.0),
    replace(ROW, kind="dense 32B, tensor parallel", region="closed loop", modelled=11.5),
    replace(ROW, kind=evidence.EXPERTS, card="h200", region="50-90%", modelled=11.0),
    replace(ROW, kind=evidence.EXPERTS, card="h200", region="closed loop", modelled=8.0),
    replace(ROW, kind=evidence.EXPERTS, card="b200", modelled=25.0),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Model folders by name: those of data/models, a small dense model, and 8Bs in fp8 and with a window."""
    root = tmp_path_factory.mktemp("models")
    dense = read_config(model_folder("llama-3.1-8b"))
    fp8 = {"quant_method": "fp8"}
    made: dict[str, dict[str, Any]] = {
        "half-b": {},
        "fp8": {"quantization_config": fp8},
        "blocks": {"quantization_config": fp8 | {"weight_block_size": [128, 128]}},
        "windows": {"model_type": "mistral", "sliding_window": 4096},
    }
    for name, change in made.items():
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps({**dense, **change}))
    return {name: root / name if name in made else model_folder(name) for name in PUBLISHED}


@pytest.fixture(scope="module")
def promised(folders: Mapping[str, Path]) -> Iterator[Callable[..., Promise]]:
    """`promise` by names, with ROWS instead of data/modelled_errors.json, and published sizes."""

    def by_name(
        share: float, *, card: str = "h100-sxm", model: str = "llama-3.1-8b", tensor_parallel: int = 1
    ) -> Promise:
        return promise(cards.find(card), folders[model], tensor_parallel=tensor_parallel, load_share=share)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "compared", lambda: ROWS)
        patch.setattr(evidence, "_parameters", lambda folder: PUBLISHED[folder.name])
        yield by_name


REGIONS = [  # a share of the real capacity, its region, and whether a TTFT is shown
    *((share, "below 50%", True) for share in (0.0, 0.499)),
    *((share, "50-90%", True) for share in (0.501, 0.899)),
    *((share, "90-100%", False) for share in (0.901, 0.999)),
    *((share, "overload", False) for share in (1.001, 20.0)),
]


@given(low=st.floats(0, 3), more=st.floats(0, 3))
def test_regions_are_judged_by_the_capacity_that_is_real(
    promised: Callable[..., Promise], low: float, more: float
) -> None:
    """Modelled capacities are 10% too high, so shares are increased by 10%; above the knee there is no TTFT."""
    for real_share, region, shows_ttft in REGIONS:
        answer = promised(real_share / CAPACITY_MARGIN)
        assert (answer.region, answer.shows_ttft) == (region, shows_ttft)
    assert promised(low).shows_ttft >= promised(low + more).shows_ttft


def test_a_promise_has_the_errors_of_its_own_kind_and_region(promised: Callable[..., Promise]) -> None:
    """An 8B has the errors of its region and of capacity; a larger model with tensor parallelism those of closed
    loops."""
    light = promised(0.1)
    means = {row.quantity: row.mean for row in light.errors}
    assert means == pytest.approx({"tpot_ms": (0.05 + 0.2) / 2, "ttft_ms": 0.4, "output_per_s": 0.1})
    assert all(size in light.text() for size in ("12%", "20%", "40%", "10%", "a100-80, h100-sxm"))
    assert [row.mean for row in promised(0.7).errors if row.region != "capacity"] == pytest.approx([0.3, 0.25])
    parallel = promised(0.1, tensor_parallel=2, model="qwen3-32b")
    assert [row.kind for row in parallel.errors] == ["dense 32B, tensor parallel"]
    assert parallel.errors[0].mean == pytest.approx(0.15)
    assert promised(0.95).of("tpot_ms") is None


def test_uncompared_models_have_no_errors(promised: Callable[..., Promise]) -> None:
    """An 8B in fp8 does not inherit the errors of dense 16-bit models, nor 8 GPUs those of 2, and both show no TTFT;
    tensor parallelism and experts, where only times per token were compared, show none either."""
    for options in ({"model": "fp8"}, {"model": "qwen3-32b", "tensor_parallel": 8}):
        answer = promised(0.1, **options)
        assert (answer.errors, answer.shows_ttft, "%" in answer.text()) == ((), False, False)
    assert not promised(0.1, tensor_parallel=2, model="qwen3-32b").shows_ttft
    assert not promised(0.1, card="h200", model="qwen3-30b-a3b").shows_ttft


def test_beyond_8b_on_one_gpu_a_card_has_its_own_errors_over_all_loads(promised: Callable[..., Promise]) -> None:
    """Experts: 10% and 20% off on an H200; 150% on a B200, which shows a direction only, as does a card that was not
    compared, by the errors of all. The text names the models that were compared."""
    means = {}
    for card in ("h200", "b200", "h100-sxm"):
        answer = promised(0.1, card=card, model="qwen3-30b-a3b")
        tpot = answer.of("tpot_ms")
        assert tpot is not None
        means[card] = tpot.mean
        assert (bool(answer.direction_only), evidence.EXPERTS in answer.text()) == (card != "h200", True)
    assert means == pytest.approx({"h200": 0.15, "b200": 1.5, "h100-sxm": 0.6})
    assert "off by 150% on average" in promised(0.1, card="b200", model="qwen3-30b-a3b").direction_only


def test_uncompared_cards_and_sizes_show_a_direction_only(promised: Callable[..., Promise]) -> None:
    """Borrowed efficiencies, a size other than 8B on one GPU, and what the formula leaves out give a reason."""
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, ""),
        ({"card": "l4"}, "borrowed from another card"),
        ({"model": "half-b"}, "0.5B parameters"),
        ({"model": "qwen3-32b"}, "33B parameters"),
        ({"model": "qwen3-32b", "tensor_parallel": 2}, ""),
        ({"card": "a100-40", "tensor_parallel": 2}, "borrowed from another card"),
        ({"model": "blocks"}, "scales by block"),
        ({"model": "windows"}, "attend to a window"),
    ]
    for options, says in cases:
        missing = promised(0.1, **options).direction_only
        assert (says in missing, bool(missing)) == (True, bool(says)), options


compared = st.builds(
    Compared,
    kind=st.sampled_from(["a", "b"]),
    card=st.sampled_from(["h100-sxm", "l40s"]),
    vllm=st.sampled_from(["0.19.0", "0.8.5"]),
    load=st.just("any"),
    region=st.sampled_from(["below 50%", "capacity", "follows the rate"]),
    quantity=st.sampled_from(["tpot_ms", "output_per_s"]),
    measured=st.floats(0.1, 1e4),
    modelled=st.floats(0.1, 1e4),
)


@given(st.lists(compared, max_size=20))
def test_the_summary_is_each_groups_mean_and_worst(rows: list[Compared]) -> None:
    """Mean and maximum of |modelled - measured| / measured by kind, quantity and region, without rates that follow the
    load."""
    summary = {(row.kind, row.quantity, row.region): row for row in summary_rows(rows)}
    counted = [row for row in rows if row.region != "follows the rate"]
    assert set(summary) == {(row.kind, row.quantity, row.region) for row in counted}
    assert sum(row.points for row in summary.values()) == len(counted)
    for (kind, quantity, region), row in summary.items():
        members = [m for m in counted if (m.kind, m.quantity, m.region) == (kind, quantity, region)]
        errors = [abs(m.modelled - m.measured) / m.measured for m in members]
        assert row.mean == pytest.approx(fmean(errors), abs=1e-9)
        assert row.worst == pytest.approx(max(errors), abs=1e-9)
        assert row.cards == tuple(sorted({m.card for m in members}))
        assert row.versions == tuple(sorted({m.vllm for m in members}))


def test_a_label_says_when_its_card_was_not_compared() -> None:
    """The error of other cards is not presented as a card's own."""
    compared_card, other = modelled.gpu("h100-sxm").label, modelled.gpu("l40s").label
    assert "on other cards" not in compared_card
    assert "on other cards; no tail compared" in other
