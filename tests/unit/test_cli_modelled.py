"""`labkit simulate` refuses what it can refuse before an engine, a tokenizer or a model is loaded."""

import os
import sys
from collections.abc import Iterator

import pytest

from labkit.cli import main
from labkit.files import data_path
from labkit.modelled import cards

HEAVY = ("vllm", "torch", "transformers")
CARD = ("--gpu", "h100-sxm")


@pytest.fixture(autouse=True)
def nothing_heavy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Imports of HEAVY fail, so a command that needs one does not end with a message about its options."""
    for name in HEAVY:
        monkeypatch.setitem(sys.modules, name, None)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `labkit simulate` writes to stderr about these arguments; it ends with 2 and prints nothing else."""
    with pytest.raises(SystemExit) as ended:
        main.main(["simulate", *arguments, "--json"])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert "Traceback" not in err
    return " ".join(err.split())


def test_unknown_names_list_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    """A card, a model or a router that does not exist."""
    said = refused(capsys, "--gpu", "h300")
    assert "'h300'" in said
    assert all(name in said for name in cards.known())
    said = refused(capsys, *CARD, "--model", "llama-9")
    assert "'llama-9'" in said
    assert all(folder.name in said for folder in data_path("models").iterdir())
    assert "prefix-aware" in refused(capsys, *CARD, "--router", "coin", "--rate", "1")


@pytest.mark.parametrize("card", [card.name for card in cards.known().values() if card.evidence == "none"])
def test_a_card_without_evidence_is_refused(capsys: pytest.CaptureFixture[str], card: str) -> None:
    """Also with --direction-only: there is nothing from which a direction could be taken."""
    for options in ((), ("--direction-only",)):
        said = refused(capsys, "--gpu", card, *options)
        assert "no evidence" in said
        assert cards.find(card).title in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--gpu"),
        ((*CARD, "--concurrency", "4", "--rate", "2"), "both --concurrency and --rate"),
        ((*CARD, "--rate", "0"), "rate is 0"),
        ((*CARD, "--rate", "2", "--arrival", "gaussian"), "poisson, constant, bursty"),
        ((*CARD, "--requests", "0"), "n is 0"),
        ((*CARD, "--input-tokens", "100", "--shared-tokens", "100"), "100 of 100 input tokens"),
        ((*CARD, "--workload", "conversations", "--set", "loudness=3"), "loudness"),
        ((*CARD, "--workload", "mooncake"), "path"),
    ],
)
def test_impossible_loads_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    """Each message names the option and the value that is wrong."""
    assert says in refused(capsys, *arguments)


def test_an_unknown_workload_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Its name is known to be wrong before a tokenizer is needed."""
    assert "'abacus'" in refused(capsys, *CARD, "--workload", "abacus")
