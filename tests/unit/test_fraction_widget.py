"""The fraction auditor's widget without a browser: it shows what the function says, and can be exported."""

from typing import Any

import pytest
import yaml

from labkit.advice import fractions
from labkit.advice.fractions.form import FractionAuditor, show_auditor
from labkit.errors import UsageError
from tests.unit.test_fractions import EXAMPLE, audited


@pytest.fixture
def auditor() -> FractionAuditor:
    """The auditor on the two halves that do not fit."""
    return FractionAuditor(yaml.safe_load(EXAMPLE))


def field(auditor: FractionAuditor, number: int, label: str) -> Any:
    """A deployment's field by its label."""
    return next(one for one in auditor._entries.children[number].children if one.description == label)


def test_it_shows_the_functions_answer(auditor: FractionAuditor) -> None:
    """The HTML is the function's; whoever sees no widgets has the same as text."""
    assert auditor._answer.value == fractions.as_html(audited())
    assert auditor._repr_mimebundle_()["text/plain"] == "\n".join(fractions.lines(audited()))


def test_a_change_is_audited_at_once(auditor: FractionAuditor) -> None:
    """Lower shares, and it fits; the state is the new question."""
    for number in (0, 1):
        field(auditor, number, "Engine's share").value = "0.49"
    assert auditor.audit.ok
    assert "It fits" in auditor._answer.value
    assert yaml.safe_load(auditor.state)["deployments"][1]["engine_share"] == 0.49
    assert auditor._exported.value == auditor.state


def test_what_cannot_be_is_told_and_the_last_audit_stays(auditor: FractionAuditor) -> None:
    """Words in place of a number, with the field's name; corrected, the message goes away."""
    before = auditor.audit
    field(auditor, 0, "num_gpus").value = "half"
    assert "chat: num_gpus is" in auditor._message.value
    assert auditor.audit is before
    field(auditor, 0, "num_gpus").value = "0.5"
    assert auditor._message.value == ""


def test_rows_come_and_go(auditor: FractionAuditor) -> None:
    """Two are added, each with a name of its own; one is removed; the last of all cannot be."""
    auditor._add.click()
    auditor._add.click()
    assert [one.name for one in auditor.audit.deployments] == ["chat", "code", "new 1", "new 2"]
    for _ in range(3):
        auditor._entries.children[0].children[-1].click()
    assert [one.name for one in auditor.audit.deployments] == ["new 2"]
    auditor._entries.children[0].children[-1].click()
    assert "no deployments" in auditor._message.value


def test_the_proposed_numbers_can_be_taken(auditor: FractionAuditor) -> None:
    """One click, and it fits; then there is nothing more to take."""
    assert not auditor._take.disabled
    auditor._take.click()
    assert auditor.audit.ok
    assert auditor._take.disabled
    assert float(field(auditor, 0, "num_gpus").value) == auditor.audit.deployments[0].num_gpus


def test_a_state_travels(auditor: FractionAuditor, capsys: pytest.CaptureFixture[str]) -> None:
    """What one exports another one shows; pasted text counts too; text that is no YAML is told."""
    field(auditor, 1, "Replicas").value = "2"
    other = show_auditor(auditor.state)
    assert other.state == auditor.state
    assert "code#1" in capsys.readouterr().out
    fresh = FractionAuditor(yaml.safe_load(EXAMPLE))
    fresh._exported.value = auditor.state
    assert fresh.state == auditor.state
    assert field(fresh, 1, "Replicas").value == "2"
    fresh._exported.value = "{"
    assert "no YAML" in fresh._message.value
    with pytest.raises(UsageError, match="no YAML"):
        show_auditor("{")
