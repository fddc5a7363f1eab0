"""The fraction auditor's widget, without a browser: it shows the audit and exports the question."""

import pytest
import yaml

from labkit.advice import fractions
from labkit.advice.fractions.form import FractionAuditor, show_auditor
from labkit.errors import UsageError
from tests.unit.test_fractions import EXAMPLE, audited


@pytest.fixture
def auditor() -> FractionAuditor:
    return FractionAuditor(yaml.safe_load(EXAMPLE))


def test_a_change_is_audited_at_once(auditor: FractionAuditor) -> None:
    """The table is the function's answer; a changed field changes audit and state."""
    assert auditor.table.value == fractions.as_html(audited())
    for row in auditor.rows:
        row["engine_share"].value = "0.49"
    assert auditor.audit.ok
    assert "It fits" in auditor.table.value
    assert yaml.safe_load(auditor.state)["deployments"][1]["engine_share"] == 0.49
    assert auditor.exported.value == auditor.state


def test_a_wrong_value_gets_a_message_and_the_last_audit_stays(auditor: FractionAuditor) -> None:
    """The message names the field, and disappears with the next valid value."""
    before = auditor.audit
    auditor.rows[0]["num_gpus"].value = "half"
    assert "Not audited:</b> chat: num_gpus is" in auditor.message.value
    assert auditor.audit is before
    auditor.rows[0]["num_gpus"].value = "0.5"
    assert auditor.message.value == ""


def test_rows_come_and_go(auditor: FractionAuditor) -> None:
    """Added deployments get new names; the last deployment cannot be removed."""
    auditor.add.click()
    auditor.add.click()
    assert [deployment.name for deployment in auditor.audit.deployments] == ["chat", "code", "new 1", "new 2"]
    for _ in range(3):
        auditor.deployments.children[0].children[-1].click()
    assert [deployment.name for deployment in auditor.audit.deployments] == ["new 2"]
    auditor.deployments.children[0].children[-1].click()
    assert "no deployments" in auditor.message.value


def test_the_proposed_numbers_can_be_taken(auditor: FractionAuditor) -> None:
    """After one click it fits, and the button is disabled."""
    assert not auditor.take.disabled
    auditor.take.click()
    assert auditor.audit.ok
    assert auditor.take.disabled
    assert float(auditor.rows[0]["num_gpus"].value) == auditor.audit.deployments[0].num_gpus


def test_a_state_travels(auditor: FractionAuditor, capsys: pytest.CaptureFixture[str]) -> None:
    """Another auditor shows an exported state, given or pasted; text that is not YAML gets a message."""
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


def test_keys_without_a_field_are_kept() -> None:
    """Unequal nodes, the scheduling, and a deployment's other keys survive a change of a field."""
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
