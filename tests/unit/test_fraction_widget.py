"""The fraction auditor's widget without a browser: it shows what the function says, and can be exported."""

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


def test_a_change_is_audited_at_once(auditor: FractionAuditor) -> None:
    """It shows the function's answer. Lower shares, and it fits; the state is the new question."""
    assert (auditor.table.value, auditor.plain()) == (
        fractions.as_html(audited()),
        "\n".join(fractions.lines(audited())),
    )
    for row in auditor.rows:
        row["engine_share"].value = "0.49"
    assert auditor.audit.ok
    assert "It fits" in auditor.table.value
    assert yaml.safe_load(auditor.state)["deployments"][1]["engine_share"] == 0.49
    assert auditor.exported.value == auditor.state


def test_what_cannot_be_is_told_and_the_last_audit_stays(auditor: FractionAuditor) -> None:
    """Words in place of a number, with the field's name; corrected, the message goes away."""
    before = auditor.audit
    auditor.rows[0]["num_gpus"].value = "half"
    assert "Not audited:</b> chat: num_gpus is" in auditor.message.value
    assert auditor.audit is before
    auditor.rows[0]["num_gpus"].value = "0.5"
    assert auditor.message.value == ""


def test_rows_come_and_go(auditor: FractionAuditor) -> None:
    """Two are added, each with a name of its own; one is removed; the last of all cannot be."""
    auditor.add.click()
    auditor.add.click()
    assert [deployment.name for deployment in auditor.audit.deployments] == ["chat", "code", "new 1", "new 2"]
    for _ in range(3):
        auditor.deployments.children[0].children[-1].click()
    assert [deployment.name for deployment in auditor.audit.deployments] == ["new 2"]
    auditor.deployments.children[0].children[-1].click()
    assert "no deployments" in auditor.message.value


def test_the_proposed_numbers_can_be_taken(auditor: FractionAuditor) -> None:
    """One click, and it fits; then there is nothing more to take."""
    assert not auditor.take.disabled
    auditor.take.click()
    assert auditor.audit.ok
    assert auditor.take.disabled
    assert float(auditor.rows[0]["num_gpus"].value) == auditor.audit.deployments[0].num_gpus


def test_a_state_travels(auditor: FractionAuditor, capsys: pytest.CaptureFixture[str]) -> None:
    """What one exports another one shows; pasted text counts too; text that is no YAML is told."""
    auditor.rows[1]["replicas"].value = "2"
    assert show_auditor(auditor.state).state == auditor.state
    assert "code#1" in capsys.readouterr().out
    fresh = FractionAuditor(yaml.safe_load(EXAMPLE))
    fresh.exported.value = auditor.state
    assert (fresh.state, fresh.rows[1]["replicas"].value) == (auditor.state, "2")
    fresh.exported.value = "{"
    assert "not valid YAML" in fresh.message.value
    with pytest.raises(UsageError, match="not valid YAML"):
        show_auditor("{")


def test_what_has_no_field_is_kept() -> None:
    """Unequal nodes, how Ray schedules, and keys of a deployment without a field survive a change of another."""
    content = {
        "gpu": [{"memory_gib": 80, "count": 2}, {"memory_gib": [24, 48]}],
        "scheduling": "spread",
        "deployments": [
            {"name": "a", "num_gpus": [0.6, 0.6], "strategy": "STRICT_PACK", "engine_share": 0.3, "weight_gib": 2},
        ],
    }
    form = FractionAuditor(content)
    assert (form.gpu["count"].disabled, form.rows[0]["num_gpus"].value) == (True, "[0.6, 0.6]")
    form.rows[0]["engine_share"].value = "0.4"
    state = yaml.safe_load(form.state)
    assert [row["memory_gib"] for row in state["gpu"]] == [80, [24, 48]]
    assert (state["scheduling"], state["deployments"][0]["strategy"]) == ("spread", "STRICT_PACK")
    assert (state["deployments"][0]["num_gpus"], state["deployments"][0]["engine_share"]) == ([0.6, 0.6], 0.4)
