"""The cards of data/gpus.yaml: complete, with sources, and refused without evidence."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from labkit import modelled
from labkit.errors import UsageError
from labkit.files import data_path
from labkit.modelled import cards

ENTRIES: dict[str, Any] = yaml.safe_load(data_path("gpus.yaml").read_text())
DOCUMENTED = "t4 l4 a10g rtx-4090 l40s a100-40 a100-80 h100-pcie h100-sxm h200 b200"  # by the command line


def test_every_entry_is_a_card_with_sources() -> None:
    """Sheet and efficiencies have sources; the evidence is none only without efficiencies; borrowed efficiencies equal
    the lender's; FP8 is twice the 16-bit figure (a sparse figure would differ)."""
    assert set(DOCUMENTED.split()) <= set(ENTRIES) == set(cards.known())
    for name, entry in ENTRIES.items():
        card = cards.find(name.upper())
        assert card.flops is not None
        assert card.fp8_tflops is None or card.fp8_tflops * 1e12 == pytest.approx(2 * card.flops, rel=0.02)
        assert len(card.sheet.source) > 10
        assert isinstance(card.sheet.date, date)
        assert date(2026, 1, 1) < card.sheet.date < date(2028, 1, 1)
        assert (card.efficiency is None) == (card.evidence == "none")
        if card.efficiency is not None:
            assert len(card.efficiency.source) > 10
            lender = cards.find(card.efficiency.source.split()[-1] if "borrowed" in str(entry["efficiency"]) else name)
            assert lender.efficiency is not None
            assert (card.efficiency.mfu, card.efficiency.mbu) == (lender.efficiency.mfu, lender.efficiency.mbu)


def test_a_card_without_evidence_is_refused() -> None:
    """Cards without evidence have no step times."""
    unknown = [card for card in cards.known().values() if card.evidence == "none"]
    assert unknown
    for card in unknown:
        with pytest.raises(UsageError, match=f"(?s){card.title[:9]}.*no evidence.*choose another card"):
            modelled.gpu(card.name)


def test_unknown_names_list_the_known_ones() -> None:
    """The error for an unknown card names every card, that for an unknown model every model."""
    with pytest.raises(UsageError, match="'h300'") as card:
        modelled.gpu("h300")
    assert all(name in str(card.value) for name in ENTRIES)
    with pytest.raises(UsageError, match="'llama-9'") as model:
        modelled.gpu("h100-sxm", model="llama-9")
    assert all(folder.name in str(model.value) for folder in data_path("models").iterdir())


def test_a_multimodal_model_is_refused(tmp_path: Path) -> None:
    """Before an engine starts; with the language model's part in a config.json of its own there is an answer."""
    config = json.loads((data_path("models") / "qwen3-8b" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {}, "text_config": config}))
    with pytest.raises(UsageError, match=r"multimodal(.|\n)*text_config"):
        modelled.gpu("h100-sxm", model=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert modelled.gpu("h100-sxm", model=tmp_path).folder == tmp_path


def test_a_wrong_entry_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An efficiency above 1, an unknown key and a missing source are errors that name the key."""
    file = tmp_path / "gpus.yaml"
    monkeypatch.setattr(cards, "data_path", lambda _name: file)
    changes = ({"efficiency": {"mfu": 1.2, "mbu": 0.8, "source": "x"}}, {"memory": 80}, {"sheet": None})
    for change in changes:
        file.write_text(yaml.safe_dump({"h100-sxm": ENTRIES["h100-sxm"] | change}))
        with pytest.raises(UsageError, match=next(iter(change))):
            cards.known.__wrapped__()
