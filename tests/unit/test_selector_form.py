"""The selector's form (without a browser) and command show the result of `select` and read their own exports."""

import json

import pytest

from labkit.advice.selector import catalogue, configure, read_state, select, to_json, write_state
from labkit.advice.selector.form import TIPS, SelectorForm, show
from tests.unit.command import Labkit

KNOWN = catalogue()


def test_an_answer_changes_result_and_state() -> None:
    """Another option changes the winner, the view and the exported state."""
    form = SelectorForm()
    assert (form.answers, form.selection) == (KNOWN.defaults, select())
    assert read_state(form.state) == (KNOWN.defaults, None)
    before = form.detail.value
    form.fields["kind"].value = "other"
    assert form.selection.winner.name == "own-ray-serve"
    assert form.selection.winner.title in form.summary.value
    assert form.detail.value != before
    assert json.loads(form.exported.value)["kind"] == "other"


def test_a_state_goes_from_one_form_to_another() -> None:
    """A state that is pasted into another form, or given at its start, sets every answer and the model."""
    first, second = SelectorForm({"pattern": "pipeline", "kind": "both"}), SelectorForm()
    first.served.value = "org/mine"
    second.exported.value = first.state
    assert (second.answers, second.model) == (first.answers, "org/mine")
    assert {name: field.value for name, field in second.fields.items()} == first.answers
    assert "org/mine" in second.config[0].text
    assert SelectorForm(first.state).selection == first.selection


def test_bad_input_gets_a_message_and_changes_nothing() -> None:
    """Of a state or a model's name: the message is escaped; what was valid stays, and the form still works."""
    states = ("{", "[]", '{"kind": "lmm"}', '{"<script>": 1}', '{"model": "a b"}')
    for name, text in (*(("exported", state) for state in states), ("served", "mine; rm -rf /")):
        form = SelectorForm({"rate": "high", "model": "org/mine"})
        getattr(form, name).value = text
        assert "Not accepted" in form.message.value, text
        assert "<script>" not in form.message.value
        assert form.answers["rate"] == "high"
        form.fields["rate"].value = "low"
        assert (form.message.value, form.answers["rate"]) == ("", "low")
        assert (form.exported.value, form.model, form.served.value) == (form.state, "org/mine", "org/mine")


def test_every_view_draws_for_each_winner() -> None:
    """For different winners each button shows its own view."""
    situations: list[dict[str, str]] = [
        {},
        {"rate": "high", "hardware": "several"},
        {"pattern": "pipeline", "kind": "both"},
        {"hardware": "laptop"},
        {"kind": "other"},
        {"rate": "low", "host": "may"},
        {"team": "torchserve", "kind": "other", "releases": "versions"},
    ]
    for answers in situations:
        form = SelectorForm(answers)
        drawn = set()
        for name in TIPS:
            form.buttons[name].click()
            assert form.buttons[name].button_style == "primary"
            drawn.add(form.detail.value)
        assert len(drawn) == len(TIPS)


def test_verdicts_of_this_machine_are_shown_beside_the_reasons() -> None:
    assert "claim refuted" in SelectorForm(verdicts={"C01": "refuted"}).detail.value
    assert "claim refuted" not in SelectorForm().detail.value


def test_shown_without_a_notebook_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """Outside a notebook the result is printed."""
    assert show({"kind": "both"}).selection.winner.name == "vllm-gateway"
    assert "vLLM servers behind a gateway" in capsys.readouterr().out


# --- the command


def test_select_prints_one_object(labkit: Labkit) -> None:
    """`labkit select --json` prints the object that Python returns, with the keys that scripts rely on."""
    options = ("--set", "kind=both", "--set", "pattern=pipeline", "--set", "model=org/mine", "--json")
    data = labkit("select", *options).json
    expected = select({"kind": "both", "pattern": "pipeline"})
    config = configure(expected.winner.name, expected.answers, model="org/mine")
    assert data == json.loads(json.dumps(to_json(expected, config, model="org/mine")))
    assert {"name", "score", "reasons", "excluded"} <= set(data["ranking"][0])
    assert set(data["flips"][0]) == {"question", "answer", "winner"}


def test_select_takes_what_it_and_the_form_export(labkit: Labkit) -> None:
    """The text ends with the command that repeats the answers; `--answers` reads a state, `--set` changes it."""
    text = labkit("select").stdout
    assert [part for part in ("SGLang", "What the article says", "vllm serve") if part not in text] == []
    assert text.rstrip().endswith(f"--answers '{write_state(KNOWN.defaults)}'")
    state = write_state({**KNOWN.defaults, "kind": "other", "team": "torchserve"})
    data = labkit("select", "--answers", state, "--set", "team=ray", "--json").json
    assert (data["answers"]["team"], data["recommended"]) == ("ray", "own-ray-serve")


def test_bad_input_ends_with_two_and_a_remedy(labkit: Labkit) -> None:
    """Each option has exit code 2, a message on stderr and nothing on stdout."""
    for arguments, message in (
        (["--set", "kind=lmm"], "did you mean llm"),
        (["--set", "kind"], "sets nothing"),
        (["--set", "prefixs=no"], "did you mean prefixes"),
        (["--answers", "{"], "not JSON"),
        (["--runs", "/nowhere"], "not a folder"),
    ):
        ended = labkit("select", *arguments)
        assert (ended.code, ended.stdout, message in ended.stderr) == (2, "", True), arguments
