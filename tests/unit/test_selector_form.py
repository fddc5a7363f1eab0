"""The selector's form and command, without a browser: they show what `select` says, and take what they export."""

import json

import pytest

from labkit.advice.selector import catalogue, read_state, select, write_state
from labkit.advice.selector.form import TIPS, SelectorForm, show
from labkit.cli.main import main
from tests.unit.refusals import not_refused

KNOWN = catalogue()


def test_an_answer_changes_result_and_state() -> None:
    """From the defaults, another option changes the shown winner, the view and the exported state."""
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
    """Pasted into another form, or given at its start, the state sets every answer and the model."""
    first = SelectorForm({"pattern": "pipeline", "kind": "both", "model": "org/mine"})
    second = SelectorForm()
    second.exported.value = first.state
    assert (second.answers, second.model) == (first.answers, "org/mine")
    assert {name: field.value for name, field in second.fields.items()} == first.answers
    assert SelectorForm(first.state).selection == first.selection


def test_a_state_that_cannot_be_read_is_told_and_changes_nothing() -> None:
    """The message says what is wrong, as text; answers, result and model stay, and the form still works."""
    for text in ("{", "[]", '{"kind": "lmm"}', '{"<script>": 1}', '{"model": "a b"}'):
        form = SelectorForm({"rate": "high"})
        form.exported.value = text
        assert "Not taken" in form.message.value, text
        assert "<script>" not in form.message.value
        assert form.answers["rate"] == "high"
        form.fields["rate"].value = "low"
        assert (form.message.value, form.answers["rate"]) == ("", "low")
        assert form.exported.value == form.state


def test_a_models_name_stands_in_the_configuration() -> None:
    """A hub id is taken; what is no name is told and not taken, and does not stop the next answer."""
    form = SelectorForm()
    form.served.value = "org/mine"
    assert "org/mine" in form.config[0].text
    form.served.value = "mine; rm -rf /"
    assert "no model" in form.message.value
    form.fields["rate"].value = "low"
    assert (form.message.value, form.model, form.served.value) == ("", "org/mine", "org/mine")


def test_every_view_draws_for_each_winner() -> None:
    """All views draw something for situations with different winners, and the shown one follows its button."""
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


def test_verdicts_of_this_machine_stand_beside_the_reasons() -> None:
    """A claim's verdict from the learner's own run is shown where a reason rests on that claim."""
    assert "claim refuted" in SelectorForm(verdicts={"C01": "refuted"}).detail.value
    assert "claim refuted" not in SelectorForm().detail.value


def test_shown_without_a_notebook_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """Outside a kernel the result is printed, and the form can still be asked; a bad state is refused before."""
    assert show({"kind": "both"}).selection.winner.name == "vllm-gateway"
    assert "vLLM servers behind a gateway" in capsys.readouterr().out
    assert not_refused(show, [('{"kind": "lmm"}', "did you mean")]) == []
    assert capsys.readouterr().out == ""


# --- the command


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command prints on stdout."""
    with pytest.raises(SystemExit) as ended:
        main(["select", *arguments])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_select_prints_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    """`labkit select --json` has the keys that scripts rely on, and agrees with Python."""
    data = json.loads(
        run(capsys, "--set", "kind=both", "--set", "pattern=pipeline", "--set", "model=org/mine", "--json")
    )
    expected = select({"kind": "both", "pattern": "pipeline"})
    assert [ranked["name"] for ranked in data["ranking"]] == [ranked.name for ranked in expected.ranking]
    assert {"name", "score", "reasons", "excluded"} <= set(data["ranking"][0])
    keys = ("question", "answer", "winner")
    flips = [tuple(getattr(flip, key) for key in keys) for flip in expected.flips]
    assert [tuple(flip[key] for key in keys) for flip in data["flips"]] == flips
    assert "org/mine" in data["config"]["serve_config.yaml"]["text"]
    assert {other["name"]: bool(other["why"]) for other in data["landscape"]}.items() >= {
        "SGLang": True,
        "KServe": False,
    }.items()
    assert "Started by this course's tests" in data["config_proof"]


def test_select_takes_what_it_and_the_form_export(capsys: pytest.CaptureFixture[str]) -> None:
    """In words: ranking, reasons, flips, configuration, the way back; `--answers` reads a state, `--set` changes it."""
    text = run(capsys)
    for part in (
        "Ranking",
        "Why not the others",
        "Look at these too",
        "SGLang",
        "Started by this course's tests",
        "What single answer",
        "What the article says",
        "vllm serve",
    ):
        assert part in text
    assert f"--answers '{write_state(KNOWN.defaults)}'" in text
    state = write_state({**KNOWN.defaults, "kind": "other", "team": "torchserve"})
    data = json.loads(run(capsys, "--answers", state, "--set", "team=ray", "--json"))
    assert (data["answers"]["team"], data["recommended"]) == ("ray", "own-ray-serve")


def test_bad_input_ends_with_two_and_a_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    """A message on stderr, nothing on stdout, exit code 2, from each of the three options."""
    for arguments, message in (
        (["--set", "kind=lmm"], "did you mean llm"),
        (["--set", "kind"], "sets nothing"),
        (["--set", "prefixs=no"], "did you mean prefixes"),
        (["--answers", "{"], "not JSON"),
        (["--runs", "/nowhere"], "not a folder"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["select", *arguments])
        written = capsys.readouterr()
        assert (ended.value.code, written.out, message in written.err) == (2, "", True), arguments
